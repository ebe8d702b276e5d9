//! Passive health checking as Envoy does it: consecutive errors eject an endpoint for a while.
//!
//! Ejection happens at the threshold, on the request path; the sweep only brings endpoints back and lets their
//! backoff decay. The share of ejected endpoints never passes `maxEjectionPercent`. State belongs to an endpoint of a
//! cluster and outlives snapshots for as long as the endpoint is listed. Time is an argument.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::snapshot::OutlierDetection;

/// Longest ejection, unless the base is longer.
const MAX_EJECTION: Duration = Duration::from_secs(300);

/// How a try at an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint answered with this status.
    Status(u16),
    /// It could not be connected to, or the connection broke before a response.
    ConnectFailure,
    /// It did not answer in time.
    Timeout,
    /// It sent what is no HTTP response.
    ProtocolError,
}

/// Which detector fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum Detector {
    /// Consecutive 5xx.
    Consecutive5xx,
    /// Consecutive 502, 503 and 504.
    ConsecutiveGateway,
    /// Consecutive local failures (connect, reset, timeout), when they are counted apart.
    ConsecutiveLocal,
}

/// Thresholds that the request path compares with; 0 = off. Changed in place.
#[derive(Debug, Default)]
pub struct Thresholds {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    split: AtomicU32,
}

impl Thresholds {
    /// Takes the thresholds of a policy; `None` switches detection off.
    pub fn set(&self, policy: Option<&OutlierDetection>) {
        let off = OutlierDetection {
            consecutive_5xx: 0,
            ..OutlierDetection::default()
        };
        let policy = policy.unwrap_or(&off);
        self.consecutive_5xx.store(policy.consecutive_5xx, Relaxed);
        self.consecutive_gateway
            .store(policy.consecutive_gateway, Relaxed);
        self.split
            .store(u32::from(policy.split_local_origin), Relaxed);
        let local = if policy.split_local_origin {
            policy.consecutive_local
        } else {
            0
        };
        self.consecutive_local.store(local, Relaxed);
    }
}

/// Consecutive errors of one endpoint, counted by all workers without a lock.
#[derive(Debug, Default)]
pub struct Counters {
    errors_5xx: AtomicU32,
    errors_gateway: AtomicU32,
    errors_local: AtomicU32,
}

impl Counters {
    /// Counts an outcome; a detector that reached its threshold just now is returned.
    pub fn record(&self, outcome: Outcome, thresholds: &Thresholds) -> Option<Detector> {
        let split = thresholds.split.load(Relaxed) != 0;
        match outcome {
            Outcome::Status(status) => {
                if split {
                    clear(&self.errors_local);
                }
                self.record_status(status, thresholds)
            }
            _ if split => reached(&self.errors_local, &thresholds.consecutive_local)
                .then_some(Detector::ConsecutiveLocal),
            Outcome::ConnectFailure => self.record_status(503, thresholds),
            Outcome::Timeout => self.record_status(504, thresholds),
            Outcome::ProtocolError => self.record_status(500, thresholds),
        }
    }

    fn record_status(&self, status: u16, thresholds: &Thresholds) -> Option<Detector> {
        if status < 500 {
            clear(&self.errors_5xx);
            clear(&self.errors_gateway);
            return None;
        }
        let gateway = if matches!(status, 502..=504) {
            reached(&self.errors_gateway, &thresholds.consecutive_gateway)
        } else {
            clear(&self.errors_gateway);
            false
        };
        let any = reached(&self.errors_5xx, &thresholds.consecutive_5xx);
        if gateway {
            Some(Detector::ConsecutiveGateway)
        } else {
            any.then_some(Detector::Consecutive5xx)
        }
    }

    fn reset(&self, detector: Detector) {
        clear(match detector {
            Detector::Consecutive5xx => &self.errors_5xx,
            Detector::ConsecutiveGateway => &self.errors_gateway,
            Detector::ConsecutiveLocal => &self.errors_local,
        });
    }

    fn reset_all(&self) {
        for counter in [&self.errors_5xx, &self.errors_gateway, &self.errors_local] {
            clear(counter);
        }
    }
}

fn clear(counter: &AtomicU32) {
    // Most endpoints are well most of the time: do not write a shared cache line for nothing.
    if counter.load(Relaxed) != 0 {
        counter.store(0, Relaxed);
    }
}

fn reached(counter: &AtomicU32, threshold: &AtomicU32) -> bool {
    counter.fetch_add(1, Relaxed) + 1 == threshold.load(Relaxed)
}

/// What became of a detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The endpoint is out.
    Ejected,
    /// It was out already.
    AlreadyEjected,
    /// One more would be too many.
    SuppressedByCap,
    /// Detection is off, or the endpoint is no longer listed.
    Ignored,
}

/// Counts since start.
#[derive(Debug, Default)]
pub struct OutlierStats {
    /// Ejections.
    pub ejections: AtomicU64,
    /// Detections that the cap suppressed.
    pub suppressed: AtomicU64,
}

/// Ejection state of one cluster's endpoints. `K` names an endpoint.
#[derive(Debug)]
pub struct Outlier<K> {
    policy: Option<Box<OutlierDetection>>,
    hosts: BTreeMap<K, Host>,
    next_sweep: Option<Instant>,
}

