//! Three real nodes that watch each other: one vanishes, hangs, is cut off, is lied about, or drains.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use gateway_common::abi::Counter;
use gateway_common::probe::{Probe, REQUEST};
use gateway_tests::backend::Behaviour;
use gateway_tests::client::{Load, Running, Tally};
use gateway_tests::daemon::Daemon;
use gateway_tests::eventually::{eventually, rest, throughout};
use gateway_tests::fixture::{HOST, ReplicaState};
use gateway_tests::leftovers::Ledger;
use gateway_tests::maps;
use gateway_tests::netns::Netns;
use gateway_tests::packet::UdpPacket;
use gateway_tests::rig::{Options, Rig, VIP};
use gateway_tests::stalls::Stalls;
use gateway_tests::topology::{CLIENT, UPLINK};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

/// Longest silence without suspicion: `--suspect-after`.
const SUSPECTED: Duration = Duration::from_millis(300);
/// What two cores that have much to do may add to that, and the time between two requests by which it is seen; other
/// programs may add their own ([`Stalls`]).
const SLACK: Duration = Duration::from_millis(400);
/// Patience for what takes the nodes a few seconds.
const SOON: Duration = Duration::from_secs(30);

fn start(drain_timeout: Duration) -> Rig {
    let options = Options {
        drain_timeout,
        ..Options::default()
    };
    let rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    rig.deliver_to(0).unwrap();
    calm(&rig, &[0, 1, 2]).unwrap();
    rig
}

/// Waits until these nodes agree on the list, answer each other and have no row in transition.
fn calm(rig: &Rig, nodes: &[usize]) -> Result<()> {
    eventually("nodes that are at rest", SOON, || {
        for node in nodes {
            let daemon = &rig.daemons[*node];
            let rows = maps::rows_in_transition(daemon.bpffs())?;
            ensure!(rows == 0, "{rows} rows of {}", daemon.site().name);
            for other in nodes.iter().filter(|other| *other != node) {
                let peer = daemon.node_status(&rig.topology.nodes[*other].name)?;
                let probes = &peer["probes"];
                ensure!(
                    probes["standing"] == "answering"
                        && probes["same_membership"] == true
                        && peer["dead"] == false,
                    "{} says {peer}",
                    daemon.site().name
                );
            }
        }
        Ok(())
    })
}

/// Requests to the VIP that are answered after `hold`; from the kernel's ports, or from those given.
fn held(rig: &Rig, count: usize, hold: Duration, ports: Vec<u16>) -> Result<Running> {
    let before = rig.backends.count();
    rig.backends.set_all(Behaviour { hold, fail: false });
    let running = rig.client.start(Load {
        overlap: count,
        path: "/held/".into(),
        timeout: hold + Duration::from_secs(20),
        ports,
        ..Load::new(VIP, HOST, count)
    })?;
    eventually("the held requests at the backends", hold, || {
        let seen = rig.backends.count() - before;
        ensure!(seen >= count, "{seen} of {count}");
        Ok(())
    })?;
    rig.backends.set_all(Behaviour::default());
    Ok(running)
}

/// One request from a port; an error if it is not answered within `patience`.
fn request(client: &Netns, port: u16, path: &str, patience: Duration) -> std::io::Result<()> {
    let work = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddrV4::new(CLIENT, port).into())?;
        socket.connect_timeout(&SocketAddr::V4(VIP).into(), patience)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(patience))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 200") {
            Ok(())
        } else {
            Err(std::io::Error::other(answer))
        }
    };
    client.run(|| Ok(work())).expect("the client's namespace")
}

/// Opens connections to a node that does not answer any more, each from a new port, until one is answered and for two
/// seconds after that. Returns when the first one that was answered had been sent, since `gone`.
fn outage(rig: &mut Rig, index: usize, gone: Instant, stalls: &Stalls) -> Result<Duration> {
    let ports = rig.ports(index, 2_000)?;
    let client = rig.topology.client.clone();
    let mut first = None;
    for port in ports {
        let (begun, sent) = (Instant::now(), gone.elapsed());
        match request(&client, port, "/new/", Duration::from_millis(100)) {
            Ok(()) => {
                let first = *first.get_or_insert(sent);
                if sent > first + Duration::from_secs(2) {
                    return Ok(first);
                }
                // An answer may take no more than that.
                rest(Duration::from_millis(2));
            }
            Err(error) => {
                ensure!(
                    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock),
                    "{sent:?} after it was gone: {error}"
                );
                // A hundred milliseconds are no time on a machine that stands still for some of them.
                let excused = stalls.allowance(begun) > Duration::ZERO
                    || sent < SUSPECTED + SLACK + stalls.allowance(gone);
                ensure!(
                    first.is_none() || excused,
                    "unanswered {sent:?} after it was gone, although the first was answered: {first:?}"
                );
                ensure!(sent < Duration::from_secs(10), "no connection is answered");
            }
        }
    }
    Err(anyhow!("the ports do not last for two seconds"))
}

