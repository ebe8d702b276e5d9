//! Retries, timeouts, mirrors and what filters do, as the other side sees it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway_user::proxy::stats::Event;
use gateway_user::proxy::{Proxy, ProxySettings};
use gateway_user::snapshot::{
    AnyOr, BackendTarget, Balancer, ConnectionPool, Cors, Filters, HeaderEdits, Mirror, Origin,
    PathEdit, Redirect, Retry, Rewrite, Rule, TrafficPolicy,
};
use http::{HeaderMap, Method, Response};
use http_body_util::BodyExt;
use hyper::body::Frame;

use super::honest::{ask, channel, client, endpoint, full, h2_cluster, to};
use crate::support::*;

fn retry(codes: &[u16], attempts: u32, backoff: u64) -> Option<Box<Retry>> {
    Some(Box::new(Retry {
        codes: codes.to_vec(),
        attempts,
        backoff: Some(Duration::from_millis(backoff)),
    }))
}

/// Answers by the path: `/503/2` fails twice, then it is fine.
async fn failing() -> BackendServer {
    let counts = Arc::new(std::sync::Mutex::new(BTreeMap::<String, u32>::new()));
    backend(script(move |seen| {
        let counts = Arc::clone(&counts);
        async move {
            let parts: Vec<&str> = seen.path().split('/').collect();
            let mut counts = counts.lock().unwrap();
            let count = counts.entry(seen.path().to_owned()).or_default();
            *count += 1;
            if *count > parts[2].parse().unwrap() {
                return answer(200, &String::from_utf8(seen.body).unwrap());
            }
            match parts[1] {
                "close" => Vec::new(),
                code => answer(code.parse().unwrap(), "bad"),
            }
        }
    }))
    .await
}

fn idle(proxy: &Proxy) -> bool {
    let status = &proxy.endpoints()[0];
    (status.in_use.requests, status.endpoints[0].active) == (0, 0)
}

