//! A raw HTTP/1.1 client in a namespace: what happened to each connection, never retried, never pooled.
//!
//! Each request is one new connection that asks to be closed after it. Refused, reset, timed out and cut off
//! are told apart: that is what the scenarios are about.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddrV4},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    runtime,
    task::JoinSet,
};

use crate::netns::Netns;

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A whole answer.
    Answer(Answer),
    /// The connection was refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// No connection or no whole answer in time.
    TimedOut,
    /// The connection ended before the answer was whole.
    CutOff,
    /// Anything else.
    Other(String),
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers by lower-case name; of several with one name the last.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: String,
}

/// One finished request.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its number in the load, from 0.
    pub number: usize,
    /// The client's port.
    pub port: u16,
    /// What became of it.
    pub outcome: Outcome,
    /// From the first packet to the end.
    pub took: Duration,
}

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to.
    pub target: SocketAddrV4,
    /// `Host` header.
    pub host: String,
    /// Begin of the path; the request's number is appended.
    pub path: String,
    /// Number of requests; `None` = until stopped.
    pub count: Option<usize>,
    /// Requests under way at the same time.
    pub overlap: usize,
    /// Longest time for one request.
    pub timeout: Duration,
    /// Local ports, used in turn; empty = the kernel's choice.
    pub ports: Vec<u16>,
}

impl Load {
    /// One request after another with the kernel's choice of ports.
    #[must_use]
    pub fn new(target: SocketAddrV4, host: &str, count: usize) -> Self {
        Self {
            target,
            host: host.to_owned(),
            path: "/".to_owned(),
            count: Some(count),
            overlap: 1,
            timeout: Duration::from_secs(10),
            ports: Vec::new(),
        }
    }
}

/// The client's end.
#[derive(Clone, Debug)]
pub struct Client {
    netns: Netns,
    address: Ipv4Addr,
}

/// A load that runs on a thread of its own.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    finished: Arc<AtomicUsize>,
    thread: JoinHandle<Result<Vec<Finished>>>,
}

impl Client {
    /// A client in `netns` that sends from `address`.
    #[must_use]
    pub fn new(netns: &Netns, address: Ipv4Addr) -> Self {
        Self {
            netns: netns.clone(),
            address,
        }
    }

    /// Sends a load and waits for its end; the results are in the order of their numbers.
    ///
    /// # Errors
    /// If the client itself cannot work; a request that fails is an [`Outcome`].
    pub fn send(&self, load: Load) -> Result<Vec<Finished>> {
        self.start(load)?.join()
    }

    /// Starts a load.
    ///
    /// # Errors
    /// If its thread cannot be started.
    pub fn start(&self, load: Load) -> Result<Running> {
        let (stop, finished) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (client, state) = (self.clone(), (Arc::clone(&stop), Arc::clone(&finished)));
        let thread = thread::Builder::new()
            .name("client".into())
            .spawn(move || {
                client.netns.enter()?;
                let runtime = runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(send_all(client.address, Arc::new(load), &state.0, &state.1))
            })?;
        Ok(Running {
            stop,
            finished,
            thread,
        })
    }

