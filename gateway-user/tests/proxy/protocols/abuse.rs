//! Clients that use HTTP/2 to keep the proxy busy or its memory full: each is bounded, is counted for what it did, and harms
//! nobody else.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use gateway_user::proxy::stats::Event;
use gateway_user::proxy::{Proxy, ProxySettings, Timers};
use gateway_user::snapshot::TrafficPolicy;

use super::frames::*;
use crate::support::*;

/// Answers `/hang` never, `/big` with 2 MiB and everything else at once.
async fn served(timers: Timers) -> (BackendServer, Proxy, SocketAddr) {
    let server = backend(script(|seen| async move {
        match seen.path() {
            "/hang" => std::future::pending().await,
            "/big" => answer(200, &"x".repeat(2 << 20)),
            _ => answer(200, "ok"),
        }
    }))
    .await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let settings = ProxySettings {
        timers,
        ..ProxySettings::default()
    };
    let proxy = start_with(settings, &snapshot(at, &[(1, live)], |_| {}));
    (server, proxy, at)
}

async fn honest(at: SocketAddr) {
    let mut raw = Raw::connect(at).await;
    raw.send(&get_frame(1, "/honest")).await;
    assert_eq!(raw.outcome(1).await, Outcome::Status(200));
    assert_eq!(get(at, "/honest").await.status, 200);
}

/// Everything that the attack held is free again.
async fn nothing_is_left(proxy: &Proxy) {
    until(|| proxy.stats().open_connections() == 0).await;
    until(|| proxy.endpoints()[0].in_use.requests == 0).await;
    until(|| proxy.endpoints()[0].endpoints[0].active == 0).await;
    assert_eq!(proxy.endpoints()[0].in_use.pending, 0);
}

/// Sends the pieces over and over until the proxy hangs up; how many of them it took at most.
async fn flood(
    at: SocketAddr,
    first: &[u8],
    piece: impl Fn(u32) -> Vec<u8>,
    most: u32,
) -> Option<u32> {
    let raw = Raw::connect(at).await;
    let (mut reader, mut writer) = raw.stream.into_split();
    let drain = tokio::spawn(async move {
        let mut sink = tokio::io::sink();
        let _ended = tokio::io::copy(&mut reader, &mut sink).await;
    });
    use tokio::io::AsyncWriteExt;
    if writer.write_all(first).await.is_err() {
        return Some(0);
    }
    let mut sent = 0;
    while sent < most && !drain.is_finished() {
        let batch: Vec<u8> = (sent..sent + 100).flat_map(&piece).collect();
        if writer.write_all(&batch).await.is_err() {
            return Some(sent);
        }
        sent += 100;
        tokio::task::yield_now().await;
    }
    let hung_up = tokio::time::timeout(Duration::from_secs(2), drain)
        .await
        .is_ok();
    hung_up.then_some(sent)
}

