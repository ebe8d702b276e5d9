//! What clients see of faults of a card, of its driver and of the machine: run by `cargo xtask vm test`, in a virtual
//! machine with two cards of virtio on one hub.

use gateway_tests::machine::{Filled, available, bind, card, device_of, unbind};
use gateway_user::datapath::AttachState;
use gateway_user::snapshot::{L4Policy, Prefix, Sources};

use super::harm::*;
use super::machine::{attachment, give, served, wired};
use super::*;

const VIP: &str = "10.77.9.1:80";
/// Longest time until new connections are served after a fault has ended: emulated, and on busy processors.
const AGAIN: Duration = Duration::from_secs(2);
/// Where the memory of the tables is counted.
const GROUP: &str = "/sys/fs/cgroup/forebay";

/// A node by native XDP of a card, and a client that it has served.
fn begun(test: &str) -> (Node, Namespace) {
    let (client, namespace) = wired(test, 1500);
    let mut node = Node::start_as(namespace, "one", AttachMode::Auto, ForwardMode::Auto);
    assert_eq!(served(&mut node, &client), AttachMode::Native);
    (node, client)
}

/// What ticks said during a fault is a sentence each.
fn only_sentences(live: &Live) {
    for sentence in live.said() {
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
        assert!(sentence.len() < 400, "{sentence}");
        println!("fact: a tick said = {sentence}");
    }
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn a_link_that_flaps_keeps_open_connections_and_serves_again() {
    let (node, client) = begun("flap");
    let program = program_on(&node);
    let live = Live::new(node);
    let mut longest = Duration::ZERO;
    live.run(|| {
        let mut talk = Talk::open(&client, VIP);
        for _ in 0..5 {
            live.node().namespace.ip("link set up0 down");
            talk.say();
            let error = ask(&client, VIP).unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock),
                "a link that is down answers nothing: {error}"
            );
            live.node().namespace.ip("link set up0 up");
            let (took, _) = served_again(&client, VIP);
            longest = longest.max(took);
            talk.hear();
        }
        let uplink = live.uplink();
        assert_eq!(
            (uplink.state, uplink.mode, uplink.note),
            (AttachState::Attached, AttachMode::Native, None)
        );
        only_sentences(&live);
    });
    assert_eq!(
        program_on(&live.node()),
        program,
        "nothing was attached anew"
    );
    println!("fact: served after a flap = {} ms", longest.as_millis());
    assert!(longest < AGAIN, "{longest:?}");
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn a_driver_that_is_reloaded_is_waited_for_and_attached_to_again() {
    let device = device_of(&card(1).unwrap()).unwrap();
    let (node, client) = begun("reload");
    let mut longest = Duration::ZERO;
    let live = Live::new(node);
    live.run(|| {
        let mut talk = Talk::open(&client, VIP);
        for _ in 0..2 {
            unbind(&device).unwrap();
            talk.say();
            let gone = live.until("waiting", |uplink| uplink.state == AttachState::Waiting);
            assert_eq!(
                (gone.ifindex, gone.note.as_deref()),
                (0, Some("waiting for interface up0"))
            );
            assert!(ask(&client, VIP).is_err(), "a card without a driver");
            bind(&device).unwrap();
            // A daemon of networks does that elsewhere.
            give(1, &live.node().namespace, "up0", "10.77.0.1/24", 1500);
            let (took, _) = served_again(&client, VIP);
            longest = longest.max(took);
            talk.hear();
            let again = live.until("attached", |uplink| uplink.state == AttachState::Attached);
            assert_eq!((again.mode, again.note), (AttachMode::Native, None));
        }
        only_sentences(&live);
    });
    let program = program_on(&live.node());
    assert!(program.contains("prog/xdp"), "{program}");
    println!("fact: served after a reload = {} ms", longest.as_millis());
    assert!(longest < AGAIN, "{longest:?}");
    assert!(attachment(&mut live.node()).ifindex > 0);
}

