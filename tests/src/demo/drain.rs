//! Act 4: a node leaves and no connection breaks.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use gateway_common::abi::Counter;

use super::{Table, must};
use crate::{
    backend::Behaviour,
    client::{Load, Running, Tally},
    eventually::eventually,
    fixture::{HOST, ReplicaState},
    maps,
    rig::{Rig, VIP},
};

/// Long requests under way while the node drains; the limits of two clusters on each of three nodes admit more.
pub const LONG: usize = 200;

/// New requests during the drain.
const NEW: usize = 60;

/// Longest time for a change of the manifests to reach every node's tables.
const CHANGE: Duration = Duration::from_secs(5);

/// Marks the last node's replica `terminating` while 200 requests of `hold` run; afterwards the node is back.
///
/// # Errors
/// If a request breaks, a new one goes to the draining node, no packet took the second chance, the drain does
/// not end, or `forebay status` does not tell of it.
pub fn drain(rig: &mut Rig, hold: Duration) -> Result<Table> {
    let leaving = rig.daemons.len() - 1;
    must!(leaving > 0, "a drain needs a second node to take over");
    rig.deliver_to(0)?;
    rig.backends.forget_all();
    let chances = second_chances(rig)?;
    let long = start_long(rig, hold)?;
    let held = held_by(rig, leaving);
    must!(held > 0, "no long request runs on the node that leaves");
    rig.mark(leaving, ReplicaState::Draining)?;
    // Its rows move when it knows that it leaves.
    rig.wait_agreed()?;
    let during = wait_transition(rig, |rows| rows > 0)?;
    rig.backends.set_all(Behaviour::default());
    let new = send_new(rig, leaving)?;
    let tally = Tally::of(&long.join()?);
    must!(
        tally.status(200) == LONG,
        "{LONG} long requests gave {tally}"
    );
    let chances = second_chances(rig)? - chances;
    must!(chances > 0, "no packet took the second chance");
    rig.wait_drained(leaving)?;
    rig.leave(leaving)?;
    let after = wait_transition(rig, |rows| rows == 0)?;
    rig.come_back(leaving)?;
    rig.wait_served(leaving, HOST)?;
    rig.wait_agreed()?;
    wait_transition(rig, |rows| rows == 0)?;
    let mut table = Table::new(["what", "count"]);
    let name = &rig.topology.nodes[leaving].name;
    for (what, count) in [
        (format!("long requests, {held} of them on {name}"), LONG),
        ("of these broken".to_owned(), tally.broken()),
        (
            format!("new requests during the drain, none on {name}"),
            new,
        ),
        (
            "packets by second chance".to_owned(),
            usize::try_from(chances).unwrap_or(usize::MAX),
        ),
        ("rows in transition during the drain".to_owned(), during),
        ("rows in transition after it".to_owned(), after),
    ] {
        table.row([what, count.to_string()]);
    }
    Ok(table)
}

fn start_long(rig: &Rig, hold: Duration) -> Result<Running> {
    rig.backends.set_all(Behaviour { hold, fail: false });
    let timeout = hold + Duration::from_secs(20);
    let long = rig.client.start(Load {
        overlap: LONG,
        path: "/long/".into(),
        timeout,
        ..Load::new(VIP, HOST, LONG)
    })?;
    eventually("the long requests at the backends", hold, || {
        let seen = rig.backends.count();
        if seen == LONG {
            Ok(())
        } else {
            Err(anyhow!("{seen} of {LONG}"))
        }
    })?;
    Ok(long)
}

/// Long requests that this node proxies.
fn held_by(rig: &Rig, index: usize) -> usize {
    let back = rig.topology.nodes[index].back;
    rig.backends
        .seen()
        .into_iter()
        .filter(|seen| seen.peer == back)
        .count()
}

/// Sends new requests; every one must be answered, and by a node that stays.
fn send_new(rig: &Rig, leaving: usize) -> Result<usize> {
    let sent = rig.client.send(Load {
        overlap: 5,
        path: "/new/".into(),
        ..Load::new(VIP, HOST, NEW)
    })?;
    let tally = Tally::of(&sent);
    must!(
        tally.status(200) == NEW,
        "{NEW} new requests during the drain gave {tally}"
    );
    let back = rig.topology.nodes[leaving].back;
    let seen = rig.backends.seen().into_iter();
    let paths: BTreeSet<String> = seen
        .filter(|seen| seen.peer == back && seen.path.starts_with("/new/"))
        .map(|seen| seen.path)
        .collect();
    must!(
        paths.is_empty(),
        "new requests went to the node that drains: {paths:?}"
    );
    Ok(NEW)
}

/// Waits until every node that stays tells of such a number of rows in transition, and `forebay status` too.
fn wait_transition(rig: &Rig, wanted: impl Fn(usize) -> bool) -> Result<usize> {
    let staying = &rig.daemons[..rig.daemons.len() - 1];
    let bound = CHANGE + rig.settings.drain_timeout;
    let mut rows = 0;
    for daemon in staying {
        rows = eventually(
            &format!("rows in transition on {}", daemon.site().name),
            bound,
            || {
                let rows = maps::rows_in_transition(daemon.bpffs())?;
                must!(wanted(rows), "the table has {rows}");
                let shown = shown_in_transition(&daemon.ask(&["status"])?)?;
                must!(
                    wanted(shown),
                    "the table has {rows}, forebay status shows {shown}"
                );
                Ok(rows)
            },
        )?;
    }
    Ok(rows)
}

/// The number in the line of `forebay status` about rows in transition.
fn shown_in_transition(status: &str) -> Result<usize> {
    let Some(line) = status
        .lines()
        .find(|line| line.to_lowercase().contains("transition"))
    else {
        bail!("forebay status shows no line about rows in transition:\n{status}");
    };
    // "of 65536" may stand behind it.
    let digits = |word: &str| {
        word.chars()
            .filter(char::is_ascii_digit)
            .collect::<String>()
    };
    let number = line
        .split_whitespace()
        .map(digits)
        .find(|word| !word.is_empty());
    number
        .context("the line about rows in transition has no number")?
        .parse()
        .context("not a number of rows")
}

fn second_chances(rig: &Rig) -> Result<u64> {
    rig.daemons
        .iter()
        .map(|daemon| maps::counter(daemon.bpffs(), Counter::SecondChance))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_rows_is_read_from_the_status() {
        let status = "nodes               3\nrows in transition  21,845 of 65,536\n";
        assert_eq!(shown_in_transition(status).unwrap(), 21_845);
        assert!(shown_in_transition("nodes 3\n").is_err());
    }
}
