//! One client connection, from the accepted socket to its end.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use tokio::net::TcpStream;

use super::downstream::Downstream;
use super::prologue::{self, Version};
use super::worker::Worker;
use super::{http1, http2};
use crate::snapshot::BindKey;

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
        downstream: &downstream,
    };
    if worker.is_draining() {
        downstream.drain(Instant::now());
    }
    // In boxes: what a handshake or HTTP/2 needs would else be held by every idle connection.
    match Box::pin(prologue::open(&worker, &downstream, stream)).await {
        Some((stream, Version::One)) => http1::drive(&worker, &downstream, stream).await,
        Some((stream, Version::Two)) => Box::pin(http2::drive(&worker, &downstream, stream)).await,
        None => {}
    }
    drop(open);
}

fn note(worker: &Worker, peer: SocketAddr, bind: BindKey) -> Downstream {
    let max_age = worker.timers().max_age;
    // Between 95 and 105 %: connections opened together do not end together.
    let spread = u32::try_from(worker.random() % 1000).unwrap_or(0);
    let max_age = max_age * 19 / 20 + max_age / 10 * spread / 1000;
    Downstream::new(peer, bind, Instant::now(), max_age)
}

/// Keeps the count of open connections exact, however the connection ends.
struct Open<'a> {
    number: u64,
    worker: &'a Worker,
    downstream: &'a Downstream,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // A tunnel that never began holds the connection's notes, which hold it.
        drop(self.downstream.take_tunnel());
        self.worker.closed(self.number);
    }
}
