//! The quick start between three machines, each with a kernel and cards of its own: run by `cargo xtask vm quickstart`, which
//! tells each of them who it is.
//!
//! ```text
//! on-link    client ──┬── node1        off-link    node1 ────────── client ────────── node2
//!                     └── node2              192.0.2.0/24  (router)  203.0.113.0/24
//! ```
//!
//! The backends are on the client's machine too. The client asks each node over the network how it is, and tells it when it
//! has seen enough: nothing else connects the three.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use gateway_tests::backend::Backends;
use gateway_tests::client::{Client, Finished, Load, Outcome, Tally};
use gateway_tests::daemon::{Daemon, Settings};
use gateway_tests::eventually::eventually;
use gateway_tests::fixture::{Fixture, HOST, Replica, ReplicaState};
use gateway_tests::leftovers::Ledger;
use gateway_tests::machine::card;
use gateway_tests::netns::Netns;
use gateway_tests::rig::{VIP, agrees};
use gateway_tests::steering::Steering;
use gateway_tests::topology::{BACKENDS_V1, BACKENDS_V2, CLIENT, Site, UPLINK};
use serde_json::Value;

/// Where a node is asked how it is.
const ASKED: u16 = 7_000;
/// Patience for a machine: emulated, on processors that others keep busy, it takes a minute to load the programs.
const PATIENCE: Duration = Duration::from_secs(400);
/// The key under which all three know who owns a connection.
const SEED: [u8; 16] = *b"three machines..";
const NAMES: [&str; 2] = ["node1", "node2"];
/// The client's address as a router toward the second node, and that node's.
const BEYOND: [Ipv4Addr; 2] = [
    Ipv4Addr::new(203, 0, 113, 1),
    Ipv4Addr::new(203, 0, 113, 12),
];

/// New connections after the ten of the quick start: as many for each node.
const MORE: usize = 150;
/// Of the ten those of each node: each splits by itself what it serves, so that even numbers make five and five.
const TEN: [usize; 2] = [6, 4];
/// The least that a client sends on a connection of one request: SYN, ACK, the request, FIN.
const LEAST: u64 = 4;

/// How packets get from one node to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    OnLink,
    OffLink,
}

impl Way {
    fn told() -> Self {
        match &*told("FOREBAY_WIRE_PATH") {
            "on-link" => Self::OnLink,
            "off-link" => Self::OffLink,
            other => panic!("FOREBAY_WIRE_PATH={other}: give on-link or off-link"),
        }
    }

    fn nodes(self) -> [Ipv4Addr; 2] {
        let near = |last| Ipv4Addr::new(192, 0, 2, last);
        [
            near(11),
            match self {
                Self::OnLink => near(12),
                Self::OffLink => BEYOND[1],
            },
        ]
    }

    /// Where a node sends what is not on its link: the backends are there.
    fn router(self, index: usize) -> Ipv4Addr {
        if self == Self::OffLink && index == 1 {
            BEYOND[0]
        } else {
            CLIENT
        }
    }

    /// What each node says of the other when nothing is left to be found out.
    fn forward(self) -> (&'static str, &'static str) {
        match self {
            Self::OnLink => ("l2", "proven"),
            Self::OffLink => ("udp", "not on-link"),
        }
    }

    fn replicas(self) -> Vec<Replica> {
        let replica = |(name, address): (&str, Ipv4Addr)| Replica {
            name: name.to_owned(),
            address,
            state: ReplicaState::Ready,
        };
        NAMES.into_iter().zip(self.nodes()).map(replica).collect()
    }
}

fn told(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: `cargo xtask vm quickstart` runs this"))
}

// ---- a node ----

struct Served {
    daemon: Daemon,
    address: Ipv4Addr,
    _ledger: Ledger,
}

fn serve(way: Way, index: usize) -> Result<Served> {
    let ledger = Ledger::open()?;
    let directory = PathBuf::from("/run").join(ledger.run());
    ledger.directory(&directory)?;
    let netns = Netns::of_machine(&ledger)?;
    let address = way.nodes()[index];
    netns.ip(&format!("link set {UPLINK} up"))?;
    netns.address(UPLINK, address, 24)?;
    netns.ip(&format!("route add default via {}", way.router(index)))?;
    let fixture = Fixture::with_seed(&directory.join("config"), way.replicas(), SEED)?;
    let mac = std::fs::read_to_string(format!("/sys/class/net/{UPLINK}/address"))?;
    let site = Site {
        name: NAMES[index].to_owned(),
        netns,
        address,
        back: address,
        mac: mac.trim().to_owned(),
    };
    let settings = Settings {
        config: fixture.directory().to_path_buf(),
        directory,
        forward: "auto".to_owned(),
        drain_timeout: Duration::from_secs(10),
        workers: None,
        words: &[],
        under: &[],
    };
    let daemon = Daemon::start(&ledger, &site, &settings)?;
    Ok(Served {
        daemon,
        address,
        _ledger: ledger,
    })
}

