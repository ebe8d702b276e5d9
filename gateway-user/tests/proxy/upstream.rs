//! Responses that a gateway must not pass on: the client gets a 502, the connection is never used again, and the next
//! request gets its own answer over another one.

use std::sync::atomic::Ordering::SeqCst;

use gateway_user::snapshot::TrafficPolicy;
use tokio::io::AsyncReadExt;

use crate::support::*;

const OK: &str = "HTTP/1.1 200 OK\r\n";

/// A proxy in front of a backend that answers `/bad` with these bytes and everything else with `good`.
async fn served(
    bad: &str,
) -> (
    BackendServer,
    gateway_user::proxy::Proxy,
    std::net::SocketAddr,
) {
    let bad = bad.as_bytes().to_vec();
    let server = backend(script(move |seen| {
        let bad = bad.clone();
        async move {
            if seen.path() == "/bad" {
                bad
            } else {
                answer(200, "good")
            }
        }
    }))
    .await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    (server, proxy, at)
}

async fn refused(name: &str, response: &str) {
    let (server, proxy, at) = served(response).await;
    let mut client = Client::connect(at).await;
    let answer = client.get("/bad").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (502, "upstream protocol error\n"),
        "{name}"
    );
    until(|| server.open.load(SeqCst) == 0).await;
    until(|| proxy.endpoints()[0].in_use.connections == 0).await;
    assert_eq!(client.get("/next").await.body, "good", "{name}");
    assert_eq!(server.connections.load(SeqCst), 2, "{name}");
    assert!(proxy.stats().read().flags.contains(&("UPE", 1)), "{name}");
}

#[tokio::test]
#[expect(
    clippy::too_many_lines,
    reason = "a table is read whole, and its length is no complexity"
)]
async fn what_may_not_be_passed_on_is_a_502() {
    let huge = format!(
        "{OK}x: {}\r\ncontent-length: 0\r\n\r\n",
        "y".repeat(65 * 1024)
    );
    let framing = "content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let rows = [
        ("both framings", &*format!("{OK}{framing}")),
        (
            "both framings, nothing in the body",
            &*format!("{OK}transfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n"),
        ),
        (
            "two lengths",
            &*format!("{OK}content-length: 2\r\ncontent-length: 2\r\n\r\nok"),
        ),
        (
            "two lengths that differ",
            &*format!("{OK}content-length: 2\r\ncontent-length: 3\r\n\r\nok!"),
        ),
        (
            "a list of lengths",
            &*format!("{OK}content-length: 2, 2\r\n\r\nok"),
        ),
        (
            "a negative length",
            &*format!("{OK}content-length: -2\r\n\r\nok"),
        ),
        (
            "a length with a sign",
            &*format!("{OK}content-length: +2\r\n\r\nok"),
        ),
        (
            "an unknown coding",
            &*format!("{OK}transfer-encoding: gzip\r\n\r\nok"),
        ),
        (
            "two codings",
            &*format!("{OK}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "chunked twice",
            &*format!(
                "{OK}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "chunked in HTTP/1.0",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "an upgrade that nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        ),
        (
            "a status above 599",
            "HTTP/1.1 600 X\r\ncontent-length: 0\r\n\r\n",
        ),
        (
            "a status of four digits",
            "HTTP/1.1 2000 X\r\ncontent-length: 0\r\n\r\n",
        ),
        (
            "a status below 100",
            "HTTP/1.1 099 X\r\ncontent-length: 0\r\n\r\n",
        ),
        ("another version", "HTTP/2.0 200 OK\r\n\r\n"),
        ("no HTTP at all", "SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        (
            "a folded line",
            &*format!("{OK}x: y\r\n z\r\ncontent-length: 0\r\n\r\n"),
        ),
        (
            "a space before the colon",
            &*format!("{OK}x : y\r\ncontent-length: 0\r\n\r\n"),
        ),
        (
            "a NUL",
            &*format!("{OK}x: a\0b\r\ncontent-length: 0\r\n\r\n"),
        ),
        (
            "a bare CR",
            &*format!("{OK}x: a\rb\r\ncontent-length: 0\r\n\r\n"),
        ),
        ("a head of more than 64 KiB", &*huge),
        (
            "a size of the first chunk that is none",
            &*format!("{OK}transfer-encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n"),
        ),
        (
            "a size of the first chunk that is too large",
            &*format!("{OK}transfer-encoding: chunked\r\n\r\n10000000000000002\r\nok\r\n0\r\n\r\n"),
        ),
        (
            "a bare LF after the size of the first chunk",
            &*format!("{OK}transfer-encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n"),
        ),
    ];
    for (name, response) in rows {
        refused(name, response).await;
    }
}

#[tokio::test]
async fn bytes_after_a_response_answer_nobody() {
    let smuggled = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    for response in [
        format!("{OK}content-length: 2\r\n\r\nok{smuggled}"),
        format!("{OK}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{smuggled}"),
        format!("HTTP/1.1 204 No Content\r\n\r\n{smuggled}"),
        format!("{OK}content-length: 2\r\n\r\nok\r\n"),
    ] {
        let (server, proxy, at) = served(&response).await;
        let mut client = Client::connect(at).await;
        assert!(matches!(client.get("/bad").await.status, 200 | 204));
        until(|| server.open.load(SeqCst) == 0).await;
        until(|| proxy.endpoints()[0].in_use.connections == 0).await;
        assert_eq!(client.get("/next").await.body, "good", "{response}");
        assert_eq!(server.connections.load(SeqCst), 2, "{response}");
    }
}

#[tokio::test]
async fn a_response_whose_chunks_break_never_looks_complete() {
    for bad in ["zz\r\nmore", "2\r\nokXX", "-1\r\n", "2 2\r\nok"] {
        let response = format!("{OK}transfer-encoding: chunked\r\n\r\n4\r\npart\r\n{bad}\r\n\r\n");
        let (server, proxy, at) = served(&response).await;
        let mut client = Client::connect(at).await;
        client.send(&request("/bad")).await;
        let mut bytes = Vec::new();
        let read = client.stream.read_to_end(&mut bytes);
        // The end or a reset: either way without the last chunk.
        let _ended = tokio::time::timeout(BOUND, read).await.expect("it closes");
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("\r\n0\r\n"), "{bad:?}: {text}");
        until(|| server.open.load(SeqCst) == 0).await;
        until(|| proxy.endpoints()[0].in_use.connections == 0).await;
        assert_eq!(get(at, "/next").await.body, "good", "{bad:?}");
        assert_eq!(server.connections.load(SeqCst), 2, "{bad:?}");
        let flags = proxy.stats().read().flags;
        assert!(flags.contains(&("UPE", 1)), "{bad:?}: {flags:?}");
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_upload_ends_the_connection() {
    // Its backend answers as soon as the head is there.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                    stream.read_buf(&mut head).await.unwrap();
                }
                let too_large = answer(413, "too large");
                tokio::io::AsyncWriteExt::write_all(&mut stream, &too_large)
                    .await
                    .unwrap();
                let mut rest = Vec::new();
                // Until the proxy closes.
                let _ended = stream.read_to_end(&mut rest).await;
            });
        }
    });
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\nexpect: 100-continue\r\ncontent-length: 1000000\r\n\r\nGET /smuggled HTTP/1.1\r\n")
        .await;
    let mut refused = client.next().await.unwrap();
    if refused.status == 100 {
        refused = client.next().await.unwrap();
    }
    assert_eq!(refused.status, 413);
    assert!(
        client.closed().await,
        "what follows could be read as a request"
    );
    until(|| proxy.endpoints()[0].in_use.connections == 0).await;
}
