//! The timers that a slow client meets, each shortened alone, over real sockets. The table of their lengths is tested beside the
//! code, on a clock of its own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gateway_user::proxy::stats::Event;
use gateway_user::proxy::{Proxy, ProxySettings, Timers};
use gateway_user::snapshot::TrafficPolicy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

const SHORT: Duration = Duration::from_millis(200);

/// Shorter than [`SHORT`], so that what comes this often keeps any idle timer from passing.
const OFTEN: Duration = Duration::from_millis(20);

async fn served(
    script: Script,
    change: impl FnOnce(&mut Timers),
) -> (BackendServer, Proxy, SocketAddr) {
    let server = backend(script).await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let mut timers = Timers::default();
    change(&mut timers);
    let settings = ProxySettings {
        timers,
        ..ProxySettings::default()
    };
    let proxy = start_with(settings, &snapshot(at, &[(1, live)], |_| {}));
    (server, proxy, at)
}

/// The named event was counted once, everything is closed, and no permit is left out.
async fn ended_by(proxy: &Proxy, event: &'static str) {
    until(|| proxy.stats().read().events.contains(&(event, 1))).await;
    until(|| proxy.open_connections() == 0).await;
    until(|| {
        let used = proxy.endpoints()[0].in_use;
        (used.requests, used.pending) == (0, 0)
    })
    .await;
    let events = proxy.stats().read().events;
    let timers = [
        "header_timeouts",
        "body_timeouts",
        "write_timeouts",
        "idle_timeouts",
        "stream_timeouts",
        "max_age",
    ];
    let seen: Vec<_> = events
        .into_iter()
        .filter(|(name, n)| timers.contains(name) && *n > 0)
        .collect();
    assert_eq!(seen, [(event, 1)]);
}

/// Writes a byte again and again until the other side has closed; how long that took.
async fn trickle(client: &mut Client, byte: u8) -> Duration {
    let begun = Instant::now();
    let mut tick = tokio::time::interval(OFTEN);
    let mut scratch = [0; 64];
    let closed = async {
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    if client.stream.write_all(&[byte]).await.is_err() {
                        return;
                    }
                }
                read = client.stream.read(&mut scratch) => {
                    // An interim or error answer may come before the end.
                    if matches!(read, Ok(0) | Err(_)) {
                        return;
                    }
                }
            }
        }
    };
    tokio::time::timeout(BOUND, closed)
        .await
        .expect("it closes");
    begun.elapsed()
}

