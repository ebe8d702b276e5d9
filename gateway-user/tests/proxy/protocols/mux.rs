//! HTTP/2 endpoints: limits are exact, what an endpoint has not looked at is sent once more, and a change costs no request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use gateway_user::proxy::stats::Event;
use gateway_user::snapshot::{ConnectionPool, TrafficPolicy};
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Frame as BodyFrame;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::frames::*;
use super::honest::{ask, channel, client, endpoint, full, h2_cluster, to};
use crate::support::*;

fn policy(pool: ConnectionPool) -> TrafficPolicy {
    TrafficPolicy {
        pool,
        ..TrafficPolicy::default()
    }
}

#[tokio::test]
async fn limits_are_exact_over_shared_connections() {
    for workers in [1, 2, 4] {
        let gate = Arc::new(Semaphore::new(0));
        let hold = Arc::clone(&gate);
        let up = endpoint(move |_| {
            let hold = Arc::clone(&hold);
            async move {
                hold.acquire().await.unwrap().forget();
                Response::new(full("ok"))
            }
        })
        .await;
        let at = free_address();
        let pool = ConnectionPool {
            max_connections: Some(2),
            max_pending_requests: Some(3),
            max_concurrent_streams: Some(4),
            ..ConnectionPool::default()
        };
        let proxy = start(
            workers,
            &snapshot(at, &[(1, h2_cluster(&policy(pool), &[up.address]))], |_| {}),
        );
        let mut tasks = Vec::new();
        for _ in 0..20 {
            tasks.push(tokio::spawn(get(at, "/")));
        }
        // 2 connections of 4 streams, 3 wait, the rest is refused.
        until(|| proxy.stats().read().flags.contains(&("UO", 9))).await;
        let in_use = proxy.endpoints()[0].in_use;
        assert_eq!(
            (in_use.connections, in_use.requests, in_use.pending),
            (2, 8, 3),
            "{workers}"
        );
        until(|| up.heads.lock().unwrap().len() == 8).await;
        gate.add_permits(11);
        let mut statuses = Vec::new();
        for task in tasks {
            statuses.push(task.await.unwrap().status);
        }
        assert_eq!(
            statuses.iter().filter(|s| **s == 200).count(),
            11,
            "{workers}"
        );
        assert_eq!(
            statuses.iter().filter(|s| **s == 503).count(),
            9,
            "{workers}"
        );
        until(|| proxy.endpoints()[0].in_use.requests == 0).await;
        let status = &proxy.endpoints()[0];
        assert_eq!((status.in_use.pending, status.endpoints[0].active), (0, 0));
        assert!(up.connections.load(SeqCst) <= 2, "{workers}");
        until(|| proxy.stats().open_connections() == 0).await;
    }
}

/// An endpoint that does `what` with each request: connection, number of the request on it, stream.
async fn scripted<F>(what: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(usize, u32) -> Vec<u8> + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::<AtomicUsize>::default();
    let (count, what) = (Arc::clone(&seen), Arc::new(what));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (count, what) = (Arc::clone(&count), Arc::clone(&what));
            tokio::spawn(async move { answer_all(stream, &count, &*what).await });
        }
    });
    (address, seen)
}

async fn answer_all(
    stream: TcpStream,
    count: &AtomicUsize,
    what: &(dyn Fn(usize, u32) -> Vec<u8> + Send + Sync),
) {
    let mut raw = Raw::serve(stream, &[]).await;
    while let Some(next) = raw.stream_frame().await {
        if next.kind == SETTINGS && next.flags & ACK == 0 {
            raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
        }
        if next.kind == PING && next.flags & ACK == 0 {
            raw.send(&frame(PING, ACK, 0, &next.payload)).await;
        }
        if next.kind == HEADERS {
            let number = count.fetch_add(1, SeqCst);
            let bytes = what(number, next.stream);
            if bytes.is_empty() {
                return;
            }
            raw.send(&bytes).await;
        }
    }
}

fn ok(stream: u32) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, &[0x88])
}

fn refuse(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &7_u32.to_be_bytes())
}

fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(
        GOAWAY,
        0,
        0,
        &[last.to_be_bytes(), code.to_be_bytes()].concat(),
    )
}

