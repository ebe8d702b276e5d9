//! A connection of HTTP/2 by prior knowledge (RFC 9113), on which one request follows another. One thread.
//!
//! It writes and reads frames by itself: what a library does for a client would be most of what is counted, and changes with
//! its version. The server gets windows that it never fills, so that all frames are those of requests and answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};

use super::load::HOST;
use super::{CELL_LIMIT, backend};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
/// Flags of frames.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW_SIZE: u16 = 4;
/// The largest window, and by how much the one of a connection is smaller at its start.
const WINDOW: u32 = (1 << 31) - 1;
const AT_START: u32 = 65_535;

/// `:status: 200` of HPACK's static table (RFC 7541, appendix A).
const OK: u8 = 0x88;

/// An open connection.
pub(super) struct Multiplexed {
    stream: TcpStream,
    /// What has come and is no whole frame yet.
    input: Vec<u8>,
    request: Vec<u8>,
    /// Of the next request.
    number: u32,
}

impl Multiplexed {
    /// Connects.
    pub(super) fn connect(address: SocketAddr) -> Result<Self> {
        let mut stream =
            TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(CELL_LIMIT))?;
        let mut setting = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        setting.extend(WINDOW.to_be_bytes());
        let more = (WINDOW - AT_START).to_be_bytes();
        let begin = [
            PREFACE,
            &frame(SETTINGS, 0, 0, &setting),
            &frame(WINDOW_UPDATE, 0, 0, &more),
        ];
        stream.write_all(&begin.concat())?;
        Ok(Self {
            stream,
            input: Vec::with_capacity(1 << 16),
            request: request(),
            number: 1,
        })
    }

    /// Sends exactly `requests` requests, each after the answer to the one before, and fails unless every answer is a good one.
    pub(super) fn ask(&mut self, requests: u32) -> Result<()> {
        for _ in 0..requests {
            let number = self.number;
            self.number += 2;
            let flags = END_STREAM | END_HEADERS;
            let request = frame(HEADERS, flags, number, &self.request);
            self.stream
                .write_all(&request)
                .context("a connection broke on a request")?;
            self.answer(number)?;
        }
        Ok(())
    }

    /// Takes frames until the end of an answer.
    fn answer(&mut self, number: u32) -> Result<()> {
        let (mut is_good, mut body) = (false, 0);
        loop {
            let (kind, flags, stream, payload) = self.next()?;
            match kind {
                SETTINGS | PING if flags & ACK == 0 => {
                    let back = if kind == PING { payload } else { Vec::new() };
                    self.stream.write_all(&frame(kind, ACK, 0, &back))?;
                }
                SETTINGS | PING | WINDOW_UPDATE => {}
                HEADERS if stream == number => is_good = payload.first() == Some(&OK),
                DATA if stream == number => body += payload.len(),
                _ => bail!("the run is void: a frame of type {kind} on stream {stream}"),
            }
            if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                ensure!(
                    is_good && body == backend::BODY,
                    "the run is void: an answer of {body} bytes, with a status that is good: {is_good}"
                );
                return Ok(());
            }
        }
    }

    /// The next frame: its type, flags, stream and payload.
    fn next(&mut self) -> Result<(u8, u8, u32, Vec<u8>)> {
        loop {
            if let Some((head, rest)) = self.input.split_first_chunk::<9>() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let (kind, flags) = (head[3], head[4]);
                let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                if let Some(payload) = rest.get(..length) {
                    let payload = payload.to_vec();
                    self.input.drain(..9 + length);
                    return Ok((kind, flags, stream, payload));
                }
            }
            let mut buffer = [0u8; 8192];
            let got = self.stream.read(&mut buffer);
            let got = got.context("a connection broke on an answer")?;
            ensure!(got > 0, "the proxy closed a connection that should be kept");
            self.input.extend_from_slice(&buffer[..got]);
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The header block of the request that the client of HTTP/1.1 sends too. No name or value goes into HPACK's dynamic table.
fn request() -> Vec<u8> {
    // `:method: GET` and `:scheme: http`, then literals with names of the static table.
    let mut block = vec![0x82, 0x86];
    let fields: [(&[u8], &str); 4] = [
        (&[0x04], "/bench/resource?id=42"),
        (&[0x01], HOST),
        (&[0x0f, 58 - 15], "forebay-bench"),
        (&[0x0f, 19 - 15], "*/*"),
    ];
    for (name, value) in fields {
        block.extend(name);
        // All are shorter than the 127 bytes of which the length is one byte.
        block.push(value.len() as u8);
        block.extend(value.bytes());
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_its_length_type_flags_and_stream_in_front() {
        assert_eq!(
            frame(HEADERS, END_STREAM | END_HEADERS, 3, b"ab"),
            [0, 0, 2, 1, 5, 0, 0, 0, 3, b'a', b'b']
        );
    }

    #[test]
    fn the_request_is_one_that_a_server_reads() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        std::thread::spawn(move || runtime.block_on(serve(listener)));
        Multiplexed::connect(address).unwrap().ask(3).unwrap();
    }

    async fn serve(listener: std::net::TcpListener) {
        use http_body_util::Full;
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(|request: http::Request<_>| async move {
            let _: &hyper::body::Incoming = request.body();
            let uri = format!("http://{HOST}/bench/resource?id=42");
            let agent = &request.headers()["user-agent"];
            let is_it = request.uri() == uri.as_str() && agent == "forebay-bench";
            let length = if is_it { backend::BODY } else { 0 };
            let body = Full::new(bytes::Bytes::from(vec![b'x'; length]));
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        });
        let io = hyper_util::rt::TokioIo::new(stream);
        let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        // The client ends it without a farewell.
        drop(server.serve_connection(io, service).await);
    }
}
