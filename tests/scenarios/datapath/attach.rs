//! Living with others on an interface, following interfaces, and giving way to another version: what is said, and what the
//! packets see meanwhile.

use std::io::Read;

use aya::programs::links::LinkOrder;
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{ProgramInfo, SchedClassifier, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use gateway_common::abi::Counter;
use gateway_tests::object;
use gateway_user::datapath::AttachState;
use socket2::SockRef;

use super::*;

const VIP: &str = "10.77.9.1:80";

/// Our object, loaded by somebody else with tables that nobody wrote: it passes and counts all that it sees.
struct Other(Ebpf);

impl Other {
    fn load() -> Self {
        Self(
            EbpfLoader::new()
                .load_file(object::path().unwrap())
                .unwrap(),
        )
    }

    /// In traffic control, in this thread's network namespace.
    fn attach_tcx(&mut self, interface: &str, order: LinkOrder) {
        let program: &mut SchedClassifier = self
            .0
            .program_mut("forebay_tc")
            .unwrap()
            .try_into()
            .unwrap();
        program.load().unwrap();
        let options = TcAttachOptions::TcxOrder(order);
        program
            .attach_with_options(interface, TcAttachType::Ingress, options)
            .unwrap();
    }

    fn attach_xdp(&mut self, interface: &str) -> u32 {
        let program: &mut Xdp = self
            .0
            .program_mut("forebay_xdp")
            .unwrap()
            .try_into()
            .unwrap();
        program.load().unwrap();
        program.attach(interface, XdpMode::Driver).unwrap();
        program.info().unwrap().id()
    }

    fn seen(&self) -> u64 {
        let map = self.0.map("COUNTERS").unwrap();
        let words: aya::maps::Array<_, u64> = map.try_into().unwrap();
        let per_cpu = gateway_common::abi::COUNTERS_PER_CPU;
        let slot = Counter::NotConfigured.slot();
        (0..8)
            .map(|cpu| words.get(&(cpu * per_cpu + slot), 0).unwrap())
            .sum()
    }
}

/// A node and a client on a veth pair with all its offloads.
fn offloading(test: &str, mode: AttachMode) -> (Node, Namespace) {
    let client = Namespace::new(&format!("{test}-c"));
    let namespace = Namespace::new(&format!("{test}-n"));
    namespace.veth_as_made("up0", "10.77.0.1/24", &client, "cl0");
    client.ip("addr add 10.77.0.9/24 dev cl0");
    client.ip("route add 10.77.9.0/24 dev cl0");
    let node = Node::start_as(namespace, "one", mode, ForwardMode::Auto);
    (node, client)
}

fn uplink(node: &mut Node) -> Attachment {
    node.with(|driver| driver.status().interfaces[0].clone())
}

/// Lets a second pass as far as the driver is concerned.
pub(super) fn refresh(node: &mut Node) {
    node.with(|driver| driver.tick(driver.next_tick().max(Instant::now())).unwrap());
}

#[test]
fn tcx_stands_before_others_and_lets_them_see_what_it_passes() {
    if without_tcx() {
        return;
    }
    let (mut node, client) = offloading("order", AttachMode::Auto);
    let mut first = Other::load();
    node.driver = None;
    let bpffs = node.bpffs.clone();
    node.namespace.enter(|| {
        detach(&bpffs).unwrap();
        first.attach_tcx("up0", LinkOrder::last());
    });
    node.open();
    node.snapshot(&snapshot(&[VIP], &[]));
    assert_eq!(uplink(&mut node).mode, AttachMode::Tcx);
    let query = || {
        SchedClassifier::query_tcx("up0", TcAttachType::Ingress)
            .unwrap()
            .1
    };
    let names = || -> Vec<u32> { query().iter().map(ProgramInfo::id).collect() };
    let other: &SchedClassifier = first.0.program("forebay_tc").unwrap().try_into().unwrap();
    let other = other.info().unwrap().id();
    let order = node.namespace.enter(names);
    assert_eq!((order.len(), order[1]), (2, other), "ours is the first");

    let before = first.seen();
    assert_eq!(client.hello(VIP), "hello from one");
    client.refused("10.77.0.1:81");
    assert!(first.seen() >= before + 4, "a handshake and another SYN");

    // Somebody who insists on being the first sees all, and we see what they pass.
    let mut second = Other::load();
    node.namespace
        .enter(|| second.attach_tcx("up0", LinkOrder::first()));
    assert_eq!(client.hello(VIP), "hello from one");
    assert!(second.seen() >= 3, "{}", second.seen());
    let counters = node.with(|driver| driver.status().counters);
    // Nobody beats in the new maps: flows are looked up.
    let passed = counters["own_socket"] + counters["own_syn"];
    assert!(
        passed >= 6,
        "two connections of three packets and more: {counters:?}"
    );
}

#[test]
fn a_foreign_xdp_program_keeps_its_place() {
    let (mut node, client) = offloading("foreign", AttachMode::Auto);
    let mut other = Other::load();
    node.driver = None;
    let bpffs = node.bpffs.clone();
    let id = node.namespace.enter(|| {
        detach(&bpffs).unwrap();
        other.attach_xdp("up0")
    });
    node.open();
    node.snapshot(&snapshot(&[VIP], &[]));
    let attachment = uplink(&mut node);
    let why = format!("another XDP program has up0 (program forebay_xdp, id {id})");
    assert_eq!(attachment.mode, in_traffic_control());
    let note = attachment.note.unwrap();
    assert!(note.starts_with(&why), "{note}");
    assert_eq!(client.hello(VIP), "hello from one");
    assert!(
        other.seen() >= 3,
        "it sees what it saw before: {}",
        other.seen()
    );
    assert!(
        program_on(&node).contains(&format!("id {id} ")),
        "{}",
        program_on(&node)
    );
}

#[test]
fn a_program_of_xdp_tools_keeps_its_place() {
    let (mut node, client) = offloading("tools", AttachMode::Auto);
    node.driver = None;
    let bpffs = node.bpffs.clone();
    node.namespace.enter(|| detach(&bpffs).unwrap());
    // As the tool does it: by a dispatcher where the kernel lets it, else alone.
    let filter = "/usr/lib/*/bpf/xdpfilt_alw_all.o";
    let load = format!("sh -c 'xdp-loader load -m native up0 {filter}'");
    node.namespace.exec(&load);
    node.open();
    node.snapshot(&snapshot(&[VIP], &[]));
    let attachment = uplink(&mut node);
    let note = attachment.note.unwrap();
    assert_eq!(attachment.mode, in_traffic_control());
    assert!(
        note.starts_with("another XDP program has up0 (program xdpfilt_alw_all, id ")
            || note
                .starts_with("a libxdp dispatcher has the XDP of up0 (program xdp_dispatcher, id "),
        "{note}"
    );
    assert_eq!(client.hello(VIP), "hello from one");
    let status = node.namespace.exec("xdp-loader status up0");
    assert!(status.contains("xdpfilt_alw_all"), "{status}");
    node.namespace.exec("xdp-loader unload -a up0");
}

#[test]
fn a_filter_of_traffic_control_serves_and_goes_with_its_qdisc() {
    let (mut node, client) = offloading("clsact", AttachMode::Clsact);
    node.snapshot(&snapshot(&[VIP], &[]));
    assert_eq!(client.hello(VIP), "hello from one");
    let filters = node.namespace.exec("tc filter show dev up0 ingress");
    assert!(
        filters.contains("handle 0xf0eb forebay_tc direct-action"),
        "{filters}"
    );

    // Somebody takes it away: it comes back.
    node.namespace.exec("tc filter del dev up0 ingress");
    refresh(&mut node);
    let filters = node.namespace.exec("tc filter show dev up0 ingress");
    assert!(filters.contains("handle 0xf0eb forebay_tc"), "{filters}");

    // Restarted, it is replaced in its place.
    node.open();
    node.snapshot(&snapshot(&[VIP], &[]));
    assert!(uplink(&mut node).adopted);
    assert_eq!(client.hello(VIP), "hello from one");
    let filters = node.namespace.exec("tc filter show dev up0 ingress");
    assert_eq!(
        filters.matches("forebay_tc direct-action").count(),
        1,
        "{filters}"
    );

    node.driver = None;
    let bpffs = node.bpffs.clone();
    node.namespace.enter(|| detach(&bpffs).unwrap());
    assert_eq!(node.namespace.exec("tc filter show dev up0 ingress"), "");
    assert!(
        !node
            .namespace
            .exec("tc qdisc show dev up0")
            .contains("clsact")
    );
    assert_eq!(pins(&node.bpffs), BTreeSet::new());
}

#[test]
fn a_restart_on_tcx_fails_no_connection() {
    if without_tcx() {
        return;
    }
    let (mut node, client) = offloading("tcxrestart", AttachMode::Tcx);
    node.snapshot(&snapshot(&[VIP], &[]));
    assert_eq!(client.hello(VIP), "hello from one");
    let stop = AtomicBool::new(false);
    let connections = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut connections = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(client.hello(VIP), "hello from one");
                connections += 1;
            }
            connections
        });
        for _ in 0..3 {
            node.open();
            node.snapshot(&snapshot(&[VIP], &[]));
        }
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    assert!(connections > 0);
    let attachment = uplink(&mut node);
    assert_eq!(
        (attachment.mode, attachment.adopted),
        (AttachMode::Tcx, true)
    );
}

