//! Requests there and back: framing, streaming, pipelining, keep-alive.

use std::sync::atomic::Ordering::SeqCst;

use gateway_user::snapshot::TrafficPolicy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

#[tokio::test]
async fn a_request_goes_through_and_keeps_its_connections() {
    let server = backend(fixed(200, "hello")).await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    for _ in 0..3 {
        let answer = client.get("/x?y=1").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
        assert_eq!(answer.header("via"), Some("1.1 forebay"));
    }
    assert_eq!(server.connections.load(SeqCst), 1);
    assert_eq!(server.count(), 3);
    let seen = server.seen.lock().unwrap()[0].clone();
    assert_eq!(seen.path(), "/x?y=1");
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("via"), Some("1.1 forebay"));
    assert_eq!(proxy.open_connections(), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = backend(script(|seen| async move { answer(200, seen.path()) })).await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let _proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    let all: String = ["/1", "/2", "/3"].map(request).concat();
    client.send(&all).await;
    for path in ["/1", "/2", "/3"] {
        assert_eq!(client.next().await.unwrap().body, path);
    }
}

#[tokio::test]
async fn bodies_are_framed_anew_and_kept_whole() {
    let server = backend(script(|seen| async move {
        let body = format!("{} bytes", seen.body.len());
        format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        )
        .into_bytes()
    }))
    .await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let _proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    client
        .send("POST /c HTTP/1.1\r\nhost: test.example\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        .await;
    assert_eq!(client.next().await.unwrap().body, "5 bytes");
    client
        .send("POST /l HTTP/1.1\r\nhost: test.example\r\ncontent-length: 4\r\n\r\nabcd")
        .await;
    let answer = client.next().await.unwrap();
    assert_eq!(
        (answer.body.as_str(), answer.header("x-hop")),
        ("4 bytes", None)
    );
    client
        .send("POST /e HTTP/1.1\r\nhost: test.example\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.next().await.unwrap().body, "0 bytes");
    let seen = server.seen.lock().unwrap();
    let framing = |i: usize| {
        let seen = &seen[i];
        (
            seen.header("content-length"),
            seen.header("transfer-encoding"),
        )
    };
    assert_eq!(framing(0), (None, Some("chunked")));
    assert_eq!(framing(1), (Some("4"), None));
    assert_eq!(framing(2), (Some("0"), None));
    assert_eq!(
        server.connections.load(SeqCst),
        1,
        "kept after each of them"
    );
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let server = backend(script(|_| async {
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n1\r\na\r\n0\r\nx-sum: 7\r\n\r\n".to_vec()
    }))
    .await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    for _ in 0..3 {
        client
            .send("GET / HTTP/1.1\r\nhost: test.example\r\nte: trailers\r\nconnection: te\r\n\r\n")
            .await;
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"x-sum: 7\r\n\r\n") {
            let read = tokio::time::timeout(BOUND, client.stream.read_buf(&mut bytes)).await;
            assert!(
                read.unwrap().unwrap() > 0,
                "{}",
                String::from_utf8_lossy(&bytes)
            );
        }
    }
    for seen in &*server.seen.lock().unwrap() {
        // RFC 9110, 10.1.4: whoever sends TE names it in Connection.
        let fields = (seen.header("te"), seen.header("connection"));
        assert_eq!(fields, (Some("trailers"), Some("TE")));
    }
    assert_eq!(
        server.connections.load(SeqCst),
        1,
        "kept after each of them"
    );
    assert!(proxy.stats().read().flags.contains(&("DC", 0)));
}

#[tokio::test]
async fn methods_that_rarely_have_a_body_keep_theirs() {
    let server = backend(script(|seen| async move {
        answer(200, std::str::from_utf8(&seen.body).unwrap())
    }))
    .await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let _proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    for method in ["GET", "DELETE", "OPTIONS", "POST"] {
        for (framing, body) in [
            ("transfer-encoding: chunked", "3\r\nabc\r\n0\r\n\r\n"),
            ("content-length: 3", "abc"),
        ] {
            client
                .send(&format!(
                    "{method} / HTTP/1.1\r\nhost: test.example\r\n{framing}\r\n\r\n{body}"
                ))
                .await;
            let answer = client.next().await.unwrap();
            assert_eq!(answer.body, "abc", "{method} with {framing}");
        }
    }
}

#[tokio::test]
async fn absolute_targets_route_by_their_authority() {
    let server = backend(fixed(200, "ok")).await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let _proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    client
        .send("GET http://test.example/p?q HTTP/1.1\r\nhost: test.example\r\n\r\n")
        .await;
    assert_eq!(client.next().await.unwrap().status, 200);
    let seen = server.seen.lock().unwrap()[0].clone();
    assert_eq!(
        (seen.path(), seen.header("host")),
        ("/p?q", Some("test.example"))
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_endpoint() {
    const TOTAL: usize = 64 << 20;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&written);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = Vec::new();
        read_message(&mut stream, &mut buffer).await.unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {TOTAL}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let chunk = vec![b'x'; 64 << 10];
        for _ in 0..TOTAL / chunk.len() {
            stream.write_all(&chunk).await.unwrap();
            count.fetch_add(chunk.len(), SeqCst);
        }
    });
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[address]);
    let _proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    client.send(&request("/")).await;
    // It comes to a halt once the sockets' buffers are full, long before the end.
    let mut last = usize::MAX;
    let mut still = 0;
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(20));
    while still < 5 {
        tick.tick().await;
        let now = written.load(SeqCst);
        still = if now == last && now > 0 { still + 1 } else { 0 };
        last = now;
    }
    assert!(
        last < TOTAL / 2,
        "{last} bytes were taken from the endpoint"
    );
    let mut got = 0;
    let mut buffer = vec![0; 1 << 20];
    while got < TOTAL {
        let read = tokio::time::timeout(BOUND, client.stream.read(&mut buffer)).await;
        let n = read.unwrap().unwrap();
        assert!(n > 0);
        got += n;
    }
}

#[tokio::test]
async fn an_early_answer_ends_the_upload() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ended = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; 4096];
        assert!(stream.read(&mut bytes).await.unwrap() > 0);
        stream.write_all(&answer(403, "no")).await.unwrap();
        while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
    });
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\ncontent-length: 1000000\r\n\r\nsome")
        .await;
    assert_eq!(client.next().await.unwrap().status, 403);
    tokio::time::timeout(BOUND, ended).await.unwrap().unwrap();
    until(|| proxy.endpoints()[0].in_use.connections == 0).await;
    assert!(client.closed().await);
}
