//! Permits of a cluster's limiter as values: dropping one gives it back and tells whoever gets it next.
//!
//! A waiter that is granted something and goes away at the same moment drops what it was sent, so that nothing is
//! ever lost: every permit is owned by exactly one value.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::cluster::LiveCluster;
use super::pool::Demand;
use super::upstream::{Mux, MuxStream, PooledConnection};
use crate::l7::limit::Wake;

/// The right to have one request active.
#[derive(Debug)]
pub(super) struct RequestPermit(Arc<LiveCluster>);

impl RequestPermit {
    /// Takes one, if there is one.
    #[must_use]
    pub(super) fn take(cluster: &Arc<LiveCluster>) -> Option<Self> {
        cluster
            .limiter
            .try_request()
            .then(|| Self(Arc::clone(cluster)))
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.0.limiter.release_request();
    }
}

/// The right to hold one connection open; owned by the connection's task.
#[derive(Debug)]
pub(super) struct ConnectionPermit(Arc<LiveCluster>);

impl ConnectionPermit {
    /// Takes one, if there is one and nobody waits for it.
    #[must_use]
    pub(super) fn take(cluster: &Arc<LiveCluster>) -> Option<Self> {
        cluster
            .limiter
            .try_connection()
            .then(|| Self(Arc::clone(cluster)))
    }

    /// Wraps a permit that the limiter has counted already.
    #[must_use]
    pub(super) fn counted(cluster: &Arc<LiveCluster>) -> Self {
        Self(Arc::clone(cluster))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        deliver(self.0.limiter.release_connection());
    }
}

/// A request in the queue.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Cluster whose queue it stands in.
    pub(super) cluster: Arc<LiveCluster>,
    /// Worker that it runs on.
    pub(super) worker: usize,
    /// What it needs of its connection.
    pub(super) demand: Demand,
    /// Where the grant goes.
    pub(super) grant: oneshot::Sender<Grant>,
}

/// What a waiter gets.
#[derive(Debug)]
pub(super) enum Grant {
    /// A connection of its own worker that came free.
    Connection(PooledConnection, RequestPermit),
    /// A place on an HTTP/2 connection that came free.
    Stream(MuxStream, RequestPermit),
    /// Room to open a connection.
    Room(ConnectionPermit, RequestPermit),
    /// The active requests are at their limit.
    Overflow,
}

/// Tells waiters that the limiter granted a connection permit, or refused.
pub(super) fn deliver(wakes: Vec<Wake<Waiter>>) {
    for wake in wakes {
        match wake {
            Wake::Granted(waiter) => {
                let cluster = &waiter.cluster;
                let grant = Grant::Room(
                    ConnectionPermit::counted(cluster),
                    RequestPermit(Arc::clone(cluster)),
                );
                // A waiter that is gone drops the grant, which passes both permits on.
                drop(waiter.grant.send(grant));
            }
            Wake::Overflow(waiter) => drop(waiter.grant.send(Grant::Overflow)),
        }
    }
}

/// A request on an HTTP/2 connection is over: its place goes to the first waiter that may use it. Where none may, a
/// connection without requests makes room for one. Whether somebody was told.
pub(super) fn offer_stream(cluster: &Arc<LiveCluster>, mux: &Arc<Mux>) -> bool {
    if cluster.limiter.in_use().pending == 0 {
        return false;
    }
    let Some(stream) = mux.enter(cluster) else {
        return false;
    };
    let mut wakes = cluster
        .limiter
        .offer_to(|waiter| mux.serves(&waiter.demand));
    match wakes.pop() {
        Some(Wake::Granted(heir)) => {
            deliver(wakes);
            let request = RequestPermit(Arc::clone(cluster));
            // An heir that is gone drops the grant, which offers the place anew.
            drop(heir.grant.send(Grant::Stream(stream, request)));
            true
        }
        Some(refused @ Wake::Overflow(_)) => {
            wakes.push(refused);
            deliver(wakes);
            true
        }
        None => {
            if mux.active() == 1 && cluster.limiter.in_use().pending > 0 {
                mux.retire();
            }
            stream.leave_quietly();
            false
        }
    }
}

/// Hands a connection that became free to the head waiter, or keeps it idle if nobody waits.
pub(super) fn hand_over(cluster: &Arc<LiveCluster>, connection: PooledConnection) {
    let mut connection = connection;
    loop {
        let mut wakes = cluster.limiter.offer();
        let heir = match wakes.pop() {
            Some(Wake::Granted(waiter)) => waiter,
            Some(refused @ Wake::Overflow(_)) => {
                wakes.push(refused);
                deliver(wakes);
                continue;
            }
            None => break,
        };
        deliver(wakes);
        let request = RequestPermit(Arc::clone(cluster));
        if heir.worker != connection.worker || !connection.serves(&heir.demand) {
            connection.close_for(heir.grant, request);
            return;
        }
        match heir.grant.send(Grant::Connection(connection, request)) {
            Ok(()) => return,
            Err(Grant::Connection(back, _request)) => connection = back,
            Err(_) => return,
        }
    }
    if cluster.limiter.over_limit() {
        return;
    }
    let worker = connection.worker;
    cluster.put_idle(connection);
    // Someone may have begun to wait after the offer and before the connection could be seen.
    if cluster.limiter.in_use().pending > 0
        && let Some(connection) = cluster.take_oldest_idle(worker)
    {
        hand_over(cluster, connection);
    }
}
