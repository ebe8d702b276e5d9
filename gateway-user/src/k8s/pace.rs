//! How fast one object is written, and how the whole slows down while the API server is gone.

use std::time::Duration;

use tokio::time::Instant;

use super::access::backoff;

/// Between the first two writes of an object that counts what is attached to it.
const FIRST_GAP: Duration = Duration::from_millis(150);
/// Between two of a long row of them: no count is older than that.
const LAST_GAP: Duration = Duration::from_millis(800);
/// Before what was said is said again, because somebody else has changed it.
const AGAIN: Duration = Duration::from_millis(200);
/// The longest of these waits.
const LONGEST: Duration = Duration::from_secs(60);

/// The pace of one object.
#[derive(Debug, Default)]
pub(super) struct Pace {
    wrote: Option<Instant>,
    /// How often the same has been said in a row.
    again: u32,
    gap: Duration,
    not_before: Option<Instant>,
}

impl Pace {
    /// From when on it may be written. `counting`: it changes with each of the objects that are attached to it.
    /// `repeated`: what is to be said has been said before.
    pub(super) fn next(&self, now: Instant, counting: bool, repeated: bool) -> Instant {
        let Some(wrote) = self.wrote else {
            return now;
        };
        let gap = if counting { self.gap } else { Duration::ZERO };
        let wait = match repeated {
            true if self.again > 0 => backoff(AGAIN, LONGEST, self.again - 1).max(gap),
            _ => gap,
        };
        let at = wrote + wait;
        let not_before = self.not_before.filter(|_| repeated);
        not_before.map_or(at, |not_before| at.max(not_before))
    }

    /// It is being written.
    pub(super) fn wrote(&mut self, now: Instant, repeated: bool) {
        let since = self
            .wrote
            .map(|before| now.saturating_duration_since(before));
        self.gap = match since {
            Some(since) if since < 2 * LAST_GAP => (self.gap * 3 / 2).clamp(FIRST_GAP, LAST_GAP),
            _ => FIRST_GAP,
        };
        let quiet = since.is_none_or(|since| since > 2 * backoff(AGAIN, LONGEST, self.again));
        self.again = match repeated {
            true if quiet => 1,
            true => self.again + 1,
            false => 0,
        };
        self.wrote = Some(now);
        self.not_before = None;
    }

    /// It did not work because somebody else was always faster; gives the time of the next try.
    pub(super) fn failed(&mut self, now: Instant) -> Instant {
        self.again += 1;
        let at = now + backoff(AGAIN, LONGEST, self.again - 1);
        self.not_before = Some(at);
        at
    }

    /// The same is not said again until then.
    pub(super) fn not_before(&mut self, at: Instant) {
        self.not_before = Some(at);
    }
}

/// Between the first tries while the API server is gone.
const FIRST_TRY: Duration = Duration::from_millis(250);
/// Between later ones.
const LAST_TRY: Duration = Duration::from_secs(15);

/// Whether the API server is gone.
#[derive(Debug, Default)]
pub(super) struct Outage {
    failures: u32,
    until: Option<Instant>,
}

impl Outage {
    /// How many calls may be under way: one to see whether it is back.
    pub(super) fn most(&self, most: usize) -> usize {
        if self.failures > 0 { 1 } else { most }
    }

    /// Whether a call may begin.
    pub(super) fn over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// When the next one may begin.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// A call failed. Those that were under way together count once.
    pub(super) fn failed(&mut self, now: Instant, what: &str, why: &str) {
        if self.failures > 0 && !self.over(now) {
            return;
        }
        if self.failures == 0 {
            tracing::warn!("the API server is not there, {what} when it is back: {why}");
        }
        self.until = Some(now + backoff(FIRST_TRY, LAST_TRY, self.failures));
        self.failures += 1;
    }

    /// A call was answered.
    pub(super) fn over_now(&mut self) {
        if self.failures > 0 {
            tracing::info!("the API server is back");
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_counting_object_is_written_at_once_and_then_less_and_less_often() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut times = Vec::new();
        let mut now = start;
        for _ in 0..8 {
            times.push(now.duration_since(start).as_millis());
            pace.wrote(now, false);
            now = pace.next(now, true, false);
        }
        assert_eq!(times, [0, 150, 375, 712, 1218, 1978, 2778, 3578]);
        let wrote = pace.next(now, false, false);
        assert_eq!(wrote.duration_since(start).as_millis(), 3578);
        // After a rest it is fast again.
        pace.wrote(at(start, 9000), false);
        assert_eq!(pace.next(now, true, false), at(start, 9150));
    }

    #[test]
    fn who_is_contradicted_says_it_again_less_and_less_often() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut gaps = Vec::new();
        let mut now = start;
        pace.wrote(now, false);
        for _ in 0..11 {
            let next = pace.next(now, false, true);
            gaps.push(next.saturating_duration_since(now).as_millis());
            now = next;
            pace.wrote(now, true);
        }
        assert_eq!(
            gaps,
            [
                0, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000
            ]
        );
        // Something new to say does not wait.
        assert_eq!(pace.next(now, false, false), now);
    }

    #[test]
    fn during_an_outage_one_call_at_a_time_looks_whether_it_is_over() {
        let start = Instant::now();
        let mut outage = Outage::default();
        for _ in 0..3 {
            outage.failed(start, "", "");
        }
        assert_eq!((outage.most(16), outage.until()), (1, Some(at(start, 250))));
        assert!(!outage.over(start) && outage.over(at(start, 250)));
        outage.failed(at(start, 250), "", "");
        assert_eq!(outage.until(), Some(at(start, 750)));
        outage.over_now();
        assert_eq!((outage.most(16), outage.until()), (16, None));
    }
}
