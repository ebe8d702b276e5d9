//! What an endpoint gets first where the policy says `proxyProtocol`: the header, byte for byte, and how long it holds.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use gateway_user::snapshot::tls::{Trust, UpstreamTls};
use gateway_user::snapshot::{
    AppProtocol, BindKey, ClientAddress, Cluster, L4Policy, ProxyVersion, Snapshot, TrafficPolicy,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::aws_lc_rs;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::frames::{Outcome, Raw, get_frame};
use super::honest::full;
use crate::support::*;

/// For each connection of the endpoint: the header, and the requests that followed it by their paths.
type Connections = Arc<Mutex<Vec<(Vec<u8>, Vec<String>)>>>;

/// How an endpoint is spoken to behind the header.
#[derive(Clone)]
enum Speaks {
    Http1,
    Http2,
    Tls(TlsAcceptor),
}

/// Reads what is a header by its first bytes, and not a byte more. Not by the code under test.
async fn header_of(stream: &mut TcpStream) -> Vec<u8> {
    let mut header = vec![0; 16];
    stream.read_exact(&mut header).await.unwrap();
    if header.starts_with(b"PROXY ") {
        while !header.ends_with(b"\r\n") {
            header.push(stream.read_u8().await.unwrap());
        }
    } else {
        let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
        header.resize(16 + rest, 0);
        stream.read_exact(&mut header[16..]).await.unwrap();
    }
    header
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http2: bool,
    noted: Connections,
    at: usize,
) {
    let service =
        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let path = request.uri().path().to_owned();
            noted.lock().unwrap()[at].1.push(path);
            async { Ok::<_, std::convert::Infallible>(http::Response::new(full("ok"))) }
        });
    let io = TokioIo::new(stream);
    if http2 {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ended = server.serve_connection(io, service).await;
    } else {
        let server = hyper::server::conn::http1::Builder::new();
        let _ended = server.serve_connection(io, service).await;
    }
}

async fn endpoint(speaks: Speaks) -> (SocketAddr, Connections) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Connections::default();
    let noted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (noted, speaks) = (Arc::clone(&noted), speaks.clone());
            tokio::spawn(async move {
                let header = header_of(&mut stream).await;
                let at = {
                    let mut all = noted.lock().unwrap();
                    all.push((header, Vec::new()));
                    all.len() - 1
                };
                match speaks {
                    Speaks::Http1 => requests(stream, false, noted, at).await,
                    Speaks::Http2 => requests(stream, true, noted, at).await,
                    Speaks::Tls(acceptor) => {
                        let stream = acceptor.accept(stream).await.unwrap();
                        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                        requests(stream, http2, noted, at).await;
                    }
                }
            });
        }
    });
    (address, connections)
}

/// `PROXY TCP4 …` or the twelve bytes and what follows, as haproxy.org's text has them.
fn wanted(version: ProxyVersion, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let ports = [source.port(), destination.port()];
    if version == ProxyVersion::V1 {
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let (from, to) = (source.ip(), destination.ip());
        return format!("PROXY {family} {from} {to} {} {}\r\n", ports[0], ports[1]).into_bytes();
    }
    let mut bytes = vec![
        0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21,
    ];
    match (source, destination) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            bytes.extend([0x11, 0x00, 0x0c]);
            bytes.extend(from.ip().octets());
            bytes.extend(to.ip().octets());
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            bytes.extend([0x21, 0x00, 0x24]);
            bytes.extend(from.ip().octets());
            bytes.extend(to.ip().octets());
        }
        _ => panic!("two families"),
    }
    ports
        .iter()
        .for_each(|port| bytes.extend(port.to_be_bytes()));
    bytes
}

fn served(
    at: SocketAddr,
    endpoint: SocketAddr,
    version: ProxyVersion,
    protocol: AppProtocol,
    tls: Option<Arc<UpstreamTls>>,
) -> Snapshot {
    let policy = TrafficPolicy {
        proxy_protocol: Some(version),
        tls,
        ..TrafficPolicy::default()
    };
    let live = Arc::new(Cluster {
        protocol,
        ..(*cluster("a", &policy, &[endpoint])).clone()
    });
    snapshot(at, &[(1, live)], |_| {})
}

/// A free port of an address of the loopback.
fn at(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), free_address().port())
}

const VERSIONS: [ProxyVersion; 2] = [ProxyVersion::V1, ProxyVersion::V2];

#[tokio::test]
async fn it_names_client_and_vip_byte_for_byte() {
    let (der, key) = super::tls::made(&["pod.example"]);
    let mut server =
        rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der], key)
            .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = Speaks::Tls(TlsAcceptor::from(Arc::new(server)));
    let trust = Arc::new(UpstreamTls {
        server_name: "pod.example".into(),
        names: Vec::new(),
        trust: Trust::Anybody,
    });
    for version in VERSIONS {
        for ip in ["127.0.0.1", "::1"] {
            for (speaks, protocol, secure) in [
                (Speaks::Http1, AppProtocol::Http1, false),
                (Speaks::Http2, AppProtocol::Http2, false),
                (tls.clone(), AppProtocol::Https, true),
                (tls.clone(), AppProtocol::Http1, true),
            ] {
                let (address, connections) = endpoint(speaks).await;
                let at = at(ip);
                let trust = secure.then(|| Arc::clone(&trust));
                let _proxy = start(1, &served(at, address, version, protocol, trust));
                let mut client = Client::connect(at).await;
                let source = client.stream.local_addr().unwrap();
                assert_eq!(client.get("/").await.status, 200);
                let got = connections.lock().unwrap().clone();
                let want = (wanted(version, source, at), vec!["/".to_owned()]);
                assert_eq!(got, [want], "{version:?} {ip} {protocol:?} TLS {secure}");
            }
        }
    }
}

