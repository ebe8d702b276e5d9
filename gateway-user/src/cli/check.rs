//! `forebay check`: what this machine offers to the datapath.
//!
//! `gather` reads the system, [`judge`] is pure. Nothing is changed and no packet is sent.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

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
    /// `up`, `down`, `unknown`.
    pub state: String,
    /// Kernel driver, if it is known.
    pub driver: Option<String>,
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

/// Reads the system. `interfaces` empty = the one with the default route.
#[must_use]
pub fn gather(interfaces: &[String], pin_dir: &Path) -> Facts {
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
        interfaces: names.into_iter().map(interface).collect(),
    }
}

fn interface(name: String) -> Interface {
    let dir = Path::new("/sys/class/net").join(&name);
    let read = |file: &str| fs::read_to_string(dir.join(file)).map(|text| text.trim().to_owned());
    let driver = fs::read_link(dir.join("device/driver"))
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    // A name such as `..` must not reach other files.
    let known = !name.contains('/') && !name.starts_with('.');
    Interface {
        mtu: read("mtu")
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|_| known),
        state: read("operstate").unwrap_or_default(),
        driver,
        name,
    }
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
    findings.extend(facts.interfaces.iter().map(uplink));
    findings
}

fn file_system(facts: &Facts) -> Finding {
    let (dir, is_bpffs) = &facts.bpffs;
    let dir = dir.display();
    let mounts = facts.capabilities & (1 << CAP_SYS_ADMIN) != 0;
    Finding {
        check: "BPF file system".into(),
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
        check: "capabilities".into(),
        ok,
        found: if ok {
            "all held".into()
        } else {
            format!("missing {}", missing.join(", "))
        },
        remedy: (!ok).then(|| "run as root or grant them, or use --datapath off".into()),
    }
}

fn uplink(interface: &Interface) -> Finding {
    let check = format!("interface {}", interface.name);
    let Some(mtu) = interface.mtu else {
        return Finding {
            check,
            ok: false,
            found: "there is no such interface".into(),
            remedy: Some("name an existing one with --interface; ip link lists them".into()),
        };
    };
    let driver = interface.driver.as_deref().unwrap_or("virtual");
    let remedy = if interface.state == "down" {
        Some(format!("ip link set {} up", interface.name))
    } else if mtu < MIN_MTU {
        Some(format!("raise the MTU to at least {MIN_MTU}"))
    } else {
        None
    };
    Finding {
        check,
        ok: remedy.is_none(),
        found: format!("{}, MTU {mtu}, driver {driver}", interface.state),
        remedy,
    }
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
                driver: Some("virtio_net".into()),
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
        let table: [(Change, &str, &str); 7] = [
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
