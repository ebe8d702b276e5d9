//! One HTTP/2 connection to an endpoint, shared by the requests of all workers.
//!
//! Tasks on the worker that opened it drive it. It takes requests until it has as many as it may have at once, has had
//! as many as it may have in all, or is retired; it closes once the last of them is over.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;

use super::connect::{EndpointStream, OnThisWorker, Origin, poll_connection};
use super::http1::HEAD_BYTES;
use crate::proxy::body::RequestBody;
use crate::proxy::cluster::{LiveCluster, LiveEndpoint};
use crate::proxy::permit::{self, ConnectionPermit};

/// Requests at once on one connection, unless `maxConcurrentStreams` says less: what most servers admit at least.
const STREAMS_MAX: u32 = 100;
/// Bytes of one response body that an endpoint may send before they are taken on.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all bodies of a connection together.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of one request body that are kept while the endpoint has no room for them.
const SEND_BUFFER: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(in crate::proxy) struct Mux {
    /// Where it leads.
    pub(in crate::proxy) endpoint: Arc<LiveEndpoint>,
    origin: Option<Origin>,
    epoch: u64,
    /// None: it takes no further request.
    sender: Mutex<Option<SendRequest<RequestBody>>>,
    active: AtomicU32,
    served: AtomicU32,
    streams_max: u32,
    requests_max: Option<u32>,
    idle_since: Mutex<Instant>,
}

/// The right to send one request on a connection; held until the exchange is over.
#[derive(Debug)]
pub(in crate::proxy) struct MuxStream {
    mux: Arc<Mux>,
    cluster: Arc<LiveCluster>,
    sender: SendRequest<RequestBody>,
    quiet: bool,
}

impl Mux {
    /// Speaks HTTP/2 on a fresh connection, driven by this worker.
    ///
    /// # Errors
    /// Hyper's.
    pub(in crate::proxy) async fn start(
        cluster: &LiveCluster,
        endpoint: Arc<LiveEndpoint>,
        stream: EndpointStream,
        (origin, epoch): (Option<Origin>, u64),
        permit: ConnectionPermit,
    ) -> hyper::Result<Arc<Self>> {
        let pool = &cluster.view().policy.pool.clone();
        let (sender, connection) = Builder::new(OnThisWorker)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await?;
        drop(tokio::task::spawn_local(Task {
            connection: Some(connection),
            permit: Some(permit),
        }));
        let wanted = pool.max_concurrent_streams.unwrap_or(STREAMS_MAX);
        Ok(Arc::new(Self {
            endpoint,
            origin,
            epoch,
            sender: Mutex::new(Some(sender)),
            active: AtomicU32::new(0),
            served: AtomicU32::new(0),
            streams_max: wanted.clamp(1, STREAMS_MAX),
            // A PROXY header names one client, who may never ask again.
            requests_max: match origin {
                Some(_) => Some(1),
                None => pool.max_requests_per_connection,
            },
            idle_since: Mutex::new(Instant::now()),
        }))
    }

    /// Whether it leads to this endpoint in this way.
    pub(in crate::proxy) fn fits(
        &self,
        endpoint: &LiveEndpoint,
        origin: Option<Origin>,
        epoch: u64,
    ) -> bool {
        std::ptr::eq(&raw const *self.endpoint, endpoint)
            && self.origin == origin
            && self.epoch == epoch
    }

    /// Whether it takes no further request: closed, or retired.
    pub(in crate::proxy) fn is_over(&self) -> bool {
        self.sender().as_ref().is_none_or(SendRequest::is_closed)
    }

    /// Takes a place for one request, if there is one.
    pub(in crate::proxy) fn enter(
        self: &Arc<Self>,
        cluster: &Arc<LiveCluster>,
    ) -> Option<MuxStream> {
        let mut slot = self.sender();
        let sender = slot.as_ref().filter(|sender| !sender.is_closed())?.clone();
        let room = |active: u32| (active < self.streams_max).then_some(active + 1);
        self.active.try_update(Relaxed, Relaxed, room).ok()?;
        let served = self.served.fetch_add(1, Relaxed) + 1;
        if self.requests_max.is_some_and(|max| served >= max) {
            *slot = None;
        }
        self.endpoint.enter();
        Some(MuxStream {
            mux: Arc::clone(self),
            cluster: Arc::clone(cluster),
            sender,
            quiet: false,
        })
    }

    /// Takes no further request; closes once those on it are over.
    pub(in crate::proxy) fn retire(&self) {
        *self.sender() = None;
    }

    /// Requests on it now.
    pub(in crate::proxy) fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// How long there was no request on it; `None` while there is one.
    pub(in crate::proxy) fn idle_for(&self, now: Instant) -> Option<Duration> {
        let since = *self
            .idle_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        (self.active() == 0).then(|| now.duration_since(since))
    }

    fn sender(&self) -> MutexGuard<'_, Option<SendRequest<RequestBody>>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MuxStream {
    /// Where it leads.
    pub(in crate::proxy) fn endpoint(&self) -> &Arc<LiveEndpoint> {
        &self.mux.endpoint
    }

    /// Sends the request; its URI must be absolute.
    pub(in crate::proxy) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<>
    {
        self.sender.try_send_request(request)
    }
}

impl MuxStream {
    /// Gives the place back without offering it to anybody: nobody waits.
    pub(in crate::proxy) fn leave_quietly(mut self) {
        self.quiet = true;
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        self.mux.endpoint.leave();
        if self.mux.active.fetch_sub(1, Relaxed) == 1 {
            let mut since = self
                .mux
                .idle_since
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *since = Instant::now();
        }
        if !self.quiet {
            permit::offer_stream(&self.cluster, &self.mux);
        }
    }
}

type Driven = Connection<TokioIo<EndpointStream>, RequestBody, OnThisWorker>;

/// Drives a connection until it ends.
struct Task {
    connection: Option<Driven>,
    permit: Option<ConnectionPermit>,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        poll_connection(&mut self.connection, cx)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // The socket first: a permit never stands for a connection that is still open.
        self.connection = None;
        self.permit = None;
    }
}
