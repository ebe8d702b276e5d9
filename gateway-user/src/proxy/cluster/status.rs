//! A cluster and its endpoints as `/endpoints` shows them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use serde::Serialize;

use super::LiveCluster;
use crate::l7::limit::InUse;
use crate::proxy::stats::{ClusterReading, ClusterShard};
use crate::snapshot::{ClusterKey, EndpointKey};

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

impl LiveCluster {
    /// State for `/endpoints`.
    #[must_use]
    pub(in crate::proxy) fn status(&self, now: Instant) -> ClusterStatus {
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
                address: e.key.address.to_string().into(),
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
            requests: ClusterShard::read(&self.shards.iter().filter_map(|s| s.get().map(|s| &**s))),
        }
    }
}
