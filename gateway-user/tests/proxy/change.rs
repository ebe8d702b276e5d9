//! Configuration changes, draining, listeners.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use gateway_user::proxy::stats::Stats;
use gateway_user::proxy::{Mode, Proxy, ProxySettings, Timers};
use gateway_user::snapshot::{BindKey, ObjectKey, Snapshot, TrafficPolicy};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_under_load_fail_no_request() {
    let servers = [
        backend(fixed(200, "a")).await,
        backend(fixed(200, "b")).await,
    ];
    let at = free_address();
    let policy = TrafficPolicy::default();
    let of = |i: usize| {
        let live = cluster("a", &policy, &[servers[i].address]);
        let other = cluster(&format!("other-{i}"), &policy, &[servers[1 - i].address]);
        snapshot(at, &[(1, live), (i as u32, other)], |_| {})
    };
    let proxy = start(2, &of(0));
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                let (mut client, mut good) = (Client::connect(at).await, 0);
                while !stop.load(SeqCst) {
                    assert_eq!(client.get("/").await.status, 200);
                    good += 1;
                }
                good
            })
        })
        .collect();
    for change in 1..=40 {
        let before = servers[0].count() + servers[1].count();
        assert_eq!(proxy.publish(&of(change % 2)).failed, []);
        until(|| servers[0].count() + servers[1].count() > before + 20).await;
    }
    stop.store(true, SeqCst);
    let mut good = 0;
    for client in clients {
        good += client.await.unwrap();
    }
    assert!(good > 800, "{good}");
    assert_eq!(proxy.stats().read().classes[5], 0);
}

#[tokio::test]
async fn a_removed_listener_answers_404_and_closes() {
    let server = backend(fixed(200, "a")).await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
    let mut client = Client::connect(at).await;
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(proxy.publish(&Snapshot::default()).failed, []);
    let answer = client.get("/").await;
    assert_eq!(
        (answer.status, answer.header("connection")),
        (404, Some("close"))
    );
    assert!(client.closed().await);
    until(|| std::net::TcpStream::connect(at).is_err()).await;
}

#[tokio::test]
async fn draining_finishes_what_runs_and_closes_what_is_idle() {
    let (release, released) = tokio::sync::watch::channel(false);
    let server = backend(script(move |seen| {
        let mut released = released.clone();
        async move {
            if seen.path() == "/slow" {
                released.wait_for(|r| *r).await.unwrap();
            }
            answer(200, "ok")
        }
    }))
    .await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let settings = ProxySettings {
        timers: Timers {
            drain_idle: Duration::from_millis(50),
            ..Timers::default()
        },
        ..ProxySettings::default()
    };
    let proxy = start_with(settings, &snapshot(at, &[(1, live)], |_| {}));
    let mut idle = Client::connect(at).await;
    assert_eq!(idle.get("/").await.header("connection"), None);
    let mut busy = Client::connect(at).await;
    busy.send(&request("/slow")).await;
    until(|| server.count() == 2).await;
    assert_eq!(proxy.open_connections(), 2);
    proxy.drain();
    assert!(idle.closed().await);
    until(|| proxy.open_connections() == 1).await;
    let new = get(at, "/").await;
    assert_eq!((new.status, new.header("connection")), (200, Some("close")));
    release.send(true).unwrap();
    let last = busy.next().await.unwrap();
    assert_eq!(
        (last.status, last.header("connection")),
        (200, Some("close"))
    );
    assert!(busy.closed().await);
    until(|| proxy.open_connections() == 0).await;
    proxy.shutdown(Instant::now() + BOUND);
}

#[tokio::test]
async fn a_port_in_use_stops_no_other() {
    let server = backend(fixed(200, "a")).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, busy) = (free_address(), taken.local_addr().unwrap());
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let mut both = snapshot(at, &[(1, live)], |_| {});
    let mut bind = (*both.binds[&BindKey::from(at)]).clone();
    bind.key = busy.into();
    both.binds.insert(busy.into(), Arc::new(bind));
    let proxy = Proxy::start(ProxySettings::default(), Arc::new(Stats::new(1))).unwrap();
    let report = proxy.publish(&both);
    assert_eq!(
        report.failed,
        [(
            busy.into(),
            format!(
                "cannot listen on {busy}: the port is in use by another process; stop that process or change the listener's port"
            )
        )]
    );
    assert_eq!(get(at, "/").await.status, 200);
    drop(taken);
    assert_eq!(
        proxy.publish(&both).failed,
        [],
        "tried again with each snapshot"
    );
    assert_eq!(get(busy, "/").await.status, 200);
}

