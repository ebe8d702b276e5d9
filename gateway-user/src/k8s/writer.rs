//! Everything that Forebay writes to Kubernetes, behind one handle.
//!
//! The tasks run on the caller's runtime. One node at a time writes; the others keep the newest [`Desired`] and nothing
//! else, so that they can go on at once when they are to lead.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::access::{Access, Counters};
use super::events::{self, Remark, Teller, Told};
use super::gateway_objects::GatewayObjects;
use super::lease::{Candidate, Leadership};
use super::permissions::Permissions;
use super::reports::{self, NodeReport, Reporter, Reports};
use super::seen::Seen;
use super::shared_keys::SharedKeys;
use super::watcher::Scope;
use super::{services, statuses};
use crate::status::ObjectStatus;

/// Who writes.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of this node.
    pub node: String,
    /// Namespace of Forebay's own objects.
    pub namespace: String,
    /// Which namespaces are read, and others' objects are written in.
    pub permissions: Permissions,
}

/// What Kubernetes shall hold. Published only once everything has been read completely: what is missing here is removed there.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Statuses in the order of [`crate::status::merge`].
    pub statuses: Arc<Vec<ObjectStatus>>,
    /// What each Gateway of ours needs besides its status.
    pub gateways: Arc<Vec<GatewayObjects>>,
}

/// The handle.
#[derive(Debug)]
pub struct Writer {
    statuses: watch::Sender<Option<Arc<Vec<ObjectStatus>>>>,
    gateways: watch::Sender<Option<Arc<Vec<GatewayObjects>>>>,
    report: watch::Sender<Option<NodeReport>>,
    reports: watch::Receiver<Reports>,
    events: Teller,
    leadership: Leadership,
    counters: Arc<Counters>,
    stop: watch::Sender<bool>,
    candidate: JoinHandle<()>,
    engines: Vec<JoinHandle<()>>,
}

impl Writer {
    /// Begins to compete for the lease. Nothing is written for Gateways and routes before the first [`Self::publish`].
    #[must_use]
    pub fn start(client: kube::Client, seen: Seen, identity: &Identity) -> Self {
        let access = Access::new(client, identity.permissions.clone());
        let counters = Arc::clone(access.counters());
        let (stop, stopped) = watch::channel(false);
        let (statuses, newest_statuses) = watch::channel(None);
        let (gateways, newest_gateways) = watch::channel(None);
        let (candidate, leadership) =
            Candidate::new(access.clone(), &identity.namespace, &identity.node);
        let (report, newest_report) = watch::channel(None);
        let (told, reports) = watch::channel(Reports::default());
        let reporter = Reporter::new(access.clone(), identity);
        let others = reports::follow(access.clone(), identity.clone(), leadership.clone(), told);
        let (of_events, events) = events::Engine::new(access.clone(), &identity.node);
        let engine = statuses::Engine::new(access.clone(), seen.clone(), events.clone());
        let keys = SharedKeys::new(access.clone());
        let services =
            services::Engine::new(access, seen, Scope::of(identity.permissions.namespaces()));
        Self {
            engines: vec![
                tokio::spawn(engine.run(newest_statuses, leadership.clone())),
                tokio::spawn(services.run(newest_gateways, leadership.clone())),
                tokio::spawn(of_events.run()),
                tokio::spawn(keys.run(leadership.clone())),
                tokio::spawn(reporter.run(newest_report)),
                tokio::spawn(others),
            ],
            candidate: tokio::spawn(candidate.run(stopped)),
            statuses,
            gateways,
            report,
            reports,
            events,
            leadership,
            counters,
            stop,
        }
    }

    /// Has Kubernetes hold this; the newest counts.
    pub fn publish(&self, desired: Desired) {
        self.statuses.send_replace(Some(desired.statuses));
        self.gateways.send_replace(Some(desired.gateways));
    }

    /// Tells the lease holder what this node serves.
    pub fn report(&self, report: NodeReport) {
        self.report.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&report);
            *before = Some(report);
            changed
        });
    }

    /// Has Kubernetes hold an Event about this node.
    pub fn remark(&self, remark: Remark) {
        self.events.tell(Told::Remark(remark));
    }

    /// What the other nodes say, as far as it is not known to the caller of [`Self::reports_change`] yet.
    pub fn reports(&mut self) -> Reports {
        Arc::clone(&self.reports.borrow_and_update())
    }

    /// Waits until other nodes say something else than [`Self::reports`] has given. Safe to cancel.
    pub async fn reports_change(&self) {
        if self.reports.clone().changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether this node is the one that writes.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leadership.leads()
    }

    /// Waits until this node leads, or does not. Safe to cancel.
    pub async fn becomes(&self, leading: bool) {
        self.leadership.clone().becomes(leading).await;
    }

    /// What was written so far.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Stops writing and gives the lease back.
    pub async fn stop(mut self) {
        for engine in self.engines.drain(..) {
            engine.abort();
            let _ = engine.await;
        }
        self.stop.send_replace(true);
        let _ = (&mut self.candidate).await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.candidate.abort();
        for engine in &self.engines {
            engine.abort();
        }
    }
}