/// Has the node's uplink changed by ethtool under connections; whether it let itself be changed.
fn changed_under_load(live: &Live, client: &Namespace, words: &str) -> bool {
    let program = program_on(&live.node());
    let done = live.run(|| {
        let mut talk = Talk::open(client, VIP);
        talk.say();
        let done = attempt(&live.node().namespace, &format!("ethtool {words}"));
        let (took, failed) = served_again(client, VIP);
        talk.hear();
        assert!(took < AGAIN, "{words}: {took:?}");
        let uplink = live.uplink();
        assert_eq!(
            (uplink.state, uplink.mode),
            (AttachState::Attached, AttachMode::Native)
        );
        let said = match &done {
            Ok(()) => format!("done, {failed} tries failed"),
            Err(said) => format!("refused ({said})"),
        };
        println!("fact: ethtool {words} = {said}");
        only_sentences(live);
        done.is_ok()
    });
    assert_eq!(
        program_on(&live.node()),
        program,
        "nothing was attached anew"
    );
    done
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn queues_and_rings_may_change_under_connections() {
    let (node, client) = begun("rings");
    let live = Live::new(node);
    for words in ["-L up0 combined 2", "-G up0 rx 64", "-G up0 tx 64"] {
        changed_under_load(&live, &client, words);
    }
    drop(live);
    drop(client);
    // What the card may refuse, a veth does not.
    let client = Namespace::new("queues-c");
    let namespace = Namespace::new("queues-n");
    let (here, there) = (&namespace.0, &client.0);
    let queues = "numrxqueues 4 numtxqueues 4";
    run(&format!(
        "ip link add up0 netns {here} {queues} type veth peer name cl0 {queues} netns {there}"
    ));
    namespace.ip("addr add 10.77.0.1/24 dev up0");
    namespace.ip("link set up0 up");
    client.ip("addr add 10.77.0.9/24 dev cl0");
    client.ip("link set cl0 up");
    client.ip("route add 10.77.9.0/24 dev cl0");
    namespace.offload("up0", "tx off");
    client.offload("cl0", "tx off");
    let _pass = client.enter(|| attach_pass("cl0").unwrap());
    let mut node = Node::start(namespace, "one");
    assert_eq!(served(&mut node, &client), AttachMode::Native);
    let live = Live::new(node);
    client.exec("ethtool -L cl0 rx 4 tx 1");
    for words in ["-L up0 rx 4 tx 4", "-L up0 rx 2 tx 2"] {
        let done = changed_under_load(&live, &client, words);
        assert!(done, "a veth takes {words}");
    }
}

/// Something long on an open connection, and what comes back of it.
fn long_words_come_back(stream: &mut TcpStream, length: usize) {
    let words = "x".repeat(length);
    writeln!(stream, "{words}").unwrap();
    assert_eq!(line(stream).len(), length);
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn an_mtu_that_is_raised_under_native_xdp_loses_no_frame() {
    let (node, client) = begun("raised");
    let live = Live::new(node);
    let mtu = |mtu: u32| {
        client.ip(&format!("link set cl0 mtu {mtu}"));
        let node = live.node();
        node.namespace.ip(&format!("link set up0 mtu {mtu}"));
        let shown = node.namespace.ip("link show up0");
        assert!(shown.contains(&format!("mtu {mtu} ")), "{shown}");
    };
    live.run(|| {
        let mut old = client.connect(VIP).unwrap();
        assert_eq!(line(&mut old), "hello from one");
        mtu(9_000);
        if !at_least(6, 3) {
            let uplink = live.until("told of", |uplink| uplink.note.is_some());
            let note = uplink.note.unwrap_or_default();
            assert_eq!(uplink.mode, AttachMode::Native);
            let remedy = "lower it: before Linux 6.3 the program cannot be taken off meanwhile";
            assert!(note.ends_with(remedy), "{note}");
            mtu(1_500);
            live.until("well again", |uplink| uplink.note.is_none());
            long_words_come_back(&mut old, 100_000);
            return;
        }
        let uplink = live.until("turned", |uplink| uplink.mode == in_traffic_control());
        let note = uplink.note.unwrap_or_default();
        assert!(
            note.starts_with("MTU 9000 is more than the driver's"),
            "{note}"
        );
        let mut new = client.connect(VIP).unwrap();
        assert_eq!(line(&mut new), "hello from one");
        for stream in [&mut old, &mut new] {
            long_words_come_back(stream, 100_000);
        }
        mtu(1_500);
        let uplink = live.until("native again", |uplink| uplink.mode == AttachMode::Native);
        assert_eq!(uplink.note, None);
        for stream in [&mut old, &mut new] {
            long_words_come_back(stream, 100_000);
        }
        assert_eq!(client.hello(VIP), "hello from one");
    });
    only_sentences(&live);
}

#[test]
#[ignore = "fills the machine's memory: cargo xtask vm test"]
fn a_machine_without_memory_serves_as_before() {
    let (node, client) = begun("memory");
    let live = Live::new(node);
    live.run(|| {
        let mut talk = Talk::open(&client, VIP);
        let filled = Filled::all_but(48).unwrap();
        println!("fact: memory that was left = {} MB", available().unwrap());
        let others: Vec<String> = (1..=20).map(|i| format!("10.77.9.{i}:80")).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        for round in 0..others.len() {
            talk.say();
            talk.hear();
            // Tables are there from the start: writing them takes none.
            live.node().snapshot(&snapshot(&others[..=round], &[]));
            assert_eq!(client.hello(others[round]), "hello from one");
        }
        drop(filled);
        assert_eq!(client.hello(VIP), "hello from one");
        assert_eq!(live.said(), BTreeSet::new());
    });
}

/// As [`snapshot`], for clients of 10.77.0.0/16 and `more` further prefixes alone.
fn admitting(more: u32) -> Snapshot {
    let mut snapshot = snapshot(&[VIP], &[]);
    let further = (0..more).map(|i| format!("{}/32", Ipv4Addr::from(0x0b00_0000 + 2 * i)));
    let texts = further.chain(["10.77.0.0/16".to_owned()]);
    let mut allow: Vec<Prefix> = texts.map(|text| text.parse().unwrap()).collect();
    allow.sort();
    let policy = L4Policy {
        sources: Sources {
            allow: Some(allow),
            deny: Vec::new(),
        },
        ..L4Policy::default()
    };
    for bind in snapshot.binds.values_mut() {
        let mut changed = Bind::clone(bind);
        changed.policy = Arc::new(policy.clone());
        *bind = Arc::new(changed);
    }
    snapshot
}

#[test]
#[ignore = "needs control groups of its own: cargo xtask vm test"]
fn tables_that_may_not_grow_say_so_and_the_old_ones_serve() {
    let write = |path: &str, text: &str| std::fs::write(path, text);
    if write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").is_err() {
        println!("skipped: this kernel limits no memory by groups");
        return;
    }
    drop(std::fs::create_dir(GROUP));
    let here = std::process::id().to_string();
    // Tables are counted where they are made, whoever writes them.
    write(&format!("{GROUP}/cgroup.procs"), &here).unwrap();
    let (mut node, client) = begun("limit");
    write("/sys/fs/cgroup/cgroup.procs", &here).unwrap();
    let used = std::fs::read_to_string(format!("{GROUP}/memory.current")).unwrap();
    let used: u64 = used.trim().parse().unwrap();
    println!("fact: memory of the group = {} KB", used >> 10);
    let limit = |text: &str| write(&format!("{GROUP}/memory.max"), text).unwrap();
    limit(&(used + (4 << 10)).to_string());

    let wanted = admitting(4_000);
    let written = node.with(|driver| driver.on_snapshot(&wanted, Instant::now()));
    match written {
        Ok(()) => println!("fact: 4,001 prefixes over the limit = written"),
        Err(error) => {
            let sentence = error.to_string();
            println!("fact: 4,001 prefixes over the limit = {sentence}");
            assert_eq!(sentence.lines().count(), 1, "{sentence}");
            assert!(sentence.contains("memory"), "{sentence}");
        }
    }
    for _ in 0..10 {
        assert_eq!(client.hello(VIP), "hello from one");
    }
    limit("max");
    // The kernel fills its stocks for entries of tries after it is asked for one: a later tick finds them.
    let begun = Instant::now();
    let tick = |driver: &mut Driver| driver.tick(driver.next_tick().max(Instant::now()));
    while let Err(error) = node.with(tick) {
        assert!(begun.elapsed() < AGAIN, "{error}");
        rest(Duration::from_millis(20));
    }
    println!(
        "fact: written with room again = {} ms",
        begun.elapsed().as_millis()
    );
    assert_eq!(client.hello(VIP), "hello from one");
    let entries = std::fs::read_to_string(format!("{GROUP}/memory.events")).unwrap();
    assert!(entries.contains("\noom_kill 0"), "{entries}");
}

/// Values of the kernel's settings, put back at the end.
struct Settings(Vec<(String, String)>);

impl Settings {
    fn set(values: &[(&str, &str)]) -> Self {
        let mut before = Self(Vec::new());
        for (name, value) in values {
            let path = format!("/proc/sys/{name}");
            let was = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, value).unwrap_or_else(|error| panic!("{name}: {error}"));
            before.0.push((path, was.trim().to_owned()));
        }
        before
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        for (path, value) in &self.0 {
            // What cannot be put back is of this machine alone.
            drop(std::fs::write(path, value));
        }
    }
}

#[test]
#[ignore = "changes the kernel's settings: cargo xtask vm test"]
fn a_hardened_kernel_loads_and_serves_the_same() {
    let _settings = Settings::set(&[
        ("kernel/unprivileged_bpf_disabled", "2"),
        ("net/core/bpf_jit_harden", "2"),
    ]);
    let (mut node, client) = begun("harden");
    assert_eq!(attachment(&mut node).note, None);
    assert_eq!(client.hello(VIP), "hello from one");
}

#[test]
#[ignore = "changes the kernel's settings: cargo xtask vm test"]
fn a_kernel_that_interprets_programs_serves_the_same() {
    let _settings = Settings::set(&[("net/core/bpf_jit_enable", "0")]);
    let (mut node, client) = begun("interpret");
    assert_eq!(attachment(&mut node).note, None);
    assert_eq!(client.hello(VIP), "hello from one");
}
