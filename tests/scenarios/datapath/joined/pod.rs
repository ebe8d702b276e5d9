//! The same by the agent as the chart starts it: user 0 with the named capabilities alone, and the BPF file system elsewhere.

use gateway_tests::leftovers::Ledger;
use gateway_tests::split::{AGENT_CAPABILITIES, RUN_USER, Split};
use gateway_tests::topology::{Topology, UPLINK};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::*;

/// Where a pod has the BPF file system.
const BPF: &str = "/bpf";
/// Of `agent.joinXdp: false`.
const USUAL_CAPABILITIES: &str = "-all,+net_admin,+net_raw,+bpf,+perfmon,+net_bind_service";
/// Of `agent.joinXdp: true`.
const JOINING_CAPABILITIES: &str =
    "-all,+net_admin,+net_raw,+bpf,+perfmon,+net_bind_service,+sys_admin";

/// The BPF file system at the pod's place too.
struct Mounted;

impl Mounted {
    fn new() -> Self {
        std::fs::create_dir_all(BPF).unwrap();
        mount_bind("/sys/fs/bpf", BPF).unwrap();
        Self
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _gone = unmount(BPF, UnmountFlags::DETACH);
    }
}

fn prepare(capabilities: &str) -> Split {
    let ledger = Ledger::open().unwrap();
    let topology = Topology::with_card(&ledger, 1).unwrap();
    let allow = RUN_USER.to_string();
    let flags = ["--vips", "192.0.2.100-192.0.2.119", "--allow-uid", &allow];
    let mut split = Split::prepare(ledger, topology, &flags).unwrap();
    split.user = 0;
    split.capabilities = capabilities.to_owned();
    split.datapath = "auto";
    split.environment = &[("LIBXDP_BPFFS", BPF)];
    split
}

/// Starts both, and asks for an answer.
fn serves(split: &mut Split) {
    split.start_agent().unwrap();
    split.start_run().unwrap();
    split.wait_ready().unwrap();
    split.wait_served().unwrap();
}

/// What libxdp has pinned. What it leaves behind when a card's driver goes stays there.
fn pinned() -> BTreeSet<String> {
    let directory = Path::new("/sys/fs/bpf/xdp");
    if directory.exists() {
        pins(directory)
    } else {
        BTreeSet::new()
    }
}

/// What the status says of the uplink.
fn uplink(split: &Split) -> serde_json::Value {
    split.status().unwrap()["datapath"]["interfaces"][0].clone()
}

/// The capabilities that the agent has once it serves.
fn left(split: &Split) -> u64 {
    let status = split.statuses_of_agent().unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn with_the_capability_it_joins_comes_back_and_leaves() {
    let _mounted = Mounted::new();
    let pins = pinned();
    let mut split = prepare(JOINING_CAPABILITIES);
    let namespace = split.site().netns.name().to_owned();
    let at = At(&namespace, UPLINK);
    let _clean = able().load(at, "native", "xdpfilt_alw_all");
    serves(&mut split);
    let found = uplink(&split);
    assert_eq!(found["mode"], "joined", "{found}");
    assert_eq!(names(at), ["xdpfilt_alw_all", "forebay_xdp"]);
    // CAP_NET_BIND_SERVICE (10) is what the chart adds.
    assert_eq!(left(&split), AGENT_CAPABILITIES | 1 << 10);

    // Another process takes its place.
    let before = listed(at);
    split.kill_run();
    split.kill_agent();
    assert_eq!(listed(at), before);
    serves(&mut split);
    let after = listed(at);
    assert_eq!((&after[0], after.len()), (&before[0], 2), "{after:?}");
    assert_eq!(after[1].1, "forebay_xdp");

    // The others' program goes, and ours with `forebay detach`.
    able().unload(at, "xdpfilt_alw_all");
    split.wait_served().unwrap();
    assert_eq!(names(at), ["forebay_xdp"]);
    split.kill_run();
    split.kill_agent();
    split.detach().unwrap();
    let link = exec(&namespace, &format!("ip -d link show {UPLINK}"));
    assert!(!link.contains("prog/xdp"), "{link}");
    assert_eq!(pinned(), pins);
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn without_the_capability_it_serves_by_traffic_control_and_says_why() {
    let _mounted = Mounted::new();
    let mut split = prepare(USUAL_CAPABILITIES);
    let namespace = split.site().netns.name().to_owned();
    let at = At(&namespace, UPLINK);
    let _clean = able().load(at, "native", "xdpfilt_alw_all");
    serves(&mut split);
    assert_eq!(names(at), ["xdpfilt_alw_all"]);
    let uplink = uplink(&split);
    assert_eq!(uplink["mode"], in_traffic_control().name(), "{uplink}");
    let note = uplink["note"].as_str().unwrap();
    let begin = "a libxdp dispatcher has the XDP of eth0 (program id ";
    assert!(note.starts_with(begin), "{note}");
    let why = ") and cannot be joined, which takes Linux 5.10 and CAP_SYS_ADMIN: `bpf_prog_get_next_id` failed: Operation not permitted (os error 1)";
    let refused = "; tcx was refused, which takes Linux 6.6: Invalid argument (os error 22)";
    let refused = if at_least(6, 6) { "" } else { refused };
    assert!(note.ends_with(&format!("{why}{refused}")), "{note}");
}
