//! One handshake, and the bounds on all of a worker's.
//!
//! Signing is the one thing that keeps a worker busy for long (an RSA signature takes a millisecond), so only a few
//! handshakes get to it in one turn of the worker: between them the connections that are open already are served.

use std::io;
use std::sync::Arc;

use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, TryAcquireError};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::config::{BindTls, NoConfig};
use crate::proxy::stream::Socket;

/// Handshakes of one worker between the ClientHello and the end; more are closed at once, as they would only wait.
const AT_ONCE: usize = 2048;
/// Signatures in one turn of a worker.
const IN_ONE_TURN: usize = 4;

/// Fatal alert 112 `unrecognized_name` (RFC 6066, 3) in a record of its own.
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 112];
/// Fatal alert 40 `handshake_failure`.
const HANDSHAKE_FAILURE: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 40];

/// The handshakes of one worker.
#[derive(Debug)]
pub(in crate::proxy) struct Handshakes {
    places: Semaphore,
    turns: Semaphore,
}

impl Default for Handshakes {
    fn default() -> Self {
        Self {
            places: Semaphore::new(AT_ONCE),
            turns: Semaphore::new(IN_ONE_TURN),
        }
    }
}

/// Why a handshake came to nothing.
#[derive(Debug)]
pub(in crate::proxy) enum Refused {
    /// Too many are under way.
    Crowded,
    /// No listener takes the name that the client sent.
    UnknownName,
    /// The listener has no certificate.
    NoCertificate,
    /// The client broke it off, or sent what is no TLS.
    Broken(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Does the handshake of a connection; the second value is the name that the client sent.
///
/// # Errors
/// [`Refused`]; the client has been told.
pub(in crate::proxy) async fn accept(
    handshakes: &Handshakes,
    tls: &BindTls,
    socket: Socket,
) -> Result<(TlsStream<Socket>, Option<Box<str>>), Refused> {
    // A connection that says nothing costs its socket and takes no place.
    let mut hello = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
    let _place = match handshakes.places.try_acquire() {
        Ok(place) => place,
        Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => return Err(Refused::Crowded),
    };
    let name = hello.client_hello().server_name().map(|name| {
        let name = name.strip_suffix('.').unwrap_or(name);
        name.to_ascii_lowercase().into_boxed_str()
    });
    let config = match tls.find(name.as_deref()) {
        Ok(config) => config,
        Err(why) => {
            let (alert, refused) = match why {
                NoConfig::UnknownName => (UNRECOGNIZED_NAME, Refused::UnknownName),
                NoConfig::NoCertificate => (HANDSHAKE_FAILURE, Refused::NoCertificate),
            };
            hello.io.write_all(&alert).await?;
            hello.io.shutdown().await?;
            return Err(refused);
        }
    };
    let turn = handshakes.turns.acquire().await;
    let mut accepting = hello.into_stream(Arc::clone(&config));
    // The first poll signs. The turn is given on only after the worker has looked at its other connections.
    let done = std::future::poll_fn(|cx| {
        let polled = std::pin::Pin::new(&mut accepting).poll(cx);
        std::task::Poll::Ready(match polled {
            std::task::Poll::Ready(done) => Some(done),
            std::task::Poll::Pending => None,
        })
    })
    .await;
    tokio::task::yield_now().await;
    drop(turn);
    let stream = match done {
        Some(done) => done?,
        None => accepting.await?,
    };
    Ok((stream, name))
}
