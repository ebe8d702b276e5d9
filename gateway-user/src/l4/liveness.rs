//! Which peers answer probes, and what they say: facts for `membership`, which decides.
//!
//! - **Silence is what was listened to.** A peer's silence begins with its last answer, but is none before a question to
//!   it is open: then the wait for that question counts too, with at most an interval. It grows only by time in which the
//!   prober ran: after a stall (the process was not scheduled, the machine slept, the clock jumped) a step counts for at
//!   most one and a half intervals. A question that could not even be sent says nothing about the peer.
//! - **Suspect** after `suspect_after` of silence, **silent** after `dead_after`; any answer ends both. A peer that never
//!   answered may not list this node yet, and refuse its questions: it is suspect after 2 s only. An answer counts
//!   if it names both ends, carries a question's sequence that is still open, and was not given before.
//! - **Agreement**: while a peer is suspect, every question to the others asks what they hold it for. It is agreed that
//!   it is dead if it is silent here and most of those who answer here and probe themselves, this node included, hold
//!   it for silent. A peer that never answered this node needs somebody else's word: else a firewall between the nodes
//!   would be taken for the death of all.
//! - **Quiet** is a node that has said for a while, under one membership and with its proxy alive, that it holds no
//!   foreign socket.
//!
//! Time is an argument; sockets and keys are the prober's.

mod report;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use gateway_common::hash::Key;
use gateway_common::probe::{ANSWER, Probe, REQUEST, flag, view};

pub use self::report::{PeerReport, Quiet, Report, Standing};
use super::{Time, abi_address};

/// Questions to one peer that may be open at a time; of more the oldest counts as lost.
const OPEN: usize = 16;

/// How long it may take until all have seen a new list.
const NEWS: Duration = Duration::from_secs(2);

/// How long a voter's opinion holds, and how long its own probing may stand still. Opinions are asked for one at a time,
/// so they hold longer while there are many to ask for.
const FRESH: Duration = Duration::from_secs(1);

/// How peers are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Time between two questions to a peer.
    pub interval: Duration,
    /// Silence after which a peer is suspect.
    pub suspect_after: Duration,
    /// Silence after which a peer may be dead.
    pub dead_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(100),
            suspect_after: Duration::from_millis(300),
            dead_after: Duration::from_secs(3),
        }
    }
}

/// A node to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerId {
    /// Its name.
    pub name: String,
    /// `rendezvous::name_hash` of its name.
    pub name_hash: u64,
    /// Its address.
    pub address: IpAddr,
}

#[derive(Clone, Debug)]
struct Peer {
    id: PeerId,
    report: PeerReport,
    open: VecDeque<(u64, Time)>,
    /// Questions made, which tells whom to ask about next.
    turn: usize,
    /// Whether an answer is due.
    due: bool,
    /// Time since its last answer in which no question was open.
    unasked: Duration,
    silence: Duration,
    quiet: Option<(u32, Duration)>,
    /// Its rounds of probing, and when they last moved.
    rounds: Option<(u32, Duration)>,
    /// What others hold it for, and since when that is known.
    opinions: BTreeMap<u64, (u8, Duration)>,
    agreed_at: Option<Duration>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Liveness {
    settings: Settings,
    own: u64,
    peers: BTreeMap<u64, Peer>,
    /// Peers that are not well, to be asked about.
    subjects: Vec<u64>,
    next_sequence: u64,
    /// Time listened to.
    clock: Duration,
    last: Time,
    stalled: Duration,
    own_quiet: Option<(u32, Duration)>,
}

impl Liveness {
    /// Nobody is probed yet. Sequences begin at `seed`, which differs from start to start.
    #[must_use]
    pub fn new(settings: Settings, seed: u64, now: Time) -> Self {
        Self {
            settings,
            own: 0,
            peers: BTreeMap::new(),
            subjects: Vec::new(),
            next_sequence: seed,
            clock: Duration::ZERO,
            last: now,
            stalled: Duration::ZERO,
            own_quiet: None,
        }
    }

    /// Probes exactly these peers, as the node whose name has the hash `own`. A peer whose address changed begins anew.
    pub fn set_peers(&mut self, own: u64, peers: &[PeerId]) {
        self.own = own;
        let mut known = std::mem::take(&mut self.peers);
        for id in peers.iter().filter(|id| id.name_hash != own) {
            let peer = known.remove(&id.name_hash).filter(|peer| peer.id == *id);
            self.peers
                .insert(id.name_hash, peer.unwrap_or_else(|| Peer::new(id)));
        }
    }

    /// The peers that are probed, by the hash of their names.
    pub fn peers(&self) -> impl ExactSizeIterator<Item = &PeerId> {
        self.peers.values().map(|peer| &peer.id)
    }

