//! One client connection: hyper's HTTP/1 server over the watched socket, and the one timer beside it.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::downstream::{Check, Downstream, Watched};
use super::forward;
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
    let io = TokioIo::new(Watched::new(stream, Rc::clone(downstream)));
    let service =
        service_fn(|request| forward::handle(Rc::clone(worker), Rc::clone(downstream), request));
    let connection = http1::Builder::new()
        .keep_alive(true)
        // Never `pipeline_flush`: with it hyper takes frames of a body without any bound.
        .max_buf_size(BUFFER)
        .max_headers(MAX_HEADERS)
        .header_read_timeout(None)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut sleep = pin!(tokio::time::sleep(std::time::Duration::ZERO));
    std::future::poll_fn(|cx| {
        downstream.register(cx.waker());
        loop {
            // How a connection ended is known to its exchanges.
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if downstream.is_draining() && sleep.deadline().into_std() > Instant::now() {
                // Draining shortens limits that the timer has not seen yet.
                sleep.as_mut().reset(tokio::time::Instant::now());
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            match downstream.check(Instant::now(), worker.timers()) {
                Check::Wait(until) => {
                    sleep.as_mut().reset(until.into());
                    if sleep.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Check::Retire(event) => {
                    worker.count(event);
                    connection.as_mut().graceful_shutdown();
                    sleep
                        .as_mut()
                        .reset((Instant::now() + worker.timers().header).into());
                }
                Check::Abort(event) => {
                    worker.count(event);
                    return Poll::Ready(());
                }
            }
        }
    })
    .await;
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
