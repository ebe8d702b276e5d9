//! Connections to the endpoints of a cluster that wait for requests: HTTP/1 ones in a list for each worker, HTTP/2 ones in
//! one for all.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{LiveCluster, LiveEndpoint};
use crate::proxy::upstream::{Mux, MuxStream, Origin, PooledConnection};

/// An idle connection.
#[derive(Debug)]
pub(super) struct Idle {
    since: Instant,
    pub(super) connection: PooledConnection,
}

impl LiveCluster {
    /// A ready connection of this worker to this endpoint: the one used last.
    #[must_use]
    pub(in crate::proxy) fn take_idle(
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
    pub(in crate::proxy) fn take_stream(
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
    pub(in crate::proxy) fn add_mux(&self, mux: &Arc<Mux>) {
        self.muxes().push(Arc::clone(mux));
    }

    /// Retires an HTTP/2 connection without requests, so that its permit comes free.
    pub(in crate::proxy) fn retire_idle_mux(&self) {
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
    pub(in crate::proxy) fn take_oldest_idle(&self, worker: usize) -> Option<PooledConnection> {
        let workers = self.idle.len();
        (0..workers).find_map(|i| {
            let mut list = self.idle_of((worker + i) % workers);
            (!list.is_empty()).then(|| list.remove(0).connection)
        })
    }

    /// Keeps a connection for later, unless its endpoint is out or gone (then it closes).
    pub(in crate::proxy) fn put_idle(&self, connection: PooledConnection) {
        let current = self.view.load().transport.epoch == connection.epoch;
        if connection.endpoint.is_usable() && current {
            let since = Instant::now();
            self.idle_of(connection.worker)
                .push(Idle { since, connection });
        }
    }

    /// Closes this worker's connections that were idle for too long or that the endpoint closed.
    pub(in crate::proxy) fn reap_idle(&self, worker: usize, now: Instant) {
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
    pub(in crate::proxy) fn close_idle(&self) {
        for worker in 0..self.idle.len() {
            let closed = std::mem::take(&mut *self.idle_of(worker));
            drop(closed);
        }
        for mux in std::mem::take(&mut *self.muxes()) {
            mux.retire();
        }
    }

    pub(super) fn close_idle_of(&self, endpoint: &LiveEndpoint) {
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

    pub(super) fn idle_of(&self, worker: usize) -> MutexGuard<'_, Vec<Idle>> {
        self.idle[worker]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
