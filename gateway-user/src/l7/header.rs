//! Edits that a proxy must make to header fields on their way through.
//!
//! Hop-by-hop fields end here (RFC 9110, 7.6.1), with those that `Connection` names; framing is made anew by the
//! codec; what a client claims about earlier hops is overwritten (no peer is trusted). All edits happen in place:
//! a message without such fields costs one walk over its names.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// `X-Forwarded-For`.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Fields that end at each hop whether or not `Connection` names them. `TE` is handled apart.
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Claims about earlier hops that an untrusted peer must not make, with all of `X-Forwarded-…`.
const CLAIMS: [HeaderName; 2] = [FORWARDED, HeaderName::from_static("x-real-ip")];

/// A field that `Connection` must not nominate: removing it would change framing, routing or identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Connection header field nominates a field that a proxy must not remove")]
pub struct ForbiddenNomination;

/// Makes a client's request head fit to be sent upstream.
///
/// # Errors
/// If `Connection` nominates a field that it must not (the request is then refused with 400).
pub fn prepare_request(
    headers: &mut HeaderMap,
    client: IpAddr,
    proto: &'static str,
) -> Result<(), ForbiddenNomination> {
    let (mut hop, mut claims, mut expect, mut te) = (false, false, false, false);
    for name in headers.keys() {
        hop |= HOP_BY_HOP.contains(name);
        claims |= is_claim(name);
        expect |= name == EXPECT;
        te |= name == TE;
    }
    let keeps_trailers = te && accepts_trailers(headers);
    if hop {
        remove_hop_by_hop(headers, true)?;
    }
    if te {
        headers.remove(TE);
    }
    if keeps_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        // Whoever sends TE must name it (RFC 9110, 10.1.4): it is for the next hop only.
        headers.insert(CONNECTION, HeaderValue::from_static("TE"));
    }
    if claims {
        let claimed: Vec<HeaderName> = headers.keys().filter(|n| is_claim(n)).cloned().collect();
        for name in claimed {
            headers.remove(name);
        }
    }
    if expect {
        // The server side has answered it by reading the body.
        headers.remove(EXPECT);
    }
    headers.insert(X_FORWARDED_FOR, address_value(client));
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    Ok(())
}

fn is_claim(name: &HeaderName) -> bool {
    CLAIMS.contains(name) || name.as_str().starts_with("x-forwarded-")
}

/// Makes an upstream's response head fit to be sent to the client.
pub fn prepare_response(status: StatusCode, headers: &mut HeaderMap) {
    if status == StatusCode::NO_CONTENT {
        // It never has one (RFC 9110, 8.6), not even in an answer to HEAD.
        headers.remove(CONTENT_LENGTH);
    }
    if headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        // A backend's nominations are not refused: its response is all that there is.
        let _ = remove_hop_by_hop(headers, false);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap, strict: bool) -> Result<(), ForbiddenNomination> {
    let nominated: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty() && !is_option(token))
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .collect();
    for name in nominated {
        if !is_protected(&name) {
            headers.remove(name);
        } else if strict {
            return Err(ForbiddenNomination);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    Ok(())
}

/// Connection options that are no field names, or whose fields are removed anyway.
fn is_option(token: &str) -> bool {
    ["close", "keep-alive", "upgrade", "te"]
        .iter()
        .any(|option| token.eq_ignore_ascii_case(option))
}

fn is_protected(name: &HeaderName) -> bool {
    const FIXED: [HeaderName; 9] = [
        HOST,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        TRAILER,
        FORWARDED,
        http::header::AUTHORIZATION,
        PROXY_AUTHORIZATION,
        PROXY_AUTHENTICATE,
        http::header::COOKIE,
    ];
    FIXED.contains(name) || is_claim(name)
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

fn address_value(address: IpAddr) -> HeaderValue {
    let mut text = bytes::BytesMut::with_capacity(16);
    let _ = write!(text, "{}", address.to_canonical());
    HeaderValue::from_maybe_shared(text.freeze()).expect("an address is a valid field value")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    fn request(fields: &[(&'static str, &'static str)]) -> Vec<(String, String)> {
        let mut headers = map(fields);
        prepare_request(&mut headers, CLIENT, "http").unwrap();
        let mut left: Vec<_> = headers
            .iter()
            .map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned()))
            .collect();
        left.sort();
        left.retain(|(n, _)| n != "x-forwarded-for" && n != "x-forwarded-proto");
        left
    }

    #[test]
    fn hop_by_hop_fields_end_here() {
        let left = request(&[
            ("connection", "keep-alive, X-Secret-Hop"),
            ("x-secret-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAA"),
            ("expect", "100-continue"),
            ("host", "a"),
        ]);
        assert_eq!(left, [("host".to_owned(), "a".to_owned())]);
    }

    #[test]
    fn te_keeps_trailers_only() {
        assert_eq!(
            request(&[("te", "gzip, trailers")]),
            [
                ("connection".to_owned(), "TE".to_owned()),
                ("te".to_owned(), "trailers".to_owned())
            ]
        );
        assert_eq!(
            request(&[("te", "trailers"), ("connection", "TE, x"), ("x", "1")]),
            request(&[("te", "trailers")])
        );
        assert_eq!(request(&[("te", "gzip"), ("connection", "te")]), []);
    }

    #[test]
    fn claims_of_clients_are_overwritten() {
        let mut headers = map(&[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-client-cert", "By=spiffe://a"),
            ("x-forwarded-ssl", "on"),
            ("forwarded", "for=1.1.1.1"),
            ("x-real-ip", "1.1.1.1"),
        ]);
        prepare_request(&mut headers, CLIENT, "http").unwrap();
        assert_eq!(headers.len(), 2);
        assert_eq!(headers[X_FORWARDED_FOR], "192.0.2.7");
        assert_eq!(headers[X_FORWARDED_PROTO], "http");
    }

    #[test]
    fn nominating_identity_or_framing_is_refused() {
        for field in [
            "Host",
            "content-length",
            "Transfer-Encoding",
            "X-Forwarded-For",
            "forwarded",
            "Authorization",
            "x-forwarded-anything",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
            headers.append(CONNECTION, HeaderValue::try_from(field).unwrap());
            assert_eq!(
                prepare_request(&mut headers, CLIENT, "http"),
                Err(ForbiddenNomination),
                "{field}"
            );
        }
    }

    #[test]
    fn responses_lose_only_hop_by_hop_fields() {
        let mut headers = map(&[
            ("connection", "close, x-hop, content-length"),
            ("x-hop", "1"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("server", "b"),
        ]);
        prepare_response(StatusCode::OK, &mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "server"]);
    }

    #[test]
    fn no_content_has_no_length() {
        let mut headers = map(&[("content-length", "2"), ("etag", "x")]);
        prepare_response(StatusCode::NO_CONTENT, &mut headers);
        assert_eq!(headers, map(&[("etag", "x")]));
    }

    #[test]
    fn v4_in_v6_clients_are_shown_as_v4() {
        assert_eq!(address_value("::ffff:1.2.3.4".parse().unwrap()), "1.2.3.4");
    }
}
