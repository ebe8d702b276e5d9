//! Datagrams: sessions, their endpoints, and how they end.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gateway_common::abi::TagSet;
use gateway_common::abi::tag::{TAG_SETS, holds, set_of};
use gateway_common::hash::flow_v4;
use gateway_user::datapath::SessionTags;
use gateway_user::datapath::mmap::MappedArray;
use gateway_user::proxy::access_log::Destination;
use gateway_user::proxy::stats::Event;
use gateway_user::proxy::{Proxy, ProxySettings, SessionLimits};
use gateway_user::snapshot::{
    BindKey, Cluster, L4Policy, OutlierDetection, Protocol, Snapshot, Sources, TrafficPolicy,
    Transport,
};

use crate::support::{
    BOUND, Client, answer, backend, cluster, free_address, script, snapshot, until,
};

/// A server that answers each datagram with its name in front, until it is dropped.
struct Server {
    address: SocketAddr,
    /// Who asked, by each datagram.
    askers: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(name: &'static str) -> Self {
        Self::start_on(name, "127.0.0.1:0")
    }

    fn start_on(name: &'static str, at: &str) -> Self {
        let socket = UdpSocket::bind(at).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let (askers, stop) = (
            Arc::<Mutex<Vec<_>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let address = socket.local_addr().unwrap();
        let (seen, end) = (Arc::clone(&askers), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_535];
            while !end.load(SeqCst) {
                if let Ok((length, asker)) = socket.recv_from(&mut buffer) {
                    seen.lock().unwrap().push(asker);
                    let reply = [name.as_bytes(), b":", &buffer[..length]].concat();
                    // A client that is gone hears nothing.
                    let _ = socket.send_to(&reply[..reply.len().min(65_507)], asker);
                }
            }
        });
        Self {
            address,
            askers,
            stop,
            thread: Some(thread),
        }
    }

    fn count(&self) -> usize {
        self.askers.lock().unwrap().len()
    }

    fn sessions(&self) -> usize {
        let askers = self.askers.lock().unwrap();
        askers.iter().collect::<BTreeSet<_>>().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A client: connected, so that it hears answers from the VIP alone.
struct Asker(UdpSocket);

impl Asker {
    fn new(vip: SocketAddr) -> Self {
        let any = if vip.is_ipv4() {
            "127.0.0.1:0"
        } else {
            "[::1]:0"
        };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(vip).unwrap();
        socket.set_read_timeout(Some(BOUND)).unwrap();
        Self(socket)
    }

    fn send(&self, text: &str) {
        self.0.send(text.as_bytes()).unwrap();
    }

    fn hear(&self) -> std::io::Result<String> {
        let mut buffer = vec![0; 65_535];
        let length = self.0.recv(&mut buffer)?;
        Ok(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    fn ask(&self, text: &str) -> String {
        self.send(text);
        self.hear().unwrap()
    }
}

fn udp(vip: SocketAddr) -> BindKey {
    BindKey::new(vip, Transport::Udp)
}

/// A UDP bind whose one rule leads to the clusters.
fn datagrams(vip: SocketAddr, clusters: &[(u32, Arc<Cluster>)]) -> Snapshot {
    let mut snapshot = snapshot(vip, clusters, |rule| rule.key.kind = "UDPRoute");
    let mut bind = (*snapshot.binds[&BindKey::from(vip)]).clone();
    let mut listener = (*bind.listeners[0]).clone();
    listener.rule = Some(0);
    listener.hostname = None;
    bind.key = udp(vip);
    bind.protocol = Protocol::Udp;
    bind.listeners = vec![Arc::new(listener)];
    snapshot.binds = [(bind.key, Arc::new(bind))].into();
    snapshot
}

fn with_policy(mut snapshot: Snapshot, policy: L4Policy) -> Snapshot {
    let policy = Arc::new(policy);
    for bind in snapshot.binds.values_mut() {
        Arc::make_mut(bind).policy = Arc::clone(&policy);
    }
    snapshot
}

fn plain(name: &str, servers: &[&Server]) -> Arc<Cluster> {
    let addresses: Vec<SocketAddr> = servers.iter().map(|s| s.address).collect();
    cluster(name, &TrafficPolicy::default(), &addresses)
}

fn start(settings: ProxySettings, snapshot: &Snapshot) -> Proxy {
    crate::support::start_with(settings, snapshot)
}

fn one_worker() -> ProxySettings {
    ProxySettings::default()
}

#[tokio::test]
async fn a_session_stays_with_one_endpoint_and_answers_come_from_the_vip() {
    let servers = [Server::start("a"), Server::start("b")];
    let vip = free_address();
    let cluster = plain("dns", &[&servers[0], &servers[1]]);
    let settings = ProxySettings {
        workers: 2,
        ..one_worker()
    };
    let proxy = start(settings, &datagrams(vip, &[(1, cluster)]));
    let clients: Vec<Asker> = (0..8).map(|_| Asker::new(vip)).collect();
    let first: Vec<String> = clients.iter().map(|c| c.ask("x")).collect();
    for round in 0..20 {
        for (client, first) in clients.iter().zip(&first) {
            let text = format!("{round}");
            assert_eq!(client.ask(&text), format!("{}:{round}", &first[..1]));
        }
    }
    let sessions: usize = servers.iter().map(Server::sessions).sum();
    assert_eq!(sessions, 8, "each session has one socket of its own");
    assert_eq!(proxy.open_sessions(), 8);
    assert_eq!(proxy.stats().event(Event::UdpSessions), 8);
    assert_eq!(proxy.stats().event(Event::UdpDatagramsReceived), 8 * 21);
    // Counted after it was sent, so that the client may be faster.
    until(|| proxy.stats().event(Event::UdpDatagramsSent) == 8 * 21).await;
}

#[test]
fn sessions_follow_the_weights_and_long_datagrams_pass_whole() {
    let servers = [Server::start("a"), Server::start("b")];
    let vip = free_address();
    let clusters = [
        (1, plain("one", &[&servers[0]])),
        (3, plain("two", &[&servers[1]])),
    ];
    let _proxy = start(one_worker(), &datagrams(vip, &clusters));
    let long = "x".repeat(60_000);
    for _ in 0..8 {
        let answer = Asker::new(vip).ask(&long);
        assert_eq!(answer.len(), long.len() + 2);
        assert!(answer.ends_with(&long));
    }
    assert_eq!((servers[0].count(), servers[1].count()), (2, 6));
}

#[test]
fn ipv6_works_as_ipv4_does() {
    let server = Server::start_on("six", "[::1]:0");
    let probe = UdpSocket::bind("[::1]:0").unwrap();
    let vip = probe.local_addr().unwrap();
    drop(probe);
    let _proxy = start(
        one_worker(),
        &datagrams(vip, &[(1, plain("dns", &[&server]))]),
    );
    assert_eq!(Asker::new(vip).ask("q"), "six:q");
}

#[tokio::test]
async fn an_unreachable_port_ends_the_session_and_counts_for_ejection() {
    let well = Server::start("well");
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dead_address = dead.local_addr().unwrap();
    drop(dead);
    let policy = TrafficPolicy {
        balancer: gateway_user::snapshot::Balancer::RoundRobin,
        outlier: Some(OutlierDetection {
            consecutive_5xx: 2,
            max_ejection_percent: 50,
            ..OutlierDetection::default()
        }),
        ..TrafficPolicy::default()
    };
    let vip = free_address();
    let both = cluster("dns", &policy, &[dead_address, well.address]);
    let proxy = start(one_worker(), &datagrams(vip, &[(1, both)]));
    let ejected = |proxy: &Proxy| {
        let endpoints = &proxy.endpoints()[0].endpoints;
        endpoints
            .iter()
            .find(|e| e.ejected)
            .map(|e| e.address.to_string())
    };
    let refused = || proxy.stats().event(Event::UdpSessionsRefused);
    // Each session that met the dead endpoint goes to the other one with its next datagram.
    let sent = || proxy.stats().event(Event::UdpDatagramsSent);
    while refused() < 2 {
        let (client, before) = (Asker::new(vip), (refused(), sent()));
        client.send("lost");
        until(|| (refused(), sent()) != before).await;
        if refused() > before.0 {
            assert_eq!(client.ask("again"), "well:again");
        }
    }
    assert_eq!(ejected(&proxy), Some(dead_address.to_string()));
    let before = well.count();
    for _ in 0..6 {
        assert_eq!(Asker::new(vip).ask("now"), "well:now");
    }
    assert_eq!((well.count() - before, refused()), (6, 2));
}

#[test]
fn sessions_move_when_their_endpoint_or_route_goes() {
    let servers = [Server::start("a"), Server::start("b")];
    let vip = free_address();
    let of = |i: usize| plain("dns", &[&servers[i]]);
    let proxy = start(one_worker(), &datagrams(vip, &[(1, of(0))]));
    let client = Asker::new(vip);
    assert_eq!(client.ask("1"), "a:1");
    // The same cluster with another endpoint.
    proxy.publish(&datagrams(vip, &[(1, of(1))]));
    assert_eq!(client.ask("2"), "b:2");
    // The same endpoint stays while other things change.
    let moved = proxy.stats().event(Event::UdpSessionsMoved);
    let third = Server::start("c");
    proxy.publish(&datagrams(
        vip,
        &[(1, of(1)), (1, plain("other", &[&third]))],
    ));
    assert_eq!(client.ask("3"), "b:3");
    assert_eq!(proxy.stats().event(Event::UdpSessionsMoved), moved);
    // Its backend gets no share any more.
    proxy.publish(&datagrams(
        vip,
        &[(0, of(1)), (1, plain("other", &[&third]))],
    ));
    assert_eq!(client.ask("4"), "c:4");
    assert_eq!(proxy.stats().event(Event::UdpSessionsMoved), moved + 1);
    assert_eq!(proxy.open_sessions(), 1);
}

#[tokio::test]
async fn a_removed_listener_is_told_by_the_kernel() {
    let server = Server::start("a");
    let vip = free_address();
    let proxy = start(
        one_worker(),
        &datagrams(vip, &[(1, plain("dns", &[&server]))]),
    );
    let client = Asker::new(vip);
    assert_eq!(client.ask("1"), "a:1");
    proxy.publish(&Snapshot::default());
    until(|| proxy.open_sessions() == 0).await;
    let mut refused = false;
    until(|| {
        let sent = client.0.send(b"2");
        refused |= sent.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        refused
    })
    .await;
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn datagrams_without_a_way_are_counted() {
    let server = Server::start("a");
    let vip = free_address();
    let unroutable = |proxy: &Proxy| proxy.stats().event(Event::UdpDatagramsUnroutable);
    let mut nowhere = datagrams(vip, &[(1, plain("dns", &[&server]))]);
    let bind = Arc::make_mut(nowhere.binds.get_mut(&udp(vip)).unwrap());
    Arc::make_mut(&mut bind.listeners[0]).rule = None;
    let proxy = start(one_worker(), &nowhere);
    let client = Asker::new(vip);
    client.send("no route");
    until(|| unroutable(&proxy) == 1).await;
    proxy.publish(&datagrams(vip, &[(1, plain("dns", &[]))]));
    client.send("no endpoint");
    until(|| unroutable(&proxy) == 2).await;
    let flags = proxy.stats().read().flags;
    let count = |name| flags.iter().find(|(n, _)| *n == name).unwrap().1;
    assert_eq!((count("NR"), count("UH")), (1, 1));
    assert_eq!(proxy.open_sessions(), 0);
    proxy.publish(&datagrams(vip, &[(1, plain("dns", &[&server]))]));
    assert_eq!(client.ask("now"), "a:now");
}

#[test]
fn the_session_used_longest_ago_makes_room() {
    let server = Server::start("a");
    let vip = free_address();
    let settings = ProxySettings {
        sessions: SessionLimits {
            most: 2,
            ..SessionLimits::default()
        },
        ..one_worker()
    };
    let proxy = start(settings, &datagrams(vip, &[(1, plain("dns", &[&server]))]));
    let clients: Vec<Asker> = (0..3).map(|_| Asker::new(vip)).collect();
    for at in [0, 1, 0, 2] {
        assert_eq!(clients[at].ask("x"), "a:x");
    }
    assert_eq!(proxy.stats().event(Event::UdpSessionsEvicted), 1);
    assert_eq!(proxy.open_sessions(), 2);
    // The first was used later than the second, so it is the same session still.
    assert_eq!(clients[0].ask("y"), "a:y");
    assert_eq!(proxy.stats().event(Event::UdpSessions), 3);
    assert_eq!(clients[1].ask("z"), "a:z");
    assert_eq!(proxy.stats().event(Event::UdpSessions), 4);
}

#[tokio::test]
async fn an_idle_session_ends_is_logged_and_leaves_no_tag() {
    let server = Server::start("a");
    let vip = free_address();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("access.log");
    let size = size_of::<TagSet>();
    let file = tempfile::tempfile().unwrap();
    file.set_len(u64::from(TAG_SETS) * size as u64).unwrap();
    let table = Arc::new(MappedArray::new("TAGS", &file, TAG_SETS, size).unwrap());
    let key = [1, 2];
    let settings = ProxySettings {
        sessions: SessionLimits {
            idle: Duration::from_millis(300),
            ..SessionLimits::default()
        },
        access_log: Destination::File(log.clone()),
        tags: Some(Arc::new(SessionTags::over(Arc::clone(&table), key))),
        ..one_worker()
    };
    let proxy = start(settings, &datagrams(vip, &[(1, plain("dns", &[&server]))]));
    let client = Asker::new(vip);
    let begun = Instant::now();
    assert_eq!(
        (client.ask("12"), client.ask("345")),
        ("a:12".into(), "a:345".into())
    );
    let own = client.0.local_addr().unwrap();
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (own, vip) else {
        panic!("IPv4 both")
    };
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let ports: [u8; 4] = ports.try_into().unwrap();
    let hash = flow_v4(key, from.ip().octets(), to.ip().octets(), ports, 17);
    let set = |at: u32| -> TagSet { table.read(at as usize * size / 4) };
    assert!(holds(set(set_of(hash)), hash));
    until(|| proxy.open_sessions() == 0).await;
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(set(set_of(hash)), [0; 4]);
    assert_eq!(proxy.stats().event(Event::UdpSessionsIdle), 1);
    until(|| std::fs::read_to_string(&log).is_ok_and(|text| text.ends_with('\n'))).await;
    let line: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&log).unwrap()).unwrap();
    let want = serde_json::json!({
        "start_time": line["start_time"], "duration": line["duration"], "protocol": "UDP", "response_flags": "-",
        "bytes_received": 5, "bytes_sent": 9, "datagrams_received": 2, "datagrams_sent": 2,
        "upstream_host": server.address.to_string(), "upstream_cluster": "default/dns:80",
        "route_name": "default/route/rule/0", "downstream_remote_address": own.to_string(),
        "downstream_local_address": vip.to_string(),
    });
    assert_eq!(line, want);
    assert!(line["duration"].as_u64().unwrap() >= 300);
}

#[tokio::test]
async fn sources_that_are_not_admitted_reach_nobody() {
    let server = Server::start("a");
    let vip = free_address();
    let open = datagrams(vip, &[(1, plain("dns", &[&server]))]);
    let closed = with_policy(
        open.clone(),
        L4Policy {
            sources: Sources {
                allow: None,
                deny: vec!["127.0.0.0/8".parse().unwrap()],
            },
            ..L4Policy::default()
        },
    );
    let proxy = start(one_worker(), &closed);
    let denied = || proxy.stats().event(Event::SourcesDenied);
    let client = Asker::new(vip);
    client.send("no");
    until(|| denied() == 1).await;
    proxy.publish(&open);
    assert_eq!(client.ask("yes"), "a:yes");
    // A session that is open ends with the right to it.
    proxy.publish(&closed);
    client.send("no");
    until(|| denied() == 2).await;
    assert_eq!((server.count(), proxy.open_sessions()), (1, 0));
}

#[tokio::test]
async fn sources_that_are_not_admitted_get_no_connection() {
    let web = backend(script(|_| async { answer(200, "ok") })).await;
    let vip = free_address();
    let live = cluster("web", &TrafficPolicy::default(), &[web.address]);
    let only = |cidr: &str| {
        let sources = Sources {
            allow: Some(vec![cidr.parse().unwrap()]),
            deny: Vec::new(),
        };
        let policy = L4Policy {
            sources,
            ..L4Policy::default()
        };
        with_policy(snapshot(vip, &[(1, Arc::clone(&live))], |_| {}), policy)
    };
    let proxy = start(one_worker(), &only("10.0.0.0/8"));
    let mut client = Client::connect(vip).await;
    assert!(client.closed().await);
    assert_eq!(proxy.stats().event(Event::SourcesDenied), 1);
    proxy.publish(&only("127.0.0.0/8"));
    assert_eq!(crate::support::get(vip, "/").await.status, 200);
    assert_eq!(web.count(), 1);
}

/// One worker, a flood of datagrams that it can only drop, and HTTP beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_does_not_starve_http_on_the_same_worker() {
    let web = backend(script(|_| async { answer(200, "ok") })).await;
    let server = Server::start("a");
    let (http, vip) = (free_address(), free_address());
    let live = cluster("web", &TrafficPolicy::default(), &[web.address]);
    let mut both = snapshot(http, &[(1, live)], |_| {});
    let udp = datagrams(vip, &[(1, plain("dns", &[&server]))]);
    let mut bind = (**udp.binds.values().next().unwrap()).clone();
    let mut listener = (*bind.listeners[0]).clone();
    listener.rule = Some(1);
    bind.listeners = vec![Arc::new(listener)];
    both.binds.insert(bind.key, Arc::new(bind));
    let mut rule = (*udp.rules[0]).clone();
    rule.backends[0].target = gateway_user::snapshot::BackendTarget::Cluster(1);
    both.rules.push(Arc::new(rule));
    both.clusters.extend(udp.clusters);
    let proxy = Arc::new(start(one_worker(), &both));
    let stop = Arc::new(AtomicBool::new(false));
    let flood = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(vip).unwrap();
            while !stop.load(SeqCst) {
                // A full buffer is what this is about.
                let _ = client.send(&[0; 100]);
            }
        })
    };
    until(|| proxy.stats().event(Event::UdpDatagramsReceived) > 10_000).await;
    let mut client = Client::connect(http).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..100 {
        let begun = Instant::now();
        assert_eq!(client.get("/").await.status, 200);
        slowest = slowest.max(begun.elapsed());
    }
    stop.store(true, SeqCst);
    flood.join().unwrap();
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}
