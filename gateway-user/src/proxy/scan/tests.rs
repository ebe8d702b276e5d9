//! The corpus through the scanner alone and through a real hyper server over an in-memory pipe, and what holds for
//! arbitrary bytes.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

use super::corpus::{Case, PLAIN, Want, cases};
use super::*;

const FIRST: &[u8] = b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n";
const FIRST_CHUNKED: &[u8] =
    b"POST /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nX: y\r\n\r\n";

/// What came of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    passed: Vec<u8>,
    left: usize,
    verdict: Verdict,
    progress: Progress,
}

/// Feeds the bytes in pieces as a connection would.
fn feed<'a>(limits: Limits, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut scanner = Scanner::new(limits);
    let mut held = Vec::new();
    let mut passed = Vec::new();
    let mut verdict = Verdict::More;
    for piece in pieces {
        held.extend_from_slice(piece);
        let sifted = scanner.sift(&mut held);
        passed.extend_from_slice(&held[..sifted.passed]);
        held.drain(..sifted.rest);
        verdict = sifted.verdict;
        if verdict != Verdict::More {
            break;
        }
    }
    Outcome {
        passed,
        left: held.len(),
        verdict,
        progress: scanner.progress(),
    }
}

fn whole(bytes: &[u8]) -> Outcome {
    feed(Limits::default(), [bytes])
}

/// Everything of an outcome that may not depend on the cuts.
fn essence(outcome: &Outcome) -> (&[u8], Verdict, Progress) {
    (&outcome.passed, outcome.verdict, outcome.progress)
}

fn check(case: &Case, prefix: &[u8], outcome: &Outcome) {
    let before = u64::from(!prefix.is_empty());
    let Some(passed) = outcome.passed.strip_prefix(prefix) else {
        panic!("{}: the request before was not passed", case.name);
    };
    let (heads, verdict) = match case.want {
        Want::Pass(heads) => {
            assert_eq!(passed, case.bytes, "{}", case.name);
            (heads, Verdict::More)
        }
        Want::Edit => {
            assert_eq!(passed, PLAIN, "{}", case.name);
            (1, Verdict::More)
        }
        Want::Refuse(reason) => {
            assert_eq!(passed, b"", "{}", case.name);
            (0, Verdict::Refused(Refusal { reason }))
        }
        Want::Break(reason) => {
            assert!(case.bytes.starts_with(passed), "{}", case.name);
            (1, Verdict::Broken(Refusal { reason }))
        }
    };
    assert_eq!(outcome.verdict, verdict, "{}", case.name);
    assert_eq!(outcome.progress.heads, before + heads, "{}", case.name);
}

#[test]
fn the_corpus_is_large_and_touches_every_reason() {
    let cases = cases();
    let valid = cases
        .iter()
        .filter(|c| matches!(c.want, Want::Pass(_) | Want::Edit))
        .count();
    assert!(valid >= 60, "{valid}");
    assert!(cases.len() - valid >= 300, "{}", cases.len() - valid);
    // HTTP/2 alone names a scheme.
    for reason in Reason::ALL.iter().filter(|r| **r != Reason::Scheme) {
        let hit =
            |case: &Case| matches!(case.want, Want::Refuse(r) | Want::Break(r) if r == *reason);
        assert!(cases.iter().any(hit), "{reason} has no case");
    }
}

#[test]
fn one_write() {
    for case in cases() {
        check(&case, b"", &whole(&case.bytes));
    }
}

#[test]
fn byte_by_byte() {
    for case in cases() {
        check(&case, b"", &feed(Limits::default(), case.bytes.chunks(1)));
    }
}

#[test]
fn every_split_in_two() {
    for case in cases().iter().filter(|case| case.bytes.len() < 2000) {
        for at in 0..case.bytes.len() {
            let (a, b) = case.bytes.split_at(at);
            check(case, b"", &feed(Limits::default(), [a, b]));
        }
    }
}

#[test]
fn second_of_a_pair() {
    for case in cases() {
        for prefix in [FIRST, FIRST_CHUNKED] {
            let bytes = [prefix, &case.bytes].concat();
            check(&case, prefix, &whole(&bytes));
            check(&case, prefix, &feed(Limits::default(), bytes.chunks(7)));
        }
    }
}