fn rst(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

#[tokio::test]
async fn floods_end_their_connection_and_no_other() {
    let (_server, proxy, at) = served(Timers::default()).await;
    let head = request_block("POST", "/hang", &[]);
    let post = frame(HEADERS, END_HEADERS, 1, &head);
    let open = frame(HEADERS, END_STREAM, 1, &head);
    let odd = |n: u32| 2 * n + 1;
    type Piece = Box<dyn Fn(u32) -> Vec<u8>>;
    let table: Vec<(&str, Vec<u8>, Piece, bool)> = vec![
        (
            "rapid reset",
            vec![],
            Box::new(move |n| [get_frame(odd(n), "/hang"), rst(odd(n))].concat()),
            false,
        ),
        (
            "MadeYouReset by a window of 0",
            vec![],
            Box::new(move |n| [get_frame(odd(n), "/hang"), window(odd(n), 0)].concat()),
            false,
        ),
        (
            "MadeYouReset by DATA after the end",
            vec![],
            Box::new(move |n| {
                [
                    get_frame(odd(n), "/hang"),
                    frame(DATA, END_STREAM, odd(n), b"x"),
                ]
                .concat()
            }),
            false,
        ),
        (
            "MadeYouReset by a window too large",
            vec![],
            Box::new(move |n| {
                [
                    get_frame(odd(n), "/hang"),
                    window(odd(n), 0x7fff_ffff),
                    window(odd(n), 0x7fff_ffff),
                ]
                .concat()
            }),
            false,
        ),
        (
            "CONTINUATION",
            open.clone(),
            Box::new(|_| frame(CONTINUATION, 0, 1, &literal(b"x-y", &[b'v'; 96]))),
            false,
        ),
        (
            "empty CONTINUATION",
            open,
            Box::new(|_| frame(CONTINUATION, 0, 1, &[])),
            true,
        ),
        (
            "SETTINGS",
            vec![],
            Box::new(|_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])),
            true,
        ),
        (
            "empty SETTINGS",
            vec![],
            Box::new(|_| frame(SETTINGS, 0, 0, &[])),
            true,
        ),
        (
            "PING",
            vec![],
            Box::new(|_| frame(PING, 0, 0, &[7; 8])),
            true,
        ),
        (
            "answers to PINGs that nobody sent",
            vec![],
            Box::new(|_| frame(PING, ACK, 0, &[7; 8])),
            true,
        ),
        (
            "PRIORITY",
            vec![],
            Box::new(|n| frame(PRIORITY, 0, 2 * (n % 1000) + 1, &[0, 0, 0, 0, 1])),
            true,
        ),
        ("WINDOW_UPDATE", vec![], Box::new(|_| window(0, 1)), true),
        (
            "WINDOW_UPDATE of a stream",
            post.clone(),
            Box::new(|_| window(1, 1)),
            true,
        ),
        (
            "empty DATA",
            post.clone(),
            Box::new(|_| frame(DATA, 0, 1, &[])),
            false,
        ),
        (
            "DATA of padding",
            post,
            Box::new(|_| frame(DATA, PADDED, 1, &[0])),
            false,
        ),
        (
            "unknown frames",
            vec![],
            Box::new(|_| frame(0x77, 0, 0, b"x")),
            true,
        ),
        (
            "frames of 16 MiB",
            vec![],
            Box::new(|_| vec![0xff, 0xff, 0xff, 0x77, 0, 0, 0, 0, 0]),
            false,
        ),
    ];
    let mut floods = 0;
    for (name, first, piece, counted) in table {
        let before = proxy.stats().event(Event::Http2Floods);
        let sent = flood(at, &first, piece, 200_000).await;
        let sent = sent.unwrap_or_else(|| panic!("{name} goes on for ever"));
        // What was in the sockets' buffers comes on top of what is admitted.
        assert!(sent <= 120_000, "{name}: {sent}");
        nothing_is_left(&proxy).await;
        let counts = proxy.stats().event(Event::Http2Floods) - before;
        assert!(counts <= 1 && (counts == 1 || !counted), "{name}: {counts}");
        floods += counts;
        honest(at).await;
    }
    assert!(floods >= 9, "{floods}");
}

#[tokio::test]
async fn streams_that_are_reset_hold_no_endpoint() {
    let (server, proxy, at) = served(Timers::default()).await;
    let mut raw = Raw::connect(at).await;
    for n in 0..150 {
        raw.send(&get_frame(2 * n + 1, "/hang")).await;
        until(|| proxy.endpoints()[0].in_use.requests == 1).await;
        raw.send(&rst(2 * n + 1)).await;
        until(|| proxy.endpoints()[0].in_use.requests == 0).await;
    }
    raw.send(&get_frame(1001, "/")).await;
    assert_eq!(raw.outcome(1001).await, Outcome::Status(200));
    drop(raw);
    nothing_is_left(&proxy).await;
    until(|| server.open.load(SeqCst) <= 1).await;
    let read = proxy.stats().read();
    assert!(read.flags.contains(&("DC", 150)), "{:?}", read.flags);
    assert_eq!(read.classes[2], 1);
}

