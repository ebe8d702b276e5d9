//! `forebay check`: what this machine offers to the datapath, and what eats packets of VIPs.
//!
//! `gather` reads the system, [`judge`] is pure. Nothing is changed; `vip` alone sends packets, to the stack of this machine.

mod agent;
mod kubernetes;
mod nat;
mod trace;
mod vip;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use http::Method;
use serde::Serialize;

use super::client;
use crate::args::{CheckArgs, Whom};
use crate::datapath::offer::{Offer, UdpHash, offer};
use crate::datapath::trial;

/// What the privileges are judged as.
const RIGHTS: &str = "capabilities";
const FILE_SYSTEM: &str = "BPF file system";

/// Magic number of the BPF file system.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Capabilities that the datapath needs, with their numbers.
const CAPABILITIES: [(&str, u32); 3] =
    [("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", 13), ("CAP_BPF", 39)];

/// Holder of this one needs no CAP_BPF.
const CAP_SYS_ADMIN: u32 = 21;

/// Oldest kernel that the datapath is meant for.
const MIN_KERNEL: (u32, u32) = (5, 15);

/// Smallest MTU that the tunnel header and a full IPv4 packet of 1,280 bytes fit into.
const MIN_MTU: u32 = 1_356;

/// What was found about this machine.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Release of the kernel, for example `6.12.3-amd64`.
    pub kernel: String,
    /// Whether the kernel describes its own types.
    pub btf: bool,
    /// Effective capabilities as a bit set.
    pub capabilities: u64,
    /// The nearest existing directory above the pin directory, and whether it is a BPF file system.
    pub bpffs: (PathBuf, bool),
    /// The interfaces asked for, or the one with the default route.
    pub interfaces: Vec<Interface>,
}

/// What was found about one interface.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// MTU; `None` = there is no such interface.
    pub mtu: Option<u32>,
    /// `up`, `down`, `no carrier`, `unknown`.
    pub state: String,
    /// Driver, queues and ways in.
    pub offer: Offer,
    /// What the reverse path filter will drop, in words.
    pub reverse_path: Option<String>,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// Whether it will do.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do if it will not do.
    pub remedy: Option<String>,
}

impl Finding {
    fn good(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            ok: true,
            found: found.into(),
            remedy: None,
        }
    }

    fn bad(check: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            ok: false,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// Everything that `forebay check` says.
#[must_use]
pub fn all(args: &CheckArgs) -> Vec<Finding> {
    let facts = gather(&args.uplink.interface, &args.pins.bpffs, &args.client);
    let mut findings = judge(&facts);
    if let Some(agent) = agent::here(args.agent.as_deref()) {
        agent::take_over(&agent, &mut findings);
    }
    findings.extend(kubernetes::findings(&args.namespaces));
    let names: Vec<String> = facts.interfaces.iter().map(|i| i.name.clone()).collect();
    let daemon = client::ask(&Whom::at(&args.admin), Method::GET, "/datapath");
    findings.push(nat::finding(daemon.as_ref().ok()));
    match daemon {
        Ok(daemon) if daemon.is_null() => {
            let found = "not tried: the daemon runs with --datapath off";
            findings.push(Finding::good("VIPs", found));
        }
        Ok(daemon) => findings.extend(vip::findings(&daemon, &names, &args.client)),
        Err(error) => findings.push(Finding::good("VIPs", format!("not tried: {error}"))),
    }
    findings
}

/// Reads the system. `interfaces` empty = the one with the default route.
#[must_use]
pub fn gather(interfaces: &[String], pin_dir: &Path, clients: &[IpAddr]) -> Facts {
    let mut names = interfaces.to_vec();
    if names.is_empty() {
        names.extend(default_interface());
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let existing = pin_dir.ancestors().find(|dir| dir.exists());
    let existing = existing.unwrap_or(Path::new("/")).to_owned();
    let is_bpffs = rustix::fs::statfs(&existing).is_ok_and(|fs| fs.f_type == BPF_FS_MAGIC);
    Facts {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        capabilities: capabilities.unwrap_or(0),
        bpffs: (existing, is_bpffs),
        interfaces: names
            .into_iter()
            .map(|name| interface(name, pin_dir, clients))
            .collect(),
    }
}

fn interface(name: String, pin_dir: &Path, clients: &[IpAddr]) -> Interface {
    let port = trial::port(&name);
    let mtu = port.map(|port| port.mtu);
    let client = vip::client(clients, IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    Interface {
        mtu,
        state: port.map_or_else(String::new, |port| port.state.to_owned()),
        offer: mtu.map_or_else(Offer::default, |mtu| offer(&name, mtu, pin_dir)),
        reverse_path: mtu.and_then(|_| reverse_path(&name, client)),
        name,
    }
}

/// What the reverse path filter of an interface does to packets of a client, if it drops them; in words.
fn reverse_path(interface: &str, client: IpAddr) -> Option<String> {
    if client.is_ipv6() {
        return None;
    }
    let read = |name: &str| -> u8 {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    // The stricter one by number, as the kernel has it: 1 is strict, 2 is loose.
    let filter = read("all").max(read(interface));
    let back = trial::way_to(client);
    let here = trial::port(interface).map(|port| port.ifindex);
    match filter {
        1 if back.is_some() && back == here => None,
        1 => Some(format!(
            "rp_filter is 1 (strict) on {interface}, and the way back to {client} is another interface's"
        )),
        2 if back.is_none() => Some(format!(
            "rp_filter is 2 (loose) on {interface}, and there is no way back to {client}"
        )),
        _ => None,
    }
}

/// Tables of iptables-legacy in use.
fn legacy_tables() -> Vec<String> {
    let names = ["ip_tables_names", "ip6_tables_names"]
        .map(|file| fs::read_to_string(Path::new("/proc/net").join(file)).unwrap_or_default());
    names
        .iter()
        .flat_map(|text| text.lines())
        .map(str::to_owned)
        .collect()
}

/// The interface of the IPv4 default route with the lowest metric.
#[must_use]
pub fn default_interface() -> Option<String> {
    let routes = fs::read_to_string("/proc/net/route").ok()?;
    routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_default =
                fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000");
            let metric: u32 = fields.get(6)?.parse().ok()?;
            is_default.then(|| (metric, fields[0].to_owned()))
        })
        .min()
        .map(|(_, name)| name)
}

/// Judges what was found.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        kernel(&facts.kernel),
        btf(facts.btf),
        capabilities(facts.capabilities),
    ];
    findings.push(file_system(facts));
    if facts.interfaces.is_empty() {
        findings.push(Finding {
            check: "interface".into(),
            ok: false,
            found: "there is no default route".into(),
            remedy: Some("name the uplink with --interface".into()),
        });
    }
    findings.extend(facts.interfaces.iter().flat_map(uplink));
    findings
}

