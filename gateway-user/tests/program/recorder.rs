//! A backend that keeps every byte it gets and takes requests in one form only: the one that the gateway has to send.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A whole request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) host: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// A GET of `target` from host `a`.
    pub(crate) fn get(target: &str) -> Self {
        Self {
            method: "GET".into(),
            target: target.into(),
            host: Some("a".into()),
            body: Vec::new(),
        }
    }
}

#[derive(Debug, Default)]
struct Record {
    seen: Mutex<Vec<Seen>>,
    partial: Mutex<Vec<Vec<u8>>>,
    open: AtomicUsize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Recorder {
    record: Arc<Record>,
    port: u16,
}

impl Recorder {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let record = Arc::<Record>::default();
        let shared = Arc::clone(&record);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.open.fetch_add(1, SeqCst);
                let record = Arc::clone(&shared);
                tokio::spawn(async move {
                    serve(stream, &record).await;
                    record.open.fetch_sub(1, SeqCst);
                });
            }
        });
        Self { record, port }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// All whole requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.record.seen.lock().unwrap().clone()
    }

    /// What had arrived of a request when its connection ended.
    pub(crate) fn partial(&self) -> Vec<Vec<u8>> {
        self.record.partial.lock().unwrap().clone()
    }

    /// Open connections.
    pub(crate) fn open(&self) -> usize {
        self.record.open.load(SeqCst)
    }
}

async fn serve(mut stream: TcpStream, record: &Record) {
    let mut bytes = Vec::new();
    loop {
        while let Some((length, seen)) = request(&bytes) {
            bytes.drain(..length);
            record.seen.lock().unwrap().push(seen);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            if stream.write_all(answer).await.is_err() {
                break;
            }
        }
        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            break;
        }
    }
    if !bytes.is_empty() {
        record.partial.lock().unwrap().push(bytes);
    }
}

/// RFC 9110, 7.8 and 10.1.4: Upgrade and TE are named in Connection, where nothing else of the client's stands. The only
/// upgrade that goes on is one to WebSocket.
fn options_are_named(te: &[&str], upgrade: &[&str], connection: &[&str], head: &str) {
    let named: &[&str] = match (te, upgrade) {
        ([], []) => &[],
        (["trailers"], []) => &["TE"],
        ([], ["websocket"]) => &["Upgrade"],
        (["trailers"], ["websocket"]) => &["Upgrade, TE"],
        _ => panic!("{head:?}"),
    };
    assert_eq!(connection, named, "{head:?}");
}

/// The first request and its length, once it is whole. Anything but the one form that is expected ends the test.
fn request(bytes: &[u8]) -> Option<(usize, Seen)> {
    let head_end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head: String = bytes[..head_end].iter().map(|b| char::from(*b)).collect();
    let mut lines = head.trim_end_matches("\r\n").split("\r\n");
    let line: Vec<&str> = lines.next().unwrap().split(' ').collect();
    assert!(line.len() == 3 && line[2] == "HTTP/1.1", "{head:?}");
    let fields: Vec<(String, &str)> = lines
        .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{head:?}")))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    let all = |name: &str| -> Vec<&str> {
        let named = fields.iter().filter(|(n, _)| n == name);
        named.map(|(_, value)| *value).collect()
    };
    let hop = [
        "http2-settings",
        "keep-alive",
        "expect",
        "forwarded",
        "x-own",
        "proxy-connection",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-real-ip",
    ];
    for (name, value) in &fields {
        assert!(!name.contains('_'), "{head:?}");
        assert!(!hop.contains(&name.as_str()), "{head:?}");
        assert!(!value.contains(['\r', '\n', '\0']), "{head:?}");
    }
    assert_eq!(all("x-forwarded-for"), ["127.0.0.1"], "{head:?}");
    assert_eq!(all("x-forwarded-proto"), ["http"], "{head:?}");
    options_are_named(&all("te"), &all("upgrade"), &all("connection"), &head);
    let (length, coding, host) = (all("content-length"), all("transfer-encoding"), all("host"));
    assert!(length.len() + coding.len() <= 1, "{head:?}");
    assert!(host.len() == 1, "one Host, always: {head:?}");
    let (body, used) = match (length.first(), coding.first()) {
        (Some(length), _) => {
            let length: usize = length.parse().unwrap();
            (
                bytes.get(head_end..head_end + length)?.to_vec(),
                head_end + length,
            )
        }
        (None, Some(coding)) => {
            assert_eq!(*coding, "chunked");
            chunked(bytes, head_end)?
        }
        (None, None) => (Vec::new(), head_end),
    };
    let seen = Seen {
        method: line[0].to_owned(),
        target: line[1].to_owned(),
        host: Some(host[0].to_owned()),
        body,
    };
    Some((used, seen))
}

/// A chunked body without extensions, and where it ends.
fn chunked(bytes: &[u8], mut at: usize) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    let line_end = |at: usize| {
        let rest = bytes.get(at..)?;
        Some(at + rest.windows(2).position(|w| w == b"\r\n")?)
    };
    loop {
        let end = line_end(at)?;
        let line = std::str::from_utf8(&bytes[at..end]).unwrap();
        let size = usize::from_str_radix(line, 16).unwrap_or_else(|_| panic!("{line:?}"));
        at = end + 2;
        if size == 0 {
            break;
        }
        body.extend(bytes.get(at..at + size)?);
        assert_eq!(bytes.get(at + size..at + size + 2)?, b"\r\n");
        at += size + 2;
    }
    loop {
        let end = line_end(at)?;
        let empty = end == at;
        at = end + 2;
        if empty {
            return Some((body, at));
        }
    }
}
