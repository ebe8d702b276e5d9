//! A scripted backend, a plain client and a snapshot builder.

use std::future::Future;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gateway_user::l7::router::{Entry, Router};
use gateway_user::proxy::stats::Stats;
use gateway_user::proxy::{Proxy, ProxySettings};
use gateway_user::snapshot::{
    AppProtocol, Backend, BackendTarget, Bind, BindKey, Cluster, ClusterKey, Endpoint, EndpointKey,
    Listener, ObjectKey, PathMatch, Protocol, RouteMatch, Rule, RuleKey, Snapshot, TrafficPolicy,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest that any single wait of a test may take.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// A request as a backend saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (n, v) = line.split_once(':')?;
        n.eq_ignore_ascii_case(name).then(|| v.trim())
    })
}

/// What a backend does with a request: raw bytes to write; empty = close without an answer.
pub(crate) type Script =
    Arc<dyn Fn(Seen) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send>> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct BackendServer {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) open: Arc<AtomicUsize>,
}

impl BackendServer {
    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

pub(crate) fn script<F, Fut>(f: F) -> Script
where
    F: Fn(Seen) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Vec<u8>> + Send + 'static,
{
    Arc::new(move |seen| Box::pin(f(seen)))
}

pub(crate) fn answer(status: u16, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

pub(crate) fn fixed(status: u16, body: &'static str) -> Script {
    script(move |_| async move { answer(status, body) })
}

pub(crate) async fn backend(script: Script) -> BackendServer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = BackendServer {
        address: listener.local_addr().unwrap(),
        seen: Arc::default(),
        connections: Arc::default(),
        open: Arc::default(),
    };
    let handle = server.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            handle.connections.fetch_add(1, SeqCst);
            handle.open.fetch_add(1, SeqCst);
            let (handle, script) = (handle.clone(), Arc::clone(&script));
            tokio::spawn(async move {
                serve(stream, &handle, script).await;
                handle.open.fetch_sub(1, SeqCst);
            });
        }
    });
    server
}

async fn serve(mut stream: TcpStream, handle: &BackendServer, script: Script) {
    let mut buffer = Vec::new();
    loop {
        let Some(seen) = read_message(&mut stream, &mut buffer).await else {
            return;
        };
        handle.seen.lock().unwrap().push(seen.clone());
        let mut probe = [0; 1];
        // The client going away while the script runs ends the connection.
        let reply = tokio::select! {
            reply = script(seen) => reply,
            _ = stream.peek(&mut probe) => return,
        };
        if reply.is_empty() || stream.write_all(&reply).await.is_err() {
            return;
        }
    }
}

/// One message with a `Content-Length` or chunked body, or none.
pub(crate) async fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head: String = buffer.drain(..end).map(char::from).collect();
    let length: usize = header(&head, "content-length").map_or(0, |v| v.parse().unwrap());
    let mut body = Vec::new();
    if header(&head, "transfer-encoding").is_some() {
        loop {
            let line = loop {
                if let Some(at) = buffer.windows(2).position(|w| w == b"\r\n") {
                    break String::from_utf8(buffer.drain(..at + 2).collect()).ok()?;
                }
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            };
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            while buffer.len() < size + 2 {
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            }
            body.extend(buffer.drain(..size));
            buffer.drain(..2);
            if size == 0 {
                break;
            }
        }
    } else {
        while buffer.len() < length {
            if stream.read_buf(buffer).await.ok()? == 0 {
                return None;
            }
        }
        body = buffer.drain(..length).collect();
    }
    Some(Seen { head, body })
}

/// A response as a client saw it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

/// A client connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            buffer: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// The next response; `None` if the connection closes first.
    pub(crate) async fn next(&mut self) -> Option<Answer> {
        let read = read_message(&mut self.stream, &mut self.buffer);
        let seen = tokio::time::timeout(BOUND, read).await.expect("in time")?;
        Some(Answer {
            status: seen.head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: seen.head,
            body: String::from_utf8(seen.body).unwrap(),
        })
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send(&request(path)).await;
        self.next().await.expect("an answer")
    }

    /// Whether the peer has closed, waiting for it.
    pub(crate) async fn closed(&mut self) -> bool {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(BOUND, self.stream.read_to_end(&mut rest));
        matches!(read.await, Ok(Ok(0) | Err(_)))
    }
}

