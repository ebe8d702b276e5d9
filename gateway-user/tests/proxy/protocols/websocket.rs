//! WebSockets: by HTTP/1.1 and by HTTP/2 (RFC 8441), granted, refused, and what follows.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gateway_user::proxy::access_log::Destination;
use gateway_user::proxy::stats::Event;
use gateway_user::proxy::{Proxy, ProxySettings, Timers};
use gateway_user::snapshot::{ConnectionPool, TrafficPolicy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::frames::*;
use crate::support::*;

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n";
pub(super) const ASK: &str = "GET /chat HTTP/1.1\r\nhost: test.example\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

type Heads = Arc<Mutex<Vec<String>>>;

/// Runs `serve` on each connection, once its first head is there.
pub(super) async fn endpoint<F, Fut>(serve: F) -> (SocketAddr, Heads)
where
    F: Fn(TcpStream, Vec<u8>, Heads) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Heads::default();
    let noted = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Vec::new(), Arc::clone(&noted)));
        }
    });
    (address, heads)
}

fn started(address: SocketAddr, timers: Timers, log: Destination) -> (Proxy, SocketAddr) {
    let at = free_address();
    let pool = ConnectionPool {
        max_connections: Some(2),
        max_requests: Some(2),
        max_pending_requests: Some(0),
        ..ConnectionPool::default()
    };
    let policy = TrafficPolicy {
        pool,
        ..TrafficPolicy::default()
    };
    let settings = ProxySettings {
        timers,
        access_log: log,
        ..ProxySettings::default()
    };
    let proxy = start_with(
        settings,
        &snapshot(at, &[(1, cluster("a", &policy, &[address]))], |_| {}),
    );
    (proxy, at)
}

pub(super) fn used(proxy: &Proxy) -> (u32, u32, u32) {
    let status = &proxy.endpoints()[0];
    (
        status.in_use.connections,
        status.in_use.requests,
        status.endpoints[0].active,
    )
}

pub(super) async fn exactly(stream: &mut TcpStream, want: &str) {
    let mut got = vec![0; want.len()];
    let read = tokio::time::timeout(BOUND, stream.read_exact(&mut got)).await;
    read.expect("in time").unwrap();
    assert_eq!(String::from_utf8_lossy(&got), want);
}

pub(super) async fn head(stream: &mut TcpStream) -> String {
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(BOUND, stream.read_u8()).await;
        got.push(byte.expect("in time").unwrap());
    }
    String::from_utf8(got).unwrap()
}

/// Says what it gets in upper case; says goodbye at the end.
pub(super) async fn shouts(mut stream: TcpStream, _: Vec<u8>, heads: Heads) {
    loop {
        let head = head(&mut stream).await;
        let path = head.split(' ').nth(1).unwrap().to_owned();
        heads.lock().unwrap().push(head);
        if path == "/chat" {
            break;
        }
        stream.write_all(&answer(200, "plain")).await.unwrap();
    }
    // What the client has sent already is not here before the switch.
    let mut early = [0; 1];
    let peeked = tokio::time::timeout(Duration::from_millis(50), stream.peek(&mut early)).await;
    assert!(peeked.is_err(), "bytes before the 101");
    stream
        .write_all(format!("{SWITCH}first").as_bytes())
        .await
        .unwrap();
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => stream
                .write_all(&buffer[..n].to_ascii_uppercase())
                .await
                .unwrap(),
        }
    }
    let _gone = stream.write_all(b"goodbye").await;
}

#[tokio::test]
async fn bytes_go_both_ways_until_both_sides_have_ended() {
    let log = tempfile::tempdir().unwrap();
    let path = log.path().join("access.log");
    let (address, heads) = endpoint(shouts).await;
    let (proxy, at) = started(address, Timers::default(), Destination::File(path.clone()));
    let mut client = TcpStream::connect(at).await.unwrap();
    // On a connection that has served requests, with bytes that look like a request behind it.
    client
        .write_all(format!("{}{ASK}GET /smuggled HTTP/1.1\r\n\r\n", request("/")).as_bytes())
        .await
        .unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    exactly(&mut client, "plain").await;
    let switched = head(&mut client).await;
    assert!(switched.starts_with("HTTP/1.1 101"), "{switched}");
    for (name, value) in [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-accept", "x"),
    ] {
        assert_eq!(header(&switched, name), Some(value));
    }
    exactly(&mut client, "firstGET /SMUGGLED HTTP/1.1\r\n\r\n").await;
    assert_eq!(used(&proxy), (1, 1, 1), "held while it lives");
    client.write_all(b"more").await.unwrap();
    exactly(&mut client, "MORE").await;
    client.shutdown().await.unwrap();
    exactly(&mut client, "goodbye").await;
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    until(|| used(&proxy) == (0, 0, 0)).await;
    until(|| proxy.stats().open_connections() == 0).await;
    assert_eq!(proxy.stats().event(Event::Upgrades), 1);
    assert_eq!(proxy.stats().read().classes[1], 1);
    let asked = heads.lock().unwrap()[1].clone();
    assert_eq!(
        (header(&asked, "upgrade"), header(&asked, "connection")),
        (Some("websocket"), Some("Upgrade"))
    );
    until(|| std::fs::read_to_string(&path).is_ok_and(|text| text.contains("/chat"))).await;
    let text = std::fs::read_to_string(&path).unwrap();
    let line = text.lines().find(|line| line.contains("/chat")).unwrap();
    for part in [
        "\"response_code\":101",
        "\"bytes_received\":30",
        "\"bytes_sent\":42",
    ] {
        assert!(line.contains(part), "{line}");
    }
}