/// A client that another proxy names may be of another family than our VIP.
#[tokio::test]
async fn two_families_are_told_as_one() {
    for version in VERSIONS {
        let (address, connections) = endpoint(Speaks::Http1).await;
        let at = free_address();
        let mut made = served(at, address, version, AppProtocol::Http1, None);
        let key = BindKey::from(at);
        let mut bind = (*made.binds[&key]).clone();
        let client = ClientAddress {
            proxy_protocol: true,
            ..ClientAddress::default()
        };
        bind.policy = Arc::new(L4Policy {
            client,
            ..L4Policy::default()
        });
        made.binds = [(key, Arc::new(bind))].into();
        let _proxy = start(1, &made);
        for (line, source, text) in [
            (
                "PROXY TCP6 2001:db8::7 2001:db8::1 4711 443",
                "[2001:db8::7]:4711",
                "PROXY TCP6 2001:db8::7 ::ffff:7f00:1",
            ),
            (
                "PROXY TCP4 192.0.2.7 192.0.2.1 65535 1",
                "192.0.2.7:65535",
                "PROXY TCP4 192.0.2.7 127.0.0.1",
            ),
        ] {
            connections.lock().unwrap().clear();
            let mut client = Client::connect(at).await;
            client.send(&format!("{line}\r\n")).await;
            assert_eq!(client.get("/").await.status, 200);
            let got = connections.lock().unwrap()[0].0.clone();
            let source: SocketAddr = source.parse().unwrap();
            let want = if version == ProxyVersion::V1 {
                format!("{text} {} {}\r\n", source.port(), at.port()).into_bytes()
            } else if source.is_ipv4() {
                wanted(version, source, at)
            } else {
                wanted(
                    version,
                    source,
                    format!("[::ffff:127.0.0.1]:{}", at.port()).parse().unwrap(),
                )
            };
            assert_eq!(got, want, "{line}");
        }
    }
}

/// Nobody else's request may follow a header, and an own one does not either: the client may never ask again.
#[tokio::test]
async fn each_request_has_its_own() {
    for (speaks, protocol) in [
        (Speaks::Http1, AppProtocol::Http1),
        (Speaks::Http2, AppProtocol::Http2),
    ] {
        let (address, connections) = endpoint(speaks).await;
        let at = free_address();
        let proxy = start(2, &served(at, address, ProxyVersion::V2, protocol, None));
        let mut first = Client::connect(at).await;
        let mut second = Client::connect(at).await;
        let mut raw = Raw::connect(at).await;
        let [one, two] = [&first, &second].map(|c| c.stream.local_addr().unwrap());
        for path in ["/a", "/b", "/c"] {
            assert_eq!(first.get(path).await.status, 200);
            assert_eq!(second.get(path).await.status, 200);
        }
        // Two streams at once are two connections.
        raw.send(&[get_frame(1, "/d"), get_frame(3, "/e")].concat())
            .await;
        for stream in [1, 3] {
            assert_eq!(raw.outcome(stream).await, Outcome::Status(200));
        }
        until(|| proxy.endpoints()[0].in_use.connections == 0).await;
        let got = connections.lock().unwrap().clone();
        let named = |address: SocketAddr| wanted(ProxyVersion::V2, address, at);
        for (client, path) in [
            (one, "/a"),
            (two, "/a"),
            (one, "/b"),
            (two, "/b"),
            (one, "/c"),
            (two, "/c"),
        ] {
            let want = (named(client), vec![path.to_owned()]);
            assert_eq!(got.iter().filter(|got| **got == want).count(), 1, "{path}");
        }
        let others: Vec<_> = got
            .iter()
            .filter(|(_, paths)| paths[0].as_str() > "/c")
            .collect();
        assert_eq!((got.len(), others.len()), (8, 2), "{got:?}");
        assert_eq!(others[0].0, others[1].0, "both name the one client");
    }
}

#[tokio::test]
async fn a_tunnel_has_one_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let at = free_address();
    let _proxy = start(
        1,
        &served(at, address, ProxyVersion::V1, AppProtocol::Http1, None),
    );
    let mut client = TcpStream::connect(at).await.unwrap();
    let source = client.local_addr().unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: test.example\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(
        header_of(&mut stream).await,
        wanted(ProxyVersion::V1, source, at)
    );
    read_message(&mut stream, &mut Vec::new()).await.unwrap();
    let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello";
    stream.write_all(switch.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"hello") {
        assert!(client.read_buf(&mut got).await.unwrap() > 0);
    }
    client.write_all(b"more").await.unwrap();
    let mut more = [0; 4];
    stream.read_exact(&mut more).await.unwrap();
    assert_eq!(&more, b"more");
}