#[tokio::test]
async fn steered_connections_belong_to_the_vip_that_they_were_made_to() {
    let server = backend(fixed(200, "a")).await;
    let vip = "127.0.0.1:80".parse().unwrap();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let settings = ProxySettings {
        mode: Mode::Steered,
        workers: 2,
        ..ProxySettings::default()
    };
    let proxy = start_with(settings, &snapshot(vip, &[(1, live)], |_| {}));
    let gateway = ObjectKey::new("default", "gateway");
    let fds = proxy.listener_fds(&gateway).unwrap();
    assert_eq!(fds.len(), 2);
    let socket = std::net::TcpListener::from(fds.into_iter().next().unwrap());
    let port = socket.local_addr().unwrap().port();
    assert!(
        proxy
            .listener_fds(&ObjectKey::new("x", "y"))
            .unwrap()
            .is_empty()
    );
    // A VIP's address, a port that it does not have: 404 and close.
    let answer = get(([127, 0, 0, 1], port).into(), "/").await;
    assert_eq!(
        (answer.status, answer.header("connection")),
        (404, Some("close"))
    );
    let reading = proxy.stats().read();
    assert!(reading.events.contains(&("downstream_unknown_address", 0)));
    proxy.publish(&Snapshot::default());
    assert!(proxy.listener_fds(&gateway).unwrap().is_empty());
}

#[tokio::test]
async fn all_workers_beat() {
    let settings = ProxySettings {
        workers: 3,
        ..ProxySettings::default()
    };
    let proxy = Proxy::start(settings, Arc::new(Stats::new(3))).unwrap();
    until(|| proxy.beat() >= 2).await;
}

#[tokio::test]
async fn the_readiness_listener_answers_by_itself() {
    let at = free_address();
    let ready = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&ready);
    let mut only = snapshot(at, &[], |_| {});
    let mut bind = (*only.binds[&BindKey::from(at)]).clone();
    bind.builtin_ready = true;
    only.binds.insert(at.into(), Arc::new(bind));
    let settings = ProxySettings {
        ready: Box::new(move || asked.load(SeqCst)),
        ..ProxySettings::default()
    };
    let _proxy = start_with(settings, &only);
    assert_eq!(get(at, "/healthz/ready").await.status, 503);
    ready.store(true, SeqCst);
    assert_eq!(get(at, "/healthz/ready").await.status, 200);
    assert_eq!(get(at, "/healthz/live").await.status, 200);
    assert_eq!(get(at, "/").await.status, 404);
}

#[tokio::test]
async fn the_access_log_has_one_line_for_each_request() {
    let server = backend(fixed(200, "hello")).await;
    let at = free_address();
    let file = tempfile::NamedTempFile::new().unwrap();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let settings = ProxySettings {
        access_log: gateway_user::proxy::access_log::Destination::File(file.path().to_owned()),
        ..ProxySettings::default()
    };
    let proxy = start_with(settings, &snapshot(at, &[(1, live)], |_| {}));
    for _ in 0..3 {
        get(at, "/a").await;
    }
    proxy.shutdown(Instant::now() + BOUND);
    let text = std::fs::read_to_string(file.path()).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["upstream_cluster"], "default/a:80");
    assert_eq!(lines[0]["route_name"], "default/route/rule/0");
    assert_eq!(lines[0]["bytes_sent"], 5);
    assert_eq!(lines[0]["upstream_host"], server.address.to_string());
}

/// Hangs at `/hang`, begins a response and goes on for ever at `/begin`.
fn endless() -> Script {
    script(|seen| async move {
        match seen.path() {
            "/hang" => std::future::pending().await,
            _ => b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf".to_vec(),
        }
    })
}

