//! The authority of a request: the syntax of Host and of an absolute target, and which of the two routes.
//!
//! Stricter than RFC 3986: a registered name is made of letters, digits, `-`, `.`, `_` and `~`. Anything else cannot match a
//! hostname of a Gateway, and its escapes and delimiters are read differently by different servers.

use std::net::Ipv6Addr;

use super::reason::Reason;

/// Checks `host [":" port]`; user information, lists, paths, empty ports and port 0 are refused.
pub(super) fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text {
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|b| *b == b']') else {
                return false;
            };
            if !is_v6(&rest[..end]) {
                return false;
            }
            (None, &rest[end + 1..])
        }
        _ => {
            let end = text.iter().position(|b| *b == b':').unwrap_or(text.len());
            (Some(&text[..end]), &text[end..])
        }
    };
    let port_fine = match port {
        [] => true,
        [b':', digits @ ..] => is_port(digits),
        _ => false,
    };
    port_fine && host.is_none_or(is_name)
}

/// Checks the authority of a request that came without bytes to scan.
///
/// # Errors
/// [`Reason::HostInvalid`].
pub fn check_authority(text: &[u8]) -> Result<(), Reason> {
    is_authority(text).then_some(()).ok_or(Reason::HostInvalid)
}

fn is_v6(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

fn is_port(digits: &[u8]) -> bool {
    (1..=5).contains(&digits.len())
        && digits.iter().all(u8::is_ascii_digit)
        && (1..=65_535).contains(
            &digits
                .iter()
                .fold(0_u32, |n, d| n * 10 + u32::from(d - b'0')),
        )
}

fn is_name(host: &[u8]) -> bool {
    let labels = host.strip_suffix(b".").unwrap_or(host);
    // One pass: no empty label, and only bytes of a name.
    let mut last = b'.';
    for &b in labels {
        let fine = b.is_ascii_alphanumeric()
            || matches!(b, b'-' | b'_' | b'~')
            || (b == b'.' && last != b'.');
        if !fine {
            return false;
        }
        last = b;
    }
    last != b'.' && host.len() <= 255
}

/// The authority that routes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// As sent, with its port: what the Host that is sent upstream has to say.
    pub text: &'a str,
    /// Without port and without a trailing dot, in the client's case; an IPv6 address keeps its brackets.
    pub host: &'a str,
}

/// The authority by which an admitted request is routed: that of the target if it has one (Host is then to be replaced by
/// it: RFC 9112, 3.2.2), else Host. `None`: an HTTP/1.0 request that names no host.
#[must_use]
pub fn routing_authority<'a>(
    uri: &'a http::Uri,
    headers: &'a http::HeaderMap,
) -> Option<Authority<'a>> {
    let text = match uri.authority() {
        Some(authority) => authority.as_str(),
        None => headers.get(http::header::HOST)?.to_str().ok()?,
    };
    let end = if text.starts_with('[') {
        text.find(']').map_or(text.len(), |end| end + 1)
    } else {
        text.find(':').unwrap_or(text.len())
    };
    let host = &text[..end];
    Some(Authority {
        text,
        host: host.strip_suffix('.').unwrap_or(host),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_syntax() {
        for good in [
            "a",
            "a.b",
            "a.b.",
            "A-b_c~d.e:80",
            "1.2.3.4:65535",
            "[::1]",
            "[::ffff:1.2.3.4]:8080",
        ] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ".",
            ":80",
            "a:",
            "a:0",
            "a:65536",
            "a:000080",
            "a:+80",
            "a:8 0",
            "a,b",
            "a b",
            "u@a",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "a%41",
            "a..b",
            ".a",
            "[::1",
            "[::1]x",
            "[::1]:",
            "[v1.x]",
            "[fe80::1%25eth0]",
            "::1",
            "a:b:1",
            "ä",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
        assert!(!is_authority("a".repeat(256).as_bytes()));
    }

    #[test]
    fn the_target_routes_before_host() {
        let mut headers = http::HeaderMap::new();
        headers.insert("host", "b.example.:81".parse().unwrap());
        let absolute: http::Uri = "http://A.example:80/x".parse().unwrap();
        let found = routing_authority(&absolute, &headers).unwrap();
        assert_eq!((found.text, found.host), ("A.example:80", "A.example"));
        let origin: http::Uri = "/x".parse().unwrap();
        let found = routing_authority(&origin, &headers).unwrap();
        assert_eq!((found.text, found.host), ("b.example.:81", "b.example"));
        headers.insert("host", "[::1]:81".parse().unwrap());
        assert_eq!(routing_authority(&origin, &headers).unwrap().host, "[::1]");
        headers.clear();
        assert_eq!(routing_authority(&origin, &headers), None);
    }
}
