//! Live throughput on a veth pair: Forebay against nftables DNAT and against the least that XDP can do.
//!
//! The load balancer stands on a stick: what the generator sends from one end comes back out of the other. The balancer's NAPI thread has
//! one core for itself; generator and sink share another. CPU per packet is that thread's run time over the frames that came back.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::programs::XdpMode;
use gateway_common::abi::{Counter, Row};
use rustix::mount::{MountFlags, mount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Serialize;

use super::frames::{LENGTH, VIP, live, template};
use super::kernel::Kernel;
use super::tables::{OTHER, SELF, Setting, Tables};
use crate::bench::{cpu, sandbox};

/// Flows of most handlers.
const FLOWS: u64 = 10_000;

/// Flows of the handlers that are to show that it does not matter.
const MANY_FLOWS: u64 = 1_000_000;

/// Share of its core above which a balancer, and not the generator, is taken for the limit.
pub(super) const BUSY: f64 = 0.9;

/// Most frames of one call, whose set-up costs tens of milliseconds.
const FRAMES: u32 = 2_000_000;

/// Frames before the measurement.
const WARM_UP: u32 = 200_000;

/// Addresses that nftables spreads the flows over.
const BACKENDS: usize = 100;

/// Who handles the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Handler {
    Floor,
    ForebayL2,
    ForebayL2Many,
    ForebayUdp,
    ForebayUdpMany,
    C,
    CUdp,
    Tcx,
    TcxUdp,
    Generic,
    Nftables,
}

impl Handler {
    pub(super) const ALL: [Self; 11] = [
        Self::Floor,
        Self::ForebayL2,
        Self::ForebayL2Many,
        Self::ForebayUdp,
        Self::ForebayUdpMany,
        Self::C,
        Self::CUdp,
        Self::Tcx,
        Self::TcxUdp,
        Self::Generic,
        Self::Nftables,
    ];

    /// Those of Forebay that are judged: in native XDP.
    pub(super) const OURS: [Self; 4] = [
        Self::ForebayL2,
        Self::ForebayL2Many,
        Self::ForebayUdp,
        Self::ForebayUdpMany,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor: XDP swaps MACs",
            Self::ForebayL2 => "forebay, MAC rewrite, 10k flows",
            Self::ForebayL2Many => "forebay, MAC rewrite, 1M flows",
            Self::ForebayUdp => "forebay, UDP, 10k flows",
            Self::ForebayUdpMany => "forebay, UDP, 1M flows",
            Self::C => "C: MAC rewrite, 10k flows",
            Self::CUdp => "C: UDP, 10k flows",
            Self::Tcx => "forebay on tcx, MAC rewrite",
            Self::TcxUdp => "forebay on tcx, UDP",
            Self::Generic => "forebay in generic XDP, MAC rewrite",
            Self::Nftables => "nftables DNAT, 10k flows",
        }
    }

    fn flows(self) -> u64 {
        match self {
            Self::ForebayL2Many | Self::ForebayUdpMany => MANY_FLOWS,
            _ => FLOWS,
        }
    }

    /// Whether it is the program in C.
    pub(super) fn is_c(self) -> bool {
        matches!(self, Self::C | Self::CUdp)
    }

    fn encapsulates(self) -> bool {
        matches!(
            self,
            Self::ForebayUdp | Self::ForebayUdpMany | Self::CUdp | Self::TcxUdp
        )
    }
}

/// One handler in one round.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Cell {
    pub(super) mpps: f64,
    /// Of the balancer's NAPI thread, per frame that came back.
    pub(super) cpu_ns: f64,
    /// Share of its core that the thread used.
    pub(super) busy: f64,
}

/// Both ends of the veth pair. The namespaces go with the sandbox.
pub(super) struct Rig {
    balancer: File,
    generator: File,
    /// Name of the balancer's end, unique on the machine since its kernel thread carries it.
    near: String,
    far: String,
    near_index: u32,
    far_index: u32,
    near_mac: [u8; 6],
    rules: PathBuf,
    cores: (usize, usize),
}

impl Rig {
    /// Makes the pair and attaches the sink. `cores`: generator and sink, then the balancer.
    pub(super) fn new(
        kernel: &mut Kernel,
        tables: &Tables,
        work: &Path,
        cores: (usize, usize),
    ) -> Result<Self> {
        let id = std::process::id() % 1_000_000;
        let (near, far) = (format!("lb{id}"), format!("gen{id}"));
        let namespace = work.join("generator");
        File::create(&namespace)?;
        let path = namespace
            .to_str()
            .context("the output directory is not valid UTF-8")?;
        sandbox::run("unshare", &[&format!("--net={path}"), "true"])?;
        sandbox::ip(&format!(
            "link add {near} numrxqueues 1 numtxqueues 1 type veth peer name {far} numrxqueues 1 numtxqueues 1"
        ))?;
        sandbox::ip(&format!("link set {far} netns {path}"))?;
        let mut rig = Self {
            balancer: File::open("/proc/thread-self/ns/net")?,
            generator: File::open(&namespace)?,
            near_index: 0,
            far_index: 0,
            near_mac: [0; 6],
            rules: work.join("dnat.nft"),
            near,
            far,
            cores,
        };
        rig.prepare(kernel, work)?;
        tables.steer_all(Row::new(
            OTHER,
            false,
            [(SELF, false), (0, false), (0, false)],
        ));
        tables.set_nodes(rig.near_index)?;
        Ok(rig)
    }

