//! When to act on changes: the first at once, those that follow closely together.
//!
//! Time is an argument; `watch` waits.

use std::time::{Duration, Instant};

/// A burst counts as over when nothing has changed for this long.
pub const QUIET: Duration = Duration::from_millis(5);

/// Longest wait for a burst to end, from its first change.
pub const LONGEST: Duration = Duration::from_millis(20);

/// How long after acting a change counts as part of a burst: changes that come one by one act at once.
const BURST: Duration = Duration::from_millis(10);

/// Changes seen and not yet acted on.
#[derive(Debug, Default)]
pub struct Debounce {
    acted: Option<Instant>,
    pending: Option<Pending>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    first: Instant,
    last: Instant,
}

impl Debounce {
    /// Something changed.
    pub fn changed(&mut self, now: Instant) {
        let first = self.pending.map_or(now, |p| p.first);
        self.pending = Some(Pending { first, last: now });
    }

    /// What changed means nothing: it is as if it had not.
    pub fn dismiss(&mut self) {
        self.pending = None;
    }

    /// When to act; `None` = nothing to act on.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let Pending { first, last } = self.pending?;
        let in_burst = self
            .acted
            .is_some_and(|acted| first.saturating_duration_since(acted) < BURST);
        Some(if in_burst {
            (last + QUIET).min(first + LONGEST)
        } else {
            first
        })
    }

    /// When the first of the changes was seen that have not been acted on.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.pending.map(|pending| pending.first)
    }

    /// The caller acts now on all that it knows.
    pub fn acted(&mut self, now: Instant) {
        self.acted = Some(now);
        self.pending = None;
    }
}

/// Waits until then; for ever if there is nothing to wait for. Safe to cancel.
pub async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn the_first_change_acts_at_once() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        assert_eq!(debounce.due(), None);
        debounce.changed(start);
        assert_eq!(debounce.due(), Some(start));
        debounce.acted(start);
        assert_eq!(debounce.due(), None);
        // No burst any more: at once again.
        debounce.changed(at(start, 10));
        assert_eq!(debounce.due(), Some(at(start, 10)));
        debounce.changed(at(start, 12));
        assert_eq!(debounce.since(), Some(at(start, 10)));
    }

    #[test]
    fn a_burst_is_taken_together_and_never_waits_longer_than_the_limit() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        debounce.changed(start);
        debounce.acted(start);
        debounce.changed(at(start, 1));
        assert_eq!(debounce.due(), Some(at(start, 6)));
        let mut late = Debounce::default();
        late.acted(start);
        late.changed(at(start, 9));
        assert_eq!(late.due(), Some(at(start, 14)));
        for millis in 2..=18 {
            debounce.changed(at(start, millis));
            let want = (millis + 5).min(21);
            assert_eq!(debounce.due(), Some(at(start, want)), "after {millis} ms");
        }
    }
}
