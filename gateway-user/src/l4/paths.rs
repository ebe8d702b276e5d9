//! Whether frames for a VIP reach the other nodes by a MAC rewrite: facts for `--forward auto`.
//!
//! A switch with port security, a virtual switch or a fabric may deliver frames between two nodes by address, not by MAC:
//! their own packets pass, a frame with the other's MAC and a VIP as destination does not. So every node on our link is
//! asked exactly that way; what it answers comes back as an ordinary packet.
//!
//! - **Proven** is a path after a few answers in a row. Until then, and after [`MISSES`] questions to one VIP in a row
//!   without an answer, packets go by UDP. To come back a path needs more answers, twice as many each time that it fails
//!   again soon.
//! - **A miss says something about the path only** if the node answered an ordinary probe meanwhile: else it is not well,
//!   which `liveness` says.
//! - **An answer also says that the other node knows our frames**: it counts their hops. A node that we have not heard for
//!   [`STALE`] may have forgotten us, so its path has to be proven anew.
//! - All VIPs take their turn, one at a time; one that is not answered stays until it is, so that a filter on a single
//!   address is noticed as well as one on all.
//!
//! Time is an argument; sockets and keys are the driver's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use gateway_common::hash::Key;
use gateway_common::probe::{PATH, PATH_ANSWER, Probe};

use super::{Time, abi_address};

/// Questions in a row without an answer after which a path is not used.
pub const MISSES: u32 = 3;
/// Answers in a row that prove a path for the first time.
const FIRST_HITS: u32 = 2;
/// Answers in a row that prove a path again, and the most that are ever wanted.
const HITS: (u32, u32) = (8, 128);
/// A path that lasted so long has no past.
const FORGIVEN: Duration = Duration::from_secs(60);
/// Silence of a node after which nothing is known of its path. Whoever leaves its list is known by its MAC for much longer.
pub const STALE: Duration = Duration::from_secs(3);
/// VIPs that are asked for before a path is proven, if there are as many.
const VIPS_FIRST: usize = 8;

/// Whom to ask, and how its frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// `rendezvous::name_hash` of its name.
    pub name_hash: u64,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC and our interface toward it: with another one the path is another.
    pub way: ([u8; 6], u32),
}

/// A question to be sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Question {
    /// For whom.
    pub node: IpAddr,
    /// The VIP that the frame is for.
    pub vip: IpAddr,
    /// To be signed and sent.
    pub probe: Probe,
    /// Whether to sign it under the key before the present one, while there is one.
    pub previous_key: bool,
}

/// What is known of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Not enough answers yet.
    #[default]
    Asking,
    /// Frames arrive.
    Proven,
    /// Frames do not arrive.
    NotAnswered,
}

/// A change of a path, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub node: IpAddr,
    /// To what.
    pub to: Standing,
    /// The VIP that was asked for last.
    pub vip: IpAddr,
}

/// Figures of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PathReport {
    /// What is known.
    pub standing: Standing,
    /// The VIP that is asked for while nothing is answered.
    pub vip: Option<IpAddr>,
    /// Questions sent.
    pub sent: u64,
    /// Questions that were not answered although the node was well.
    pub missed: u64,
    /// Times that the path changed between proven and not answered.
    pub changes: u64,
}

#[derive(Clone, Debug)]
struct Open {
    sequence: u64,
    sent: Time,
}

#[derive(Clone, Debug)]
struct Peer {
    target: Target,
    report: PathReport,
    /// Place of the VIP that is asked for.
    turn: usize,
    open: Option<Open>,
    next: Time,
    hits: u32,
    misses: u32,
    wanted: u32,
    proven_at: Time,
    previous_key: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Paths {
    interval: Duration,
    own: (u64, [u8; 16]),
    vips: Vec<IpAddr>,
    peers: BTreeMap<u64, Peer>,
    next_sequence: u64,
    changes: Vec<Change>,
}

impl Paths {
    /// Nobody is asked yet. `interval` is that of the ordinary probes; sequences begin at `seed`, which differs from
    /// start to start.
    #[must_use]
    pub fn new(interval: Duration, seed: u64) -> Self {
        Self {
            interval,
            own: (0, [0; 16]),
            vips: Vec::new(),
            peers: BTreeMap::new(),
            next_sequence: seed,
            changes: Vec::new(),
        }
    }

