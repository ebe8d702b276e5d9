//! Header fields there and back, word for word.

use super::*;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

/// Nobody before this proxy is trusted.
const HOP: Hop = Hop {
    peer: CLIENT,
    proto: "http",
    trusted_hops: 0,
    via: "1.1 forebay",
    upgrade: false,
};

fn trusting(trusted_hops: u8) -> Hop {
    Hop {
        trusted_hops,
        ..HOP
    }
}

fn all(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter();
    values.map(|v| v.to_str().unwrap().to_owned()).collect()
}

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields
        .iter()
        .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
        .collect()
}

fn request(fields: &[(&'static str, &'static str)]) -> Vec<(String, String)> {
    let mut headers = map(fields);
    prepare_request(&mut headers, &HOP).unwrap();
    let mut left: Vec<_> = headers
        .iter()
        .map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned()))
        .collect();
    left.sort();
    left.retain(|(n, _)| n != "x-forwarded-for" && n != "x-forwarded-proto" && n != "via");
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
    prepare_request(&mut headers, &HOP).unwrap();
    assert_eq!(headers.len(), 3);
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
            prepare_request(&mut headers, &HOP),
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
    prepare_response(StatusCode::OK, &mut headers, "1.1 forebay");
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "server", "via"]);
}

#[test]
fn no_content_has_no_length() {
    let mut headers = map(&[("content-length", "2"), ("etag", "x")]);
    prepare_response(StatusCode::NO_CONTENT, &mut headers, "1.1 forebay");
    assert_eq!(headers, map(&[("etag", "x"), ("via", "1.1 forebay")]));
}

#[test]
fn v4_in_v6_clients_are_shown_as_v4() {
    assert_eq!(address_value("::ffff:1.2.3.4".parse().unwrap()), "1.2.3.4");
}

#[test]
fn via_is_appended_both_ways() {
    let mut headers = map(&[("via", "1.0 fred")]);
    let hop = Hop {
        via: "2.0 forebay",
        ..HOP
    };
    prepare_request(&mut headers, &hop).unwrap();
    assert_eq!(all(&headers, "via"), ["1.0 fred", "2.0 forebay"]);
    let mut headers = map(&[("via", "1.0 fred")]);
    prepare_response(StatusCode::OK, &mut headers, "1.1 forebay");
    assert_eq!(all(&headers, "via"), ["1.0 fred", "1.1 forebay"]);
}

#[test]
fn a_websocket_keeps_exactly_what_makes_it_one() {
    let hop = Hop {
        upgrade: true,
        ..HOP
    };
    let plain = [
        ("connection", "keep-alive, Upgrade, x-hop"),
        ("upgrade", "websocket, h2c"),
        ("x-hop", "1"),
        ("sec-websocket-key", "k"),
        ("te", "trailers"),
    ];
    for (fields, connection) in [(&plain[..], "Upgrade, TE"), (&plain[..4], "Upgrade")] {
        let mut headers = map(fields);
        prepare_request(&mut headers, &hop).unwrap();
        assert_eq!(all(&headers, "connection"), [connection]);
        assert_eq!(all(&headers, "upgrade"), ["websocket"]);
        assert_eq!(all(&headers, "sec-websocket-key"), ["k"]);
        assert_eq!(all(&headers, "x-hop"), [""; 0]);
    }
}

#[test]
fn only_a_101_keeps_its_upgrade() {
    let fields = [
        ("connection", "upgrade, x-hop"),
        ("upgrade", "websocket"),
        ("x-hop", "1"),
    ];
    for (status, connection, upgrade) in [
        (101, &["Upgrade"][..], &["websocket"][..]),
        (200, &[], &[]),
        (426, &[], &[]),
    ] {
        let mut headers = map(&fields);
        let status = StatusCode::from_u16(status).unwrap();
        prepare_response(status, &mut headers, "1.1 forebay");
        assert_eq!(all(&headers, "connection"), connection);
        assert_eq!(all(&headers, "upgrade"), upgrade);
        assert_eq!(all(&headers, "x-hop"), [""; 0]);
    }
    let mut headers = map(&fields[..1]);
    prepare_response(StatusCode::SWITCHING_PROTOCOLS, &mut headers, "1.1 forebay");
    assert_eq!(all(&headers, "connection"), [""; 0]);
}

