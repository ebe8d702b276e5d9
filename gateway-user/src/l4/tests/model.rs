//! A model of whole clusters: every node computes its tables with the real planner and the real liveness, and every
//! packet is walked from node to node through the real decision, as its headers carry it.
//!
//! Histories are made from seeds: nodes join, drain, die, hang, are killed, cut off or not heard, several at once; lists
//! come late or not at all; tables are seen half written. Clients open flows at any time and send from anywhere. What is
//! asserted, by [`world`] while it goes:
//!
//! - No packet is sent on more than four times, whatever tables say; its header is honest about that, and none goes round.
//! - No SYN is refused; none is dropped among nodes that agree while a ready node of its row was not asked.
//! - While lists are at most one step apart, a flow breaks only with its owner, or for a reason that the design names:
//!   three others rank above its holder and own nothing, its holder was agreed to be dead, it lasted longer than the
//!   drain timeout, or two nodes answered its SYN.
//! - After the last event every flow is served from every node; after the last flow no row is in transition.
//!
//! `FOREBAY_MODEL_HISTORIES` says how many histories are run, `FOREBAY_MODEL_SEED` with which seed to begin. A history
//! that fails is cut down to the events that it needs.

mod chaos;
mod node;
mod script;
mod wire;
mod world;

use script::{Script, Skew};
use world::{Counts, World};

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
    )
}

fn run(script: &Script) -> Result<Counts, String> {
    let mut world = World::new(script.clone());
    world.run().map(|()| world.counts)
}

/// Leaves out what is not needed to fail.
fn cut_down(mut script: Script, mut why: String) -> (Script, String) {
    let mut size = script.events.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < script.events.len() {
            let mut less = script.clone();
            let end = (at + size).min(less.events.len());
            less.events.drain(at..end);
            match run(&less) {
                Err(error) => (script, why) = (less, error),
                Ok(_) => at += size,
            }
        }
        size /= 2;
    }
    (script, why)
}

fn histories(skew: Skew, by_default: u64) {
    let count = setting("FOREBAY_MODEL_HISTORIES").unwrap_or(by_default);
    let first = setting("FOREBAY_MODEL_SEED").unwrap_or(1);
    let mut sum = Counts::new();
    for seed in first..first + count {
        let script = Script::of(seed, skew);
        match run(&script) {
            Ok(counts) => {
                for (what, count) in counts {
                    *sum.entry(what).or_default() += count;
                }
            }
            Err(why) => {
                let (script, why) = cut_down(script, why);
                panic!(
                    "history {seed} of {skew:?} (FOREBAY_MODEL_SEED={seed}): {why}\n{script:#?}"
                );
            }
        }
    }
    println!("{count} histories, {skew:?}");
    for (what, count) in sum {
        println!("{count:>10} {what}");
    }
}

#[test]
fn flows_break_only_with_their_owner_while_lists_are_a_step_apart() {
    histories(Skew::OneStep, 12);
}

#[test]
fn packets_end_whatever_tables_say() {
    let rounds = setting("FOREBAY_MODEL_HISTORIES").map_or(100, |histories| 40 * histories);
    match chaos::packets_end(rounds) {
        Ok(packets) => println!("{packets} packets through tables that say anything"),
        Err(why) => panic!("{why}"),
    }
}

#[test]
fn packets_end_however_far_lists_are_apart() {
    histories(Skew::Any, 6);
}