#[tokio::test]
async fn what_an_endpoint_has_not_looked_at_is_sent_once_more() {
    type What = fn(usize, u32) -> Vec<u8>;
    let table: [(&str, What, u16, usize); 5] = [
        (
            "refused once",
            |n, s| if n == 0 { refuse(s) } else { ok(s) },
            200,
            2,
        ),
        ("refused for ever", |_, s| refuse(s), 503, 2),
        (
            "GOAWAY before it",
            |n, s| if n == 0 { goaway(0, 0) } else { ok(s) },
            200,
            2,
        ),
        (
            "reset, having been looked at",
            |n, s| {
                if n == 0 {
                    frame(RST_STREAM, 0, s, &2_u32.to_be_bytes())
                } else {
                    ok(s)
                }
            },
            503,
            1,
        ),
        (
            "cut",
            |n, s| if n == 0 { Vec::new() } else { ok(s) },
            503,
            1,
        ),
    ];
    for (name, what, status, sent) in table {
        let (address, seen) = scripted(what).await;
        let at = free_address();
        let proxy = start(
            1,
            &snapshot(
                at,
                &[(1, h2_cluster(&TrafficPolicy::default(), &[address]))],
                |_| {},
            ),
        );
        assert_eq!(get(at, "/").await.status, status, "{name}");
        assert_eq!(seen.load(SeqCst), sent, "{name}");
        assert_eq!(
            proxy.stats().event(Event::UpstreamRetries),
            sent as u64 - 1,
            "{name}"
        );
        let flags = proxy.stats().read().flags;
        assert_eq!(
            flags.contains(&("UC", 1)),
            status == 503,
            "{name}: {flags:?}"
        );
        // With a body it is the same, as far as it is kept.
        until(|| proxy.endpoints()[0].in_use.requests == 0).await;
        assert_eq!(proxy.endpoints()[0].endpoints[0].active, 0, "{name}");
    }
}

#[tokio::test]
async fn a_refused_stream_goes_to_another_endpoint() {
    let (bad, refused) = scripted(|_, s| refuse(s)).await;
    let (good, served) = scripted(|_, s| ok(s)).await;
    let at = free_address();
    let _proxy = start(
        2,
        &snapshot(
            at,
            &[(1, h2_cluster(&TrafficPolicy::default(), &[bad, good]))],
            |_| {},
        ),
    );
    for _ in 0..20 {
        assert_eq!(get(at, "/").await.status, 200);
    }
    assert_eq!(served.load(SeqCst), 20);
    assert!(refused.load(SeqCst) > 0);
}

#[tokio::test]
async fn a_connection_that_goes_away_keeps_its_permit_until_it_is_closed() {
    let gate = Arc::new(Semaphore::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (open, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (now, peak, hold) = (Arc::clone(&open), Arc::clone(&most), Arc::clone(&gate));
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            peak.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            let (now, hold) = (Arc::clone(&now), Arc::clone(&hold));
            tokio::spawn(async move {
                let mut raw = Raw::serve(stream, &[]).await;
                while let Some(next) = raw.stream_frame().await {
                    match (next.kind, number, next.stream) {
                        (HEADERS, 0, 1) => {
                            // The one that it has is the last.
                            raw.send(&goaway(1, 0)).await;
                            hold.acquire().await.unwrap().forget();
                            raw.send(&ok(1)).await;
                        }
                        // The first of the second connection takes long.
                        (HEADERS, 1, 1) | (HEADERS, 0, _) => {}
                        (HEADERS, _, stream) => {
                            raw.send(&ok(stream)).await;
                        }
                        _ => {}
                    }
                }
                now.fetch_sub(1, SeqCst);
            });
        }
    });
    let at = free_address();
    let pool = ConnectionPool {
        max_connections: Some(1),
        ..ConnectionPool::default()
    };
    let live = h2_cluster(&policy(pool), &[address]);
    let proxy = start(2, &snapshot(at, &[(1, live)], |_| {}));
    let first = tokio::spawn(get(at, "/"));
    until(|| proxy.endpoints()[0].in_use.requests == 1).await;
    crate::pace(Duration::from_millis(30)).await;
    let tasks: Vec<_> = (0..5).map(|_| tokio::spawn(get(at, "/"))).collect();
    until(|| proxy.endpoints()[0].in_use.pending == 5).await;
    gate.add_permits(1);
    assert_eq!(first.await.unwrap().status, 200);
    // One opens the next connection, and all of them have a place on it at once.
    until(|| proxy.endpoints()[0].in_use.requests == 1).await;
    until(|| tasks.iter().filter(|task| task.is_finished()).count() == 4).await;
    assert_eq!(most.load(SeqCst), 1, "connections at once");
    assert_eq!(proxy.endpoints()[0].in_use.connections, 1);
    for task in tasks {
        if task.is_finished() {
            assert_eq!(task.await.unwrap().status, 200);
        } else {
            task.abort();
        }
    }
    until(|| proxy.endpoints()[0].in_use.requests == 0).await;
}

