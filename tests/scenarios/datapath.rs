//! The datapath against a real kernel: attaching, pinning, adopting, serving through VIPs, ARP, and leaving
//! nothing behind. Namespaces, pins and processes of a test carry its name and go with it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gateway_common::abi::{ABI_VERSION, ROWS, Row};
use gateway_tests::eventually::rest;
use gateway_tests::kernel::at_least;
use gateway_user::datapath::attach::PassGuard;
use gateway_user::datapath::status::Forward;
use gateway_user::datapath::{
    Agent, AgentSettings, AttachMode, Attachment, Driver, DriverSettings, ForwardMode,
    NodePrivileges, SharedTables, attach_pass, detach,
};
use gateway_user::snapshot::{Bind, BindKey, ObjectKey, Protocol, Replica, ReplicaState, Snapshot};
use rustix::process::setpriority_process;
use rustix::thread::{LinkNameSpaceType, gettid, move_into_link_name_space};

mod attach;
mod below;
mod faults;
mod harm;
mod joined;
mod lockdown;
mod machine;
mod soak;

const PATIENCE: Duration = Duration::from_secs(5);

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether the kernel has tcx.
fn has_tcx() -> bool {
    at_least(6, 6)
}

/// Whether a test that is about tcx has to be left out; says so.
fn without_tcx() -> bool {
    if !has_tcx() {
        println!("skipped: tcx came with Linux 6.6");
    }
    !has_tcx()
}

/// The way that `auto` takes in traffic control.
fn in_traffic_control() -> AttachMode {
    if has_tcx() {
        AttachMode::Tcx
    } else {
        AttachMode::Clsact
    }
}

/// A network namespace that goes when this is dropped.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("datapath-{}-{name}", std::process::id());
        run(&format!(
            "ip netns add {name} && ip -n {name} link set lo up"
        ));
        Self(name)
    }

    fn ip(&self, words: &str) -> String {
        run(&format!("ip -n {} {words}", self.0))
    }

    /// Runs `work` on a thread inside; only the network namespace is entered.
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// An interface here, at `address`, with its other end `peer` in `other`; no checksum offload at both.
    fn veth(&self, name: &str, address: &str, other: &Self, peer: &str) {
        self.veth_as_made(name, address, other, peer);
        self.offload(name, "tx off");
        other.offload(peer, "tx off");
    }

    /// The same with all offloads that veths have.
    fn veth_as_made(&self, name: &str, address: &str, other: &Self, peer: &str) {
        let (here, there) = (&self.0, &other.0);
        run(&format!(
            "ip link add {name} netns {here} type veth peer name {peer} netns {there}"
        ));
        self.ip(&format!("addr add {address} dev {name}"));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {peer} up"));
    }

    fn offload(&self, interface: &str, feature: &str) {
        self.exec(&format!("ethtool -K {interface} {feature}"));
    }

    /// Runs a command inside; only the network namespace is entered.
    fn exec(&self, command: &str) -> String {
        run(&format!("nsenter --net=/run/netns/{} {command}", self.0))
    }

    fn connect(&self, to: &str) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        self.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)))
    }

    fn hello(&self, to: &str) -> String {
        let mut stream = self
            .connect(to)
            .unwrap_or_else(|error| panic!("{to}: {error}"));
        line(&mut stream)
    }

    fn refused(&self, to: &str) {
        let error = self
            .connect(to)
            .err()
            .unwrap_or_else(|| panic!("{to} answers"));
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Takes connections, greets each and sends back what it says, until the flag is set.
fn serve(listener: TcpListener, greeting: String, stop: &Arc<AtomicBool>) {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let greeting = greeting.clone();
            thread::spawn(move || {
                writeln!(stream, "{greeting}")?;
                std::io::copy(&mut stream.try_clone()?, &mut stream)
            });
        }
    });
}

