//! What happens in a run as time passes: requests, and when nobody had time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::history::{Request, Window};
use super::nemesis::Fault;

/// How often somebody looks whether there is time, and what is none: a proxy that does not beat for 300 ms is held for dead.
const LOOK: Duration = Duration::from_millis(50);
const STALL: Duration = Duration::from_millis(150);

/// See the module. Several threads write to it.
#[derive(Debug)]
pub struct Course {
    begun: Instant,
    stop: AtomicBool,
    requests: Mutex<Vec<Request>>,
    stalls: Mutex<Vec<Window>>,
}

impl Default for Course {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            stop: AtomicBool::new(false),
            requests: Mutex::default(),
            stalls: Mutex::default(),
        }
    }
}

/// Sets a flag when it goes, also with a test that fails.
#[derive(Debug)]
pub struct SetAtEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Course {
    /// Time since the begin of the run.
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Lets time pass.
    pub fn wait(&self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            thread::park_timeout(left);
        }
    }

    /// Whether what runs beside the work is to end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Does `work` and sees when nobody has time meanwhile; at its end what runs beside it is told to end.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            let _end = SetAtEnd(&self.stop);
            scope.spawn(|| self.look());
            work()
        })
    }

    fn look(&self) {
        let mut last = self.now();
        while !self.stopped() {
            thread::park_timeout(LOOK);
            let now = self.now();
            if now - last > LOOK + STALL {
                held(&self.stalls).push(Window {
                    fault: Fault::Stall,
                    begin: last,
                    heal: now,
                });
            }
            last = now;
        }
    }

    /// Notes how a request ended.
    pub fn note(&self, request: Request) {
        held(&self.requests).push(request);
    }

    /// What the history takes of the memory, in KB.
    pub fn kilobytes(&self) -> u64 {
        ((held(&self.requests).len() * size_of::<Request>()) >> 10) as u64
    }

    /// All requests, and the times in which nobody had any.
    pub fn end(&self) -> (Vec<Request>, Vec<Window>) {
        (
            std::mem::take(&mut *held(&self.requests)),
            std::mem::take(&mut *held(&self.stalls)),
        )
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