/// Two nodes and a client (the namespace itself) on a bridge, with all offloads that veths have.
fn offloading_bridge(test: &str, forward: ForwardMode) -> (Vec<Node>, Namespace) {
    let client = Namespace::new(&format!("{test}-s"));
    client.ip("link add br0 type bridge");
    client.ip("addr add 10.77.0.9/24 dev br0");
    client.ip("link set br0 up");
    client.ip("route add 10.77.9.0/24 dev br0");
    let nodes = [("one", "10.77.0.1/24", "p1"), ("two", "10.77.0.2/24", "p2")];
    let nodes = nodes.map(|(name, address, port)| {
        let namespace = Namespace::new(&format!("{test}-{name}"));
        namespace.veth_as_made("up0", address, &client, port);
        client.ip(&format!("link set {port} master br0"));
        Node::start_as(namespace, name, in_traffic_control(), forward)
    });
    (nodes.into(), client)
}

/// Uploads through the node that announces the VIP to the other one, and compares what comes back.
fn upload_crosses(test: &str, forward: ForwardMode, cut_by_the_node: bool) {
    const BYTES: usize = 50 << 20;
    let (mut nodes, client) = offloading_bridge(test, forward);
    if cut_by_the_node {
        for node in &nodes {
            // What leaves a node is cut and summed up there, and the receiver checks the sums.
            node.namespace.offload("up0", "tx off");
            node.namespace.offload("up0", "rx off");
        }
    }
    let snapshot = snapshot(&[VIP], &BOTH);
    for node in &mut nodes {
        node.snapshot(&snapshot);
    }
    resolve(&mut nodes);
    for node in &mut nodes {
        let segment = node.with(|driver| driver.listener_mss()).unwrap();
        SockRef::from(&node.listener).set_tcp_mss(segment).unwrap();
    }
    let announces = |node: &mut Node| !node.with(|driver| driver.status()).announcing.is_empty();
    let (at, to) = if announces(&mut nodes[0]) {
        (0, 1)
    } else {
        (1, 0)
    };
    let greeting = format!("hello from {}", nodes[to].name);
    let counter = match forward {
        ForwardMode::Udp => "forward_udp",
        _ => "forward_l2",
    };
    let mut stream = (0..64)
        .find_map(|_| {
            let mut stream = client.connect(VIP).unwrap();
            (line(&mut stream) == greeting).then_some(stream)
        })
        .expect("half of the connections belong to the other node");
    let before = nodes[at].counter(counter);
    let sent: Vec<u8> = (0..BYTES).map(|i| (i * 31 + i / 251) as u8).collect();
    let mut received = vec![0; BYTES];
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    thread::scope(|scope| {
        let mut reader = stream.try_clone().unwrap();
        reader.set_read_timeout(Some(PATIENCE)).unwrap();
        let received = &mut received;
        scope.spawn(move || reader.read_exact(received).unwrap());
        stream.write_all(&sent).unwrap();
    });
    assert!(received == sent, "what came back is what was sent");
    let packets = nodes[at].counter(counter) - before;
    println!("{BYTES} bytes in {packets} packets ({counter}, cut by the node: {cut_by_the_node})");
    assert!(packets > 0);
    // Super-packets of up to 64 KB were forwarded as they came: far fewer than the 36,000 and more that are on a wire.
    assert!(packets < 20_000, "{packets}");
    for node in &nodes {
        let counters = node.namespace.exec("cat /proc/net/snmp");
        let tcp = counters
            .lines()
            .rfind(|line| line.starts_with("Tcp: "))
            .unwrap();
        let errors = tcp.rsplit(' ').next();
        assert_eq!(errors, Some("0"), "segments with a wrong checksum");
    }
}

