//! The agent and `forebay run` as two processes, with their capabilities named and nothing else.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use gateway_common::abi::{VipEntry, VipKey, vip_flag};
use gateway_tests::{
    client::{Load, Tally},
    eventually::eventually,
    fixture::HOST,
    leftovers::Ledger,
    rig::VIP,
    split::{AGENT_CAPABILITIES, AGENT_USER, RUN_USER, STARTING_CAPABILITIES, Split},
};

use gateway_user::agent::Remote;
use gateway_user::datapath::NodePrivileges;
use gateway_user::l4::diff::{Image, MapOp};
use gateway_user::l4::tables::VipHalf;
use gateway_user::l4::vips::MAX_VIPS;

/// Two processes that serve the quick start.
fn split() -> Split {
    let allow = RUN_USER.to_string();
    let mut split = Split::start(
        Ledger::open().unwrap(),
        &["--vips", "192.0.2.100-192.0.2.119", "--allow-uid", &allow],
    )
    .unwrap();
    split.start_run().unwrap();
    split.wait_ready().unwrap();
    split.wait_served().unwrap();
    split
}

fn load(overlap: usize) -> Load {
    Load {
        count: None,
        overlap,
        timeout: Duration::from_secs(20),
        ..Load::new(VIP, HOST, 0)
    }
}

/// Kills `forebay run` and starts it again. Connections that are made meanwhile are accepted by the kernel at once and
/// answered by the next one.
fn away(split: &mut Split) -> Duration {
    const HELD: usize = 20;
    split.kill_run();
    let killed = Instant::now();
    let connect = || {
        // Less than the second after which a lost SYN is sent again.
        let stream = TcpStream::connect_timeout(&VIP.into(), Duration::from_millis(900))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        write!(
            &stream,
            "GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n"
        )?;
        anyhow::Ok(stream)
    };
    let client = &split.topology.client;
    let streams = client
        .run(|| {
            let all = (0..HELD).map(|_| connect());
            all.collect::<anyhow::Result<Vec<_>>>()
        })
        .unwrap_or_else(|error| {
            let logs = ["run", "agent"].map(|name| split.log(name));
            panic!("{error:#}\n{}", logs.join("\n"))
        });
    split.start_run().unwrap();
    split.wait_ready().unwrap();
    let away = killed.elapsed();
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    away
}

/// Waits until the agents have seen so many connections of `forebay run`, and the newest has its sockets.
fn connected(split: &Split, times: usize) {
    eventually("the run's connection", Duration::from_secs(10), || {
        let log = split.log("agent");
        let seen = log.matches("`forebay run` is connected").count();
        let newest = log.rsplit("`forebay run` is connected").next();
        let given = newest.is_some_and(|log| log.contains("listening sockets are kept"));
        anyhow::ensure!(seen == times && given, "{seen} of {times}: {log}");
        Ok(())
    })
    .unwrap();
}

fn capabilities(status: &str) -> (Vec<u64>, &str, &str) {
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once('\t').unwrap().1
    };
    let sets = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"];
    let sets = sets.map(|set| u64::from_str_radix(field(set), 16).unwrap());
    (sets.to_vec(), field("NoNewPrivs:"), field("Uid:"))
}

#[test]
fn the_quick_start_needs_three_capabilities_here_and_none_there() {
    let split = split();
    let answer = split
        .client
        .shell(
            &format!(
                "curl -s -m 5 -o /dev/null -w '%{{http_code}}' -H 'Host: {HOST}' http://{VIP}/"
            ),
            &[],
        )
        .unwrap();
    assert_eq!(answer, "200");
    let [agent, run] = split.statuses().unwrap();
    let ids = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
    assert_eq!(
        capabilities(&agent),
        (
            vec![
                AGENT_CAPABILITIES,
                AGENT_CAPABILITIES,
                AGENT_CAPABILITIES,
                // The bounding set is the starter's; without new privileges it gives nothing.
                STARTING_CAPABILITIES,
                AGENT_CAPABILITIES,
            ],
            "1",
            ids(AGENT_USER).as_str()
        )
    );
    assert_eq!(
        capabilities(&run),
        (vec![0; 5], "1", ids(RUN_USER).as_str())
    );
}

#[test]
fn each_capability_that_is_missing_is_named() {
    let mut split = Split::start(Ledger::open().unwrap(), &["--vips", "192.0.2.100"]).unwrap();
    // It has left its pins; while it runs it has them alone.
    split.kill_agent();
    for (capabilities, words) in [
        (
            "-all,+bpf,+net_admin,+net_raw",
            "without CAP_PERFMON: add it",
        ),
        ("-all,+perfmon,+net_admin,+net_raw", "is not permitted"),
        ("-all,+bpf,+perfmon,+net_raw", "is not permitted"),
        ("-all", "is not permitted"),
    ] {
        let (code, said) = split.agent_with(capabilities).unwrap();
        assert_eq!(code, Some(1), "{capabilities}: {said}");
        assert!(said.contains(words), "{capabilities}: {said}");
    }
}

