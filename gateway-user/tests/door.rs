//! The whole corpus of requests against the real program: what is refused is answered, counted by its reason, and never
//! reaches a backend; what is allowed reaches it in one form only.
//!
//! Bytes are sent in one write, in single bytes, and behind another request in the same write. Over a socket the kernel
//! may join single bytes again; every cut is tried exactly by the tests beside the scanner.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "a test, and its shared parts"
)]

#[path = "../src/proxy/scan/corpus.rs"]
mod corpus;
#[path = "program/recorder.rs"]
mod recorder;
#[path = "program/support.rs"]
mod support;

/// Where the corpus looks for it.
mod reason {
    pub(crate) use gateway_user::proxy::scan::Reason;
}

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use corpus::{Case, Want, cases};
use recorder::{Recorder, Seen};
use support::{BOUND, Daemon, free_port, manifests, until};

const FIRST: &[u8] = b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n";
const AFTER: &[u8] = b"GET /after HTTP/1.1\r\nHost: a\r\n\r\n";

/// Cases longer than this are sent in pieces of several bytes.
const SHORT: usize = 2000;

/// Targets with dot segments, and what is matched and forwarded for them.
const NORMALISED: [(&str, &str); 9] = [
    ("/a/../b/./c//d", "/b/c//d"),
    ("/a/..", "/"),
    ("/a/.", "/a/"),
    ("/../../x", "/x"),
    ("/%2e%2e/x", "/x"),
    ("/a/%2e%2E/b", "/b"),
    ("/a/.%2e/%2e/b", "/b"),
    ("/a/b/%2e%2e?c=/../d", "/a/?c=/../d"),
    ("/a/../b?c", "/b?c"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    OneWrite,
    ByteByByte,
    PipelinedSecond,
}

#[tokio::test]
async fn one_write() {
    all_cases(Way::OneWrite).await;
}

#[tokio::test]
async fn byte_by_byte() {
    all_cases(Way::ByteByByte).await;
}

#[tokio::test]
async fn pipelined_second() {
    all_cases(Way::PipelinedSecond).await;
}

async fn all_cases(way: Way) {
    let mut door = Door::open().await;
    // What begins like this is HTTP/2 from its first byte on and never comes to the scanner.
    let by_http1 = |case: &Case| !case.bytes.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    for case in cases().into_iter().filter(by_http1) {
        door.try_case(&case, way).await;
    }
    let Door {
        daemon,
        recorder,
        broken,
        ..
    } = door;
    let (status, _) = daemon.terminate().await;
    assert_eq!(status.code(), Some(0));
    // With the daemon every connection is closed: nothing can come late.
    let partial = until("the backend's last connection", || async {
        (recorder.open() == 0).then(|| recorder.partial())
    })
    .await;
    for bytes in &partial {
        assert!(
            bytes.starts_with(b"POST /c HTTP/1.1\r\n"),
            "{:?}",
            String::from_utf8_lossy(bytes)
        );
    }
    assert!(partial.len() <= broken);
}

/// A daemon in front of a backend that records.
struct Door {
    daemon: Daemon,
    recorder: Recorder,
    at: SocketAddr,
    refusals: BTreeMap<String, u64>,
    /// Cases whose head passes and whose body breaks.
    broken: usize,
}

impl Door {
    async fn open() -> Self {
        let recorder = Recorder::start().await;
        let port = free_port();
        let text = include_str!("program/door.yaml")
            .replace("@PORT@", &port.to_string())
            .replace("@BACKEND@", &recorder.port().to_string());
        let config = manifests(&[("door.yaml", &text)]);
        let daemon = Daemon::start(config.path(), &[], &["--workers", "2"]).await;
        Self {
            daemon,
            recorder,
            at: SocketAddr::from(([127, 0, 0, 1], port)),
            refusals: BTreeMap::new(),
            broken: 0,
        }
    }

    async fn try_case(&mut self, case: &Case, way: Way) {
        let before = self.recorder.seen().len();
        let first = way == Way::PipelinedSecond;
        let mut bytes = if first { FIRST.to_vec() } else { Vec::new() };
        bytes.extend(&case.bytes);
        let piece = match way {
            Way::ByteByByte if case.bytes.len() <= SHORT => 1,
            Way::ByteByByte => 61,
            Way::OneWrite | Way::PipelinedSecond => usize::MAX,
        };
        let mut client = Client::connect(self.at).await;
        client.send(&bytes, piece).await;
        let mut expected = Vec::new();
        if first {
            assert_eq!(client.next("GET", case).await.status, 200, "{}", case.name);
            expected.push(Seen::get("/first"));
        }
        match case.want {
            Want::Pass(_) | Want::Edit => expected.extend(self.pass(client, case).await),
            Want::Refuse(reason) | Want::Break(reason) => {
                let answer = client.next("GET", case).await;
                let want = (reason.status(), Some("close"), Some("forebay"));
                let got = (
                    answer.status,
                    answer.field("connection"),
                    answer.field("server"),
                );
                assert_eq!(got, want, "{}", case.name);
                client.closed(case).await;
                *self.refusals.entry(reason.as_str().to_owned()).or_default() += 1;
                self.broken += usize::from(matches!(case.want, Want::Break(_)));
            }
        }
        self.counted(case).await;
        let seen = self.recorder.seen().split_off(before);
        assert_eq!(seen, expected, "{}", case.name);
    }

    /// Reads the answers of allowed requests; gives what the backend has to see.
    async fn pass(&self, mut client: Client, case: &Case) -> Vec<Seen> {
        let mut sent = parse(&case.bytes, case);
        for request in &mut sent {
            // HTTP/1.0 may name none; the address that was asked stands for it.
            let host = request.seen.host.take();
            request.seen.host = host.or_else(|| Some(self.at.to_string()));
        }
        let count = match case.want {
            Want::Pass(count) => usize::try_from(count).unwrap(),
            _ => 1,
        };
        assert_eq!(sent.len(), count, "{}", case.name);
        let mut expected = Vec::new();
        let mut open = true;
        for request in sent {
            let answer = client.next(&request.seen.method, case).await;
            // No rule takes `*`: it is for the server as a whole.
            let starred = request.seen.target == "*";
            let want = if starred { 404 } else { 200 };
            assert_eq!(answer.status, want, "{}", case.name);
            open = !request.closes;
            if !starred {
                expected.push(request.seen);
            }
        }
        if open {
            client.send(AFTER, usize::MAX).await;
            assert_eq!(client.next("GET", case).await.status, 200, "{}", case.name);
            expected.push(Seen::get("/after"));
        } else {
            client.closed(case).await;
        }
        expected
    }

    /// Waits until the daemon has counted exactly what was refused so far.
    async fn counted(&self, case: &Case) {
        let what = format!("{}: counts {:?}", case.name, self.refusals);
        until(&what, || async {
            let stats = self.daemon.admin("/stats").await;
            let counts = stats["refusals"].as_array().unwrap().iter();
            let counts: BTreeMap<String, u64> = counts
                .map(|pair| {
                    let name = pair[0].as_str().unwrap().to_owned();
                    (name, pair[1].as_u64().unwrap())
                })
                .filter(|(_, count)| *count > 0)
                .collect();
            (counts == self.refusals).then_some(())
        })
        .await;
    }
}

/// A request of the corpus as it has to arrive, and whether the connection ends after it.
struct Sent {
    seen: Seen,
    closes: bool,
}

/// Reads allowed requests in the plainest way; what is special about them stands here once more, on purpose.
fn parse(mut bytes: &[u8], case: &Case) -> Vec<Sent> {
    let mut requests = Vec::new();
    while let Some(start) = bytes.iter().position(|b| !b"\r\n".contains(b)) {
        bytes = &bytes[start..];
        let end = find(bytes, b"\r\n\r\n").unwrap_or_else(|| panic!("{}", case.name));
        let head: String = bytes[..end].iter().map(|b| char::from(*b)).collect();
        bytes = &bytes[end + 4..];
        let mut lines = head.split("\r\n");
        let line: Vec<&str> = lines.next().unwrap().split(' ').collect();
        let fields: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(n, v)| {
                (
                    n.to_ascii_lowercase(),
                    v.trim_matches([' ', '\t']).to_owned(),
                )
            })
            .collect();
        let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| &**v);
        let body = if field("transfer-encoding").is_some() {
            chunks(&mut bytes)
        } else {
            let length = field("content-length").map_or(0, |v| v.parse().unwrap());
            let (body, rest) = bytes.split_at(length);
            bytes = rest;
            body.to_vec()
        };
        let (authority, target) = origin(line[1]);
        let connection = field("connection").unwrap_or("").to_ascii_lowercase();
        requests.push(Sent {
            closes: connection == "close" || line[2] == "HTTP/1.0" && connection != "keep-alive",
            seen: Seen {
                method: line[0].to_owned(),
                target,
                host: authority.or(field("host").map(str::to_owned)),
                body,
            },
        });
    }
    requests
}