#[tokio::test]
async fn clients_that_cancel_what_was_answered_are_no_flood() {
    let (_server, proxy, at) = served(Timers::default()).await;
    let mut raw = Raw::connect(at).await;
    // As gRPC clients do: the answer is there, the request never ends.
    let head = request_block("POST", "/", &[("content-length", "5")]);
    for n in 0..1_500_u32 {
        let stream = 2 * n + 1;
        let data = frame(DATA, 0, stream, b"hello");
        raw.send(&[frame(HEADERS, END_HEADERS, stream, &head), data].concat())
            .await;
        let next = loop {
            let next = raw.next().await.expect("no flood");
            if next.stream == stream {
                break next;
            }
        };
        assert_eq!(next.kind, HEADERS, "{n}");
        raw.send(&rst(stream)).await;
    }
    assert_eq!(proxy.stats().event(Event::Http2Floods), 0);
}

#[tokio::test]
async fn decoded_heads_are_bounded() {
    let (server, proxy, at) = served(Timers::default()).await;
    // 19 KB on the wire, 58 MB decoded: one field of 4000 bytes in the table, and thousands of references to it.
    for name in ["x-bomb", "cookie"] {
        let mut bomb = request_block("GET", "/bomb", &[]);
        bomb.extend([0x40]);
        bomb.push(u8::try_from(name.len()).unwrap());
        bomb.extend(name.bytes());
        bomb.extend([0x7f, 0xa1, 0x1e]);
        bomb.extend([b'a'; 4000]);
        bomb.extend(vec![0xbe; 12_000]);
        let mut raw = Raw::connect(at).await;
        for stream in (1..41).step_by(2) {
            if !raw
                .send(&frame(
                    HEADERS,
                    WHOLE,
                    stream,
                    &bomb[..bomb.len().min(16_384)],
                ))
                .await
            {
                break;
            }
        }
        assert!(raw.outcome(1).await.refuses(), "{name}");
    }
    // Blocks of 96 KB, in frames of the largest size.
    let mut raw = Raw::connect(at).await;
    let fields: Vec<u8> = (0..96)
        .flat_map(|n| literal(format!("x-{n}").as_bytes(), &[b'v'; 1000]))
        .collect();
    let all = [request_block("GET", "/", &[]), fields].concat();
    let mut pieces = all.chunks(16_384);
    raw.send(&frame(HEADERS, END_STREAM, 1, pieces.next().unwrap()))
        .await;
    for piece in pieces {
        raw.send(&frame(CONTINUATION, 0, 1, piece)).await;
    }
    raw.send(&frame(CONTINUATION, END_HEADERS, 1, &[])).await;
    assert!(raw.outcome(1).await.refuses());
    drop(raw);
    assert_eq!(server.count(), 0);
    honest(at).await;
    nothing_is_left(&proxy).await;
}

#[tokio::test]
async fn streams_at_once_are_bounded() {
    let (server, proxy, at) = served(Timers::default()).await;
    let mut raw = Raw::connect(at).await;
    for n in 0..150 {
        raw.send(&get_frame(2 * n + 1, "/hang")).await;
    }
    let mut refused = 0;
    while let Some(next) = raw.soon(Duration::from_millis(200)).await {
        if next.kind == RST_STREAM {
            assert_eq!(next.payload, [0, 0, 0, 7], "REFUSED_STREAM");
            refused += 1;
        }
    }
    assert_eq!(refused, 50);
    until(|| server.count() == 100).await;
    assert_eq!(proxy.endpoints()[0].in_use.requests, 100);
    honest(at).await;
    drop(raw);
    nothing_is_left(&proxy).await;
    until(|| server.open.load(SeqCst) <= 1).await;
}

fn quick() -> Timers {
    Timers {
        header: Duration::from_millis(200),
        body_idle: Duration::from_millis(300),
        write_idle: Duration::from_millis(300),
        ..Timers::default()
    }
}

