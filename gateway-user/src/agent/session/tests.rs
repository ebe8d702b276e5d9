//! The session over a border that only remembers, and hostile bytes on the real socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use gateway_common::abi::{
    ABI_VERSION, COUNTERS_PER_CPU, Config, Counter, MAX_NODES, NodeEntry, VipCell, VipEntry,
    VipKey, node_flag,
};
use proptest::prelude::*;

use super::*;
use crate::agent::client::Remote;
use crate::agent::server::{Peers, Server};
use crate::agent::wire::{self, Progress, Reader, WireError};
use crate::allocate::PoolRange;
use crate::datapath::counts::Counts;
use crate::datapath::{Attachment, LocalAddresses, SharedTables, Unset};
use crate::l4::diff::Image;
use crate::l4::tables::{Reach, VipHalf};

/// What was done on the other side of the border.
#[derive(Debug, Default, PartialEq)]
struct Done {
    image: Image,
    groups: BTreeMap<u16, usize>,
    routes: BTreeSet<IpAddr>,
    exported: BTreeSet<IpAddr>,
    announced: Vec<IpAddr>,
    opened: Vec<SocketAddr>,
    paths: Vec<PathQuestion>,
    asked: usize,
}

struct Border(Arc<Mutex<Done>>, SharedTables);

impl Border {
    fn done(&self) -> std::sync::MutexGuard<'_, Done> {
        self.0.lock().unwrap()
    }
}

impl NodePrivileges for Border {
    fn attachments(&self) -> &[Attachment] {
        &[]
    }
    fn image(&self) -> Image {
        self.done().image.clone()
    }
    fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        self.done().image.apply(op);
        Ok(())
    }
    fn set_listeners(&mut self, group: u16, sockets: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.done().groups.insert(group, sockets.len());
        Ok(())
    }
    fn open_udp(&mut self, vip: SocketAddr) -> Result<OwnedFd, Error> {
        self.done().opened.push(vip);
        Ok(table(0))
    }
    fn shared(&self) -> SharedTables {
        self.1.clone()
    }
    fn counters(&self) -> Vec<u64> {
        let mut sums = vec![0; COUNTERS_PER_CPU as usize];
        sums[Counter::LookupRedirected.slot() as usize] = 7;
        sums[VipCell::Other.cell(4_095) as usize] = u64::MAX;
        sums
    }
    fn reach(&mut self, nodes: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, Reach>, Error> {
        self.done().asked += 1;
        Ok(nodes.iter().map(|node| (*node, Reach::default())).collect())
    }
    fn local_addresses(&mut self) -> Result<LocalAddresses, Error> {
        let own = IpAddr::from([192, 0, 2, 11]);
        Ok(LocalAddresses {
            configured: [own].into(),
            uplink: Some(own),
            ..LocalAddresses::default()
        })
    }
    fn set_local_routes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Unset, Error> {
        self.done().routes.clone_from(addresses);
        Ok(Unset::new())
    }
    fn set_exported_routes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Unset, Error> {
        self.done().exported.clone_from(addresses);
        Ok(Unset::new())
    }
    fn tables_written(&mut self) -> Result<(), Error> {
        Ok(())
    }
    fn ask_paths(&mut self, questions: &[PathQuestion]) -> Result<(), Error> {
        self.done().paths.extend(questions);
        Ok(())
    }
    fn announce(&mut self, address: IpAddr) -> Result<(), Error> {
        self.done().announced.push(address);
        Ok(())
    }
}

/// A file as long as a table.
fn table(bytes: u64) -> OwnedFd {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    file.into()
}