fn line(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// A node: namespace, listening socket, heartbeat, driver.
struct Node {
    namespace: Namespace,
    name: String,
    bpffs: PathBuf,
    driver: Option<Driver>,
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    mode: AttachMode,
    forward: ForwardMode,
}

impl Node {
    /// A node whose uplink `up0` is already there.
    fn start(namespace: Namespace, name: &str) -> Self {
        Self::start_as(namespace, name, AttachMode::Native, ForwardMode::Auto)
    }

    fn start_as(namespace: Namespace, name: &str, mode: AttachMode, forward: ForwardMode) -> Self {
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/{}", namespace.0));
        let listener = namespace.enter(|| TcpListener::bind("127.0.0.1:0").unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        serve(
            listener.try_clone().unwrap(),
            format!("hello from {name}"),
            &stop,
        );
        let mut node = Self {
            namespace,
            name: name.to_owned(),
            bpffs,
            driver: None,
            listener,
            stop,
            mode,
            forward,
        };
        node.open();
        beat(node.driver.as_ref().unwrap().shared(), &node.stop);
        node
    }

    fn settings(&self) -> AgentSettings {
        AgentSettings {
            interfaces: vec!["up0".to_owned()],
            mode: self.mode,
            bpffs: self.bpffs.clone(),
            forward: self.forward,
            probe_port: 17_411,
        }
    }

    /// Opens the agent (as a new process would) with the listening socket in group 0.
    fn open(&mut self) {
        self.driver = None;
        let settings = DriverSettings {
            node_name: self.name.clone(),
            hash_key: [3, 4],
            forward: self.forward,
            tunnel_port: 17_410,
            probe_port: 17_411,
            probe_keys: [[5, 6], [0, 0]],
            drain_timeout: Duration::from_secs(60),
        };
        let agent = self.settings();
        let listener = self.listener.as_fd();
        self.driver = Some(self.namespace.enter(|| {
            let agent = Agent::open(&agent).unwrap();
            let mut driver = Driver::new(Box::new(agent), &settings, Instant::now()).unwrap();
            driver.set_listeners(0, &[listener]).unwrap();
            driver.set_proxy_alive(true, Instant::now()).unwrap();
            driver
        }));
    }

    fn with<T: Send>(&mut self, work: impl FnOnce(&mut Driver) -> T + Send) -> T {
        let driver = self.driver.as_mut().unwrap();
        self.namespace.enter(|| work(driver))
    }

    fn snapshot(&mut self, snapshot: &Snapshot) {
        self.with(|driver| driver.on_snapshot(snapshot, Instant::now()).unwrap());
    }

    fn counter(&mut self, name: &str) -> u64 {
        self.with(|driver| driver.status().counters[name])
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.driver = None;
        let bpffs = self.bpffs.clone();
        let _gone = self.namespace.enter(move || detach(&bpffs));
        let _gone = std::fs::remove_dir(&self.bpffs);
    }
}

fn beat(shared: SharedTables, stop: &Arc<AtomicBool>) {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        // A beat that is late for want of time is none: the node would be held for dead, which a test wants only where it
        // says so.
        let _ = setpriority_process(Some(gettid()), -20);
        for value in 1.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            shared.beat(value);
            rest(Duration::from_millis(50));
        }
    });
}

fn snapshot(vips: &[&str], replicas: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for vip in vips {
        let key = BindKey::from(vip.parse::<SocketAddr>().unwrap());
        let gateway = ObjectKey::new("default", "gateway");
        let bind = Bind {
            key,
            gateway: gateway.clone(),
            protocol: Protocol::Http,
            builtin_ready: false,
            policy: Arc::default(),
            listeners: Vec::new(),
        };
        snapshot.addresses.insert(key.address, gateway);
        snapshot.binds.insert(key, Arc::new(bind));
    }
    snapshot.replicas = replicas
        .iter()
        .map(|(name, address)| Replica {
            name: (*name).to_owned(),
            address: address.parse().unwrap(),
            state: ReplicaState::Ready,
            weight: 1,
        })
        .collect();
    snapshot
}