/// The authority of an absolute target, and the target that is forwarded.
fn origin(target: &str) -> (Option<String>, String) {
    let scheme = ["http://", "https://"]
        .iter()
        .find(|scheme| target.to_ascii_lowercase().starts_with(*scheme));
    let (authority, path) = match scheme {
        Some(scheme) => {
            let rest = &target[scheme.len()..];
            let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            let slash = if path.starts_with('/') { "" } else { "/" };
            (Some(authority.to_owned()), format!("{slash}{path}"))
        }
        None => (None, target.to_owned()),
    };
    let normal = NORMALISED.iter().find(|(sent, _)| *sent == path);
    (authority, normal.map_or(path, |(_, to)| (*to).to_owned()))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

/// The data of a chunked body; takes it off the front, with its trailers.
fn chunks(bytes: &mut &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = find(bytes, b"\r\n").unwrap();
        let line = std::str::from_utf8(&bytes[..end]).unwrap();
        let size = usize::from_str_radix(line.split(';').next().unwrap(), 16).unwrap();
        *bytes = &bytes[end + 2..];
        if size == 0 {
            break;
        }
        body.extend(&bytes[..size]);
        *bytes = &bytes[size + 2..];
    }
    loop {
        let end = find(bytes, b"\r\n").unwrap();
        *bytes = &bytes[end + 2..];
        if end == 0 {
            return body;
        }
    }
}

