//! Gets a request its connection: ready, shared, fresh, inherited or waited for; or says why there is none.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::future::Either;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::body::RequestBody;
use super::cluster::{LiveCluster, LiveEndpoint};
use super::permit::{self, ConnectionPermit, Grant, RequestPermit, Waiter};
use super::stats::Event;
use super::upstream::{Mux, MuxStream, Origin, PooledConnection, Transport, Way};
use super::worker::Worker;
use crate::l7::limit::{Ticket, Wait};
use crate::l7::outlier::Outcome;

/// A connection, or a place on one, and the right to have a request active on it.
#[derive(Debug)]
pub(super) struct Lease {
    /// The permit; given back before the connection is, so that whoever waits for that finds room.
    pub(super) request: RequestPermit,
    /// The connection.
    pub(super) connection: Leased,
}

/// What a request is sent on.
#[derive(Debug)]
pub(super) enum Leased {
    /// A connection of its own.
    Http1(PooledConnection),
    /// A place on a shared one.
    Http2(MuxStream),
}

impl Leased {
    /// Where it leads.
    pub(super) fn endpoint(&self) -> &Arc<LiveEndpoint> {
        match self {
            Self::Http1(connection) => &connection.endpoint,
            Self::Http2(stream) => stream.endpoint(),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Hyper's; a request that was never written comes back with it.
    pub(super) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<>
    {
        match self {
            Self::Http1(connection) => Either::Left(connection.send(request)),
            Self::Http2(stream) => Either::Right(stream.send(request)),
        }
    }
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

/// What a request needs of its connection.
#[derive(Clone, Debug)]
pub(super) struct Demand {
    /// The cluster's transport when the request began.
    pub(super) transport: Arc<Transport>,
    /// Versions of HTTP.
    pub(super) way: Way,
    /// Whom endpoints are told of, if they are.
    pub(super) origin: Option<Origin>,
}

impl Demand {
    /// Whom the endpoint is told of, and the transport's epoch.
    pub(super) fn marks(&self) -> (Option<Origin>, u64) {
        (self.origin, self.transport.epoch)
    }
}

/// A connection for a request: see [`acquire`].
///
/// # Errors
/// See [`Refusal`].
pub(super) async fn lease(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    demand: &Demand,
    except: Option<&LiveEndpoint>,
) -> Result<Lease, Refusal> {
    match at_once(worker, cluster, demand, except) {
        Ok(acquired) => acquired,
        Err(endpoint) => acquire(worker, cluster, demand, except, endpoint).await,
    }
}

/// A connection that is ready, or why there can be none.
///
/// # Errors
/// The endpoint to which one has to be opened or waited for.
pub(super) fn at_once(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    demand: &Demand,
    except: Option<&LiveEndpoint>,
) -> Result<Result<Lease, Refusal>, Arc<LiveEndpoint>> {
    let Some(endpoint) = cluster.pick(worker.random(), except) else {
        return Ok(Err(Refusal::NoEndpoint));
    };
    match ready(worker, cluster, demand, &endpoint) {
        Some(connection) => Ok(permitted(cluster, connection)),
        None => Err(endpoint),
    }
}

/// Gets a connection of `cluster` for a request, first to `endpoint`; a fresh one rather not to `except`.
///
/// # Errors
/// See [`Refusal`].
pub(super) async fn acquire(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    demand: &Demand,
    except: Option<&LiveEndpoint>,
    mut endpoint: Arc<LiveEndpoint>,
) -> Result<Lease, Refusal> {
    loop {
        let turn = match turn(cluster, demand, &endpoint).await? {
            Turn::Mine(turn) => turn,
            Turn::Served(stream) => return permitted(cluster, Leased::Http2(stream)),
        };
        if let Some(room) = ConnectionPermit::take(cluster) {
            let request = RequestPermit::take(cluster).ok_or(Refusal::Overflow)?;
            return connect(worker, cluster, demand, endpoint, (room, request)).await;
        }
        drop(turn);
        match wait(worker, cluster, demand, &endpoint).await {
            Some(Grant::Connection(connection, request)) => {
                let connection = Leased::Http1(connection);
                return Ok(Lease {
                    request,
                    connection,
                });
            }
            Some(Grant::Stream(stream, request)) => {
                let connection = Leased::Http2(stream);
                return Ok(Lease {
                    request,
                    connection,
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
                return connect(worker, cluster, demand, endpoint, (room, request)).await;
            }
            Some(Grant::Overflow) => return Err(Refusal::Overflow),
            // The connection to inherit from broke at the same moment.
            None => match at_once(worker, cluster, demand, except) {
                Ok(acquired) => return acquired,
                Err(other) => endpoint = other,
            },
        }
    }
}

/// The right to have a request active on a ready connection.
fn permitted(cluster: &Arc<LiveCluster>, connection: Leased) -> Result<Lease, Refusal> {
    match RequestPermit::take(cluster) {
        Some(request) => Ok(Lease {
            request,
            connection,
        }),
        None => {
            if let Leased::Http1(connection) = connection {
                permit::hand_over(cluster, connection);
            }
            Err(Refusal::Overflow)
        }
    }
}

/// A connection to the endpoint on which the request can be sent at once.
fn ready(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    demand: &Demand,
    endpoint: &LiveEndpoint,
) -> Option<Leased> {
    let (origin, epoch) = demand.marks();
    if demand.way != Way::Http1
        && let Some(stream) = cluster.take_stream(endpoint, origin, epoch)
    {
        return Some(Leased::Http2(stream));
    }
    if demand.way == Way::Http2 {
        return None;
    }
    let connection = cluster.take_idle(worker.index, endpoint, origin)?;
    Some(Leased::Http1(connection))
}

enum Turn {
    /// To open a connection. None: connections to the endpoint are not shared, so nobody waits for another's.
    Mine(Option<OwnedMutexGuard<()>>),
    /// Somebody else opened one meanwhile.
    Served(MuxStream),
}

/// Waits for whoever is opening a connection that can be shared.
async fn turn(
    cluster: &Arc<LiveCluster>,
    demand: &Demand,
    endpoint: &Arc<LiveEndpoint>,
) -> Result<Turn, Refusal> {
    let shared = match demand.way {
        Way::Http1 => false,
        Way::Http2 => true,
        Way::Either => !endpoint.chose_http1.load(Relaxed),
    };
    if !shared {
        return Ok(Turn::Mine(None));
    }
    let failures = endpoint.failures.load(Relaxed);
    let turn = Arc::clone(endpoint.opening()).lock_owned().await;
    let (origin, epoch) = demand.marks();
    if let Some(stream) = cluster.take_stream(endpoint, origin, epoch) {
        return Ok(Turn::Served(stream));
    }
    if endpoint.failures.load(Relaxed) != failures {
        // Whom we waited for has just failed: a queue of attempts would take that long for each of us.
        return Err(Refusal::ConnectFailure(Arc::clone(endpoint)));
    }
    Ok(Turn::Mine(Some(turn)))
}

async fn connect(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    demand: &Demand,
    endpoint: Arc<LiveEndpoint>,
    (room, request): (ConnectionPermit, RequestPermit),
) -> Result<Lease, Refusal> {
    let limit = cluster.view().policy.pool.connect_timeout;
    // In a box: a handshake is large, and most requests find a connection that is open.
    let open = Box::pin(open(worker, cluster, demand, &endpoint, room));
    match tokio::time::timeout(limit, open).await {
        Ok(Some(connection)) => {
            worker.count(Event::UpstreamConnects);
            cluster.shard(worker.index).connected();
            Ok(Lease {
                request,
                connection,
            })
        }
        Ok(None) | Err(_) => {
            worker.count(Event::UpstreamConnectFailures);
            endpoint.failures.fetch_add(1, Relaxed);
            cluster.record(&endpoint, Outcome::ConnectFailure);
            Err(Refusal::ConnectFailure(endpoint))
        }
    }
}

async fn open(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    demand: &Demand,
    endpoint: &Arc<LiveEndpoint>,
    room: ConnectionPermit,
) -> Option<Leased> {
    let address = endpoint.key.address;
    let connected = demand
        .transport
        .connect(address, demand.way, demand.origin)
        .await;
    let (stream, http2) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            tracing::debug!(cluster = %cluster.name, endpoint = %endpoint.key.address, %error, "cannot connect");
            return None;
        }
    };
    let to = Arc::clone(endpoint);
    if !http2 {
        endpoint
            .chose_http1
            .store(demand.way == Way::Either, Relaxed);
        let started = PooledConnection::start(to, worker.index, stream, demand.marks(), room);
        return started.await.ok().map(Leased::Http1);
    }
    let mux = Mux::start(cluster, to, stream, demand.marks(), room)
        .await
        .ok()?;
    let place = mux.enter(cluster);
    cluster.add_mux(&mux);
    // Others wait for room, and this is some: it may be long until a request on it is over.
    while permit::offer_stream(cluster, &mux) {}
    // Whoever removed the endpoint or changed the transport while it was opened has not seen it.
    let current = cluster.view().transport.epoch == demand.transport.epoch;
    if !(current && endpoint.is_usable()) {
        mux.retire();
    }
    place.map(Leased::Http2)
}

/// All connections are in use: inherits an idle one's permit, or queues.
async fn wait(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    demand: &Demand,
    endpoint: &LiveEndpoint,
) -> Option<Grant> {
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
        demand: demand.clone(),
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
            // A place may have come free before the queue could be seen: giving it back offers it.
            let (origin, epoch) = demand.marks();
            drop(cluster.take_stream(endpoint, origin, epoch));
            cluster.retire_idle_mux();
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