#[test]
fn a_vanished_node_is_suspected_in_time_and_dead_after_three_seconds() {
    let mut rig = start(Duration::from_secs(60));
    let long = held(&rig, 60, Duration::from_secs(8), Vec::new()).unwrap();
    let steering = rig.steering();
    let stalls = Stalls::watch().unwrap();
    let gone = Instant::now();
    rig.daemons[1].kill().unwrap();
    rig.topology.nodes[1]
        .netns
        .ip(&format!("link set {UPLINK} down"))
        .unwrap();
    let unanswered = outage(&mut rig, 1, gone, &stalls).unwrap();
    println!("new connections were not answered for {unanswered:?}");
    let bound = SUSPECTED + SLACK + stalls.allowance(gone);
    assert!(unanswered <= bound, "{unanswered:?} > {bound:?}");
    for node in [0, 2] {
        let daemon = &rig.daemons[node];
        let dead = eventually("its death", SOON, || {
            let peer = daemon.node_status("node2")?;
            ensure!(peer["dead"] == true && peer["rows"] == 0, "{peer}");
            Ok(gone.elapsed())
        });
        let dead = dead.unwrap();
        println!("dead on {} after {dead:?}", daemon.site().name);
        // Counted from its last answer, which was up to an interval before.
        assert!(dead > Duration::from_millis(2_900), "{dead:?}");
    }
    assert!(
        gone.elapsed() < Duration::from_secs(6) + stalls.allowance(gone),
        "{:?}",
        gone.elapsed()
    );
    calm(&rig, &[0, 2]).unwrap();
    let finished = long.join().unwrap();
    let lived: Vec<_> = (finished.iter())
        .filter(|request| Rig::owner_of(&steering, request) != "node2")
        .cloned()
        .collect();
    let tally = Tally::of(&lived);
    assert_eq!(
        tally.status(200),
        lived.len(),
        "others' connections: {tally}"
    );
    assert!(lived.len() < finished.len(), "the dead node had some");
}

#[test]
fn a_hanging_proxy_gets_no_new_connection_and_loses_none() {
    let mut rig = start(Duration::from_secs(60));
    let ports = rig.ports(1, 20).unwrap();
    let suspicions = |rig: &Rig| {
        ["node1", "node3"].map(|other| {
            let peer = rig.daemons[1].node_status(other).unwrap();
            peer["probes"]["suspected"].clone()
        })
    };
    let before = suspicions(&rig);
    let on_it = held(&rig, 20, Duration::from_secs(6), ports).unwrap();
    // Now: to find them takes a while.
    let tries = rig.ports(1, 100).unwrap();
    let stalls = Stalls::watch().unwrap();
    let gone = Instant::now();
    rig.daemons[1].pause().unwrap();
    // Who is accepted by the kernel of the hanging node waits; who comes after 300 ms goes elsewhere.
    let client = rig.topology.client.clone();
    let patience = Duration::from_secs(2);
    let mut asked = tries.into_iter();
    let unanswered = eventually("others in its place", patience, || {
        let port = asked.next().context("no port is left")?;
        let sent = gone.elapsed();
        request(&client, port, "/elsewhere/", Duration::from_millis(100))?;
        Ok(sent)
    })
    .unwrap();
    println!("a hung proxy was noticed after {unanswered:?}");
    let bound = SUSPECTED + SLACK + stalls.allowance(gone);
    assert!(unanswered <= bound, "{unanswered:?} > {bound:?}");
    // Connections that the heirs took go on after the node is back.
    let ports = rig.ports(1, 20).unwrap();
    let at_heirs = held(&rig, 20, Duration::from_secs(5), ports).unwrap();
    let back = rig.topology.nodes[1].back;
    let seen = rig.backends.seen();
    let its_own: BTreeSet<_> = (seen.iter())
        .filter(|seen| seen.peer == back && seen.path.starts_with("/elsewhere/"))
        .map(|seen| seen.path.clone())
        .collect();
    assert_eq!(its_own, BTreeSet::new(), "new connections on the hung node");
    for node in [0, 2] {
        eventually("an episode of the hung node", SOON, || {
            let peer = rig.daemons[node].node_status("node2")?;
            let probes = &peer["probes"];
            // Its kernel lives.
            let seen = probes["proxy_alive"] == false && probes["standing"] == "answering";
            ensure!(seen && peer["episode"] == true, "{peer}");
            ensure!(peer["dead"] == false, "{peer}");
            Ok(())
        })
        .unwrap();
    }
    rig.daemons[1].resume().unwrap();
    for (what, load) in [("on it", on_it), ("at its heirs", at_heirs)] {
        let tally = Tally::of(&load.join().unwrap());
        assert_eq!(tally.status(200), 20, "connections {what}: {tally}");
    }
    // It did not take its own sleep for the others' silence.
    assert_eq!(suspicions(&rig), before);
    calm(&rig, &[0, 1, 2]).unwrap();
    let port = rig.ports(1, 1).unwrap()[0];
    rig.backends.forget_all();
    request(&client, port, "/again/", patience).unwrap();
    let seen = rig.backends.seen();
    assert!(seen.iter().any(|seen| seen.peer == back), "{seen:?}");
}