    /// Asks exactly these nodes, as the node of this name and address. Who has another way than before begins anew.
    pub fn set_peers(&mut self, own: u64, address: IpAddr, targets: &[Target], now: Time) {
        self.own = (own, abi_address(address));
        let mut known = std::mem::take(&mut self.peers);
        for target in targets {
            let peer = known.remove(&target.name_hash);
            let peer = peer.filter(|peer| peer.target == *target);
            self.peers.insert(
                target.name_hash,
                peer.unwrap_or_else(|| Peer::new(*target, now)),
            );
        }
    }

    /// The addresses to ask for, in any order. Without any nobody is asked, and what is known stays.
    pub fn set_vips(&mut self, vips: Vec<IpAddr>) {
        self.vips = vips;
    }

    /// Whether there is anything to ask for.
    #[must_use]
    pub fn has_vips(&self) -> bool {
        !self.vips.is_empty()
    }

    /// The questions that are due; each counts as sent.
    pub fn ask(&mut self, now: Time) -> Vec<Question> {
        let mut questions = Vec::new();
        if self.vips.is_empty() {
            return questions;
        }
        for peer in self.peers.values_mut() {
            if peer.open.is_some() || peer.next > now {
                continue;
            }
            let sequence = self.next_sequence;
            self.next_sequence = sequence.wrapping_add(1);
            peer.open = Some(Open {
                sequence,
                sent: now,
            });
            peer.report.sent += 1;
            questions.push(Question {
                node: peer.target.address,
                vip: self.vips[peer.turn % self.vips.len()],
                probe: Probe {
                    kind: PATH,
                    sequence,
                    sender: self.own.0,
                    addressee: peer.target.name_hash,
                    subject: self.own.1,
                    ..Probe::default()
                },
                previous_key: peer.previous_key,
            });
        }
        questions
    }

    /// What was asked last could not be sent: it says nothing.
    pub fn withdraw(&mut self, now: Time) {
        for peer in self.peers.values_mut() {
            if peer.open.as_ref().is_some_and(|open| open.sent == now) {
                peer.open = None;
                peer.next = now + self.interval;
                peer.report.sent -= 1;
            }
        }
    }

    /// Takes an authentic answer; false if it belongs to no open question.
    pub fn hear(&mut self, answer: &Probe, now: Time) -> bool {
        if answer.kind != PATH_ANSWER || answer.addressee != self.own.0 {
            return false;
        }
        let Some(peer) = self.peers.get_mut(&answer.sender) else {
            return false;
        };
        if peer.open.as_ref().map(|open| open.sequence) != Some(answer.sequence) {
            return false;
        }
        let change = peer.hit(self.vips.len(), self.interval, now);
        self.note(answer.sender, change);
        true
    }

    /// Lets time pass. To be called after the answers that have come are heard; `heard_at` says when a node last answered
    /// an ordinary probe.
    pub fn advance(&mut self, now: Time, heard_at: impl Fn(u64) -> Option<Time>) {
        let patience = self.interval * 3 / 2;
        let mut changed = Vec::new();
        for (hash, peer) in &mut self.peers {
            let heard = heard_at(*hash);
            if peer.report.standing == Standing::Proven
                && heard.is_none_or(|heard| now.saturating_sub(heard) >= STALE)
            {
                (peer.hits, peer.misses) = (0, 0);
                peer.report.standing = Standing::Asking;
                changed.push((*hash, Some((Standing::Asking, peer.turn))));
            }
            let Some(open) = &peer.open else {
                continue;
            };
            if now < open.sent + patience {
                continue;
            }
            let well = heard.is_some_and(|heard| heard > open.sent);
            peer.open = None;
            peer.next = now;
            if well {
                changed.push((*hash, peer.miss(self.interval, now)));
            }
        }
        for (hash, change) in changed {
            self.note(hash, change);
        }
    }