fn session() -> (Session, Arc<Mutex<Done>>) {
    let done = Arc::new(Mutex::new(Done::default()));
    let policy = Policy {
        allowed: Allowed {
            ranges: vec![PoolRange::parse("192.0.2.96/27").unwrap()],
            ..Allowed::default()
        },
        remedy: "",
        reserved: BTreeSet::new(),
        tunnel_port: 17_410,
        probe_port: 17_411,
        ephemeral: 1024..=65_535,
    };
    let sizes = [65_536 * 8, 1024 * 8, 4096, 65_536 * 16];
    let tables = sizes.map(table);
    let [rows, alive, heartbeat, tags] = &tables;
    let mapped = SharedTables::of(rows, alive, heartbeat, tags).unwrap();
    let session = Session::new(
        Box::new(Border(Arc::clone(&done), mapped)),
        tables,
        ForwardMode::Udp,
        policy,
        None,
        Instant::now(),
    );
    (session, done)
}

fn frame(request: &Request) -> Frame {
    Frame {
        head: serde_json::to_vec(request).unwrap(),
        ..Frame::default()
    }
}

fn vips(last: &[(u8, u16)]) -> VipHalf {
    let slots = (0..)
        .zip(last)
        .map(|(slot, (last, group))| {
            let entry = VipEntry {
                key: VipKey::v4([192, 0, 2, *last], [0, 80], 6),
                flags: vip_flag::USED,
                group: *group,
                number: 0,
                ..VipEntry::default()
            };
            (slot, entry)
        })
        .collect();
    VipHalf { seed: 3, slots }
}

fn vips_frame(half: &VipHalf) -> Frame {
    Frame {
        tail: message::vips_tail(half),
        ..frame(&Request::Vips(half.seed))
    }
}

fn listening() -> OwnedFd {
    TcpListener::bind("127.0.0.1:0").unwrap().into()
}

#[test]
fn a_refused_table_changes_nothing() {
    let (mut session, done) = session();
    let now = Instant::now();
    session.handle(vips_frame(&vips(&[(100, 0)])), now).unwrap();
    let before = done.lock().unwrap().image.clone();
    assert_eq!(before.vips.len(), 1);
    let refusal = session
        .handle(vips_frame(&vips(&[(101, 0), (200, 0)])), now)
        .unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Denied);
    assert!(
        refusal.sentence.starts_with("192.0.2.200 is not"),
        "{refusal}"
    );
    let routes = Request::Routes([[192, 0, 2, 100].into(), [8, 8, 8, 8].into()].into());
    let refusal = session.handle(frame(&routes), now).unwrap_err();
    assert!(refusal.sentence.starts_with("8.8.8.8 is not"), "{refusal}");
    let done = done.lock().unwrap();
    assert_eq!((&done.image, done.routes.len()), (&before, 0));
}

#[test]
fn claims_are_judged_one_by_one() {
    let (mut session, _) = session();
    let claims = vec![
        ([192, 0, 2, 100].into(), 80, 6),
        ([203, 0, 113, 1].into(), 80, 6),
        ([192, 0, 2, 101].into(), 0, 0),
    ];
    let answer = session.handle(frame(&Request::Claims(claims)), Instant::now());
    let Reply::Claims(refused) = answer.unwrap().reply else {
        panic!("claims");
    };
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, 1);
    assert!(refused[0].1.contains("203.0.113.1"), "{}", refused[0].1);
}