impl Served {
    fn wait_ready(&self) -> Result<()> {
        let ready = eventually("the daemon ready", PATIENCE, || {
            match self.daemon.readiness()? {
                (200, _) => Ok(()),
                (status, why) => Err(anyhow!("{status} {}", why.trim())),
            }
        });
        ready.map_err(|error| anyhow!("{error:#}\n{}", self.daemon.log_tail()))
    }

    /// Answers the client until it has seen enough.
    fn answer(&self) -> Result<()> {
        let listener = TcpListener::bind((self.address, ASKED))?;
        listener.set_nonblocking(true)?;
        loop {
            let (mut stream, _) = eventually("the client's next word", PATIENCE, || {
                listener.accept().map_err(Into::into)
            })?;
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut word = String::new();
            BufReader::new(&stream).read_line(&mut word)?;
            let answer = match word.trim() {
                "status" => self.daemon.status()?,
                "log" => Value::from(self.daemon.log_tail()),
                _ => Value::Null,
            };
            writeln!(stream, "{answer}")?;
            if word.trim() == "end" {
                return Ok(());
            }
        }
    }
}

#[test]
#[ignore = "needs three machines: cargo xtask vm quickstart"]
fn a_node_serves_until_the_client_has_seen_enough() {
    let (way, name) = (Way::told(), told("FOREBAY_WIRE_NODE"));
    let index = NAMES.iter().position(|known| *known == name).unwrap();
    let started = Instant::now();
    let mut served = serve(way, index).unwrap();
    served.wait_ready().unwrap();
    println!(
        "fact: seconds until ready = {}",
        started.elapsed().as_secs()
    );
    served.answer().unwrap();
    let status = served.daemon.status().unwrap();
    assert_eq!(mode(&status), "native", "{status}");
    println!("fact: {UPLINK} = {}", mode(&status));
    let ended = served.daemon.terminate(PATIENCE).unwrap();
    assert!(ended.success(), "{ended}\n{}", served.daemon.log_tail());
}

// ---- the client ----

