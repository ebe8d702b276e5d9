//! A `forebay run` that has been taken over, against the real agent: it gets nothing that is not its own, and what it
//! sends leaves tables, routes and neighbours as they were.

use std::{
    io::{IoSlice, Write},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::Command,
    time::{Duration, Instant},
};

use gateway_common::abi::{
    ABI_VERSION, Config, MAX_NODES, NodeEntry, VipEntry, VipKey, node_flag, vip_flag,
};
use gateway_tests::{
    daemon::program,
    eventually::eventually,
    leftovers::Ledger,
    maps,
    rig::VIP,
    split::{RUN_USER, Split},
    topology::UPLINK,
};
use gateway_user::{
    agent::{
        message::{self, Hello, RefusalKind, Reply, Request},
        wire::{self, Progress, Reader},
    },
    l4::{abi_address, tables::VipHalf},
};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// A connection that says what it likes.
struct Hostile(UnixStream);

impl Hostile {
    fn knock(split: &Split) -> Self {
        let stream = UnixStream::connect(split.socket()).unwrap();
        let patience = Some(Duration::from_secs(10));
        stream.set_read_timeout(patience).unwrap();
        stream.set_write_timeout(patience).unwrap();
        Self(stream)
    }

    fn greeted(split: &Split) -> Self {
        let hostile = Self::knock(split);
        let reply = hostile.ask(&Request::Hello(Hello::own()), &[], &[]);
        assert!(matches!(reply, Reply::Welcome(_)), "{reply:?}");
        hostile
    }

    fn reply(&self) -> Option<Reply> {
        match Reader::default().read(&self.0, RecvFlags::empty()).ok()? {
            Progress::Frame(frame) => Some(serde_json::from_slice(&frame.head).unwrap()),
            _ => None,
        }
    }

