//! The rules of RFC 9113 and RFC 7541 that a server has to hold its clients to, in the order of the sections (the list is
//! that of h2spec): what breaks one ends in an error of its stream or connection, and no endpoint sees it.

use std::net::SocketAddr;
use std::time::Duration;

use gateway_user::proxy::Proxy;
use gateway_user::snapshot::TrafficPolicy;

use super::frames::*;
use crate::support::*;

async fn served() -> (BackendServer, Proxy, SocketAddr) {
    let server = backend(fixed(200, "ok")).await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    (server, proxy, at)
}

/// The first error that the proxy answers with; `None` if the connection goes on without any.
async fn error(raw: &mut Raw<tokio::net::TcpStream>) -> Option<Outcome> {
    loop {
        let next = tokio::time::timeout(Duration::from_millis(500), raw.next()).await;
        let Ok(next) = next else { return None };
        let Some(next) = next else {
            return Some(Outcome::Closed);
        };
        let code = |at: usize| u32::from_be_bytes(next.payload[at..at + 4].try_into().unwrap());
        let outcome = match next.kind {
            HEADERS if next.payload[0] & 0xe0 == 0x20 || next.payload[0] < 0xc0 => {
                Outcome::Status(next.status())
            }
            RST_STREAM => Outcome::Reset(code(0)),
            GOAWAY => Outcome::GoAway(code(4)),
            _ => continue,
        };
        if outcome.refuses() {
            return Some(outcome);
        }
    }
}

fn get(fields: &[(&str, &str)]) -> Vec<u8> {
    let fields: Vec<_> = fields
        .iter()
        .map(|(n, v)| (n.as_bytes(), v.as_bytes()))
        .collect();
    frame(HEADERS, WHOLE, 1, &block(&fields))
}

fn post(more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, &request_block("POST", "/", more))
}

fn settings(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat();
    frame(SETTINGS, 0, 0, &payload)
}

fn whole() -> Vec<u8> {
    get_frame(1, "/")
}

const M: (&str, &str) = (":method", "GET");
const S: (&str, &str) = (":scheme", "http");
const P: (&str, &str) = (":path", "/");
const A: (&str, &str) = (":authority", "test.example");

