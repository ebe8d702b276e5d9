//! Gets a request its connection: ready, fresh, inherited or waited for; or says why there is none.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::cluster::{LiveCluster, LiveEndpoint};
use super::permit::{self, ConnectionPermit, Grant, RequestPermit, Waiter};
use super::stats::Event;
use super::upstream::PooledConnection;
use super::worker::Worker;
use crate::l7::limit::{Ticket, Wait};
use crate::l7::outlier::Outcome;

/// A connection and the right to have a request active on it.
#[derive(Debug)]
pub(super) struct Lease {
    /// The connection; busy with nothing.
    pub(super) connection: PooledConnection,
    /// The permit.
    pub(super) request: RequestPermit,
}

/// Why a request gets no connection.
#[derive(Debug)]
pub(super) enum Refusal {
    /// No endpoint may be used.
    NoEndpoint,
    /// A limit was reached.
    Overflow,
    /// The endpoint could not be connected to.
    ConnectFailure(Arc<LiveEndpoint>),
}

/// Gets a connection of `cluster` for a request; a fresh one rather not to `except`.
///
/// # Errors
/// See [`Refusal`].
pub(super) async fn acquire(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    except: Option<&LiveEndpoint>,
) -> Result<Lease, Refusal> {
    loop {
        let endpoint = cluster
            .pick(worker.random(), except)
            .ok_or(Refusal::NoEndpoint)?;
        if let Some(connection) = cluster.take_idle(worker.index, &endpoint) {
            return match RequestPermit::take(cluster) {
                Some(request) => Ok(Lease {
                    connection,
                    request,
                }),
                None => {
                    permit::hand_over(cluster, connection);
                    Err(Refusal::Overflow)
                }
            };
        }
        if let Some(room) = ConnectionPermit::take(cluster) {
            let request = RequestPermit::take(cluster).ok_or(Refusal::Overflow)?;
            return connect(worker, cluster, endpoint, room, request).await;
        }
        match wait(worker, cluster).await {
            Some(Grant::Connection(connection, request)) => {
                return Ok(Lease {
                    connection,
                    request,
                });
            }
            Some(Grant::Room(room, request)) => {
                // Time has passed: the endpoint picked before may be out by now.
                let endpoint = if endpoint.is_usable() {
                    endpoint
                } else {
                    cluster
                        .pick(worker.random(), except)
                        .ok_or(Refusal::NoEndpoint)?
                };
                return connect(worker, cluster, endpoint, room, request).await;
            }
            Some(Grant::Overflow) => return Err(Refusal::Overflow),
            // The connection to inherit from broke at the same moment.
            None => {}
        }
    }
}

async fn connect(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    endpoint: Arc<LiveEndpoint>,
    room: ConnectionPermit,
    request: RequestPermit,
) -> Result<Lease, Refusal> {
    let limit = cluster.view().policy.pool.connect_timeout;
    let open = PooledConnection::open(Arc::clone(&endpoint), worker.index, room);
    match tokio::time::timeout(limit, open).await {
        Ok(Ok(connection)) => {
            worker.count(Event::UpstreamConnects);
            cluster.shard(worker.index).connected();
            Ok(Lease {
                connection,
                request,
            })
        }
        Ok(Err(_)) | Err(_) => {
            worker.count(Event::UpstreamConnectFailures);
            cluster.record(&endpoint, Outcome::ConnectFailure);
            Err(Refusal::ConnectFailure(endpoint))
        }
    }
}

/// All connections are in use: inherits an idle one's permit, or queues.
async fn wait(worker: &Worker, cluster: &Arc<LiveCluster>) -> Option<Grant> {
    let (grant, granted) = oneshot::channel();
    if let Some(connection) = cluster.take_oldest_idle(worker.index) {
        let Some(request) = RequestPermit::take(cluster) else {
            permit::hand_over(cluster, connection);
            return Some(Grant::Overflow);
        };
        connection.close_for(grant, request);
        return granted.await.ok();
    }
    let waiter = Waiter {
        cluster: Arc::clone(cluster),
        worker: worker.index,
        grant,
    };
    match cluster.limiter.wait(waiter) {
        Wait::Overflow(_) => Some(Grant::Overflow),
        Wait::Connection(_) => {
            let room = ConnectionPermit::counted(cluster);
            Some(match RequestPermit::take(cluster) {
                Some(request) => Grant::Room(room, request),
                None => Grant::Overflow,
            })
        }
        Wait::Queued(ticket) => {
            let _place = Place { cluster, ticket };
            // A connection may have become idle before the queue could be seen.
            if let Some(connection) = cluster.take_oldest_idle(worker.index) {
                permit::hand_over(cluster, connection);
            }
            granted.await.ok()
        }
    }
}

/// A place in the queue, left when the request goes away.
struct Place<'a> {
    cluster: &'a LiveCluster,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.cluster.limiter.cancel(self.ticket);
    }
}
