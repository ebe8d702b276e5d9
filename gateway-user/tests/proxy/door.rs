//! Refusals at the door, through the whole proxy: no refused request reaches a backend, whatever comes before it.

use gateway_user::snapshot::TrafficPolicy;

use crate::support::*;

const SMUGGLED: &str = "POST /bad HTTP/1.1\r\nhost: test.example\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: test.example\r\n\r\n";

async fn served() -> (
    BackendServer,
    gateway_user::proxy::Proxy,
    std::net::SocketAddr,
) {
    let server = backend(script(|seen| async move { answer(200, seen.path()) })).await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    (server, proxy, at)
}

#[tokio::test]
async fn a_refused_head_is_answered_in_its_turn_and_counted() {
    let (server, proxy, at) = served().await;
    let mut client = Client::connect(at).await;
    client
        .send(&format!("{}{}{SMUGGLED}", request("/1"), request("/2")))
        .await;
    assert_eq!(client.next().await.unwrap().body, "/1");
    assert_eq!(client.next().await.unwrap().body, "/2");
    let refused = client.next().await.unwrap();
    assert_eq!(
        (refused.status, refused.header("connection")),
        (400, Some("close"))
    );
    assert!(client.closed().await);
    assert_eq!(server.count(), 2);
    until(|| proxy.open_connections() == 0).await;
    let reading = proxy.stats().read();
    assert!(reading.refusals.contains(&("framing_conflict", 1)));
    assert!(reading.flags.contains(&("DPE", 1)));
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_refused_alike() {
    let (server, _proxy, at) = served().await;
    let mut client = Client::connect(at).await;
    client.stream.set_nodelay(true).unwrap();
    for byte in SMUGGLED.split_inclusive(|_| true) {
        // The proxy may have answered and closed before the last byte.
        if tokio::io::AsyncWriteExt::write_all(&mut client.stream, byte.as_bytes())
            .await
            .is_err()
        {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(client.next().await.unwrap().status, 400);
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn a_body_whose_framing_breaks_aborts_the_upload() {
    let (server, proxy, at) = served().await;
    let mut client = Client::connect(at).await;
    client
        .send("POST / HTTP/1.1\r\nhost: test.example\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nZZ\r\n")
        .await;
    let counted = ("chunk_size", 1);
    until(|| proxy.stats().read().refusals.contains(&counted)).await;
    until(|| proxy.open_connections() == 0).await;
    until(|| proxy.endpoints()[0].in_use.connections == 0).await;
    assert_eq!(server.count(), 0, "the backend saw no whole request");
}

#[tokio::test]
async fn what_is_matched_is_what_is_forwarded() {
    let (server, _proxy, at) = served().await;
    let mut client = Client::connect(at).await;
    assert_eq!(
        client.get("/a/./b/%2e%2e/c?d=/../e").await.body,
        "/a/c?d=/../e"
    );
    assert_eq!(client.get("/../../x").await.body, "/x");
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let server = backend(fixed(200, "a")).await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let settings = gateway_user::proxy::ProxySettings {
        timers: gateway_user::proxy::Timers {
            header: std::time::Duration::from_millis(100),
            ..gateway_user::proxy::Timers::default()
        },
        ..gateway_user::proxy::ProxySettings::default()
    };
    let proxy = start_with(settings, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    assert_eq!(client.get("/").await.status, 200);
    client.send("GET / HTTP/1.1\r\nhost:").await;
    assert!(client.closed().await);
    assert_eq!(server.count(), 1);
    assert!(
        proxy
            .stats()
            .read()
            .events
            .contains(&("header_timeouts", 1))
    );
}