#[test]
fn an_upload_crosses_by_mac_in_super_packets() {
    upload_crosses("up-l2", ForwardMode::Auto, false);
}

#[test]
fn an_upload_crosses_by_mac_with_checksums_verified() {
    upload_crosses("upcut-l2", ForwardMode::Auto, true);
}

#[test]
fn an_upload_crosses_by_udp_in_super_packets() {
    upload_crosses("up-udp", ForwardMode::Udp, false);
}

#[test]
fn an_upload_crosses_by_udp_with_checksums_verified() {
    upload_crosses("upcut-udp", ForwardMode::Udp, true);
}

#[test]
fn an_interface_is_followed_through_deletion_and_renaming() {
    let (mut node, client) = offloading("follow", AttachMode::Auto);
    node.snapshot(&snapshot(&[VIP], &[]));
    assert_eq!(client.hello(VIP), "hello from one");

    node.namespace.ip("link set up0 mtu 1400");
    refresh(&mut node);
    assert_eq!(uplink(&mut node).mtu, 1400);

    node.namespace.ip("link del up0");
    refresh(&mut node);
    let waiting = uplink(&mut node);
    assert_eq!((waiting.state, waiting.ifindex), (AttachState::Waiting, 0));
    assert_eq!(waiting.note.as_deref(), Some("waiting for interface up0"));
    // Once more: a state, not an error.
    refresh(&mut node);

    node.namespace
        .veth_as_made("up0", "10.77.0.1/24", &client, "cl0");
    client.ip("addr add 10.77.0.9/24 dev cl0");
    client.ip("route add 10.77.9.0/24 dev cl0");
    // Before the program is there: nobody answers what may be another node's.
    let early = client.enter(|| {
        let vip = VIP.parse().unwrap();
        TcpStream::connect_timeout(&vip, Duration::from_millis(200)).map(drop)
    });
    let early = early.unwrap_err();
    assert_eq!(early.kind(), ErrorKind::TimedOut, "{early}");
    refresh(&mut node);
    let again = uplink(&mut node);
    assert_eq!(
        (again.state, again.mode),
        (AttachState::Attached, in_traffic_control())
    );
    assert_eq!(client.hello(VIP), "hello from one");

    node.namespace.ip("link set up0 down");
    node.namespace.ip("link set up0 name other0");
    node.namespace.ip("link set other0 up");
    refresh(&mut node);
    let renamed = uplink(&mut node);
    assert_eq!(
        (renamed.state, renamed.ifindex),
        (AttachState::Attached, again.ifindex)
    );
    assert_eq!(renamed.note.as_deref(), Some("up0 is called other0 now"));
    assert_eq!(client.hello(VIP), "hello from one");

    // For native XDP too, once checksums are complete.
    node.namespace.ip("link del other0");
    node.namespace.veth("up0", "10.77.0.1/24", &client, "cl0");
    client.ip("addr add 10.77.0.9/24 dev cl0");
    client.ip("route add 10.77.9.0/24 dev cl0");
    let _pass = client.enter(|| attach_pass("cl0").unwrap());
    refresh(&mut node);
    assert_eq!(uplink(&mut node).mode, AttachMode::Native);
    assert_eq!(client.hello(VIP), "hello from one");
}

