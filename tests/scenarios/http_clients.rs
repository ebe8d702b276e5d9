//! HTTP/1.0, 1.1 and 2 as curl, nghttp and h2load speak them, to hypercorn and nghttpd, and what routes do on the way.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use gateway_tests::{
    eventually::eventually,
    stage::{
        CLEAR, ENDPOINTS, Stage, TLS, VIP, field,
        manifest::{Condition, authority, certificate, gateway, policy, route, service},
    },
};
use serde_json::Value;

const READY: Condition = Condition::Ready;
/// A port of nghttpd in clear, and by TLS.
const NGHTTPD: [u16; 2] = [9080, 9443];
/// What is trusted towards endpoints that speak TLS.
const TRUST: &str =
    "mode: SIMPLE, sni: endpoint.test, subjectAltNames: [endpoint.test], credentialName: roots";

/// A stage with a Service for each way to speak to an endpoint, and a host for each.
fn stage() -> Stage {
    let stage = Stage::new().unwrap();
    let root = std::fs::read_to_string(stage.authority.root()).unwrap();
    let one = [(ENDPOINTS[0], READY)];
    let tls = format!("{{tls: {{{TRUST}}}}}");
    let tls_h2 =
        format!("{{tls: {{{TRUST}}}, connectionPool: {{http: {{h2UpgradePolicy: UPGRADE}}}}}}");
    let mut texts = vec![
        gateway(&[("https", 443, Some("*.example.test"), "wild")]),
        certificate("wild", &stage.wild),
        authority("roots", &root),
        service("h1", "", CLEAR, &one),
        service("h2c", "kubernetes.io/h2c", CLEAR, &one),
        service("tls", "https", TLS, &one),
        // By the endpoint's choice in the handshake; HTTP/1.1; HTTP/2.
        service("tlsh1", "kubernetes.io/wss", TLS, &one),
        service("tlsh2", "", TLS, &one),
        service("nghttpd", "kubernetes.io/h2c", NGHTTPD[0], &one),
        service("nghttpds", "", NGHTTPD[1], &one),
        policy("tls", &tls),
        policy("tlsh1", &tls),
        policy("tlsh2", &tls_h2),
        policy("nghttpds", &tls_h2),
    ];
    for name in ["h1", "h2c", "tls", "tlsh1", "tlsh2", "nghttpd", "nghttpds"] {
        let rules = format!("[{{backendRefs: [{{name: {name}, port: 80}}]}}]");
        let host = format!("{name}.example.test");
        texts.push(route("HTTPRoute", name, &host, &rules));
    }
    stage.write("all.yaml", &texts.join("---\n")).unwrap();
    stage
}

#[test]
fn every_version_on_both_sides() {
    let mut stage = stage();
    stage.serve(2).unwrap();
    let body = stage.path("body");
    std::fs::write(&body, vec![b'b'; 1 << 20]).unwrap();
    // SHA-256 of that.
    let digest = stage.run(Command::new("sha256sum").arg(&body)).unwrap();
    let digest = digest.split(' ').next().unwrap();
    let clients = [
        ("--http1.0", "http", "1.0"),
        ("--http1.1", "http", "1.1"),
        ("--http2-prior-knowledge", "http", "2"),
        ("--http1.0", "https", "1.0"),
        ("--http1.1", "https", "1.1"),
        ("--http2", "https", "2"),
    ];
    let endpoints = [
        ("h1", "1.1", "http"),
        ("h2c", "2", "http"),
        ("tls", "2", "https"),
        ("tlsh1", "1.1", "https"),
        ("tlsh2", "2", "https"),
    ];
    for (flag, scheme, version) in clients {
        for (endpoint, spoken, spoken_scheme) in endpoints {
            let what = format!("{scheme} {version} to {endpoint}");
            let url = format!("{scheme}://{endpoint}.example.test/some/path?a=b&c");
            let mut curl = stage.curl();
            curl.args([flag, "--data-binary", &format!("@{body}")])
                .args(["-o", "/dev/null", "-w", "%{http_code} %{http_version}"])
                .args(["-H", "x-forwarded-for: 10.9.9.9", "-H", "TE: trailers"])
                .args(["-H", "Expect:"])
                .arg(&url);
            // An answer to HTTP/1.0 may say 1.1 (RFC 9110, 2.5); curl then says what the answer says.
            let said = stage.run(&mut curl).unwrap();
            let (status, told) = said.split_once(' ').unwrap();
            assert_eq!(status, "200", "{what}");
            if version == "1.0" {
                assert!(["1", "1.0", "1.1"].contains(&told), "{what}: {told}");
            } else {
                assert_eq!(told, version, "{what}");
            }
            let seen = stage.seen().unwrap();
            assert_eq!(seen.len(), 1, "{what}: {seen:?}");
            let saw = &seen[0];
            let told = |name| saw[name].as_str().unwrap();
            assert_eq!(
                (told("version"), told("scheme")),
                (spoken, spoken_scheme),
                "{what}"
            );
            assert_eq!(told("method"), "POST", "{what}");
            assert_eq!(
                (told("path"), told("query")),
                ("/some/path", "a=b&c"),
                "{what}"
            );
            assert_eq!(saw["length"], 1 << 20, "{what}");
            assert_eq!(told("sha256"), digest, "{what}");
            let via = match version {
                "2" => "2.0 forebay",
                "1.0" => "1.0 forebay",
                _ => "1.1 forebay",
            };
            for (name, value) in [
                ("host", Some(format!("{endpoint}.example.test"))),
                ("via", Some(via.to_owned())),
                // Nobody before this one is believed.
                ("x-forwarded-for", Some(VIP.to_owned())),
                ("x-forwarded-proto", Some(scheme.to_owned())),
                ("te", Some("trailers".to_owned())),
                ("content-length", Some((1 << 20).to_string())),
                ("expect", None),
                ("upgrade", None),
            ] {
                assert_eq!(field(saw, name), value, "{what}: {name}");
            }
        }
    }
}