fn pins(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn program_on(node: &Node) -> String {
    let link = node.namespace.ip("-d link show up0");
    let xdp = link.lines().find(|line| line.contains("prog/xdp"));
    xdp.unwrap_or_else(|| panic!("no XDP on up0: {link}"))
        .trim()
        .to_owned()
}

/// One node and one client on a veth pair.
fn pair(test: &str) -> (Node, Namespace) {
    let client = Namespace::new(&format!("{test}-c"));
    let namespace = Namespace::new(&format!("{test}-n"));
    namespace.veth("up0", "10.77.0.1/24", &client, "cl0");
    client.ip("addr add 10.77.0.9/24 dev cl0");
    client.ip("route add 10.77.9.0/24 dev cl0");
    (Node::start(namespace, "one"), client)
}

#[test]
fn a_vip_is_served_and_guarded() {
    let (mut node, client) = pair("vip");
    let _pass = client.enter(|| attach_pass("cl0").unwrap());
    node.snapshot(&snapshot(&["10.77.9.1:80"], &[]));

    assert_eq!(client.hello("10.77.9.1:80"), "hello from one");
    let status = node.with(|driver| driver.status());
    assert_eq!(status.interfaces[0].mode, AttachMode::Native);
    assert_eq!((status.nodes.len(), status.nodes[0].rows), (1, ROWS));
    assert_eq!(
        (status.nodes[0].forward, status.rows_in_transition),
        (Forward::Own, 0)
    );
    assert_eq!(status.announcing, [IpAddr::from([10, 77, 9, 1])]);
    assert!(
        status.counters["lookup_redirected"] >= 1,
        "{:?}",
        status.counters
    );
    assert!(status.counters["arp_reply"] >= 1, "{:?}", status.counters);

    // What listens on every address of the host is not on the VIP, and no other port of the VIP is open.
    let host = node
        .namespace
        .enter(|| TcpListener::bind("0.0.0.0:2222").unwrap());
    serve(host, "host".to_owned(), &node.stop);
    assert_eq!(client.hello("10.77.0.1:2222"), "host");
    client.refused("10.77.9.1:2222");
    client.refused("10.77.9.1:81");
    let port = node.listener.local_addr().unwrap().port();
    node.namespace.refused(&format!("127.0.0.1:{port}"));
    // The node's own processes reach the VIP too.
    assert_eq!(node.namespace.hello("10.77.9.1:80"), "hello from one");

    let expected = [
        "ALIVE",
        "CONFIG",
        "COUNTERS",
        "CPU_STATE",
        "DEVICES",
        "HEARTBEAT",
        "NODES",
        "PORTS",
        "ROWS",
        "SOCKETS",
        "SOURCES",
        "STATE",
        "TAGS",
        "TRACE",
        "TRACE_DRAFT",
        "TRACE_EVENTS",
        "VIPS",
        "link-lookup",
        "link-xdp-up0-native",
    ];
    assert_eq!(
        pins(&node.bpffs.join(format!("v{ABI_VERSION}"))),
        expected.map(str::to_owned).into()
    );
}

#[test]
fn a_restart_adopts_maps_and_links_and_fails_no_connection() {
    let (mut node, client) = pair("restart");
    let _pass = client.enter(|| attach_pass("cl0").unwrap());
    node.snapshot(&snapshot(&["10.77.9.1:80"], &[]));
    let before = node.with(|driver| driver.status());
    let (old_program, served) = (program_on(&node), before.counters["lookup_redirected"]);
    let stop = AtomicBool::new(false);
    let connections = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut connections = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(client.hello("10.77.9.1:80"), "hello from one");
                connections += 1;
            }
            connections
        });
        node.open();
        node.snapshot(&snapshot(&["10.77.9.1:80"], &[]));
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    assert!(connections > 0);
    let after = node.with(|driver| driver.status());
    assert!(after.interfaces[0].adopted);
    assert_ne!(program_on(&node), old_program, "the program is the new one");
    assert!(
        after.counters["lookup_redirected"] >= served + connections,
        "the counters went on"
    );
    assert_eq!(
        (after.nodes[0].index, after.nodes[0].rows),
        (before.nodes[0].index, ROWS)
    );
}

#[test]
fn detach_leaves_nothing() {
    let (mut node, client) = pair("detach");
    node.snapshot(&snapshot(&["10.77.9.1:80"], &[]));
    let routes = node.namespace.ip("route show table local proto 174");
    assert_eq!(routes.trim(), "local 10.77.9.1 dev lo scope host");
    node.with(|driver| driver.set_proxy_alive(false, Instant::now()).unwrap());
    assert_eq!(
        node.namespace.ip("route show table local proto 174"),
        "",
        "a dead proxy has no routes"
    );
    node.with(|driver| driver.set_proxy_alive(true, Instant::now()).unwrap());

    node.driver = None;
    assert!(
        program_on(&node).contains("prog/xdp"),
        "the program goes on without the process"
    );
    let bpffs = node.bpffs.clone();
    node.namespace.enter(|| detach(&bpffs).unwrap());
    assert_eq!(pins(&node.bpffs), BTreeSet::new());
    assert!(!node.namespace.ip("-d link show up0").contains("prog/xdp"));
    assert_eq!(node.namespace.ip("route show table local proto 174"), "");
    node.namespace.enter(|| detach(&bpffs).unwrap());
    drop(client);
}

/// Two nodes and a client (the namespace itself) on a bridge.
struct Bridge {
    nodes: Vec<Node>,
    client: Namespace,
    _guards: Vec<PassGuard>,
}

