//! The live state of one cluster: limits, health, balancing and idle connections, shared by all workers.
//!
//! It outlives snapshots for as long as its key is configured; policy values and endpoints change in place. Each
//! worker has an idle list of its own: others may only close what is in it, never use it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::Serialize;

use super::permit::Waiter;
use super::stats::{ClusterReading, ClusterShard};
use super::upstream::{Mux, MuxStream, Origin, PooledConnection, Transport};
use crate::l7::balance::Balance;
use crate::l7::limit::{InUse, Limiter};
use crate::l7::outlier::{Counters, Outcome, Outlier, OutlierStats, Thresholds, Verdict};
use crate::snapshot::{Cluster, ClusterKey, EndpointKey, TrafficPolicy};

/// One endpoint of one cluster.
#[derive(Debug)]
pub(super) struct LiveEndpoint {
    /// Identity.
    pub(super) key: EndpointKey,
    /// `address:port`, as the access log shows it.
    pub(super) label: Arc<str>,
    counters: Counters,
    active: AtomicU32,
    /// Listed and not ejected: requests may go to it and idle connections be kept.
    usable_now: AtomicBool,
    /// Held while a connection is opened that many can share: the others wait for that one.
    pub(super) opening: Arc<tokio::sync::Mutex<()>>,
    /// Connections that could not be opened; who waited for one of them need not try again.
    pub(super) failures: AtomicU64,
    /// Given the choice, it spoke HTTP/1.
    pub(super) chose_http1: AtomicBool,
}

impl LiveEndpoint {
    fn new(key: EndpointKey) -> Self {
        Self {
            label: key.address.to_string().into(),
            key,
            counters: Counters::default(),
            active: AtomicU32::new(0),
            usable_now: AtomicBool::new(true),
            opening: Arc::default(),
            failures: AtomicU64::new(0),
            chose_http1: AtomicBool::new(false),
        }
    }

    /// Whether it is listed and not ejected.
    pub(super) fn is_usable(&self) -> bool {
        self.usable_now.load(Relaxed)
    }

    /// A try at this endpoint begins.
    pub(super) fn enter(&self) {
        self.active.fetch_add(1, Relaxed);
    }

    /// A try at this endpoint has ended.
    pub(super) fn leave(&self) {
        self.active.fetch_sub(1, Relaxed);
    }
}

/// What a request sees of a cluster: replaced as a whole when endpoints, health or policy change.
#[derive(Debug)]
pub(super) struct View {
    /// Policy.
    pub(super) policy: TrafficPolicy,
    /// How endpoints are spoken to.
    pub(super) transport: Arc<Transport>,
    all: Vec<Arc<LiveEndpoint>>,
    terminating: Vec<bool>,
    usable: Vec<Arc<LiveEndpoint>>,
}