/// Name, frames after the handshake, and how many requests an endpoint may have seen.
#[expect(
    clippy::too_many_lines,
    reason = "a table is read whole, and its length is no complexity"
)]
fn broken() -> Vec<(&'static str, Vec<u8>, usize)> {
    let big = vec![0; 16_385];
    let head = request_block("GET", "/", &[]);
    let (front, back) = head.split_at(10);
    let open = frame(HEADERS, END_STREAM, 1, front);
    let rst = |stream: u32| frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    let window = |stream: u32, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let weight = |on: u32| [&on.to_be_bytes()[..], &[15]].concat();
    vec![
        (
            "4.2 DATA above the largest frame",
            [post(&[]), frame(DATA, 0, 1, &big)].concat(),
            1,
        ),
        (
            "4.2 HEADERS above the largest frame",
            frame(HEADERS, WHOLE, 1, &big),
            0,
        ),
        (
            "4.3 a block that does not decode",
            frame(HEADERS, WHOLE, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            0,
        ),
        (
            "4.3 PRIORITY inside a header block",
            [open.clone(), frame(PRIORITY, 0, 1, &weight(0))].concat(),
            0,
        ),
        (
            "4.3 HEADERS of another stream inside a header block",
            [open.clone(), get_frame(3, "/")].concat(),
            0,
        ),
        (
            "5.1 DATA on an idle stream",
            frame(DATA, END_STREAM, 1, b"x"),
            0,
        ),
        ("5.1 RST_STREAM on an idle stream", rst(1), 0),
        ("5.1 WINDOW_UPDATE on an idle stream", window(1, 1), 0),
        (
            "5.1 CONTINUATION on an idle stream",
            frame(CONTINUATION, END_HEADERS, 1, &head),
            0,
        ),
        (
            "5.1 DATA after END_STREAM",
            [whole(), frame(DATA, END_STREAM, 1, b"x")].concat(),
            1,
        ),
        (
            "5.1 HEADERS after END_STREAM",
            [whole(), whole()].concat(),
            1,
        ),
        (
            "5.1 CONTINUATION after END_STREAM",
            [whole(), frame(CONTINUATION, END_HEADERS, 1, &head)].concat(),
            1,
        ),
        (
            "5.1 DATA after RST_STREAM",
            [post(&[]), rst(1), frame(DATA, END_STREAM, 1, b"x")].concat(),
            1,
        ),
        (
            "5.1 HEADERS after RST_STREAM",
            [post(&[]), rst(1), whole()].concat(),
            1,
        ),
        ("5.1.1 an even stream", get_frame(2, "/"), 0),
        (
            "5.1.1 a stream below the last",
            [get_frame(5, "/"), get_frame(3, "/")].concat(),
            1,
        ),
        (
            "5.3.1 HEADERS that depend on themselves",
            frame(
                HEADERS,
                WHOLE | WITH_PRIORITY,
                1,
                &[weight(1), head.clone()].concat(),
            ),
            0,
        ),
        (
            "5.3.1 PRIORITY that depends on itself",
            frame(PRIORITY, 0, 1, &weight(1)),
            0,
        ),
        ("6.1 DATA on stream 0", frame(DATA, 0, 0, b"x"), 0),
        (
            "6.1 padding longer than DATA",
            [post(&[]), frame(DATA, PADDED | END_STREAM, 1, &[9, b'x'])].concat(),
            1,
        ),
        ("6.2 HEADERS on stream 0", get_frame(0, "/"), 0),
        (
            "6.2 padding longer than HEADERS",
            frame(
                HEADERS,
                WHOLE | PADDED,
                1,
                &[&[255][..], &head[..20]].concat(),
            ),
            0,
        ),
        (
            "6.3 PRIORITY on stream 0",
            frame(PRIORITY, 0, 0, &weight(1)),
            0,
        ),
        (
            "6.3 PRIORITY of four bytes",
            [post(&[]), frame(PRIORITY, 0, 1, &[0, 0, 0, 0])].concat(),
            1,
        ),
        ("6.4 RST_STREAM on stream 0", rst(0), 0),
        (
            "6.4 RST_STREAM of three bytes",
            [post(&[]), frame(RST_STREAM, 0, 1, &[0, 0, 0])].concat(),
            1,
        ),
        (
            "6.5 SETTINGS ACK with a payload",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            0,
        ),
        ("6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), 0),
        (
            "6.5 SETTINGS of five bytes",
            frame(SETTINGS, 0, 0, &[0; 5]),
            0,
        ),
        ("6.5.2 ENABLE_PUSH of 2", settings(2, 2), 0),
        (
            "6.5.2 INITIAL_WINDOW_SIZE above 2^31-1",
            settings(4, 1 << 31),
            0,
        ),
        ("6.5.2 MAX_FRAME_SIZE below 2^14", settings(5, 16_383), 0),
        ("6.5.2 MAX_FRAME_SIZE above 2^24-1", settings(5, 1 << 24), 0),
        (
            "6.6 PUSH_PROMISE of a client",
            [
                post(&[]),
                frame(
                    PUSH_PROMISE,
                    END_HEADERS,
                    1,
                    &[&[0, 0, 0, 2][..], &head].concat(),
                ),
            ]
            .concat(),
            1,
        ),
        ("6.7 PING on a stream", frame(PING, 0, 1, &[0; 8]), 0),
        ("6.7 PING of seven bytes", frame(PING, 0, 0, &[0; 7]), 0),
        ("6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), 0),
        ("6.9 WINDOW_UPDATE by 0 of the connection", window(0, 0), 0),
        (
            "6.9 WINDOW_UPDATE by 0 of a stream",
            [post(&[]), window(1, 0)].concat(),
            1,
        ),
        (
            "6.9 WINDOW_UPDATE of three bytes",
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1]),
            0,
        ),
        (
            "6.9.1 a window of the connection above 2^31-1",
            [window(0, 0x7fff_ffff), window(0, 0x7fff_ffff)].concat(),
            0,
        ),
        (
            "6.9.1 a window of a stream above 2^31-1",
            [post(&[]), window(1, 0x7fff_ffff), window(1, 0x7fff_ffff)].concat(),
            1,
        ),
        (
            "6.10 CONTINUATION after END_HEADERS",
            [whole(), frame(CONTINUATION, END_HEADERS, 1, &head)].concat(),
            1,
        ),
        (
            "6.10 CONTINUATION of stream 0",
            [open.clone(), frame(CONTINUATION, END_HEADERS, 0, back)].concat(),
            0,
        ),
        (
            "6.10 CONTINUATION of another stream",
            [open.clone(), frame(CONTINUATION, END_HEADERS, 3, back)].concat(),
            0,
        ),
        (
            "6.10 DATA inside a header block",
            [open, frame(DATA, 0, 1, b"x")].concat(),
            0,
        ),
        (
            "8.1 second HEADERS without END_STREAM",
            [
                post(&[]),
                frame(HEADERS, END_HEADERS, 1, &literal(b"x", b"y")),
            ]
            .concat(),
            1,
        ),
        (
            "8.2 a name in upper case",
            get(&[M, S, P, A, ("X-Test", "a")]),
            0,
        ),
        (
            "8.2.2 connection",
            get(&[M, S, P, A, ("connection", "keep-alive")]),
            0,
        ),
        (
            "8.2.2 keep-alive",
            get(&[M, S, P, A, ("keep-alive", "1")]),
            0,
        ),
        (
            "8.2.2 proxy-connection",
            get(&[M, S, P, A, ("proxy-connection", "close")]),
            0,
        ),
        (
            "8.2.2 transfer-encoding",
            get(&[M, S, P, A, ("transfer-encoding", "chunked")]),
            0,
        ),
        ("8.2.2 upgrade", get(&[M, S, P, A, ("upgrade", "h2c")]), 0),
        (
            "8.2.2 TE other than trailers",
            get(&[M, S, P, A, ("te", "trailers, deflate")]),
            0,
        ),
        (
            "8.3 an unknown pseudo-header",
            get(&[M, S, P, A, (":test", "x")]),
            0,
        ),
        (
            "8.3 a pseudo-header of responses",
            get(&[M, S, P, A, (":status", "200")]),
            0,
        ),
        (
            "8.3 a pseudo-header after a field",
            get(&[M, S, A, ("x", "y"), P]),
            0,
        ),
        ("8.3.1 no method", get(&[S, P, A]), 0),
        ("8.3.1 no scheme", get(&[M, P, A]), 0),
        ("8.3.1 no path", get(&[M, S, A]), 0),
        ("8.3.1 an empty path", get(&[M, S, A, (":path", "")]), 0),
        ("8.3.1 two methods", get(&[M, M, S, P, A]), 0),
        ("8.3.1 two schemes", get(&[M, S, S, P, A]), 0),
        ("8.3.1 two paths", get(&[M, S, P, P, A]), 0),
        ("8.3.1 two authorities", get(&[M, S, P, A, A]), 0),
        (
            "8.1.1 a body longer than Content-Length",
            [
                post(&[("content-length", "1")]),
                frame(DATA, END_STREAM, 1, b"xy"),
            ]
            .concat(),
            1,
        ),
        (
            "8.1.1 a body shorter than Content-Length",
            [
                post(&[("content-length", "3")]),
                frame(DATA, END_STREAM, 1, b"xy"),
            ]
            .concat(),
            1,
        ),
        (
            "8.1.1 several DATA longer than Content-Length",
            [
                post(&[("content-length", "3")]),
                frame(DATA, 0, 1, b"xy"),
                frame(DATA, END_STREAM, 1, b"xy"),
            ]
            .concat(),
            1,
        ),
        (
            "8.1.1 Content-Length without a body",
            get(&[M, S, P, A, ("content-length", "3")]),
            0,
        ),
        (
            "RFC 7541, 2.3.3 an index that is none",
            frame(HEADERS, WHOLE, 1, &[0x82, 0x87, 0xff, 0x80, 0x01]),
            0,
        ),
        (
            "RFC 7541, 6.1 the index 0",
            frame(HEADERS, WHOLE, 1, &[0x80]),
            0,
        ),
        (
            "RFC 7541, 4.2 a size update after a field",
            frame(HEADERS, WHOLE, 1, &[&head[..], &[0x20]].concat()),
            0,
        ),
        (
            "RFC 7541, 6.3 a table above what was announced",
            frame(
                HEADERS,
                WHOLE,
                1,
                &[&[0x3f, 0xe2, 0x1f][..], &head].concat(),
            ),
            0,
        ),
        (
            "RFC 7541, 5.2 padding of Huffman codes longer than seven bits",
            frame(
                HEADERS,
                WHOLE,
                1,
                &[&head[..], &[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]].concat(),
            ),
            0,
        ),
        (
            "RFC 7541, 5.1 an integer without end",
            frame(HEADERS, WHOLE, 1, &[&[0x7f][..], &[0xff; 20]].concat()),
            0,
        ),
    ]
}

#[tokio::test]
async fn a_broken_rule_is_an_error_and_goes_no_further() {
    let (server, proxy, at) = served().await;
    let mut wrong = Vec::new();
    for (name, bytes, most) in broken() {
        let before = server.count();
        let mut raw = Raw::connect(at).await;
        raw.send(&bytes).await;
        let outcome = error(&mut raw).await;
        if outcome.is_none() {
            wrong.push(format!("{name}: no error"));
        }
        drop(raw);
        let seen = server.count() - before;
        if seen > most {
            wrong.push(format!("{name}: {seen} requests forwarded, {outcome:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let bodies: Vec<_> = server
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|s| s.body.len())
        .collect();
    assert!(
        bodies.iter().all(|length| *length == 0),
        "no part of a broken body"
    );
    let mut honest = Raw::connect(at).await;
    honest.send(&whole()).await;
    assert_eq!(honest.outcome(1).await, Outcome::Status(200));
    drop(honest);
    until(|| proxy.stats().open_connections() == 0).await;
    until(|| proxy.endpoints()[0].in_use.requests == 0).await;
    assert_eq!(proxy.endpoints()[0].endpoints[0].active, 0);
}

#[tokio::test]
async fn what_the_rules_allow_is_served() {
    let (server, proxy, at) = served().await;
    let head = request_block("GET", "/", &[]);
    let (front, back) = head.split_at(10);
    let (middle, end) = back.split_at(5);
    let allowed = [
        (
            "4.1 a frame of unknown type",
            [frame(0xfa, 0xff, 0, b"xxxx"), get_frame(1, "/")].concat(),
        ),
        (
            "4.1 unknown flags and the reserved bit",
            frame(HEADERS, WHOLE | 0xc2, 0x8000_0001, &head),
        ),
        (
            "5.3 PRIORITY of an idle stream",
            [frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1]), get_frame(1, "/")].concat(),
        ),
        (
            "6.2 HEADERS with a priority",
            frame(
                HEADERS,
                WHOLE | WITH_PRIORITY,
                1,
                &[&[0, 0, 0, 0, 15][..], &head].concat(),
            ),
        ),
        (
            "6.2 HEADERS with padding",
            frame(
                HEADERS,
                WHOLE | PADDED,
                1,
                &[&[3][..], &head, &[0; 3]].concat(),
            ),
        ),
        (
            "6.5 unknown settings",
            [settings(0x99, 7), get_frame(1, "/")].concat(),
        ),
        (
            "6.10 a block in three pieces",
            [
                frame(HEADERS, END_STREAM, 1, front),
                frame(CONTINUATION, 0, 1, middle),
                frame(CONTINUATION, END_HEADERS, 1, end),
            ]
            .concat(),
        ),
        (
            "7 unknown error codes",
            [
                frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0xff]),
                get_frame(1, "/"),
            ]
            .concat(),
        ),
        (
            "8.1 DATA with padding",
            [
                post(&[]),
                frame(DATA, PADDED | END_STREAM, 1, &[2, b'x', 0, 0]),
            ]
            .concat(),
        ),
        (
            "8.1 trailers",
            [
                post(&[]),
                frame(DATA, 0, 1, b"xy"),
                frame(HEADERS, WHOLE, 1, &literal(b"x-t", b"1")),
            ]
            .concat(),
        ),
        (
            "8.3.1 Host instead of an authority",
            get(&[M, S, P, ("host", "test.example")]),
        ),
        (
            "8.3.1 Host equal to the authority",
            get(&[M, S, P, A, ("host", "test.example")]),
        ),
        (
            "RFC 7541, 6.3 a table of size 0",
            frame(HEADERS, WHOLE, 1, &[&[0x20][..], &head].concat()),
        ),
        (
            "RFC 7541, 6.2.1 a field that is indexed",
            frame(
                HEADERS,
                WHOLE,
                1,
                &[&head[..], &[0x40, 1, b'x', 1, b'y', 0xbe]].concat(),
            ),
        ),
    ];
    let count = allowed.len();
    for (name, bytes) in allowed {
        let mut raw = Raw::connect(at).await;
        raw.send(&bytes).await;
        assert_eq!(raw.outcome(1).await, Outcome::Status(200), "{name}");
    }
    assert_eq!(server.count(), count);
    let mut raw = Raw::connect(at).await;
    raw.send(&frame(PING, 0, 0, b"12345678")).await;
    let pong = loop {
        let next = raw.next().await.unwrap();
        if next.kind != WINDOW_UPDATE {
            break next;
        }
    };
    assert_eq!(
        (pong.kind, pong.flags, &*pong.payload),
        (PING, ACK, &b"12345678"[..])
    );
    drop(raw);
    until(|| proxy.stats().open_connections() == 0).await;
    assert_eq!(
        proxy
            .stats()
            .read()
            .refusals
            .iter()
            .map(|(_, n)| n)
            .sum::<u64>(),
        0
    );
}

#[tokio::test]
async fn what_only_begins_like_the_preface_is_no_http2() {
    let (server, proxy, at) = served().await;
    for bytes in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r"[..],
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"PRI * HTTP/1.1\r\nhost: test.example\r\n\r\n",
        b"PRI",
    ] {
        let mut client = Client::connect(at).await;
        tokio::io::AsyncWriteExt::write_all(&mut client.stream, bytes)
            .await
            .unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut client.stream)
            .await
            .unwrap();
        let answer = client.next().await;
        assert!(
            answer.is_none_or(|a| (400..506).contains(&a.status)),
            "{bytes:?}"
        );
        assert!(client.closed().await, "{bytes:?}");
    }
    // By one byte at a time, it is.
    let stream = tokio::net::TcpStream::connect(at).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut raw = Raw::new(stream);
    for byte in [
        PREFACE,
        &frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]),
        &whole(),
    ]
    .concat()
    {
        raw.send(&[byte]).await;
    }
    assert_eq!(raw.outcome(1).await, Outcome::Status(200));
    assert_eq!(server.count(), 1);
    drop(raw);
    until(|| proxy.stats().open_connections() == 0).await;
}
