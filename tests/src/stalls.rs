//! How long this machine lets threads wait that are due: what a bound on time may be passed by where others use the cores.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Time between two looks of a watcher.
const LOOK: Duration = Duration::from_millis(5);

/// Stalls shorter than that are told by nobody.
const SHORTEST: Duration = Duration::from_millis(5);

/// Threads that wait for each other until a change of one node is seen by a client: the prober, the writer, the worker, the
/// client, and one to spare.
const CHAIN: u32 = 5;

/// Watches every core from now until it is dropped.
#[derive(Debug)]
pub struct Stalls {
    seen: Arc<Mutex<Vec<(Instant, Duration)>>>,
    stop: Arc<AtomicBool>,
}

impl Stalls {
    /// Starts a thread on each core that this one may run on.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn watch() -> Result<Self> {
        let stalls = Self {
            seen: Arc::default(),
            stop: Arc::default(),
        };
        let cores = sched_getaffinity(None).context("which cores there are")?;
        for core in (0..CpuSet::MAX_CPU).filter(|core| cores.is_set(*core)) {
            let (seen, stop) = (Arc::clone(&stalls.seen), Arc::clone(&stalls.stop));
            thread::Builder::new()
                .name(format!("stalls-{core}"))
                .spawn(move || look(core, &seen, &stop))
                .context("a watcher of stalls")?;
        }
        Ok(stalls)
    }

    /// By how much a bound may be passed for what began at `since`: a chain of threads that each had to wait for as long as
    /// the longest stall since then. Nothing on a machine that is at rest.
    #[must_use]
    pub fn allowance(&self, since: Instant) -> Duration {
        let seen = lock(&self.seen);
        let later = seen.iter().filter(|(at, _)| *at >= since);
        later.map(|(_, stall)| *stall).max().unwrap_or_default() * CHAIN
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn look(core: usize, seen: &Mutex<Vec<(Instant, Duration)>>, stop: &AtomicBool) {
    let mut only = CpuSet::new();
    only.set(core);
    // Where it may not stay there it sees the stalls of the cores that it gets.
    let _anywhere = sched_setaffinity(None, &only);
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        thread::park_timeout(LOOK);
        let now = Instant::now();
        let stall = (now - last).saturating_sub(LOOK);
        if stall >= SHORTEST {
            lock(seen).push((now, stall));
        }
        last = now;
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_after_counts() {
        let begun = Instant::now();
        let later = begun + Duration::from_secs(1);
        let stalls = Stalls {
            seen: Arc::new(Mutex::new(vec![
                (begun, Duration::from_millis(70)),
                (later, Duration::from_millis(10)),
                (later, Duration::from_millis(20)),
            ])),
            stop: Arc::default(),
        };
        assert_eq!(stalls.allowance(begun), Duration::from_millis(350));
        assert_eq!(stalls.allowance(later), Duration::from_millis(100));
        assert_eq!(stalls.allowance(later + LOOK), Duration::ZERO);
    }
}
