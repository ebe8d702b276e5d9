//! Opening a connection to an endpoint: TCP, the PROXY header, TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::TlsClient;
use crate::l7::proxy_protocol;
use crate::proxy::stream::Either;
use crate::snapshot::{AppProtocol, Cluster, ProxyVersion};

/// A connection to an endpoint.
pub(in crate::proxy) type EndpointStream = Either<TcpStream, TlsStream<TcpStream>>;

/// Which versions of HTTP a request may go upstream by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Way {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Whichever the endpoint chooses (ALPN).
    Either,
}

/// Client and VIP, told to endpoints by the PROXY header. A connection that begins with one serves nobody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Origin {
    /// The client.
    pub(in crate::proxy) source: SocketAddr,
    /// Where it connected to.
    pub(in crate::proxy) destination: SocketAddr,
}

/// How a cluster's endpoints are spoken to.
#[derive(Debug)]
pub(in crate::proxy) struct Transport {
    protocol: AppProtocol,
    tls: Option<Box<TlsClient>>,
    proxy: Option<ProxyVersion>,
    /// Rises with every change: connections of before are not used again.
    pub(in crate::proxy) epoch: u64,
}

impl Transport {
    /// That of a cluster; the previous one if nothing changed.
    pub(in crate::proxy) fn of(cluster: &Cluster, previous: Option<&Arc<Self>>) -> Arc<Self> {
        let tls = cluster.policy.tls.as_ref();
        let same = |previous: &&Arc<Self>| {
            previous.protocol == cluster.protocol
                && previous.proxy == cluster.policy.proxy_protocol
                && previous.tls.as_ref().map(|tls| tls.policy()) == tls
        };
        if let Some(previous) = previous.filter(same) {
            return Arc::clone(previous);
        }
        Arc::new(Self {
            protocol: cluster.protocol,
            tls: tls.map(|tls| Box::new(TlsClient::new(tls))),
            proxy: cluster.policy.proxy_protocol,
            epoch: previous.map_or(0, |previous| previous.epoch + 1),
        })
    }

    /// How a request may go: `http2` if its route implies it, `upgrade` if it asks for an upgrade, which only HTTP/1.1 has.
    pub(in crate::proxy) fn way(&self, http2: bool, upgrade: bool) -> Way {
        match (self.protocol, self.tls.is_some()) {
            (AppProtocol::Http2, _) => Way::Http2,
            (AppProtocol::Http1 | AppProtocol::Wss, _) => Way::Http1,
            _ if upgrade => Way::Http1,
            (AppProtocol::Unset | AppProtocol::Https, _) if http2 => Way::Http2,
            (AppProtocol::Https, true) => Way::Either,
            (AppProtocol::Unset | AppProtocol::Https, _) => Way::Http1,
        }
    }

    /// What connections are told apart by, beside the endpoint.
    pub(in crate::proxy) fn origin(&self, origin: Origin) -> Option<Origin> {
        self.proxy.map(|_| origin)
    }

    /// The scheme of the endpoints' URLs.
    pub(in crate::proxy) fn scheme(&self) -> http::uri::Scheme {
        match self.tls {
            Some(_) => http::uri::Scheme::HTTPS,
            None => http::uri::Scheme::HTTP,
        }
    }

    /// Opens a connection; the second value says whether HTTP/2 is spoken on it.
    ///
    /// # Errors
    /// If the endpoint cannot be connected to, or TLS comes to no agreement.
    pub(in crate::proxy) async fn connect(
        &self,
        address: SocketAddr,
        way: Way,
        origin: Option<Origin>,
    ) -> io::Result<(EndpointStream, bool)> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        if let (
            Some(version),
            Some(Origin {
                source,
                destination,
            }),
        ) = (self.proxy, origin)
        {
            let header = proxy_protocol::write(version, source, destination);
            stream.write_all(&header).await?;
        }
        let Some(tls) = &self.tls else {
            return Ok((Either::Clear(stream), way == Way::Http2));
        };
        let (config, name) = tls.for_way(way)?;
        let stream = handshake(config, name, stream).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if way == Way::Http2 && !http2 {
            return Err(io::Error::other(
                "the endpoint does not speak HTTP/2 over TLS",
            ));
        }
        Ok((Either::Tls(Box::new(stream)), http2))
    }
}

async fn handshake(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(config).connect(name, stream).await
}

/// Runs hyper's tasks on this worker.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct OnThisWorker;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for OnThisWorker {
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(future));
    }
}

/// A future that owns a connection and its permit, and gives the permit back once the socket is closed.
pub(in crate::proxy) fn poll_connection<C: Future + Unpin>(
    connection: &mut Option<C>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    match connection {
        // How it ended is known to the requests on it.
        Some(connection) => Pin::new(connection).poll(cx).map(drop),
        None => Poll::Ready(()),
    }
}
