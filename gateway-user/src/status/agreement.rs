//! Whether all nodes serve what one of them has translated: a Gateway is programmed only when they do.
//!
//! Nodes read the API server each for itself and some milliseconds apart. A client that has seen `Programmed` may meet any
//! of them, and a datagram is not sent again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use gateway_common::hash::sip13;

use crate::snapshot::{BindKey, ObjectKey, Snapshot};
use crate::translate::Inputs;

/// How long a new listener waits for nodes that lag behind: longer than any that lives takes.
const LIMIT: Duration = Duration::from_secs(5);

/// What a node serves, as one number: the same on nodes that serve the same listeners and the same routes of datagrams.
#[must_use]
pub fn fingerprint(snapshot: &Snapshot, inputs: &Inputs) -> u64 {
    let binds = snapshot.binds.iter();
    let binds = binds.map(|(key, bind)| format!("{key} {}", bind.gateway));
    let routes = inputs.udp_routes.iter();
    let routes = routes.map(|(key, route)| {
        let generation = route.metadata.generation.unwrap_or_default();
        format!("{key} {generation}")
    });
    // Whatever their order, as maps of different ages may have.
    binds
        .chain(routes)
        .map(|text| sip13([0, 0], text.as_bytes()))
        .fold(0, u64::wrapping_add)
}

/// What the nodes have agreed on.
#[derive(Debug, Default)]
pub struct Agreement {
    /// A socket that goes from one Gateway to another is a new one.
    settled: BTreeSet<(BindKey, ObjectKey)>,
    /// Since when something waits.
    since: Option<Instant>,
}

impl Agreement {
    /// The listeners that some node does not serve yet. `lagging`: nodes that say something else than this one, or nothing.
    /// A node that does not lead waits for nobody.
    pub fn look(
        &mut self,
        binds: impl Iterator<Item = (BindKey, ObjectKey)>,
        leads: bool,
        lagging: &[String],
        now: Instant,
    ) -> BTreeSet<BindKey> {
        let binds: BTreeSet<(BindKey, ObjectKey)> = binds.collect();
        let new = binds.difference(&self.settled);
        let pending: BTreeSet<BindKey> = new.map(|(bind, _)| *bind).collect();
        if pending.is_empty() || !leads || lagging.is_empty() {
            self.settle(binds);
            return BTreeSet::new();
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= LIMIT {
            tracing::warn!(
                "new listeners count as programmed although these nodes have not said that they serve them: {}",
                lagging.join(", ")
            );
            self.settle(binds);
            return BTreeSet::new();
        }
        self.settled.retain(|bind| binds.contains(bind));
        pending
    }

    fn settle(&mut self, binds: BTreeSet<(BindKey, ObjectKey)>) {
        self.settled = binds;
        self.since = None;
    }

    /// When it is to be looked at again though nothing has changed.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Transport;

    fn bind_of(gateway: &str, port: u16) -> (BindKey, ObjectKey) {
        let bind = BindKey {
            address: [192, 0, 2, 1].into(),
            port,
            transport: Transport::Tcp,
        };
        (bind, ObjectKey::new("a", gateway))
    }

    fn bind(port: u16) -> (BindKey, ObjectKey) {
        bind_of("gw", port)
    }

    #[test]
    fn new_listeners_wait_for_all_nodes_and_old_ones_for_none() {
        let start = Instant::now();
        let mut agreement = Agreement::default();
        let lagging = ["b".to_owned()];
        let mut look = |ports: &[u16], lagging: &[String], after: u64| {
            let binds = ports.iter().copied().map(bind);
            let now = start + Duration::from_millis(after);
            let pending = agreement.look(binds, true, lagging, now);
            (
                pending.iter().map(|b| b.port).collect::<Vec<_>>(),
                agreement.due().map(|due| (due - start).as_millis()),
            )
        };
        assert_eq!(look(&[80], &[], 0), (vec![], None));
        assert_eq!(look(&[80, 81], &lagging, 10), (vec![81], Some(5010)));
        assert_eq!(look(&[80, 81], &lagging, 20), (vec![81], Some(5010)));
        assert_eq!(look(&[80, 81], &[], 30), (vec![], None));
        // An old listener that comes back is new.
        assert_eq!(look(&[81], &lagging, 40), (vec![], None));
        assert_eq!(look(&[80, 81], &lagging, 50), (vec![80], Some(5050)));
        assert_eq!(look(&[80, 81], &lagging, 5050), (vec![], None));
        assert_eq!(look(&[80, 81], &lagging, 5060), (vec![], None));
    }

    #[test]
    fn a_socket_that_another_gateway_takes_over_is_new() {
        let mut agreement = Agreement::default();
        let now = Instant::now();
        let lagging = ["b".to_owned()];
        assert!(
            agreement
                .look([bind(80)].into_iter(), true, &[], now)
                .is_empty()
        );
        let other = [bind_of("other", 80)].into_iter();
        assert_eq!(agreement.look(other, true, &lagging, now).len(), 1);
    }

    #[test]
    fn who_does_not_lead_waits_for_nobody_and_neither_does_who_comes_to_lead() {
        let mut agreement = Agreement::default();
        let lagging = ["b".to_owned()];
        let now = Instant::now();
        let mut look = |leads| agreement.look([bind(80)].into_iter(), leads, &lagging, now);
        assert!(look(false).is_empty());
        assert!(look(true).is_empty());
    }
}