/// The built object with the last instruction of a program made one that no verifier accepts. It is the end or a jump, so
/// that no relocation concerns it.
fn broken(program: &str) -> Vec<u8> {
    /// Sets the frame pointer, which is read-only.
    const REFUSED: [u8; 8] = [0xb7, 10, 0, 0, 0, 0, 0, 0];
    const SYMBOLS: usize = 2;
    let mut bytes = std::fs::read(object::path().unwrap()).unwrap();
    let number = |at: usize, size: usize| -> usize {
        let little_endian = bytes[at..at + size].iter().rev();
        little_endian.fold(0, |n, b| n << 8 | usize::from(*b))
    };
    let (table, size, count) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
    let header = |i: usize| table + i * size;
    let offset = |i: usize| number(header(i) + 0x18, 8);
    let symbols = (0..count)
        .find(|i| number(header(*i) + 4, 4) == SYMBOLS)
        .unwrap();
    let names = offset(number(header(symbols) + 0x28, 4));
    let name = format!("{program}\0");
    let length = number(header(symbols) + 0x20, 8);
    let symbol = (offset(symbols)..offset(symbols) + length)
        .step_by(24)
        .find(|symbol| bytes[names + number(*symbol, 4)..].starts_with(name.as_bytes()))
        .unwrap_or_else(|| panic!("the object has no program {program}"));
    let end = offset(number(symbol + 6, 2)) + number(symbol + 8, 8) + number(symbol + 16, 8);
    bytes[end - 8..end].copy_from_slice(&REFUSED);
    bytes
}