pub(crate) fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test.example\r\n\r\n")
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    Client::connect(address).await.get(path).await
}

/// Polls until `what` holds.
pub(crate) async fn until(mut what: impl FnMut() -> bool) {
    let wait = async {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        while !what() {
            tick.tick().await;
        }
    };
    tokio::time::timeout(BOUND, wait).await.expect("in time");
}

/// A free port of 127.0.0.1: never the same twice, and none that the system gives to others meanwhile.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize * 331;
    loop {
        let port = 10_000 + (start + NEXT.fetch_add(1, SeqCst)) % 22_000;
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
        if StdListener::bind(address).is_ok() {
            return address;
        }
    }
}

pub(crate) fn cluster(name: &str, policy: &TrafficPolicy, backends: &[SocketAddr]) -> Arc<Cluster> {
    let endpoints = backends.iter().map(|address| Endpoint {
        key: EndpointKey {
            address: *address,
            pod_uid: None,
        },
        terminating: false,
    });
    Arc::new(Cluster {
        key: ClusterKey {
            transport: gateway_user::snapshot::Transport::Tcp,
            service: ObjectKey::new("default", name),
            port: 80,
            destination_rule: None,
        },
        policy: Arc::new(policy.clone()),
        protocol: AppProtocol::default(),
        endpoints: endpoints.collect(),
    })
}

/// One bind, one rule for everything, one backend for each cluster with its weight.
pub(crate) fn snapshot(
    bind: SocketAddr,
    clusters: &[(u32, Arc<Cluster>)],
    edit: impl FnOnce(&mut Rule),
) -> Snapshot {
    let gateway = ObjectKey::new("default", "gateway");
    let mut rule = Rule {
        key: RuleKey {
            kind: "HTTPRoute",
            route: ObjectKey::new("default", "route"),
            index: 0,
        },
        name: None,
        filters: None,
        backends: (0..)
            .zip(clusters)
            .map(|(i, (weight, _))| Backend {
                weight: *weight,
                target: BackendTarget::Cluster(i),
                filters: None,
                http2: false,
            })
            .collect(),
        request_timeout: None,
        backend_timeout: None,
        retry: None,
    };
    edit(&mut rule);
    let entry = Entry {
        hostname: None,
        matching: Arc::new(RouteMatch {
            path: PathMatch::Prefix("".into()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
        }),
        rule: 0,
    };
    let listener = Listener {
        gateway: gateway.clone(),
        name: "http".into(),
        hostname: gateway_user::snapshot::Hostname::parse("test.example"),
        tls: None,
        router: Router::compile(vec![entry]),
        rule: None,
    };
    let key = BindKey::from(bind);
    let bind = Bind {
        key,
        gateway,
        protocol: Protocol::Http,
        builtin_ready: false,
        policy: Arc::default(),
        listeners: vec![Arc::new(listener)],
    };
    Snapshot {
        binds: [(key, Arc::new(bind))].into(),
        rules: vec![Arc::new(rule)].into(),
        clusters: clusters.iter().map(|(_, c)| Arc::clone(c)).collect(),
        ..Snapshot::default()
    }
}

/// Starts a proxy that serves the snapshot.
pub(crate) fn start(workers: usize, snapshot: &Snapshot) -> Proxy {
    let settings = ProxySettings {
        workers,
        ..ProxySettings::default()
    };
    start_with(settings, snapshot)
}

pub(crate) fn start_with(settings: ProxySettings, snapshot: &Snapshot) -> Proxy {
    let stats = Arc::new(Stats::new(settings.workers));
    let proxy = Proxy::start(settings, stats).unwrap();
    assert_eq!(proxy.publish(snapshot).failed, []);
    proxy
}