    fn ask(&self, request: &Request, tail: &[u8], descriptors: &[BorrowedFd<'_>]) -> Reply {
        let head = serde_json::to_vec(request).unwrap();
        wire::send(&self.0, &head, tail, descriptors).unwrap();
        self.reply().unwrap()
    }

    #[track_caller]
    fn refused(&self, request: &Request, tail: &[u8], descriptors: &[BorrowedFd<'_>]) -> String {
        match self.ask(request, tail, descriptors) {
            Reply::Refused(refusal) => {
                assert_eq!(refusal.kind, RefusalKind::Denied, "{refusal}");
                refusal.sentence
            }
            other => panic!("{request:?}: {other:?}"),
        }
    }
}

fn vip(address: [u8; 4], port: u16, flags: u32) -> Vec<u8> {
    let entry = VipEntry {
        key: VipKey::v4(address, port.to_be_bytes(), if port == 0 { 0 } else { 6 }),
        flags: vip_flag::USED | flags,
        group: 0,
        number: 0,
        ..VipEntry::default()
    };
    message::vips_tail(&VipHalf {
        seed: 1,
        slots: vec![(0, entry)],
    })
}

fn node(address: [u8; 4]) -> Vec<u8> {
    let mut nodes = vec![NodeEntry::default(); MAX_NODES as usize];
    nodes[5] = NodeEntry {
        address: abi_address(address.into()),
        mac: [2, 0, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 1, 1],
        ifindex: 2,
        flags: node_flag::LISTED | node_flag::RESOLVED | node_flag::ON_LINK,
        ..NodeEntry::default()
    };
    bytemuck::cast_slice(&nodes).to_vec()
}

/// What an outsider can see of the node: its own tables, its routes, and what the link has learned.
fn state(split: &Split) -> (Vec<u8>, String, String) {
    let show = |netns: &gateway_tests::netns::Netns, words: &[&str]| {
        let done = netns.output(Command::new("ip").args(words)).unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    (
        maps::guarded(split.bpffs()).unwrap(),
        show(&split.site().netns, &["route", "show", "table", "all"]),
        // Addresses and MACs; how fresh an entry is changes by itself.
        show(&split.topology.client, &["neigh"])
            .lines()
            .map(|line| line.split(' ').take(5).collect::<Vec<_>>().join(" ") + "\n")
            .filter(|line| line.contains("lladdr"))
            .collect(),
    )
}

#[test]
fn a_hostile_run_gets_nothing_that_is_not_its_own() {
    let allow = RUN_USER.to_string();
    let flags = ["--vips", "192.0.2.100-192.0.2.119", "--allow-uid", &allow];
    let mut split = Split::start(Ledger::open().unwrap(), &flags).unwrap();
    split.start_run().unwrap();
    split.wait_ready().unwrap();
    split.wait_served().unwrap();
    split.kill_run();
    // The client learns from whatever is announced, also of addresses that it never asked for.
    let client = &split.topology.client;
    client
        .sysctl(&format!("net/ipv4/conf/{UPLINK}/arp_accept"), "1")
        .unwrap();
    client
        .ip(&format!("neigh del {} dev {UPLINK}", VIP.ip()))
        .unwrap();
    let hostile = Hostile::greeted(&split);
    let vip_address = IpAddr::from(*VIP.ip());
    let control = hostile.ask(&Request::Announce(vip_address), &[], &[]);
    assert_eq!(control, Reply::Done);
    eventually("the announced VIP", Duration::from_secs(5), || {
        let neighbours = state(&split).2;
        anyhow::ensure!(
            neighbours.contains(&vip_address.to_string()),
            "{neighbours}"
        );
        Ok(())
    })
    .unwrap();
    let before = state(&split);
    assert!(before.1.contains("192.0.2.100"), "{}", before.1);

    claims(&hostile);
    nodes_and_configuration(&hostile);
    sockets(&hostile, &split);
    malformed(hostile, &split);
    floods(&split);
    stranger(&split);

    let after = state(&split);
    assert_eq!(after.1, before.1);
    assert_eq!(after.2, before.2);
    assert!(after.0 == before.0, "a table has changed");
    // And the true one goes on with what is its own.
    split.topology.deliver_to(0, *VIP.ip()).unwrap();
    split.start_run().unwrap();
    split.wait_ready().unwrap();
    split.wait_served().unwrap();
}

fn claims(hostile: &Hostile) {
    let vips = Request::Vips(1);
    let table = [
        (vip([8, 8, 8, 8], 53, 0), "8.8.8.8 is not an address"),
        (vip([192, 0, 2, 1], 80, 0), "192.0.2.1 is not an address"),
        (vip([192, 0, 2, 11], 22, 0), "192.0.2.11 is not an address"),
        (vip([127, 0, 0, 1], 80, 0), "a loopback address"),
        (
            vip([192, 0, 2, 1], 0, vip_flag::ANNOUNCE),
            "192.0.2.1 is not an address",
        ),
    ];
    for (tail, words) in table {
        let sentence = hostile.refused(&vips, &tail, &[]);
        assert!(sentence.contains(words), "{sentence}");
    }
    for address in [[8, 8, 8, 8], [192, 0, 2, 1], [192, 0, 2, 11], [0, 0, 0, 0]] {
        let address = IpAddr::from(Ipv4Addr::from(address));
        hostile.refused(&Request::Routes([address].into()), &[], &[]);
        hostile.refused(&Request::Announce(address), &[], &[]);
    }
    // Given out, but not in the table as this node's to speak for.
    let idle = IpAddr::from([192, 0, 2, 119]);
    hostile.refused(&Request::Announce(idle), &[], &[]);
}

fn nodes_and_configuration(hostile: &Hostile) {
    for (address, words) in [
        ([192, 0, 2, 1], "not reached the way"),
        ([192, 0, 2, 100], "it is a VIP"),
        ([192, 0, 2, 11], "an address of this one"),
        ([127, 0, 0, 1], "a loopback address"),
        ([224, 0, 0, 1], "a multicast address"),
    ] {
        let sentence = hostile.refused(&Request::Nodes, &node(address), &[]);
        assert!(sentence.contains(words), "{sentence}");
    }
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    hostile.refused(&Request::Reach([loopback].into()), &[], &[]);
    let config = Config {
        abi_version: ABI_VERSION,
        tunnel_port: 17_410_u16.to_be_bytes(),
        probe_port: 17_411_u16.to_be_bytes(),
        tunnel_source: abi_address([192, 0, 2, 1].into()),
        ..Config::default()
    };
    hostile.refused(&Request::Config, bytemuck::bytes_of(&config), &[]);
    let other_port = Config {
        tunnel_source: [0; 16],
        tunnel_port: [0, 22],
        ..config
    };
    hostile.refused(&Request::Config, bytemuck::bytes_of(&other_port), &[]);
}

fn sockets(hostile: &Hostile, split: &Split) {
    let here = |address: &str| -> OwnedFd {
        let listener = split
            .site()
            .netns
            .run(|| Ok(TcpListener::bind(address)?))
            .unwrap();
        listener.into()
    };
    let elsewhere: OwnedFd = split
        .topology
        .client
        .run(|| Ok(TcpListener::bind("127.0.0.1:0")?))
        .unwrap()
        .into();
    let connected: OwnedFd = split
        .site()
        .netns
        .run(|| {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            Ok(TcpStream::connect(listener.local_addr()?)?)
        })
        .unwrap()
        .into();
    let udp: OwnedFd = UdpSocket::bind("127.0.0.1:0").unwrap().into();
    let file: OwnedFd = std::fs::File::open("/etc/passwd").unwrap().into();
    let kmsg: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    for (socket, words) in [
        (here("0.0.0.0:0"), "bound to 0.0.0.0"),
        (here("192.0.2.11:0"), "bound to 192.0.2.11"),
        (here("127.0.0.1:10250"), "bound to port 10250"),
        (here("127.0.0.1:22"), "bound to port 22"),
        (elsewhere, "another network namespace"),
        (connected, "not listening"),
        (udp, "no TCP socket"),
        (file, "no socket"),
        (kmsg, "no socket"),
    ] {
        let good = here("127.0.0.1:0");
        let both = [good.as_fd(), socket.as_fd()];
        let sentence = hostile.refused(&Request::Listeners(0), &[], &both);
        assert!(sentence.contains(words), "{sentence}");
    }
}

/// Each of these ends its connection; the first one is on one that has been used.
fn malformed(hostile: Hostile, split: &Split) {
    let ended = |hostile: &Hostile, what: &str| {
        match hostile.reply() {
            Some(Reply::Refused(refusal)) => {
                assert_eq!(refusal.kind, RefusalKind::Malformed, "{what}: {refusal}");
            }
            // The agent had closed before it read everything.
            None => return,
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(hostile.reply(), None, "{what}: the connection goes on");
    };
    let head = |request: &Request| serde_json::to_vec(request).unwrap();
    wire::send(&hostile.0, &head(&Request::Nodes), &[0; 47], &[]).unwrap();
    ended(&hostile, "a table of another size");
    drop(hostile);

    let hostile = Hostile::greeted(split);
    let tail = vec![0; 36 * 4097];
    wire::send(&hostile.0, &head(&Request::Vips(1)), &tail, &[]).unwrap();
    ended(&hostile, "a table of too many VIPs");
    drop(hostile);

    let hostile = Hostile::greeted(split);
    let stray = UdpSocket::bind("127.0.0.1:0").unwrap();
    let request = head(&Request::LocalAddresses);
    wire::send(&hostile.0, &request, &[], &[stray.as_fd()]).unwrap();
    ended(&hostile, "a descriptor where none belongs");
    drop(hostile);

    let hostile = Hostile::greeted(split);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(250))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let many = vec![stray.as_fd(); 250];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&many)));
    let header = [b"FBAG".as_slice(), &[2, 0, 0, 0, 0, 0, 0, 0, 250, 0, 0, 0]].concat();
    sendmsg(
        &hostile.0,
        &[IoSlice::new(&header)],
        &mut ancillary,
        SendFlags::empty(),
    )
    .unwrap();
    ended(&hostile, "250 descriptors");
    drop(hostile);

