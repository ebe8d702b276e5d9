//! Whose address endpoints are told: PROXY headers in and out, and X-Forwarded-For with trusted hops.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use gateway_user::proxy::stats::Event;
use gateway_user::snapshot::{
    AppProtocol, BindKey, ClientAddress, Cluster, ConnectionPool, L4Policy, ProxyVersion, Snapshot,
    TrafficPolicy,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::honest::full;
use crate::support::*;

/// For each request: the port in the PROXY header of its connection, and the client's own.
type Told = Arc<Mutex<Vec<(String, String)>>>;

async fn endpoint(h2: bool) -> (SocketAddr, Told) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let told = Told::default();
    let noted = Arc::clone(&told);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let noted = Arc::clone(&noted);
            tokio::spawn(async move {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    let Ok(byte) = stream.read_u8().await else {
                        return;
                    };
                    line.push(byte);
                }
                let line = String::from_utf8(line).unwrap();
                assert!(
                    line.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "),
                    "{line}"
                );
                let port = line.split(' ').nth(4).unwrap().to_owned();
                let service = hyper::service::service_fn(
                    move |request: http::Request<hyper::body::Incoming>| {
                        let own = request.headers()["x-port"].to_str().unwrap().to_owned();
                        noted.lock().unwrap().push((port.clone(), own));
                        async {
                            crate::pace(std::time::Duration::from_millis(3)).await;
                            Ok::<_, std::convert::Infallible>(http::Response::new(full("ok")))
                        }
                    },
                );
                if h2 {
                    let _ended = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                } else {
                    let _ended = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                }
            });
        }
    });
    (address, told)
}