fn file_system(facts: &Facts) -> Finding {
    let (dir, is_bpffs) = &facts.bpffs;
    let dir = dir.display();
    let mounts = facts.capabilities & (1 << CAP_SYS_ADMIN) != 0;
    Finding {
        check: FILE_SYSTEM.into(),
        ok: *is_bpffs || mounts,
        found: match (is_bpffs, mounts) {
            (true, _) => format!("{dir} is one"),
            (false, true) => format!("{dir} is not one; `forebay run` mounts it"),
            (false, false) => format!("{dir} is not one"),
        },
        remedy: (!is_bpffs && !mounts).then(|| {
            "mount -t bpf bpf /sys/fs/bpf as root, or name another one with --bpffs".into()
        }),
    }
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let ok = version >= MIN_KERNEL;
    Finding {
        check: "kernel".into(),
        ok,
        found: release.to_owned(),
        remedy: (!ok).then(|| {
            format!(
                "run Linux {}.{} or newer, or use --datapath off",
                MIN_KERNEL.0, MIN_KERNEL.1
            )
        }),
    }
}

fn btf(there: bool) -> Finding {
    Finding {
        check: "kernel type information".into(),
        // Only wanted by tools that look at the programs.
        ok: true,
        found: if there {
            "there"
        } else {
            "not there (not needed)"
        }
        .into(),
        remedy: None,
    }
}

fn capabilities(held: u64) -> Finding {
    let has = |number: u32| held & (1 << number) != 0;
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(name, number)| !(has(*number) || *name == "CAP_BPF" && has(CAP_SYS_ADMIN)))
        .map(|(name, _)| *name)
        .collect();
    let ok = missing.is_empty();
    Finding {
        check: RIGHTS.into(),
        ok,
        found: if ok {
            "all held".into()
        } else {
            format!("missing {}", missing.join(", "))
        },
        remedy: (!ok).then(|| "run as root or grant them, or use --datapath off".into()),
    }
}

fn uplink(interface: &Interface) -> Vec<Finding> {
    let name = &interface.name;
    let check = format!("interface {name}");
    let Some(mtu) = interface.mtu else {
        return vec![Finding::bad(
            check,
            "there is no such interface",
            "name an existing one with --interface; ip link lists them",
        )];
    };
    let driver = interface.offer.driver.as_deref().unwrap_or("not known");
    let remedy = if interface.state == "down" {
        Some(format!("ip link set {name} up"))
    } else if interface.state == "no carrier" {
        Some(
            "look at its cable and at what is at the other end of it: the interface itself is up"
                .to_owned(),
        )
    } else if mtu < MIN_MTU {
        Some(format!("raise the MTU to at least {MIN_MTU}"))
    } else {
        None
    };
    let first = Finding {
        check,
        ok: remedy.is_none(),
        found: format!("{}, MTU {mtu}, driver {driver}", interface.state),
        remedy,
    };
    vec![
        first,
        Finding::good(format!("way in by {name}"), way_in(&interface.offer)),
        Finding::good(format!("queues of {name}"), queues(&interface.offer)),
        match &interface.reverse_path {
            Some(why) => Finding::bad(
                format!("reverse path of {name}"),
                why,
                format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2"),
            ),
            None => Finding::good(format!("reverse path of {name}"), "packets of clients pass"),
        },
    ]
}