#[tokio::test]
async fn listed_codes_and_broken_connections_are_tried_again() {
    let server = failing().await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let proxy = start(
        2,
        &snapshot(at, &[(1, live)], |rule| {
            rule.retry = retry(&[500, 503], 2, 1);
        }),
    );
    let mut retries = 0;
    for (path, status, tries) in [
        ("/503/0", 200, 1),
        ("/503/1", 200, 2),
        ("/503/2", 200, 3),
        ("/500/9", 500, 3),
        ("/502/1", 502, 1),
        ("/close/2", 200, 3),
        ("/close/9", 503, 3),
    ] {
        for body in [String::new(), "hello".to_owned(), "x".repeat(64 * 1024)] {
            let path = format!("{path}/{}", body.len());
            let mut client = Client::connect(at).await;
            client.send(&format!("POST {path} HTTP/1.1\r\nhost: test.example\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
            let got = client.next().await.unwrap();
            assert_eq!(got.status, status, "{path}");
            assert!(status != 200 || got.body == body, "{path}");
            let seen: Vec<Seen> = server.seen.lock().unwrap().drain(..).collect();
            assert_eq!(seen.len(), tries, "{path}");
            assert!(
                seen.iter()
                    .all(|s| s.body == body.as_bytes() && s.head == seen[0].head),
                "{path}"
            );
            retries += tries as u64 - 1;
        }
    }
    assert_eq!(proxy.stats().event(Event::UpstreamRetries), retries);
    // What is too long to be kept is sent once.
    let body = "x".repeat(64 * 1024 + 1);
    for framing in [
        "content-length: 65537\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n10001\r\n",
    ] {
        let mut client = Client::connect(at).await;
        let end = if framing.starts_with('t') {
            "\r\n0\r\n\r\n"
        } else {
            ""
        };
        client
            .send(&format!(
                "POST /503/1/{} HTTP/1.1\r\nhost: test.example\r\n{framing}{body}{end}",
                framing.len()
            ))
            .await;
        assert_eq!(client.next().await.unwrap().status, 503);
    }
    assert_eq!(server.count(), 2);
    until(|| idle(&proxy)).await;
}

#[tokio::test]
async fn waits_and_timeouts_hold_for_each_try_and_for_all() {
    let server = backend(script(|seen| async move {
        match seen.path() {
            "/hang" => std::future::pending().await,
            _ => answer(503, "no"),
        }
    }))
    .await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let proxy = start(
        1,
        &snapshot(at, &[(1, live)], |rule| {
            rule.retry = retry(&[503], 3, 40);
            rule.backend_timeout = Some(Duration::from_millis(100));
            rule.request_timeout = Some(Duration::from_millis(450));
        }),
    );
    let begun = Instant::now();
    assert_eq!(get(at, "/").await.status, 503);
    assert!(begun.elapsed() >= Duration::from_millis(40 + 80 + 160));
    assert_eq!(server.count(), 4);
    let begun = Instant::now();
    assert_eq!(get(at, "/hang").await.status, 504);
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(440) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert!((6..=7).contains(&server.count()), "{}", server.count());
    until(|| idle(&proxy)).await;
    until(|| server.open.load(SeqCst) <= 1).await;
}

#[tokio::test]
async fn trailers_are_part_of_every_try() {
    let tries = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&tries);
    let up = endpoint(move |request| {
        let count = Arc::clone(&count);
        async move {
            let body = request.into_body().collect().await.unwrap();
            let sum = body.trailers().map(|t| t["x-sum"].clone());
            assert_eq!(sum, Some("1".parse().unwrap()));
            assert_eq!(body.to_bytes(), "body");
            let status = if count.fetch_add(1, SeqCst) < 2 {
                503
            } else {
                200
            };
            Response::builder().status(status).body(full("")).unwrap()
        }
    })
    .await;
    let at = free_address();
    let live = h2_cluster(&TrafficPolicy::default(), &[up.address]);
    let _proxy = start(
        1,
        &snapshot(at, &[(1, live)], |rule| rule.retry = retry(&[503], 2, 1)),
    );
    let (frames, body) = channel();
    frames
        .send(Frame::data(Bytes::from_static(b"body")))
        .await
        .unwrap();
    let trailers: HeaderMap = [("x-sum".parse().unwrap(), "1".parse().unwrap())]
        .into_iter()
        .collect();
    frames.send(Frame::trailers(trailers)).await.unwrap();
    drop(frames);
    let (status, ..) = ask(
        &mut client(at).await,
        to("/")
            .method("POST")
            .header("te", "trailers")
            .body(body)
            .unwrap(),
    )
    .await;
    assert_eq!((status, tries.load(SeqCst)), (200, 3));
}

#[tokio::test]
async fn mirrors_get_copies_and_never_delay() {
    let server = backend(fixed(200, "ok")).await;
    let copy = backend(script(|seen| async move {
        if seen.path() == "/slow" {
            std::future::pending::<()>().await;
        }
        answer(500, "thrown away")
    }))
    .await;
    let at = free_address();
    let clusters = [
        (
            1,
            cluster("a", &TrafficPolicy::default(), &[server.address]),
        ),
        (0, cluster("b", &TrafficPolicy::default(), &[copy.address])),
    ];
    let mirror = |numerator| Mirror {
        target: BackendTarget::Cluster(1),
        http2: false,
        numerator,
        denominator: 100,
    };
    let with = |mirrors: Vec<Mirror>| {
        snapshot(at, &clusters, |rule: &mut Rule| {
            rule.filters = Some(Arc::new(Filters {
                mirrors,
                ..Filters::default()
            }));
        })
    };
    let proxy = start_with(
        ProxySettings {
            seed: 7,
            ..ProxySettings::default()
        },
        &with(vec![mirror(100)]),
    );
    let mut client = Client::connect(at).await;
    for body in ["", "hello", &"x".repeat(300_000)] {
        client
            .send(&format!(
                "POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ))
            .await;
        assert_eq!(client.next().await.unwrap().status, 200);
    }
    until(|| {
        proxy.stats().event(Event::Mirrored) + proxy.stats().event(Event::MirrorsDropped) == 3
    })
    .await;
    assert!(proxy.stats().event(Event::Mirrored) >= 2);
    let strip = |seen: &Seen| (seen.head.clone(), seen.body.clone());
    let originals: Vec<_> = server.seen.lock().unwrap().iter().map(strip).collect();
    let copies: Vec<_> = copy.seen.lock().unwrap().iter().map(strip).collect();
    assert_eq!(copies[..2], originals[..2]);
    let begun = Instant::now();
    for _ in 0..10 {
        assert_eq!(client.get("/slow").await.status, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(proxy.endpoints()[0].in_use.requests, 0, "limits of its own");
    assert_eq!(proxy.stats().read().classes[5], 0);
    proxy.publish(&with(vec![mirror(25)]));
    let before = copy.count();
    for _ in 0..200 {
        client.get("/quick").await;
    }
    let counted =
        || proxy.stats().event(Event::Mirrored) + proxy.stats().event(Event::MirrorsDropped);
    until(|| copy.count() > before + 20).await;
    assert!(
        copy.count() - before < 90 && counted() < 100,
        "{}",
        copy.count() - before
    );
    proxy.publish(&with(vec![mirror(0)]));
    let before = copy.count();
    for _ in 0..20 {
        client.get("/quick").await;
    }
    assert!(copy.count() <= before + 1);
}

#[tokio::test]
async fn filters_are_seen_on_both_sides() {
    let server = backend(fixed(200, "ok")).await;
    let at = free_address();
    let field =
        |name: &'static str, value: &'static str| (name.parse().unwrap(), value.parse().unwrap());
    let own = Filters {
        request_headers: HeaderEdits {
            set: vec![field("x-set", "backend")],
            ..HeaderEdits::default()
        },
        response_headers: HeaderEdits {
            add: vec![field("x-answer", "backend")],
            ..HeaderEdits::default()
        },
        ..Filters::default()
    };
    let rules = Filters {
        request_headers: HeaderEdits {
            set: vec![field("x-set", "rule")],
            add: vec![field("x-add", "rule")],
            remove: vec!["x-remove".parse().unwrap()],
        },
        response_headers: HeaderEdits {
            add: vec![field("x-answer", "rule")],
            remove: vec!["content-type".parse().unwrap()],
            ..HeaderEdits::default()
        },
        rewrite: Some(Rewrite {
            hostname: Some("inner.example".into()),
            path: Some(PathEdit::Prefix {
                matched: "/a".into(),
                replacement: "/b/".into(),
            }),
        }),
        cors: Some(Cors {
            allow_origins: vec![Origin::Exact("https://page.example".into())],
            allow_credentials: false,
            allow_methods: AnyOr::These(vec![Method::GET]),
            allow_headers: AnyOr::Any,
            expose_headers: AnyOr::default(),
            max_age: 5,
        }),
        ..Filters::default()
    };
    let pool = ConnectionPool {
        max_requests: Some(1),
        ..ConnectionPool::default()
    };
    let policy = TrafficPolicy {
        pool,
        ..TrafficPolicy::default()
    };
    let made = |endpoints: &[std::net::SocketAddr]| {
        snapshot(at, &[(1, cluster("a", &policy, endpoints))], |rule| {
            rule.filters = Some(Arc::new(rules.clone()));
            rule.backends[0].filters = Some(Arc::new(own.clone()));
        })
    };
    let proxy = start(1, &made(&[server.address]));
    let mut client = Client::connect(at).await;
    client.send("GET /a/c?q=1 HTTP/1.1\r\nhost: test.example\r\nx-remove: 1\r\nx-add: own\r\norigin: https://page.example\r\n\r\n").await;
    let got = client.next().await.unwrap();
    assert_eq!(
        got.header("access-control-allow-origin"),
        Some("https://page.example")
    );
    let answers: Vec<&str> = got
        .head
        .lines()
        .filter(|l| l.starts_with("x-answer"))
        .collect();
    assert_eq!(answers.len(), 2, "{answers:?}");
    let seen = server.seen.lock().unwrap().pop().unwrap();
    assert_eq!(seen.path(), "/b/c?q=1");
    for (name, value) in [
        ("host", Some("inner.example")),
        ("x-forwarded-host", Some("test.example")),
        ("x-set", Some("backend")),
        ("x-remove", None),
    ] {
        assert_eq!(seen.header(name), value, "{name}");
    }
    assert_eq!(seen.head.matches("x-add: ").count(), 2);
    client.send("OPTIONS /a HTTP/1.1\r\nhost: test.example\r\norigin: https://page.example\r\naccess-control-request-method: GET\r\n\r\n").await;
    let preflight = client.next().await.unwrap();
    assert_eq!(
        (preflight.status, preflight.header("access-control-max-age")),
        (204, Some("5"))
    );
    assert_eq!(server.count(), 0);
    // A page may read why its request failed.
    proxy.publish(&made(&[]));
    for (origin, named) in [
        ("https://page.example", true),
        ("https://evil.example", false),
    ] {
        client
            .send(&format!(
                "GET /a HTTP/1.1\r\nhost: test.example\r\norigin: {origin}\r\n\r\n"
            ))
            .await;
        let failed = client.next().await.unwrap();
        assert_eq!(failed.status, 503);
        assert_eq!(
            failed.header("access-control-allow-origin").is_some(),
            named,
            "{origin}"
        );
    }
    let redirect = snapshot(at, &[(1, cluster("a", &policy, &[]))], |rule| {
        rule.filters = Some(Arc::new(Filters {
            redirect: Some(Redirect {
                scheme: Some(gateway_user::snapshot::Scheme::Https),
                hostname: None,
                path: None,
                port: None,
                status: 308,
            }),
            ..Filters::default()
        }));
    });
    proxy.publish(&redirect);
    let sent = client.get("/x?y=z").await;
    assert_eq!(
        (sent.status, sent.header("location")),
        (308, Some("https://test.example/x?y=z"))
    );
    let mut two = super::frames::Raw::connect(at).await;
    two.send(&super::frames::get_frame(1, "/x")).await;
    assert_eq!(two.outcome(1).await, super::frames::Outcome::Status(308));
}

#[tokio::test]
async fn who_cannot_be_connected_to_is_told_and_not_tried_again() {
    let live = backend(fixed(200, "ok")).await;
    let dead = free_address();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("access.log");
    let hosts = |wanted: usize| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let all = lines.iter().map(|line| {
            let word = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            (word("response_flags"), word("upstream_host"))
        });
        let all: Vec<_> = all.collect();
        (all.len() >= wanted).then_some(all)
    };
    let policy = TrafficPolicy {
        balancer: Balancer::Random,
        ..TrafficPolicy::default()
    };
    let mut written = 0;
    for (endpoints, rule, want) in [
        (&[dead][..], None, ("UF", dead)),
        (&[dead], retry(&[503], 1, 0), ("UF", dead)),
        // At random: the same one would be picked for every other retry.
        (&[dead, live.address], None, ("-", live.address)),
        (
            &[dead, live.address],
            retry(&[503], 1, 0),
            ("-", live.address),
        ),
    ] {
        let at = free_address();
        let settings = ProxySettings {
            access_log: gateway_user::proxy::access_log::Destination::File(log.clone()),
            ..ProxySettings::default()
        };
        let made = snapshot(at, &[(1, cluster("a", &policy, endpoints))], |r| {
            r.retry.clone_from(&rule);
        });
        let proxy = start_with(settings, &made);
        for _ in 0..40 {
            let status = if want.0 == "UF" { 503 } else { 200 };
            assert_eq!(get(at, "/").await.status, status, "{rule:?}");
        }
        proxy.shutdown(Instant::now() + BOUND);
        let all = hosts(written + 40).unwrap();
        let want = (want.0.to_owned(), want.1.to_string());
        assert_eq!(all[written..], vec![want; 40], "{rule:?}");
        written = all.len();
    }
}
