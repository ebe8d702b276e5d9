//! HTTP/2 requests on their way to an endpoint that speaks HTTP/1.1: what it gets is one request that can be read in one way,
//! or nothing.

use std::net::SocketAddr;
use std::time::Duration;

use gateway_user::proxy::Proxy;
use gateway_user::snapshot::TrafficPolicy;

use super::frames::*;
use crate::support::*;

type Fields<'a> = Vec<(&'a [u8], &'a [u8])>;

struct Case {
    name: String,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// DATA frames; `None`: the head ends the stream.
    body: Option<Vec<Vec<u8>>>,
    trailers: Option<Fields<'static>>,
}

fn case(name: impl Into<String>, edit: impl FnOnce(&mut Vec<(Vec<u8>, Vec<u8>)>)) -> Case {
    let mut fields: Vec<(Vec<u8>, Vec<u8>)> = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "test.example"),
        (":path", "/"),
    ]
    .map(|(n, v)| (n.into(), v.into()))
    .into();
    edit(&mut fields);
    Case {
        name: name.into(),
        fields,
        body: None,
        trailers: None,
    }
}

fn with(name: &str, value: &[u8]) -> Case {
    let shown = String::from_utf8_lossy(value).into_owned();
    case(format!("{name}: {shown:?}"), |fields| {
        match fields.iter_mut().find(|(n, _)| n == name.as_bytes()) {
            Some(field) => field.1 = value.to_vec(),
            None => fields.push((name.into(), value.to_vec())),
        }
    })
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        let fields: Fields = self.fields.iter().map(|(n, v)| (&**n, &**v)).collect();
        let ends = |last: bool| if last { END_STREAM } else { 0 };
        let alone = self.body.is_none() && self.trailers.is_none();
        let mut out = frame(HEADERS, END_HEADERS | ends(alone), 1, &block(&fields));
        let data = self.body.iter().flatten();
        let count = data.clone().count();
        for (at, piece) in data.enumerate() {
            let last = at + 1 == count && self.trailers.is_none();
            out.extend(frame(DATA, ends(last), 1, piece));
        }
        if let Some(trailers) = &self.trailers {
            out.extend(frame(HEADERS, WHOLE, 1, &block(trailers)));
        }
        out
    }
}

async fn served() -> (BackendServer, Proxy, SocketAddr) {
    let server = backend(fixed(200, "ok")).await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let mut snapshot = snapshot(at, &[(1, live)], |_| {});
    // Any host, so that what is refused is refused for its form.
    let key = gateway_user::snapshot::BindKey::from(at);
    let mut bind = (*snapshot.binds[&key]).clone();
    let mut listener = (*bind.listeners[0]).clone();
    listener.hostname = None;
    bind.listeners = vec![std::sync::Arc::new(listener)];
    snapshot.binds = [(key, std::sync::Arc::new(bind))].into();
    let proxy = start(1, &snapshot);
    (server, proxy, at)
}

