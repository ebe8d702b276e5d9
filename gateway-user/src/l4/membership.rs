//! Who is listed in which state, and whose rows may have sockets elsewhere: the one owner of both.
//!
//! Facts: the replicas of the snapshot, this node's own decision to drain, time, and what [`super::liveness`] reports of
//! the peers. Without reports (nobody probes) every doubt lasts for the drain timeout and nobody is waited for.
//!
//! Rule of doubt: a row counts as in transition as long as a listed node other than its owner *may* hold sockets of it;
//! that costs one socket lookup, the other error costs a connection.
//!
//! - **Absence.** No list at all means "alone and ready" where [`Absence::Alone`] says so; else it is the last list that
//!   there was, or, if there never was one, this node joining.
//! - **Joining to ready.** A node that the list calls ready *waits* here until every peer that answers works with our
//!   list, or with the one that follows from it, with or without itself waiting; at most [`JOIN_LIMIT`]. So nobody owns
//!   a row before the others know of it: that it waits is part of the fingerprint, and where it outranks the owner, which
//!   may be a step behind, rows are in transition. Of the first list that this node sees only it itself is held back: the
//!   others were there before.
//! - **No longer ready.** A peer that the list calls so keeps its rows here while it answers, its proxy beats and it holds
//!   itself for ready; at most [`LEAVE_LIMIT`]. Else others would take connections of rows that it takes for its own, and it
//!   would reset them.
//! - **Draining by its own decision.** A peer that says so is draining here too, whatever the list calls it: the list may
//!   learn of it later than those who would send it connections, or never.
//! - **Death.** A peer that is agreed to be dead is out of ranks, rows and fingerprint, and stays known: its probes are
//!   answered, else two nodes that hold each other for dead would never meet again. If more than half of the list is
//!   silent or dead, nobody more is taken for dead before that has been agreed for [`CONFIRM`]. This node is never dead.
//! - **Speaking for VIPs.** A peer that is suspect announces nothing: the next one does, without waiting for its death.
//!   While more than half of the list is silent this is held as well, for it is rather we who are cut off.
//! - **Return.** A dead node that answers is joining again, and may hold sockets of before.
//! - **Draining, lost readiness.** Its sockets are doubted ([`Member::holds_until`]) until it says that it has none.
//! - **Newly ready.** The others' sockets are doubted ([`Member::settles_at`]) until all of them say that they have none.
//! - **Episodes.** While a ready node is suspect or its proxy does not beat, others take its new connections. Its rows
//!   are in transition from then on until it is well and all others say that they hold no foreign socket. For this node
//!   itself: while a peer that used to answer does not (it may hold *us* for suspect), while a peer says that it has an
//!   episode about us, and after the own heart stood still.
//! - **Saying so** counts if it lasted for [`QUIET`], under our present membership, on which all who answer agree. What
//!   nobody says ends with the drain timeout, in an episode counted from its end. As long as a node says that it holds
//!   connections in another's place, the doubt about that one's rows lasts: they may be much older than any drain.

mod observe;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use gateway_common::fingerprint::{Member as FingerprintMember, MemberState, fingerprint};
use gateway_common::hash::Key;

use super::Time;
use crate::snapshot::{Replica, ReplicaState};

/// How long a node that is ready waits for the others to know of it.
pub const JOIN_LIMIT: Duration = Duration::from_secs(2);

/// How long a node that is no longer ready is waited for, until it knows.
pub const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// How long more than half of the list must be agreed to be dead.
pub const CONFIRM: Duration = Duration::from_secs(10);

/// How long a node must have held no foreign socket: its kernel may still be sending the end of an answer, or about to
/// hand its proxy a connection.
pub const QUIET: Duration = Duration::from_secs(2);

/// What it means that there is no list of replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Absence {
    /// This node is alone.
    #[default]
    Alone,
    /// The list is missing: the last one holds.
    Unknown,
}

/// A time in which others took a ready node's new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Episode {
    /// Since when its cause is gone.
    calm_since: Option<Time>,
}

/// One listed node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Node name.
    pub name: String,
    /// Node address.
    pub address: IpAddr,
    /// Capacity weight, 1 to 255.
    pub weight: u8,
    /// What it may do, with this node's own decision to drain and the wait of those who join applied.
    pub state: ReplicaState,
    /// What the list and its own decision say that it may do.
    pub wanted: ReplicaState,
    /// Taken for dead: out of ranks, rows and fingerprint.
    pub dead: bool,
    /// Not ready but may still hold sockets of rows in which it outranks the owner, up to this time.
    pub holds_until: Option<Time>,
    /// Ready, but others may hold sockets of its rows up to this time.
    pub settles_at: Option<Time>,
    /// Others may hold sockets of its rows since it was not well.
    pub episode: Option<Episode>,
    /// It does not answer: others speak for the addresses that are its to announce.
    pub unheard: bool,
}

