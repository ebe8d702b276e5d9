//! The live state of one cluster: limits, health, balancing and idle connections, shared by all workers.
//!
//! It outlives snapshots for as long as its key is configured; policy values and endpoints change in place. Each
//! worker has an idle list of its own: others may only close what is in it, never use it.

mod endpoint;
mod idle;
mod status;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;

pub(super) use self::endpoint::LiveEndpoint;
use self::idle::Idle;
pub use self::status::{ClusterStatus, EndpointStatus};
use super::permit::Waiter;
use super::stats::ClusterShard;
use super::upstream::{Mux, Transport};
use crate::l7::balance::Balance;
use crate::l7::limit::Limiter;
use crate::l7::outlier::{Outcome, Outlier, OutlierStats, Thresholds, Verdict};
use crate::snapshot::{Cluster, ClusterKey, EndpointKey, TrafficPolicy};

/// What a request sees of a cluster: replaced as a whole when endpoints, health or policy change.
#[derive(Debug)]
pub(super) struct View {
    /// Policy.
    pub(super) policy: Arc<TrafficPolicy>,
    /// How endpoints are spoken to.
    pub(super) transport: Arc<Transport>,
    all: Box<[Arc<LiveEndpoint>]>,
    terminating: Box<[bool]>,
    usable: Box<[Arc<LiveEndpoint>]>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct LiveCluster {
    /// Identity.
    pub(super) key: ClusterKey,
    /// Name in logs and metrics.
    pub(super) name: Arc<str>,
    /// Limits.
    pub(super) limiter: Limiter<Waiter>,
    /// Ejections.
    pub(super) outlier_stats: OutlierStats,
    configured: Mutex<Arc<Cluster>>,
    view: ArcSwap<View>,
    balance: Balance,
    retries: AtomicU32,
    thresholds: Thresholds,
    outlier: Mutex<Outlier<EndpointKey>>,
    idle: Box<[Mutex<Vec<Idle>>]>,
    muxes: Mutex<Vec<Arc<Mux>>>,
    /// Counters by worker. Most of many clusters get no request for long, and these are most of one's size.
    shards: Box<[OnceLock<Box<ClusterShard>>]>,
}

impl LiveCluster {
    /// A cluster with fresh state. `seed` decides where round robin starts.
    #[must_use]
    pub(super) fn new(cluster: &Arc<Cluster>, workers: usize, seed: u64, now: Instant) -> Self {
        let live = Self {
            key: cluster.key.clone(),
            name: cluster.key.to_string().into(),
            limiter: Limiter::new(&cluster.policy.pool),
            outlier_stats: OutlierStats::default(),
            configured: Mutex::new(Arc::clone(cluster)),
            view: ArcSwap::from_pointee(View {
                policy: Arc::clone(&cluster.policy),
                transport: Transport::of(cluster, None),
                all: Box::default(),
                terminating: Box::default(),
                usable: Box::default(),
            }),
            balance: Balance::new(seed),
            retries: AtomicU32::new(0),
            thresholds: Thresholds::default(),
            outlier: Mutex::default(),
            idle: (0..workers).map(|_| Mutex::default()).collect(),
            muxes: Mutex::default(),
            shards: (0..workers).map(|_| OnceLock::new()).collect(),
        };
        live.configure(cluster, now);
        live
    }

    fn configured(&self) -> MutexGuard<'_, Arc<Cluster>> {
        let configured = self.configured.lock();
        configured.unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new configuration, if it is new: most snapshots change few clusters. False: it is that of another cluster.
    pub(super) fn follow(&self, cluster: &Arc<Cluster>, now: Instant) -> bool {
        let mut configured = self.configured();
        if Arc::ptr_eq(&configured, cluster) {
            return true;
        }
        if self.key != cluster.key {
            return false;
        }
        if *configured != *cluster {
            self.configure(cluster, now);
        }
        *configured = Arc::clone(cluster);
        true
    }

    /// Endpoints that stay keep their health and their connections.
    fn configure(&self, cluster: &Cluster, now: Instant) {
        let mut outlier = self.outlier();
        let old = self.view.load_full();
        let mut known: BTreeMap<&EndpointKey, &Arc<LiveEndpoint>> =
            old.all.iter().map(|e| (&e.key, e)).collect();
        let all: Box<[_]> = cluster
            .endpoints
            .iter()
            .map(|e| {
                known
                    .remove(&e.key)
                    .cloned()
                    .unwrap_or_else(|| Arc::new(LiveEndpoint::new(e.key.clone())))
            })
            .collect();
        let gone: Vec<_> = known.into_values().cloned().collect();
        self.thresholds.set(cluster.policy.outlier.as_ref());
        outlier.configure(
            now,
            cluster.policy.outlier.as_ref(),
            all.iter().map(|e| e.key.clone()),
        );
        let terminating = cluster.endpoints.iter().map(|e| e.terminating).collect();
        let transport = Transport::of(cluster, Some(&old.transport));
        let changed = transport.epoch != old.transport.epoch;
        let ways = (Arc::clone(&cluster.policy), transport);
        self.show(&outlier, ways, all, terminating);
        drop(outlier);
        if changed {
            self.close_idle();
        }
        for endpoint in &gone {
            self.close_idle_of(endpoint);
        }
        super::permit::deliver(self.limiter.set_limits(&cluster.policy.pool));
    }