#[test]
fn upgrades_bodies_of_unknown_length_and_the_kept_connections_of_curl() {
    let mut stage = stage();
    stage.serve(1).unwrap();
    // An upgrade to h2c is declined by going on in HTTP/1.1 (RFC 9113 has no such upgrade any more).
    let mut curl = stage.curl();
    curl.args(["--http2", "-w", "%{http_version}", "-o", "/dev/null"]);
    let said = stage.run(curl.arg("http://h1.example.test/up")).unwrap();
    assert_eq!(said, "1.1");
    let seen = stage.seen().unwrap();
    assert_eq!(field(&seen[0], "upgrade"), None);
    assert_eq!(field(&seen[0], "http2-settings"), None);
    // A body of unknown length is read from a pipe; with 100-continue.
    for (flag, url) in [
        ("--http1.1", "http://h1.example.test/piped"),
        ("--http1.1", "http://h2c.example.test/piped"),
        ("--http2", "https://h1.example.test/piped"),
        ("--http2", "https://tlsh2.example.test/piped"),
    ] {
        let curl = stage.curl();
        let words: Vec<_> = curl
            .get_args()
            .map(|w| w.to_string_lossy().into_owned())
            .collect();
        let script = "head -c 300000 /dev/zero | curl \"$@\"";
        let mut sh = Command::new("sh");
        sh.args(["-c", script, "sh"]).args(words);
        sh.args([flag, "-T", "-", "-o", "/dev/null", "-w", "%{http_code}"]);
        let said = stage
            .run(sh.args(["-H", "Expect: 100-continue", url]))
            .unwrap();
        assert_eq!(said, "200", "{flag} {url}");
        let seen = stage.seen().unwrap();
        assert_eq!(seen[0]["length"], 300_000, "{flag} {url}");
        assert_eq!(field(&seen[0], "content-length"), None, "{flag} {url}");
    }
    // Four requests on one connection, and a HEAD between them.
    for (flag, url) in [
        ("--http1.1", "http://h1.example.test/kept"),
        ("--http2", "https://h1.example.test/kept"),
    ] {
        let mut curl = stage.curl();
        curl.args([flag, "-w", "%{num_connects} "]);
        for _ in 0..4 {
            curl.args(["-o", "/dev/null", url]);
        }
        assert_eq!(stage.run(&mut curl).unwrap(), "1 0 0 0 ", "{flag} {url}");
        let mut head = stage.curl();
        let said = stage.run(head.args([flag, "-I", url])).unwrap();
        assert!(said.contains("content-length: "), "{said}");
        let methods: Vec<String> = (stage.seen().unwrap().iter())
            .map(|saw| saw["method"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            methods,
            ["GET", "GET", "GET", "GET", "HEAD"],
            "{flag} {url}"
        );
    }
}

/// `1000 succeeded` and the like of what h2load says.
fn count(said: &str, of: &str) -> u64 {
    let line = said.lines().find(|line| line.starts_with("requests: "));
    let line = line.unwrap_or_else(|| panic!("h2load says no count: {said}"));
    let part = line.split(", ").find_map(|part| part.strip_suffix(of));
    part.unwrap()
        .trim()
        .trim_start_matches("requests: ")
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn h2load_and_nghttp_get_every_answer_once() {
    let mut stage = stage();
    let leaf = stage
        .authority
        .issue("nghttpd", &["endpoint.test"], 102)
        .unwrap();
    let root = stage.path("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(format!("{root}/file"), vec![b'f'; 100_000]).unwrap();
    let listens = |port: u16| format!("{}:{port}", ENDPOINTS[0]);
    let mut clear = Command::new("nghttpd");
    clear.args(["-a", ENDPOINTS[0], "-d", &root, "--no-tls"]);
    stage
        .keep(clear.arg(NGHTTPD[0].to_string()), &listens(NGHTTPD[0]))
        .unwrap();
    let mut tls = Command::new("nghttpd");
    tls.args(["-a", ENDPOINTS[0], "-d", &root, &NGHTTPD[1].to_string()]);
    tls.arg(&leaf.key_file).arg(&leaf.chain_file);
    stage.keep(&mut tls, &listens(NGHTTPD[1])).unwrap();
    stage.serve(2).unwrap();
    for (what, words, host) in [
        // To an endpoint of HTTP/2: hypercorn's HTTP/1.1 has no reason phrases, which h2load does not take for answers.
        ("HTTP/1.1", &["--h1"][..], "h2c"),
        ("HTTP/1.1 by TLS", &["--h1"][..], "h2cs"),
        ("h2c", &["-m", "20"][..], "h2c"),
        ("h2 by TLS", &["-m", "20"][..], "h1s"),
    ] {
        let secure = host.ends_with('s');
        let (scheme, port) = if secure { ("https", 443) } else { ("http", 80) };
        let host = host.trim_end_matches('s');
        let mut h2load = Command::new("h2load");
        h2load
            .args(["-n", "1000", "-c", "10", "-t", "1"])
            .args(words);
        h2load.args(["--connect-to", &format!("{VIP}:{port}")]);
        h2load.arg(format!("{scheme}://{host}.example.test/load"));
        let said = stage.run(&mut h2load).unwrap();
        let counts = [" succeeded", " failed", " errored", " timeout"].map(|of| count(&said, of));
        let last = || stage.access_log().unwrap().pop();
        assert_eq!(counts, [1000, 0, 0, 0], "{what}: {said} {:?}", last());
        assert_eq!(stage.seen().unwrap().len(), 1000, "{what}");
    }
    // nghttpd has HTTP/2 only: it answers because it is spoken to by HTTP/2.
    for host in ["nghttpd", "nghttpds"] {
        for (flag, scheme, port) in [
            ("--h1", "http", 80),
            ("-m10", "http", 80),
            ("-m10", "https", 443),
        ] {
            let mut h2load = Command::new("h2load");
            h2load.args(["-n", "300", "-c", "3", "-t", "1", flag]);
            h2load.args(["--connect-to", &format!("{VIP}:{port}")]);
            h2load.arg(format!("{scheme}://{host}.example.test/file"));
            let said = stage.run(&mut h2load).unwrap();
            let counts = [" succeeded", " failed", " errored"].map(|of| count(&said, of));
            assert_eq!(counts, [300, 0, 0], "{host} {flag} {scheme}: {said}");
            let bytes =
                said.contains("(30000000) data") || said.contains("28.61MB (30000000) data");
            assert!(bytes, "{host} {flag} {scheme}: {said}");
        }
    }
    // nghttp: priorities, a trailer, padding, a window of 1 MiB, and the body of the answer as it is.
    let mut nghttp = Command::new("nghttp");
    nghttp.args([
        "--padding=100",
        "--trailer",
        "x-end: 1",
        "-w20",
        "-W20",
        "-d",
    ]);
    nghttp
        .arg(format!("{root}/file"))
        .args(["-H", ":authority: h2c.example.test"]);
    nghttp.arg(format!("http://{VIP}:80/posted"));
    let said = stage.run(&mut nghttp).unwrap();
    let saw: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(saw["length"], 100_000);
    assert_eq!(saw["version"], "2");
}

#[test]
fn filters_and_retries_as_clients_and_endpoints_see_them() {
    let mut stage = Stage::new().unwrap();
    let rules = "
    - matches: [{path: {value: /old}}]
      filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
    - matches: [{path: {value: /rewrite}}]
      filters: [{type: URLRewrite, urlRewrite: {hostname: inner.test, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}]
      backendRefs: [{name: main, port: 80}]
    - matches: [{path: {value: /headers}}]
      filters:
      - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: s}], add: [{name: x-add, value: a}], remove: [x-gone]}}
      - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-answer, value: r}], remove: [server]}}
      backendRefs: [{name: main, port: 80}]
    - matches: [{path: {value: /mirror}}]
      filters:
      - {type: RequestMirror, requestMirror: {backendRef: {name: copies, port: 80}}}
      backendRefs: [{name: main, port: 80}]
    - matches: [{path: {value: /flaky}}]
      retry: {codes: [503], attempts: 3, backoff: 1ms}
      backendRefs: [{name: main, port: 80}]
    - matches: [{path: {value: /hold}}]
      timeouts: {request: 300ms}
      backendRefs: [{name: main, port: 80}]
    - matches: [{path: {value: /weighted}}]
      backendRefs: [{name: main, port: 80, weight: 3}, {name: copies, port: 80, weight: 1}]
    - matches: [{path: {value: /api}}]
      filters: [{type: CORS, cors: {allowOrigins: ['https://app.example.test'], allowMethods: [GET, PUT], allowHeaders: [x-token], allowCredentials: true, maxAge: 60}}]
      backendRefs: [{name: main, port: 80}]