#[test]
fn held_after_an_upgrade_until_told() {
    let limits = Limits {
        hold_upgrades: true,
        ..Limits::default()
    };
    let upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let bytes = [&upgrade[..], b"\x81\x00", FIRST].concat();
    let mut scanner = Scanner::new(limits);
    let mut held = bytes.clone();
    let sifted = scanner.sift(&mut held);
    assert_eq!(
        (sifted.passed, sifted.verdict),
        (upgrade.len(), Verdict::Hold)
    );
    held.drain(..sifted.rest);
    assert_eq!(scanner.sift(&mut held).passed, 0);
    scanner.tunnel();
    assert_eq!(scanner.sift(&mut held).passed, 2 + FIRST.len());

    let mut scanner = Scanner::new(limits);
    let mut held = [&upgrade[..], FIRST].concat();
    let sifted = scanner.sift(&mut held);
    held.drain(..sifted.rest);
    scanner.resume();
    let sifted = scanner.sift(&mut held);
    assert_eq!(
        (sifted.passed, sifted.verdict),
        (FIRST.len(), Verdict::More)
    );
}

/// Bytes that are more likely than chance to look like requests.
fn likely_bytes() -> impl Strategy<Value = Vec<u8>> {
    let cases: Vec<Vec<u8>> = cases()
        .into_iter()
        .map(|c| c.bytes)
        .filter(|b| b.len() < 300)
        .collect();
    let words = prop::sample::select(vec![
        "\r\n",
        "\n",
        "\r",
        " ",
        "\t",
        ":",
        "GET ",
        "/ ",
        "HTTP/1.1",
        "Host: a\r\n",
        "\r\n\r\n",
        "0\r\n\r\n",
        "5\r\n",
        "chunked",
        "Transfer-Encoding: ",
        "Content-Length: ",
        "1",
        "x_y: z\r\n",
        "\0",
        "hello",
    ]);
    let piece = prop_oneof![
        prop::sample::select(cases),
        words.prop_map(|word| word.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..4),
    ];
    (
        prop::collection::vec(piece, 0..8),
        prop::collection::vec((any::<u16>(), any::<u8>()), 0..3),
    )
        .prop_map(|(pieces, changes)| {
            let mut bytes = pieces.concat();
            for (at, value) in changes {
                if !bytes.is_empty() {
                    let at = usize::from(at) % bytes.len();
                    bytes[at] = value;
                }
            }
            bytes
        })
}

/// Cuts bytes at these places.
fn cut<'a>(bytes: &'a [u8], at: &[u16]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = at
        .iter()
        .map(|n| usize::from(*n) % (bytes.len() + 1))
        .collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn cuts_never_matter(bytes in likely_bytes(), at in prop::collection::vec(any::<u16>(), 0..12)) {
        let one = whole(&bytes);
        let cut = feed(Limits::default(), cut(&bytes, &at));
        prop_assert_eq!(essence(&one), essence(&cut));
    }

    #[test]
    fn what_passes_is_what_came(bytes in likely_bytes()) {
        let outcome = whole(&bytes);
        prop_assert!(outcome.passed.len() + outcome.left <= bytes.len());
        if outcome.progress.dropped_fields == 0 && !bytes.starts_with(b"\r\n") && !has(&bytes, b"\r\n\r\n\r\n")
            && !has(&bytes, b"\r\n\r\n") && !has(&bytes, b"h2c") {
            prop_assert!(bytes.starts_with(&outcome.passed));
        }
        // What passed is admitted again, whole, and nothing in it is edited a second time.
        let again = whole(&outcome.passed);
        prop_assert_eq!(again.verdict, Verdict::More);
        prop_assert_eq!(&again.passed, &outcome.passed);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = whole(&bytes);
    }
}

fn has(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|w| w == needle)
}

/// What a service saw: target of each request, and whether its body came to its end.
type Seen = Rc<RefCell<Vec<(String, bool)>>>;

/// Serves one connection with hyper behind the scanner, as the proxy does.
async fn serve(io: DuplexStream, seen: Seen) {
    let (guarded, admission) = Guarded::new(io, Limits::default(), Instant::now());
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (admission, seen) = (admission.clone(), seen.clone());
        async move {
            let mut response = http::Response::new(Full::new(Bytes::new()));
            if let Some(refusal) = admission.refusal_for(&request) {
                *response.status_mut() = refusal.status();
                return Ok::<_, Infallible>(response);
            }
            let target = request.uri().to_string();
            let index = seen.borrow().len();
            seen.borrow_mut().push((target, false));
            match request.into_body().collect().await {
                Ok(_) => seen.borrow_mut()[index].1 = true,
                Err(_) => {
                    let refusal = admission
                        .refusal()
                        .map_or(http::StatusCode::BAD_REQUEST, Refusal::status);
                    *response.status_mut() = refusal;
                }
            }
            Ok(response)
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(guarded), service)
        .await;
}