    /// A question to a peer.
    pub fn ask(&mut self, peer: u64, now: Time) -> Option<Probe> {
        let subject = self.subject_for(peer);
        let sequence = self.next_sequence;
        let to = self.peers.get_mut(&peer)?;
        self.next_sequence = sequence.wrapping_add(1);
        if to.open.len() == OPEN {
            to.open.pop_front();
            to.report.lost += 1;
        }
        to.open.push_back((sequence, now));
        to.turn = to.turn.wrapping_add(1);
        Some(Probe {
            kind: REQUEST,
            sequence,
            sender: self.own,
            addressee: peer,
            subject,
            ..Probe::default()
        })
    }

    /// The key to sign the next question to a peer with: the present one, and by turns the one before it while there is
    /// one and no answer comes, for the peer may not know the present one yet.
    #[must_use]
    pub fn key_for(&self, peer: u64, [present, previous]: [Key; 2]) -> Key {
        let in_doubt = |peer: &Peer| peer.due && !peer.turn.is_multiple_of(2);
        match previous != [0, 0] && self.peers.get(&peer).is_some_and(in_doubt) {
            true => previous,
            false => present,
        }
    }

    /// Whether the last question to a peer could be sent.
    pub fn sent(&mut self, peer: u64, sent: bool) {
        let longest = self.settings.interval;
        let Some(peer) = self.peers.get_mut(&peer) else {
            return;
        };
        let unasked = std::mem::take(&mut peer.unasked);
        peer.due = sent;
        if sent {
            peer.silence += unasked.min(longest);
            peer.report.asked += 1;
        } else {
            peer.open.pop_back();
        }
    }

    /// Takes an authentic answer; false if it belongs to no open question.
    pub fn hear(&mut self, answer: &Probe, now: Time) -> bool {
        let clock = self.clock;
        if answer.kind != ANSWER || answer.addressee != self.own {
            return false;
        }
        let Some(peer) = self.peers.get_mut(&answer.sender) else {
            return false;
        };
        let Some(at) = peer.open.iter().position(|(s, _)| *s == answer.sequence) else {
            return false;
        };
        if let Some((_, asked)) = peer.open.remove(at) {
            peer.report.round_trip = Some(now.saturating_sub(asked));
        }
        peer.heard(answer, clock, now);
        let subject = answer.subject;
        if let Some(about) = self
            .peers
            .values_mut()
            .find(|peer| subject != [0; 16] && abi_address(peer.id.address) == subject)
        {
            let opinion = (answer.verdict, clock);
            about.opinions.insert(answer.sender, opinion);
        }
        true
    }

    /// What this node itself counted: foreign sockets under a membership; none if it does not know.
    pub fn count_own(&mut self, counted: Option<(u32, u32)>) {
        self.own_quiet = quiet_after(self.own_quiet, counted, self.clock);
    }

    /// Lets time pass. To be called after the answers that have come are heard, at least once an interval.
    pub fn advance(&mut self, now: Time) {
        let passed = now.saturating_sub(self.last);
        let counted = passed.min(self.settings.interval * 3 / 2);
        self.stalled += passed - counted;
        self.clock += counted;
        self.last = self.last.max(now);
        for peer in self.peers.values_mut() {
            peer.listen(counted, &self.settings);
        }
        let unwell = |peer: &Peer| peer.unwell();
        self.subjects = (self.peers.iter().filter(|(_, peer)| unwell(peer)))
            .map(|(hash, _)| *hash)
            .collect();
        self.agree();
    }

    /// When [`Self::advance`] will find a peer suspect or silent, if it stays silent.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let left = self
            .peers
            .values()
            .filter(|peer| peer.due)
            .flat_map(|peer| {
                let limits = [peer.patience(&self.settings), self.settings.dead_after];
                let left = limits.map(|limit| limit.checked_sub(peer.silence));
                left.into_iter().flatten().filter(|left| !left.is_zero())
            });
        left.min().map(|left| self.last + left)
    }

    /// The bits of a peer's alive word that come from its silence.
    #[must_use]
    pub fn alive_bits(&self, peer: u64) -> u8 {
        match self.peers.get(&peer).map(|peer| peer.report.standing) {
            Some(Standing::Suspect) => view::SUSPECT,
            Some(Standing::Silent) => view::SUSPECT | view::SILENT,
            _ => 0,
        }
    }

    /// Whether a peer answers.
    #[must_use]
    pub fn answers(&self, peer: u64) -> bool {
        let peer = self.peers.get(&peer);
        peer.is_some_and(|peer| peer.report.standing == Standing::Answering)
    }

    /// Everything that is known.
    #[must_use]
    pub fn report(&self) -> Report {
        let lasted = |quiet: Option<(u32, Duration)>| {
            quiet.map(|(fingerprint, since)| Quiet {
                fingerprint,
                lasted: self.clock.saturating_sub(since),
            })
        };
        let report = |peer: &Peer| PeerReport {
            agreed_for: peer.agreed_at.map(|at| self.clock.saturating_sub(at)),
            quiet: lasted(peer.quiet),
            ..peer.report.clone()
        };
        Report {
            peers: (self.peers.values())
                .map(|peer| (peer.id.name.clone(), report(peer)))
                .collect(),
            own_quiet: lasted(self.own_quiet),
            stalled: self.stalled,
        }
    }

