//! The control task's view of the API server: waits for changes and holds the objects.
//!
//! Watching, decoding and writing happen on a thread of their own; what arrives here is ready to be translated.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{mpsc, watch};

use super::access::Counters;
use super::cache::Cache;
use super::events::Remark;
use super::gateway_objects::gateway_objects;
use super::health::Health;
use super::reports::{NodeReport, Reports};
use super::store::Store;
use super::watcher::{Change, Scope, Told, Watched};
use super::writer::{Desired, Writer};
use crate::file::debounce::{Debounce, until};
use crate::file::keys;
use crate::file::merge::Problem;
use crate::file::watch::now;
use crate::snapshot::ObjectKey;
use crate::status::ObjectStatus;
use crate::translate::{Inputs, Kind, referenced};

/// How long a start waits for the API server before it serves what this node has saved.
const CACHE_AFTER: Duration = Duration::from_secs(3);

/// How long new objects wait for the Secrets that they name.
const SECRET_WAIT: Duration = Duration::from_millis(300);

/// Bounds of the buckets in which the time until a change is live is counted, in seconds.
const APPLIED: [f64; 12] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
];

/// How the conversation with the API server goes.
#[derive(Clone, Debug)]
pub struct Meters {
    /// Its reading half.
    pub health: Health,
    /// Its writing half.
    pub writes: Arc<Counters>,
    /// What is served comes from this node's cache.
    pub from_cache: Arc<AtomicBool>,
    /// Seconds from the reading of a change until it was live.
    pub applied: Histogram,
}

/// The objects of a cluster.
#[derive(Debug)]
pub struct Source {
    told: mpsc::Receiver<Told>,
    wanted: watch::Sender<BTreeSet<ObjectKey>>,
    health: Health,
    store: Store,
    debounce: Debounce,
    /// Watches, and whether they have been read to the end.
    watching: Option<BTreeMap<Watched, bool>>,
    /// Watches that had been read before the last list of them came.
    synced: BTreeSet<Watched>,
    /// When Secrets that have just been asked for are not waited for any longer.
    secrets_until: Option<Instant>,
    /// Something that may name Secrets has changed.
    names_secrets: bool,
    /// A first complete reading is there.
    complete: bool,
    cache: Cache,
    /// What the cache held, until everything has been read.
    cached: Option<Store>,
    /// When the cache is looked at; none: it has been.
    cache_at: Option<Instant>,
    from_cache: Arc<AtomicBool>,
    /// When the first of the changes was read that are acted on now.
    acting_since: Option<Instant>,
    applied: Histogram,
    writer: Writer,
    reports: Reports,
    /// Whether this node led when that was last looked at.
    led: bool,
}

impl Source {
    /// Reads what is `told`; asks for Secrets by `wanted`.
    #[must_use]
    pub(super) fn new(
        told: mpsc::Receiver<Told>,
        wanted: watch::Sender<BTreeSet<ObjectKey>>,
        health: Health,
        writer: Writer,
        cache: Cache,
    ) -> Self {
        Self {
            cache,
            cached: None,
            cache_at: Some(now() + CACHE_AFTER),
            from_cache: Arc::default(),
            acting_since: None,
            applied: Histogram::new(APPLIED),
            writer,
            reports: Reports::default(),
            led: false,
            told,
            wanted,
            health,
            store: Store::default(),
            debounce: Debounce::default(),
            watching: None,
            synced: BTreeSet::new(),
            secrets_until: None,
            names_secrets: true,
            complete: false,
        }
    }

    /// What concerns us.
    #[must_use]
    pub fn inputs(&self) -> &Inputs {
        self.current().inputs()
    }

    fn current(&self) -> &Store {
        self.cached.as_ref().unwrap_or(&self.store)
    }

    /// Addresses by the status of Gateways.
    #[must_use]
    pub fn addresses(&self) -> &BTreeMap<ObjectKey, Vec<IpAddr>> {
        self.current().addresses()
    }

    /// Objects that cannot be read.
    #[must_use]
    pub fn problems(&self) -> BTreeSet<Problem> {
        self.store.problems()
    }