struct Answer {
    status: u16,
    head: String,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.trim())
    }
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    async fn send(&mut self, bytes: &[u8], piece: usize) {
        for piece in bytes.chunks(piece) {
            // A refused connection may be closed before the last byte.
            if self.stream.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The next response that is no interim one.
    async fn next(&mut self, method: &str, case: &Case) -> Answer {
        loop {
            let head = loop {
                if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                    let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                    break String::from_utf8(head).unwrap();
                }
                self.read(case).await;
            };
            let status = head[9..12].parse().unwrap();
            let answer = Answer { status, head };
            let length = answer
                .field("content-length")
                .map_or(0, |v| v.parse().unwrap());
            while method != "HEAD" && self.buffer.len() < length {
                self.read(case).await;
            }
            if method != "HEAD" {
                self.buffer.drain(..length);
            }
            if status != 100 {
                return answer;
            }
        }
    }

    async fn read(&mut self, case: &Case) {
        let read = tokio::time::timeout(BOUND, self.stream.read_buf(&mut self.buffer)).await;
        let count = read.unwrap_or_else(|_| panic!("{}: no answer", case.name));
        assert!(
            matches!(count, Ok(1..)),
            "{}: {count:?} after {:?}",
            case.name,
            String::from_utf8_lossy(&self.buffer)
        );
    }

    /// The gateway closes, and sends nothing more before.
    async fn closed(&mut self, case: &Case) {
        let read = tokio::time::timeout(BOUND, self.stream.read_to_end(&mut self.buffer)).await;
        assert!(read.is_ok(), "{}: it stays open", case.name);
        assert_eq!(self.buffer, b"", "{}", case.name);
    }
}
