//! WebSockets while the node drains: they go on until they end by themselves, or until the time for draining is over.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway_user::proxy::access_log::Destination;
use gateway_user::proxy::stats::Event;
use gateway_user::proxy::{Proxy, ProxySettings, Timers};
use gateway_user::snapshot::TrafficPolicy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::frames::*;
use super::websocket::{ASK, connect, data, endpoint, exactly, head, shouts, used};
use crate::support::*;

/// How long idle connections get here once draining has begun.
const DRAIN_IDLE: Duration = Duration::from_millis(100);

/// A proxy with a log, and an open WebSocket by HTTP/1.1 and one by HTTP/2.
struct Opened {
    proxy: Arc<Proxy>,
    at: std::net::SocketAddr,
    log: PathBuf,
    one: TcpStream,
    two: Raw<TcpStream>,
    _directory: tempfile::TempDir,
}

async fn opened() -> Opened {
    let (address, _) = endpoint(shouts).await;
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("access.log");
    let at = free_address();
    let settings = ProxySettings {
        workers: 2,
        timers: Timers {
            drain_idle: DRAIN_IDLE,
            ..Timers::default()
        },
        access_log: Destination::File(log.clone()),
        ..ProxySettings::default()
    };
    let live = cluster("a", &TrafficPolicy::default(), &[address]);
    let proxy = start_with(settings, &snapshot(at, &[(1, live)], |_| {}));
    let mut one = TcpStream::connect(at).await.unwrap();
    one.write_all(ASK.as_bytes()).await.unwrap();
    assert!(head(&mut one).await.starts_with("HTTP/1.1 101"));
    exactly(&mut one, "first").await;
    let mut two = Raw::connect(at).await;
    two.send(&connect(1, "/chat")).await;
    assert_eq!(two.outcome(1).await, Outcome::Status(200));
    assert!(!data(&mut two, 1, "first").await);
    Opened {
        proxy: Arc::new(proxy),
        at,
        log,
        one,
        two,
        _directory: directory,
    }
}

/// What the log says of the tunnels: flag, details, bytes both ways.
fn told(log: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        format!(
            "{} {} {} {} {} {}",
            line["protocol"],
            line["response_code"],
            line["response_flags"],
            line["response_code_details"],
            line["bytes_received"],
            line["bytes_sent"]
        )
    });
    let mut lines: Vec<_> = lines.collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn they_go_on_until_they_end_by_themselves() {
    let mut here = opened().await;
    let mut idle = Client::connect(here.at).await;
    assert_eq!(idle.get("/").await.status, 200);
    here.proxy.drain();
    // The client of HTTP/2 hears at once that it shall open no more, and is asked whether it has heard.
    let mut away = false;
    loop {
        let next = here.two.next().await.expect("a frame");
        if next.kind == GOAWAY {
            assert_eq!(next.code(4), 0, "no error");
            away = true;
        } else if next.kind == PING && away {
            here.two.send(&frame(PING, ACK, 0, &next.payload)).await;
            break;
        }
    }
    // One that is idle is closed.
    assert!(idle.closed().await);
    crate::pace(3 * DRAIN_IDLE).await;
    for _ in 0..3 {
        here.one.write_all(b"still here").await.unwrap();
        exactly(&mut here.one, "STILL HERE").await;
        here.two.send(&frame(DATA, 0, 1, b"here too")).await;
        assert!(!data(&mut here.two, 1, "HERE TOO").await);
    }
    assert_eq!(here.proxy.open_connections(), 2);
    // A new one is served as long as connections come here.
    let mut new = TcpStream::connect(here.at).await.unwrap();
    new.write_all(ASK.as_bytes()).await.unwrap();
    assert!(head(&mut new).await.starts_with("HTTP/1.1 101"));
    exactly(&mut new, "first").await;

    for stream in [&mut here.one, &mut new] {
        stream.shutdown().await.unwrap();
        exactly(stream, "goodbye").await;
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }
    here.two.send(&frame(DATA, END_STREAM, 1, b"")).await;
    data(&mut here.two, 1, "goodbye").await;
    // With its last stream the connection goes.
    while here.two.next().await.is_some() {}
    until(|| here.proxy.open_connections() == 0).await;
    // The endpoint's connection for plain requests may be left, unless the last WebSocket went on it.
    let (_, requests, active) = used(&here.proxy);
    assert_eq!((requests, active), (0, 0));
    let begun = Instant::now();
    let proxy = Arc::clone(&here.proxy);
    let ended = tokio::task::spawn_blocking(move || proxy.shutdown(Instant::now() + BOUND));
    ended.await.unwrap();
    assert!(begun.elapsed() < BOUND / 2, "nothing is waited for");
    assert_eq!(
        told(&here.log),
        [
            r#""HTTP/1.1" 101 "-" null 0 12"#,
            r#""HTTP/1.1" 101 "-" null 30 42"#,
            r#""HTTP/1.1" 200 "-" null 0 5"#,
            r#""HTTP/2" 101 "-" null 24 36"#,
        ]
    );
    assert_eq!(here.proxy.stats().event(Event::DrainCutOff), 0);
}

#[tokio::test]
async fn the_deadline_cuts_them_off() {
    let mut here = opened().await;
    here.one.write_all(b"some").await.unwrap();
    exactly(&mut here.one, "SOME").await;
    here.two.send(&frame(DATA, 0, 1, b"more of it")).await;
    assert!(!data(&mut here.two, 1, "MORE OF IT").await);
    let proxy = Arc::clone(&here.proxy);
    let begun = Instant::now();
    let time = Duration::from_millis(300);
    let ended = tokio::task::spawn_blocking(move || proxy.shutdown(begun + time));
    // Until then they go on.
    here.one.write_all(b"?").await.unwrap();
    exactly(&mut here.one, "?").await;
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(BOUND, here.one.read_to_end(&mut rest)).await;
    // Closed in order or reset, and nothing in between.
    assert!(closed.expect("in time").is_err() || rest.is_empty());
    while here.two.next().await.is_some() {}
    ended.await.unwrap();
    assert!(begun.elapsed() >= time);
    assert_eq!(
        told(&here.log),
        [
            r#""HTTP/1.1" 101 "DC" "downstream_local_disconnect(drain_timeout)" 5 10"#,
            r#""HTTP/2" 101 "DC" "downstream_local_disconnect(drain_timeout)" 10 15"#,
        ]
    );
    assert_eq!(here.proxy.stats().event(Event::DrainCutOff), 2);
    assert_eq!(here.proxy.open_connections(), 0);
    assert_eq!(used(&here.proxy), (0, 0, 0));
}
