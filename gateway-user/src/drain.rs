//! When to stop: signals, and how far a drain has come.
//!
//! The state machine is pure (time is an argument); [`Signals`] is the only thing that waits.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A drain in which no connection was open at the first look goes on for this long, so that the other nodes have
/// taken over before the process ends.
pub const SETTLE: Duration = Duration::from_millis(500);

/// How far this node's drain has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not draining.
    #[default]
    Serving,
    /// Connections are still open.
    Draining,
    /// The last connection is gone, or the time is over.
    Drained,
}

/// The drain of this node.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    timeout: Duration,
    started: Option<Instant>,
    phase: Phase,
    /// This node decided it itself, so that it is not taken back.
    own: bool,
}

impl Drain {
    /// Not draining; a drain takes at most `timeout`.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            started: None,
            phase: Phase::Serving,
            own: false,
        }
    }

    /// Starts to drain, by this node's `own` decision or as the list of replicas says; false if that was so already.
    pub fn start(&mut self, now: Instant, own: bool) -> bool {
        self.own |= own;
        let first = self.started.is_none();
        if first {
            self.started = Some(now);
            self.phase = Phase::Draining;
        }
        first
    }

    /// The list of replicas does not say any more that this node drains; false if it did not drain, or does so by its own
    /// decision.
    pub fn take_back(&mut self) -> bool {
        let back = self.started.is_some() && !self.own;
        if back {
            *self = Self::new(self.timeout);
        }
        back
    }

    /// Takes in how many VIP sockets are open; returns the phase.
    pub fn look(&mut self, now: Instant, open: usize) -> Phase {
        if let (Phase::Draining, Some(started)) = (self.phase, self.started) {
            let age = now.saturating_duration_since(started);
            let settle = SETTLE.min(self.timeout);
            if age >= self.timeout || (open == 0 && age >= settle) {
                self.phase = Phase::Drained;
            }
        }
        self.phase
    }

    /// Whether the process got its signal long enough ago for the other nodes to know of it: they may not have heard from the
    /// list that it drains.
    #[must_use]
    pub fn is_known(&self, signal: Option<Instant>, now: Instant) -> bool {
        signal.is_some_and(|at| now.saturating_duration_since(at) >= SETTLE.min(self.timeout))
    }

    /// The phase as of the last look.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// When a running drain ends at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.started.map(|started| started + self.timeout)
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from their default action.
    ///
    /// # Errors
    /// As the system says.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one. Safe to cancel.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_with_the_last_connection_or_at_the_deadline() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut drain = Drain::new(Duration::from_secs(60));
        assert_eq!(drain.look(start, 0), Phase::Serving);
        assert!(drain.start(start, true));
        assert!(!drain.start(at(10), false));
        assert_eq!(drain.look(at(499), 0), Phase::Draining);
        assert_eq!(drain.look(at(59_999), 1), Phase::Draining);
        let mut other = drain;
        assert_eq!(drain.look(at(59_999), 0), Phase::Drained);
        assert_eq!(other.look(at(60_000), 1), Phase::Drained);
        assert_eq!(other.look(at(60_001), 1), Phase::Drained);
    }

    #[test]
    fn a_signal_is_known_after_a_while_however_long_the_list_has_said_so() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut drain = Drain::new(Duration::from_secs(60));
        drain.start(start, false);
        assert_eq!(drain.look(at(9_000), 0), Phase::Drained);
        assert!(!drain.is_known(None, at(9_000)));
        assert!(!drain.is_known(Some(at(9_000)), at(9_499)));
        assert!(drain.is_known(Some(at(9_000)), at(9_500)));
    }

    #[test]
    fn the_list_takes_back_what_it_asked_for_and_no_more() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut drain = Drain::new(Duration::from_secs(60));
        assert!(!drain.take_back());
        drain.start(start, false);
        assert_eq!(drain.look(at(500), 0), Phase::Drained);
        assert!(drain.take_back());
        assert_eq!(drain.look(at(501), 0), Phase::Serving);
        assert_eq!(drain.deadline(), None);
        assert!(drain.start(at(1_000), false));
        assert_eq!(drain.look(at(1_499), 0), Phase::Draining);
        assert!(!drain.start(at(1_500), true));
        assert!(!drain.take_back());
        assert_eq!(drain.phase(), Phase::Draining);
    }

    #[test]
    fn a_timeout_of_zero_ends_at_once() {
        let start = Instant::now();
        let mut drain = Drain::new(Duration::ZERO);
        drain.start(start, true);
        assert_eq!(drain.look(start, 9), Phase::Drained);
        assert!(drain.is_known(Some(start), start));
    }
}
