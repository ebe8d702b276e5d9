//! `--forward auto` between three real nodes on a switch that filters frames for a VIP between them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gateway_common::abi::Counter;
use gateway_tests::client::{Load, Tally};
use gateway_tests::eventually::{eventually, throughout};
use gateway_tests::fixture::HOST;
use gateway_tests::leftovers::Ledger;
use gateway_tests::maps;
use gateway_tests::rig::{Options, Rig, VIP};
use gateway_tests::stalls::Stalls;

/// Three misses, each after an interval and a half, and the pause between two questions: 650 ms; what two busy cores
/// and three commands that ask may add to that.
const NOTICED: Duration = Duration::from_millis(650 + 1_850);
/// Patience for a path that comes back.
const SOON: Duration = Duration::from_secs(30);

/// Drops frames for the VIP that come from nodes.
const FILTER: &str = "add table bridge guard; \
     add chain bridge guard drops { type filter hook forward priority 0; }; \
     add rule bridge guard drops iifname \"node*\" ip daddr 192.0.2.100 counter drop";

fn nft(rig: &Rig, rules: &str) -> Result<()> {
    rig.topology.switch.nft(rules)
}

/// Waits until every node says this of every other.
fn say(rig: &Rig, forward: &str, reason: &str) -> Result<()> {
    eventually(&format!("{forward} ({reason})"), SOON, || {
        all_say(rig, forward, reason)
    })
}

fn all_say(rig: &Rig, forward: &str, reason: &str) -> Result<()> {
    for daemon in &rig.daemons {
        let status = daemon.status()?;
        for node in status["datapath"]["nodes"].as_array().into_iter().flatten() {
            let own = node["name"] == daemon.site().name.as_str();
            ensure!(
                own || node["forward"] == forward && node["forward_reason"] == reason,
                "{} says {node}",
                daemon.site().name
            );
        }
    }
    Ok(())
}

/// Packets that node 1 sent on by MAC rewrite and by UDP.
fn sent(rig: &Rig) -> [u64; 2] {
    [Counter::ForwardL2, Counter::ForwardUdp]
        .map(|counter| maps::counter(rig.daemons[0].bpffs(), counter).unwrap())
}

/// Requests to the VIP by way of node 1, of which none may break; what node 1 sent on meanwhile.
fn load(rig: &Rig) -> [u64; 2] {
    let before = sent(rig);
    let finished = rig.client.send(Load {
        overlap: 8,
        ..Load::new(VIP, HOST, 150)
    });
    let tally = Tally::of(&finished.unwrap());
    assert_eq!((tally.status(200), tally.broken()), (150, 0), "{tally}");
    let after = sent(rig);
    [after[0] - before[0], after[1] - before[1]]
}

/// Packets of UDP that found no socket, on any node.
fn strays(rig: &Rig) -> Vec<String> {
    let line = |text: &str| {
        let udp: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("Udp:"))
            .collect();
        udp[1].split(' ').nth(2).unwrap().to_owned()
    };
    let of = |site: &gateway_tests::topology::Site| {
        let read = || Ok(std::fs::read_to_string("/proc/self/net/snmp")?);
        line(&site.netns.run(read).unwrap())
    };
    rig.topology.nodes.iter().map(of).collect()
}

#[test]
fn a_switch_that_drops_frames_for_a_vip_is_noticed_and_packets_go_by_udp() {
    let rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    rig.deliver_to(0).unwrap();
    say(&rig, "l2", "proven").unwrap();
    rig.wait_agreed().unwrap();
    let strays_before = strays(&rig);
    let [l2, udp] = load(&rig);
    println!("before the filter: {l2} packets by MAC rewrite, {udp} by UDP");
    assert!(l2 > 100 && udp == 0);

    let through = rig.client.start(Load {
        count: None,
        overlap: 8,
        ..Load::new(VIP, HOST, 0)
    });
    let through = through.unwrap();
    let stalls = Stalls::watch().unwrap();
    let filtered = Instant::now();
    nft(&rig, FILTER).unwrap();
    say(&rig, "udp", "l2 not answered").unwrap();
    let noticed = filtered.elapsed();
    println!("noticed after {noticed:?}");
    let bound = NOTICED + stalls.allowance(filtered);
    assert!(noticed < bound, "{noticed:?} > {bound:?}");
    let [l2, udp] = load(&rig);
    println!("with the filter: {l2} packets by MAC rewrite, {udp} by UDP");
    assert!(l2 == 0 && udp > 100);
    let shown = rig.daemons[0].ask(&["status"]).unwrap();
    assert!(
        shown.contains("udp (l2 not answered for 192.0.2.100)"),
        "{shown}"
    );
    throughout(
        "a path that is not answered",
        Duration::from_secs(2),
        || all_say(&rig, "udp", "l2 not answered"),
    )
    .unwrap();
    let [l2_before, _] = sent(&rig);

    let lifted = Instant::now();
    nft(&rig, "delete table bridge guard").unwrap();
    say(&rig, "l2", "proven").unwrap();
    println!("back after {:?}", lifted.elapsed());
    assert!(
        lifted.elapsed() > Duration::from_millis(500),
        "it comes back at once"
    );
    let tally = Tally::of(&through.stop().unwrap());
    println!("requests across both changes: {tally}");
    assert_eq!(tally.broken(), 0, "{tally}");
    assert!(sent(&rig)[0] > l2_before);
    let [l2, udp] = load(&rig);
    println!("after the filter: {l2} packets by MAC rewrite, {udp} by UDP");
    assert!(l2 > 100 && udp == 0);
    let node = rig.daemons[0].node_status("node2").unwrap();
    assert_eq!(node["path"]["changes"], 2, "{node}");
    assert_eq!(strays(&rig), strays_before, "questions reach the stack");
    for daemon in &rig.daemons {
        let answered = maps::counter(daemon.bpffs(), Counter::PathAnswered).unwrap();
        assert!(answered > 10, "{answered}");
    }
}

#[test]
fn a_forced_way_stays_whatever_the_switch_does() {
    let options = Options {
        forward: "l2".into(),
        ..Options::default()
    };
    let mut rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    rig.deliver_to(0).unwrap();
    nft(&rig, FILTER).unwrap();
    throughout("what is forced", Duration::from_secs(2), || {
        all_say(&rig, "l2", "forced")
    })
    .unwrap();
    rig.restart_with_forward("udp").unwrap();
    rig.deliver_to(0).unwrap();
    all_say(&rig, "udp", "forced").unwrap();
    rig.wait_agreed().unwrap();
    let [l2, udp] = load(&rig);
    assert!(l2 == 0 && udp > 100, "{l2} {udp}");
    // Never proven by a filter that was there first.
    rig.restart_with_forward("auto").unwrap();
    rig.deliver_to(0).unwrap();
    let [l2, udp] = load(&rig);
    assert!(l2 == 0 && udp > 100, "{l2} {udp}");
    say(&rig, "udp", "l2 not answered").unwrap();
}