fn bridge(test: &str) -> Bridge {
    let client = Namespace::new(&format!("{test}-s"));
    client.ip("link add br0 type bridge");
    client.ip("addr add 10.77.0.9/24 dev br0");
    client.ip("link set br0 up");
    client.ip("route add 10.77.9.0/24 dev br0");
    let mut guards = Vec::new();
    let nodes = [("one", "10.77.0.1/24", "p1"), ("two", "10.77.0.2/24", "p2")]
        .map(|(name, address, port)| {
            let namespace = Namespace::new(&format!("{test}-{name}"));
            namespace.veth("up0", address, &client, port);
            client.ip(&format!("link set {port} master br0"));
            guards.push(client.enter(|| attach_pass(port).unwrap()));
            Node::start(namespace, name)
        })
        .into();
    Bridge {
        nodes,
        client,
        _guards: guards,
    }
}

const BOTH: [(&str, &str); 2] = [("one", "10.77.0.1"), ("two", "10.77.0.2")];

#[test]
fn a_draining_node_keeps_its_connections_and_gets_no_new_ones() {
    let Bridge {
        mut nodes,
        client,
        _guards,
    } = bridge("drain");
    let mut snapshot = snapshot(&["10.77.9.1:80"], &BOTH);
    for node in &mut nodes {
        node.snapshot(&snapshot);
    }
    resolve(&mut nodes);
    let mut open: Vec<(String, TcpStream)> = (0..30)
        .map(|_| {
            let mut stream = client.connect("10.77.9.1:80").unwrap();
            (line(&mut stream), stream)
        })
        .collect();
    let on_one = open
        .iter()
        .filter(|(greeting, _)| greeting == "hello from one")
        .count();
    assert!((5..=25).contains(&on_one), "{on_one} of 30 on node one");

    snapshot.replicas[0].state = ReplicaState::Draining;
    for node in &mut nodes {
        node.snapshot(&snapshot);
    }
    for node in &mut nodes {
        let status = node.with(|driver| driver.status());
        assert_eq!((status.nodes[0].rows, status.nodes[1].rows), (0, ROWS));
        assert_eq!(status.rows_in_transition, ROWS, "two settles, one holds");
    }
    for (greeting, stream) in &mut open {
        writeln!(stream, "still there").unwrap();
        assert_eq!(
            line(stream),
            "still there",
            "a connection that said {greeting}"
        );
    }
    for _ in 0..30 {
        assert_eq!(client.hello("10.77.9.1:80"), "hello from two");
    }
    let chances: u64 = nodes
        .iter_mut()
        .map(|node| node.counter("second_chance"))
        .sum();
    assert!(
        chances >= on_one as u64,
        "{chances} second chances for {on_one} connections"
    );
}

#[test]
fn only_the_announcing_node_speaks_for_a_vip() {
    let Bridge {
        mut nodes,
        client: switch,
        _guards,
    } = bridge("arp");
    let vips: Vec<String> = (1..=8).map(|i| format!("10.77.9.{i}:80")).collect();
    let vips: Vec<&str> = vips.iter().map(String::as_str).collect();
    let snapshot = snapshot(&vips, &BOTH);
    for node in &mut nodes {
        node.snapshot(&snapshot);
    }
    resolve(&mut nodes);
    let speakers = speakers(&mut nodes);
    assert_eq!(speakers.len(), 8);
    assert_eq!(nodes[0].with(|driver| driver.listener_mss()), Some(1424));
    for i in 1..=8 {
        let address = Ipv4Addr::new(10, 77, 9, i);
        switch.ip("neigh flush dev br0");
        let hello = switch.hello(&format!("{address}:80"));
        assert!(
            hello == "hello from one" || hello == "hello from two",
            "{hello}"
        );
        let neighbour = switch.ip(&format!("neigh show {address} dev br0"));
        assert!(
            neighbour.contains(&speakers[&IpAddr::V4(address)]),
            "{address}: {neighbour}"
        );
    }
    let forwarded: u64 = nodes
        .iter_mut()
        .map(|node| node.counter("forward_l2"))
        .sum();
    assert!(
        forwarded > 0,
        "connections to eight VIPs cross from one node to the other"
    );
}

