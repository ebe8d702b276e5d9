//! Who is listed in which state, and whose rows may have sockets elsewhere.
//!
//! Facts: the replicas of the snapshot, this node's own decision to drain, and time. Rule of doubt: a row counts
//! as in transition as long as a listed node other than its owner *may* hold sockets of it; that costs one
//! socket lookup, the other error costs a connection. Nodes do not report what they hold here, so doubt ends
//! with the drain timeout. Suspicion and death of silent nodes are not known to this module.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::Time;
use crate::snapshot::{Replica, ReplicaState};

/// One listed node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Node name.
    pub name: String,
    /// Node address.
    pub address: IpAddr,
    /// Capacity weight, 1 to 255.
    pub weight: u8,
    /// What it may do, with this node's own decision to drain applied.
    pub state: ReplicaState,
    /// Not ready but may still hold sockets of rows in which it outranks the owner, up to this time.
    pub holds_until: Option<Time>,
    /// Ready, but others may hold sockets of its rows up to this time.
    pub settles_at: Option<Time>,
}

/// The listed nodes as this node sees them.
#[derive(Clone, Debug)]
pub struct Membership {
    own_name: String,
    own_address: IpAddr,
    drain_timeout: Duration,
    draining: bool,
    started: bool,
    replicas: Vec<Replica>,
    members: BTreeMap<String, Member>,
    /// All rows are in transition up to this time: weights changed, so rows moved between healthy nodes.
    all_until: Option<Time>,
}

impl Membership {
    /// Nothing is listed before the first [`Self::update`]. `own_address` is used while no replica is listed
    /// under `own_name`.
    #[must_use]
    pub fn new(own_name: &str, own_address: IpAddr, drain_timeout: Duration) -> Self {
        Self {
            own_name: own_name.to_owned(),
            own_address,
            drain_timeout,
            draining: false,
            started: false,
            replicas: Vec::new(),
            members: BTreeMap::new(),
            all_until: None,
        }
    }

    /// Takes the replicas of a snapshot. None at all means that this node is alone and ready; a list without
    /// this node means that it is joining. A name that is listed twice counts once, as listed first.
    pub fn update(&mut self, replicas: &[Replica], now: Time) {
        self.replicas = replicas.to_vec();
        self.refresh(now);
    }

    /// This node's own decision to drain (or to stop doing so), at once and whatever the snapshot says.
    pub fn set_draining(&mut self, draining: bool, now: Time) {
        self.draining = draining;
        if self.started {
            self.refresh(now);
        }
    }

    fn refresh(&mut self, now: Time) {
        let mut listed: BTreeMap<String, Replica> = BTreeMap::new();
        for replica in &self.replicas {
            listed
                .entry(replica.name.clone())
                .or_insert_with(|| replica.clone());
        }
        let own = listed.entry(self.own_name.clone()).or_insert(Replica {
            name: self.own_name.clone(),
            address: self.own_address,
            state: ReplicaState::Joining,
            weight: 1,
        });
        if self.replicas.is_empty() {
            own.state = ReplicaState::Ready;
        }
        if self.draining {
            own.state = ReplicaState::Draining;
        }
        let known = std::mem::take(&mut self.members);
        let reweighed = listed.values().any(|r| {
            known
                .get(&r.name)
                .is_some_and(|m| m.weight != r.weight.max(1))
        });
        if reweighed {
            self.all_until = Some(now + self.drain_timeout);
        }
        self.members = listed
            .into_values()
            .map(|replica| (replica.name.clone(), self.member(replica, &known, now)))
            .collect();
        self.started = true;
    }

    fn member(&self, replica: Replica, known: &BTreeMap<String, Member>, now: Time) -> Member {
        let before = known.get(&replica.name);
        let deadline = Some(now + self.drain_timeout);
        let mut member = Member {
            address: replica.address,
            weight: replica.weight.max(1),
            state: replica.state,
            holds_until: before.and_then(|m| m.holds_until),
            settles_at: before.and_then(|m| m.settles_at),
            name: replica.name,
        };
        match (before.map(|m| m.state), member.state) {
            (Some(old), new) if old == new => {}
            (_, ReplicaState::Ready) => {
                member.holds_until = None;
                member.settles_at = deadline;
            }
            // It never owned a row while we watched.
            (None, ReplicaState::Joining) if self.started => {}
            (Some(ReplicaState::Joining), ReplicaState::Draining) => {}
            (_, ReplicaState::Draining | ReplicaState::Joining) => {
                member.holds_until = deadline;
                member.settles_at = None;
            }
        }
        member
    }

    /// Whether this node decided to drain.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// Own name.
    #[must_use]
    pub fn own_name(&self) -> &str {
        &self.own_name
    }

