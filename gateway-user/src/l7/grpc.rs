//! What a proxy has to know of gRPC: which requests are gRPC, and how its own answers look to them.
//!
//! Source: "gRPC over HTTP2" and "HTTP to gRPC Status Code Mapping" (github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md and
//! doc/http-grpc-status-mapping.md).

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};

use super::escape::push_escape;

/// Whether the message is gRPC by its `Content-Type`: `application/grpc`, with or without `+proto` and the like and parameters.
/// gRPC-Web is another protocol.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let Some((start, rest)) = value.as_bytes().split_at_checked(TYPE.len()) else {
        return false;
    };
    start.eq_ignore_ascii_case(TYPE)
        && matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
}

/// The `grpc-status` that says what an HTTP status says.
#[must_use]
pub fn status_of(http: u16) -> u8 {
    match http {
        400 => 13,                   // INTERNAL
        401 => 16,                   // UNAUTHENTICATED
        403 => 7,                    // PERMISSION_DENIED
        404 => 12,                   // UNIMPLEMENTED
        429 | 502 | 503 | 504 => 14, // UNAVAILABLE
        _ => 2,                      // UNKNOWN
    }
}

/// A text as `grpc-message` carries it: `%` and everything but visible ASCII and spaces percent-encoded.
#[must_use]
pub fn encode_message(text: &str) -> HeaderValue {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(char::from(byte));
        } else {
            push_escape(&mut out, byte);
        }
    }
    HeaderValue::try_from(out).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn content_types() {
        for (value, grpc) in [
            ("application/grpc", true),
            ("Application/GRPC", true),
            ("application/grpc+proto", true),
            ("application/grpc+json;charset=utf-8", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc ;a=b", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpcx", false),
            ("application/grp", false),
            ("application/json", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(is_grpc(&headers), grpc, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn statuses() {
        for (http, grpc) in [
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 12),
            (429, 14),
            (502, 14),
            (503, 14),
            (504, 14),
            (200, 2),
            (405, 2),
            (500, 2),
            (501, 2),
            (0, 2),
        ] {
            assert_eq!(status_of(http), grpc, "{http}");
        }
    }

    #[test]
    fn messages() {
        for (text, want) in [
            ("no healthy endpoint", "no healthy endpoint"),
            ("100%", "100%25"),
            ("a\r\nb", "a%0D%0Ab"),
            ("é~", "%C3%A9~"),
            ("\u{7f}", "%7F"),
            ("", ""),
        ] {
            assert_eq!(encode_message(text), want);
        }
    }

    /// What a client makes of it.
    fn decode(value: &HeaderValue) -> String {
        let mut out = Vec::new();
        let mut rest = value.as_bytes();
        while let [first, tail @ ..] = rest {
            rest = tail;
            if *first == b'%' {
                let digits = std::str::from_utf8(&tail[..2]).unwrap();
                out.push(u8::from_str_radix(digits, 16).unwrap());
                rest = &tail[2..];
            } else {
                out.push(*first);
            }
        }
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn clients_read_what_was_written(text in any::<String>()) {
            let value = encode_message(&text);
            prop_assert!(value.as_bytes().iter().all(|b| matches!(b, b' '..=b'~')));
            prop_assert_eq!(decode(&value), text);
        }
    }
}
