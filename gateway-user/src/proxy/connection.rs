//! One client connection: hyper's HTTP/1 server over the watched socket, and the one timer beside it.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::downstream::{Check, Cut, Downstream, Timers, Watched};
use super::forward;
use super::scan::{Guarded, Limits};
use super::stats::Event;
use super::worker::Worker;
use crate::snapshot::BindKey;

/// Most bytes buffered in each direction, and of a request head.
const BUFFER: usize = 64 * 1024;
/// Most header fields of a request.
const MAX_HEADERS: usize = 100;

/// Serves a connection until it is closed.
pub(super) async fn serve(worker: Rc<Worker>, stream: TcpStream, bind: BindKey) {
    // A client that is gone already has no address any more.
    let Ok(peer) = stream.peer_addr() else {
        return;
    };
    // A socket for both families has IPv4 in IPv6 form.
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let _held = worker.holds(peer, bind);
    let downstream = Rc::new(note(&worker, peer, bind));
    let open = Open {
        number: worker.opened(&downstream),
        worker: &worker,
    };
    if worker.is_draining() {
        downstream.drain(Instant::now());
    }
    drive(&worker, &downstream, stream).await;
    drop(open);
}

fn note(worker: &Worker, peer: SocketAddr, bind: BindKey) -> Downstream {
    let max_age = worker.timers().max_age;
    // Between 95 and 105 %: connections opened together do not end together.
    let spread = u32::try_from(worker.random() % 1000).unwrap_or(0);
    let max_age = max_age * 19 / 20 + max_age / 10 * spread / 1000;
    Downstream::new(peer, bind, Instant::now(), max_age)
}

async fn drive(worker: &Rc<Worker>, downstream: &Rc<Downstream>, stream: TcpStream) {
    let watched = Watched::new(stream, Rc::clone(downstream));
    let start = downstream.accepted.into();
    let (io, admission) = Guarded::new(watched, Limits::default(), start);
    downstream.guard(admission.clone());
    let service =
        service_fn(|request| forward::handle(Rc::clone(worker), Rc::clone(downstream), request));
    let connection = http1::Builder::new()
        .keep_alive(true)
        // Never `pipeline_flush`: with it hyper takes frames of a body without any bound.
        .max_buf_size(BUFFER)
        .max_headers(MAX_HEADERS)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let mut clock = pin!(Clock {
        sleep: tokio::time::sleep(Duration::ZERO),
        downstream,
        timers: worker.timers(),
        drain_seen: false,
        retired: false,
    });
    std::future::poll_fn(|cx| {
        downstream.register(cx.waker());
        loop {
            // How a connection ended is known to its exchanges.
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            match ready!(clock.as_mut().poll_expired(cx)) {
                Expired::Retire(event) => {
                    worker.count(event);
                    connection.as_mut().graceful_shutdown();
                }
                Expired::Abort(event) => {
                    worker.count(event);
                    downstream.cut_off(Cut::Limit(event));
                    return Poll::Ready(());
                }
            }
        }
    })
    .await;
    if let Some(refusal) = admission.refusal() {
        worker.stats().refused(worker.index, refusal.reason);
    }
}

pin_project_lite::pin_project! {
    /// The one timer of a connection; it follows the notes whenever it fires.
    struct Clock<'a> {
        #[pin]
        sleep: Sleep,
        downstream: &'a Downstream,
        timers: &'a Timers,
        drain_seen: bool,
        retired: bool,
    }
}

enum Expired {
    /// Close without cutting anything off; what hangs even then is cut off at the next expiry.
    Retire(Event),
    Abort(Event),
}

impl Clock<'_> {
    fn poll_expired(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Expired> {
        let mut this = self.project();
        if this.downstream.is_draining() && !*this.drain_seen {
            // Draining shortens limits that the timer has not seen yet.
            *this.drain_seen = true;
            this.sleep.as_mut().reset(tokio::time::Instant::now());
        }
        loop {
            ready!(this.sleep.as_mut().poll(cx));
            let now = Instant::now();
            match this.downstream.check(now, this.timers) {
                Check::Wait(until) => this.sleep.as_mut().reset(until.into()),
                Check::Retire(event) if !*this.retired => {
                    *this.retired = true;
                    let patience = now + this.timers.header;
                    this.sleep.as_mut().reset(patience.into());
                    return Poll::Ready(Expired::Retire(event));
                }
                Check::Retire(event) | Check::Abort(event) => {
                    return Poll::Ready(Expired::Abort(event));
                }
            }
        }
    }
}

/// Keeps the count of open connections exact, however the connection ends.
struct Open<'a> {
    number: u64,
    worker: &'a Worker,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.worker.closed(self.number);
    }
}
