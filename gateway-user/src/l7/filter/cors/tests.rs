//! CORS: verdicts on requests, origins, and the fields of answers.

use super::*;

fn filter() -> Cors {
    Cors {
        allow_origins: vec![
            Origin::Exact("https://www.foo.com".into()),
            Origin::Exact("http://plain.com:80".into()),
            Origin::Exact("https://port.com:8443".into()),
            Origin::Wildcard {
                scheme: "https://".into(),
                suffix: ".bar.com".into(),
                port: "".into(),
            },
            Origin::Wildcard {
                scheme: "http://".into(),
                suffix: "".into(),
                port: ":8080".into(),
            },
        ],
        allow_credentials: false,
        allow_methods: AnyOr::These(vec![Method::GET, Method::OPTIONS]),
        allow_headers: AnyOr::These(vec![
            HeaderName::from_static("x-header-1"),
            HeaderName::from_static("x-header-2"),
        ]),
        expose_headers: AnyOr::These(vec![
            HeaderName::from_static("x-header-3"),
            HeaderName::from_static("x-header-4"),
        ]),
        max_age: 3600,
    }
}

fn everything(allow_credentials: bool) -> Cors {
    Cors {
        allow_origins: vec![Origin::Any],
        allow_credentials,
        allow_methods: AnyOr::Any,
        allow_headers: AnyOr::Any,
        expose_headers: AnyOr::Any,
        max_age: 5,
    }
}

fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(*name, HeaderValue::try_from(*value).unwrap());
    }
    map
}

/// Fields as sorted lines.
fn lines(map: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<String> = map
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    lines.sort();
    lines
}

