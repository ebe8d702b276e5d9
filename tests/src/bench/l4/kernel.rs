//! The benchmark object in the kernel, and the one in C beside it: loading, running, counters.
//!
//! Maps are pinned in a file system of the run's own, so that both objects share them; it goes with the sandbox. What is in the
//! tables is the business of [`super::tables`].

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, Map, SockMap};
use aya::programs::{
    Program, SchedClassifier, SkLookup, TestRun, TestRunAttrs, TestRunOptions, TestRunResult, Xdp,
    XdpMode,
    links::LinkOrder,
    tc::{SchedClassifierLinkId, TcAttachOptions, TcAttachType},
    xdp::XdpLinkId,
};
use aya::{Ebpf, EbpfLoader};
use gateway_common::abi::{COUNTERS_PER_CPU, Counter, MAX_CPUS, map, reason_of};
use rustix::mount::{MountFlags, mount};
use serde::Serialize;

/// Maps that the object in C has too.
const SHARED: [&str; 8] = [
    map::CONFIG,
    map::ROWS,
    map::VIPS,
    map::NODES,
    map::ALIVE,
    map::COUNTERS,
    "BENCH",
    "TEMPLATE",
];

/// What the verifier made of a program.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Verified {
    pub(super) instructions: u32,
    /// Milliseconds of each load.
    pub(super) load_ms: Vec<f64>,
}

/// The loaded objects.
pub(super) struct Kernel {
    ebpf: Ebpf,
    peer: Option<Ebpf>,
    pins: PathBuf,
    /// The shipped programs by name.
    pub(super) verified: BTreeMap<String, Verified>,
}

impl Kernel {
    /// Loads the object and its programs, those that are shipped as often as is told.
    pub(super) fn load(object: &Path, work: &Path, loads: usize) -> Result<Self> {
        let bytes = fs::read(object).with_context(|| {
            format!(
                "cannot read {}: build the kernel programs with the feature `bench`",
                object.display()
            )
        })?;
        let mut ebpf = EbpfLoader::new()
            .load(&bytes)
            .context("cannot load the benchmark object")?;
        let names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
        let mut verified = BTreeMap::new();
        for name in names {
            let program = ebpf.program_mut(&name).context("a program is gone")?;
            let shipped = name.starts_with("forebay_");
            let loads = if shipped { loads } else { 1 };
            let load_ms = load(program, loads)
                .with_context(|| format!("the kernel refuses the program {name}"))?;
            if shipped {
                let instructions = program.info()?.verified_instruction_count().unwrap_or(0);
                verified.insert(
                    name,
                    Verified {
                        instructions,
                        load_ms,
                    },
                );
            }
        }
        let pins = work.join("bpf");
        fs::create_dir_all(&pins)?;
        mount("bpf", &pins, "bpf", MountFlags::NOSUID, None)
            .context("cannot mount a BPF file system for the run")?;
        Ok(Self {
            ebpf,
            peer: None,
            pins,
            verified,
        })
    }

    /// Loads the object in C, on the maps of the other one.
    pub(super) fn add_peer(&mut self, object: &Path, programs: &[&str]) -> Result<()> {
        let bytes = fs::read(object).context("cannot read the object in C")?;
        let mut loader = EbpfLoader::new();
        for name in SHARED {
            let pin = self.pins.join(name);
            let map = self.ebpf.map(name);
            map.with_context(|| format!("the object has no map {name}"))?
                .pin(&pin)?;
            loader.map_pin_path(name, pin);
        }
        let mut peer = loader.load(&bytes).context("cannot load the object in C")?;
        for name in programs {
            let program = peer
                .program_mut(name)
                .with_context(|| format!("the object in C has no program {name}"))?;
            load(program, 1).with_context(|| format!("the kernel refuses the program {name}"))?;
        }
        self.peer = Some(peer);
        Ok(())
    }

    /// Whether the object in C is there.
    pub(super) fn has_peer(&self) -> bool {
        self.peer.is_some()
    }