    fn prepare(&mut self, kernel: &mut Kernel, work: &Path) -> Result<()> {
        let (near, far) = (self.near.clone(), self.far.clone());
        let sys = mount_sys(&work.join("sys-near"))?;
        self.near_index = number(&sys.join(format!("class/net/{near}/ifindex")))?;
        self.near_mac = mac(&sys.join(format!("class/net/{near}/address")))?;
        sandbox::run("ethtool", &["-K", &near, "gro", "on"])?;
        sandbox::ip(&format!("address add 203.0.113.1/24 dev {near}"))?;
        sandbox::ip(&format!("link set {near} up"))?;
        sandbox::ip(&format!(
            "neighbour replace 203.0.113.2 lladdr 02:00:00:00:01:02 dev {near} nud permanent"
        ))?;
        sandbox::ip(&format!(
            "route add 198.51.100.0/24 via 203.0.113.2 dev {near}"
        ))?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        for scope in ["all", &near] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "0")?;
            fs::write(
                format!("/proc/sys/net/ipv4/conf/{scope}/send_redirects"),
                "0",
            )?;
        }
        fs::write(&self.rules, rules())?;

        let other = work.join("sys-far");
        self.far_index = self.in_generator(|| {
            let sys = mount_sys(&other)?;
            sandbox::ip(&format!("link set {far} up"))?;
            // The link lives as long as the program does, which is as long as this process.
            kernel.attach("live_sink", &far)?;
            fs::write(sys.join(format!("class/net/{far}/threaded")), "1")
                .context("cannot thread the sink's NAPI")?;
            number(&sys.join(format!("class/net/{far}/ifindex")))
        })?;
        fs::write(sys.join(format!("class/net/{near}/threaded")), "1")
            .context("cannot thread the balancer's NAPI")?;
        // Ahead of the generator on the same core: else returned frames find the ring full.
        alone_on(&far, self.cores.0)?;
        Ok(())
    }

    /// Runs one handler for about `span`.
    pub(super) fn cell(
        &self,
        kernel: &mut Kernel,
        tables: &mut Tables,
        handler: Handler,
        span: Duration,
    ) -> Result<Cell> {
        tables.set(Setting {
            encapsulate: handler.encapsulates(),
            ..Setting::default()
        });
        kernel.set("FRAME", 0, template(self.near_mac, handler.flows()))?;
        let (program, mode) = match handler {
            Handler::Floor => ("live_return", XdpMode::Driver),
            Handler::C | Handler::CUdp => ("c_forward", XdpMode::Driver),
            Handler::Generic => ("forebay_xdp", XdpMode::Skb),
            Handler::Tcx | Handler::TcxUdp => {
                let link = kernel.attach_tcx(&self.near)?;
                let cell = self.measure(kernel, handler, span);
                kernel.detach_tcx(link)?;
                return cell;
            }
            Handler::Nftables => {
                sandbox::run("nft", &["-f", &self.rules.to_string_lossy()])?;
                let cell = self.measure(kernel, handler, span);
                sandbox::run("nft", &["delete", "table", "ip", "balancer"])?;
                return cell;
            }
            _ => ("forebay_xdp", XdpMode::Driver),
        };
        let link = kernel.attach_as(program, &self.near, mode)?;
        let cell = self.measure(kernel, handler, span);
        kernel.detach(program, link)?;
        cell
    }

    fn measure(&self, kernel: &mut Kernel, handler: Handler, span: Duration) -> Result<Cell> {
        let threads = alone_on(&self.near, self.cores.1)?;
        // The first frames meet cold caches and make nftables' flow entries.
        self.send(kernel, Duration::ZERO, WARM_UP)?;
        let ran = || {
            threads
                .iter()
                .map(|t| cpu::thread_run_time(&format!("/proc/{t}")))
                .sum::<Result<u64>>()
        };
        let (start, cpu_before) = (Instant::now(), ran()?);
        let (before, counted) = (kernel.get::<u64>("SINK", 0)?, forwarded(kernel, handler)?);
        self.send(
            kernel,
            span,
            if span < Duration::from_secs(1) {
                FRAMES / 8
            } else {
                FRAMES
            },
        )?;
        let elapsed = start.elapsed().as_secs_f64();
        let came = kernel.get::<u64>("SINK", 0)? - before;
        let spent = ran()? - cpu_before;
        ensure!(
            came > 0,
            "the run is void: no frame came back from \"{}\"",
            handler.name()
        );
        if let (Some(first), Some(last)) = (counted, forwarded(kernel, handler)?) {
            let sent = last - first;
            ensure!(
                sent >= came,
                "the run is void: {came} frames came back, forebay forwarded {sent}"
            );
        }
        Ok(Cell {
            mpps: came as f64 / elapsed / 1e6,
            cpu_ns: spent as f64 / came as f64,
            busy: spent as f64 / 1e9 / elapsed,
        })
    }

    /// Sends frames until `span` is over, one call of `frames` at least.
    fn send(&self, kernel: &mut Kernel, span: Duration, frames: u32) -> Result<()> {
        let start = Instant::now();
        let packet: [u8; LENGTH] = live(self.near_mac);
        self.in_generator(|| {
            loop {
                kernel.live_run("live_generate", &packet, self.far_index, frames)?;
                if start.elapsed() >= span {
                    return Ok(());
                }
            }
        })
    }

    /// Does something with this thread in the generator's namespace.
    fn in_generator<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        use std::os::fd::AsFd;
        let enter = |namespace: &File| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        };
        enter(&self.generator).context("cannot enter the generator's namespace")?;
        let result = work();
        enter(&self.balancer).context("cannot return from the generator's namespace")?;
        result
    }
}