";
    let texts = [
        gateway(&[("https", 443, Some("*.example.test"), "wild")]),
        certificate("wild", &stage.wild),
        service("main", "", CLEAR, &[(ENDPOINTS[0], READY)]),
        service(
            "copies",
            "kubernetes.io/h2c",
            CLEAR,
            &[(ENDPOINTS[1], READY)],
        ),
        route("HTTPRoute", "all", "a.example.test", rules),
    ];
    stage.write("all.yaml", &texts.join("---\n")).unwrap();
    stage.serve(2).unwrap();
    let schemes = [("--http1.1", "http"), ("--http2", "https")];
    for (flag, scheme) in schemes {
        let ask = |path: &str, more: &[&str]| {
            let mut curl = stage.curl();
            curl.args([flag, "-i"]).args(more);
            let said = stage.run(curl.arg(format!("{scheme}://a.example.test{path}")));
            let said = said.unwrap().to_ascii_lowercase();
            let (head, body) = said.split_once("\r\n\r\n").unwrap();
            (head.to_owned(), body.to_owned())
        };
        let status = |head: &str| head.split(' ').nth(1).unwrap().trim().to_owned();
        let (head, _) = ask("/old/page?x=1", &[]);
        assert_eq!(status(&head).get(..3), Some("301"), "{head}");
        assert!(
            head.contains("location: https://a.example.test/new/page?x=1"),
            "{head}"
        );
        assert_eq!(stage.seen().unwrap().len(), 0);

        ask("/rewrite/x", &[]);
        let seen = stage.seen().unwrap();
        assert_eq!(seen[0]["path"], "/v2/x");
        assert_eq!(field(&seen[0], "host").as_deref(), Some("inner.test"));
        assert_eq!(
            field(&seen[0], "x-forwarded-host").as_deref(),
            Some("a.example.test")
        );

        let (head, _) = ask(
            "/headers",
            &["-H", "x-gone: 1", "-H", "x-set: 2", "-H", "x-add: 0"],
        );
        assert!(head.contains("x-answer: r"), "{head}");
        assert!(!head.contains("\r\nserver:"), "{head}");
        let seen = stage.seen().unwrap();
        assert_eq!(field(&seen[0], "x-set").as_deref(), Some("s"));
        assert_eq!(field(&seen[0], "x-gone"), None);
        let added = field(&seen[0], "x-add").unwrap();
        assert!(["0|a", "0,a"].contains(&added.as_str()), "{added}");

        let body = "m".repeat(50_000);
        for _ in 0..20 {
            ask("/mirror", &["--data", &body, "-H", "Expect:"]);
        }
        let mut places = BTreeMap::<String, usize>::new();
        eventually("twenty copies", Duration::from_secs(5), || {
            for saw in stage.seen()? {
                assert_eq!(saw["length"], 50_000, "{saw}");
                *places
                    .entry(saw["at"].as_str().unwrap().into())
                    .or_default() += 1;
            }
            let all: usize = places.values().sum();
            ensure!(all == 40, "{all}");
            Ok(())
        })
        .unwrap();
        assert_eq!(
            places.values().collect::<Vec<_>>(),
            [&20, &20],
            "{places:?}"
        );

        for (failures, answer, asked) in
            [(0, "200", 1), (2, "200", 3), (3, "200", 4), (4, "503", 4)]
        {
            let path = format!("/flaky/{scheme}{failures}/{failures}");
            let (head, _) = ask(&path, &[]);
            assert_eq!(status(&head).get(..3), Some(answer), "{failures}: {head}");
            assert_eq!(stage.seen().unwrap().len(), asked, "{failures}");
        }

        let (head, _) = ask("/hold/2000", &[]);
        assert_eq!(status(&head).get(..3), Some("504"), "{head}");

        let _ = stage.seen().unwrap();
        for _ in 0..40 {
            ask("/weighted", &[]);
        }
        let seen = stage.seen().unwrap();
        let main = seen.iter().filter(|saw| saw["at"] == ENDPOINTS[0]);
        assert_eq!((main.count(), seen.len()), (30, 40));

        let preflight = |origin: &str, method: &str| {
            let origin = format!("Origin: {origin}");
            let method = format!("Access-Control-Request-Method: {method}");
            ask("/api", &["-X", "OPTIONS", "-H", &origin, "-H", &method]).0
        };
        let head = preflight("https://app.example.test", "PUT");
        for line in [
            "access-control-allow-origin: https://app.example.test",
            "access-control-allow-credentials: true",
            "access-control-max-age: 60",
            "access-control-allow-headers: x-token",
        ] {
            assert!(head.contains(line), "{line}: {head}");
        }
        let head = preflight("https://evil.example.test", "PUT");
        assert!(!head.contains("access-control-allow-origin"), "{head}");
        assert_eq!(stage.seen().unwrap().len(), 0, "preflights end here");
    }
    // Only the two requests that took too long have a flag. A client of HTTP/2 may go once it has all announced bytes,
    // before the end of the stream has come from an endpoint of HTTP/2.
    let flagged: Vec<Value> = (stage.access_log().unwrap().into_iter())
        .filter(|line| line["response_flags"] != "-" && line["response_flags"] != "UT")
        .filter(|line| line["protocol"] == "HTTP/1.1" || line["response_flags"] != "DC")
        .collect();
    assert_eq!(flagged, [Value::Null; 0]);
}

