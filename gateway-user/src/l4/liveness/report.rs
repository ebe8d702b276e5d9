//! What is known of the peers, as `membership` takes it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::l4::Time;

/// What a peer is held for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It has neither answered yet nor been silent for long.
    #[default]
    New,
    /// It answers.
    Answering,
    /// It has not answered for a short while.
    Suspect,
    /// It has not answered for so long that it may be dead.
    Silent,
}

/// A node that holds no foreign socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// Under this membership.
    pub fingerprint: u32,
    /// For so long.
    pub lasted: Duration,
}

/// What is known of one peer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerReport {
    /// What it is held for.
    pub standing: Standing,
    /// Whether it has ever answered.
    pub known: bool,
    /// For how long it has been agreed that it is dead.
    pub agreed_for: Option<Duration>,
    /// The membership that its proxy's side works with.
    pub fingerprint: Option<u32>,
    /// Sockets of rows that it does not own.
    pub foreign: Option<u32>,
    /// Whether it holds none, and for how long.
    pub quiet: Option<Quiet>,
    /// Whether its proxy beats.
    pub proxy_alive: bool,
    /// Whether it holds itself for ready.
    pub ready: bool,
    /// Whether it drains by its own decision.
    pub draining: bool,
    /// What it holds this node for: bits of `probe::view`.
    pub holds_us: u8,
    /// When it answered last.
    pub heard_at: Option<Time>,
    /// Round trip of its last answer.
    pub round_trip: Option<Duration>,
    /// Questions sent.
    pub asked: u64,
    /// Questions that were never answered.
    pub lost: u64,
    /// Times that it became suspect.
    pub suspected: u64,
}

/// What is known of all peers, by name, and of this node's own sockets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The peers.
    pub peers: BTreeMap<String, PeerReport>,
    /// Whether this node itself holds no foreign socket.
    pub own_quiet: Option<Quiet>,
    /// Time in which the prober should have run and did not.
    pub stalled: Duration,
}