#[tokio::test]
async fn a_refused_upgrade_is_an_answer_and_requests_go_on() {
    let server = backend(script(|seen| async move {
        match seen.path() {
            "/chat" => answer(403, "not you"),
            "/post" => answer(200, &String::from_utf8(seen.body).unwrap()),
            _ => answer(200, "next"),
        }
    }))
    .await;
    let (proxy, at) = started(server.address, Timers::default(), Destination::Off);
    let begun = std::time::Instant::now();
    let mut client = Client::connect(at).await;
    client.send(&format!("{ASK}{}", request("/next"))).await;
    let refused = client.next().await.unwrap();
    assert_eq!((refused.status, &*refused.body), (403, "not you"));
    assert_eq!(client.next().await.unwrap().body, "next");
    // Nothing else is upgraded: the field is for this hop and ends here.
    for (version, upgrade) in [
        ("1.1", "h2c"),
        ("1.1", "websocket"),
        ("1.0", "websocket"),
        ("1.1", "foo/2"),
    ] {
        let keep = if version == "1.0" { "keep-alive, " } else { "" };
        client.send(&format!("POST /post HTTP/{version}\r\nhost: test.example\r\nconnection: {keep}upgrade, http2-settings\r\nupgrade: {upgrade}\r\nhttp2-settings: AAMAAABkAAQAAP__\r\ncontent-length: 4\r\n\r\nbody{}", request("/next"))).await;
        let got = client.next().await.unwrap();
        assert_eq!((got.status, &*got.body), (200, "body"), "{upgrade}");
        assert_eq!(client.next().await.unwrap().body, "next", "{upgrade}");
        let seen = server.seen.lock().unwrap();
        let post = seen.iter().rfind(|s| s.path() == "/post").unwrap();
        for name in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(post.header(name), None, "{upgrade}");
        }
    }
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "none of them waits for a timer"
    );
    drop(client);
    until(|| proxy.stats().open_connections() == 0).await;
    assert_eq!(proxy.stats().event(Event::Upgrades), 0);
    assert_eq!(proxy.endpoints()[0].in_use.requests, 0);
}

#[tokio::test]
async fn an_upgrade_in_http_1_0_releases_nothing_later() {
    let (address, _) = endpoint(shouts).await;
    let (_proxy, at) = started(address, Timers::default(), Destination::Off);
    let mut client = TcpStream::connect(at).await.unwrap();
    client.write_all(b"GET / HTTP/1.0\r\nhost: test.example\r\nconnection: keep-alive, upgrade\r\nupgrade: websocket\r\n\r\n").await.unwrap();
    head(&mut client).await;
    exactly(&mut client, "plain").await;
    client
        .write_all(format!("{ASK}no http at all\n").as_bytes())
        .await
        .unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101"));
    exactly(&mut client, "firstNO HTTP AT ALL\n").await;
}

pub(super) fn connect(stream: u32, path: &str) -> Vec<u8> {
    let fields: [(&[u8], &[u8]); 7] = [
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        (b":scheme", b"http"),
        (b":authority", b"test.example"),
        (b":path", path.as_bytes()),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", b"forged"),
    ];
    frame(HEADERS, END_HEADERS, stream, &block(&fields))
}

pub(super) async fn data(raw: &mut Raw<TcpStream>, stream: u32, want: &str) -> bool {
    let mut got = Vec::new();
    loop {
        let next = raw.next().await.expect("a frame");
        if next.stream == stream && next.kind == DATA {
            got.extend(&next.payload);
            if got.len() >= want.len() {
                assert_eq!(String::from_utf8_lossy(&got), want);
                return next.flags & END_STREAM != 0;
            }
        }
        assert!(next.kind != RST_STREAM, "{next:?}");
    }
}