#[test]
fn a_partition_of_one_node_resets_no_flow_and_empties_no_table() {
    let mut rig = start(Duration::from_secs(60));
    let long = held(&rig, 90, Duration::from_secs(9), Vec::new()).unwrap();
    let switch = rig.topology.switch.clone();
    let stalls = Stalls::watch().unwrap();
    let cut = Instant::now();
    switch.ip("link set node3 nomaster").unwrap();
    let unanswered = outage(&mut rig, 2, cut, &stalls).unwrap();
    let bound = SUSPECTED + SLACK + stalls.allowance(cut);
    assert!(unanswered <= bound, "{unanswered:?} > {bound:?}");
    let ports = rig.ports(2, 20).unwrap();
    let meanwhile = held(&rig, 20, Duration::from_secs(7), ports).unwrap();
    for node in [0, 1] {
        eventually("the death of the node that is cut off", SOON, || {
            let peer = rig.daemons[node].node_status("node3")?;
            ensure!(peer["dead"] == true, "{peer}");
            Ok(())
        })
        .unwrap();
    }
    // The lone node holds on to the others.
    throughout("the lone node's table", Duration::from_secs(1), || {
        for other in ["node1", "node2"] {
            let peer = rig.daemons[2].node_status(other)?;
            ensure!(peer["probes"]["standing"] != "answering", "{peer}");
            ensure!(peer["dead"] == false && peer["rows"] != 0, "{peer}");
        }
        Ok(())
    })
    .unwrap();
    assert!(
        cut.elapsed() < Duration::from_secs(8) + stalls.allowance(cut),
        "{:?}",
        cut.elapsed()
    );
    switch.ip("link set node3 master br0").unwrap();
    calm_but_for_rows(&rig).unwrap();
    println!("healed after {:?}", cut.elapsed());
    for (what, load, count) in [("before", long, 90), ("meanwhile", meanwhile, 20)] {
        let tally = Tally::of(&load.join().unwrap());
        assert_eq!(tally.status(200), count, "opened {what}: {tally}");
    }
    calm(&rig, &[0, 1, 2]).unwrap();
}