    /// The listed nodes in the order of their names.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.members.values()
    }

    /// Whether every row counts as in transition: weights changed a short while ago.
    #[must_use]
    pub fn all_in_transition(&self) -> bool {
        self.all_until.is_some() && self.members.len() > 1
    }

    /// When [`Self::handle_timeout`] will change something.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.members
            .values()
            .flat_map(|m| [m.holds_until, m.settles_at])
            .chain([self.all_until])
            .flatten()
            .min()
    }

    /// Ends the doubts whose time has come.
    pub fn handle_timeout(&mut self, now: Time) {
        let over = |time: &mut Option<Time>| {
            if time.is_some_and(|t| t <= now) {
                *time = None;
            }
        };
        for member in self.members.values_mut() {
            over(&mut member.holds_until);
            over(&mut member.settles_at);
        }
        over(&mut self.all_until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    fn replica(name: &str, state: ReplicaState) -> Replica {
        Replica {
            name: name.to_owned(),
            address: IpAddr::from([10, 0, 0, name.as_bytes()[0]]),
            state,
            weight: 1,
        }
    }

    fn membership() -> Membership {
        Membership::new("a", IpAddr::from([10, 0, 0, 1]), TIMEOUT)
    }

    fn states(m: &Membership) -> Vec<(String, ReplicaState)> {
        m.members().map(|m| (m.name.clone(), m.state)).collect()
    }

    #[test]
    fn an_empty_list_is_this_node_alone_and_ready() {
        let mut m = membership();
        m.update(&[], at(0));
        assert_eq!(states(&m), [("a".to_owned(), ReplicaState::Ready)]);
    }

    #[test]
    fn a_list_without_this_node_leaves_it_joining() {
        let mut m = membership();
        m.update(&[replica("b", ReplicaState::Ready)], at(0));
        assert_eq!(
            states(&m),
            [
                ("a".to_owned(), ReplicaState::Joining),
                ("b".to_owned(), ReplicaState::Ready)
            ]
        );
    }

    #[test]
    fn doubt_at_the_start_ends_with_the_drain_timeout() {
        let mut m = membership();
        m.update(
            &[
                replica("a", ReplicaState::Ready),
                replica("b", ReplicaState::Joining),
            ],
            at(5),
        );
        assert_eq!(m.poll_timeout(), Some(at(65)));
        let b = m.members().nth(1).unwrap();
        assert_eq!(
            (b.holds_until, b.settles_at),
            (Some(at(65)), None),
            "its past is not known"
        );
        m.handle_timeout(at(65));
        assert_eq!(m.poll_timeout(), None);
    }

    #[test]
    fn a_node_that_joins_while_we_watch_holds_nothing_until_it_is_ready() {
        let mut m = membership();
        m.update(&[replica("a", ReplicaState::Ready)], at(0));
        m.handle_timeout(at(60));
        let joining = [
            replica("a", ReplicaState::Ready),
            replica("b", ReplicaState::Joining),
        ];
        m.update(&joining, at(100));
        assert_eq!(m.poll_timeout(), None);
        let ready = [
            replica("a", ReplicaState::Ready),
            replica("b", ReplicaState::Ready),
        ];
        m.update(&ready, at(110));
        assert_eq!(m.members().nth(1).unwrap().settles_at, Some(at(170)));
        m.update(&ready, at(120));
        assert_eq!(
            m.poll_timeout(),
            Some(at(170)),
            "the same list again starts nothing"
        );
    }

    #[test]
    fn the_own_decision_to_drain_beats_the_snapshot() {
        let mut m = membership();
        let all = [
            replica("a", ReplicaState::Ready),
            replica("b", ReplicaState::Ready),
        ];
        m.update(&all, at(0));
        m.handle_timeout(at(60));
        m.set_draining(true, at(100));
        m.update(&all, at(101));
        let a = m.members().next().unwrap();
        assert_eq!(
            (a.state, a.holds_until),
            (ReplicaState::Draining, Some(at(160)))
        );
        m.set_draining(false, at(130));
        let a = m.members().next().unwrap();
        assert_eq!(
            (a.state, a.settles_at),
            (ReplicaState::Ready, Some(at(190)))
        );
    }

    #[test]
    fn a_ready_node_that_loses_readiness_still_holds_sockets() {
        let mut m = membership();
        m.update(
            &[
                replica("a", ReplicaState::Ready),
                replica("b", ReplicaState::Ready),
            ],
            at(0),
        );
        m.update(
            &[
                replica("a", ReplicaState::Ready),
                replica("b", ReplicaState::Joining),
            ],
            at(9),
        );
        assert_eq!(m.members().nth(1).unwrap().holds_until, Some(at(69)));
    }

    #[test]
    fn a_new_weight_puts_everything_in_transition() {
        let mut m = membership();
        let mut all = [
            replica("a", ReplicaState::Ready),
            replica("b", ReplicaState::Ready),
        ];
        m.update(&all, at(0));
        m.handle_timeout(at(60));
        assert!(!m.all_in_transition());
        all[1].weight = 2;
        m.update(&all, at(70));
        assert!(m.all_in_transition());
        m.handle_timeout(at(130));
        assert!(!m.all_in_transition());
    }
}