#[tokio::test]
async fn a_connection_that_names_a_client_serves_no_other() {
    for (workers, h2) in [(1, false), (2, false), (1, true), (2, true)] {
        let (address, told) = endpoint(h2).await;
        let policy = TrafficPolicy {
            proxy_protocol: Some(ProxyVersion::V1),
            pool: ConnectionPool {
                max_connections: Some(2),
                ..ConnectionPool::default()
            },
            ..TrafficPolicy::default()
        };
        let live = Arc::new(Cluster {
            protocol: if h2 {
                AppProtocol::Http2
            } else {
                AppProtocol::Http1
            },
            ..(*cluster("a", &policy, &[address])).clone()
        });
        let at = free_address();
        let proxy = start(workers, &snapshot(at, &[(1, live)], |_| {}));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                tokio::spawn(async move {
                    let mut client = Client::connect(at).await;
                    let port = client.stream.local_addr().unwrap().port();
                    for _ in 0..15 {
                        client
                            .send(&format!(
                                "GET / HTTP/1.1\r\nhost: test.example\r\nx-port: {port}\r\n\r\n"
                            ))
                            .await;
                        assert_eq!(client.next().await.unwrap().status, 200);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let told = std::mem::take(&mut *told.lock().unwrap());
        assert_eq!(told.len(), 120);
        let wrong = told.iter().filter(|(named, own)| named != own).count();
        assert_eq!(wrong, 0, "{workers} workers, HTTP/2 {h2}");
        until(|| proxy.endpoints()[0].in_use.requests == 0).await;
        assert!(proxy.endpoints()[0].in_use.connections <= 2);
    }
}

fn believing(at: SocketAddr, server: SocketAddr, client: ClientAddress) -> Snapshot {
    let mut made = snapshot(
        at,
        &[(1, cluster("a", &TrafficPolicy::default(), &[server]))],
        |_| {},
    );
    let key = BindKey::from(at);
    let mut bind = (*made.binds[&key]).clone();
    bind.policy = Arc::new(L4Policy {
        client,
        ..L4Policy::default()
    });
    made.binds = [(key, Arc::new(bind))].into();
    made
}

#[tokio::test]
async fn a_proxy_header_is_required_and_believed() {
    let server = backend(fixed(200, "ok")).await;
    let at = free_address();
    let proxy = start(
        1,
        &believing(
            at,
            server.address,
            ClientAddress {
                proxy_protocol: true,
                trusted_hops: 0,
            },
        ),
    );
    let v2 = |command: u8, family: u8, rest: &[u8]| {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [
            b"\r\n\r\n\0\r\nQUIT\n",
            &[0x20 | command, family][..],
            &length,
            rest,
        ]
        .concat()
    };
    let addresses = [192, 0, 2, 9, 203, 0, 113, 1, 0x12, 0x67, 0, 80];
    let h2 = [
        super::frames::PREFACE,
        &super::frames::frame(4, 0, 0, &[0, 1, 0, 0, 0, 0]),
        &super::frames::get_frame(1, "/"),
    ]
    .concat();
    for (header, from) in [
        (
            b"PROXY TCP4 192.0.2.7 203.0.113.1 4711 80\r\n".to_vec(),
            "192.0.2.7",
        ),
        (
            b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 80\r\n".to_vec(),
            "2001:db8::7",
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(1, 0x11, &addresses), "192.0.2.9"),
        (v2(0, 0, &[]), "127.0.0.1"),
    ] {
        let mut client = Client::connect(at).await;
        for byte in &header {
            client.stream.write_all(&[*byte]).await.unwrap();
        }
        assert_eq!(client.get("/").await.status, 200);
        assert_eq!(
            client.get("/").await.status,
            200,
            "only the first of a connection has one"
        );
        let stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let mut raw = super::frames::Raw::new(stream);
        raw.send(&[&header[..], &h2].concat()).await;
        assert_eq!(raw.outcome(1).await, super::frames::Outcome::Status(200));
        let seen: Vec<Seen> = server.seen.lock().unwrap().drain(..).collect();
        assert_eq!(seen.len(), 3);
        assert!(
            seen.iter()
                .all(|s| s.header("x-forwarded-for") == Some(from)),
            "{from}"
        );
    }
    assert_eq!(proxy.stats().event(Event::ProxyHeaderErrors), 0);
    for bad in [
        &request("/").into_bytes()[..],
        &h2,
        b"PROXY TCP4 x y 1 2\r\n",
        b"PROXY",
        &v2(7, 0x11, &addresses),
    ] {
        let mut client = Client::connect(at).await;
        client.stream.write_all(bad).await.unwrap();
        client.stream.shutdown().await.unwrap();
        assert!(client.closed().await, "{bad:?}");
    }
    until(|| proxy.stats().event(Event::ProxyHeaderErrors) == 5).await;
    assert_eq!(server.count(), 0);
    until(|| proxy.stats().open_connections() == 0).await;
}

#[tokio::test]
async fn trusted_hops_decide_what_is_taken_on() {
    let server = backend(fixed(200, "ok")).await;
    for (hops, want) in [(0, "127.0.0.1"), (1, "198.51.100.1, 127.0.0.1")] {
        let at = free_address();
        let _proxy = start(
            1,
            &believing(
                at,
                server.address,
                ClientAddress {
                    proxy_protocol: false,
                    trusted_hops: hops,
                },
            ),
        );
        let mut client = Client::connect(at).await;
        client.send("GET / HTTP/1.1\r\nhost: test.example\r\nx-forwarded-for: 198.51.100.1\r\nx-forwarded-proto: https\r\nx-forwarded-host: outer.example\r\nx-real-ip: 1.2.3.4\r\n\r\n").await;
        assert_eq!(client.next().await.unwrap().status, 200);
        let seen = server.seen.lock().unwrap().pop().unwrap();
        assert_eq!(seen.header("x-forwarded-for"), Some(want));
        assert_eq!(
            seen.header("x-forwarded-proto"),
            Some(if hops > 0 { "https" } else { "http" })
        );
        assert_eq!(
            seen.header("x-forwarded-host"),
            (hops > 0).then_some("outer.example")
        );
        assert_eq!(seen.header("x-real-ip"), None);
    }
}
