//! One HTTP/1 connection to an endpoint: connecting, sending, closing.
//!
//! A task on the worker that opened it drives the connection and owns its permit, which is given back only once the
//! socket is closed. The handle below is what moves between request and idle list; dropping it closes the connection.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::connect::{EndpointStream, Origin, Way, poll_connection};
use crate::proxy::body::RequestBody;
use crate::proxy::cluster::LiveEndpoint;
use crate::proxy::permit::{ConnectionPermit, Grant, RequestPermit};
use crate::proxy::pool::Demand;
use crate::proxy::scan::response::HEAD_BYTES_MAX;

/// Most bytes buffered in each direction.
const BUFFER: usize = 64 * 1024;
/// Longest response head.
pub(super) const HEAD_BYTES: u32 = 64 * 1024;
const _: () = assert!(HEAD_BYTES as usize == HEAD_BYTES_MAX);

/// The handle of an open connection.
#[derive(Debug)]
pub(in crate::proxy) struct PooledConnection {
    /// Where it leads.
    pub(in crate::proxy) endpoint: Arc<LiveEndpoint>,
    /// Worker that drives it.
    pub(in crate::proxy) worker: usize,
    /// Requests that were sent on it.
    pub(in crate::proxy) served: u32,
    /// Whom it serves, if it serves only one.
    pub(in crate::proxy) origin: Option<Origin>,
    /// The cluster's transport when it was opened.
    pub(in crate::proxy) epoch: u64,
    busy: bool,
    sender: SendRequest<RequestBody>,
    task: AbortHandle,
    will: Arc<Mutex<Option<Will>>>,
}

/// What becomes of a connection and its permit in the end.
#[derive(Debug)]
enum Will {
    /// Once it is closed, its permit goes to a waiter.
    Heir(oneshot::Sender<Grant>, RequestPermit),
    /// Once the endpoint has switched protocols, all of it goes to the tunnel.
    Tunnel(oneshot::Sender<Handed>),
}

/// A connection that the endpoint has switched to another protocol.
#[derive(Debug)]
pub(in crate::proxy) struct Handed {
    /// The connection.
    pub(in crate::proxy) stream: EndpointStream,
    /// What was read behind the response head.
    pub(in crate::proxy) ahead: Bytes,
    /// Its permit.
    pub(in crate::proxy) permit: ConnectionPermit,
}

impl PooledConnection {
    /// Speaks HTTP/1 on a fresh connection, driven by a task on this worker.
    ///
    /// # Errors
    /// Hyper's.
    pub(in crate::proxy) async fn start(
        endpoint: Arc<LiveEndpoint>,
        worker: usize,
        stream: EndpointStream,
        (origin, epoch): (Option<Origin>, u64),
        permit: ConnectionPermit,
    ) -> hyper::Result<Self> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER)
            .max_header_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        let will = Arc::default();
        let task = Task {
            connection: Some(connection),
            permit: Some(permit),
            will: Arc::clone(&will),
        };
        Ok(Self {
            endpoint,
            worker,
            served: 0,
            origin,
            epoch,
            busy: false,
            sender,
            task: tokio::task::spawn_local(task).abort_handle(),
            will,
        })
    }

    /// Whether a request with these needs may be sent on it.
    #[must_use]
    pub(in crate::proxy) fn serves(&self, demand: &Demand) -> bool {
        demand.way != Way::Http2 && demand.marks() == (self.origin, self.epoch)
    }

    /// Whether a request can be sent at once.
    #[must_use]
    pub(in crate::proxy) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Waits until the last exchange is wholly over; `false` if the connection is closed.
    pub(in crate::proxy) async fn ready(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Hyper's; a request that was never written comes back with it.
    pub(in crate::proxy) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<
        Output = Result<
            http::Response<hyper::body::Incoming>,
            hyper::client::conn::TrySendError<Request<RequestBody>>,
        >,
    > + use<> {
        self.served += 1;
        self.busy = true;
        self.endpoint.enter();
        self.sender.try_send_request(request)
    }

    /// The exchange is over.
    pub(in crate::proxy) fn end(&mut self) {
        if std::mem::take(&mut self.busy) {
            self.endpoint.leave();
        }
    }

    /// Closes the connection; once its socket is closed, its permit goes to the given waiter.
    pub(in crate::proxy) fn close_for(self, grant: oneshot::Sender<Grant>, request: RequestPermit) {
        // If the task ended before it could see the heir, the permit went back in the ordinary way; the heir is
        // then dropped with this handle, and the waiter starts again.
        *lock(&self.will) = Some(Will::Heir(grant, request));
    }

    /// The endpoint has not switched protocols: the connection goes on as it was.
    pub(in crate::proxy) fn no_upgrade(&self) {
        *lock(&self.will) = None;
    }

    /// The next request asks for an upgrade: what is left of the connection after a 101 comes by this channel.
    pub(in crate::proxy) fn expect_upgrade(&mut self) -> oneshot::Receiver<Handed> {
        let (hand, handed) = oneshot::channel();
        *lock(&self.will) = Some(Will::Tunnel(hand));
        handed
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        self.end();
        self.task.abort();
    }
}

fn lock(will: &Mutex<Option<Will>>) -> MutexGuard<'_, Option<Will>> {
    will.lock().unwrap_or_else(PoisonError::into_inner)
}

type Connection = http1::Connection<TokioIo<EndpointStream>, RequestBody>;

/// Drives a connection until it ends or is aborted.
struct Task {
    connection: Option<Connection>,
    permit: Option<ConnectionPermit>,
    will: Arc<Mutex<Option<Will>>>,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        ready!(poll_connection(&mut self.connection, cx));
        let tunnel = |will: &mut Will| matches!(will, Will::Tunnel(_));
        let will = lock(&self.will).take_if(tunnel);
        if let Some(Will::Tunnel(hand)) = will
            && let (Some(connection), Some(permit)) = (self.connection.take(), self.permit.take())
        {
            let parts = connection.into_parts();
            // Nobody takes it if the endpoint has not switched: then it closes here, socket first.
            drop(hand.send(Handed {
                stream: parts.io.into_inner(),
                ahead: parts.read_buf,
                permit,
            }));
        }
        Poll::Ready(())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // The socket first: a permit never stands for a connection that is still open.
        self.connection = None;
        let Some(permit) = self.permit.take() else {
            return;
        };
        if let Some(Will::Heir(grant, request)) = lock(&self.will).take() {
            // A waiter that is gone drops the grant, which passes both permits on.
            drop(grant.send(Grant::Room(permit, request)));
        }
    }
}
