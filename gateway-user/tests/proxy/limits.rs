//! The tutorial's limits, exactly, with any number of workers; split and ejection.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use gateway_user::snapshot::{Balancer, ConnectionPool, OutlierDetection, TrafficPolicy};
use tokio::sync::watch;

use crate::support::*;

fn tutorial() -> TrafficPolicy {
    TrafficPolicy {
        balancer: Balancer::RoundRobin,
        pool: ConnectionPool {
            max_connections: Some(100),
            max_pending_requests: Some(50),
            max_requests: Some(100),
            max_requests_per_connection: Some(2),
            ..ConnectionPool::default()
        },
        outlier: Some(OutlierDetection {
            interval: Duration::from_secs(30),
            max_ejection_percent: 50,
            ..OutlierDetection::default()
        }),
        ..TrafficPolicy::default()
    }
}

/// A backend that answers once it is released.
async fn holding(released: &watch::Receiver<bool>) -> BackendServer {
    let released = released.clone();
    backend(script(move |_| {
        let mut released = released.clone();
        async move {
            released.wait_for(|r| *r).await.unwrap();
            answer(200, "done")
        }
    }))
    .await
}

/// Sends `requests` at once; gives the counts of 200 and of 503 UO.
async fn burst(workers: usize, requests: usize) -> (usize, usize) {
    let (release, released) = watch::channel(false);
    let servers = [
        holding(&released).await,
        holding(&released).await,
        holding(&released).await,
    ];
    let at = free_address();
    let addresses: Vec<_> = servers.iter().map(|s| s.address).collect();
    let live = cluster("v1", &tutorial(), &addresses);
    let proxy = Arc::new(start(workers, &snapshot(at, &[(1, live)], |_| {})));
    let clients: Vec<_> = (0..requests)
        .map(|_| tokio::spawn(async move { get(at, "/").await }))
        .collect();
    let refused = requests - 150;
    until(|| {
        let answered = clients.iter().filter(|c| c.is_finished()).count();
        let used = proxy.endpoints()[0].in_use;
        answered == refused && (used.requests, used.pending) == (100, 50)
    })
    .await;
    until(|| servers.iter().map(BackendServer::count).sum::<usize>() == 100).await;
    let used = proxy.endpoints()[0].in_use;
    assert_eq!(
        (used.connections, used.requests, used.pending),
        (100, 100, 50)
    );
    release.send(true).unwrap();
    let (mut good, mut overflow) = (0, 0);
    for client in clients {
        let answer = client.await.unwrap();
        match answer.status {
            200 => good += 1,
            503 if answer.header("x-envoy-overloaded") == Some("true") => overflow += 1,
            other => panic!("unexpected {other}"),
        }
    }
    let seen: usize = servers.iter().map(BackendServer::count).sum();
    assert_eq!(seen, good, "no refused request reaches a backend");
    until(|| {
        let used = proxy.endpoints()[0].in_use;
        used.requests == 0 && used.pending == 0 && used.connections <= 100
    })
    .await;
    let reading = proxy.stats().read();
    assert!(reading.flags.contains(&("UO", overflow as u64)));
    (good, overflow)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_are_150_and_150_with_one_worker() {
    assert_eq!(burst(1, 300).await, (150, 150));
    assert_eq!(burst(1, 151).await, (150, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_are_150_and_150_with_two_workers() {
    assert_eq!(burst(2, 300).await, (150, 150));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_are_150_and_150_with_four_workers() {
    assert_eq!(burst(4, 300).await, (150, 150));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_of_another_worker_or_endpoint_gives_up_its_permit() {
    let servers = [
        backend(fixed(200, "a")).await,
        backend(fixed(200, "b")).await,
    ];
    let at = free_address();
    let mut policy = tutorial();
    policy.pool.max_connections = Some(1);
    policy.pool.max_requests_per_connection = None;
    let addresses: Vec<_> = servers.iter().map(|s| s.address).collect();
    let live = cluster("v1", &policy, &addresses);
    let proxy = start(4, &snapshot(at, &[(1, live)], |_| {}));
    for _ in 0..40 {
        assert_eq!(get(at, "/").await.status, 200);
        assert!(proxy.endpoints()[0].in_use.connections <= 1);
    }
    assert_eq!((servers[0].count(), servers[1].count()), (20, 20));
}

/// Answers, hangs, or closes without an answer, as the path says.
fn moody() -> Script {
    script(|seen| async move {
        match seen.path() {
            "/hang" => std::future::pending().await,
            "/reset" => Vec::new(),
            _ => answer(200, "ok"),
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_cancels_resets_timeouts_and_inheritance_all_permits_are_home() {
    let servers = [backend(moody()).await, backend(moody()).await];
    let at = free_address();
    let mut policy = tutorial();
    policy.outlier = None;
    policy.pool.max_connections = Some(4);
    policy.pool.max_pending_requests = Some(3);
    policy.pool.max_requests = Some(4);
    policy.pool.max_requests_per_connection = Some(3);
    let addresses: Vec<_> = servers.iter().map(|s| s.address).collect();
    let live = cluster("v1", &policy, &addresses);
    let limit = Some(Duration::from_millis(100));
    let snapshot = snapshot(at, &[(1, live)], |r| r.request_timeout = limit);
    let proxy = Arc::new(start(3, &snapshot));
    let mut seed = 7_u64;
    for _ in 0..40 {
        // Ten at once: now and then every limit is reached.
        let clients = (0..10).map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (path, leaves) = match (seed >> 33) % 10 {
                0 => ("/hang", false),
                1 => ("/hang", true),
                2 | 3 => ("/reset", false),
                4 => ("/ok", true),
                _ => ("/ok", false),
            };
            tokio::spawn(async move {
                let mut client = Client::connect(at).await;
                client.send(&request(path)).await;
                if !leaves {
                    assert!(matches!(
                        client.next().await.unwrap().status,
                        200 | 503 | 504
                    ));
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
    }
    until(|| proxy.open_connections() == 0).await;
    for (flag, count) in proxy.stats().read().flags {
        let expected = ["UO", "UC", "UT", "DC"].contains(&flag);
        assert_eq!(count > 0, expected, "{flag} {count}");
    }
    until(|| {
        let status = &proxy.endpoints()[0];
        let idle: usize = status.endpoints.iter().map(|e| e.idle).sum();
        let used = status.in_use;
        let open: usize = servers.iter().map(|s| s.open.load(SeqCst)).sum();
        (used.requests, used.pending) == (0, 0) && used.connections as usize == idle && open == idle
    })
    .await;
}

#[tokio::test]
async fn ten_requests_are_five_and_five() {
    let servers = [
        backend(fixed(200, "v1")).await,
        backend(fixed(200, "v2")).await,
    ];
    let at = free_address();
    let policy = tutorial();
    let v1 = cluster("v1", &policy, &[servers[0].address]);
    let v2 = cluster("v2", &policy, &[servers[1].address]);
    let _proxy = start(2, &snapshot(at, &[(50, v1), (50, v2)], |_| {}));
    for _ in 0..10 {
        assert_eq!(get(at, "/").await.status, 200);
    }
    assert_eq!((servers[0].count(), servers[1].count()), (5, 5));
}

#[tokio::test]
async fn a_connection_is_retired_after_its_requests_unannounced() {
    let server = backend(fixed(200, "x")).await;
    let at = free_address();
    let live = cluster("v1", &tutorial(), &[server.address]);
    let _proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    for _ in 0..6 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert_eq!(server.connections.load(SeqCst), 3);
    let seen = server.seen.lock().unwrap();
    assert!(seen.iter().all(|s| s.header("connection").is_none()));
}

#[tokio::test]
async fn the_fifth_error_ejects_and_the_cap_holds() {
    let bad = backend(fixed(500, "bad")).await;
    let good = backend(fixed(200, "good")).await;
    let at = free_address();
    let live = cluster("v1", &tutorial(), &[bad.address, good.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut statuses = Vec::new();
    for _ in 0..30 {
        statuses.push(get(at, "/").await.status);
    }
    assert_eq!(statuses.iter().filter(|s| **s == 500).count(), 5);
    assert!(statuses[10..].iter().all(|s| *s == 200));
    assert_eq!(bad.count(), 5);
    let status = &proxy.endpoints()[0];
    assert_eq!(status.ejections, 1);
    let out = status.endpoints.iter().find(|e| e.ejected).unwrap();
    assert_eq!(*out.address, bad.address.to_string());
    assert_eq!(out.idle, 0, "its idle connections are closed");
}

#[tokio::test]
async fn an_ejected_endpoint_comes_back() {
    let bad = backend(fixed(500, "bad")).await;
    let good = backend(fixed(200, "good")).await;
    let at = free_address();
    let mut policy = tutorial();
    let outlier = policy.outlier.as_mut().unwrap();
    outlier.interval = Duration::from_millis(100);
    outlier.base_ejection = Duration::from_millis(200);
    let live = cluster("v1", &policy, &[bad.address, good.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    while bad.count() < 5 {
        get(at, "/").await;
    }
    assert!(proxy.endpoints()[0].endpoints.iter().any(|e| e.ejected));
    until(|| !proxy.endpoints()[0].endpoints.iter().any(|e| e.ejected)).await;
    get(at, "/").await;
    get(at, "/").await;
    assert_eq!(bad.count(), 6);
}

#[tokio::test]
async fn all_ejected_is_no_healthy_upstream() {
    let bad = backend(fixed(503, "bad")).await;
    let at = free_address();
    let mut policy = tutorial();
    policy.outlier.as_mut().unwrap().max_ejection_percent = 100;
    let live = cluster("v1", &policy, &[bad.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    for _ in 0..5 {
        assert_eq!(get(at, "/").await.body, "bad");
    }
    let answer = get(at, "/").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (503, "no healthy upstream\n")
    );
    assert!(proxy.stats().read().flags.contains(&("UH", 1)));
}
