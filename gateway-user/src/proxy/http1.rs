//! HTTP/1 with a client: hyper's server over the scanned bytes, and what an upgrade leaves of the connection.
//!
//! hyper keeps two buffers of 8 KiB and the frame of the last exchange for as long as a connection lives. One that has
//! been idle for a second is therefore taken away from it, and given back with the next request.

use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::clock::{Clock, Expired};
use super::downstream::{Cut, Downstream};
use super::forward;
use super::scan::{Guarded, Limits};
use super::stream::{Ahead, ClientStream};
use super::worker::Worker;

/// Most bytes buffered in each direction, and of a request head.
const BUFFER: usize = 64 * 1024;
/// Most header fields of a request.
pub(super) const MAX_HEADERS: usize = 100;
/// Bytes that are looked for at once while a connection is idle.
const LOOK: usize = 8 * 1024;

type Io = Guarded<ClientStream>;

/// How hyper's time with a connection ends.
enum End {
    /// It is closed.
    Closed,
    /// It is a tunnel from here on, or closed.
    Left(Io, bytes::Bytes),
    /// Nothing happens on it.
    Idle(Io),
}

/// Serves a connection until it is closed.
pub(super) async fn drive(worker: &Rc<Worker>, downstream: &Rc<Downstream>, stream: ClientStream) {
    let limits = Limits {
        hold_upgrades: true,
        ..Limits::default()
    };
    let (mut io, admission) = Guarded::new(stream, limits, downstream.accepted.into());
    downstream.guard(admission.clone());
    loop {
        // In boxes: an idle connection holds nothing of them.
        match Box::pin(serve(worker, downstream, io)).await {
            End::Closed => break,
            End::Left(io, ahead) => {
                if let Some(tunnel) = downstream.take_tunnel() {
                    Box::pin(tunnel.run(worker, Ahead::with(ahead, io))).await;
                }
                break;
            }
            End::Idle(idle) => match rest(worker, downstream, idle).await {
                Some(awake) => io = awake,
                None => break,
            },
        }
    }
    if let Some(refusal) = admission.refusal() {
        worker.stats().refused(worker.index, refusal.reason);
    }
}

/// Serves requests until the connection ends or rests.
async fn serve(worker: &Rc<Worker>, downstream: &Rc<Downstream>, io: Io) -> End {
    let service = service_fn(|request| {
        forward::handle(Rc::clone(worker), Rc::clone(downstream), None, request)
    });
    let mut connection = http1::Builder::new()
        .keep_alive(true)
        // Never `pipeline_flush`: with it hyper takes frames of a body without any bound.
        .max_buf_size(BUFFER)
        .max_headers(MAX_HEADERS)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(io), service);
    let mut clock = pin!(Clock::new(downstream, worker.timers()));
    let mut retired = false;
    let left = std::future::poll_fn(|cx| {
        downstream.register(cx.waker());
        loop {
            // How a connection ended is known to its exchanges.
            if Pin::new(&mut connection).poll(cx).is_ready() {
                return Poll::Ready(Some(true));
            }
            match ready!(clock.as_mut().poll_expired(cx)) {
                Expired::Rest if !retired && downstream.rests(worker.timers()) => {
                    return Poll::Ready(Some(false));
                }
                Expired::Rest => {}
                Expired::Retire(event) => {
                    worker.count(event);
                    retired = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                Expired::Abort(event) => {
                    worker.count(event);
                    downstream.cut_off(Cut::Limit(event));
                    return Poll::Ready(None);
                }
            }
        }
    })
    .await;
    let Some(over) = left else {
        return End::Closed;
    };
    let parts = connection.into_parts();
    let mut io = parts.io.into_inner();
    if over {
        return End::Left(io, parts.read_buf);
    }
    // Nothing is there: a connection with bytes of a request does not rest.
    io.unread(&parts.read_buf);
    End::Idle(io)
}

/// Waits for the next request on an idle connection; `None`: it is closed.
async fn rest(worker: &Rc<Worker>, downstream: &Rc<Downstream>, mut io: Io) -> Option<Io> {
    worker.rests();
    let mut clock = pin!(Clock::new(downstream, worker.timers()));
    let awake = std::future::poll_fn(|cx| {
        downstream.register(cx.waker());
        if let Poll::Ready(awake) = poll_look(&mut io, cx) {
            return Poll::Ready(awake);
        }
        loop {
            match ready!(clock.as_mut().poll_expired(cx)) {
                Expired::Rest => {}
                Expired::Retire(event) => {
                    worker.count(event);
                    return Poll::Ready(false);
                }
                Expired::Abort(event) => {
                    worker.count(event);
                    downstream.cut_off(Cut::Limit(event));
                    return Poll::Ready(false);
                }
            }
        }
    })
    .await;
    if awake {
        return Some(io);
    }
    // A client that takes no goodbye is not waited for.
    let goodbye = tokio::time::timeout(worker.timers().header, io.shutdown());
    drop(goodbye.await);
    None
}

/// Looks for a request; `false`: the client has gone.
fn poll_look(io: &mut Io, cx: &mut Context<'_>) -> Poll<bool> {
    let mut scratch = [MaybeUninit::uninit(); LOOK];
    let mut buf = ReadBuf::uninit(&mut scratch);
    let read = ready!(Pin::new(&mut *io).poll_read(cx, &mut buf));
    let seen = buf.filled();
    if read.is_err() || seen.is_empty() {
        return Poll::Ready(false);
    }
    io.unread(seen);
    Poll::Ready(true)
}