#[test]
fn listening_sockets_are_kept_inherited_and_given_up() {
    let (mut session, done) = session();
    let now = Instant::now();
    let give = |session: &mut Session, group, count: usize| {
        let descriptors = (0..count).map(|_| listening()).collect();
        session
            .handle(
                Frame {
                    descriptors,
                    ..frame(&Request::Listeners(group))
                },
                now,
            )
            .map(drop)
    };
    give(&mut session, 0, 2).unwrap();
    give(&mut session, 1, 1).unwrap();
    assert_eq!(session.kept(), 3);
    // A group is closed with the last VIP that led to it, not before the first one does.
    session.handle(vips_frame(&vips(&[(100, 0)])), now).unwrap();
    assert_eq!(session.kept(), 3);
    session
        .handle(vips_frame(&vips(&[(100, 0), (101, 1)])), now)
        .unwrap();
    session.handle(vips_frame(&vips(&[(101, 1)])), now).unwrap();
    assert_eq!(session.kept(), 1);
    assert_eq!(done.lock().unwrap().groups, [(0, 0), (1, 1)].into());
    let inherited = |session: &mut Session, group| {
        let answer = session
            .handle(frame(&Request::Inherit(group)), now)
            .unwrap();
        answer.descriptors.len()
    };
    assert_eq!(
        (inherited(&mut session, 1), inherited(&mut session, 0)),
        (1, 0)
    );
    let stray = Frame {
        descriptors: vec![table(1)],
        ..frame(&Request::Listeners(1))
    };
    let refusal = session.handle(stray, now).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "the listening sockets of group 1 cannot be used: one of them is no socket"
    );
    assert_eq!(session.kept(), 1, "those before stay");
    let routes = Request::Routes([[192, 0, 2, 100].into()].into());
    session.handle(frame(&routes), now).unwrap();
    session.abandon().unwrap();
    let done = done.lock().unwrap();
    assert_eq!(session.kept(), 0);
    assert_eq!(
        (&done.groups, done.routes.len()),
        (&[(0, 0), (1, 0)].into(), 0)
    );
}

#[test]
fn routers_are_told_of_local_addresses_while_the_heart_of_the_run_beats() {
    let (mut session, done) = session();
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let beat = session.privileges.shared();
    let [vip, other]: [BTreeSet<IpAddr>; 2] =
        [[192, 0, 2, 100], [192, 0, 2, 101]].map(|address| [address.into()].into());
    let told = || done.lock().unwrap().exported.clone();
    let ask = |session: &mut Session, request, now| session.handle(frame(&request), now);
    ask(&mut session, Request::Routes(vip.clone()), start).unwrap();
    let refusal = ask(&mut session, Request::Exported(other), start).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "routers are not told of 192.0.2.101: it is not local here"
    );
    assert_eq!(session.next_look(start), None);
    ask(&mut session, Request::Exported(vip.clone()), start).unwrap();
    assert_eq!(told(), vip);
    assert!(session.next_look(start).is_some());
    beat.beat(1);
    session.tell_routers(at(900)).unwrap();
    session.ended();
    session.tell_routers(at(1_800)).unwrap();
    assert_eq!(told(), vip, "a restart takes no longer");
    session.tell_routers(at(1_900)).unwrap();
    assert_eq!(told(), BTreeSet::new(), "it does not come back");
    beat.beat(2);
    session.tell_routers(at(5_000)).unwrap();
    assert_eq!(told(), vip, "it is back");
    ask(&mut session, Request::Routes(BTreeSet::new()), at(5_000)).unwrap();
    assert_eq!(told(), BTreeSet::new(), "it is not local any more");
}

#[test]
fn floods_are_limited() {
    let (mut session, done) = session();
    let now = Instant::now();
    let address = VipKey {
        port: [0; 2],
        protocol: 0,
        ..VipKey::v4([192, 0, 2, 100], [0; 2], 0)
    };
    let mut half = vips(&[(100, 0)]);
    half.slots[0].1.key = address;
    half.slots[0].1.flags |= vip_flag::ANNOUNCE;
    session.handle(vips_frame(&half), now).unwrap();
    let announce = Request::Announce([192, 0, 2, 100].into());
    let refused = (0..10_000)
        .filter_map(|_| session.handle(frame(&announce), now).err())
        .filter(|refusal| refusal.kind == RefusalKind::Limited)
        .count();
    assert_eq!(refused, 10_000 - 4096);
    assert_eq!(done.lock().unwrap().announced.len(), 4096);

    let nodes = |from: u32| {
        let nodes = (from..from + 256).map(|n| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)));
        frame(&Request::Reach(nodes.collect()))
    };
    session.handle(nodes(0), now).unwrap();
    session.handle(nodes(0), now).unwrap();
    session.handle(nodes(1000), now).unwrap();
    let refusal = session.handle(nodes(2000), now).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Limited);
    assert_eq!(done.lock().unwrap().asked, 3);
}

