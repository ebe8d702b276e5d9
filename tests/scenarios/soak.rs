//! Faults at random on three whole nodes while clients ask without a pause: run by `cargo xtask soak`, and by
//! `cargo xtask vm soak --whole` in a virtual machine, where the first node has a card of virtio.
//!
//! Every request is answered rightly or a fault explains why not, none is made twice, and nothing is left over at the end.

mod clients;
mod hand;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gateway_tests::eventually::eventually;
use gateway_tests::leftovers::Ledger;
use gateway_tests::machine;
use gateway_tests::rig::{Options, Rig, VIP};
use gateway_tests::soak::course::Course;
use gateway_tests::soak::gauge::{Gauge, leaks};
use gateway_tests::soak::history::judge;
use gateway_tests::soak::nemesis::{Fault, Nemesis};
use gateway_tests::soak::told::{Told, report};
use gateway_tests::topology::CLIENT;

use self::clients::Clients;
use self::hand::Hand;

/// How fast nodes are here, and what is asked of them.
#[derive(Clone, Copy)]
struct Pace {
    /// In this time after a fault the VIP is served again, and nothing fails any longer.
    grace: Duration,
    /// In this time the others hold a node for dead: `--suspect-after` and a probe.
    noticed: Duration,
    /// Pause of a client between two requests.
    pause: Duration,
    /// What the nodes are told.
    words: &'static [&'static str],
}

impl Pace {
    fn here() -> Self {
        if machine::is_here() {
            return Self {
                grace: Duration::from_secs(6),
                noticed: Duration::from_millis(2500),
                pause: Duration::from_millis(100),
                // An emulated node may not run for a second while another one's programs are verified.
                words: &[
                    "--probe-interval=500ms",
                    "--suspect-after=2s",
                    "--dead-after=20s",
                ],
            };
        }
        Self {
            grace: Duration::from_secs(3),
            noticed: Duration::from_millis(400),
            pause: Duration::from_millis(10),
            words: &[],
        }
    }
}

/// Patience for what the kernel and the nodes do some time after.
const SOON: Duration = Duration::from_secs(15);

/// What there is now of what may leak, of all three nodes.
fn gauge(rig: &Rig) -> Result<Gauge> {
    let mut gauge = Gauge::of_machine()?;
    for daemon in &rig.daemons {
        let process = format!("/proc/{}", daemon.pid());
        let open = fs::read_dir(format!("{process}/fd")).context("descriptors of a daemon")?;
        gauge.descriptors += open.count() as u64;
        let text = fs::read_to_string(format!("{process}/status")).context("a daemon's memory")?;
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        gauge.resident += number.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        gauge.pins.extend(pinned(daemon.bpffs())?);
    }
    Ok(gauge)
}

/// Names below a directory of pins.
fn pinned(directory: &std::path::Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("{}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            names.push(path.display().to_string());
            if path.is_dir() {
                left.push(path);
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// What backends saw of requests: none twice, and each that was answered once. A sentence for each that is not so.
fn made_twice(seen: &BTreeMap<String, usize>, answered: &BTreeSet<String>) -> Vec<String> {
    let twice = seen.iter().filter(|(_, count)| **count > 1);
    let twice = twice.map(|(path, count)| format!("{path} was made {count} times"));
    let never = answered.iter().filter(|path| !seen.contains_key(*path));
    let never = never.map(|path| format!("{path} was answered by nobody who has seen it"));
    twice.chain(never).collect()
}

/// What is known of requests without an answer.
fn tell(rig: &Rig, clients: &Clients<'_>, seen: &BTreeMap<String, usize>) {
    let steering = rig.steering();
    for one in clients.unanswered() {
        let client = SocketAddrV4::new(CLIENT, one.port);
        println!(
            "fact: without an answer = {} from port {} at {:.3} s, of a row of {}, seen by {} endpoints",
            one.path,
            one.port,
            one.begin.as_secs_f64(),
            steering.owner(client, VIP).unwrap_or("nobody"),
            seen.get(&one.path).unwrap_or(&0),
        );
    }
}

#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn whatever_comes_whole_nodes_answer_rightly_or_a_fault_explains_it() {
    let alone = machine::is_here();
    let more: &[Fault] = if alone { &Fault::IN_MACHINE } else { &[] };
    let told = Told::read(&[&Fault::WHOLE[..], more].concat());
    let pace = Pace::here();
    told.show(&format!("seed {}, faults {:?}", told.seed, told.faults));
    let options = Options {
        ejection_seconds: 2,
        drain_timeout: Duration::from_secs(5),
        workers: Some(2),
        words: pace.words,
        card: alone,
        ..Options::default()
    };
    let mut rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    rig.ask_the_link().unwrap();
    let course = Course::default();
    let client = rig.topology.client.clone();
    let clients = Clients::new(&client, &course, pace.pause);
    let mut windows = Vec::new();
    let more = clients.run(|| {
        course.wait(Duration::from_secs(2));
        let first = gauge(&rig).unwrap();
        for act in Nemesis::new(told.seed, &told.faults) {
            if course.now() >= told.length {
                break;
            }
            told.begins(&course, &act);
            let mut hand = Hand::new(&mut rig, &course, pace);
            windows.extend(hand.do_it(&act).unwrap());
            course.wait(pace.grace + act.pause);
            rig.wait_agreed().unwrap();
        }
        course.wait(pace.grace);
        let same = eventually(
            "what was there at the start",
            machine::patience(SOON),
            || {
                let found = leaks(&first, &gauge(&rig)?);
                ensure!(found.is_empty(), "{}", found.join("; "));
                Ok(())
            },
        );
        same.err().map(|error| format!("{error:#}"))
    });
    let length = course.now();
    let (requests, stalls) = course.end();
    windows.extend(stalls);
    let mut verdict = judge(&requests, &windows, length, pace.grace);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for one in rig.backends.seen() {
        *seen.entry(one.path).or_default() += 1;
    }
    verdict.violations.extend(more);
    verdict
        .violations
        .extend(made_twice(&seen, &clients.answered()));
    report(&told, &windows, &verdict);
    tell(&rig, &clients, &seen);
    println!("fact: requests that backends saw = {}", seen.len());
    told.judge(&windows, &verdict);
}