/// MAC of the node that says of each VIP that it announces it; no VIP has two.
fn speakers(nodes: &mut [Node]) -> BTreeMap<IpAddr, String> {
    let mut speakers: BTreeMap<IpAddr, String> = BTreeMap::new();
    for node in nodes {
        let status = node.with(|driver| driver.status());
        let [a, b, c, d, e, f] = status.interfaces[0].mac;
        let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        for address in &status.announcing {
            assert_eq!(
                speakers.insert(*address, mac.clone()),
                None,
                "two speak for {address}"
            );
        }
        assert!(
            !status.announcing.is_empty(),
            "eight VIPs, two nodes: each speaks for some"
        );
        assert_eq!(
            (
                status.interfaces[0].mtu,
                status.nodes[0].rows + status.nodes[1].rows
            ),
            (1500, ROWS)
        );
    }
    speakers
}

/// Ticks until every node has resolved the other.
fn resolve(nodes: &mut [Node]) {
    let begun = Instant::now();
    for node in nodes {
        loop {
            let unresolved = node.with(|driver| {
                driver.tick(Instant::now()).unwrap();
                let status = driver.status();
                status
                    .nodes
                    .iter()
                    .any(|node| node.forward == Forward::Unresolved)
            });
            if !unresolved {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "nodes are not resolved");
            rest(Duration::from_millis(20));
        }
    }
}

/// A node's namespace without an agent, and where its pins would be.
struct Bare {
    namespace: Namespace,
    bpffs: PathBuf,
    client: Namespace,
}

impl Bare {
    fn new(test: &str) -> Self {
        let client = Namespace::new(&format!("{test}-c"));
        let namespace = Namespace::new(&format!("{test}-n"));
        namespace.veth("up0", "10.77.0.1/24", &client, "cl0");
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/{}", namespace.0));
        Self {
            namespace,
            bpffs,
            client,
        }
    }

    /// Opens an agent, in this thread's namespace.
    fn agent(&self, interface: &str, mode: AttachMode) -> Result<Attachment, String> {
        let settings = AgentSettings {
            interfaces: vec![interface.to_owned()],
            mode,
            bpffs: self.bpffs.clone(),
            forward: ForwardMode::Auto,
            probe_port: 17_411,
        };
        let agent = Agent::open(&settings).map_err(|error| error.to_string())?;
        Ok(agent.attachments()[0].clone())
    }

    fn open(&self, interface: &str, mode: AttachMode) -> Result<Attachment, String> {
        self.namespace.enter(|| self.agent(interface, mode))
    }

    fn offload(&self, state: &str) {
        self.namespace.offload("up0", &format!("tx {state}"));
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let bpffs = self.bpffs.clone();
        let _gone = self.namespace.enter(move || detach(&bpffs));
        let _gone = std::fs::remove_dir(&self.bpffs);
    }
}

#[test]
fn what_cannot_be_attached_is_one_clear_sentence() {
    let bare = Bare::new("err");
    assert_eq!(
        bare.open("nope0", AttachMode::Auto).unwrap_err(),
        "interface nope0 does not exist: name an existing one with --interface (`ip link` lists them)"
    );
    // What the kernel can do is asked once in a process: by nobody, who may ask nothing, it would be nothing.
    let _foreign = bare.namespace.enter(|| attach_pass("up0").unwrap());
    let refused = bare.namespace.enter(|| {
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        bare.agent("up0", AttachMode::Auto).unwrap_err()
    });
    assert_eq!(
        refused,
        "loading the BPF object (its maps) is not permitted: run as root or with CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and, for the start, CAP_PERFMON (before Linux 5.8 CAP_SYS_ADMIN)"
    );
    let error = bare.open("up0", AttachMode::Native).unwrap_err();
    let (start, end) = error
        .split_once(", id ")
        .unwrap_or_else(|| panic!("{error}"));
    assert_eq!(
        start,
        "interface up0 already runs an XDP program that is not Forebay's (program forebay_pass"
    );
    let remedy = "): remove it, or give Forebay another interface with --interface";
    assert!(end.ends_with(remedy), "{error}");
}

#[test]
fn auto_is_tcx_on_a_veth_with_checksum_offload_and_says_so() {
    let bare = Bare::new("auto");
    bare.offload("on");
    let attachment = bare.open("up0", AttachMode::Auto).unwrap();
    assert_eq!(attachment.mode, in_traffic_control());
    println!("fact: veth with offloads = {}", attachment.mode.name());
    let note = attachment.note.unwrap();
    let (why, tcx) = note.split_once("; tcx").unwrap_or((&note, ""));
    assert_eq!(
        format!("{why}{}", if tcx.is_empty() { "" } else { " (no tcx)" }),
        "up0 is a veth with tx checksum offload; for native XDP run `ethtool -K up0 tx off` at both ends".to_owned()
            + if has_tcx() { "" } else { " (no tcx)" }
    );
    bare.offload("off");
    let attachment = bare.open("up0", AttachMode::Native).unwrap();
    assert_eq!(
        (attachment.mode, attachment.adopted),
        (AttachMode::Native, false),
        "another mode on purpose replaces the link"
    );
    let version = bare.bpffs.join(format!("v{ABI_VERSION}"));
    assert!(!version.join("link-tcx-up0").exists());
}