    let huge = [b"FBAG".as_slice(), &[0xff; 12]].concat();
    for bytes in [huge.as_slice(), b"GET / HTTP/1.1\r\n\r\n", &[0; 4096]] {
        let mut hostile = Hostile::greeted(split);
        hostile.0.write_all(bytes).unwrap();
        ended(&hostile, "no frame");
    }
}

fn floods(split: &Split) {
    let hostile = Hostile::greeted(split);
    let foreign = Request::Announce([192, 0, 2, 1].into());
    let begun = Instant::now();
    let count = 3000;
    for _ in 0..count {
        hostile.refused(&foreign, &[], &[]);
    }
    println!("{count} refusals took {:?}", begun.elapsed());
    // Others knock all the time while it is connected, and are told so.
    for _ in 0..300 {
        let other = Hostile::knock(split);
        match other.reply() {
            Some(Reply::Refused(refusal)) => assert_eq!(refusal.kind, RefusalKind::Busy),
            other => panic!("{other:?}"),
        }
    }
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", split.agent_pid().unwrap()));
    let open = descriptors.unwrap().count();
    assert!(open < 60, "{open} descriptors are open in the agent");
    let resident = split.statuses_of_agent().unwrap();
    let line = resident.lines().find(|line| line.starts_with("VmRSS"));
    println!("{}; {open} descriptors", line.unwrap());
    let alive = hostile.ask(&Request::LocalAddresses, &[], &[]);
    assert!(matches!(alive, Reply::LocalAddresses(_)), "{alive:?}");
    let log = split.log("agent");
    let warnings = log.lines().filter(|line| line.contains("WARN")).count();
    assert!(warnings < 100, "{warnings} warnings: the log is flooded");
}

/// A user that may not connect is told so, and nothing else.
fn stranger(split: &Split) {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=12345",
            "--regid=12345",
            "--clear-groups",
            "--no-new-privs",
        ])
        .arg(program())
        .args([
            "run",
            "--config",
            "/etc",
            "--admin",
            "off",
            "--state-dir",
            "/tmp",
        ])
        .arg("--agent")
        .arg(split.socket());
    let done = split.site().netns.output(&mut command).unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(
        said.contains("user 12345 (group 12345) may not use this agent"),
        "{said}"
    );
}