#[tokio::test]
async fn endpoints_and_policies_change_without_a_failed_request() {
    let slow = |_| async {
        crate::pace(Duration::from_millis(3)).await;
        Response::new(full("ok"))
    };
    let (one, two) = (endpoint(slow).await, endpoint(slow).await);
    let at = free_address();
    let with = |pool: ConnectionPool, endpoints: &[SocketAddr]| {
        snapshot(at, &[(1, h2_cluster(&policy(pool), endpoints))], |_| {})
    };
    let proxy = start(2, &with(ConnectionPool::default(), &[one.address]));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let stop = Arc::clone(&stop);
        tasks.push(tokio::spawn(async move {
            let mut sender = client(at).await;
            let mut count = 0;
            while !stop.load(SeqCst) {
                let (status, ..) = ask(&mut sender, to("/").body(full("")).unwrap()).await;
                assert_eq!(status, 200);
                count += 1;
            }
            count
        }));
    }
    for round in 0..30_u32 {
        let endpoints = match round % 3 {
            0 => vec![one.address],
            1 => vec![two.address],
            _ => vec![one.address, two.address],
        };
        let pool = ConnectionPool {
            max_requests_per_connection: (round % 2 == 0).then_some(7),
            max_concurrent_streams: (round % 4 == 1).then_some(2),
            ..ConnectionPool::default()
        };
        assert_eq!(proxy.publish(&with(pool, &endpoints)).failed, []);
        crate::pace(Duration::from_millis(15)).await;
    }
    stop.store(true, SeqCst);
    let mut total = 0;
    for task in tasks {
        total += task.await.unwrap();
    }
    assert_eq!(
        one.heads.lock().unwrap().len() + two.heads.lock().unwrap().len(),
        total
    );
    proxy.publish(&with(ConnectionPool::default(), &[two.address]));
    until(|| one.open.load(SeqCst) == 0).await;
    until(|| proxy.endpoints()[0].in_use.requests == 0).await;
}

#[tokio::test]
async fn an_upload_ends_with_its_early_answer() {
    let broken = Arc::<AtomicUsize>::default();
    let noted = Arc::clone(&broken);
    let up = endpoint(move |request| {
        let noted = Arc::clone(&noted);
        async move {
            // The answer is complete; somebody goes on reading.
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(frame) = body.frame().await {
                    if frame.is_err() {
                        noted.fetch_add(1, SeqCst);
                        return;
                    }
                }
            });
            Response::builder().status(413).body(full("no")).unwrap()
        }
    })
    .await;
    let at = free_address();
    let proxy = start(
        1,
        &snapshot(
            at,
            &[(1, h2_cluster(&TrafficPolicy::default(), &[up.address]))],
            |_| {},
        ),
    );
    let mut sender = client(at).await;
    let (frames, body) = channel();
    frames
        .send(BodyFrame::data(Bytes::from_static(b"x")))
        .await
        .unwrap();
    let (status, ..) = ask(&mut sender, to("/").method("POST").body(body).unwrap()).await;
    assert_eq!(status, 413);
    until(|| broken.load(SeqCst) == 1).await;
    // The client is told to stop, too.
    let told = async {
        while frames
            .send(BodyFrame::data(Bytes::from_static(b"x")))
            .await
            .is_ok()
        {}
    };
    tokio::time::timeout(BOUND, told)
        .await
        .expect("the upload is ended");
    let (status, ..) = ask(&mut sender, to("/").body(full("")).unwrap()).await;
    assert_eq!(status, 413);
    assert_eq!(up.connections.load(SeqCst), 1);
    assert_eq!(proxy.endpoints()[0].in_use.requests, 0);
}

#[tokio::test]
async fn an_endpoint_that_admits_few_streams_gets_more_connections() {
    let most = Arc::<AtomicUsize>::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::clone(&most);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let mut raw = Raw::serve(stream, &[(3, 1)]).await;
                while let Some(next) = raw.stream_frame().await {
                    if next.kind == SETTINGS && next.flags & ACK == 0 {
                        raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
                    }
                    // The first on each connection is answered, the second never.
                    if next.kind == HEADERS && next.stream == 1 {
                        raw.send(&ok(1)).await;
                    }
                }
            });
        }
    });
    let at = free_address();
    let proxy = start(
        1,
        &snapshot(
            at,
            &[(1, h2_cluster(&TrafficPolicy::default(), &[address]))],
            |_| {},
        ),
    );
    assert_eq!(get(at, "/first").await.status, 200);
    let hang = tokio::spawn(get(at, "/hang"));
    until(|| proxy.endpoints()[0].in_use.requests == 1).await;
    crate::pace(Duration::from_millis(50)).await;
    assert_eq!(
        get(at, "/second").await.status,
        200,
        "on a connection of its own"
    );
    assert_eq!(most.load(SeqCst), 2);
    hang.abort();
}