#[test]
fn a_udp_socket_is_opened_on_a_vip_and_nowhere_else() {
    let (mut session, done) = session();
    let now = Instant::now();
    let vip = SocketAddr::from(([192, 0, 2, 100], 5353));
    let answer = session.handle(frame(&Request::OpenUdp(vip)), now).unwrap();
    assert_eq!((answer.reply, answer.descriptors.len()), (Reply::Opened, 1));
    let mapped = Request::OpenUdp("[::ffff:192.0.2.100]:5353".parse().unwrap());
    session.handle(frame(&mapped), now).unwrap();
    for (refused, kind) in [
        ("192.0.2.11:5353", RefusalKind::Denied),
        ("127.0.0.1:5353", RefusalKind::Denied),
        ("192.0.2.100:17410", RefusalKind::Denied),
        ("192.0.2.100:0", RefusalKind::Malformed),
    ] {
        let request = Request::OpenUdp(refused.parse().unwrap());
        let refusal = session.handle(frame(&request), now).unwrap_err();
        assert_eq!(refusal.kind, kind, "{refused}");
    }
    assert_eq!(done.lock().unwrap().opened, [vip, vip]);
}

#[test]
fn another_version_is_named() {
    let (mut session, _) = session();
    let hello = Hello {
        protocol: 9,
        ..Hello::own()
    };
    let refusal = session
        .handle(frame(&Request::Hello(hello)), Instant::now())
        .unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Version);
    assert!(refusal.sentence.contains("this forebay 9 and"), "{refusal}");
}

/// A server on a socket, and what its session did.
struct Served {
    directory: tempfile::TempDir,
    _stop: UnixStream,
    done: Arc<Mutex<Done>>,
}