/// Waits until all nodes own rows everywhere again.
fn calm_but_for_rows(rig: &Rig) -> Result<()> {
    eventually("all nodes in all tables", SOON, || {
        for daemon in &rig.daemons {
            for site in &rig.topology.nodes {
                let node = daemon.node_status(&site.name)?;
                ensure!(node["rows"] != 0 && node["dead"] == false, "{node}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_storm_of_forged_probes_changes_nothing() {
    let rig = start(Duration::from_secs(60));
    let suspicions = || -> Vec<String> {
        let of = |daemon: &Daemon| {
            let status = daemon.status().unwrap();
            let nodes = status["datapath"]["nodes"].as_array().unwrap().clone();
            let probes = |node: &Value| node["probes"]["suspected"].to_string();
            nodes.iter().map(probes).collect::<String>()
        };
        rig.daemons.iter().map(of).collect()
    };
    let suspected = suspicions();
    let before = maps::counter(rig.daemons[0].bpffs(), Counter::ProbeRefused).unwrap();
    let load = rig.client.start(Load {
        count: None,
        overlap: 4,
        ..Load::new(VIP, HOST, 0)
    });
    let load = load.unwrap();
    let node = rig.topology.nodes[0].address;
    let peer = rig.topology.nodes[1].address;
    let sent = rig
        .topology
        .client
        .run(|| storm(node, &[CLIENT, peer]))
        .unwrap();
    let tally = Tally::of(&load.stop().unwrap());
    assert_eq!(tally.broken(), 0, "{tally}");
    assert!(tally.status(200) > 10, "{tally}");
    let refused = maps::counter(rig.daemons[0].bpffs(), Counter::ProbeRefused).unwrap() - before;
    println!("{sent} forged probes, {refused} refused; requests: {tally}");
    assert_eq!(refused, sent);
    for daemon in &rig.daemons {
        assert_eq!(maps::rows_in_transition(daemon.bpffs()).unwrap(), 0);
        for site in &rig.topology.nodes {
            let peer = daemon.node_status(&site.name).unwrap();
            assert_eq!(peer["dead"], false, "{peer}");
            let same = &peer["probes"]["same_membership"];
            assert!(*same == true || peer["probes"].is_null(), "{peer}");
        }
    }
    assert_eq!(suspicions(), suspected);
}

/// Well-formed probes under a wrong key, as fast as they can be sent, from each of these addresses.
fn storm(to: Ipv4Addr, from: &[Ipv4Addr]) -> Result<u64> {
    let socket = Socket::new(
        Domain::IPV4,
        Type::RAW,
        Some(Protocol::from(libc::IPPROTO_RAW)),
    )?;
    let destination = SocketAddr::from((to, 0)).into();
    let mut sent = 0;
    for sequence in 0..20_000 {
        let probe = Probe {
            kind: REQUEST,
            sequence,
            ..Probe::default()
        };
        let source = from[usize::try_from(sequence)? % from.len()];
        let packet = UdpPacket {
            to_mac: [0; 6],
            from_mac: [0; 6],
            source: source.octets(),
            destination: to.octets(),
            source_port: 40_000,
            destination_port: 17_411,
            checksum: [0; 2],
            ttl: 64,
            payload: bytemuck::bytes_of(&probe.sign([6, 6])).to_vec(),
        };
        match socket.send_to(&packet.build()[14..], &destination) {
            Ok(_) => sent += 1,
            // A full queue: the storm is as strong as it can be.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => thread::yield_now(),
            Err(error) => return Err(error).context("sending a forged probe"),
        }
    }
    Ok(sent)
}

#[test]
fn a_drain_ends_with_the_last_connection_not_with_its_timeout() {
    let mut rig = start(Duration::from_secs(120));
    let ports = rig.ports(2, 20).unwrap();
    let long = held(&rig, 20, Duration::from_secs(5), ports).unwrap();
    let began = Instant::now();
    rig.fixture
        .set_replicas(|replicas| replicas[2].state = ReplicaState::Draining)
        .unwrap();
    for node in [0, 1] {
        let bpffs = rig.daemons[node].bpffs();
        eventually("rows in transition", SOON, || {
            ensure!(maps::rows_in_transition(bpffs)? > 0, "none yet");
            Ok(())
        })
        .unwrap();
    }
    // As long as the node holds connections its rows stay in transition.
    while long.finished() == 0 {
        let rows = maps::rows_in_transition(rig.daemons[0].bpffs()).unwrap();
        assert!(rows > 0 || long.finished() > 0, "ended early");
        thread::yield_now();
    }
    let tally = Tally::of(&long.join().unwrap());
    assert_eq!(tally.status(200), 20, "{tally}");
    let last = Instant::now();
    for node in [0, 1] {
        let daemon = &rig.daemons[node];
        eventually("the end of the transition", SOON, || {
            let rows = maps::rows_in_transition(daemon.bpffs())?;
            ensure!(rows == 0, "{rows} rows");
            Ok(())
        })
        .unwrap();
        let leaving = daemon.node_status("node3").unwrap();
        assert_eq!(leaving["state"], "Draining", "it is still listed");
    }
    println!(
        "the transition ended {:?} after the last connection, {:?} after the drain began",
        last.elapsed(),
        began.elapsed()
    );
    assert!(
        last.elapsed() < Duration::from_secs(8),
        "{:?}",
        last.elapsed()
    );
}