#[derive(Debug, Default)]
struct Host {
    ejected_at: Option<Instant>,
    returned_at: Option<Instant>,
    /// Ejections in a row, which the length of the next one grows with.
    backoff: u32,
}

impl<K: Ord + Clone> Outlier<K> {
    /// No endpoints, detection off.
    #[must_use]
    pub fn new() -> Self {
        Self {
            policy: None,
            hosts: BTreeMap::new(),
            next_sweep: None,
        }
    }

    /// Takes policy and endpoints; endpoints that stay keep their state. Switched off, none stays ejected.
    pub fn configure(
        &mut self,
        now: Instant,
        policy: Option<&OutlierDetection>,
        keys: impl IntoIterator<Item = K>,
    ) {
        let mut old = std::mem::take(&mut self.hosts);
        // Switched off, which is the common case, there is nothing to remember: no endpoint costs memory.
        let keys = keys.into_iter().filter(|_| policy.is_some());
        self.hosts = keys
            .map(|key| {
                let host = old.remove(&key).unwrap_or_default();
                (key, host)
            })
            .collect();
        if self.policy.as_deref() == policy {
            return;
        }
        self.policy = policy.cloned().map(Box::new);
        self.next_sweep = policy.map(|p| now + p.interval);
    }

    /// Acts on a detection: ejects unless the cap forbids it. The detector's counter starts again either way.
    pub fn on_detection(
        &mut self,
        now: Instant,
        key: &K,
        detector: Detector,
        counters: &Counters,
    ) -> Verdict {
        let Some(policy) = &self.policy else {
            return Verdict::Ignored;
        };
        let total = self.hosts.len();
        let ejected = self
            .hosts
            .values()
            .filter(|h| h.ejected_at.is_some())
            .count();
        let Some(host) = self.hosts.get_mut(key) else {
            return Verdict::Ignored;
        };
        if host.ejected_at.is_some() {
            return Verdict::AlreadyEjected;
        }
        counters.reset(detector);
        if 100 * (ejected + 1) > policy.max_ejection_percent as usize * total {
            return Verdict::SuppressedByCap;
        }
        host.ejected_at = Some(now);
        let limit = MAX_EJECTION.max(policy.base_ejection);
        if policy.base_ejection * host.backoff < limit + policy.base_ejection {
            host.backoff += 1;
        }
        Verdict::Ejected
    }

    /// Counts an outcome and acts on it at once.
    pub fn on_result(
        &mut self,
        now: Instant,
        key: &K,
        outcome: Outcome,
        counters: &Counters,
        thresholds: &Thresholds,
    ) -> Verdict {
        match counters.record(outcome, thresholds) {
            Some(detector) => self.on_detection(now, key, detector, counters),
            None => Verdict::Ignored,
        }
    }

    /// When [`Self::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_sweep
    }

    /// The sweep: returns the endpoints that are back.
    pub fn handle_timeout<'a>(
        &mut self,
        now: Instant,
        counters: impl Fn(&K) -> Option<&'a Counters>,
    ) -> Vec<K> {
        let (Some(policy), Some(due)) = (&self.policy, self.next_sweep) else {
            return Vec::new();
        };
        if now < due {
            return Vec::new();
        }
        self.next_sweep = Some(now + policy.interval);
        let limit = MAX_EJECTION.max(policy.base_ejection);
        let mut back = Vec::new();
        for (key, host) in &mut self.hosts {
            if let Some(since) = host.ejected_at {
                let length = (policy.base_ejection * host.backoff).min(limit);
                if now.duration_since(since) >= length {
                    host.ejected_at = None;
                    host.returned_at = Some(now);
                    if let Some(counters) = counters(key) {
                        counters.reset_all();
                    }
                    back.push(key.clone());
                }
            } else if host
                .returned_at
                .is_none_or(|at| now.duration_since(at) >= policy.interval)
            {
                host.backoff = host.backoff.saturating_sub(1);
            }
        }
        back
    }

    /// Whether the endpoint is out.
    #[must_use]
    pub fn is_ejected(&self, key: &K) -> bool {
        self.ejected_until(key).is_some()
    }

    /// When the endpoint's ejection has lasted long enough (the next sweep brings it back), if it is out.
    #[must_use]
    pub fn ejected_until(&self, key: &K) -> Option<Instant> {
        let (host, policy) = (self.hosts.get(key)?, self.policy.as_ref()?);
        let limit = MAX_EJECTION.max(policy.base_ejection);
        Some(host.ejected_at? + (policy.base_ejection * host.backoff).min(limit))
    }

    /// Whether so few endpoints are well that all are used regardless of health (`minHealthPercent`).
    #[must_use]
    pub fn is_panicking(&self) -> bool {
        let Some(policy) = &self.policy else {
            return false;
        };
        let well = self
            .hosts
            .values()
            .filter(|h| h.ejected_at.is_none())
            .count();
        100 * well < policy.min_health_percent as usize * self.hosts.len()
    }
}

impl<K: Ord + Clone> Default for Outlier<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