/// Whether a head can be read in one way only.
fn is_clean(seen: &Seen) -> Result<(), String> {
    let head = seen.head.strip_suffix("\r\n\r\n").ok_or("no end")?;
    let mut lines = head.split("\r\n");
    let line: Vec<&str> = lines.next().unwrap().split(' ').collect();
    let [method, target, "HTTP/1.1"] = line[..] else {
        return Err(format!("request line {line:?}"));
    };
    let token = |text: &str| {
        let good = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^`|~".contains(c);
        !text.is_empty() && text.chars().all(good)
    };
    if !token(method) || !(target.starts_with('/') || target == "*") {
        return Err(format!("request line {line:?}"));
    }
    let mut names = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or(format!("line {line:?}"))?;
        let control = |c: char| c.is_ascii_control() && c != '\t';
        if !token(name) || value.chars().any(control) || value.trim() != value {
            return Err(format!("line {line:?}"));
        }
        names.push(name.to_ascii_lowercase());
    }
    let count = |name: &str| names.iter().filter(|n| *n == name).count();
    let framing = (count("content-length"), count("transfer-encoding"));
    if count("host") != 1 || framing.0 + framing.1 > 1 || count("cookie") > 1 {
        return Err(format!("fields {names:?}"));
    }
    for name in [
        "connection",
        "keep-alive",
        "upgrade",
        "proxy-connection",
        "http2-settings",
        "expect",
    ] {
        if count(name) > 0 && !(name == "connection" && count("te") == 1) {
            return Err(format!("{name} goes on"));
        }
    }
    let total = seen.header("content-length").map(str::parse::<usize>);
    if total.is_some_and(|total| total != Ok(seen.body.len())) {
        return Err("another length".to_owned());
    }
    Ok(())
}

/// What has to be refused, by an error or a status, and never seen by an endpoint.
#[expect(
    clippy::too_many_lines,
    reason = "a table is read whole, and its length is no complexity"
)]
fn refused() -> Vec<Case> {
    let mut cases = Vec::new();
    for bad in [
        &b"a\r\nx: y"[..],
        b"a\nb",
        b"a\rb",
        b"a\0b",
        b"\r\n",
        b"a\x01b",
        b"a\x7fb",
        b"a\x0bb",
        b"a\x1bb",
        b"x\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        cases.push(with("x-test", bad));
        for pseudo in [":method", ":scheme", ":authority", ":path"] {
            let before: &[u8] = match pseudo {
                ":path" => b"/",
                ":authority" => b"test.example",
                ":method" => b"GET",
                _ => b"http",
            };
            cases.push(with(pseudo, &[before, bad].concat()));
        }
        cases.push(case(format!("a name {bad:?}"), |f| {
            f.push((bad.to_vec(), b"v".to_vec()));
        }));
    }
    for name in [
        &b""[..],
        b" x",
        b"x ",
        b"x y",
        b"x:",
        b"x:y",
        b"X",
        b"x\ty",
        b"x(y)",
        b"x,y",
        b"x/y",
        b"\xc3\xa9",
        b":",
        b": x",
        b"x\x80",
    ] {
        cases.push(case(
            format!("a name {:?}", String::from_utf8_lossy(name)),
            |f| {
                f.push((name.to_vec(), b"v".to_vec()));
            },
        ));
    }
    for method in [
        "",
        " ",
        "GET ",
        " GET",
        "G ET",
        "GET / HTTP/1.1",
        "get\t",
        "GET\u{e9}",
        "G(T",
        &"A".repeat(33),
        "CONNECT",
    ] {
        cases.push(with(":method", method.as_bytes()));
    }
    for scheme in [
        "",
        "ftp",
        "javascript",
        "http ",
        "ht tp",
        "http://x",
        "://",
        "1http",
        "wss",
    ] {
        cases.push(with(":scheme", scheme.as_bytes()));
    }
    for authority in [
        "user@test.example",
        "user:pass@test.example",
        "a,b",
        "test.example:",
        "test.example:0",
        "test.example:65536",
        "test.example:-1",
        "test.example:8o",
        "test.example:80:80",
        "test.example/",
        "test.example/x",
        "test.example?x",
        "test.example#x",
        "test example",
        " test.example",
        "test.example ",
        "[::1",
        "::1",
        "[::1]x",
        "[g::1]",
        "%00",
        "a%2eb",
        "test.example\\x",
        "test.example:+80",
        "test.example, test.example",
        "",
        ".",
        "*",
        "*.example",
        "<a>",
        "\"a\"",
        "a;b",
    ] {
        cases.push(with(":authority", authority.as_bytes()));
    }
    for path in [
        "x",
        "http://other.example/",
        " /",
        "/ ",
        "/a b",
        "/%00",
        "/%",
        "/%2",
        "/%zz",
        "*",
        "?x",
        "/\u{e9}",
        "/a\tb",
        "/<a>",
        "/\"",
        &format!("/{}", "x".repeat(8 * 1024)),
    ] {
        cases.push(with(":path", path.as_bytes()));
    }
    for (name, value) in [
        ("host", "other.example"),
        ("host", "test.example:80"),
        ("host", ""),
        ("host", "test.example, a"),
        ("host", "user@test.example"),
        ("connection", "close"),
        ("connection", "x-test"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", ""),
        ("upgrade", "websocket"),
        ("upgrade", "h2c"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
        ("te", "chunked"),
        ("content-length", "1"),
        ("content-length", "-1"),
        ("content-length", "+0"),
        ("content-length", "0x0"),
        ("content-length", "0, 0"),
        ("content-length", ""),
        ("content-length", "18446744073709551616"),
        ("content-length", " 0"),
        ("content-length", "0 "),
        ("content-length", "1e1"),
        ("expect", "200-ok"),
        ("expect", "100-continue, x"),
        ("content_length", "5"),
        ("transfer_encoding", "chunked"),
        ("x_forwarded_for", "1.2.3.4"),
    ] {
        cases.push(with(name, value.as_bytes()));
    }
    for (name, twice) in [
        ("host", "test.example"),
        (":authority", "test.example"),
        (":path", "/"),
        (":method", "GET"),
        (":scheme", "http"),
        ("content-length", "0"),
    ] {
        cases.push(case(format!("{name} twice"), |f| {
            for _ in f.iter().filter(|(n, _)| n == name.as_bytes()).count()..2 {
                f.insert(4.min(f.len()), (name.into(), twice.into()));
            }
        }));
    }
    for missing in [":method", ":scheme", ":path", ":authority"] {
        cases.push(case(format!("no {missing}"), |f| {
            f.retain(|(n, _)| n != missing.as_bytes());
        }));
    }
    cases.push(case("a pseudo-header late", |f| {
        let last = f.remove(0);
        f.push((b"x".to_vec(), b"y".to_vec()));
        f.push(last);
    }));
    cases.push(case("two lengths that differ", |f| {
        f.push((b"content-length".to_vec(), b"0".to_vec()));
        f.push((b"content-length".to_vec(), b"5".to_vec()));
    }));
    cases.push(case("more than 100 fields", |f| {
        f.extend((0..101).map(|i| (format!("x-{i}").into_bytes(), b"v".to_vec())));
    }));
    cases.push(case("fields of more than 32 KiB", |f| {
        f.extend((0..3).map(|i| (format!("x-{i}").into_bytes(), vec![b'v'; 11 * 1024])));
    }));
    // No route leads there.
    cases.push(case("OPTIONS *", |f| {
        f[0].1 = b"OPTIONS".to_vec();
        f[3].1 = b"*".to_vec();
    }));
    for protocol in ["connect-udp", "connect-tcp", "", "websockets"] {
        cases.push(case(format!("CONNECT for {protocol:?}"), |f| {
            f[0].1 = b"CONNECT".to_vec();
            f.push((b":protocol".to_vec(), protocol.into()));
        }));
    }
    cases.push(case("a protocol without CONNECT", |f| {
        f.push((b":protocol".to_vec(), b"websocket".to_vec()));
    }));
    cases
}

#[tokio::test]
async fn what_has_no_clean_form_is_refused() {
    let (server, proxy, at) = served().await;
    let cases = refused();
    assert!(cases.len() >= 130, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let mut raw = Raw::connect(at).await;
        raw.send(&case.bytes()).await;
        let outcome = tokio::time::timeout(Duration::from_secs(2), raw.outcome(1))
            .await
            .ok();
        if !outcome.is_some_and(Outcome::refuses) {
            wrong.push(format!("{}: {outcome:?}", case.name));
        }
        for seen in server.seen.lock().unwrap().drain(..) {
            wrong.push(format!("{} goes on as {:?}", case.name, seen.head));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    until(|| proxy.stats().open_connections() == 0).await;
    assert_eq!(proxy.endpoints()[0].in_use.connections, 0);
}

fn body(mut case: Case, pieces: &[&str]) -> Case {
    case.fields[0].1 = b"POST".to_vec();
    case.body = Some(pieces.iter().map(|p| p.as_bytes().to_vec()).collect());
    case
}

fn trailers(mut case: Case, fields: &[(&'static str, &'static str)]) -> Case {
    case.trailers = Some(
        fields
            .iter()
            .map(|(n, v)| (n.as_bytes(), v.as_bytes()))
            .collect(),
    );
    case
}

/// Case, and lines that the head has to have or (with `!`) not to have, and the body.
#[expect(
    clippy::too_many_lines,
    reason = "a table is read whole, and its length is no complexity"
)]
fn taken() -> Vec<(Case, Vec<&'static str>, &'static str)> {
    let crumbs = |count: usize| {
        case(format!("{count} crumbs of cookies"), |f| {
            f.extend((0..count).map(|i| (b"cookie".to_vec(), format!("c{i}=1").into_bytes())));
        })
    };
    let plain = || case("plain", |_| {});
    let mut rows = vec![
        (
            plain(),
            vec![
                "GET / HTTP/1.1",
                "host: test.example",
                "via: 2.0 forebay",
                "x-forwarded-for: 127.0.0.1",
                "x-forwarded-proto: http",
            ],
            "",
        ),
        (crumbs(2), vec!["cookie: c0=1; c1=1"], ""),
        (crumbs(150), vec!["GET / HTTP/1.1"], ""),
        (
            with("host", b"test.example"),
            vec!["host: test.example"],
            "",
        ),
        (with("host", b"TEST.example"), vec!["GET / HTTP/1.1"], ""),
        (
            with(":authority", b"test.example:8080"),
            vec!["host: test.example:8080"],
            "",
        ),
        (with(":authority", b"[::1]:80"), vec!["host: [::1]:80"], ""),
        (
            case("Host alone", |f| {
                f.remove(2);
                f.push((b"host".to_vec(), b"test.example".to_vec()));
            }),
            vec!["host: test.example"],
            "",
        ),
        (
            with(":scheme", b"https"),
            vec!["x-forwarded-proto: http"],
            "",
        ),
        (
            with("te", b"trailers"),
            vec!["te: trailers", "connection: TE"],
            "",
        ),
        (with("x_test", b"1"), vec!["!x_test"], ""),
        (
            with("x-forwarded-for", b"1.2.3.4"),
            vec!["x-forwarded-for: 127.0.0.1"],
            "",
        ),
        (with("x-real-ip", b"1.2.3.4"), vec!["!x-real-ip"], ""),
        (
            with("forwarded", b"for=1.2.3.4"),
            vec!["!\r\nforwarded:"],
            "",
        ),
        (
            with("http2-settings", b"AAMAAABkAAQAAP__"),
            vec!["!http2-settings"],
            "",
        ),
        (
            with("x-test", b"\xc3\xa9"),
            vec!["x-test: \u{c3}\u{a9}"],
            "",
        ),
        (with(":path", b"/a/../b//c?x=%41#"), vec!["!GET /a"], ""),
        (
            with(":path", b"/a/../b/./c?x=/../"),
            vec!["GET /b/c?x=/../ HTTP/1.1"],
            "",
        ),
        (with(":path", b"//a"), vec!["GET //a HTTP/1.1"], ""),
        (
            with(":method", b"DELETE"),
            vec!["DELETE / HTTP/1.1", "!transfer-encoding", "!content-length"],
            "",
        ),
        (
            body(with("expect", b"100-continue"), &["x"]),
            vec!["!expect", "transfer-encoding: chunked"],
            "x",
        ),
        (
            body(plain(), &["hello ", "world"]),
            vec!["transfer-encoding: chunked", "!content-length"],
            "hello world",
        ),
        (
            body(with("content-length", b"11"), &["hello ", "world"]),
            vec!["content-length: 11", "!transfer-encoding"],
            "hello world",
        ),
        (
            body(with("content-length", b"0"), &[""]),
            vec!["content-length: 0", "!transfer-encoding"],
            "",
        ),
        (
            body(with("content-length", b"011"), &["hello ", "world"]),
            vec!["POST / HTTP/1.1"],
            "hello world",
        ),
        (body(plain(), &[""]), vec!["POST / HTTP/1.1"], ""),
        (
            trailers(
                body(plain(), &["x"]),
                &[
                    ("x-sum", "1"),
                    ("content-length", "9"),
                    ("authorization", "x"),
                ],
            ),
            vec![
                "transfer-encoding: chunked",
                "!content-length",
                "!authorization",
            ],
            "x",
        ),
        (
            trailers(
                body(with("content-length", b"1"), &["x"]),
                &[("x-sum", "1")],
            ),
            vec!["content-length: 1"],
            "x",
        ),
        (
            trailers(body(plain(), &["x"]), &[(":path", "/evil"), ("x-sum", "1")]),
            vec!["POST / HTTP/1.1", "!evil"],
            "x",
        ),
    ];
    let mut get = body(plain(), &["x"]);
    get.fields[0].1 = b"GET".to_vec();
    rows.push((
        get,
        vec!["GET / HTTP/1.1", "transfer-encoding: chunked"],
        "x",
    ));
    rows
}

#[tokio::test]
async fn what_goes_on_is_one_clean_request() {
    let (server, proxy, at) = served().await;
    let mut wrong = Vec::new();
    for (case, lines, body) in taken() {
        let mut raw = Raw::connect(at).await;
        raw.send(&case.bytes()).await;
        let outcome = tokio::time::timeout(Duration::from_secs(2), raw.outcome(1))
            .await
            .ok();
        let fine = outcome == Some(Outcome::Status(200));
        let all: Vec<Seen> = server.seen.lock().unwrap().drain(..).collect();
        // What breaks a rule in the end may be refused as well.
        let refusal = case.trailers.as_ref().is_some_and(|t| t[0].0 == b":path")
            || case.fields[3].1.ends_with(b"#");
        if all.is_empty() && refusal {
            continue;
        }
        let [seen] = &all[..] else {
            wrong.push(format!(
                "{}: {} requests, {outcome:?}",
                case.name,
                all.len()
            ));
            continue;
        };
        if let Err(why) = is_clean(seen) {
            wrong.push(format!("{}: {why}", case.name));
        }
        let head = seen.head.to_ascii_lowercase();
        for line in lines {
            let (want, text) = line
                .strip_prefix('!')
                .map_or((true, line), |text| (false, text));
            if head.contains(&text.to_ascii_lowercase()) != want {
                wrong.push(format!("{}: {line:?} in {head:?}", case.name));
            }
        }
        if seen.body != body.as_bytes() || !(fine || refusal) {
            wrong.push(format!("{}: {outcome:?}, {:?}", case.name, seen.body));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    until(|| proxy.stats().open_connections() == 0).await;
    until(|| proxy.endpoints()[0].in_use.requests == 0).await;
}