/// Path, status, flags and details of each line, sorted by path.
fn told(log: &tempfile::NamedTempFile) -> Vec<String> {
    let text = std::fs::read_to_string(log.path()).unwrap();
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| {
            format!(
                "{} {} {} {}",
                line["path"],
                line["response_code"],
                line["response_flags"],
                line["response_code_details"]
            )
        })
        .collect();
    lines.sort();
    lines
}

/// A proxy before the server, with a log.
fn logged(
    server: &BackendServer,
    timers: Timers,
) -> (tempfile::NamedTempFile, std::net::SocketAddr, Proxy) {
    let (file, at) = (tempfile::NamedTempFile::new().unwrap(), free_address());
    let settings = ProxySettings {
        access_log: gateway_user::proxy::access_log::Destination::File(file.path().to_owned()),
        timers,
        ..ProxySettings::default()
    };
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let proxy = start_with(settings, &snapshot(at, &[(1, live)], |_| {}));
    (file, at, proxy)
}

/// A client whose request has come to the server, and whose response has come to it if there is one.
async fn asking(server: &BackendServer, at: std::net::SocketAddr, path: &str) -> Client {
    let before = server.count();
    let mut client = Client::connect(at).await;
    client.send(&request(path)).await;
    until(|| server.count() > before).await;
    if path == "/begin" {
        client.stream.peek(&mut [0; 1]).await.unwrap();
    }
    client
}

#[tokio::test]
async fn the_log_tells_what_was_cut_off_at_the_end_of_draining() {
    let server = backend(endless()).await;
    let (log, at, proxy) = logged(&server, Timers::default());
    let _clients = (
        asking(&server, at, "/hang").await,
        asking(&server, at, "/begin").await,
    );
    proxy.shutdown(Instant::now() + Duration::from_millis(50));
    assert_eq!(
        told(&log),
        [
            r#""/begin" 200 "DC" "downstream_local_disconnect(drain_timeout)""#,
            r#""/hang" 0 "DC" "downstream_local_disconnect(drain_timeout)""#,
        ]
    );
}

#[tokio::test]
async fn a_client_that_closes_its_half_is_gone_and_logged_so() {
    let server = backend(endless()).await;
    let (log, at, proxy) = logged(&server, Timers::default());
    for path in ["/hang", "/begin"] {
        let mut client = asking(&server, at, path).await;
        tokio::io::AsyncWriteExt::shutdown(&mut client.stream)
            .await
            .unwrap();
        until(|| proxy.open_connections() == 0).await;
        until(|| proxy.endpoints()[0].in_use.requests == 0).await;
    }
    proxy.shutdown(Instant::now() + BOUND);
    assert_eq!(
        told(&log),
        [
            r#""/begin" 200 "DC" "downstream_remote_disconnect""#,
            r#""/hang" 0 "DC" "downstream_remote_disconnect""#,
        ]
    );
}

#[tokio::test]
async fn the_log_tells_an_exchange_without_a_byte() {
    let server = backend(endless()).await;
    let timers = Timers {
        stream_idle: Duration::from_millis(200),
        ..Timers::default()
    };
    let (log, at, proxy) = logged(&server, timers);
    assert!(asking(&server, at, "/hang").await.closed().await);
    proxy.shutdown(Instant::now() + BOUND);
    assert_eq!(told(&log), [r#""/hang" 0 "SI" "stream_idle_timeout""#]);
}

#[tokio::test]
async fn no_built_in_listener_is_opened_where_the_process_answers_itself() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let at = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut with_built_in = snapshot(at, &[], |_| {});
    let bind = with_built_in.binds.values_mut().next().unwrap();
    Arc::get_mut(bind).unwrap().builtin_ready = true;
    let publish = |ready_endpoint| {
        let settings = ProxySettings {
            ready_endpoint,
            ..ProxySettings::default()
        };
        let stats = Arc::new(Stats::new(1));
        let proxy = Proxy::start(settings, stats).unwrap();
        proxy.publish(&with_built_in).failed.len()
    };
    assert_eq!(publish(Some(taken.local_addr().unwrap())), 0);
    assert_eq!(publish(Some(at)), 0);
    assert_eq!(publish(None), 1);
    let v6 = std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    assert_eq!(publish(Some(v6)), 1);
}
