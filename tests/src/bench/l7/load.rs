//! The load generator: a fixed number of requests over a fixed number of keep-alive connections, closed loop.
//!
//! One thread, epoll. Every request is counted with its status; a connection that ends before its answer is complete is an
//! error, never repeated silently: the caller declares such a run void.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{Timespec, epoll};

/// The host that all three proxies route.
pub(super) const HOST: &str = "bench.example";

/// What came back.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Complete answers by status.
    pub(super) statuses: BTreeMap<u16, u64>,
    /// Microseconds of each request, ascending.
    pub(super) latencies: Vec<u32>,
    pub(super) elapsed: Duration,
}

/// Open connections to one proxy.
pub(super) struct Client {
    poll: OwnedFd,
    connections: Vec<Connection>,
    request: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    sent: Instant,
    input: Vec<u8>,
}

impl Client {
    /// Connects `count` times.
    pub(super) fn connect(address: SocketAddr, count: usize) -> Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(count);
        for slot in 0..count {
            let stream = TcpStream::connect(address)
                .with_context(|| format!("cannot connect to {address}"))?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            epoll::add(
                &poll,
                &stream,
                epoll::EventData::new_u64(slot as u64),
                epoll::EventFlags::IN,
            )?;
            connections.push(Connection {
                stream,
                sent: Instant::now(),
                input: Vec::with_capacity(4096),
            });
        }
        let request = format!(
            "GET /bench/resource?id=42 HTTP/1.1\r\nhost: {HOST}\r\nuser-agent: forebay-bench\r\naccept: */*\r\n\r\n"
        );
        Ok(Self {
            poll,
            connections,
            request: request.into_bytes(),
        })
    }

    /// Sends exactly `requests` requests, each connection one after another, and waits for all answers.
    pub(super) fn run(&mut self, requests: u64, limit: Duration) -> Result<Outcome> {
        let start = Instant::now();
        let mut outcome = Outcome {
            latencies: Vec::with_capacity(requests as usize),
            ..Outcome::default()
        };
        let mut left = requests;
        for connection in &mut self.connections {
            if left > 0 {
                connection.send(&self.request)?;
                left -= 1;
            }
        }
        let mut done = 0;
        let mut events = Vec::with_capacity(256);
        while done < requests {
            ensure!(
                start.elapsed() < limit,
                "{done} of {requests} requests were answered within {limit:?}"
            );
            events.clear();
            let second = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            match epoll::wait(
                &self.poll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&second),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let connection = &mut self.connections[event.data.u64() as usize];
                let Some(status) = connection.receive()? else {
                    continue;
                };
                *outcome.statuses.entry(status).or_default() += 1;
                outcome.latencies.push(
                    connection
                        .sent
                        .elapsed()
                        .as_micros()
                        .try_into()
                        .unwrap_or(u32::MAX),
                );
                done += 1;
                if left > 0 {
                    connection.send(&self.request)?;
                    left -= 1;
                }
            }
        }
        outcome.elapsed = start.elapsed();
        outcome.latencies.sort_unstable();
        Ok(outcome)
    }
}

impl Connection {
    fn send(&mut self, request: &[u8]) -> Result<()> {
        self.sent = Instant::now();
        self.stream
            .write_all(request)
            .context("a connection broke on a request")
    }

    /// The status once the whole answer is there.
    fn receive(&mut self) -> Result<Option<u16>> {
        let mut buffer = [0u8; 8192];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the proxy closed a connection that should be kept"),
            Ok(n) => self.input.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("a connection broke on an answer"),
        }
        let Some((status, length)) = parse(&self.input)? else {
            return Ok(None);
        };
        if self.input.len() < length {
            return Ok(None);
        }
        ensure!(
            self.input.len() == length,
            "the proxy sent more than the answer"
        );
        self.input.clear();
        Ok(Some(status))
    }
}

/// Status and whole length of the answer at the start of `input`, once its head is there.
fn parse(input: &[u8]) -> Result<Option<(u16, usize)>> {
    let Some(head) = input.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&input[..head]).context("the answer's head is not text")?;
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|l| l.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let status = status.context("the answer does not begin with an HTTP/1.1 status")?;
    let length = lines
        .filter_map(|l| l.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length
        .and_then(|(_, value)| value.trim().parse().ok())
        .context("the answer has no Content-Length")?;
    Ok(Some((status, head + 4 + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_at_its_length() {
        let head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(parse(&head[..20]).unwrap(), None);
        assert_eq!(parse(head).unwrap(), Some((503, head.len() + 5)));
        assert!(parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn exactly_the_asked_number_is_sent_and_answered() {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = probe.local_addr().unwrap();
        drop(probe);
        let served = super::super::backend::start(address, 0).unwrap();
        let mut client = Client::connect(address, 3).unwrap();
        let outcome = client.run(50, Duration::from_secs(10)).unwrap();
        assert_eq!(outcome.statuses, BTreeMap::from([(200, 50)]));
        assert_eq!(outcome.latencies.len(), 50);
        assert_eq!(served.load(std::sync::atomic::Ordering::Relaxed), 50);
    }
}