#[test]
fn a_refused_program_leaves_the_old_one_running() {
    if without_tcx() {
        return;
    }
    let (mut node, client) = offloading("refused", AttachMode::Auto);
    node.snapshot(&snapshot(&[VIP], &[]));
    assert_eq!(client.hello(VIP), "hello from one");
    let ids = || -> Vec<u32> {
        let programs = SchedClassifier::query_tcx("up0", TcAttachType::Ingress)
            .unwrap()
            .1;
        programs.iter().map(ProgramInfo::id).collect()
    };
    let before = node.namespace.enter(ids);
    let served = node.counter("lookup_redirected");
    let settings = node.settings();
    let error = node.namespace.enter(|| {
        Agent::with_object(&settings, &broken("forebay_xdp"))
            .map(drop)
            .unwrap_err()
            .to_string()
    });
    assert!(
        error.starts_with("the kernel refused to load forebay_xdp: "),
        "{error}"
    );
    assert_eq!(node.namespace.enter(ids), before, "nothing was replaced");
    assert_eq!(client.hello(VIP), "hello from one");
    assert!(
        node.counter("lookup_redirected") > served,
        "with the old maps"
    );
}

#[test]
fn another_versions_programs_forward_until_ours_have_tables() {
    if without_tcx() {
        return;
    }
    let (mut node, client) = offloading("version", AttachMode::Auto);
    node.snapshot(&snapshot(&[VIP], &[]));
    assert_eq!(client.hello(VIP), "hello from one");
    // What an earlier version leaves: its own directory, with links that live.
    node.driver = None;
    let ours = node.bpffs.join(format!("v{ABI_VERSION}"));
    let older = node.bpffs.join("v1");
    std::fs::rename(&ours, &older).unwrap();
    let expected = pins(&older);

    let stop = AtomicBool::new(false);
    let longest = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            while !stop.load(Ordering::Relaxed) {
                if client
                    .connect(VIP)
                    .is_ok_and(|mut stream| line(&mut stream) == "hello from one")
                {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
            }
            longest.max(last.elapsed())
        });
        node.open();
        // The new maps are there and empty; the old programs go on with theirs.
        assert!(older.join("link-lookup").exists() && older.join("link-tcx-up0").exists());
        assert_eq!(client.hello(VIP), "hello from one");
        node.snapshot(&snapshot(&[VIP], &[]));
        assert_eq!(client.hello(VIP), "hello from one");
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    println!("longest time without an answer: {longest:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    assert!(!older.exists(), "the other version's pins are gone");
    assert_eq!(pins(&ours), expected);
    assert!(
        node.counter("lookup_redirected") >= 1,
        "served from the new maps"
    );
}