    /// What is counted of the conversation with the API server.
    #[must_use]
    pub fn meters(&self) -> Meters {
        Meters {
            health: self.health.clone(),
            writes: Arc::clone(self.writer.counters()),
            from_cache: Arc::clone(&self.from_cache),
            applied: self.applied.clone(),
        }
    }

    /// Whether this node writes statuses and gives out addresses.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.led && self.cached.is_none()
    }

    /// What was acted on last is live: whoever asks from now on is answered by it. Counted once.
    pub fn is_live(&mut self) {
        if let Some(since) = self.acting_since.take() {
            let took = now().saturating_duration_since(since);
            self.applied.observe(took.as_secs_f64());
        }
    }

    /// Has Kubernetes hold these statuses, and what Gateways need besides, while this node leads.
    pub fn publish(&mut self, statuses: Arc<Vec<ObjectStatus>>) {
        if self.cached.is_some() {
            // They are about objects of which nobody knows whether they are there still.
            return;
        }
        let gateways = gateway_objects(self.store.inputs(), &statuses);
        self.writer.publish(Desired {
            statuses,
            gateways: Arc::new(gateways),
        });
    }

    /// Tells the lease holder what this node serves.
    pub fn report(&self, report: NodeReport) {
        self.writer.report(report);
    }

    /// Says something about this node by an Event.
    pub fn remark(&self, remark: Remark) {
        self.writer.remark(remark);
    }

    /// What the other nodes serve; nothing while this one does not lead.
    #[must_use]
    pub fn reports(&self) -> &Reports {
        &self.reports
    }

    /// Stops writing and gives the lease back.
    pub async fn stop(self) {
        if self.complete {
            self.cache.finish(&self.store);
        }
        self.writer.stop().await;
    }

    /// Why not everything has been read yet; none: it has.
    #[must_use]
    pub fn waits_for(&self) -> Option<String> {
        if self.complete || self.cached.is_some() {
            return None;
        }
        let failing = self.health.failing();
        if let Some(why) = failing.first() {
            return Some(why.clone());
        }
        let Some(watching) = &self.watching else {
            return Some("the API server has not said which kinds it serves".to_owned());
        };
        let open = watching.iter().filter(|(_, synced)| !**synced);
        let open: Vec<String> = open.map(|(watched, _)| watched.to_string()).collect();
        Some(format!("not read yet: {}", open.join(", ")))
    }

    /// Waits until there is something new of which all belongs together has been read. Safe to cancel.
    pub async fn next(&mut self) {
        loop {
            while let Ok(told) = self.told.try_recv() {
                self.take(told);
            }
            if self.led != self.writer.leads() {
                self.led = !self.led;
                self.debounce.changed(now());
            }
            let reports = self.writer.reports();
            if reports != self.reports {
                self.reports = reports;
                self.debounce.changed(now());
            }
            if self.act(now()) || self.look_at_cache(now()) {
                return;
            }
            if self.complete {
                self.cache.save(&self.store, now());
            }
            let due = self.debounce.due().filter(|due| *due > now());
            let cache = if self.complete {
                self.cache.due()
            } else {
                self.cache_at
            };
            let wake = [due, self.secrets_until, cache];
            let wake = wake.into_iter().flatten().min();
            tokio::select! {
                biased;
                told = self.told.recv() => match told {
                    Some(told) => self.take(told),
                    // The thread has ended: the process does too.
                    None => std::future::pending().await,
                },
                () = self.writer.becomes(!self.led) => {}
                () = self.writer.reports_change() => {}
                () = until(wake) => {}
            }
        }
    }

    fn act(&mut self, now: Instant) -> bool {
        if self.debounce.due().is_none_or(|due| due > now) || !self.is_complete(now) {
            return false;
        }
        self.acting_since = self.acting_since.or(self.debounce.since());
        self.debounce.acted(now);
        self.cache.changed(now);
        if self.cached.take().is_some() {
            tracing::info!(
                "everything has been read from the API server: the cache is not served any more"
            );
            self.from_cache.store(false, Ordering::Relaxed);
        }
        self.cache_at = None;
        true
    }

    /// Takes what was saved if the API server has not told everything in time; true if there is something.
    fn look_at_cache(&mut self, now: Instant) -> bool {
        if self.cache_at.take_if(|at| *at <= now).is_none() {
            return false;
        }
        let Some(cached) = self.cache.load() else {
            return false;
        };
        tracing::warn!(
            saved = %cached.saved,
            objects = cached.objects,
            "not everything could be read from the API server: this node serves what it had saved; certificates are not among it unless --cache-secrets was given"
        );
        self.cached = Some(cached.store);
        self.from_cache.store(true, Ordering::Relaxed);
        true
    }

    /// Whether all that was asked for has been read. Secrets may be missing, and are waited for no longer than they must.
    fn is_complete(&mut self, now: Instant) -> bool {
        if self.ask_for_secrets() {
            self.secrets_until = Some(now + SECRET_WAIT);
        }
        let Some(watching) = &self.watching else {
            return false;
        };
        let mut open = watching.iter().filter(|(_, synced)| !**synced).peekable();
        let all_there = open.peek().is_none() && self.secrets_there();
        let only_secrets = open.all(|(watched, _)| watched.kind == Kind::Secret);
        let waited = self.secrets_until.is_none_or(|until| until <= now);
        if all_there || waited {
            self.secrets_until = None;
        }
        // A kind that has come later, or a permission that is missing, holds nothing up that works already.
        let go_on = all_there || (waited && (only_secrets || self.complete));
        self.complete |= go_on;
        go_on
    }

    /// Says which Secrets are needed now; true if that has changed.
    fn ask_for_secrets(&mut self) -> bool {
        if !std::mem::take(&mut self.names_secrets) {
            return false;
        }
        let mut wanted = referenced::secrets(self.store.inputs());
        wanted.insert(ObjectKey::new(keys::NAMESPACE, keys::NAME));
        if *self.wanted.borrow() == wanted {
            return false;
        }
        self.wanted.send_replace(wanted);
        true
    }

    /// Whether every Secret that is asked for is in some watch that has been read.
    fn secrets_there(&self) -> bool {
        let Some(watching) = &self.watching else {
            return false;
        };
        let read = |key: &ObjectKey| {
            let scopes = [
                Scope::One(key.clone()),
                Scope::Namespace(key.namespace.clone()),
            ];
            scopes.into_iter().any(|scope| {
                let kind = Kind::Secret;
                watching.get(&Watched { kind, scope }) == Some(&true)
            })
        };
        self.wanted.borrow().iter().all(read)
    }

    fn take(&mut self, told: Told) {
        let changed = match told {
            Told::Watching(list) => self.watch(list),
            Told::Changes(changes) => {
                self.names_secrets |= changes.iter().any(names_secrets);
                self.store.apply(changes)
            }
            Told::Synced(watched) => {
                if let Some(synced) = self.watching.as_mut().and_then(|w| w.get_mut(&watched)) {
                    *synced = true;
                }
                self.synced.insert(watched);
                // What waited for it may go on now.
                !self.complete || self.secrets_until.is_some()
            }
        };
        if changed {
            self.debounce.changed(now());
        }
    }

    fn watch(&mut self, list: Vec<Watched>) -> bool {
        self.synced.retain(|watched| list.contains(watched));
        let gone = self
            .store
            .retain(|id| list.iter().any(|watched| watched.holds(id)));
        self.names_secrets |= gone;
        let changed = gone || self.watching.is_none();
        let synced = |watched: &Watched| self.synced.contains(watched);
        self.watching = Some(list.into_iter().map(|w| (w.clone(), synced(&w))).collect());
        changed
    }
}

/// Whether Secrets may be needed, or not be needed, because of it.
fn names_secrets(change: &Change) -> bool {
    let kind = match change {
        Change::Is(object) => object.id().kind,
        Change::Gone(id) => id.kind,
        Change::Bad(..) | Change::Addresses(..) => return false,
    };
    matches!(
        kind,
        Kind::GatewayClass | Kind::Gateway | Kind::ReferenceGrant | Kind::DestinationRule
    )
}