impl Served {
    fn start(keep: Duration) -> Self {
        let (session, done) = session();
        let directory = tempfile::tempdir().unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let socket = directory.path().join("agent.sock");
        let server = Server::bind(&socket, Peers::default(), keep, stopped, session).unwrap();
        std::thread::spawn(move || server.serve());
        Self {
            directory,
            _stop: stop,
            done,
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        let patience = Some(Duration::from_secs(10));
        stream.set_read_timeout(patience).unwrap();
        stream.set_write_timeout(patience).unwrap();
        stream
    }
}

fn reply(stream: &UnixStream) -> Option<Reply> {
    match Reader::default().read(stream, rustix::net::RecvFlags::empty()) {
        Ok(Progress::Frame(frame)) => Some(serde_json::from_slice(&frame.head).unwrap()),
        Ok(Progress::Closed) => None,
        // The other end went away with bytes of ours unread.
        Err(WireError::Socket(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => {
            None
        }
        other => panic!("{other:?}"),
    }
}

fn ask(stream: &UnixStream, request: &Request) -> Option<Reply> {
    wire::send(stream, &serde_json::to_vec(request).unwrap(), &[], &[]).unwrap();
    reply(stream)
}

#[test]
fn the_other_end_of_the_border_does_the_same() {
    let served = Served::start(Duration::from_secs(60));
    let mut remote = Remote::connect(&served.socket()).unwrap();
    assert_eq!(remote.forward(), ForwardMode::Udp);
    assert_eq!(remote.image(), Image::default());
    let config = Config {
        abi_version: ABI_VERSION,
        tunnel_port: 17_410_u16.to_be_bytes(),
        probe_port: 17_411_u16.to_be_bytes(),
        ..Config::default()
    };
    let mut nodes = Image::default().nodes;
    nodes[9] = NodeEntry {
        address: crate::l4::abi_address([192, 0, 2, 12].into()),
        flags: node_flag::LISTED,
        ..NodeEntry::default()
    };
    let mut expected = Image::default();
    for op in [
        MapOp::Config(config),
        MapOp::Nodes(nodes),
        MapOp::Vips(vips(&[(100, 0)])),
        MapOp::UnlistNodes(vec![9]),
    ] {
        remote.apply(&op).unwrap();
        expected.apply(&op);
        assert_eq!(served.done.lock().unwrap().image, expected, "{op:?}");
    }
    let refusal = remote.apply(&MapOp::Vips(vips(&[(1, 0)]))).unwrap_err();
    assert!(
        refusal.to_string().starts_with("192.0.2.1 is not"),
        "{refusal}"
    );
    let socket = listening();
    remote.set_listeners(5, &[socket.as_fd()]).unwrap();
    remote
        .set_local_routes(&[IpAddr::from([192, 0, 2, 100])].into())
        .unwrap();
    assert_eq!(remote.local_addresses().unwrap().configured.len(), 1);
    let counts = Counts::of(&remote.counters());
    assert_eq!(counts.reasons["lookup_redirected"], 7);
    assert_eq!(counts.of_vip(4_095), u64::MAX);
    remote.shared().beat(77);
    assert_eq!(remote.shared().last_beat(), 77);
    assert!(!remote.renewed().unwrap());
    // A second one is not let in, and says which process is.
    let error = Remote::connect(&served.socket()).unwrap_err().to_string();
    let busy = format!("process {} uses this agent already", std::process::id());
    assert!(error.starts_with(&busy), "{error}");
    drop(remote);
    let mut next = Remote::connect(&served.socket()).unwrap();
    assert_eq!(
        next.shared().last_beat(),
        0,
        "nobody beats since the first one ended"
    );
    let inherited = next.inherit().unwrap();
    assert_eq!(inherited.keys().collect::<Vec<_>>(), [&5]);
    assert_eq!(
        listening::describe(inherited[&5][0].as_fd()).unwrap(),
        listening::describe(socket.as_fd()).unwrap()
    );
}

#[test]
fn udp_sockets_come_over_the_border() {
    let served = Served::start(Duration::from_secs(60));
    let mut remote = Remote::connect(&served.socket()).unwrap();
    let mut open = |vip: &str| remote.open_udp(vip.parse().unwrap());
    drop(open("192.0.2.100:53").unwrap());
    let error = open("192.0.2.1:53").unwrap_err().to_string();
    assert!(error.starts_with("192.0.2.1 is not"), "{error}");
}

#[test]
fn nothing_is_kept_for_ever() {
    let served = Served::start(Duration::from_millis(50));
    let mut remote = Remote::connect(&served.socket()).unwrap();
    remote.set_listeners(5, &[listening().as_fd()]).unwrap();
    drop(remote);
    let begun = Instant::now();
    while served.done.lock().unwrap().groups.get(&5) != Some(&0) {
        assert!(begun.elapsed() < Duration::from_secs(10), "they are kept");
        std::thread::yield_now();
    }
}

#[test]
fn the_first_word_is_the_greeting_and_it_comes_in_time() {
    let served = Served::start(Duration::from_secs(60));
    let stream = served.connect();
    let Some(Reply::Refused(refusal)) = ask(&stream, &Request::LocalAddresses) else {
        panic!("refused");
    };
    assert_eq!(refusal.kind, RefusalKind::Malformed);
    assert_eq!(reply(&stream), None, "and the connection is closed");
    let silent = served.connect();
    assert_eq!(reply(&silent), None, "after two seconds");
    assert!(Remote::connect(&served.socket()).is_ok());
}

/// Requests that a `run` could send, with their tails.
fn valid() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let address = any::<[u8; 4]>().prop_map(IpAddr::from);
    let addresses = prop::collection::btree_set(address.clone(), 0..40);
    let tail = |request: Request, tail: Vec<u8>| (serde_json::to_vec(&request).unwrap(), tail);
    prop_oneof![
        prop::collection::vec(any::<u8>(), size_of::<Config>())
            .prop_map(move |bytes| tail(Request::Config, bytes)),
        prop::collection::vec(any::<u8>(), 36 * 4)
            .prop_map(move |bytes| tail(Request::Vips(1), bytes)),
        any::<u8>().prop_map(move |byte| {
            let bytes = MAX_NODES as usize * size_of::<NodeEntry>();
            tail(Request::Nodes, vec![byte; bytes])
        }),
        addresses
            .clone()
            .prop_map(move |set| tail(Request::Routes(set), Vec::new())),
        addresses
            .clone()
            .prop_map(move |set| tail(Request::Exported(set), Vec::new())),
        addresses.prop_map(move |set| tail(Request::Reach(set), Vec::new())),
        (address.clone(), any::<u16>()).prop_map(move |(address, port)| {
            let vip = SocketAddr::new(address, port);
            tail(Request::OpenUdp(vip), Vec::new())
        }),
        address.prop_map(move |address| tail(Request::Announce(address), Vec::new())),
        any::<u16>().prop_map(move |group| tail(Request::Listeners(group), Vec::new())),
        prop::collection::vec(any::<u16>(), 0..9)
            .prop_map(move |nodes| tail(Request::Unlist(nodes), Vec::new())),
        Just(tail(Request::Hello(Hello::own()), Vec::new())),
    ]
}

/// A frame as bytes.
fn bytes(head: &[u8], tail: &[u8]) -> Vec<u8> {
    let (a, b) = UnixStream::pair().unwrap();
    let sender = std::thread::spawn({
        let (head, tail) = (head.to_vec(), tail.to_vec());
        move || wire::send(&a, &head, &tail, &[]).unwrap()
    });
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &b, &mut bytes).unwrap();
    sender.join().unwrap();
    bytes
}

fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let mutated = (
        valid(),
        any::<prop::sample::Index>(),
        any::<u8>(),
        any::<bool>(),
    )
        .prop_map(|((head, tail), at, byte, cut)| {
            let mut bytes = bytes(&head, &tail);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if cut {
                bytes.truncate(at);
            }
            bytes
        });
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..600),
        // A good beginning, then anything: what lies beyond the mark is reached.
        prop::collection::vec(any::<u8>(), 0..600).prop_map(|rest| {
            let mut bytes = b"FBAG".to_vec();
            bytes.extend(rest);
            bytes
        }),
        (any::<[u8; 40]>()).prop_map(|head| bytes(&head, &[])),
        mutated,
        valid().prop_map(|(head, tail)| bytes(&head, &tail)),
    ]
}

