//! One HTTP/1 connection to an endpoint: connecting, sending, closing.
//!
//! A task on the worker that opened it drives the connection and owns its permit, which is given back only once the
//! socket is closed. The handle below is what moves between request and idle list; dropping it closes the connection.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::body::RequestBody;
use super::cluster::LiveEndpoint;
use super::permit::{ConnectionPermit, Grant, RequestPermit};
use super::scan::response::HEAD_BYTES_MAX;

/// Most bytes buffered in each direction.
const BUFFER: usize = 64 * 1024;

/// The handle of an open connection.
#[derive(Debug)]
pub(super) struct PooledConnection {
    /// Where it leads.
    pub(super) endpoint: Arc<LiveEndpoint>,
    /// Worker that drives it.
    pub(super) worker: usize,
    /// Requests that were sent on it.
    pub(super) served: u32,
    busy: bool,
    sender: SendRequest<RequestBody>,
    task: AbortHandle,
    heir: Arc<Mutex<Option<Heir>>>,
}

/// Who gets the connection permit once the connection is closed.
#[derive(Debug)]
struct Heir {
    grant: oneshot::Sender<Grant>,
    request: RequestPermit,
}

impl PooledConnection {
    /// Opens a connection and starts its task on this worker.
    ///
    /// # Errors
    /// If the endpoint cannot be connected to.
    pub(super) async fn open(
        endpoint: Arc<LiveEndpoint>,
        worker: usize,
        permit: ConnectionPermit,
    ) -> io::Result<Self> {
        let stream = TcpStream::connect(endpoint.key.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER)
            .max_header_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let heir = Arc::default();
        let task = Task {
            connection: Some(connection),
            permit: Some(permit),
            heir: Arc::clone(&heir),
        };
        Ok(Self {
            endpoint,
            worker,
            served: 0,
            busy: false,
            sender,
            task: tokio::task::spawn_local(task).abort_handle(),
            heir,
        })
    }

    /// Whether a request can be sent at once.
    #[must_use]
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Waits until the last exchange is wholly over; `false` if the connection is closed.
    pub(super) async fn ready(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Hyper's; a request that was never written comes back with it.
    pub(super) fn send(
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
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.busy) {
            self.endpoint.leave();
        }
    }

    /// Closes the connection; once its socket is closed, its permit goes to the given waiter.
    pub(super) fn close_for(self, grant: oneshot::Sender<Grant>, request: RequestPermit) {
        let heir = Heir { grant, request };
        // If the task ended before it could see the heir, the permit went back in the ordinary way; the heir is
        // then dropped with this handle, and the waiter starts again.
        *self.heir.lock().unwrap_or_else(PoisonError::into_inner) = Some(heir);
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        self.end();
        self.task.abort();
    }
}

/// Passes a permit to the heir, if there is one; else it goes back to the limiter.
fn settle(heir: &Mutex<Option<Heir>>, permit: ConnectionPermit) {
    let heir = heir.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(heir) = heir {
        // A waiter that is gone drops the grant, which passes both permits on.
        drop(heir.grant.send(Grant::Room(permit, heir.request)));
    }
}

type Connection = http1::Connection<TokioIo<TcpStream>, RequestBody>;

/// Drives a connection until it ends or is aborted.
struct Task {
    connection: Option<Connection>,
    permit: Option<ConnectionPermit>,
    heir: Arc<Mutex<Option<Heir>>>,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.connection {
            // How it ended is known to the request, if there was one.
            Some(connection) => Pin::new(connection).poll(cx).map(drop),
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // The socket first: a permit never stands for a connection that is still open.
        self.connection = None;
        if let Some(permit) = self.permit.take() {
            settle(&self.heir, permit);
        }
    }
}