    /// Sets an element of an array map.
    pub(super) fn set<V: aya::Pod>(&mut self, map: &str, index: u32, value: V) -> Result<()> {
        let array = self
            .ebpf
            .map_mut(map)
            .with_context(|| format!("the object has no map {map}"))?;
        Array::try_from(array)?
            .set(index, value, 0)
            .with_context(|| format!("cannot write {map}[{index}]"))
    }

    /// Reads an element of an array map.
    pub(super) fn get<V: aya::Pod>(&self, map: &str, index: u32) -> Result<V> {
        let array = self
            .ebpf
            .map(map)
            .with_context(|| format!("the object has no map {map}"))?;
        Array::try_from(array)?
            .get(&index, 0)
            .with_context(|| format!("cannot read {map}[{index}]"))
    }

    /// A map by its name.
    pub(super) fn map_mut(&mut self, map: &str) -> Result<&mut Map> {
        self.ebpf
            .map_mut(map)
            .with_context(|| format!("the object has no map {map}"))
    }

    /// The file descriptor of an array map.
    pub(super) fn fd(&self, map: &str) -> Result<BorrowedFd<'_>> {
        match self.ebpf.map(map) {
            Some(Map::Array(data)) => Ok(data.fd().as_fd()),
            _ => bail!("the object has no array map {map}"),
        }
    }

    /// Bytes that each of the shipped maps occupies in the kernel.
    pub(super) fn memory(&self) -> Result<BTreeMap<String, u64>> {
        let shipped = self.ebpf.maps().filter(|(name, _)| {
            !matches!(*name, "BENCH" | "TEMPLATE" | "FRAME" | "SINK") && !name.starts_with('.')
        });
        shipped
            .map(|(name, map)| {
                let (Map::Array(data)
                | Map::SockMap(data)
                | Map::DevMapHash(data)
                | Map::LpmTrie(data)
                | Map::HashMap(data)
                | Map::LruHashMap(data)
                | Map::RingBuf(data)
                | Map::PerCpuArray(data)) = map
                else {
                    bail!("the benchmark does not know the kind of the map {name}");
                };
                let info = format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
                Ok((name.to_owned(), memlock(&fs::read_to_string(info)?)?))
            })
            .collect()
    }

    /// What a counter says, over all CPUs.
    pub(super) fn counter(&self, counter: Counter) -> Result<u64> {
        let cells: Vec<u32> = (0..COUNTERS_PER_CPU)
            .filter(|cell| reason_of(*cell) == Some(counter))
            .collect();
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, error)| anyhow::anyhow!("cannot read {path}: {error}"))?;
        let cells = (0..(cpus as u32).min(MAX_CPUS))
            .flat_map(|cpu| cells.iter().map(move |cell| cpu * COUNTERS_PER_CPU + cell));
        cells
            .map(|index| self.get::<u64>(map::COUNTERS, index))
            .sum()
    }

    /// Puts a listening socket into a slot of the socket map.
    pub(super) fn set_socket(&mut self, slot: u32, socket: &impl AsRawFd) -> Result<()> {
        let mut sockets = SockMap::try_from(self.map_mut(map::SOCKETS)?)?;
        sockets
            .set(slot, socket, 0)
            .with_context(|| format!("cannot write socket slot {slot}"))
    }

    /// Attaches the socket lookup program to this thread's network namespace; it stays until the object is dropped.
    pub(super) fn attach_lookup(&mut self) -> Result<()> {
        let program = self.ebpf.program_mut("forebay_lookup");
        let lookup: &mut SkLookup = program.context("no program forebay_lookup")?.try_into()?;
        let namespace = fs::File::open("/proc/thread-self/ns/net")?;
        lookup
            .attach(namespace)
            .context("cannot attach forebay_lookup")?;
        Ok(())
    }

    /// Repeats a program on a packet, without effects outside.
    pub(super) fn test_run(
        &mut self,
        program: &str,
        packet: &[u8],
        repeat: u32,
    ) -> Result<TestRunResult> {
        let options = TestRunOptions {
            data_in: Some(packet),
            repeat,
            ..TestRunOptions::new()
        };
        let result = self.xdp(program)?.test_run(options);
        result.with_context(|| format!("cannot run the program {program}"))
    }

    /// Runs a program on live frames that arrive at the interface `ifindex` of this thread's namespace.
    pub(super) fn live_run(
        &mut self,
        program: &str,
        packet: &[u8],
        ifindex: u32,
        repeat: u32,
    ) -> Result<()> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> = [0, packet.len() as u32, 0, ifindex, 0, 0]
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect();
        let attrs = TestRunAttrs::new().xdp_live_frames(64);
        let options = TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&context),
            repeat,
            attrs,
            ..TestRunOptions::new()
        };
        let result = self.xdp(program)?.test_run(options);
        result
            .map(|_| ())
            .with_context(|| format!("cannot send frames with the program {program}"))
    }

    /// Attaches a program natively to an interface of this thread's namespace.
    pub(super) fn attach(&mut self, program: &str, interface: &str) -> Result<XdpLinkId> {
        self.attach_as(program, interface, XdpMode::Driver)
    }

    /// Attaches an XDP program in this mode.
    pub(super) fn attach_as(
        &mut self,
        program: &str,
        interface: &str,
        mode: XdpMode,
    ) -> Result<XdpLinkId> {
        let link = self.xdp(program)?.attach(interface, mode);
        link.with_context(|| format!("cannot attach {program} to {interface} ({mode:?})"))
    }

    /// Attaches the classifier by tcx.
    pub(super) fn attach_tcx(&mut self, interface: &str) -> Result<SchedClassifierLinkId> {
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        self.classifier()?
            .attach_with_options(interface, TcAttachType::Ingress, options)
            .with_context(|| format!("cannot attach forebay_tc to {interface}"))
    }

    /// Ends it.
    pub(super) fn detach_tcx(&mut self, link: SchedClassifierLinkId) -> Result<()> {
        let detached = self.classifier()?.detach(link);
        detached.context("cannot detach forebay_tc")
    }

    /// Ends an attachment.
    pub(super) fn detach(&mut self, program: &str, link: XdpLinkId) -> Result<()> {
        self.xdp(program)?
            .detach(link)
            .with_context(|| format!("cannot detach {program}"))
    }

    fn classifier(&mut self) -> Result<&mut SchedClassifier> {
        let program = self.ebpf.program_mut("forebay_tc");
        let program = program.context("the object has no program forebay_tc")?;
        Ok(program.try_into()?)
    }

    fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        let own = self.ebpf.program_mut(name);
        let program = own.or_else(|| self.peer.as_mut()?.program_mut(name));
        program
            .with_context(|| format!("there is no program {name}"))?
            .try_into()
            .with_context(|| format!("{name} is no XDP program"))
    }
}

