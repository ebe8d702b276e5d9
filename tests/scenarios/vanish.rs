//! A node of five vanishes: what new connections see of it, who speaks for its VIP then, and that nobody else does before.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gateway_tests::backend::Behaviour;
use gateway_tests::client::{Load, Outcome, Running, Tally};
use gateway_tests::eventually::{eventually, throughout};
use gateway_tests::fixture::HOST;
use gateway_tests::leftovers::Ledger;
use gateway_tests::rig::{Options, Rig, VIP};
use gateway_tests::stalls::Stalls;
use gateway_tests::topology::{CLIENT, UPLINK};
use gateway_tests::wire::{Frame, Kind, Tap};
use socket2::{Domain, Protocol, Socket, Type};

/// Longest time in which SYNs are not answered: `--suspect-after`, and what two cores that have much to do may add; other
/// programs may add their own ([`Stalls`]).
const UNANSWERED: Duration = Duration::from_millis(300 + 250);

/// The same if the node spoke for the VIP.
const UNANSWERED_ANNOUNCER: Duration = Duration::from_millis(1_000);

/// Time between two SYNs.
const PACE: Duration = Duration::from_millis(10);

fn start() -> Rig {
    let options = Options {
        nodes: 5,
        workers: Some(1),
        drain_timeout: Duration::from_secs(60),
        ..Options::default()
    };
    Rig::start(Ledger::open().unwrap(), &options).unwrap()
}

/// Requests that are held while the node vanishes.
fn held(rig: &Rig, count: usize) -> Result<Running> {
    let hold = Duration::from_secs(6);
    rig.backends.forget_all();
    rig.backends.set_all(Behaviour { hold, fail: false });
    let running = rig.client.start(Load {
        overlap: count,
        timeout: hold + Duration::from_secs(10),
        ..Load::new(VIP, HOST, count)
    })?;
    eventually("the held requests at the backends", hold, || {
        let seen = rig.backends.count();
        ensure!(seen == count, "{seen} of {count}");
        Ok(())
    })?;
    rig.backends.set_all(Behaviour::default());
    Ok(running)
}

/// A SYN and what has become of it.
struct Syn {
    sent: Duration,
    socket: Socket,
    answered: bool,
}

/// Sends a SYN every 10 ms for `span`, each from another of `ports` and none of them twice: a SYN counts as answered if it
/// is before the kernel repeats it, after a second. Returns when the last unanswered one was sent, since `gone`.
fn outage(rig: &Rig, ports: &[u16], gone: Instant, span: Duration) -> Result<Duration> {
    rig.topology.client.run(|| {
        let mut syns: Vec<Syn> = Vec::new();
        for (port, number) in ports.iter().zip(0_u32..) {
            let due = PACE * number;
            if due > span {
                break;
            }
            while gone.elapsed() < due {
                look(&mut syns, gone)?;
                throughout("a pause", Duration::from_millis(1), || Ok(()))?;
            }
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&SocketAddrV4::new(CLIENT, *port).into())?;
            let sent = gone.elapsed();
            match socket.connect(&SocketAddr::V4(VIP).into()) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                    return Err(error).context("a SYN");
                }
                _ => syns.push(Syn {
                    sent,
                    socket,
                    answered: false,
                }),
            }
        }
        let end = gone.elapsed() + Duration::from_millis(200);
        while gone.elapsed() < end {
            look(&mut syns, gone)?;
        }
        let unanswered = syns.iter().filter(|syn| !syn.answered);
        let count = unanswered.clone().count();
        println!("{count} of {} SYNs were not answered at once", syns.len());
        let last = unanswered.map(|syn| syn.sent).max();
        Ok(last.unwrap_or_default())
    })
}

fn look(syns: &mut [Syn], gone: Instant) -> Result<()> {
    let now = gone.elapsed();
    for syn in syns.iter_mut().filter(|syn| !syn.answered) {
        if let Some(error) = syn.socket.take_error()? {
            bail!("the SYN of {:?} after the node was gone: {error}", syn.sent);
        }
        // The kernel repeats a SYN after a second: an answer to that one is none to the first.
        let in_time = now - syn.sent < Duration::from_millis(900);
        syn.answered = in_time && syn.socket.peer_addr().is_ok();
    }
    Ok(())
}

/// The interface of the node is gone, at both ends.
fn vanish(rig: &Rig, index: usize) -> Result<Instant> {
    let gone = Instant::now();
    let node = &rig.topology.nodes[index].netns;
    node.ip(&format!("link del {UPLINK}"))?;
    Ok(gone)
}

/// Held requests of others are all answered; none is refused or reset anywhere.
fn judge(rig: &Rig, name: &str, held: Running) -> Result<()> {
    let steering = rig.steering();
    let finished = held.join()?;
    let (its_own, others): (Vec<_>, Vec<_>) = finished
        .into_iter()
        .partition(|request| Rig::owner_of(&steering, request) == name);
    let (own, other) = (Tally::of(&its_own), Tally::of(&others));
    println!("connections of {name}: {own}; of the others: {other}");
    ensure!(!its_own.is_empty(), "{name} had none");
    ensure!(other.status(200) == others.len(), "others': {other}");
    let refused = |request: &gateway_tests::client::Finished| request.outcome == Outcome::Refused;
    ensure!(!its_own.iter().any(refused), "{own}");
    Ok(())
}

