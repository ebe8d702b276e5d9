//! Faults at random under connections, for minutes: run by `cargo xtask vm soak`, in a virtual machine with two cards of
//! virtio on one hub.
//!
//! Two nodes: one behind a card, one behind a veth, on a bridge that is the client's. Two VIPs of two Gateways, each with
//! sockets of its own on both nodes. Faults come to the first node, those that need no card to the second one too.

mod clients;
mod nemesis;

use std::sync::{Mutex, PoisonError};

use gateway_tests::machine::{self, card, device_of};
use gateway_tests::soak::course::Course;
use gateway_tests::soak::gauge::{Gauge, backwards, leaks};
use gateway_tests::soak::history::{Window, judge};
use gateway_tests::soak::nemesis::{Fault, Nemesis};
use gateway_tests::soak::told::{Told, report};

use self::clients::Clients;
use super::harm::*;
use super::machine::give;
use super::*;

/// In this time after a fault every VIP is served again.
const GRACE: Duration = Duration::from_secs(4);
const VIP_A: &str = "10.77.9.1:80";
const VIP_B: &str = "10.77.9.2:80";

/// The VIPs of the two Gateways, with `more` further ones of the first.
fn wanted(more: u8, first: ReplicaState) -> Snapshot {
    let further: Vec<String> = (0..more)
        .map(|i| format!("10.77.9.{}:80", 10 + i))
        .collect();
    let vips: Vec<&str> = [VIP_A, VIP_B]
        .into_iter()
        .chain(further.iter().map(String::as_str))
        .collect();
    let mut snapshot = snapshot(&vips, &BOTH);
    snapshot.replicas[0].state = first;
    let key = BindKey::from(VIP_B.parse::<SocketAddr>().unwrap());
    let other = ObjectKey::new("default", "other");
    snapshot.addresses.insert(key.address, other.clone());
    let mut bind = Bind::clone(&snapshot.binds[&key]);
    bind.gateway = other;
    snapshot.binds.insert(key, Arc::new(bind));
    snapshot
}

/// A node, with the socket of the second Gateway.
struct Served {
    node: Node,
    other: TcpListener,
}

impl Served {
    fn start(namespace: Namespace, name: &str, mode: AttachMode) -> Self {
        let node = Node::start_as(namespace, name, mode, ForwardMode::Auto);
        let other = node
            .namespace
            .enter(|| TcpListener::bind("127.0.0.1:0").unwrap());
        let greeting = format!("hello from {name} for b");
        serve(other.try_clone().unwrap(), greeting, &node.stop);
        let mut served = Self { node, other };
        let other = served.other.try_clone().unwrap();
        configure(&mut served.node, &other);
        served
    }
}

/// As a daemon does at its start: sockets first, then tables.
fn configure(node: &mut Node, other: &TcpListener) {
    let listener = node.listener.try_clone().unwrap();
    node.with(|driver| {
        let wanted = wanted(0, ReplicaState::Ready);
        let groups = driver.groups(&wanted);
        for (name, socket) in [("gateway", &listener), ("other", other)] {
            let group = groups[&ObjectKey::new("default", name)];
            driver.set_listeners(group, &[socket.as_fd()]).unwrap();
        }
        driver.on_snapshot(&wanted, Instant::now()).unwrap();
    });
}

/// A veth of several queues from a node to the client's bridge.
fn plugged(node: &Namespace, address: &str, client: &Namespace, port: &str) -> PassGuard {
    let (here, there) = (&node.0, &client.0);
    let queues = "numrxqueues 4 numtxqueues 4";
    run(&format!(
        "ip link add up0 netns {here} {queues} type veth peer name {port} {queues} netns {there}"
    ));
    node.ip(&format!("addr add {address} dev up0"));
    node.ip("link set up0 up");
    client.ip(&format!("link set {port} up master br0"));
    node.offload("up0", "tx off");
    client.offload(port, "tx off");
    client.enter(|| attach_pass(port).unwrap())
}

/// The machine's network: node one behind card 1, a bridge behind card 2, node two behind the bridge.
struct Site {
    one: Served,
    two: Served,
    client: Namespace,
    /// The card of node one, in a virtual machine.
    device: Option<String>,
    _guards: Vec<PassGuard>,
}

impl Site {
    fn new() -> Self {
        let device = machine::is_here().then(|| device_of(&card(1).unwrap()).unwrap());
        let client = Namespace::new("soak-s");
        client.ip("link add br0 type bridge");
        client.ip("addr add 10.77.0.9/24 dev br0");
        client.ip("link set br0 up");
        client.ip("route add 10.77.9.0/24 dev br0");
        let (first, second) = (Namespace::new("soak-one"), Namespace::new("soak-two"));
        let mut guards = vec![plugged(&second, "10.77.0.2/24", &client, "p2")];
        if device.is_some() {
            give(2, &client, "p1", "192.0.2.1/32", 1500);
            client.ip("addr flush dev p1");
            client.ip("link set p1 master br0");
            give(1, &first, "up0", "10.77.0.1/24", 1500);
        } else {
            guards.push(plugged(&first, "10.77.0.1/24", &client, "p1"));
        }
        for node in [&first, &second] {
            node.ip("route add default via 10.77.0.9");
        }
        Self {
            one: Served::start(first, "one", AttachMode::Native),
            two: Served::start(second, "two", AttachMode::Native),
            client,
            device,
            _guards: guards,
        }
    }
}