    /// What requests see now.
    #[must_use]
    pub(super) fn view(&self) -> arc_swap::Guard<Arc<View>> {
        self.view.load()
    }

    /// Counters of one worker.
    #[must_use]
    pub(super) fn shard(&self, worker: usize) -> &ClusterShard {
        self.shards[worker % self.shards.len()].get_or_init(Box::default)
    }

    /// The endpoint for the next request; not `except`, unless it is the only one. `None`: none may be used.
    #[must_use]
    pub(super) fn pick(
        &self,
        random: u64,
        except: Option<&LiveEndpoint>,
    ) -> Option<Arc<LiveEndpoint>> {
        let view = self.view.load();
        let count = view.usable.len();
        let picked = self
            .balance
            .pick(view.policy.balancer, count, random, |i| {
                view.usable[i].active.load(Relaxed)
            })?;
        let same = |e: &Arc<LiveEndpoint>| except.is_some_and(|x| std::ptr::eq(x, &raw const **e));
        let picked = if same(&view.usable[picked]) {
            (picked + 1) % count
        } else {
            picked
        };
        Some(Arc::clone(&view.usable[picked]))
    }

    /// Takes the right to retry, unless `maxRetries` are outstanding; it lasts as long as the value.
    pub(super) fn try_retry(&self) -> Option<Retry<'_>> {
        let max = self.view.load().policy.pool.max_retries.unwrap_or(u32::MAX);
        self.retries
            .try_update(Relaxed, Relaxed, |n| (n < max).then_some(n + 1))
            .is_ok()
            .then_some(Retry(&self.retries))
    }

    /// Counts how a try ended and ejects at once if a threshold was reached.
    pub(super) fn record(&self, endpoint: &LiveEndpoint, outcome: Outcome) {
        let Some(detector) = endpoint.counters.record(outcome, &self.thresholds) else {
            return;
        };
        let mut outlier = self.outlier();
        match outlier.on_detection(Instant::now(), &endpoint.key, detector, &endpoint.counters) {
            Verdict::Ejected => {
                self.outlier_stats.ejections.fetch_add(1, Relaxed);
                tracing::info!(cluster = %self.name, endpoint = %endpoint.key.address, ?detector, "endpoint ejected");
                self.reshow(&outlier);
                drop(outlier);
                self.close_idle_of(endpoint);
            }
            Verdict::SuppressedByCap => {
                self.outlier_stats.suppressed.fetch_add(1, Relaxed);
                tracing::warn!(
                    cluster = %self.name, endpoint = %endpoint.key.address, ?detector,
                    "endpoint not ejected: maxEjectionPercent of the cluster would be passed"
                );
            }
            Verdict::AlreadyEjected | Verdict::Ignored => {}
        }
    }

    /// Brings back endpoints whose ejection is over.
    pub(super) fn sweep(&self, now: Instant) {
        let view = self.view.load();
        if view.policy.outlier.is_none() {
            return;
        }
        let mut outlier = self.outlier();
        let find = |key: &EndpointKey| {
            let found = view.all.iter().find(|e| e.key == *key);
            found.map(|e| &e.counters)
        };
        let back = outlier.handle_timeout(now, find);
        if !back.is_empty() {
            for key in &back {
                tracing::info!(cluster = %self.name, endpoint = %key.address, "endpoint is back");
            }
            self.reshow(&outlier);
        }
    }

    /// Undoes a stale "keep nothing" that raced with the endpoint's return.
    fn reopen_if_usable(&self, endpoint: &LiveEndpoint) {
        let view = self.view.load();
        if view
            .usable
            .iter()
            .any(|e| std::ptr::eq(&raw const **e, endpoint))
        {
            endpoint.usable_now.store(true, Relaxed);
        }
    }

    fn reshow(&self, outlier: &Outlier<EndpointKey>) {
        let view = self.view.load_full();
        self.show(
            outlier,
            (Arc::clone(&view.policy), Arc::clone(&view.transport)),
            view.all.clone(),
            view.terminating.clone(),
        );
    }

    /// Publishes a view. Ready endpoints come first; terminating ones only while none is ready.
    fn show(
        &self,
        outlier: &Outlier<EndpointKey>,
        (policy, transport): (Arc<TrafficPolicy>, Arc<Transport>),
        all: Box<[Arc<LiveEndpoint>]>,
        terminating: Box<[bool]>,
    ) {
        let any_ready = terminating.iter().any(|t| !t);
        let panic = outlier.is_panicking();
        let usable: Box<[_]> = all
            .iter()
            .zip(&terminating)
            .filter(|(e, t)| !(any_ready && **t) && (panic || !outlier.is_ejected(&e.key)))
            .map(|(e, _)| Arc::clone(e))
            .collect();
        for endpoint in &usable {
            endpoint.usable_now.store(true, Relaxed);
        }
        self.view.store(Arc::new(View {
            policy,
            transport,
            all,
            terminating,
            usable,
        }));
    }

    fn outlier(&self) -> MutexGuard<'_, Outlier<EndpointKey>> {
        self.outlier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A retry that is outstanding.
pub(super) struct Retry<'a>(&'a AtomicU32);

impl Drop for Retry<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