/// Asks a node for something; one connection for each word.
fn ask(node: Ipv4Addr, word: &str) -> Result<Value> {
    let at = SocketAddr::from((node, ASKED));
    let bound = Duration::from_secs(30);
    let mut stream = TcpStream::connect_timeout(&at, bound)?;
    stream.set_read_timeout(Some(bound))?;
    writeln!(stream, "{word}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("{node} answers {line:?}"))
}

fn mode(status: &Value) -> String {
    let mode = &status["datapath"]["interfaces"][0]["mode"];
    mode.as_str().unwrap_or("none").to_owned()
}

fn count(status: &Value, name: &str) -> Result<u64> {
    let count = status["datapath"]["counters"][name].as_u64();
    count.with_context(|| format!("no counter {name}"))
}

/// The quick start's reader, with the backends beside it.
struct Reader {
    way: Way,
    netns: Netns,
    backends: Backends,
    steering: Steering,
    client: Client,
    _ledger: Ledger,
}

impl Reader {
    fn new(way: Way) -> Result<Self> {
        let ledger = Ledger::open()?;
        let netns = Netns::of_machine(&ledger)?;
        let near = card(1)?;
        netns.ip(&format!("link set {near} up"))?;
        netns.address(&near, CLIENT, 24)?;
        if way == Way::OffLink {
            let far = card(2)?;
            netns.ip(&format!("link set {far} up"))?;
            netns.address(&far, BEYOND[0], 24)?;
            netns.sysctl("net/ipv4/ip_forward", "1")?;
            // All packets come to the first node, as to one that a router has chosen.
            let first = way.nodes()[0];
            netns.ip(&format!("route add {}/32 via {first}", VIP.ip()))?;
        }
        let texts = [
            (&BACKENDS_V1[..], "hello from backend v1"),
            (&BACKENDS_V2[..], "hello from backend v2"),
        ];
        let mut backends = Vec::new();
        for (addresses, text) in texts {
            for address in addresses {
                netns.address("lo", *address, 32)?;
                backends.push((*address, text));
            }
        }
        Ok(Self {
            way,
            backends: Backends::start(&netns, &backends)?,
            steering: Steering::new(SEED, NAMES.map(|name| (name, true))),
            client: Client::new(&netns, CLIENT),
            netns,
            _ledger: ledger,
        })
    }

    /// What both nodes say of themselves.
    fn statuses(&self) -> Result<[Value; 2]> {
        let [one, two] = self.way.nodes();
        Ok([ask(one, "status")?, ask(two, "status")?])
    }

    /// Waits until both nodes know of each other all that there is to know.
    fn wait_agreed(&self) -> Result<[Value; 2]> {
        let shares = self.steering.shares();
        eventually("two nodes that agree", PATIENCE, || {
            let statuses = self.statuses()?;
            for (status, other) in statuses.iter().zip([NAMES[1], NAMES[0]]) {
                agrees(status, &shares)?;
                let datapath = &status["datapath"];
                ensure!(datapath["rows_in_transition"] == 0, "rows in transition");
                let nodes = datapath["nodes"].as_array().into_iter().flatten();
                let other = nodes.into_iter().find(|node| node["name"] == other);
                let other = other.context("the other node is not listed")?;
                let (forward, reason) = self.way.forward();
                let is_so = other["forward"] == forward && other["forward_reason"] == reason;
                ensure!(is_so, "{other} is not {forward} ({reason})");
            }
            Ok(statuses)
        })
    }

    /// The node that the client's packets come to first.
    fn entry(&self, statuses: &[Value; 2]) -> Result<usize> {
        if self.way == Way::OffLink {
            return Ok(0);
        }
        let vip = VIP.ip().to_string();
        let speaks = |status: &&Value| {
            let announcing = status["datapath"]["announcing"].as_array();
            announcing.is_some_and(|all| all.iter().any(|address| *address == *vip))
        };
        let speakers: Vec<usize> = (0..2).filter(|i| speaks(&&statuses[*i])).collect();
        ensure!(speakers.len() == 1, "{speakers:?} speak for {vip}, from 0");
        Ok(speakers[0])
    }

    /// Sends requests of which so many belong to each node, from ports that were not used before.
    fn send(&self, used: &mut [usize; 2], of_each: [usize; 2], overlap: usize) -> Result<Seen> {
        let mut ports = Vec::new();
        for (i, name) in NAMES.into_iter().enumerate() {
            let owned = self.steering.ports_of(name, CLIENT, VIP);
            let fresh = owned.get(used[i]..used[i] + of_each[i]);
            ports.extend(fresh.context("too few ports")?);
            used[i] += of_each[i];
        }
        let finished = self.client.send(Load {
            ports: ports.clone(),
            overlap,
            timeout: Duration::from_secs(60),
            ..Load::new(VIP, HOST, ports.len())
        })?;
        let tally = Tally::of(&finished);
        ensure!(
            tally.status(200) == ports.len() && tally.broken() == 0,
            "of {} requests: {tally}",
            ports.len()
        );
        let of = |version: &str| {
            let text = format!("hello from backend {version}\n");
            finished.iter().filter(|one| body(one) == text).count()
        };
        Ok(Seen {
            v1: of("v1"),
            v2: of("v2"),
            tally,
        })
    }

    /// Who asked the backends, and for whom.
    fn check_backends(&self, of_each: [usize; 2]) -> Result<()> {
        let seen = self.backends.seen();
        let client = CLIENT.to_string();
        let kept = |for_whom: &Option<String>| for_whom.as_deref() == Some(&*client);
        let lost = seen.iter().find(|one| !kept(&one.forwarded_for));
        ensure!(lost.is_none(), "the client's address is lost: {lost:?}");
        let by = |node: Ipv4Addr| {
            let peers = seen.iter().filter(|one| one.peer == IpAddr::from(node));
            peers.count()
        };
        let served = self.way.nodes().map(by);
        ensure!(
            served == of_each && seen.len() == of_each.iter().sum::<usize>(),
            "nodes served {served:?} of {} requests, by the hash it is {of_each:?}",
            seen.len()
        );
        println!("fact: served by node1, node2, as by the hash = {served:?}");
        Ok(())
    }

    /// Whether the client's machine found the VIP at the node that speaks for it.
    fn check_neighbour(&self, entry: usize) -> Result<()> {
        let mac = |address: Ipv4Addr| -> Result<String> {
            let words = format!("-n {} neigh show to {address}", self.netns.name());
            let text = gateway_tests::netns::ip(&words)?;
            let mut words = text.split_whitespace().skip_while(|word| *word != "lladdr");
            let mac = words.nth(1);
            let mac = mac.with_context(|| format!("{address} has no MAC: {text:?}"))?;
            Ok(mac.to_owned())
        };
        let (vip, node) = (mac(*VIP.ip())?, mac(self.way.nodes()[entry])?);
        ensure!(vip == node, "the VIP is at {vip}, its speaker at {node}");
        Ok(())
    }

    /// Whether the packets of connections that belong to the other node went from the one that they came to, in the one
    /// way that there is, and all arrived.
    fn check_counters(&self, entry: usize, owned: usize) -> Result<()> {
        let least = LEAST * owned as u64;
        eventually("the nodes' counters", Duration::from_secs(60), || {
            let statuses = self.statuses()?;
            let mut counts = [[0; 3]; 2];
            for (status, counts) in statuses.iter().zip(&mut counts) {
                ensure!(mode(status) == "native", "{}", status["datapath"]);
                for (name, place) in FORWARDED.into_iter().zip(counts) {
                    *place = count(status, name)?;
                }
            }
            let [first, other] = [counts[entry], counts[1 - entry]];
            let held = match self.way {
                Way::OnLink => first[0] >= least && first[1..] == [0, 0] && other == [0; 3],
                Way::OffLink => {
                    first[1] >= least && first == [0, first[1], 0] && other == [0, 0, first[1]]
                }
            };
            ensure!(
                held,
                "{FORWARDED:?} of {} are {first:?}, of {} {other:?}, with {owned} connections that belong to the other",
                NAMES[entry],
                NAMES[1 - entry]
            );
            println!("fact: {FORWARDED:?} of {} = {first:?}", NAMES[entry]);
            println!("fact: {FORWARDED:?} of {} = {other:?}", NAMES[1 - entry]);
            Ok(())
        })
    }

    fn read(&self) -> Result<()> {
        let entry = self.entry(&self.wait_agreed()?)?;
        println!("fact: packets come to = {}", NAMES[entry]);
        let mut used = [0; 2];
        let ten = self.send(&mut used, TEN, 1)?;
        println!("fact: ten requests = {} v1, {} v2", ten.v1, ten.v2);
        ensure!([ten.v1, ten.v2] == [5, 5], "not five and five");
        let started = Instant::now();
        let more = self.send(&mut used, [MORE; 2], 4)?;
        println!(
            "fact: {} more = {} v1, {} v2, {}, {} s",
            2 * MORE,
            more.v1,
            more.v2,
            more.tally,
            started.elapsed().as_secs()
        );
        // Each node splits what it serves by itself: one more of one version for each is half and half, where a connection
        // came to another node than its row's, as a node stood still.
        let apart = more.v1.abs_diff(more.v2);
        ensure!(
            more.v1 + more.v2 == 2 * MORE && apart <= NAMES.len(),
            "not half and half"
        );
        self.check_backends(used)?;
        if self.way == Way::OnLink {
            self.check_neighbour(entry)?;
        }
        self.check_counters(entry, used[1 - entry])
    }
}

/// Counters of what goes from node to node.
const FORWARDED: [&str; 3] = ["forward_l2", "forward_udp", "decapsulated"];

/// What answers said.
struct Seen {
    v1: usize,
    v2: usize,
    tally: Tally,
}

fn body(finished: &Finished) -> &str {
    match &finished.outcome {
        Outcome::Answer(answer) => &answer.body,
        _ => "",
    }
}

#[test]
#[ignore = "needs three machines: cargo xtask vm quickstart"]
fn the_client_sees_five_and_five_whichever_way_nodes_forward() {
    let reader = Reader::new(Way::told()).unwrap();
    let read = reader.read();
    for node in reader.way.nodes() {
        if read.is_err() {
            println!("{node}: {:?}", ask(node, "log"));
        }
        let ended = ask(node, "end");
        println!("{node} ends: {ended:?}");
    }
    read.unwrap();
}