#[test]
fn whatever_a_peer_writes_the_server_lives_and_says_what_is_wrong() {
    let served = Served::start(Duration::from_secs(600));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    let memory = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap();
        let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kilobytes
    };
    let before = memory();
    let case = |sent: Vec<Vec<u8>>| {
        use std::io::Write;
        let stream = served.connect();
        let Some(Reply::Welcome(_)) = ask(&stream, &Request::Hello(Hello::own())) else {
            return Err(TestCaseError::fail("the server does not greet any more"));
        };
        for bytes in &sent {
            // It may have closed the connection after the one before.
            if (&stream).write_all(bytes).is_err() {
                break;
            }
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // Every answer is one of the protocol, to the end of the connection.
        while let Some(reply) = reply(&stream) {
            if let Reply::Refused(refusal) = reply {
                prop_assert!(!refusal.sentence.is_empty() && refusal.sentence.len() < 400);
            }
        }
        Ok(())
    };
    runner
        .run(&prop::collection::vec(hostile(), 1..5), case)
        .unwrap();
    let grown = memory().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB more than before");
    let done = served.done.lock().unwrap();
    let pool = 0xc000_0260_u32..=0xc000_027f;
    let outside = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !pool.contains(&u32::from(*v4)),
        IpAddr::V6(_) => true,
    };
    assert!(!done.routes.iter().any(outside), "{:?}", done.routes);
    assert!(!done.exported.iter().any(outside), "{:?}", done.exported);
    assert!(!done.announced.iter().any(outside), "{:?}", done.announced);
    let claimed = done.image.vips.keys();
    let claimed: Vec<IpAddr> = claimed
        .map(|key| crate::l4::address_of(key.address))
        .collect();
    assert_eq!(claimed, [] as [IpAddr; 0]);
}