#[tokio::test]
async fn by_http2_they_are_streams() {
    let (address, heads) = endpoint(shouts).await;
    // The limits of exchanges are not those of tunnels.
    let timers = Timers {
        stream_idle: Duration::from_millis(150),
        keep_alive: Duration::from_millis(150),
        ..Timers::default()
    };
    let (proxy, at) = started(address, timers, Destination::Off);
    let mut raw = Raw::connect(at).await;
    raw.send(&connect(1, "/chat")).await;
    assert_eq!(raw.outcome(1).await, Outcome::Status(200));
    assert!(!data(&mut raw, 1, "first").await);
    raw.send(&get_frame(3, "/")).await;
    assert_eq!(raw.outcome(3).await, Outcome::Status(200), "beside it");
    crate::pace(Duration::from_millis(500)).await;
    raw.send(&frame(DATA, 0, 1, b"hello")).await;
    assert!(!data(&mut raw, 1, "HELLO").await);
    assert_eq!(used(&proxy).1, 1);
    raw.send(&frame(DATA, END_STREAM, 1, b"end")).await;
    let ended = data(&mut raw, 1, "ENDgoodbye").await;
    if !ended {
        let last = raw.next().await.unwrap();
        assert_eq!((last.kind, last.flags & END_STREAM), (DATA, END_STREAM));
    }
    until(|| used(&proxy).1 == 0).await;
    let asked = heads.lock().unwrap()[0].clone();
    assert!(asked.starts_with("GET /chat HTTP/1.1\r\n"), "{asked}");
    assert_eq!(
        (
            header(&asked, "upgrade"),
            header(&asked, "connection"),
            header(&asked, "host")
        ),
        (Some("websocket"), Some("Upgrade"), Some("test.example"))
    );
    let key = header(&asked, "sec-websocket-key").unwrap();
    assert!(key.len() == 24 && key.ends_with("=="), "{key}");
    drop(raw);
    until(|| proxy.stats().open_connections() == 0).await;
    assert_eq!(used(&proxy).2, 0);
}

#[tokio::test]
async fn by_http2_only_a_101_opens_one() {
    let server = backend(script(|seen| async move {
        match seen.path() {
            "/ok" => answer(200, "not a websocket"),
            _ => answer(403, "not you"),
        }
    }))
    .await;
    let (proxy, at) = started(server.address, Timers::default(), Destination::Off);
    let mut raw = Raw::connect(at).await;
    for (stream, path, status) in [(1, "/ok", 502), (3, "/no", 403), (5, "/ok", 502)] {
        raw.send(&connect(stream, path)).await;
        assert_eq!(raw.outcome(stream).await, Outcome::Status(status), "{path}");
    }
    until(|| used(&proxy).1 == 0).await;
    assert_eq!(proxy.stats().event(Event::Upgrades), 0);
    drop(raw);
    until(|| proxy.stats().open_connections() == 0).await;
}

#[tokio::test]
async fn whichever_side_breaks_ends_the_other() {
    let (address, _) = endpoint(|mut stream, _, _| async move {
        head(&mut stream).await;
        stream.write_all(SWITCH.as_bytes()).await.unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        if byte == *b"r" {
            // Closed over unread bytes, it is reset.
            stream.set_zero_linger().unwrap();
        } else {
            let mut rest = Vec::new();
            let _ended = stream.read_to_end(&mut rest).await;
        }
    })
    .await;
    let (proxy, at) = started(address, Timers::default(), Destination::Off);
    for (byte, flag) in [("r", "UC"), ("c", "DC")] {
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(ASK.as_bytes()).await.unwrap();
        head(&mut client).await;
        client.write_all(byte.as_bytes()).await.unwrap();
        if flag == "DC" {
            crate::pace(Duration::from_millis(30)).await;
            client.set_zero_linger().unwrap();
        } else {
            let mut rest = Vec::new();
            let _ended = tokio::time::timeout(BOUND, client.read_to_end(&mut rest))
                .await
                .expect("it closes");
        }
        drop(client);
        until(|| proxy.stats().read().flags.contains(&(flag, 1))).await;
        until(|| used(&proxy) == (0, 0, 0)).await;
    }
    // By HTTP/2: the connection goes, and all of its tunnels.
    let mut raw = Raw::connect(at).await;
    for stream in [1, 3] {
        raw.send(&connect(stream, "/chat")).await;
        assert_eq!(raw.outcome(stream).await, Outcome::Status(200));
    }
    assert_eq!(used(&proxy), (2, 2, 2));
    assert_eq!(get(at, "/").await.status, 503, "limits hold");
    raw.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()))
        .await;
    until(|| used(&proxy) == (1, 1, 1)).await;
    drop(raw);
    until(|| used(&proxy) == (0, 0, 0)).await;
    until(|| proxy.stats().open_connections() == 0).await;
}
