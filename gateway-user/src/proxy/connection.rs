//! One client connection, from the accepted socket to its end.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::downstream::Downstream;
use super::prologue::{self, Version};
use super::worker::Worker;
use super::{http1, http2};
use crate::datapath;
use crate::snapshot::BindKey;

/// When it is looked at first whether a client has got everything, and how often at least after that.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LOOK: Duration = Duration::from_millis(320);
/// A client that acknowledges nothing for so long is not waited for. It was retransmitted to four times or so.
const UNMOVED: Duration = Duration::from_secs(5);

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
    // A tunnel that never began holds the connection's notes, which hold it.
    drop(downstream.take_tunnel());
    if let Some(socket) = downstream.take_owing() {
        deliver(socket).await;
    }
    drop(open);
}

/// Waits until a client has got what it is owed, the end of the stream included; it counts as connected until then. The kernel
/// would go on sending for a closed socket as well, but only while the VIP is local, and other nodes must know who holds the
/// connection.
async fn deliver(socket: OwnedFd) {
    // A client that is gone is told nothing.
    let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Write);
    let (mut wait, mut moved) = (FIRST_LOOK, (0, Instant::now()));
    while let Ok(owed) = datapath::owed(&socket)
        && owed.any
    {
        let now = Instant::now();
        if owed.acknowledged != moved.0 {
            moved = (owed.acknowledged, now);
        } else if now.saturating_duration_since(moved.1) >= UNMOVED {
            break;
        }
        tokio::time::sleep(wait).await;
        wait = (4 * wait).min(LOOK);
    }
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
        drop(self.downstream.take_tunnel());
        self.worker.closed(self.number);
    }
}