    /// When [`Self::ask`] or [`Self::advance`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let due = |peer: &Peer| match &peer.open {
            Some(open) => open.sent + self.interval * 3 / 2,
            None => peer.next,
        };
        let any = self.has_vips();
        self.peers.values().filter(|_| any).map(due).min()
    }

    /// Changes since this was last asked.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Addresses of the nodes whose path is proven.
    pub fn proven(&self) -> impl Iterator<Item = IpAddr> {
        let proven = |peer: &&Peer| peer.report.standing == Standing::Proven;
        let proven = self.peers.values().filter(proven);
        proven.map(|peer| peer.target.address)
    }

    /// What is known of the path to a node that is asked.
    #[must_use]
    pub fn report(&self, name_hash: u64) -> Option<PathReport> {
        let peer = self.peers.get(&name_hash)?;
        let asked = self.vips.get(peer.turn % self.vips.len().max(1));
        let vip = asked.filter(|_| peer.report.standing == Standing::NotAnswered);
        Some(PathReport {
            vip: vip.copied(),
            ..peer.report
        })
    }

    fn note(&mut self, hash: u64, change: Option<(Standing, usize)>) {
        let (Some((to, turn)), Some(peer)) = (change, self.peers.get(&hash)) else {
            return;
        };
        if let Some(vip) = self.vips.get(turn % self.vips.len().max(1)) {
            self.changes.push(Change {
                node: peer.target.address,
                to,
                vip: *vip,
            });
        }
    }
}

impl Peer {
    fn new(target: Target, now: Time) -> Self {
        Self {
            target,
            report: PathReport::default(),
            turn: 0,
            open: None,
            next: now,
            hits: 0,
            misses: 0,
            wanted: FIRST_HITS,
            proven_at: now,
            previous_key: false,
        }
    }

    /// An answer. What it changes, and for which VIP.
    fn hit(&mut self, vips: usize, interval: Duration, now: Time) -> Option<(Standing, usize)> {
        let turn = self.turn;
        self.open = None;
        self.turn = turn.wrapping_add(1);
        self.misses = 0;
        self.hits = self.hits.saturating_add(1);
        let enough = self.wanted.max(vips.min(VIPS_FIRST) as u32);
        let before = self.report.standing;
        if before == Standing::Proven {
            self.next = now + 2 * interval;
            return None;
        }
        if self.hits < enough {
            let first = before == Standing::Asking;
            self.next = if first { now } else { now + interval };
            return None;
        }
        self.next = now + 2 * interval;
        self.proven_at = now;
        Some((self.turn_to(Standing::Proven), turn))
    }

    /// No answer, although the node is well. What it changes, and for which VIP.
    fn miss(&mut self, interval: Duration, now: Time) -> Option<(Standing, usize)> {
        self.report.missed += 1;
        self.misses = self.misses.saturating_add(1);
        self.hits = 0;
        // The node may not know the present key yet.
        self.previous_key = !self.previous_key;
        let before = self.report.standing;
        if self.misses < MISSES || before == Standing::NotAnswered {
            if before == Standing::NotAnswered {
                self.next = now + interval;
            }
            return None;
        }
        if before == Standing::Proven {
            let lasted = now.saturating_sub(self.proven_at);
            self.wanted = match self.wanted {
                wanted if wanted < HITS.0 || lasted >= FORGIVEN => HITS.0,
                wanted => (2 * wanted).min(HITS.1),
            };
        } else {
            self.wanted = HITS.0;
        }
        Some((self.turn_to(Standing::NotAnswered), self.turn))
    }

    fn turn_to(&mut self, standing: Standing) -> Standing {
        if self.report.standing != Standing::Asking {
            self.report.changes += 1;
        }
        self.report.standing = standing;
        standing
    }
}

/// The key to sign a question with.
#[must_use]
pub fn key_of(question: &Question, [present, previous]: [Key; 2]) -> Key {
    match question.previous_key && previous != [0, 0] {
        true => previous,
        false => present,
    }
}

#[cfg(test)]
mod tests;
