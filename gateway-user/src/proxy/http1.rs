//! HTTP/1 with a client: hyper's server over the scanned bytes, and what an upgrade leaves of the connection.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, ready};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

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

/// Serves a connection until it is closed.
pub(super) async fn drive(worker: &Rc<Worker>, downstream: &Rc<Downstream>, stream: ClientStream) {
    let start = downstream.accepted.into();
    let limits = Limits {
        hold_upgrades: true,
        ..Limits::default()
    };
    let (io, admission) = Guarded::new(stream, limits, start);
    downstream.guard(admission.clone());
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
    let whole = std::future::poll_fn(|cx| {
        downstream.register(cx.waker());
        loop {
            // How a connection ended is known to its exchanges.
            if Pin::new(&mut connection).poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            match ready!(clock.as_mut().poll_expired(cx)) {
                Expired::Retire(event) => {
                    worker.count(event);
                    Pin::new(&mut connection).graceful_shutdown();
                }
                Expired::Hangs(event) => {
                    downstream.cut_off(Cut::Limit(event));
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
    if let Some(refusal) = admission.refusal() {
        worker.stats().refused(worker.index, refusal.reason);
    }
    if whole && let Some(tunnel) = downstream.take_tunnel() {
        let parts = connection.into_parts();
        let client = Ahead::with(parts.read_buf, parts.io.into_inner());
        tunnel.run(worker, client).await;
    }
}