#[test]
fn trusted_proxies_are_taken_at_their_word() {
    let mut headers = map(&[
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-for", "198.51.100.1 , 198.51.100.2"),
        ("x-forwarded-for", ""),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "shop.example"),
        ("x-forwarded-port", "443"),
        ("x-forwarded-client-cert", "By=spiffe://a"),
        ("x-forwarded-user", "root"),
        ("x-real-ip", "6.6.6.6"),
        ("forwarded", "for=198.51.100.1;proto=https"),
    ]);
    prepare_request(&mut headers, &trusting(1)).unwrap();
    for (name, want) in [
        (
            "x-forwarded-for",
            &["6.6.6.6, 198.51.100.1 , 198.51.100.2, 192.0.2.7"][..],
        ),
        ("x-forwarded-proto", &["https"]),
        ("x-forwarded-host", &["shop.example"]),
        ("x-forwarded-port", &["443"]),
        (
            "forwarded",
            &["for=198.51.100.1;proto=https", "for=192.0.2.7;proto=http"],
        ),
        ("x-forwarded-client-cert", &[]),
        ("x-forwarded-user", &[]),
        ("x-real-ip", &[]),
    ] {
        assert_eq!(all(&headers, name), want, "{name}");
    }
}

#[test]
fn what_trusted_proxies_leave_out_is_set() {
    let mut headers = HeaderMap::new();
    prepare_request(&mut headers, &trusting(2)).unwrap();
    assert_eq!(all(&headers, "x-forwarded-for"), ["192.0.2.7"]);
    assert_eq!(all(&headers, "x-forwarded-proto"), ["http"]);
    assert_eq!(all(&headers, "forwarded"), [""; 0]);
}

#[test]
fn forwarded_quotes_ipv6() {
    let element = |peer: &str| {
        let hop = Hop {
            peer: peer.parse().unwrap(),
            proto: "https",
            ..HOP
        };
        forwarded_element(&hop)
    };
    assert_eq!(element("2001:db8::1"), "for=\"[2001:db8::1]\";proto=https");
    assert_eq!(element("::ffff:1.2.3.4"), "for=1.2.3.4;proto=https");
}

#[test]
fn the_client_is_the_nth_entry_from_the_right() {
    for (hops, values, want) in [
        (0, &["1.1.1.1"][..], "192.0.2.7"),
        (1, &[], "192.0.2.7"),
        (1, &["1.1.1.1"], "1.1.1.1"),
        (1, &["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
        (2, &["6.6.6.6, 1.1.1.1,2.2.2.2"], "1.1.1.1"),
        (2, &["6.6.6.6, 1.1.1.1", "2.2.2.2"], "1.1.1.1"),
        (3, &["6.6.6.6", "1.1.1.1", "2.2.2.2"], "6.6.6.6"),
        (255, &["6.6.6.6", "1.1.1.1", "2.2.2.2"], "6.6.6.6"),
        // Shorter than it should be: the first that is there.
        (3, &["1.1.1.1, 2.2.2.2"], "1.1.1.1"),
        // No addresses: the last one on the way, or the peer.
        (2, &["unknown, 2.2.2.2"], "2.2.2.2"),
        (2, &["1.1.1.1, unknown"], "1.1.1.1"),
        (2, &["6.6.6.6, unknown, _hidden"], "192.0.2.7"),
        (1, &["1.1.1.1, ,"], "1.1.1.1"),
        (1, &["1.1.1.1:4711"], "1.1.1.1"),
        (1, &["2001:db8::1"], "2001:db8::1"),
        (1, &["[2001:db8::1]"], "2001:db8::1"),
        (1, &["[2001:db8::1]:80"], "2001:db8::1"),
        (1, &["::ffff:1.2.3.4"], "1.2.3.4"),
        (1, &["[1.1.1.1]"], "192.0.2.7"),
        (1, &["1.1.1.1.1"], "192.0.2.7"),
        (1, &["1.1.1.1:x"], "192.0.2.7"),
    ] {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_static(value));
        }
        let got = client_address(&headers, CLIENT, hops);
        assert_eq!(got.to_string(), want, "{hops} {values:?}");
    }
    let mut headers = HeaderMap::new();
    headers.append(
        X_FORWARDED_FOR,
        HeaderValue::from_bytes(b"\xff, 1.1.1.1").unwrap(),
    );
    assert_eq!(client_address(&headers, CLIENT, 1).to_string(), "1.1.1.1");
    assert_eq!(client_address(&headers, CLIENT, 2).to_string(), "1.1.1.1");
    prepare_request(&mut headers, &trusting(2)).unwrap();
    assert_eq!(
        headers[X_FORWARDED_FOR].as_bytes(),
        b"\xff, 1.1.1.1, 192.0.2.7",
        "opaque bytes go on"
    );
}

#[test]
fn the_peer_is_the_next_proxys_client() {
    // Two of these proxies behind each other: what the first one writes is what the second one reads.
    let mut headers = map(&[("x-forwarded-for", "6.6.6.6")]);
    let client = "2001:db8::7".parse().unwrap();
    let first = Hop {
        peer: client,
        ..HOP
    };
    prepare_request(&mut headers, &first).unwrap();
    assert_eq!(client_address(&headers, CLIENT, 1), client);
    prepare_request(&mut headers, &trusting(1)).unwrap();
    assert_eq!(
        client_address(&headers, "10.0.0.1".parse().unwrap(), 2),
        client
    );
}
