//! What only another kernel and a network card show: run by `cargo xtask vm test`, in a virtual machine with two cards of
//! virtio on one hub, and one whose offloads cannot be turned off where the machine's host could make it.

use gateway_tests::machine::{card, find_card};
use gateway_user::cli::check::{Finding, gather, judge};
use gateway_user::datapath::object;

use super::*;

const VIP: &str = "10.77.9.1:80";

/// Gives a card to a namespace under another name.
pub(super) fn give(number: u8, namespace: &Namespace, here: &str, address: &str, mtu: u32) {
    let name = card(number).unwrap();
    run(&format!("ip link set {name} down"));
    let inside = &namespace.0;
    run(&format!("ip link set {name} netns {inside} name {here}"));
    namespace.ip(&format!("addr add {address} dev {here}"));
    namespace.ip(&format!("link set {here} mtu {mtu} up"));
}

/// A client and a node's namespace, each with a card.
pub(super) fn wired(test: &str, mtu: u32) -> (Namespace, Namespace) {
    let client = Namespace::new(&format!("{test}-c"));
    let namespace = Namespace::new(&format!("{test}-n"));
    give(2, &client, "cl0", "10.77.0.9/24", mtu);
    give(1, &namespace, "up0", "10.77.0.1/24", mtu);
    client.ip("route add 10.77.9.0/24 dev cl0");
    (client, namespace)
}

pub(super) fn attachment(node: &mut Node) -> Attachment {
    node.with(|driver| driver.status().interfaces[0].clone())
}

/// Serves a connection and says how.
pub(super) fn served(node: &mut Node, client: &Namespace) -> AttachMode {
    node.snapshot(&snapshot(&[VIP], &[]));
    assert_eq!(client.hello(VIP), "hello from one");
    let counters = node.with(|driver| driver.status().counters);
    assert!(counters["lookup_redirected"] >= 1, "{counters:?}");
    assert!(counters["arp_reply"] >= 1, "{counters:?}");
    attachment(node).mode
}

/// What is said where a user insists on native XDP and the driver refuses it; the node has no driver any more.
fn refused_native(node: &mut Node) -> String {
    node.driver = None;
    node.mode = AttachMode::Native;
    let settings = node.settings();
    let refused = node.namespace.enter(|| Agent::open(&settings).map(drop));
    refused.unwrap_err().to_string()
}

