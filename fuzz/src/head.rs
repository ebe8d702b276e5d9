//! Heads of HTTP/1 requests and the authority that routes them.

use gateway_user::proxy::scan::{Limits, Scanner, Verdict, routing_authority};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// What a connection's bytes became: those that passed, and the verdict on them.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    passed: Vec<u8>,
    verdict: Verdict,
}

/// The scanner: what passes and what is refused depends on the bytes alone, not on how they were cut into reads. The first
/// byte says how.
pub fn head_scanner(data: &[u8]) {
    let Some((&cuts, bytes)) = data.split_first() else {
        return;
    };
    for hold_upgrades in [false, true] {
        let limits = Limits {
            hold_upgrades,
            ..Limits::default()
        };
        let whole = sift(limits, bytes, usize::MAX);
        assert_eq!(sift(limits, bytes, 1), whole, "byte by byte");
        let piece = 2 + usize::from(cuts % 62);
        assert_eq!(sift(limits, bytes, piece), whole, "{piece} bytes at a time");
    }
}

/// Shows the scanner pieces of the bytes, as a connection does: what it has not passed comes again with the next piece.
fn sift(limits: Limits, bytes: &[u8], piece: usize) -> Outcome {
    let mut scanner = Scanner::new(limits);
    let mut held = Vec::new();
    let mut outcome = Outcome {
        passed: Vec::new(),
        verdict: Verdict::More,
    };
    for piece in bytes.chunks(piece) {
        held.extend_from_slice(piece);
        let sifted = scanner.sift(&mut held);
        assert!(sifted.passed <= sifted.rest && sifted.rest <= held.len());
        outcome.passed.extend_from_slice(&held[..sifted.passed]);
        held.drain(..sifted.rest);
        outcome.verdict = sifted.verdict;
        if sifted.verdict != Verdict::More {
            break;
        }
    }
    outcome
}

/// Targets and Hosts: whatever is admitted can be parsed, and names exactly one host to route by. The input is the target,
/// a line feed, and the value of Host.
pub fn authority(data: &[u8]) {
    let end = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    let (target, host) = data.split_at(end);
    let host = host.strip_prefix(b"\n").unwrap_or(host);
    let head = [b"GET ", target, b" HTTP/1.1\r\nHost: ", host, b"\r\n\r\n"].concat();
    let outcome = sift(Limits::default(), &head, usize::MAX);
    if outcome.passed != head || outcome.verdict != Verdict::More {
        return;
    }
    if host.contains(&b'\r') || target.contains(&b'\r') {
        // Several heads, or several fields: not what this is about.
        return;
    }
    let uri = Uri::try_from(target).expect("an admitted target is a URI");
    let mut headers = HeaderMap::new();
    let value = HeaderValue::from_bytes(host.trim_ascii()).expect("an admitted Host is a value");
    headers.insert(HeaderName::from_static("host"), value);
    let found = routing_authority(&uri, &headers).expect("an admitted request names a host");
    assert!(!found.host.is_empty() && found.text.starts_with(found.host));
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-._~[]:".contains(&b);
    assert!(found.host.bytes().all(fine), "{found:?}");
    let rest = &found.text[found.host.len()..];
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    let port = rest.strip_prefix(':').map(str::parse::<u16>);
    assert!(
        rest.is_empty() || matches!(port, Some(Ok(1..))),
        "{found:?}"
    );
}