/// Sends the bytes in pieces; the statuses that came back, what the service saw, whether the gateway closed the connection.
fn through_hyper(bytes: &[u8], piece: usize, half_close: bool) -> (Vec<u16>, Vec<(String, bool)>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (mut client, server) = tokio::io::duplex(256 * 1024);
        let seen = Seen::default();
        let task = tokio::task::spawn_local(serve(server, seen.clone()));
        for piece in bytes.chunks(piece) {
            if client.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut answer = Vec::new();
        if half_close {
            // Valid traffic: the gateway keeps the connection, so the client ends it once all is answered.
            let _ =
                tokio::time::timeout(Duration::from_secs(1), client.read_to_end(&mut answer)).await;
        } else {
            tokio::time::timeout(Duration::from_secs(1), client.read_to_end(&mut answer))
                .await
                .expect("the gateway closes after a refusal")
                .unwrap();
        }
        task.abort();
        let text = String::from_utf8_lossy(&answer).into_owned();
        let statuses = text
            .split("HTTP/1.")
            .skip(1)
            .map(|part| part[2..5].parse().unwrap())
            .filter(|status| *status != 100)
            .collect();
        let seen = seen.borrow().clone();
        (statuses, seen)
    })
}

#[test]
fn hyper_agrees_with_every_admitted_request() {
    for case in cases() {
        let expected = match case.want {
            Want::Pass(count) => count as usize,
            Want::Edit => 1,
            Want::Refuse(_) | Want::Break(_) => continue,
        };
        for piece in [usize::MAX, 1000, 1] {
            let (statuses, seen) = through_hyper(&case.bytes, piece, true);
            assert_eq!(statuses, vec![200; expected], "{}", case.name);
            assert_eq!(seen.len(), expected, "{}", case.name);
            assert!(seen.iter().all(|(_, complete)| *complete), "{}", case.name);
        }
    }
}

#[test]
fn refused_requests_never_arrive_and_are_answered_in_order() {
    for case in cases() {
        let Want::Refuse(reason) = case.want else {
            continue;
        };
        for (piece, prefix) in [(usize::MAX, &b""[..]), (1000, FIRST), (1, FIRST_CHUNKED)] {
            let bytes = [prefix, &case.bytes].concat();
            let (statuses, seen) = through_hyper(&bytes, piece, false);
            let mut expected = vec![reason.status()];
            let mut arrived = vec![];
            if !prefix.is_empty() {
                expected.insert(0, 200);
                arrived.push(("/first".to_owned(), true));
            }
            assert_eq!(statuses, expected, "{}", case.name);
            assert_eq!(seen, arrived, "{}", case.name);
        }
    }
}

#[test]
fn broken_bodies_never_look_complete() {
    for case in cases() {
        let Want::Break(reason) = case.want else {
            continue;
        };
        for (piece, prefix) in [(usize::MAX, &b""[..]), (1, FIRST)] {
            let bytes = [prefix, &case.bytes].concat();
            let (statuses, seen) = through_hyper(&bytes, piece, false);
            assert_eq!(statuses.last(), Some(&reason.status()), "{}", case.name);
            assert_eq!(
                seen.last(),
                Some(&("/c".to_owned(), false)),
                "{}",
                case.name
            );
        }
    }
}

/// How long one head takes: `cargo test --release -p gateway-user scan_cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a test"]
fn scan_cost() {
    let head = b"GET /api/v1/items/12345?expand=owner&limit=50 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: Mozilla/5.0 \
        (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: application/json, text/plain, */*\r\nAccept-Language: \
        en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nConnection: keep-alive\r\nCookie: session=0123456789abcdef0123456789abcdef\r\n\
        Referer: https://shop.example.com/items\r\n\r\n";
    let mut bytes = head.to_vec();
    let mut scanner = Scanner::new(Limits::default());
    let best = (0..20)
        .map(|_| {
            let start = std::time::Instant::now();
            for _ in 0..10_000 {
                let sifted = scanner.sift(std::hint::black_box(&mut bytes));
                assert_eq!(sifted.passed, head.len());
            }
            start.elapsed() / 10_000
        })
        .min();
    println!("{} bytes: {best:?} per head, best of 20", head.len());
}
