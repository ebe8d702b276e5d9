//! Act 5: a node's process is killed; only its own connections break.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, anyhow};

use super::{Table, must};
use crate::{
    backend::Behaviour,
    client::{Finished, Load, Tally},
    eventually::eventually,
    fixture::HOST,
    rig::{Rig, VIP},
};

/// Connections under way when the node dies.
pub const UNDER_WAY: usize = 120;

/// New connections afterwards.
pub const NEW: usize = 150;

/// Kills the second node's process while 120 requests of `hold` run; the switch delivers to the first. The
/// node's XDP program stays pinned and goes on forwarding. Afterwards the node is started again.
///
/// # Errors
/// If another node's connection breaks, or a new connection is not answered.
pub fn death(rig: &mut Rig, hold: Duration) -> Result<Table> {
    let dying = 1;
    must!(
        rig.daemons.len() > dying,
        "a death needs a second node that lives on"
    );
    let name = rig.topology.nodes[dying].name.clone();
    rig.deliver_to(0)?;
    rig.backends.forget_all();
    rig.backends.set_all(Behaviour { hold, fail: false });
    let load = Load {
        overlap: UNDER_WAY,
        timeout: hold + Duration::from_secs(15),
        ..Load::new(VIP, HOST, UNDER_WAY)
    };
    let under_way = rig.client.start(load)?;
    eventually("the requests at the backends", hold, || {
        let seen = rig.backends.count();
        if seen == UNDER_WAY {
            Ok(())
        } else {
            Err(anyhow!("{seen} of {UNDER_WAY}"))
        }
    })?;
    rig.daemons[dying].kill()?;
    rig.backends.set_all(Behaviour::default());
    let steering = rig.steering();
    let new = rig.client.send(Load {
        overlap: 10,
        ..Load::new(VIP, HOST, NEW)
    })?;
    let under_way = under_way.join()?;
    let by_owner = |finished: &[Finished]| {
        let mut owners: BTreeMap<String, Vec<Finished>> = BTreeMap::new();
        for request in finished {
            owners
                .entry(Rig::owner_of(&steering, request))
                .or_default()
                .push(request.clone());
        }
        owners
    };
    let table = judge(&name, &by_owner(&under_way), &new)?;
    rig.start_again(dying)?;
    rig.wait_served(dying, HOST)?;
    rig.wait_agreed()?;
    Ok(table)
}

fn judge(
    dead: &str,
    under_way: &BTreeMap<String, Vec<Finished>>,
    new: &[Finished],
) -> Result<Table> {
    let mut table = Table::new([
        "connections",
        "answered",
        "refused",
        "reset",
        "timed out",
        "cut off",
    ]);
    for (owner, finished) in under_way {
        let tally = Tally::of(finished);
        let fate = if owner == dead { "killed" } else { "alive" };
        row(&mut table, format!("under way on {owner} ({fate})"), &tally);
        if owner == dead {
            must!(
                tally.broken() == finished.len(),
                "connections of the killed {dead} went on: {tally}"
            );
        } else {
            must!(
                tally.status(200) == finished.len(),
                "connections of {owner} broke when {dead} died: {tally}"
            );
        }
    }
    must!(
        under_way.contains_key(dead),
        "no connection belonged to {dead}"
    );
    let tally = Tally::of(new);
    row(&mut table, "new".to_owned(), &tally);
    must!(tally.refused == 0, "new connections were refused: {tally}");
    must!(
        tally.status(200) == new.len(),
        "{} new connections gave {tally}",
        new.len()
    );
    Ok(table)
}

fn row(table: &mut Table, what: String, tally: &Tally) {
    let Tally {
        refused,
        reset,
        timed_out,
        cut_off,
        ..
    } = tally;
    let counts = [&tally.status(200), refused, reset, timed_out, cut_off].map(ToString::to_string);
    let [answered, refused, reset, timed_out, cut_off] = counts;
    table.row([what, answered, refused, reset, timed_out, cut_off]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Answer, Outcome};

    fn finished(outcome: Outcome) -> Finished {
        Finished {
            number: 0,
            port: 0,
            outcome,
            took: Duration::ZERO,
        }
    }

    fn answer() -> Finished {
        finished(Outcome::Answer(Answer {
            status: 200,
            ..Answer::default()
        }))
    }

    fn verdict(alive: Finished, dead: Finished, new: Finished) -> Result<Table> {
        let under_way =
            BTreeMap::from([("node1".into(), vec![alive]), ("node2".into(), vec![dead])]);
        judge("node2", &under_way, &[new])
    }

    #[test]
    fn only_connections_of_the_dead_node_may_break() {
        let broken = || finished(Outcome::Reset);
        assert!(verdict(answer(), broken(), answer()).is_ok());
        assert!(verdict(broken(), broken(), answer()).is_err());
        assert!(verdict(answer(), answer(), answer()).is_err());
        assert!(verdict(answer(), broken(), broken()).is_err());
        assert!(verdict(answer(), broken(), finished(Outcome::Refused)).is_err());
    }
}