/// The listed nodes as this node sees them.
#[derive(Clone, Debug)]
pub struct Membership {
    own_name: String,
    own_address: IpAddr,
    drain_timeout: Duration,
    absence: Absence,
    probing: bool,
    draining: bool,
    started: bool,
    replicas: Vec<Replica>,
    /// Peers that said last that they drain by their own decision.
    say_draining: BTreeSet<String>,
    members: BTreeMap<String, Member>,
    /// Nodes that the list calls ready and that wait for agreement, with the end of their patience.
    joining: BTreeMap<String, Time>,
    /// Nodes that the list no longer calls ready and that may not know it, with the end of their time.
    leaving: BTreeMap<String, Time>,
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
            absence: Absence::default(),
            probing: false,
            draining: false,
            started: false,
            replicas: Vec::new(),
            say_draining: BTreeSet::new(),
            members: BTreeMap::new(),
            joining: BTreeMap::new(),
            leaving: BTreeMap::new(),
            all_until: None,
        }
    }

    /// What the absence of a list means.
    pub fn set_absence(&mut self, absence: Absence) {
        self.absence = absence;
    }

    /// From now on reports come ([`Self::observe`]).
    pub fn set_probing(&mut self) {
        self.probing = true;
    }

    /// Takes the replicas of a snapshot; see [`Absence`] for none at all. A list without this node means that it is
    /// joining. A name that is listed twice counts once, as listed first.
    pub fn update(&mut self, replicas: &[Replica], now: Time) {
        if !replicas.is_empty() || self.absence == Absence::Alone {
            self.replicas = replicas.to_vec();
        }
        self.refresh(now);
    }

    /// This node's own decision to drain (or to stop doing so), at once and whatever the snapshot says.
    pub fn set_draining(&mut self, draining: bool, now: Time) {
        self.draining = draining;
        if self.started {
            self.refresh(now);
        }
    }

    /// This node's own heart stood still, and beats again: others took its new connections meanwhile.
    pub fn after_gap(&mut self, now: Time) {
        if let Some(own) = self.members.get_mut(&self.own_name) {
            own.episode = Some(Episode {
                calm_since: Some(now),
            });
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
        if self.replicas.is_empty() && self.absence == Absence::Alone {
            own.state = ReplicaState::Ready;
        }
        if self.draining {
            own.state = ReplicaState::Draining;
        }
        self.say_draining.retain(|name| listed.contains_key(name));
        for name in &self.say_draining {
            if let Some(replica) = listed.get_mut(name) {
                replica.state = ReplicaState::Draining;
            }
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
        self.joining.retain(|name, _| listed.contains_key(name));
        self.leaving.retain(|name, _| listed.contains_key(name));
        let alone = listed.len() == 1;
        self.members = listed
            .into_values()
            .map(|replica| {
                let before = known.get(&replica.name);
                let member = self.member(replica, before, alone, now);
                (member.name.clone(), member)
            })
            .collect();
        self.started = true;
    }

    fn member(
        &mut self,
        replica: Replica,
        before: Option<&Member>,
        alone: bool,
        now: Time,
    ) -> Member {
        let before = before.filter(|m| !m.dead || m.address == replica.address);
        let dead = before.is_some_and(|m| m.dead);
        let state = self.held_back(&replica, before, alone, now);
        let mut member = Member {
            address: replica.address,
            weight: replica.weight.max(1),
            state,
            wanted: replica.state,
            dead,
            holds_until: before.and_then(|m| m.holds_until),
            settles_at: before.and_then(|m| m.settles_at),
            episode: before
                .and_then(|m| m.episode)
                .filter(|_| state == ReplicaState::Ready),
            unheard: before.is_some_and(|m| m.unheard),
            name: replica.name,
        };
        match (before.map(|m| m.state), state) {
            _ if dead => {}
            (Some(old), new) if old == new => {}
            (_, ReplicaState::Ready) => self.make_ready(&mut member, now),
            // It never owned a row while we watched.
            (None, ReplicaState::Joining) if self.started => {}
            (Some(ReplicaState::Joining), ReplicaState::Draining) => {}
            (_, ReplicaState::Draining | ReplicaState::Joining) => {
                member.holds_until = Some(now + self.drain_timeout);
                member.settles_at = None;
            }
        }
        member
    }

    /// The state of a replica, with those who are to become ready held back.
    fn held_back(
        &mut self,
        replica: &Replica,
        before: Option<&Member>,
        alone: bool,
        now: Time,
    ) -> ReplicaState {
        let is_ready = before.is_some_and(|m| m.state == ReplicaState::Ready);
        let was_there = !self.started && replica.name != self.own_name;
        let waits = self.probing && !alone && !is_ready && !was_there;
        if replica.state != ReplicaState::Ready || !waits {
            self.joining.remove(&replica.name);
            let leaves = replica.state != ReplicaState::Ready && is_ready && self.probing;
            if leaves && replica.name != self.own_name && before.is_some_and(|m| !m.dead) {
                let until = self.leaving.entry(replica.name.clone());
                until.or_insert(now + LEAVE_LIMIT);
                return ReplicaState::Ready;
            }
            self.leaving.remove(&replica.name);
            return replica.state;
        }
        if before.is_none_or(|m| !m.dead) {
            self.joining
                .entry(replica.name.clone())
                .or_insert(now + JOIN_LIMIT);
        }
        ReplicaState::Joining
    }

    fn make_ready(&self, member: &mut Member, now: Time) {
        member.state = ReplicaState::Ready;
        member.holds_until = None;
        member.settles_at = Some(now + self.drain_timeout);
    }

    /// Lets those of the waiting nodes for which `over` holds be ready.
    fn end_waits(&mut self, over: impl Fn(Time) -> bool, now: Time) {
        let waiting = std::mem::take(&mut self.joining);
        for (name, until) in waiting {
            if !over(until) {
                self.joining.insert(name, until);
            } else if let Some(mut member) = self.members.remove(&name) {
                self.make_ready(&mut member, now);
                self.members.insert(name, member);
            }
        }
    }

    /// Lets those go for which `over` holds, by name and the end of their time.
    fn end_stays(&mut self, over: impl Fn(&str, Time) -> bool, now: Time) {
        let (gone, kept) = std::mem::take(&mut self.leaving)
            .into_iter()
            .partition(|(name, until)| over(name, *until));
        self.leaving = kept;
        let gone: BTreeMap<String, Time> = gone;
        for name in gone.keys() {
            if let Some(member) = self.members.get_mut(name) {
                member.state = member.wanted;
                member.holds_until = Some(now + self.drain_timeout);
                (member.settles_at, member.episode) = (None, None);
            }
        }
    }

    /// The membership fingerprint of the list as it stands here.
    #[must_use]
    pub fn fingerprint(&self, key: Key) -> u32 {
        self.fingerprint_of(key, Member::as_all_see_it)
    }

    fn fingerprint_of(&self, key: Key, state: impl Fn(&Member) -> MemberState) -> u32 {
        let member = |m| FingerprintMember {
            name: Member::name(m),
            state: state(m),
            weight: m.weight,
        };
        let alive = self.members.values().filter(|m| !m.dead);
        fingerprint(key, &mut alive.map(member).collect::<Vec<_>>())
    }

    fn others(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|m| m.name != self.own_name)
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
            .flat_map(|m| [m.holds_until, m.settles_at, self.end_of(m)])
            .chain([self.all_until])
            .flatten()
            .chain(self.joining.values().copied())
            .chain(self.leaving.values().copied())
            .min()
    }

    /// Ends the doubts and waits whose time has come.
    pub fn handle_timeout(&mut self, now: Time) {
        let over = |time: &mut Option<Time>| {
            if time.is_some_and(|t| t <= now) {
                *time = None;
            }
        };
        let drain_timeout = self.drain_timeout;
        for member in self.members.values_mut() {
            over(&mut member.holds_until);
            over(&mut member.settles_at);
            member.episode = member.episode.filter(|episode| {
                let past = |since: Time| since + drain_timeout <= now;
                !episode.calm_since.is_some_and(past)
            });
        }
        over(&mut self.all_until);
        self.end_waits(|until| until <= now, now);
        self.end_stays(|_, until| until <= now, now);
    }

    fn end_of(&self, member: &Member) -> Option<Time> {
        let calm_since = member.episode.and_then(|episode| episode.calm_since)?;
        Some(calm_since + self.drain_timeout)
    }
}

impl Member {
    fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is called ready, and held back until all know of that.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.state == ReplicaState::Joining && self.wanted == ReplicaState::Ready && !self.dead
    }

    fn as_all_see_it(&self) -> MemberState {
        match self.state {
            ReplicaState::Joining if self.waits() => MemberState::Waiting,
            ReplicaState::Joining => MemberState::Joining,
            ReplicaState::Ready => MemberState::Ready,
            ReplicaState::Draining => MemberState::Draining,
        }
    }
}

#[cfg(test)]
mod tests;