#[test]
fn a_run_that_is_killed_refuses_no_connection() {
    let mut split = split();
    let running = split.client.start(load(8)).unwrap();
    let served = |at_least: usize| {
        eventually("requests", Duration::from_secs(15), || {
            let finished = running.finished();
            (finished >= at_least)
                .then_some(())
                .ok_or_else(|| anyhow::anyhow!("{finished} of {at_least}"))
        })
        .unwrap();
    };
    served(200);
    let away = away(&mut split);
    let before = running.finished();
    served(before + 200);
    let tally = Tally::of(&running.stop().unwrap());
    println!("away {away:?}; under load: {tally:?}");
    assert_eq!((tally.refused, tally.timed_out), (0, 0), "{tally:?}");
    // Only what the killed process itself held at that moment.
    assert!(tally.reset + tally.cut_off <= 8, "{tally:?}");
    assert_eq!(
        tally.answers.keys().copied().collect::<Vec<_>>(),
        [200],
        "{tally:?}"
    );
    assert!(tally.other.is_empty(), "{tally:?}");
}

#[test]
fn an_agent_that_starts_anew_fails_no_request() {
    let mut split = split();
    let running = split.client.start(load(8)).unwrap();
    let served = |more: usize| {
        let wanted = running.finished() + more;
        eventually("requests", Duration::from_secs(15), || {
            let finished = running.finished();
            (finished >= wanted)
                .then_some(())
                .ok_or_else(|| anyhow::anyhow!("{finished} of {wanted}"))
        })
        .unwrap();
    };
    served(200);
    split.kill_agent();
    served(200);
    split.start_agent().unwrap();
    connected(&split, 2);
    // The tables follow the manifests by way of the new agent.
    let listener = "    - name: http\n";
    let other = "    - name: other\n      protocol: HTTP\n      port: 8080\n";
    split
        .fixture
        .replace("gateway.yaml", listener, &format!("{other}{listener}"))
        .unwrap();
    eventually("the second port", Duration::from_secs(10), || {
        let load = Load {
            timeout: Duration::from_secs(1),
            ..Load::new(SocketAddrV4::new(*VIP.ip(), 8080), HOST, 1)
        };
        let tally = Tally::of(&split.client.send(load)?);
        anyhow::ensure!(tally.answers.get(&200) == Some(&1), "{tally:?}");
        Ok(())
    })
    .unwrap();
    assert_eq!(split.terminate_agent().unwrap(), Some(0));
    served(200);
    split.start_agent().unwrap();
    connected(&split, 3);
    let tally = Tally::of(&running.stop().unwrap());
    println!("{tally:?}");
    let answered: usize = tally.answers.values().sum();
    let expected = Tally {
        answers: [(200, answered)].into(),
        ..Tally::default()
    };
    assert_eq!(tally, expected);
    // The newest agent was given the listening sockets, though nothing changed since it came.
    away(&mut split);
}

/// UDP ports below 1024 are opened by the agent, if it was given the right to do so, and for VIPs of its own only.
#[test]
fn low_udp_ports_take_one_more_capability_of_the_agent() {
    let mut split = Split::start(Ledger::open().unwrap(), &["--vips", "192.0.2.100"]).unwrap();
    let open = |split: &Split, vip: &str| {
        let mut remote = Remote::connect(&split.socket()).unwrap();
        remote.open_udp(vip.parse().unwrap())
    };
    let refused = open(&split, "192.0.2.100:53").unwrap_err().to_string();
    assert!(
        refused.contains("need CAP_NET_BIND_SERVICE: give it to `forebay agent`"),
        "{refused}"
    );
    open(&split, "192.0.2.100:5353").unwrap();
    split.kill_agent();
    split.capabilities.push_str(",+net_bind_service");
    split.start_agent().unwrap();
    let socket = std::net::UdpSocket::from(open(&split, "192.0.2.100:53").unwrap());
    assert_eq!(
        socket.local_addr().unwrap(),
        "192.0.2.100:53".parse().unwrap()
    );
    let refused = open(&split, "192.0.2.101:53").unwrap_err().to_string();
    assert!(
        refused.contains("is not an address that the agent gives out"),
        "{refused}"
    );
}

/// What a table costs on its way through the socket, printed; the bound is ten times what a debug build takes.
#[test]
fn a_full_vip_table_goes_through_the_socket_in_milliseconds() {
    let split = Split::start(Ledger::open().unwrap(), &["--vips", "10.200.0.0/16"]).unwrap();
    let mut remote = Remote::connect(&split.socket()).unwrap();
    let slots = (0..MAX_VIPS as u32).map(|slot| {
        let [_, _, high, low] = slot.to_be_bytes();
        let entry = VipEntry {
            key: VipKey::v4([10, 200, high + 1, low], [0, 80], 6),
            flags: vip_flag::USED,
            group: 0,
            number: slot as u16,
            ..VipEntry::default()
        };
        (slot, entry)
    });
    let table = MapOp::Vips(VipHalf {
        seed: 1,
        slots: slots.collect(),
    });
    let nodes = MapOp::Nodes(Image::default().nodes);
    for (what, op) in [("4,096 VIPs", &table), ("a node table", &nodes)] {
        let mut took: Vec<Duration> = (0..9)
            .map(|_| {
                let rested = Instant::now();
                let mut trips = 0_u32;
                // The half that was live rests 100 ms: that is not the socket's time.
                while rested.elapsed() < Duration::from_millis(110) {
                    remote.local_addresses().unwrap();
                    trips += 1;
                }
                assert!(trips > 10);
                let begun = Instant::now();
                remote.apply(op).unwrap();
                begun.elapsed()
            })
            .collect();
        took.sort();
        println!(
            "{what}: median {:?}, {:?} to {:?}",
            took[4], took[0], took[8]
        );
        assert!(took[4] < Duration::from_millis(100), "{took:?}");
    }
    let begun = Instant::now();
    for _ in 0..100 {
        remote.counters();
    }
    println!("a request without a table: {:?}", begun.elapsed() / 100);
}