#[test]
fn one_of_five_vanishes_and_only_its_own_connections_break() {
    let mut rig = start();
    let announcer = rig.announcer().unwrap();
    let victim = (announcer + 1) % 5;
    rig.deliver_to(announcer).unwrap();
    let name = rig.topology.nodes[victim].name.clone();
    let ports = rig.ports(victim, 150).unwrap();
    let held = held(&rig, 100).unwrap();
    let stalls = Stalls::watch().unwrap();
    let gone = vanish(&rig, victim).unwrap();
    let last = outage(&rig, &ports, gone, Duration::from_millis(1_400)).unwrap();
    println!("SYNs to {name} were not answered until {last:?} after it was gone");
    assert!(last > Duration::ZERO, "it was gone");
    let bound = UNANSWERED + stalls.allowance(gone);
    assert!(last <= bound, "{last:?} > {bound:?}");
    judge(&rig, &name, held).unwrap();
}

#[test]
fn the_announcer_vanishes_and_another_speaks_for_the_vip_within_a_second() {
    let rig = start();
    rig.ask_the_link().unwrap();
    let announcer = rig.announcer().unwrap();
    let name = rig.topology.nodes[announcer].name.clone();
    let held = held(&rig, 100).unwrap();
    let tap = Tap::start(&rig.topology.switch, Kind::Neighbours).unwrap();
    for site in &rig.topology.nodes {
        // Else the switch, which knows nobody by its MAC any more, would show the packets to all others.
        let port = format!("link set dev {} type bridge_slave flood off", site.name);
        rig.topology.switch.ip(&port).unwrap();
    }
    let stalls = Stalls::watch().unwrap();
    let gone = vanish(&rig, announcer).unwrap();
    // Every connection goes by the node that is gone, whoever owns it.
    let ports: Vec<u16> = (20_000..20_300).collect();
    let last = outage(&rig, &ports, gone, Duration::from_millis(2_500)).unwrap();
    println!("SYNs were not answered until {last:?} after {name} was gone");
    let said = speakers(&tap.stop().unwrap());
    let others: Vec<_> = (said.iter())
        .filter(|(_, mac, _)| *mac != mac_of(&rig, announcer))
        .collect();
    let first = others.iter().find(|(.., gratuitous)| *gratuitous).unwrap();
    let heard = first.0.saturating_duration_since(gone);
    println!("{:02x?} told the link {heard:?} after", first.1);
    let bound = Duration::from_secs(1) + stalls.allowance(gone);
    assert!(heard <= bound, "{heard:?} > {bound:?}");
    let heirs: BTreeSet<_> = others.iter().map(|(_, mac, _)| *mac).collect();
    assert_eq!(heirs.len(), 1, "one node speaks in its place: {heirs:02x?}");
    let bound = UNANSWERED_ANNOUNCER + stalls.allowance(gone);
    assert!(last <= bound, "{last:?} > {bound:?}");
    judge(&rig, &name, held).unwrap();
}

#[test]
fn only_the_announcer_of_five_speaks_for_the_vip_with_all_caches_flushed() {
    let rig = start();
    rig.ask_the_link().unwrap();
    let announcer = rig.announcer().unwrap();
    let tap = Tap::start(&rig.topology.switch, Kind::Neighbours).unwrap();
    for round in 0..5 {
        let nodes = rig.topology.nodes.iter().map(|site| &site.netns);
        for netns in nodes.chain([&rig.topology.client]) {
            netns.ip(&format!("neigh flush dev {UPLINK}")).unwrap();
        }
        // Answers of all nodes, whose way to the client they have to find first.
        let load = Load {
            overlap: 20,
            path: format!("/{round}/"),
            ..Load::new(VIP, HOST, 60)
        };
        let tally = Tally::of(&rig.client.send(load).unwrap());
        assert_eq!(tally.status(200), 60, "{tally}");
    }
    let backs: BTreeSet<_> = rig.backends.seen().iter().map(|seen| seen.peer).collect();
    assert_eq!(backs.len(), 5, "every node answered some");
    let frames = tap.stop().unwrap();
    let said = speakers(&frames);
    println!(
        "{} of {} frames of ARP spoke for the VIP",
        said.len(),
        frames.len()
    );
    assert!(!said.is_empty(), "the client asked");
    for (_, mac, _) in said {
        assert_eq!(mac, mac_of(&rig, announcer), "it is no announcer");
    }
}

/// ARP frames whose sender says that the VIP is at it: when, which MAC, and whether it was asked.
fn speakers(frames: &[Frame]) -> Vec<(Instant, [u8; 6], bool)> {
    let vip: Ipv4Addr = *VIP.ip();
    let said = frames.iter().filter_map(|frame| {
        let bytes = &frame.bytes;
        let sender = bytes.get(28..32)?;
        let is_arp = bytes[12..14] == [8, 6];
        let gratuitous = bytes.get(38..42)? == sender;
        (is_arp && sender == vip.octets()).then(|| (frame.at, mac(&bytes[22..28]), gratuitous))
    });
    said.collect()
}

fn mac(bytes: &[u8]) -> [u8; 6] {
    std::array::from_fn(|i| bytes[i])
}

fn mac_of(rig: &Rig, index: usize) -> [u8; 6] {
    let text = &rig.topology.nodes[index].mac;
    let mut parts = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).unwrap());
    std::array::from_fn(|_| parts.next().unwrap())
}
