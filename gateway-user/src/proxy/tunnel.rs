//! What a granted upgrade leaves: bytes from one side to the other until both have ended.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::body::{ResponseBody, UpstreamBody};
use super::exchange::Exchange;
use super::stats::{Event, Flag};
use super::stream::Ahead;
use super::upstream::Handed;
use super::worker::Worker;
use crate::l7::header;

/// How long neither side may send a byte (as Envoy's TCP proxy).
const IDLE: Duration = Duration::from_secs(3600);
/// Bytes that are on their way in one direction at most.
const BUFFER: usize = 16 * 1024;

/// A tunnel whose client side is still HTTP.
#[derive(Debug)]
pub(super) struct Tunnel {
    upstream: Handed,
    exchange: Box<Exchange>,
}

/// The answer that switches the client to the other protocol; the tunnel begins once it is sent.
pub(super) fn switch(
    response: Response<UpstreamBody>,
    mut exchange: Box<Exchange>,
) -> Response<ResponseBody> {
    let (mut parts, _) = response.into_parts();
    let http2 = exchange.notes().is_some();
    header::prepare_response(
        parts.status,
        &mut parts.headers,
        header::via(Version::HTTP_11),
    );
    parts.version = Version::HTTP_11;
    if http2 {
        parts.status = StatusCode::OK;
        for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
            parts.headers.remove(name);
        }
    }
    let Some(upstream) = exchange.tunnel.take() else {
        return Response::from_parts(parts, ResponseBody::Local(None));
    };
    exchange.count(Event::Upgrades);
    let (worker, downstream) = exchange.ends();
    let client = exchange.client_upgrade.take();
    let tunnel = Tunnel { upstream, exchange };
    match client {
        None => downstream.become_tunnel(tunnel),
        Some(client) => {
            tokio::task::spawn_local(async move {
                let _watching = downstream.tunnels();
                let _watching = downstream.tunnels();
                if let Ok(client) = client.await {
                    tunnel.run(&worker, TokioIo::new(client)).await;
                }
            });
        }
    }
    Response::from_parts(parts, ResponseBody::Local(None))
}

impl Tunnel {
    /// Carries bytes until both sides have ended, one breaks off, or nothing is sent for too long.
    pub(super) async fn run(
        self,
        worker: &Rc<Worker>,
        client: impl AsyncRead + AsyncWrite + Unpin,
    ) {
        let Self { upstream, exchange } = self;
        let Handed {
            stream,
            ahead,
            permit,
        } = upstream;
        let endpoint = Ahead::with(ahead, stream);
        let (client_in, client_out) = tokio::io::split(client);
        let (endpoint_in, endpoint_out) = tokio::io::split(endpoint);
        let last = Cell::new(Instant::now());
        let mut carried = Carried {
            exchange,
            sent: Cell::new(0),
            received: Cell::new(0),
        };
        let (sent, received) = (&carried.sent, &carried.received);
        let told_all = Cell::new(false);
        // Whichever side breaks off first ends both directions; a side that only ends leaves the other one open.
        let both = async {
            let up = pump(client_in, endpoint_out, received, &last);
            let down = pump(endpoint_in, client_out, sent, &last);
            let up = async {
                match up.await {
                    // Many clients of TLS close without a word once they have heard the end.
                    Err(Broke::Read) if told_all.get() => Ok(()),
                    ended => ended.map_err(|broke| broke.told(true)),
                }
            };
            let down = async {
                down.await.map_err(|broke| broke.told(false))?;
                told_all.set(true);
                Ok(())
            };
            tokio::try_join!(up, down)
        };
        let idle = async {
            loop {
                let until = last.get() + IDLE;
                if Instant::now() >= until {
                    return;
                }
                tokio::time::sleep_until(until.into()).await;
            }
        };
        let flag = tokio::select! {
            ended = both => ended.err(),
            () = idle => {
                worker.count(Event::StreamTimeouts);
                Some(Flag::StreamIdle)
            }
        };
        carried.count();
        let exchange = &mut carried.exchange;
        exchange.flag = flag;
        exchange.lease = None;
        exchange.complete();
        // The sockets are closed by now: a permit never stands for a connection that is still open.
        drop(permit);
    }
}

/// An exchange that is a tunnel now. One that is cut off is dropped in the midst of it, and logged with what it has carried.
struct Carried {
    exchange: Box<Exchange>,
    sent: Cell<u64>,
    received: Cell<u64>,
}

impl Carried {
    fn count(&mut self) {
        self.exchange.sent = self.sent.get();
        self.exchange.tunnelled = self.received.get();
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.count();
    }
}

/// Which side of one direction broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broke {
    Read,
    Write,
}

impl Broke {
    /// What the log is told; `upwards`: the direction from the client to the endpoint broke.
    fn told(self, upwards: bool) -> Flag {
        match (self, upwards) {
            (Self::Read, true) | (Self::Write, false) => Flag::DownstreamClosed,
            (Self::Write, true) | (Self::Read, false) => Flag::UpstreamClosed,
        }
    }
}

/// Carries one direction, and its end.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &Cell<u64>,
    last: &Cell<Instant>,
) -> Result<(), Broke> {
    let mut buffer = vec![0; BUFFER];
    let result = loop {
        match from.read(&mut buffer).await {
            Ok(0) => break Ok(()),
            Ok(length) => {
                last.set(Instant::now());
                if write(&mut to, &buffer[..length]).await.is_err() {
                    return Err(Broke::Write);
                }
                count.set(count.get() + length as u64);
            }
            Err(_) => break Err(Broke::Read),
        }
    };
    // The other direction may go on; a side that broke is told of by the end of its peer.
    let shut = to.shutdown().await;
    result.and(shut.map_err(|_| Broke::Write))
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}
