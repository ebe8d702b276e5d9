//! What the proxy answers by itself, and what it makes of endpoints that fail.

use std::time::Duration;

use gateway_user::snapshot::{BackendTarget, TrafficPolicy};

use crate::support::*;

fn flagged(proxy: &gateway_user::proxy::Proxy, flag: &str) -> u64 {
    let reading = proxy.stats().read();
    reading.flags.iter().find(|(f, _)| *f == flag).unwrap().1
}

#[tokio::test]
async fn unknown_hosts_are_404_and_bad_backends_500() {
    let at = free_address();
    let rule = |rule: &mut gateway_user::snapshot::Rule| {
        rule.backends[0].target = BackendTarget::Invalid("no such Service".into());
    };
    let live = cluster("a", &TrafficPolicy::default(), &[]);
    let proxy = start(1, &snapshot(at, &[(1, live)], rule));
    let mut client = Client::connect(at).await;
    client
        .send("GET / HTTP/1.1\r\nhost: other.example\r\n\r\n")
        .await;
    let answer = client.next().await.unwrap();
    assert_eq!(
        (answer.status, answer.header("server")),
        (404, Some("forebay"))
    );
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    assert_eq!(client.get("/").await.status, 500);
    client
        .send("HEAD / HTTP/1.1\r\nhost: TEST.example:80\r\n\r\n")
        .await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        tokio::io::AsyncReadExt::read_buf(&mut client.stream, &mut head)
            .await
            .unwrap();
    }
    assert!(
        head.starts_with(b"HTTP/1.1 500 "),
        "no body follows the head"
    );
    assert_eq!((flagged(&proxy, "NR"), flagged(&proxy, "NC")), (1, 2));
}

#[tokio::test]
async fn no_endpoints_is_503() {
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    assert_eq!(get(at, "/").await.status, 503);
    assert_eq!(flagged(&proxy, "UH"), 1);
}

#[tokio::test]
async fn a_refused_connect_is_tried_once_more_elsewhere() {
    let server = backend(fixed(200, "ok")).await;
    let dead = free_address();
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[dead, server.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    for _ in 0..10 {
        assert_eq!(get(at, "/").await.status, 200);
    }
    assert_eq!(flagged(&proxy, "UF"), 0);
    let only = cluster("a", &TrafficPolicy::default(), &[dead]);
    proxy.publish(&snapshot(at, &[(1, only)], |_| {}));
    let answer = get(at, "/").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (503, "upstream connect failure\n")
    );
    assert_eq!(flagged(&proxy, "UF"), 1);
    assert_eq!(proxy.endpoints()[0].in_use.connections, 0);
}

#[tokio::test]
async fn a_closed_or_garbled_response_is_told() {
    let at = free_address();
    let closes = backend(script(|_| async { Vec::new() })).await;
    let live = cluster("a", &TrafficPolicy::default(), &[closes.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    assert_eq!(get(at, "/").await.status, 503);
    assert_eq!(
        closes.count(),
        1,
        "a request that was sent is not sent again"
    );
    let splits = backend(script(|_| async {
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
            .to_vec()
    }))
    .await;
    let live = cluster("s", &TrafficPolicy::default(), &[splits.address]);
    proxy.publish(&snapshot(at, &[(1, live)], |_| {}));
    assert_eq!(get(at, "/").await.status, 502);
    let garbles = backend(script(|_| async { b"NOT HTTP\r\n\r\n".to_vec() })).await;
    let live = cluster("b", &TrafficPolicy::default(), &[garbles.address]);
    proxy.publish(&snapshot(at, &[(1, live)], |_| {}));
    assert_eq!(get(at, "/").await.status, 502);
    assert_eq!((flagged(&proxy, "UC"), flagged(&proxy, "UPE")), (1, 2));
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_passed_off_as_whole() {
    let at = free_address();
    let breaks = backend(script(|seen| async move {
        if seen.path() == "/" {
            b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\nconnection: close\r\n\r\npart".to_vec()
        } else {
            Vec::new()
        }
    }))
    .await;
    let live = cluster("a", &TrafficPolicy::default(), &[breaks.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    client.send(&request("/")).await;
    // The backend waits for more requests; its end comes with the second one on that connection, or never: close it.
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"part") {
        tokio::io::AsyncReadExt::read_buf(&mut client.stream, &mut bytes)
            .await
            .unwrap();
    }
    drop(client);
    until(|| proxy.endpoints()[0].in_use.connections == 0).await;
    assert_eq!(flagged(&proxy, "DC"), 1);
}

#[tokio::test]
async fn timeouts_are_504_and_free_the_endpoint() {
    let at = free_address();
    let hangs = backend(script(|_| std::future::pending())).await;
    let live = cluster("a", &TrafficPolicy::default(), &[hangs.address]);
    let limit = Some(Duration::from_millis(50));
    let proxy = start(
        1,
        &snapshot(at, &[(1, live)], |r| r.request_timeout = limit),
    );
    let answer = get(at, "/").await;
    assert_eq!(answer.status, 504);
    assert_eq!(flagged(&proxy, "UT"), 1);
    until(|| hangs.open.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
    until(|| proxy.endpoints()[0].in_use.requests == 0).await;
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_upstream() {
    let at = free_address();
    let hangs = backend(script(|_| std::future::pending())).await;
    let live = cluster("a", &TrafficPolicy::default(), &[hangs.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    client.send(&request("/")).await;
    until(|| hangs.count() == 1).await;
    drop(client);
    until(|| hangs.open.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
    until(|| proxy.open_connections() == 0).await;
    until(|| {
        let used = proxy.endpoints()[0].in_use;
        (used.connections, used.requests) == (0, 0)
    })
    .await;
    assert_eq!(flagged(&proxy, "DC"), 1);
}

#[tokio::test]
async fn a_client_that_breaks_off_its_body_is_no_fault_of_the_endpoint() {
    let server = backend(fixed(200, "ok")).await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    for framing in ["content-length: 10", "transfer-encoding: chunked"] {
        let mut client = Client::connect(at).await;
        client
            .send(&format!(
                "POST / HTTP/1.1\r\nhost: test.example\r\n{framing}\r\n\r\n5\r\n"
            ))
            .await;
        until(|| proxy.endpoints()[0].in_use.requests == 1).await;
        drop(client);
        until(|| proxy.open_connections() == 0).await;
        until(|| proxy.endpoints()[0].in_use.requests == 0).await;
    }
    assert_eq!((flagged(&proxy, "DC"), flagged(&proxy, "DPE")), (2, 0));
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn a_stale_pooled_connection_costs_no_request() {
    let at = free_address();
    let closes = backend(script(|_| async {
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok".to_vec()
    }))
    .await;
    let live = cluster("a", &TrafficPolicy::default(), &[closes.address]);
    let _proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    for _ in 0..20 {
        assert_eq!(get(at, "/").await.status, 200);
    }
}