/// What `--datapath auto` will use, and why.
fn way_in(offer: &Offer) -> String {
    let because = (offer.why_not_native.as_ref()).map_or(String::new(), |why| format!(": {why}"));
    if let Some(mode) = offer.in_use {
        let because = if mode.name() == "native" {
            ""
        } else {
            &because
        };
        return format!("{} is in use{because}", mode.name());
    }
    let too_long = offer.why_not_native.is_some();
    let names: Vec<&str> = offer.ways.iter().map(|mode| mode.name()).collect();
    match names.as_slice() {
        [] => "not known".to_owned(),
        ["native", rest @ ..] if too_long => {
            format!(
                "{} is likely, native XDP is tried first{because}",
                rest.join(", else ")
            )
        }
        [first] => format!("{first} will be used{because}"),
        [first, rest @ ..] => {
            format!(
                "{first} will be used, else {}{because}",
                rest.join(", else ")
            )
        }
    }
}

/// How packets are spread over CPUs before any program sees them.
fn queues(offer: &Offer) -> String {
    let queues = offer
        .queues
        .map_or("not known".to_owned(), |n| n.to_string());
    let hash = |hash: Option<UdpHash>| match hash {
        None => "not known",
        Some(UdpHash { ports: true, .. }) => "addresses and ports",
        Some(UdpHash {
            addresses: true, ..
        }) => "addresses only, so packets of one node in the UDP form come by one queue",
        Some(_) => "nothing",
    };
    let [v4, v6] = offer.udp_hash.map(hash);
    format!("{queues} to receive by; UDP over IPv4 spread by: {v4}; over IPv6: {v6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            kernel: "6.12.3-amd64".into(),
            btf: true,
            capabilities: u64::MAX,
            bpffs: ("/sys/fs/bpf".into(), true),
            interfaces: vec![Interface {
                name: "eth0".into(),
                mtu: Some(1500),
                state: "up".into(),
                offer: Offer {
                    driver: Some("virtio_net".into()),
                    ..Offer::default()
                },
                reverse_path: None,
            }],
        }
    }

    #[test]
    fn a_good_machine_is_well() {
        let mut facts = good();
        assert!(judge(&facts).iter().all(|finding| finding.ok));
        facts.bpffs = ("/sys/fs/bpf".into(), false);
        let findings = judge(&facts);
        assert!(findings.iter().all(|finding| finding.ok));
        assert_eq!(
            findings[3].found,
            "/sys/fs/bpf is not one; `forebay run` mounts it"
        );
    }

    #[test]
    fn each_fault_is_found_with_its_remedy() {
        type Change = fn(&mut Facts);
        let table: [(Change, &str, &str); 8] = [
            (
                |f| f.kernel = "5.14.21".into(),
                "5.14.21",
                "run Linux 5.15 or newer, or use --datapath off",
            ),
            (
                |f| f.capabilities = 1 << 12 | 1 << 21,
                "missing CAP_NET_RAW",
                "run as root or grant them, or use --datapath off",
            ),
            (
                |f| {
                    f.bpffs = ("/".into(), false);
                    f.capabilities = 1 << 12 | 1 << 13 | 1 << 39;
                },
                "/ is not one",
                "mount -t bpf bpf /sys/fs/bpf as root, or name another one with --bpffs",
            ),
            (
                |f| f.interfaces.clear(),
                "there is no default route",
                "name the uplink with --interface",
            ),
            (
                |f| f.interfaces[0].mtu = None,
                "there is no such interface",
                "name an existing one with --interface; ip link lists them",
            ),
            (
                |f| f.interfaces[0].state = "down".into(),
                "down, MTU 1500, driver virtio_net",
                "ip link set eth0 up",
            ),
            (
                |f| f.interfaces[0].state = "no carrier".into(),
                "no carrier, MTU 1500, driver virtio_net",
                "look at its cable and at what is at the other end of it: the interface itself is up",
            ),
            (
                |f| f.interfaces[0].mtu = Some(1280),
                "up, MTU 1280, driver virtio_net",
                "raise the MTU to at least 1356",
            ),
        ];
        for (change, found, remedy) in table {
            let mut facts = good();
            change(&mut facts);
            let bad: Vec<Finding> = judge(&facts)
                .into_iter()
                .filter(|finding| !finding.ok)
                .collect();
            assert_eq!(bad.len(), 1, "{bad:?}");
            assert_eq!(
                (bad[0].found.as_str(), bad[0].remedy.as_deref()),
                (found, Some(remedy))
            );
        }
    }
}