    /// Runs a shell command and returns its standard output.
    ///
    /// # Errors
    /// If it fails; with what it said.
    pub fn shell(&self, line: &str, environment: &[(&str, &str)]) -> Result<String> {
        let mut shell = Command::new("bash");
        shell.args(["-c", line]).envs(environment.iter().copied());
        let done = self.netns.output(&mut shell)?;
        if !done.status.success() {
            bail!(
                "`{line}` failed ({}): {}",
                done.status,
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }
}

impl Running {
    /// Requests finished so far.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.finished.load(Ordering::Relaxed)
    }

    /// Sends no new requests and waits for those under way.
    ///
    /// # Errors
    /// If the client itself failed.
    pub fn stop(self) -> Result<Vec<Finished>> {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits for the end of the load.
    ///
    /// # Errors
    /// If the client itself failed.
    pub fn join(self) -> Result<Vec<Finished>> {
        self.thread
            .join()
            .map_err(|_| anyhow!("the client's thread panicked"))?
    }
}

async fn send_all(
    from: Ipv4Addr,
    load: Arc<Load>,
    stop: &AtomicBool,
    done: &AtomicUsize,
) -> Result<Vec<Finished>> {
    let mut under_way = JoinSet::new();
    let mut results = Vec::new();
    let mut number = 0;
    loop {
        let more = load.count.is_none_or(|count| number < count) && !stop.load(Ordering::Relaxed);
        if more && under_way.len() < load.overlap {
            under_way.spawn(send_one(from, Arc::clone(&load), number));
            number += 1;
            continue;
        }
        let Some(finished) = under_way.join_next().await else {
            break;
        };
        results.push(finished.context("a request's task panicked")?);
        done.fetch_add(1, Ordering::Relaxed);
    }
    results.sort_by_key(|finished: &Finished| finished.number);
    Ok(results)
}

async fn send_one(from: Ipv4Addr, load: Arc<Load>, number: usize) -> Finished {
    let started = Instant::now();
    let mut port = 0;
    let wanted = if load.ports.is_empty() {
        0
    } else {
        load.ports[number % load.ports.len()]
    };
    let work = async {
        let mut stream = connect(SocketAddrV4::new(from, wanted), load.target).await?;
        port = stream.local_addr()?.port();
        ask(&mut stream, &load.host, &format!("{}{number}", load.path)).await
    };
    let outcome = match tokio::time::timeout(load.timeout, work).await {
        Err(_) => Outcome::TimedOut,
        Ok(Ok(bytes)) => parse(&bytes).map_or(Outcome::CutOff, Outcome::Answer),
        Ok(Err(error)) => failed(&error),
    };
    Finished {
        number,
        port,
        outcome,
        took: started.elapsed(),
    }
}

fn failed(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Outcome::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Outcome::Reset,
        io::ErrorKind::TimedOut => Outcome::TimedOut,
        _ => Outcome::Other(error.to_string()),
    }
}

async fn connect(from: SocketAddrV4, to: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(from.into())?;
    socket.connect(to.into()).await
}

async fn ask(stream: &mut TcpStream, host: &str, path: &str) -> io::Result<Vec<u8>> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// A whole answer with a Content-Length (or none and an empty body); `None` if it is not whole.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let header = |line: &str| {
        line.split_once(':')
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
    };
    let headers: BTreeMap<_, _> = lines.filter_map(header).collect();
    let length = headers
        .get("content-length")
        .map_or(Some(0), |length| length.parse().ok())?;
    (body.len() == length).then(|| Answer {
        status,
        headers,
        body: body.to_owned(),
    })
}

/// Counts of what became of requests, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answers by status.
    pub answers: BTreeMap<u16, usize>,
    /// Connections refused.
    pub refused: usize,
    /// Connections reset.
    pub reset: usize,
    /// Requests without an end in time.
    pub timed_out: usize,
    /// Answers that ended early.
    pub cut_off: usize,
    /// Other errors.
    pub other: BTreeMap<String, usize>,
}

impl Tally {
    /// Counts.
    pub fn of<'a>(finished: impl IntoIterator<Item = &'a Finished>) -> Self {
        let mut tally = Self::default();
        for request in finished {
            match &request.outcome {
                Outcome::Answer(answer) => *tally.answers.entry(answer.status).or_default() += 1,
                Outcome::Refused => tally.refused += 1,
                Outcome::Reset => tally.reset += 1,
                Outcome::TimedOut => tally.timed_out += 1,
                Outcome::CutOff => tally.cut_off += 1,
                Outcome::Other(error) => *tally.other.entry(error.clone()).or_default() += 1,
            }
        }
        tally
    }

    /// Answers with this status.
    #[must_use]
    pub fn status(&self, status: u16) -> usize {
        self.answers.get(&status).copied().unwrap_or(0)
    }

    /// Requests without a whole answer.
    #[must_use]
    pub fn broken(&self) -> usize {
        self.refused
            + self.reset
            + self.timed_out
            + self.cut_off
            + self.other.values().sum::<usize>()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<_> = self
            .answers
            .iter()
            .map(|(status, count)| format!("{count} x {status}"))
            .collect();
        let rare = [
            (self.refused, "refused"),
            (self.reset, "reset"),
            (self.timed_out, "timed out"),
            (self.cut_off, "cut off"),
        ];
        parts.extend(
            rare.iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, what)| format!("{count} {what}")),
        );
        parts.extend(
            self.other
                .iter()
                .map(|(error, count)| format!("{count} x {error}")),
        );
        f.write_str(&if parts.is_empty() {
            "nothing".to_owned()
        } else {
            parts.join(", ")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_or_cut_off() {
        let whole = b"HTTP/1.1 503 Service Unavailable\r\nX-Envoy-Overloaded: true\r\ncontent-length: 3\r\n\r\nabc";
        let answer = parse(whole).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "abc"));
        assert_eq!(answer.headers["x-envoy-overloaded"], "true");
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn kinds_are_counted_apart() {
        let finished = |outcome| Finished {
            number: 0,
            port: 0,
            outcome,
            took: Duration::ZERO,
        };
        let answer = |status| {
            finished(Outcome::Answer(Answer {
                status,
                ..Answer::default()
            }))
        };
        let all = [
            answer(200),
            answer(200),
            answer(503),
            finished(Outcome::Refused),
            finished(Outcome::CutOff),
        ];
        let tally = Tally::of(&all);
        assert_eq!(tally.to_string(), "2 x 200, 1 x 503, 1 refused, 1 cut off");
        assert_eq!((tally.status(200), tally.broken()), (2, 2));
    }
}