#[test]
#[ignore = "asks the machine's kernel: cargo xtask vm test"]
fn every_program_is_accepted_by_this_kernel() {
    let bpffs = PathBuf::from("/sys/fs/bpf/accepted");
    std::fs::create_dir_all(&bpffs).unwrap();
    let mut ebpf = object::load(&bpffs, object::embedded().unwrap()).unwrap();
    let mut refused = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        use aya::programs::Program;
        let started = Instant::now();
        let loaded = match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            Program::SkLookup(program) => program.load(),
            _ => continue,
        };
        let took = started.elapsed().as_millis();
        match loaded {
            Ok(()) => {
                let info = program.info().unwrap();
                let count = info.verified_instruction_count();
                let count = count.map_or("unknown".to_owned(), |count| count.to_string());
                println!("fact: {name} = {count} instructions, {took} ms");
            }
            Err(error) => refused.push(format!("{name}: {error:?}")),
        }
    }
    std::fs::remove_dir_all(&bpffs).unwrap();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn native_xdp_on_a_card_of_virtio_serves_and_is_adopted() {
    let (client, namespace) = wired("card", 1500);
    let mut node = Node::start_as(namespace, "one", AttachMode::Auto, ForwardMode::Auto);
    assert_eq!(attachment(&mut node).note, None);
    let mode = served(&mut node, &client);
    assert_eq!(mode, AttachMode::Native);
    println!("fact: virtio_net = {}", mode.name());
    let before = program_on(&node);
    node.open();
    assert_eq!(served(&mut node, &client), AttachMode::Native);
    assert!(attachment(&mut node).adopted);
    assert_ne!(program_on(&node), before, "the program is the new one");
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn generic_xdp_on_a_card_of_virtio_serves() {
    let (client, namespace) = wired("generic", 1500);
    let mut node = Node::start_as(namespace, "one", AttachMode::Generic, ForwardMode::Auto);
    assert_eq!(served(&mut node, &client), AttachMode::Generic);
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn an_mtu_that_the_card_does_not_take_is_named_and_lived_with() {
    let (client, namespace) = wired("jumbo", 9000);
    let mut node = Node::start_as(namespace, "one", AttachMode::Auto, ForwardMode::Auto);
    let note = attachment(&mut node).note.unwrap_or_default();
    let why = "MTU 9000 is more than the driver's native XDP takes in one buffer (usually about 3500 bytes): ";
    assert!(note.starts_with(why), "{note}");
    assert_eq!(served(&mut node, &client), in_traffic_control());
    println!(
        "fact: virtio_net at MTU 9000 = {}",
        in_traffic_control().name()
    );
    let refused = refused_native(&mut node);
    assert!(
        refused.starts_with("interface up0 refuses native XDP ("),
        "{refused}"
    );
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn a_card_that_merges_packets_and_cannot_stop_is_named_and_lived_with() {
    if find_card(3).unwrap().is_none() {
        println!("skipped: the host has no tap for a card whose offloads are fixed");
        return;
    }
    let namespace = Namespace::new("merges-n");
    give(3, &namespace, "up0", "10.78.0.1/24", 1500);
    let mut node = Node::start_as(namespace, "one", AttachMode::Auto, ForwardMode::Auto);
    let note = attachment(&mut node).note.unwrap_or_default();
    let why = "the driver of up0 has no native XDP, or not while it merges packets that it receives (`ethtool -K up0 lro off rx-gro-hw off`, if it lets that be turned off): ";
    assert!(note.starts_with(why), "{note}");
    let mode = attachment(&mut node).mode;
    assert_eq!(mode, in_traffic_control());
    println!("fact: virtio_net with fixed offloads = {}", mode.name());
    let settings = node.settings();
    let names = ["up0".to_owned()];
    let found = node
        .namespace
        .enter(|| judge(&gather(&names, &settings.bpffs, &[])));
    let way = found.iter().find(|one| one.check == "way in by up0");
    let way = way.unwrap();
    assert!(way.found.starts_with(mode.name()), "{way:?}");
    let refused = refused_native(&mut node);
    assert!(
        refused.starts_with("interface up0 refuses native XDP (Operation not supported"),
        "{refused}"
    );
    assert!(refused.contains("turn LRO and GRO in hardware off"));
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn check_says_what_is_attached() {
    let (client, namespace) = wired("check", 1500);
    let asked = |node: Option<&Node>, namespace: &Namespace| -> Vec<Finding> {
        let bpffs = node.map_or(PathBuf::from("/sys/fs/bpf"), |node| node.bpffs.clone());
        let names = ["up0".to_owned()];
        namespace.enter(|| judge(&gather(&names, &bpffs, &[])))
    };
    let way = |findings: &[Finding]| {
        let of = findings.iter().find(|one| one.check == "way in by up0");
        of.unwrap().found.clone()
    };
    // The driver of newer kernels tells of a card's carrier some time after it was set up.
    let begun = Instant::now();
    let before = loop {
        let before = asked(None, &namespace);
        let bad: Vec<_> = before.iter().filter(|one| !one.ok).collect();
        if bad.is_empty() {
            break before;
        }
        let waits = bad.iter().all(|one| one.found.starts_with("no carrier"));
        assert!(waits && begun.elapsed() < PATIENCE, "{bad:?}");
        rest(Duration::from_millis(20));
    };
    assert!(
        way(&before).starts_with("native will be used"),
        "{before:?}"
    );
    let mut node = Node::start_as(namespace, "one", AttachMode::Auto, ForwardMode::Auto);
    assert_eq!(served(&mut node, &client), AttachMode::Native);
    assert_eq!(
        way(&asked(Some(&node), &node.namespace)),
        "native is in use"
    );
}
