//! A client and a server that write HTTP/2 frames by hand: whatever a peer may do, it can do.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::BOUND;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const WITH_PRIORITY: u8 = 0x20;
/// `END_STREAM | END_HEADERS`
pub(crate) const WHOLE: u8 = 5;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// HPACK: a literal that is not indexed, without Huffman coding.
pub(crate) fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    for text in [name, value] {
        integer(text.len(), &mut out);
        out.extend(text);
    }
    out
}

fn integer(mut number: usize, out: &mut Vec<u8>) {
    if number < 127 {
        out.push(u8::try_from(number).unwrap());
        return;
    }
    out.push(127);
    number -= 127;
    while number >= 128 {
        out.push(u8::try_from(number % 128).unwrap() | 128);
        number /= 128;
    }
    out.push(u8::try_from(number).unwrap());
}

pub(crate) fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    fields.iter().flat_map(|(n, v)| literal(n, v)).collect()
}

pub(crate) fn request_block(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut out = block(&[
        (b":method", method.as_bytes()),
        (b":scheme", b"http"),
        (b":authority", b"test.example"),
        (b":path", path.as_bytes()),
    ]);
    for (name, value) in more {
        out.extend(literal(name.as_bytes(), value.as_bytes()));
    }
    out
}

/// A whole GET.
pub(crate) fn get_frame(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, &request_block("GET", path, &[]))
}

/// A frame as it came.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn code(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn status(&self) -> u16 {
        status(&self.payload)
    }
}

/// `:status` of a header block of a peer whose dynamic table is empty.
fn status(block: &[u8]) -> u16 {
    let mut rest = block;
    while rest[0] & 0xe0 == 0x20 {
        rest = &rest[1..];
    }
    match rest[0] {
        indexed @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        0x08 | 0x48 | 0x18 => {
            let (huffman, length) = (rest[1] & 0x80 != 0, usize::from(rest[1] & 0x7f));
            let bytes = &rest[2..2 + length];
            let text = if huffman {
                digits(bytes)
            } else {
                String::from_utf8(bytes.to_vec()).unwrap()
            };
            text.parse().unwrap()
        }
        other => panic!("no status first: {other:#x}"),
    }
}

/// Three digits in HPACK's Huffman code.
fn digits(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1))
        .collect();
    let mut rest = &bits[..];
    let mut out = String::new();
    while out.len() < 3 {
        let take = |n: usize| rest[..n].iter().fold(0_u8, |sum, bit| sum * 2 + bit);
        let (digit, length) = match take(5) {
            short @ 0..=2 => (short, 5),
            _ => (take(6) - 0b01_1001 + 3, 6),
        };
        out.push(char::from(b'0' + digit));
        rest = &rest[length..];
    }
    out
}

/// How the other side reacts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Status(u16),
    Reset(u32),
    GoAway(u32),
    Closed,
}

impl Outcome {
    /// An error of the stream or of the connection, or an answer that says so.
    pub(crate) fn refuses(self) -> bool {
        match self {
            Self::Status(status) => (400..600).contains(&status),
            Self::Reset(code) => code != 0,
            Self::GoAway(code) => code != 0,
            Self::Closed => true,
        }
    }
}

/// One end of a connection.
pub(crate) struct Raw<S> {
    pub(crate) stream: S,
    buffer: Vec<u8>,
    /// What came first for streams that nobody has asked about yet: answers come in any order.
    others: HashMap<u32, Frame>,
}

impl Raw<TcpStream> {
    /// A connection after the exchange of SETTINGS, with no dynamic table in the server's encoder.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, &[]).await
    }

    pub(crate) async fn connect_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::greet(stream, settings).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            others: HashMap::new(),
        }
    }

    pub(crate) async fn greet(stream: S, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self::new(stream);
        let mut payload = Vec::new();
        for (id, value) in [(1, 0)].iter().chain(settings) {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat())
            .await;
        let mut got = (false, false);
        while got != (true, true) {
            let next = raw.next().await.expect("SETTINGS");
            assert!(matches!(next.kind, SETTINGS | WINDOW_UPDATE), "{next:?}");
            if next.kind == SETTINGS {
                if next.flags & ACK == 0 {
                    got.0 = true;
                    raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
                } else {
                    got.1 = true;
                }
            }
        }
        raw
    }

    /// Takes the part of a server; the client's preface and SETTINGS come as they come.
    pub(crate) async fn serve(stream: S, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self::new(stream);
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        raw.send(&frame(SETTINGS, 0, 0, &payload)).await;
        while raw.buffer.len() < PREFACE.len() {
            if raw.stream.read_buf(&mut raw.buffer).await.unwrap_or(0) == 0 {
                return raw;
            }
        }
        raw.buffer.drain(..PREFACE.len());
        raw
    }

    /// Writes; whether the other side has closed meanwhile.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        let written = tokio::time::timeout(BOUND, self.stream.write_all(bytes));
        written.await.expect("in time").is_ok()
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        tokio::time::timeout(BOUND, self.read())
            .await
            .expect("a frame in time")
    }

    /// The next frame, however long it takes; `None` at the end of the connection.
    pub(crate) async fn stream_frame(&mut self) -> Option<Frame> {
        self.read().await
    }

    /// The next frame, if there is one soon.
    pub(crate) async fn soon(&mut self, wait: Duration) -> Option<Frame> {
        tokio::time::timeout(wait, self.read()).await.ok().flatten()
    }

    async fn read(&mut self) -> Option<Frame> {
        loop {
            if self.buffer.len() >= 9 {
                let head = &self.buffer;
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                if head.len() >= 9 + length {
                    let stream = u32::from_be_bytes(head[5..9].try_into().unwrap()) & 0x7fff_ffff;
                    let (kind, flags) = (head[3], head[4]);
                    let payload = head[9..9 + length].to_vec();
                    self.buffer.drain(..9 + length);
                    return Some(Frame {
                        kind,
                        flags,
                        stream,
                        payload,
                    });
                }
            }
            if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// What becomes of a stream.
    pub(crate) async fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            let next = match self.others.remove(&stream) {
                Some(earlier) => earlier,
                None => match self.next().await {
                    Some(next) => next,
                    None => return Outcome::Closed,
                },
            };
            match next.kind {
                HEADERS if next.stream == stream => return Outcome::Status(next.status()),
                RST_STREAM if next.stream == stream => return Outcome::Reset(next.code(0)),
                GOAWAY => return Outcome::GoAway(next.code(4)),
                HEADERS | RST_STREAM => _ = self.others.entry(next.stream).or_insert(next),
                _ => {}
            }
        }
    }

    /// Reads until the connection ends; the code of the GOAWAY before it, if one came.
    pub(crate) async fn end(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(next) = self.next().await {
            if next.kind == GOAWAY {
                code = Some(next.code(4));
            }
        }
        code
    }
}