/// What there is now of what may leak.
fn gauge(one: &Live, two: &Live, history: u64) -> Gauge {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count() as u64;
    let kilobytes = |path: &str, name: &str| -> u64 {
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.unwrap().parse().unwrap()
    };
    let mut pinned = Vec::new();
    for live in [one, two] {
        let node = live.node();
        let directory = node.bpffs.join(format!("v{ABI_VERSION}"));
        pinned.extend(
            pins(&directory)
                .into_iter()
                .map(|pin| format!("{} {pin}", node.name)),
        );
    }
    Gauge {
        descriptors: count("/proc/self/fd"),
        pins: pinned,
        resident: kilobytes("/proc/self/status", "RssAnon:").saturating_sub(history),
        ..Gauge::of_machine().unwrap()
    }
}

/// The kernel lets go of what nobody holds some time after.
fn leaks_at_last(first: &Gauge, look: impl Fn() -> Gauge) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let found = leaks(first, &look());
        if found.is_empty() || begun.elapsed() > PATIENCE {
            return found;
        }
        rest(Duration::from_millis(200));
    }
}

/// Segments with RST that this thread's network namespace has sent.
fn resets_sent() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split(' ').zip(values.split(' '));
    let found = pairs.find(|(name, _)| *name == "OutRsts");
    found.and_then(|(_, value)| value.parse().ok()).unwrap()
}

/// Counters of both nodes as they were last.
#[derive(Default)]
struct Watched {
    counters: BTreeMap<String, BTreeMap<&'static str, u64>>,
    violations: Vec<String>,
    /// Segments with RST that the stacks of the two nodes sent, by fault.
    resets: BTreeMap<&'static str, [u64; 2]>,
    sent: [u64; 2],
}

impl Watched {
    /// Looks while all is well: counters, and whether both nodes are as they should be.
    fn look(&mut self, lives: [&Live; 2], after: &'static str) {
        let sent = lives.map(|live| live.node().namespace.enter(resets_sent));
        let of_fault = self.resets.entry(after).or_default();
        for (i, now) in sent.iter().enumerate() {
            of_fault[i] += now - self.sent[i];
        }
        self.sent = sent;
        for live in lives {
            let mut node = live.node();
            let name = node.name.clone();
            let status = node.with(|driver| driver.status());
            let before = self.counters.insert(name.clone(), status.counters.clone());
            let fell = backwards(&name, &before.unwrap_or_default(), &status.counters);
            self.violations.extend(fell);
            let uplink = &status.interfaces[0];
            if uplink.mode != AttachMode::Native || uplink.note.is_some() {
                let said = format!("after {after} node {name} is not as before: {uplink:?}");
                self.violations.push(said);
            }
        }
    }
}

#[test]
#[ignore = "takes minutes: cargo xtask vm soak"]
fn whatever_comes_clients_are_answered_rightly_or_a_fault_explains_it() {
    let mut told = Told::read(&Fault::ALL);
    if !machine::is_here() {
        told.faults.retain(|fault| !fault.needs_machine());
    }
    told.show(&format!("seed {}, faults {:?}", told.seed, told.faults));
    let Site {
        one,
        two,
        client,
        device,
        _guards,
    } = Site::new();
    let (other, _kept) = (one.other, two.other);
    let mut nodes = vec![one.node, two.node];
    resolve(&mut nodes);
    let mut nodes = nodes.into_iter().map(Live::new);
    let (one, two) = (nodes.next().unwrap(), nodes.next().unwrap());
    let course = Course::default();
    let clients = Clients::new(&client, &course);
    let (mut windows, mut watched) = (Vec::new(), Watched::default());
    let hand = nemesis::Hand {
        one: &one,
        two: &two,
        other: &other,
        device: device.as_deref(),
        client: &client,
    };
    let work = || {
        course.wait(Duration::from_secs(2));
        let look = || gauge(&one, &two, course.kilobytes());
        let first = look();
        for act in Nemesis::new(told.seed, &told.faults) {
            if course.now() >= told.length {
                break;
            }
            told.begins(&course, &act);
            windows.push(hand.do_it(&act, &course));
            course.wait(GRACE + act.pause);
            watched.look([&one, &two], act.fault.name());
        }
        course.wait(GRACE);
        let leaked = leaks_at_last(&first, look);
        let last = look();
        println!(
            "fact: KB of memory at the start and at the end = {}, {}",
            first.resident, last.resident
        );
        leaked
    };
    let leaked = one.run(|| two.run(|| clients.run(work)));
    for said in one.said().into_iter().chain(two.said()) {
        println!("fact: a tick said = {said}");
    }
    let length = course.now();
    let ((requests, stalls), (talked, broken)) = (course.end(), clients.end());
    windows.extend(stalls);
    let mut verdict = judge(&requests, &windows, length, GRACE);
    for more in [leaked, watched.violations] {
        verdict.violations.extend(more);
    }
    let reloads = windows.iter().filter(|it| it.fault == Fault::Reload);
    let reloads: Vec<&Window> = reloads.collect();
    // Until the program is on the interface that has come back, the node's own stack answers what is other nodes'.
    let (reloaded, broken): (Vec<_>, Vec<_>) = broken
        .into_iter()
        .partition(|it| reloads.iter().any(|window| it.is_of(window, GRACE)));
    let broken = broken.iter().map(ToString::to_string);
    verdict.violations.extend(broken);
    report(&told, &windows, &verdict);
    println!("fact: words on connections kept open = {talked}");
    println!("fact: of them broken by reload = {}", reloaded.len());
    for (fault, resets) in &watched.resets {
        println!("fact: resets that the kernels sent in {fault} = {resets:?}");
    }
    told.judge(&windows, &verdict);
}