fn preflight_of(filter: &Cors, fields: &[(&'static str, &str)]) -> Vec<String> {
    match cors(filter, &Method::OPTIONS, &map(fields)) {
        CorsVerdict::Preflight(fields) => lines(&fields),
        other => panic!("{other:?}"),
    }
}

fn actual_of(filter: &Cors, fields: &[(&'static str, &str)]) -> Vec<String> {
    match cors(filter, &Method::GET, &map(fields)) {
        CorsVerdict::Actual(fields) => lines(&fields),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_preflight_request_is_told_what_is_allowed() {
    let mut filter = filter();
    filter.allow_credentials = true;
    let got = preflight_of(
        &filter,
        &[
            ("origin", "https://www.foo.com"),
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", "x-header-1, x-header-2"),
        ],
    );
    assert_eq!(
        got,
        [
            "access-control-allow-credentials: true",
            "access-control-allow-headers: x-header-1, x-header-2",
            "access-control-allow-methods: GET, OPTIONS",
            "access-control-allow-origin: https://www.foo.com",
            "access-control-expose-headers: x-header-3, x-header-4",
            "access-control-max-age: 3600",
            "vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        ]
    );
}

#[test]
fn empty_lists_are_not_sent() {
    let filter = Cors {
        allow_methods: AnyOr::default(),
        allow_headers: AnyOr::default(),
        expose_headers: AnyOr::default(),
        ..filter()
    };
    let got = preflight_of(
        &filter,
        &[
            ("origin", "https://www.foo.com"),
            ("access-control-request-method", "PUT"),
        ],
    );
    assert_eq!(
        got,
        [
            "access-control-allow-origin: https://www.foo.com",
            "access-control-max-age: 3600",
            "vary: Origin",
        ]
    );
}

#[test]
fn wildcards_stand_as_they_are_without_credentials() {
    let asked = [
        ("origin", "https://foobar.com:12345"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-a"),
    ];
    assert_eq!(
        preflight_of(&everything(false), &asked),
        [
            "access-control-allow-headers: *",
            "access-control-allow-methods: *",
            "access-control-allow-origin: *",
            "access-control-expose-headers: *",
            "access-control-max-age: 5",
        ]
    );
    assert_eq!(
        actual_of(&everything(false), &asked[..1]),
        [
            "access-control-allow-origin: *",
            "access-control-expose-headers: *",
        ]
    );
}

#[test]
fn wildcards_become_what_was_asked_for_with_credentials() {
    let vary = "vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
    assert_eq!(
        preflight_of(
            &everything(true),
            &[
                ("origin", "https://foobar.com"),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "X-A ,x-b,, x c"),
                ("access-control-request-headers", "x-d"),
            ]
        ),
        [
            "access-control-allow-credentials: true",
            "access-control-allow-headers: x-a, x-b, x-d",
            "access-control-allow-methods: PUT",
            "access-control-allow-origin: https://foobar.com",
            "access-control-max-age: 5",
            vary,
        ]
    );
    assert_eq!(
        preflight_of(
            &everything(true),
            &[("origin", "null"), ("access-control-request-method", "P T"),]
        ),
        [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: null",
            "access-control-max-age: 5",
            vary,
        ]
    );
}

#[test]
fn what_is_a_preflight_request() {
    let both = [
        ("origin", "https://www.foo.com"),
        ("access-control-request-method", "GET"),
    ];
    let verdict = |method: Method, fields| cors(&filter(), &method, &map(fields));
    assert_eq!(verdict(Method::GET, &both[1..]), CorsVerdict::NotCors);
    assert_eq!(verdict(Method::OPTIONS, &both[1..]), CorsVerdict::NotCors);
    for (method, fields, preflight) in [
        (Method::OPTIONS, &both[..], true),
        (Method::OPTIONS, &both[..1], false),
        (Method::GET, &both[..], false),
        (Method::POST, &both[..1], false),
    ] {
        let got = matches!(verdict(method, fields), CorsVerdict::Preflight(_));
        assert_eq!(got, preflight, "{fields:?}");
    }
}

#[test]
fn origins() {
    for (origin, admitted) in [
        ("https://www.foo.com", true),
        ("HTTPS://WWW.Foo.com", true),
        ("https://www.foo.com:443", true),
        ("https://www.foo.com:8443", false),
        ("http://www.foo.com", false),
        ("https://foo.com", false),
        ("https://www.foo.com.evil.com", false),
        ("https://www.foo.com/", false),
        ("http://plain.com", true),
        ("http://plain.com:80", true),
        ("https://port.com:8443", true),
        ("https://port.com", false),
        ("https://www.bar.com", true),
        ("https://xpto.www.BAR.com", true),
        ("https://www.bar.com:443", true),
        ("https://www.bar.com:8443", false),
        ("http://www.bar.com", false),
        ("https://bar.com", false),
        ("https://.bar.com", false),
        ("https://foobar.com", false),
        ("https://evil.com/.bar.com", false),
        ("https://evil.com?.bar.com", false),
        ("https://u@www.bar.com", false),
        ("http://anything:8080", true),
        ("http://[::1]:8080", true),
        ("http://anything", false),
        ("http://:8080", false),
        ("http://[::1:8080", false),
        ("null", false),
        ("", false),
        ("https://", false),
        ("https://a b.bar.com", false),
    ] {
        let got = actual_of(&filter(), &[("origin", origin)]);
        if !admitted {
            assert_eq!(got, ["vary: Origin"], "{origin}");
        } else {
            assert_eq!(
                got,
                [
                    format!("access-control-allow-origin: {origin}"),
                    "access-control-expose-headers: x-header-3, x-header-4".to_owned(),
                    "vary: Origin".to_owned(),
                ]
            );
        }
    }
}

#[test]
fn foreign_and_ambiguous_origins_get_nothing() {
    let asked = ("access-control-request-method", "GET");
    let nothing = ["vary: Origin"];
    assert_eq!(
        preflight_of(&filter(), &[("origin", "https://x"), asked]),
        nothing
    );
    let good = ("origin", "https://www.foo.com");
    assert_eq!(preflight_of(&filter(), &[good, good, asked]), nothing);
    let mut opaque = HeaderMap::new();
    opaque.insert(ORIGIN, HeaderValue::from_bytes(b"https://\xff").unwrap());
    assert_eq!(
        cors(&filter(), &Method::GET, &opaque),
        CorsVerdict::Actual(map(&[("vary", "Origin")]))
    );
}

#[test]
fn answers_have_our_fields_only() {
    let mut headers = map(&[
        ("access-control-allow-origin", "*"),
        ("access-control-allow-origin", "https://evil.com"),
        ("access-control-expose-headers", "x"),
        ("access-control-anything", "x"),
        ("vary", "Accept-Encoding"),
        ("server", "b"),
    ]);
    let ours = map(&[
        ("access-control-allow-origin", "https://www.foo.com"),
        ("vary", "Origin"),
    ]);
    answer(&mut headers, &ours);
    assert_eq!(
        lines(&headers),
        [
            "access-control-allow-origin: https://www.foo.com",
            "server: b",
            "vary: Accept-Encoding",
            "vary: Origin",
        ]
    );
    answer(&mut headers, &HeaderMap::new());
    assert_eq!(headers.len(), 3, "{headers:?}");
}