/// Loads a program `times` times and gives the milliseconds of each.
fn load(program: &mut Program, times: usize) -> Result<Vec<f64>> {
    let mut taken = Vec::with_capacity(times);
    for time in 0..times {
        let elapsed = match program {
            Program::Xdp(xdp) => {
                if time > 0 {
                    xdp.unload()?;
                }
                timed(|| xdp.load())?
            }
            Program::SkLookup(lookup) => {
                if time > 0 {
                    lookup.unload()?;
                }
                timed(|| lookup.load())?
            }
            Program::SchedClassifier(classifier) => {
                if time > 0 {
                    classifier.unload()?;
                }
                timed(|| classifier.load())?
            }
            other => bail!(
                "the benchmark does not know programs of the type {:?}",
                other.prog_type()
            ),
        };
        taken.push(elapsed.as_secs_f64() * 1_000.0);
    }
    Ok(taken)
}

fn timed<E>(work: impl FnOnce() -> Result<(), E>) -> Result<Duration, E> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// Bytes of memory in what `/proc` says of a map's descriptor.
fn memlock(text: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    let bytes = line.and_then(|bytes| bytes.trim().parse().ok());
    let bytes = bytes.context("the kernel does not say how much memory a map has")?;
    ensure!(bytes > 0, "the kernel says that a map has no memory");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_descriptor() {
        let text = "pos:\t0\nmap_type:\t2\nmemlock:\t524608\nmap_id:\t9\n";
        assert_eq!(memlock(text).unwrap(), 524_608);
        assert!(memlock("pos:\t0\n").is_err());
        assert!(memlock("memlock:\t0\n").is_err());
    }
}