    /// The peer to ask `peer` about: each in its turn.
    fn subject_for(&self, peer: u64) -> [u8; 16] {
        let count = self.subjects.len();
        let turn = self.peers.get(&peer).map_or(0, |peer| peer.turn);
        (0..count)
            .map(|step| self.subjects[turn.wrapping_add(step) % count])
            .find(|subject| *subject != peer)
            .and_then(|subject| self.peers.get(&subject))
            .map_or([0; 16], |subject| abi_address(subject.id.address))
    }

    fn agree(&mut self) {
        let patience =
            self.settings.interval * 2 * u32::try_from(self.subjects.len()).unwrap_or(u32::MAX);
        let oldest = self.clock.saturating_sub(FRESH + patience);
        let standstill = self.clock.saturating_sub(FRESH);
        let voters: Vec<u64> = (self.peers.iter())
            .filter(|(_, peer)| peer.probes_itself(standstill))
            .map(|(hash, _)| *hash)
            .collect();
        let clock = self.clock;
        for peer in self.peers.values_mut() {
            peer.opinions.retain(|_, (_, at)| *at >= oldest);
            let silent = |voter: &&u64| {
                let opinion = peer.opinions.get(voter);
                opinion.is_some_and(|(bits, _)| bits & view::SILENT != 0)
            };
            let votes = voters.iter().filter(silent).count();
            // This node votes too.
            let most = 2 * (votes + 1) > voters.len() + 1;
            let dead = peer.report.standing == Standing::Silent
                && most
                && (peer.report.known || votes > 0);
            peer.agreed_at = match (dead, peer.agreed_at) {
                (false, _) => None,
                (true, None) => Some(clock),
                (true, since) => since,
            };
        }
    }
}

impl Peer {
    fn new(id: &PeerId) -> Self {
        Self {
            id: id.clone(),
            report: PeerReport::default(),
            open: VecDeque::with_capacity(OPEN),
            turn: 0,
            due: false,
            unasked: Duration::ZERO,
            silence: Duration::ZERO,
            quiet: None,
            rounds: None,
            opinions: BTreeMap::new(),
            agreed_at: None,
        }
    }

    fn heard(&mut self, answer: &Probe, clock: Duration, now: Time) {
        self.due = false;
        self.unasked = Duration::ZERO;
        self.silence = Duration::ZERO;
        self.agreed_at = None;
        self.opinions.clear();
        if self
            .rounds
            .is_none_or(|(rounds, _)| rounds != answer.rounds)
        {
            self.rounds = Some((answer.rounds, clock));
        }
        let counted = answer.flags & flag::COUNTED != 0;
        let proxy_alive = answer.flags & flag::PROXY_ALIVE != 0;
        let told = counted.then_some((answer.fingerprint, answer.foreign));
        self.quiet = quiet_after(self.quiet, told.filter(|_| proxy_alive), clock);
        let report = &mut self.report;
        report.standing = Standing::Answering;
        report.known = true;
        report.fingerprint = told.map(|(fingerprint, _)| fingerprint);
        report.foreign = told.map(|(_, foreign)| foreign);
        report.proxy_alive = proxy_alive;
        report.ready = answer.flags & flag::READY != 0;
        report.draining = answer.flags & flag::DRAINING != 0;
        report.holds_us = answer.asker;
        report.heard_at = Some(now);
    }

    fn listen(&mut self, time: Duration, settings: &Settings) {
        if self.due {
            self.silence += time;
        } else if self.report.standing == Standing::Answering {
            self.unasked += time;
        }
        let before = self.report.standing;
        if self.silence >= settings.dead_after {
            self.report.standing = Standing::Silent;
        } else if self.silence >= self.patience(settings) {
            self.report.standing = Standing::Suspect;
        }
        if self.unwell() {
            self.quiet = None;
            let fresh = matches!(before, Standing::New | Standing::Answering);
            self.report.suspected += u64::from(fresh);
        }
    }

    /// Silence after which it is suspect.
    fn patience(&self, settings: &Settings) -> Duration {
        match self.report.known {
            true => settings.suspect_after,
            false => NEWS.min(settings.dead_after).max(settings.suspect_after),
        }
    }

    fn unwell(&self) -> bool {
        matches!(self.report.standing, Standing::Suspect | Standing::Silent)
    }

    /// Whether its opinion of others is one of now.
    fn probes_itself(&self, standstill: Duration) -> bool {
        self.report.standing == Standing::Answering
            && self.rounds.is_some_and(|(_, moved)| moved >= standstill)
    }
}

/// Whether a node that counted so is quiet, and since when.
fn quiet_after(
    before: Option<(u32, Duration)>,
    counted: Option<(u32, u32)>,
    clock: Duration,
) -> Option<(u32, Duration)> {
    match counted {
        Some((fingerprint, 0)) => before
            .filter(|(under, _)| *under == fingerprint)
            .or(Some((fingerprint, clock))),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