#[tokio::test]
async fn a_head_has_its_time_in_all_however_it_trickles() {
    let (server, proxy, at) = served(fixed(200, "a"), |t| t.header = SHORT).await;
    let mut client = Client::connect(at).await;
    client
        .send("GET / HTTP/1.1\r\nhost: test.example\r\nx: ")
        .await;
    let took = trickle(&mut client, b'y').await;
    assert!(took >= SHORT - OFTEN, "{took:?}");
    ended_by(&proxy, "header_timeouts").await;
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn a_connection_on_which_nothing_ever_comes_is_closed() {
    let (_server, proxy, at) = served(fixed(200, "a"), |t| t.header = SHORT).await;
    let mut client = Client::connect(at).await;
    assert!(client.closed().await);
    ended_by(&proxy, "header_timeouts").await;
}

#[tokio::test]
async fn a_body_that_stalls_is_cut_off() {
    let (server, proxy, at) = served(fixed(200, "a"), |t| t.body_idle = SHORT).await;
    let mut client = Client::connect(at).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: 9\r\n\r\nabc")
        .await;
    assert!(client.closed().await);
    ended_by(&proxy, "body_timeouts").await;
    assert_eq!(server.count(), 0, "no whole request arrived");
}

#[tokio::test]
async fn a_body_below_the_least_rate_is_cut_off_although_it_never_stalls() {
    let (server, proxy, at) = served(fixed(200, "a"), |t| {
        t.body_idle = Duration::from_secs(1);
        t.body_rate = 10_000;
    })
    .await;
    let mut client = Client::connect(at).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: 100000\r\n\r\n")
        .await;
    let took = trickle(&mut client, b'x').await;
    assert!(took >= Duration::from_millis(900), "{took:?}");
    ended_by(&proxy, "body_timeouts").await;
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn a_slow_body_above_the_least_rate_is_let_through() {
    let (server, proxy, at) = served(fixed(200, "a"), |t| {
        t.body_idle = SHORT;
        t.body_rate = 10;
    })
    .await;
    let mut client = Client::connect(at).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: 40\r\n\r\n")
        .await;
    let mut tick = tokio::time::interval(OFTEN);
    for _ in 0..40 {
        tick.tick().await;
        client.send("x").await;
    }
    assert_eq!(client.next().await.unwrap().status, 200);
    assert_eq!(server.count(), 1);
    let events = proxy.stats().read().events;
    assert!(events.contains(&("body_timeouts", 0)));
}

#[tokio::test]
async fn a_client_that_takes_no_bytes_is_cut_off() {
    let large = script(|_| async { answer(200, &"x".repeat(32 << 20)) });
    let (_server, proxy, at) = served(large, |t| t.write_idle = SHORT).await;
    let mut client = Client::connect(at).await;
    client.send(&request("/")).await;
    // It reads nothing: the socket's buffers fill, then the timer passes.
    ended_by(&proxy, "write_timeouts").await;
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(BOUND, client.stream.read_to_end(&mut bytes));
    let _ended = read.await.expect("it is closed");
    assert!(bytes.len() < 32 << 20);
}

#[tokio::test]
async fn an_idle_connection_is_closed_between_requests() {
    let (server, proxy, at) = served(fixed(200, "a"), |t| t.keep_alive = SHORT).await;
    let mut client = Client::connect(at).await;
    let mut tick = tokio::time::interval(OFTEN);
    for _ in 0..15 {
        tick.tick().await;
        assert_eq!(client.get("/").await.status, 200, "requests keep it open");
    }
    let mut rest = Vec::new();
    let read = tokio::time::timeout(BOUND, client.stream.read_to_end(&mut rest));
    assert_eq!(read.await.expect("it closes").unwrap(), 0, "in good order");
    ended_by(&proxy, "idle_timeouts").await;
    assert_eq!(server.count(), 15);
}

#[tokio::test]
async fn an_exchange_without_a_byte_is_ended() {
    let hangs = script(|_| std::future::pending());
    let (server, proxy, at) = served(hangs, |t| t.stream_idle = SHORT).await;
    let mut client = Client::connect(at).await;
    client.send(&request("/")).await;
    assert!(client.closed().await);
    ended_by(&proxy, "stream_timeouts").await;
    assert_eq!(server.count(), 1);
    until(|| server.open.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn an_old_connection_that_idles_is_closed() {
    let (_server, proxy, at) = served(fixed(200, "a"), |t| {
        t.max_age = Duration::from_secs(1);
        // The clock is looked at as often as the shortest of the others.
        t.keep_alive = Duration::from_secs(20);
        t.header = SHORT;
    })
    .await;
    let mut client = Client::connect(at).await;
    assert_eq!(client.get("/").await.status, 200);
    let begun = Instant::now();
    assert!(client.closed().await);
    assert!(begun.elapsed() >= Duration::from_millis(900));
    ended_by(&proxy, "max_age").await;
}

#[tokio::test]
async fn an_old_connection_that_is_busy_ends_with_its_answer() {
    let (release, released) = tokio::sync::watch::channel(false);
    let holds = script(move |_| {
        let mut released = released.clone();
        async move {
            released.wait_for(|r| *r).await.unwrap();
            answer(200, "done")
        }
    });
    let (_server, proxy, at) = served(holds, |t| t.max_age = SHORT).await;
    let mut client = Client::connect(at).await;
    let begun = Instant::now();
    client.send(&request("/")).await;
    // 105 % of the age is the most that it is spread to.
    until(|| begun.elapsed() > SHORT * 11 / 10).await;
    assert_eq!(proxy.open_connections(), 1, "never within an exchange");
    release.send(true).unwrap();
    let last = client.next().await.unwrap();
    assert_eq!(
        (last.status, last.header("connection")),
        (200, Some("close"))
    );
    assert!(client.closed().await);
}

#[tokio::test]
async fn an_idle_connection_rests_and_wakes_with_the_next_request() {
    let (server, proxy, at) = served(fixed(200, "ok"), |timers| timers.rest = OFTEN).await;
    let rests = || proxy.stats().event(Event::DownstreamRests);
    let mut client = Client::connect(at).await;
    for round in 1..=3 {
        assert_eq!(client.get("/whole").await.status, 200);
        until(|| rests() == round).await;
    }
    // In pieces: the head is put together while the connection still rests.
    client.send("GET /pieces HTTP/1.1\r\nhost: te").await;
    client.send("st.example\r\n\r\n").await;
    assert_eq!(client.next().await.expect("an answer").status, 200);
    until(|| rests() == 4).await;
    // Two at once, the second of which is refused.
    client
        .send("GET /first HTTP/1.1\r\nhost: test.example\r\n\r\nGET /bad\r\n\r\n")
        .await;
    assert_eq!(client.next().await.expect("an answer").status, 200);
    assert_eq!(client.next().await.expect("an answer").status, 400);
    until(|| proxy.open_connections() == 0).await;
    let seen = server.seen.lock().unwrap().clone();
    let paths: Vec<&str> = seen.iter().map(Seen::path).collect();
    assert_eq!(paths, ["/whole", "/whole", "/whole", "/pieces", "/first"]);
}

#[tokio::test]
async fn a_resting_connection_is_closed_by_its_timers_and_by_its_client() {
    let (_server, proxy, at) = served(fixed(200, "ok"), |timers| {
        timers.rest = OFTEN;
        timers.keep_alive = SHORT;
    })
    .await;
    let rests = || proxy.stats().event(Event::DownstreamRests);
    let mut gone = Client::connect(at).await;
    assert_eq!(gone.get("/").await.status, 200);
    until(|| rests() == 1).await;
    drop(gone);
    until(|| proxy.open_connections() == 0).await;
    assert_eq!(proxy.stats().event(Event::IdleTimeouts), 0);
    let mut idle = Client::connect(at).await;
    assert_eq!(idle.get("/").await.status, 200);
    until(|| rests() == 2).await;
    ended_by(&proxy, "idle_timeouts").await;
}
