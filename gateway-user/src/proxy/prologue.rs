//! What comes before HTTP on a client's connection: the PROXY header, TLS, and which version of HTTP follows.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::downstream::{Downstream, Watched};
use super::stats::Event;
use super::stream::{Ahead, ClientStream, Either, Socket};
use super::tls::{self, Refused};
use super::worker::Worker;
use crate::l7::proxy_protocol::{self, Read};
use crate::snapshot::{ClientAddress, Protocol};

/// What an HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// ALPN protocol of HTTP/2.
const H2: &[u8] = b"h2";

/// How often it is looked whether there is still patience with a connection.
const LOOK: Duration = Duration::from_secs(1);

/// Version of HTTP on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// HTTP/1.0 and HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

/// Why a connection ends before the first request.
enum End {
    /// To be counted.
    Counted(Event),
    /// The client went away without having sent anything.
    Silent,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Silent
    }
}

/// Brings a connection to where HTTP begins; `None` if it never gets there, which has been counted then.
pub(super) async fn open(
    worker: &Worker,
    downstream: &Rc<Downstream>,
    stream: TcpStream,
) -> Option<(ClientStream, Version)> {
    let limit = worker.timers().header;
    let watched = Watched::new(stream, Rc::clone(downstream));
    let end = match secure(worker, downstream) {
        None => {
            let begun = begin(downstream, watched);
            match within(downstream, limit, begun).await {
                Ok(Ok((socket, version))) => return Some((Either::Clear(socket), version)),
                Ok(Err(end)) => end,
                Err(Late) => End::Counted(Event::HeaderTimeouts),
            }
        }
        Some(()) => match shake(worker, downstream, watched, limit).await {
            Ok(opened) => return Some(opened),
            Err(end) => end,
        },
    };
    if let End::Counted(event) = end {
        worker.count(event);
    }
    None
}

/// Whether TLS is spoken on the port; notes whom to believe about the client's address.
fn secure(worker: &Worker, downstream: &Downstream) -> Option<()> {
    let live = worker.live();
    let bind = live.binds.get(&downstream.bind)?;
    if !bind.builtin_ready {
        downstream.believe(bind.policy.client);
    }
    (bind.protocol == Protocol::Https).then_some(())
}

/// In clear text: by its first bytes, HTTP/2 with prior knowledge or HTTP/1.
async fn begin(downstream: &Downstream, watched: Watched) -> Result<(Socket, Version), End> {
    let mut socket = Ahead::new(watched);
    proxy_header(downstream, &mut socket).await?;
    loop {
        let seen = socket.seen();
        let length = seen.len().min(PREFACE.len());
        if seen[..length] != PREFACE[..length] {
            return Ok((socket, Version::One));
        }
        if length == PREFACE.len() {
            return Ok((socket, Version::Two));
        }
        if socket.look().await? == 0 {
            // Not even a request line: hyper and the scanner below it say what that is.
            return match socket.seen() {
                [] => Err(End::Silent),
                _ => Ok((socket, Version::One)),
            };
        }
    }
}

/// Over TLS: by ALPN.
async fn shake(
    worker: &Worker,
    downstream: &Downstream,
    watched: Watched,
    limit: Duration,
) -> Result<(ClientStream, Version), End> {
    let handshake = async {
        let mut socket = Ahead::new(watched);
        proxy_header(downstream, &mut socket).await?;
        let tls = worker.live().tls.get(&downstream.bind).cloned();
        let tls = tls.ok_or(End::Silent)?;
        let accepted = tls::accept(worker.handshakes(), &tls, socket).await;
        accepted.map_err(|refused| {
            End::Counted(match refused {
                Refused::Crowded => Event::TlsCrowded,
                Refused::UnknownName => Event::TlsUnknownNames,
                Refused::NoCertificate => Event::TlsWithoutCertificate,
                Refused::Broken(error) => {
                    tracing::debug!(client = %downstream.client(), %error, "a TLS handshake failed");
                    Event::TlsFailures
                }
            })
        })
    };
    match within(downstream, limit, handshake).await {
        Ok(Ok((stream, name))) => {
            worker.count(Event::TlsHandshakes);
            downstream.secured(name);
            let version = match stream.get_ref().1.alpn_protocol() {
                Some(H2) => Version::Two,
                _ => Version::One,
            };
            Ok((Either::Tls(Box::new(stream)), version))
        }
        Ok(Err(end)) => Err(end),
        Err(Late) => Err(End::Counted(Event::TlsTimeouts)),
    }
}

/// The time is over.
struct Late;

/// Does `work`, for as long as there is patience with the connection, which may end meanwhile.
async fn within<T>(
    downstream: &Downstream,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, Late> {
    let mut work = pin!(work);
    loop {
        let patience = downstream.patience(limit);
        let left = patience.saturating_sub(downstream.accepted.elapsed());
        match timeout(LOOK.min(left), &mut work).await {
            Ok(done) => return Ok(done),
            Err(_) if left.is_zero() => return Err(Late),
            Err(_) => {}
        }
    }
}

/// Takes the PROXY header away and notes the address in it, where the policy says that there is one.
async fn proxy_header(downstream: &Downstream, socket: &mut Socket) -> Result<(), End> {
    let ClientAddress { proxy_protocol, .. } = downstream.believed();
    if !proxy_protocol {
        return Ok(());
    }
    loop {
        match proxy_protocol::read(socket.seen()) {
            Ok(Read::Header { length, source, .. }) => {
                socket.consume(length);
                if let Some(source) = source {
                    downstream.came_from(source);
                }
                return Ok(());
            }
            Ok(Read::More) => {
                if socket.look().await? == 0 {
                    return match socket.seen() {
                        [] => Err(End::Silent),
                        _ => Err(End::Counted(Event::ProxyHeaderErrors)),
                    };
                }
            }
            Err(_) => return Err(End::Counted(Event::ProxyHeaderErrors)),
        }
    }
}