/// An idle connection.
#[derive(Debug)]
struct Idle {
    since: Instant,
    connection: PooledConnection,
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
    shards: Box<[ClusterShard]>,
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
                policy: cluster.policy.clone(),
                transport: Transport::of(cluster, None),
                all: Vec::new(),
                terminating: Vec::new(),
                usable: Vec::new(),
            }),
            balance: Balance::new(seed),
            retries: AtomicU32::new(0),
            thresholds: Thresholds::default(),
            outlier: Mutex::default(),
            idle: (0..workers).map(|_| Mutex::default()).collect(),
            muxes: Mutex::default(),
            shards: (0..workers).map(|_| ClusterShard::default()).collect(),
        };
        live.configure(cluster, now);
        live
    }

    /// Takes a new configuration, if it is new: most snapshots change few clusters.
    pub(super) fn update(&self, cluster: &Arc<Cluster>, now: Instant) {
        let mut configured = self
            .configured
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&configured, cluster) && *configured != *cluster {
            self.configure(cluster, now);
        }
        *configured = Arc::clone(cluster);
    }

    /// Endpoints that stay keep their health and their connections.
    fn configure(&self, cluster: &Cluster, now: Instant) {
        let mut outlier = self.outlier();
        let old = self.view.load_full();
        let mut known: BTreeMap<&EndpointKey, &Arc<LiveEndpoint>> =
            old.all.iter().map(|e| (&e.key, e)).collect();
        let all: Vec<_> = cluster
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
        let ways = (cluster.policy.clone(), transport);
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
        &self.shards[worker % self.shards.len()]
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
                tracing::info!(cluster = %self.name, endpoint = %endpoint.label, ?detector, "endpoint ejected");
                self.reshow(&outlier);
                drop(outlier);
                self.close_idle_of(endpoint);
            }
            Verdict::SuppressedByCap => {
                self.outlier_stats.suppressed.fetch_add(1, Relaxed);
                tracing::warn!(
                    cluster = %self.name, endpoint = %endpoint.label, ?detector,
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

    /// A ready connection of this worker to this endpoint: the one used last.
    #[must_use]
    pub(super) fn take_idle(
        &self,
        worker: usize,
        endpoint: &LiveEndpoint,
        origin: Option<Origin>,
    ) -> Option<PooledConnection> {
        let mut list = self.idle_of(worker);
        loop {
            let at = list.iter().rposition(|idle| {
                std::ptr::eq(&raw const *idle.connection.endpoint, endpoint)
                    && idle.connection.origin == origin
            })?;
            let connection = list.remove(at).connection;
            if connection.is_ready() {
                return Some(connection);
            }
        }
    }

    /// A place on an HTTP/2 connection to this endpoint.
    #[must_use]
    pub(super) fn take_stream(
        self: &Arc<Self>,
        endpoint: &LiveEndpoint,
        origin: Option<Origin>,
        epoch: u64,
    ) -> Option<MuxStream> {
        let mut muxes = self.muxes();
        muxes.retain(|mux| !mux.is_over());
        let mut fitting = muxes.iter().filter(|m| m.fits(endpoint, origin, epoch));
        fitting.find_map(|mux| mux.enter(self))
    }

    /// Shares an HTTP/2 connection.
    pub(super) fn add_mux(&self, mux: &Arc<Mux>) {
        self.muxes().push(Arc::clone(mux));
    }

    /// Retires an HTTP/2 connection without requests, so that its permit comes free.
    pub(super) fn retire_idle_mux(&self) {
        let muxes = self.muxes();
        if let Some(mux) = muxes.iter().find(|m| m.active() == 0 && !m.is_over()) {
            mux.retire();
        }
    }

    fn muxes(&self) -> MutexGuard<'_, Vec<Arc<Mux>>> {
        self.muxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Any idle connection, to be closed for its permit: this worker's oldest, else another's.
    #[must_use]
    pub(super) fn take_oldest_idle(&self, worker: usize) -> Option<PooledConnection> {
        let workers = self.idle.len();
        (0..workers).find_map(|i| {
            let mut list = self.idle_of((worker + i) % workers);
            (!list.is_empty()).then(|| list.remove(0).connection)
        })
    }

    /// Keeps a connection for later, unless its endpoint is out or gone (then it closes).
    pub(super) fn put_idle(&self, connection: PooledConnection) {
        let current = self.view.load().transport.epoch == connection.epoch;
        if connection.endpoint.is_usable() && current {
            let since = Instant::now();
            self.idle_of(connection.worker)
                .push(Idle { since, connection });
        }
    }

    /// Closes this worker's connections that were idle for too long or that the endpoint closed.
    pub(super) fn reap_idle(&self, worker: usize, now: Instant) {
        let timeout = self.view.load().policy.pool.idle_timeout;
        let expired = |idle: &Idle| {
            (timeout > Duration::ZERO && now.duration_since(idle.since) >= timeout)
                || !idle.connection.is_ready()
        };
        let dead: Vec<_> = {
            let mut list = self.idle_of(worker);
            list.extract_if(.., |idle| expired(idle)).collect()
        };
        drop(dead);
        let mut muxes = self.muxes();
        if timeout > Duration::ZERO {
            let old = |mux: &&Arc<Mux>| mux.idle_for(now).is_some_and(|idle| idle >= timeout);
            muxes.iter().filter(old).for_each(|mux| mux.retire());
        }
        muxes.retain(|mux| !mux.is_over());
    }

    /// Closes all idle connections (the cluster is gone, or the process ends).
    pub(super) fn close_idle(&self) {
        for worker in 0..self.idle.len() {
            let closed = std::mem::take(&mut *self.idle_of(worker));
            drop(closed);
        }
        for mux in std::mem::take(&mut *self.muxes()) {
            mux.retire();
        }
    }

    /// State for `/endpoints`.
    #[must_use]
    pub(super) fn status(&self, now: Instant) -> ClusterStatus {
        let view = self.view.load_full();
        let outlier = self.outlier();
        let mut idle: BTreeMap<EndpointKey, usize> = BTreeMap::new();
        for worker in 0..self.idle.len() {
            for entry in self.idle_of(worker).iter() {
                *idle
                    .entry(entry.connection.endpoint.key.clone())
                    .or_default() += 1;
            }
        }
        let endpoints = view.all.iter().zip(&view.terminating).map(|(e, t)| {
            let until = outlier.ejected_until(&e.key);
            EndpointStatus {
                address: Arc::clone(&e.label),
                terminating: *t,
                ejected: until.is_some(),
                ejected_for_ms: until
                    .map(|at| u64::try_from((at - now).as_millis()).unwrap_or(u64::MAX)),
                active: e.active.load(Relaxed),
                idle: idle.get(&e.key).copied().unwrap_or(0),
            }
        });
        ClusterStatus {
            name: Arc::clone(&self.name),
            key: self.key.clone(),
            in_use: self.limiter.in_use(),
            ejections: self.outlier_stats.ejections.load(Relaxed),
            ejections_suppressed: self.outlier_stats.suppressed.load(Relaxed),
            endpoints: endpoints.collect(),
            requests: ClusterShard::read(&self.shards),
        }
    }

    fn close_idle_of(&self, endpoint: &LiveEndpoint) {
        endpoint.usable_now.store(false, Relaxed);
        self.reopen_if_usable(endpoint);
        for worker in 0..self.idle.len() {
            let closed: Vec<_> = {
                let mut list = self.idle_of(worker);
                list.extract_if(.., |i| {
                    std::ptr::eq(&raw const *i.connection.endpoint, endpoint)
                })
                .collect()
            };
            drop(closed);
        }
        let gone = |mux: &mut Arc<Mux>| std::ptr::eq(&raw const *mux.endpoint, endpoint);
        for mux in self.muxes().extract_if(.., gone) {
            mux.retire();
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
            (view.policy.clone(), Arc::clone(&view.transport)),
            view.all.clone(),
            view.terminating.clone(),
        );
    }

    /// Publishes a view. Ready endpoints come first; terminating ones only while none is ready.
    fn show(
        &self,
        outlier: &Outlier<EndpointKey>,
        (policy, transport): (TrafficPolicy, Arc<Transport>),
        all: Vec<Arc<LiveEndpoint>>,
        terminating: Vec<bool>,
    ) {
        let any_ready = terminating.iter().any(|t| !t);
        let panic = outlier.is_panicking();
        let usable: Vec<_> = all
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

    fn idle_of(&self, worker: usize) -> MutexGuard<'_, Vec<Idle>> {
        self.idle[worker]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A retry that is outstanding.
pub(super) struct Retry<'a>(&'a AtomicU32);

impl Drop for Retry<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One cluster as `/endpoints` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterStatus {
    /// `namespace/service:port`.
    pub name: Arc<str>,
    /// Identity.
    pub key: ClusterKey,
    /// Permits in use.
    pub in_use: InUse,
    /// Ejections since start.
    pub ejections: u64,
    /// Ejections that the cap suppressed.
    pub ejections_suppressed: u64,
    /// Endpoints in the order of their keys.
    pub endpoints: Vec<EndpointStatus>,
    /// Requests since start.
    pub requests: ClusterReading,
}

/// One endpoint as `/endpoints` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointStatus {
    /// `address:port`.
    pub address: Arc<str>,
    /// Serving but terminating.
    pub terminating: bool,
    /// Out by outlier detection.
    pub ejected: bool,
    /// Milliseconds until the ejection has lasted long enough.
    pub ejected_for_ms: Option<u64>,
    /// Requests on it now.
    pub active: u32,
    /// Idle connections to it, over all workers.
    pub idle: usize,
}
