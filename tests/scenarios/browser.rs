//! Headless Chromium: CORS, a connection that it uses for a name of another listener, a WebSocket on HTTP/2.

use std::time::Duration;

use anyhow::ensure;
use gateway_tests::{
    eventually::eventually,
    stage::{
        CLEAR, ENDPOINTS, Stage, VIP, WEBSOCKET,
        manifest::{Condition, certificate, gateway, route, service},
    },
};
use serde_json::{Value, json};

/// What the page does: each line of the answer is one thing it tried.
const SCRIPT: &str = r"(async () => {
  const found = {};
  const attempt = async (name, work) => {
    try { found[name] = await work(); } catch (error) { found[name] = error.name; }
  };
  const api = 'https://api.example.test/api';
  await attempt('simple', async () => (await (await fetch(api)).json()).method);
  await attempt('cookie set', async () => (await fetch('https://api.example.test/api/cookie', {credentials: 'include'})).status);
  await attempt('credentials', async () => (await (await fetch(api, {credentials: 'include'})).json()).headers.filter(h => h[0] == 'cookie').map(h => h[1]));
  await attempt('preflight', async () => (await (await fetch(api, {method: 'PUT', body: 'x', headers: {'x-token': 't'}})).json()).method);
  await attempt('method refused', async () => (await fetch(api, {method: 'DELETE'})).status);
  await attempt('header refused', async () => (await fetch(api, {method: 'PUT', headers: {'x-other': 't'}})).status);
  await attempt('origin refused', async () => (await fetch('https://api.example.test/closed')).status);
  await attempt('exposed', async () => (await fetch(api)).headers.get('via'));
  await attempt('coalesced', async () => (await (await fetch('https://b.example.test/api')).json()).path);
  await attempt('socket', () => new Promise((resolve, reject) => {
    const socket = new WebSocket('wss://app.example.test/ws/browser');
    socket.onopen = () => socket.send('from a browser');
    socket.onmessage = event => { resolve(event.data); socket.close(4321, 'enough'); };
    socket.onerror = () => reject(new Error('socket'));
  }));
  await attempt('protocol', async () => performance.getEntriesByName(api).map(entry => entry.nextHopProtocol)[0] || performance.getEntriesByType('navigation')[0].nextHopProtocol);
  return found;
})()";

#[test]
fn chromium() {
    let mut stage = Stage::new().unwrap();
    let own = stage
        .authority
        .issue("b", &["b.example.test"], 103)
        .unwrap();
    let endpoints = [(ENDPOINTS[0], Condition::Ready)];
    let cors = |origin: &str| {
        format!(
            "filters: [{{type: CORS, cors: {{allowOrigins: ['{origin}'], allowMethods: [GET, PUT], allowHeaders: [x-token], allowCredentials: true, exposeHeaders: [via]}}}}]"
        )
    };
    let app = "[{matches: [{path: {value: /ws}}], backendRefs: [{name: sockets, port: 80}]}, {backendRefs: [{name: web, port: 80}]}]";
    let api = format!(
        "[{{matches: [{{path: {{value: /api}}}}], {}, backendRefs: [{{name: web, port: 80}}]}}, \
         {{matches: [{{path: {{value: /closed}}}}], {}, backendRefs: [{{name: web, port: 80}}]}}]",
        cors("https://app.example.test"),
        cors("https://other.example.test")
    );
    let texts = [
        gateway(&[
            ("wild", 443, Some("*.example.test"), "wild"),
            ("b", 443, Some("b.example.test"), "own"),
        ]),
        certificate("wild", &stage.wild),
        certificate("own", &own),
        service("sockets", "", WEBSOCKET, &endpoints),
        service("web", "", CLEAR, &endpoints),
        route("HTTPRoute", "app", "app.example.test", app),
        route("HTTPRoute", "api", "api.example.test", &api),
        route("HTTPRoute", "b", "b.example.test", &api),
    ];
    stage.write("all.yaml", &texts.join("---\n")).unwrap();
    stage.serve(2).unwrap();
    let hashes = [&stage.wild, &own].map(|leaf| stage.authority.key_hash(leaf).unwrap());
    let profile = stage.path("profile");
    let words = [
        VIP,
        &hashes.join(","),
        &profile,
        "https://app.example.test/page",
        SCRIPT,
    ];
    let found = stage.ask("browser.py", &words).unwrap();
    for (name, expected) in [
        ("simple", json!("GET")),
        ("cookie set", json!(200)),
        ("credentials", json!(["who=me"])),
        ("preflight", json!("PUT")),
        ("method refused", json!("TypeError")),
        ("header refused", json!("TypeError")),
        ("origin refused", json!("TypeError")),
        ("exposed", json!("1.1 forebay")),
        ("coalesced", json!("/api")),
        ("socket", json!("from a browser")),
        ("protocol", json!("h2")),
    ] {
        assert_eq!(found[name], expected, "{name}: {found}");
    }
    // On the connection of another listener's name it is told 421, and asks again on one of its own. A line is written
    // when an exchange is over, which the browser need not wait for.
    let log = eventually("lines of the access log", Duration::from_secs(5), || {
        let log = stage.access_log()?;
        let of = |authority: &str, code: u16| {
            let line =
                |line: &&Value| line["authority"] == authority && line["response_code"] == code;
            log.iter().filter(line).count()
        };
        let b = (of("b.example.test", 421), of("b.example.test", 200));
        ensure!(b == (1, 1), "421 and 200: {b:?}");
        ensure!(
            log.iter().any(|line| line["path"] == "/ws/browser"),
            "no WebSocket"
        );
        Ok(log)
    })
    .unwrap();
    // The WebSocket runs on the connection of the page.
    let socket = log.iter().find(|line| line["path"] == "/ws/browser");
    let socket = socket.unwrap_or_else(|| panic!("{log:#?}"));
    assert_eq!(
        (&socket["protocol"], &socket["method"]),
        (&json!("HTTP/2"), &json!("CONNECT")),
        "{socket}"
    );
    let seen = stage.seen().unwrap();
    let closed = seen.iter().find(|saw| saw["kind"] == "websocket").unwrap();
    assert_eq!(
        (&closed["close"], &closed["messages"]),
        (&json!(4321), &json!(1))
    );
    let methods: Vec<_> = seen
        .iter()
        .filter_map(|saw| saw["method"].as_str())
        .collect();
    assert!(
        !methods.contains(&"OPTIONS") && !methods.contains(&"DELETE"),
        "{methods:?}"
    );
}