#[tokio::test]
async fn a_stream_without_a_window_ends_alone() {
    let (server, proxy, at) = served(quick()).await;
    // Streams begin with no window; one gets one later.
    let mut raw = Raw::connect_with(at, &[(4, 0)]).await;
    for stream in [1, 3, 5] {
        raw.send(&get_frame(stream, "/big")).await;
    }
    let mut resets = Vec::new();
    let mut answers = 0;
    raw.send(&window(5, 1)).await;
    let (mut got, mut reads) = (0, 0);
    while resets.len() < 2 {
        let next = raw.next().await.unwrap();
        match next.kind {
            HEADERS => answers += 1,
            RST_STREAM => resets.push((next.stream, next.payload)),
            DATA => {
                assert_eq!(next.stream, 5);
                got += next.payload.len();
                reads += 1;
                // A slow client that goes on reading.
                let more = u32::try_from(next.payload.len()).unwrap() * 2;
                raw.send(&window(5, more.min(65_536))).await;
                raw.send(&window(0, more.min(65_536))).await;
                crate::pace(Duration::from_millis(10)).await;
            }
            _ => {}
        }
    }
    assert_eq!(answers, 3);
    assert!(got > 0 && reads > 5, "{got}");
    resets.sort();
    assert_eq!(
        resets.iter().map(|(stream, _)| *stream).collect::<Vec<_>>(),
        [1, 3]
    );
    assert_eq!(
        proxy.stats().event(Event::WriteTimeouts),
        2,
        "counted while the connection lives"
    );
    until(|| proxy.endpoints()[0].in_use.requests <= 1).await;
    honest(at).await;
    drop(raw);
    nothing_is_left(&proxy).await;
    until(|| server.open.load(SeqCst) <= 1).await;
    let flags = proxy.stats().read().flags;
    assert!(
        flags
            .iter()
            .any(|(name, n)| *name == "DC" && (2..=3).contains(n)),
        "{flags:?}"
    );
}

#[tokio::test]
async fn a_connection_that_takes_nothing_is_cut_off() {
    let (server, proxy, at) = served(quick()).await;
    let raw = {
        let mut raw = Raw::connect_with(at, &[(4, 0x7fff_ffff)]).await;
        raw.send(&window(0, 0x7000_0000)).await;
        for n in 0..20 {
            raw.send(&get_frame(2 * n + 1, "/big")).await;
        }
        raw
    };
    until(|| proxy.stats().event(Event::WriteTimeouts) >= 1).await;
    nothing_is_left(&proxy).await;
    honest(at).await;
    drop(raw);
    until(|| server.open.load(SeqCst) <= 1).await;
}

#[tokio::test]
async fn an_upload_that_stalls_ends_alone() {
    let (server, proxy, at) = served(quick()).await;
    let mut raw = Raw::connect(at).await;
    let head = request_block("POST", "/", &[("content-length", "10")]);
    raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    raw.send(&frame(DATA, 0, 1, b"x")).await;
    raw.send(&get_frame(3, "/")).await;
    assert_eq!(raw.outcome(3).await, Outcome::Status(200));
    // PINGs keep the connection alive, but not the stream.
    let mut reset = None;
    for _ in 0..100 {
        assert!(raw.send(&frame(PING, 0, 0, &[1; 8])).await);
        crate::pace(Duration::from_millis(20)).await;
        while reset.is_none() {
            match raw.soon(Duration::from_millis(1)).await {
                Some(next) if next.stream == 1 => reset = Some(next),
                Some(_) => {}
                None => break,
            }
        }
        if reset.is_some() {
            break;
        }
    }
    let reset = reset.expect("it is reset");
    assert_eq!(reset.kind, RST_STREAM);
    assert_eq!(proxy.stats().event(Event::BodyTimeouts), 1);
    assert_eq!(proxy.stats().event(Event::StreamTimeouts), 0);
    raw.send(&get_frame(5, "/")).await;
    assert_eq!(raw.outcome(5).await, Outcome::Status(200));
    drop(raw);
    nothing_is_left(&proxy).await;
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn a_header_block_that_never_ends_is_cut_off() {
    let timers = Timers {
        keep_alive: Duration::from_millis(300),
        ..quick()
    };
    let (server, proxy, at) = served(timers).await;
    for bytes in [
        frame(HEADERS, END_STREAM, 1, &request_block("GET", "/", &[])),
        get_frame(1, "/")[..20].to_vec(),
        vec![],
    ] {
        let mut raw = Raw::connect(at).await;
        raw.send(&bytes).await;
        raw.end().await;
    }
    nothing_is_left(&proxy).await;
    assert_eq!(server.count(), 0);
    assert_eq!(proxy.stats().event(Event::IdleTimeouts), 3);
}
