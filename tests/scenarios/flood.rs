//! A flood of SYNs from addresses that are nobody's: what is open goes on, what comes is served, and nothing grows.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use gateway_tests::client::{Load, Tally};
use gateway_tests::eventually::rest;
use gateway_tests::fixture::HOST;
use gateway_tests::kept::{Asked, Kept};
use gateway_tests::leftovers::Ledger;
use gateway_tests::rig::{Options, Rig, VIP};
use gateway_tests::soak::flood::{flood, sender};
use gateway_tests::topology::CLIENT;
use rustix::process::{Resource, Rlimit, setrlimit};

/// Connections that are open and idle.
const IDLE: usize = 1_000;
/// SYNs a second, and for how long.
const RATE: u32 = 40_000;
const LENGTH: Duration = Duration::from_secs(10);
/// What all nodes may take more afterwards, in KB.
const MORE: u64 = 16 << 10;

/// Memory of the daemons' own, in KB.
fn resident(rig: &Rig) -> u64 {
    let of = |pid: u32| -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no memory")?.parse()?)
    };
    let all = rig.daemons.iter().map(|daemon| of(daemon.pid()).unwrap());
    all.sum()
}

#[test]
fn a_flood_breaks_nothing_that_is_open_and_lets_in_who_is_no_part_of_it() {
    let enough = Rlimit {
        current: Some(8 * IDLE as u64),
        maximum: Some(8 * IDLE as u64),
    };
    setrlimit(Resource::Nofile, enough).unwrap();
    let options = Options {
        workers: Some(1),
        ..Options::default()
    };
    let rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    // Else the kernels would not know how to answer the flood, and drop it.
    for site in &rig.topology.nodes {
        let route = format!("route add default via {CLIENT}");
        site.netns.ip(&route).unwrap();
    }
    rig.ask_the_link().unwrap();
    let client = rig.topology.client.clone();
    let mut idle = client.run(|| Ok(Kept::many(IDLE)?)).unwrap();
    let before = resident(&rig);
    let (sent, tally) = thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            let sender = client.run(|| Ok(sender()?)).unwrap();
            flood(&sender, [VIP.ip().octets(); 2], RATE, LENGTH, 7)
        });
        let mut finished = Vec::new();
        while !flooding.is_finished() {
            let load = Load {
                overlap: 2,
                timeout: Duration::from_secs(5),
                ..Load::new(VIP, HOST, 50)
            };
            finished.extend(rig.client.send(load).unwrap());
            rest(Duration::from_millis(20));
        }
        (flooding.join().unwrap(), Tally::of(&finished))
    });
    println!("{sent} SYNs in {LENGTH:?}; meanwhile {tally}");
    // Half of the rate where others use the cores.
    assert!(sent >= u64::from(RATE) * LENGTH.as_secs() / 2, "{sent}");
    let all = tally.status(200) + tally.broken();
    assert!(all >= 500, "{tally}");
    assert!(tally.status(200) * 100 >= all * 99, "{tally}");
    let mut broken = Vec::new();
    for kept in &mut idle {
        match kept.ask() {
            Ok(Asked::Answered(200, _)) => {}
            other => broken.push(format!("{other:?}")),
        }
    }
    assert!(
        broken.is_empty(),
        "{} of {IDLE}: {:?}",
        broken.len(),
        broken.first()
    );
    let after = resident(&rig);
    println!("KB of memory before and after: {before}, {after}");
    assert!(after <= before + MORE, "{before}, {after}");
}
