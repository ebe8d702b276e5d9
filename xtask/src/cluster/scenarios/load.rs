//! A load from outside of the cluster: a new connection for each request, at a bounded rate, each outcome counted apart.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddrV4,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::http::{Answer, Fault, ask, get};

/// Requests a second.
const RATE: u64 = 100;
/// Requests that wait at the same time at most.
const THREADS: usize = 24;
/// A client's patience; a lost SYN comes again after one second, then after two more.
const BOUND: Duration = Duration::from_secs(8);
/// Failures that are told one by one.
const TOLD: usize = 8;

/// What has come of all requests so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    ok: u64,
    /// Answers by a status other than 200.
    status: BTreeMap<u16, u64>,
    /// Answers 200 of somebody else.
    strange: u64,
    faults: BTreeMap<Fault, u64>,
    longest: Duration,
    /// When that request began, after the start of the load.
    longest_at: Duration,
    told: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddrV4,
    request: String,
    /// Begins the body of every right answer.
    expected: String,
    began: Instant,
    next: AtomicU64,
    stop: AtomicBool,
    tally: Mutex<Tally>,
}

/// The running load; dropped, it ends.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts it in the network namespace of the calling thread.
    pub(super) fn start(to: SocketAddrV4, host: &str, expected: &str) -> Self {
        let shared = Arc::new(Shared {
            to,
            request: get(host, "/"),
            expected: expected.to_owned(),
            began: Instant::now(),
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            tally: Mutex::default(),
        });
        let threads = (0..THREADS)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.send_all())
            })
            .collect();
        Self { shared, threads }
    }

    /// What has been counted since this was last asked.
    pub(super) fn take(&self) -> Tally {
        let mut tally = self.shared.tally.lock();
        std::mem::take(&mut *tally.as_mut().unwrap_or_else(|gone| gone.get_mut()))
    }

    /// Ends it when every request has come to its end.
    pub(super) fn stop(mut self) -> Tally {
        self.end();
        self.take()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that has panicked has said so.
            thread.join().ok();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn send_all(&self) {
        loop {
            let due = self.next.fetch_add(1, Ordering::Relaxed) * (1_000_000 / RATE);
            let due = self.began + Duration::from_micros(due);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let sent = Instant::now();
            let came = ask(self.to, &self.request, BOUND);
            let took = sent.elapsed();
            let at = sent.duration_since(self.began);
            let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.add(&came, &self.expected, took, at);
        }
    }
}

impl Tally {
    fn add(&mut self, came: &Result<Answer, Fault>, expected: &str, took: Duration, at: Duration) {
        if took > self.longest {
            (self.longest, self.longest_at) = (took, at);
        }
        let what = match came {
            Ok(answer) if answer.status != 200 => {
                *self.status.entry(answer.status).or_default() += 1;
                format!("{} {}", answer.status, answer.body.trim())
            }
            Ok(answer) if answer.body.starts_with(expected) => {
                self.ok += 1;
                return;
            }
            Ok(answer) => {
                self.strange += 1;
                format!("200 of somebody else: {}", answer.body.trim())
            }
            Err(fault) => {
                *self.faults.entry(*fault).or_default() += 1;
                format!("{fault:?}")
            }
        };
        if self.told.len() < TOLD {
            self.told.push(format!(
                "{:.2} s after the start, {} ms: {what}",
                at.as_secs_f64(),
                took.as_millis()
            ));
        }
    }

    pub(super) fn failed(&self) -> u64 {
        self.strange + self.status.values().sum::<u64>() + self.faults.values().sum::<u64>()
    }

    /// Fails unless every one of at least one request was answered as it should.
    pub(super) fn none_failed(&self) -> Result<()> {
        ensure!(self.failed() == 0, "{self}\n  {}", self.told.join("\n  "));
        ensure!(self.ok > 0, "there was no request");
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, failed) = (self.ok + self.failed(), self.failed());
        write!(f, "{all} requests, {failed} failed")?;
        for (status, number) in &self.status {
            write!(f, ", {number} by {status}")?;
        }
        if self.strange > 0 {
            write!(f, ", {} answered by somebody else", self.strange)?;
        }
        for (fault, number) in &self.faults {
            write!(f, ", {number} {fault:?}")?;
        }
        write!(
            f,
            ", longest {} ms (at {:.1} s)",
            self.longest.as_millis(),
            self.longest_at.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Result<Answer, Fault> {
        Ok(Answer {
            status,
            body: body.to_owned(),
        })
    }

    #[test]
    fn outcomes_are_counted_apart() {
        let mut tally = Tally::default();
        assert!(tally.none_failed().is_err(), "no request is no success");
        let mut add = |came: &Result<Answer, Fault>, took: u64| {
            let took = Duration::from_millis(took);
            tally.add(came, "hello", took, Duration::from_secs(3));
        };
        add(&answer(200, "hello from v1"), 7);
        add(&answer(503, "no healthy upstream"), 2);
        add(&answer(200, "something else"), 1);
        add(&Err(Fault::Reset), 90);
        add(&Err(Fault::Reset), 3);
        assert_eq!(
            tally.to_string(),
            "5 requests, 4 failed, 1 by 503, 1 answered by somebody else, 2 Reset, longest 90 ms (at 3.0 s)"
        );
        let said = tally.none_failed().unwrap_err().to_string();
        assert!(
            said.contains("3.00 s after the start, 2 ms: 503 no healthy upstream"),
            "{said}"
        );
    }

    #[test]
    fn all_answered_is_a_success() {
        let mut tally = Tally::default();
        tally.add(
            &answer(200, "hello"),
            "hello",
            Duration::ZERO,
            Duration::ZERO,
        );
        tally.none_failed().unwrap();
    }
}
