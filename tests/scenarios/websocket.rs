//! WebSockets by `websockets`, and by `h2` and `wsproto` on HTTP/2, to a server of `websockets`.

use std::time::Duration;

use anyhow::ensure;
use gateway_tests::{
    eventually::eventually,
    stage::{
        CLEAR, ENDPOINTS, Stage, VIP, WEBSOCKET, field,
        manifest::{Condition, certificate, gateway, route, service},
    },
};
use serde_json::{Value, json};

/// Close codes that an endpoint may send.
const CODES: [u16; 10] = [1000, 1001, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 4999];

/// A stage with an endpoint of WebSockets at `ws.example.test`.
fn stage() -> Stage {
    let mut stage = Stage::new().unwrap();
    let endpoints = [(ENDPOINTS[0], Condition::Ready)];
    let rule = |name: &str| format!("[{{backendRefs: [{{name: {name}, port: 80}}]}}]");
    let texts = [
        gateway(&[("https", 443, Some("*.example.test"), "wild")]),
        certificate("wild", &stage.wild),
        service("sockets", "kubernetes.io/ws", WEBSOCKET, &endpoints),
        service("h1", "", CLEAR, &endpoints),
        route("HTTPRoute", "ws", "ws.example.test", &rule("sockets")),
        route("HTTPRoute", "h1", "h1.example.test", &rule("h1")),
    ];
    stage.write("all.yaml", &texts.join("---\n")).unwrap();
    stage.serve(2).unwrap();
    stage
}

#[test]
fn every_case_by_ws_wss_and_http2() {
    let stage = stage();
    let root = stage.root();
    for roots in [None, Some(root.as_str())] {
        let port = if roots.is_some() { "443" } else { "80" };
        let words: Vec<&str> = ["ws.example.test", VIP, port]
            .into_iter()
            .chain(roots)
            .collect();
        let found = stage.ask("websocket_cases.py", &words).unwrap();
        let object = found.as_object().unwrap();
        for (name, outcome) in object {
            let expected = match name.split_once(' ') {
                Some(("close", "of ours")) => json!([1000, ""]),
                Some(("close", code)) => json!(code.parse::<u16>().unwrap()),
                Some(("closed", code)) => json!([code.parse::<u16>().unwrap(), "as asked"]),
                _ if name == "h2" => outcome.clone(),
                _ => json!(true),
            };
            assert_eq!(*outcome, expected, "{name} on port {port}");
        }
        assert_eq!(
            object.len() - usize::from(roots.is_some()),
            8 + 4 + 5 + 1 + 1 + 3 + 2 * CODES.len() + 1
        );
        if roots.is_some() {
            let http2 = &found["h2"];
            for (name, expected) in [
                ("alpn", json!("h2")),
                ("extended CONNECT offered", json!(true)),
                ("statuses", json!(["200", "200"])),
                ("no fields of HTTP/1", json!([])),
                ("request beside them", json!("200")),
                ("echo 1", json!(true)),
                ("pong 1", json!(true)),
                ("echo 3", json!(true)),
                ("pong 3", json!(true)),
                ("a million", json!(true)),
                ("close 1", json!(4000)),
                ("close 3", json!(4000)),
            ] {
                assert_eq!(http2[name], expected, "{name}: {http2}");
            }
        }
        let seen = stage.seen().unwrap();
        let sockets: Vec<&Value> = seen
            .iter()
            .filter(|saw| saw["kind"] == "websocket")
            .collect();
        let in_all = 3 + 2 * CODES.len() + 50 + if roots.is_some() { 2 } else { 0 };
        assert_eq!(sockets.len(), in_all);
        for code in CODES {
            let ends = |path: &str| {
                let of = sockets
                    .iter()
                    .filter(|saw| saw["path"] == path && saw["close"] == code);
                of.count()
            };
            assert_eq!(
                ends(&format!("/close/{code}")),
                1,
                "the endpoint's own {code}"
            );
            assert_eq!(ends("/codes"), 1, "the client's {code}");
        }
        let first = sockets[0];
        let proto = if roots.is_some() { "https" } else { "http" };
        assert_eq!(field(first, "x-forwarded-proto").as_deref(), Some(proto));
        assert_eq!(
            field(first, "host").map(|host| host.starts_with("ws.example.test")),
            Some(true)
        );
        assert_eq!(field(first, "upgrade").as_deref(), Some("websocket"));
        assert_eq!(field(first, "sec-websocket-extensions"), None);
        if roots.is_some() {
            let over_http2: Vec<_> = sockets
                .iter()
                .filter(|saw| saw["path"].as_str().unwrap().starts_with("/h2/"))
                .collect();
            assert_eq!(over_http2.len(), 2);
            assert_eq!(field(over_http2[0], "via").as_deref(), Some("2.0 forebay"));
            assert_eq!(
                (&over_http2[0]["close"], &over_http2[1]["close"]),
                (&json!(4001), &json!(4003))
            );
        }
    }
}

#[test]
fn they_outlive_the_signal_to_end() {
    let mut stage = stage();
    let mut python = stage.python("tunnels.py").unwrap();
    python.args(["ws.example.test", VIP, &stage.root()]);
    let clients = stage.start(&mut python).unwrap();
    stage.terminate().unwrap();
    eventually("the drain", Duration::from_secs(10), || {
        ensure!(stage.log().contains("draining"), "{}", stage.log());
        Ok(())
    })
    .unwrap();
    let told: Value = serde_json::from_str(&clients.end().unwrap()).unwrap();
    let wanted = json!({"ws": [20, 1000], "wss": [20, 1000]});
    assert_eq!(told, wanted);
    // It ends with the last connection, long before its 60 s are over.
    assert!(stage.ended(Duration::from_secs(20)).unwrap().success());
    let seen = stage.seen().unwrap();
    let ends: Vec<_> = seen
        .iter()
        .map(|saw| (&saw["path"], &saw["messages"], &saw["close"]))
        .collect();
    let end = |path: &'static str| (json!(path), json!(20), json!(1000));
    let (one, two) = (end("/ws"), end("/wss"));
    assert_eq!(ends, [(&one.0, &one.1, &one.2), (&two.0, &two.1, &two.2)]);
    let lines = stage.access_log().unwrap();
    let flags: Vec<_> = lines.iter().map(|line| &line["response_flags"]).collect();
    assert_eq!(flags, ["-", "-"], "{lines:?}");
}
