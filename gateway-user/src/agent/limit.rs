//! How often something may be done: a bucket of tokens that fills with time.

use std::time::{Duration, Instant};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    capacity: u32,
    every: Duration,
    tokens: u32,
    filled: Instant,
}

impl Bucket {
    /// A full bucket of `capacity` that gets one token `every` so long.
    #[must_use]
    pub fn new(capacity: u32, every: Duration, now: Instant) -> Self {
        Self {
            capacity,
            every,
            tokens: capacity,
            filled: now,
        }
    }

    /// Takes `count` tokens if there are as many.
    pub fn take(&mut self, count: u32, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        let fresh = passed / self.every.as_nanos().max(1);
        if fresh >= u128::from(self.capacity - self.tokens) {
            self.tokens = self.capacity;
            self.filled = now;
        } else {
            // Less than the capacity, by the comparison above.
            let fresh = fresh as u32;
            self.tokens += fresh;
            self.filled += self.every * fresh;
        }
        let enough = self.tokens >= count;
        if enough {
            self.tokens -= count;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_with_time_and_never_beyond_its_capacity() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut bucket = Bucket::new(2, Duration::from_millis(100), start);
        assert!(bucket.take(2, start) && !bucket.take(1, at(99)));
        assert!(bucket.take(1, at(150)) && !bucket.take(1, at(199)));
        assert!(bucket.take(1, at(200)), "a part of a token is not lost");
        assert!(!bucket.take(3, at(100_000)), "more than it holds");
        assert!(bucket.take(2, at(100_000)) && !bucket.take(1, at(100_000)));
        assert!(!bucket.take(1, at(0)), "time that goes back gives nothing");
    }
}