/// What Forebay's own counter of this handler says; `None` for the others.
fn forwarded(kernel: &Kernel, handler: Handler) -> Result<Option<u64>> {
    let counter = match handler {
        Handler::ForebayL2
        | Handler::ForebayL2Many
        | Handler::C
        | Handler::Tcx
        | Handler::Generic => Counter::ForwardL2,
        Handler::ForebayUdp | Handler::ForebayUdpMany | Handler::CUdp | Handler::TcxUdp => {
            Counter::ForwardUdp
        }
        Handler::Floor | Handler::Nftables => return Ok(None),
    };
    kernel.counter(counter).map(Some)
}

/// DNAT of the VIP to one of a hundred addresses by a hash of the client's address and port.
fn rules() -> String {
    let to: Vec<String> = (0..BACKENDS)
        .map(|i| format!("{i} : 198.51.100.{}", i + 1))
        .collect();
    let [a, b, c, d] = VIP;
    format!(
        "table ip balancer {{\n  chain prerouting {{\n    type nat hook prerouting priority dstnat;\n    \
         ip daddr {a}.{b}.{c}.{d} tcp dport 80 dnat to jhash ip saddr . tcp sport mod {BACKENDS} map {{ {} }}\n  }}\n}}\n",
        to.join(", ")
    )
}

/// A view of `/sys` for this thread's network namespace.
fn mount_sys(at: &Path) -> Result<PathBuf> {
    fs::create_dir_all(at)?;
    mount("sysfs", at, "sysfs", MountFlags::NOSUID, None).context("cannot mount sysfs")?;
    Ok(at.to_path_buf())
}

/// Pins the NAPI threads of an interface to a core, ahead of the generator and all ordinary threads if that is granted.
fn alone_on(interface: &str, core: usize) -> Result<Vec<u32>> {
    let threads = napi_threads(interface)?;
    ensure!(!threads.is_empty(), "{interface} has no NAPI thread");
    for &thread in &threads {
        cpu::pin(Some(thread), core)?;
        cpu::real_time(Some(thread), 60);
    }
    Ok(threads)
}

/// The kernel threads that handle what arrives at an interface.
fn napi_threads(interface: &str) -> Result<Vec<u32>> {
    let prefix = format!("napi/{interface}-");
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.starts_with(&prefix))
        {
            threads.push(pid);
        }
    }
    Ok(threads)
}

pub(super) fn number(path: &Path) -> Result<u32> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.trim()
        .parse()
        .with_context(|| format!("{} holds no number", path.display()))
}

pub(super) fn mac(path: &Path) -> Result<[u8; 6]> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let bytes: Vec<u8> = text
        .trim()
        .split(':')
        .filter_map(|b| u8::from_str_radix(b, 16).ok())
        .collect();
    bytes
        .try_into()
        .ok()
        .with_context(|| format!("{} holds no MAC address", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_spread_over_a_hundred_addresses() {
        let text = rules();
        assert!(text.contains("ip daddr 192.0.2.80 tcp dport 80 dnat to jhash ip saddr . tcp sport mod 100 map { 0 : 198.51.100.1,"));
        assert!(text.contains("99 : 198.51.100.100 }"));
        assert_eq!(text.matches(" : ").count(), BACKENDS);
    }
}