#[test]
fn a_proxy_header_is_read_and_written_and_cannot_be_left_out() {
    let mut stage = Stage::new().unwrap();
    let trusted = "apiVersion: forebay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: trust, namespace: default}\n\
                   spec:\n  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]\n  \
                   clientAddress: {proxyProtocol: true}\n";
    let texts = [
        gateway(&[("https", 443, Some("*.example.test"), "wild")]),
        certificate("wild", &stage.wild),
        trusted.to_owned(),
        service("main", "", CLEAR, &[(ENDPOINTS[0], READY)]),
        route(
            "HTTPRoute",
            "all",
            "a.example.test",
            "[{backendRefs: [{name: main, port: 80}]}]",
        ),
    ];
    stage.write("all.yaml", &texts.join("---\n")).unwrap();
    stage.serve(1).unwrap();
    for (flag, scheme) in [
        ("--http1.1", "http"),
        ("--http2-prior-knowledge", "http"),
        ("--http1.1", "https"),
        ("--http2", "https"),
    ] {
        let url = format!("{scheme}://a.example.test/");
        let mut curl = stage.curl();
        curl.args([flag, "--haproxy-protocol", "--interface", ENDPOINTS[2]]);
        curl.args(["-o", "/dev/null", "-w", "%{http_code}", &url]);
        assert_eq!(stage.run(&mut curl).unwrap(), "200", "{flag} {url}");
        let seen = stage.seen().unwrap();
        let from = field(&seen[0], "x-forwarded-for");
        assert_eq!(from.as_deref(), Some(ENDPOINTS[2]), "{flag} {url}");
        let mut curl = stage.curl();
        let (code, _, _) = stage.result(curl.args([flag, &url])).unwrap();
        // Reset or closed before any answer, or within the handshake.
        assert!(
            matches!(code, Some(16 | 18 | 35 | 52 | 56)),
            "{flag} {url}: {code:?}"
        );
        assert_eq!(stage.seen().unwrap().len(), 0, "{flag} {url}");
    }
}
