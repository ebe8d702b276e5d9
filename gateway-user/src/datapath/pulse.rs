//! Whether somebody's heart beats, for those who look now and then.

use std::time::{Duration, Instant};

/// A heart that stood still for this long has stopped, as far as routers are concerned. Longer than the limit within which
/// the kernel gives new connections to other nodes: a router that is told forgets which way its flows went.
pub const STOPPED: Duration = Duration::from_secs(1);

/// How often to look.
pub const LOOK: Duration = Duration::from_millis(250);

/// The last change that was seen.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    beat: u64,
    since: Instant,
}

impl Pulse {
    /// Beating, until it is seen to stand still.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            beat: 0,
            since: now,
        }
    }

    /// Takes the heart's value, 0 for one that is known to have stopped; says whether it beats.
    pub fn look(&mut self, beat: u64, now: Instant) -> bool {
        if beat != self.beat && beat != 0 {
            *self = Self { beat, since: now };
        }
        now.saturating_duration_since(self.since) < STOPPED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heart_stops_a_second_after_its_last_beat() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pulse = Pulse::new(start);
        assert!(pulse.look(0, at(999)));
        assert!(!pulse.look(0, at(1_000)), "it never beat");
        assert!(pulse.look(7, at(1_100)));
        assert!(pulse.look(7, at(2_099)));
        assert!(pulse.look(0, at(2_099)), "a stop is no beat");
        assert!(!pulse.look(7, at(2_100)));
        assert!(pulse.look(8, at(9_000)));
    }
}