#[test]
fn an_mtu_that_native_xdp_does_not_take_is_named_and_lived_with() {
    let bare = Bare::new("jumbo");
    let mtu = |mtu: u32| {
        bare.namespace.ip(&format!("link set up0 mtu {mtu}"));
        bare.client.ip(&format!("link set cl0 mtu {mtu}"));
    };
    mtu(9000);
    let attachment = bare.open("up0", AttachMode::Auto).unwrap();
    assert_eq!(
        (attachment.mode, attachment.mtu),
        (in_traffic_control(), 9000)
    );
    let why = "MTU 9000 is more than the driver's native XDP takes in one buffer (usually about 3500 bytes)";
    let note = attachment.note.unwrap();
    assert!(note.starts_with(why), "{note}");
    let refused = bare.open("up0", AttachMode::Native).unwrap_err();
    assert!(
        refused.starts_with("interface up0 refuses native XDP (Numerical result"),
        "{refused}"
    );
    assert!(refused.contains("lower the MTU"), "{refused}");
    mtu(3_500);
    let attachment = bare.open("up0", AttachMode::Auto).unwrap();
    assert_eq!(
        (attachment.mode, attachment.note),
        (AttachMode::Native, None)
    );
}

#[test]
fn a_pinned_map_of_another_layout_is_refused_and_kept() {
    let bare = Bare::new("layout");
    bare.open("up0", AttachMode::Native).unwrap();
    let pin = bare.bpffs.join(format!("v{ABI_VERSION}/PORTS"));
    std::fs::remove_file(&pin).unwrap();
    let other =
        aya::maps::MapData::from_pin(bare.bpffs.join(format!("v{ABI_VERSION}/STATE"))).unwrap();
    other.pin(&pin).unwrap();
    let expected = format!(
        "the pinned map {} has another layout than this forebay's (capacity 8 instead of 1024): stop every forebay on this node and run `forebay detach`",
        pin.display()
    );
    assert_eq!(bare.open("up0", AttachMode::Native).unwrap_err(), expected);
    assert!(pin.exists());
}

#[test]
fn a_directory_off_the_bpf_file_system_gets_its_own_until_detach() {
    let client = Namespace::new("fs-c");
    let namespace = Namespace::new("fs-n");
    namespace.veth("up0", "10.77.0.1/24", &client, "cl0");
    let directory = tempfile::tempdir().unwrap();
    let bpffs = directory.path().join("pins");
    let settings = AgentSettings {
        interfaces: vec!["up0".to_owned()],
        mode: AttachMode::Native,
        bpffs: bpffs.clone(),
        forward: ForwardMode::Auto,
        probe_port: 17_411,
    };
    namespace.enter(|| drop(Agent::open(&settings).unwrap()));
    assert!(bpffs.join(format!("v{ABI_VERSION}/ROWS")).exists());
    namespace.enter(|| detach(&bpffs).unwrap());
    assert_eq!(pins(&bpffs), BTreeSet::new());
    assert!(!run("cat /proc/mounts").contains(bpffs.to_str().unwrap()));
}

#[test]
fn all_rows_are_rewritten_within_a_few_milliseconds() {
    let client = Namespace::new("rows-c");
    let namespace = Namespace::new("rows-n");
    namespace.veth("up0", "10.77.0.1/24", &client, "cl0");
    let node = Node::start(namespace, "one");
    let shared = node.driver.as_ref().unwrap().shared();
    let mut best = Duration::MAX;
    for round in 1..=5 {
        let rows: Vec<(u32, Row)> = (0..ROWS)
            .map(|row| (row, Row(u64::from(row) << 16 | round)))
            .collect();
        let begun = Instant::now();
        shared.store_rows(&rows);
        best = best.min(begun.elapsed());
        assert_eq!(shared.rows()[65_535], rows[65_535].1);
    }
    println!("65,536 rows in {} us", best.as_micros());
    // A hundred times the figure of an optimised build: this is no benchmark.
    assert!(best < Duration::from_millis(50), "{best:?}");
}
