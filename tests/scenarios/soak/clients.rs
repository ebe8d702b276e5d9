//! Clients that ask all the time: some on a new connection each time, some on one that they keep.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use gateway_tests::fixture::HOST;
use gateway_tests::netns::Netns;
use gateway_tests::rig::VIP;
use gateway_tests::soak::course::Course;
use gateway_tests::soak::history::{Outcome, Request};

/// How the history calls the VIP.
pub(super) const VIP_NAME: &str = "the VIP";
/// Longest time for a request: longer than a process is stopped.
const TRY: Duration = Duration::from_secs(6);
/// Requests on a connection that is kept.
const KEPT: usize = 50;

/// See the module.
pub(super) struct Clients<'a> {
    netns: &'a Netns,
    course: &'a Course,
    /// Between two requests.
    pause: Duration,
    answered: Mutex<BTreeSet<String>>,
    unanswered: Mutex<Vec<Unanswered>>,
}

/// A request without an answer.
pub(super) struct Unanswered {
    pub(super) begin: Duration,
    pub(super) path: String,
    /// The client's port; 0 if there was no connection.
    pub(super) port: u16,
}

/// An answer: its status, its body, and whether the connection may be used again.
struct Answer {
    status: u16,
    body: String,
    goes_on: bool,
}

impl<'a> Clients<'a> {
    pub(super) fn new(netns: &'a Netns, course: &'a Course, pause: Duration) -> Self {
        Self {
            netns,
            course,
            pause,
            answered: Mutex::default(),
            unanswered: Mutex::default(),
        }
    }

    /// Asks while `work` is done.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            for number in 0..3 {
                scope.spawn(move || self.ask(&format!("/new{number}"), 1));
                scope.spawn(move || self.ask(&format!("/kept{number}"), KEPT));
            }
            self.course.run(work)
        })
    }

    /// Paths of requests that were answered with 200.
    pub(super) fn answered(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.answered.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Requests without an answer.
    pub(super) fn unanswered(&self) -> Vec<Unanswered> {
        let mut all = self
            .unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *all)
    }

    /// Asks, at most `most` times on a connection.
    fn ask(&self, begin_of_path: &str, most: usize) {
        self.netns.enter().unwrap();
        let (mut number, mut kept) = (0_u64, None);
        while !self.course.stopped() {
            number += 1;
            let mut path = format!("{begin_of_path}/{number}");
            let begin = self.course.now();
            let (mut doing, mut port) = ("connecting", 0);
            let asked = one(&mut path, &mut kept, most, (&mut doing, &mut port));
            let outcome = match asked {
                Ok(answer) => judged(&answer),
                Err(error) => {
                    let mut all = self
                        .unanswered
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    let path = path.clone();
                    all.push(Unanswered { begin, path, port });
                    Outcome::of(&error)
                }
            };
            if matches!(outcome, Outcome::Answered(_)) {
                let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
                answered.insert(path);
            }
            self.course.note(Request {
                vip: VIP_NAME,
                begin,
                end: self.course.now(),
                outcome,
                doing,
            });
            thread::park_timeout(self.pause);
        }
    }
}

/// A connection that is kept, and how often it was used.
type Kept = Option<(BufReader<TcpStream>, usize)>;

/// One request, on the connection that is kept if there is one.
fn one(
    path: &mut String,
    kept: &mut Kept,
    most: usize,
    (doing, port): (&mut &'static str, &mut u16),
) -> Result<Answer> {
    if let Some((mut reader, used)) = kept.take() {
        *doing = "waiting for an answer on a connection that it kept";
        *port = reader.get_ref().local_addr()?.port();
        match exchange(path, &mut reader, used + 1 == most) {
            // RFC 9112, 9.3.1: it may have ended before it heard of the request, which is asked anew. That a killed process
            // has passed it on already is nobody's fault: another path.
            Err(error) if is_end(&error) => path.push_str("/again"),
            answer => {
                let answer = answer?;
                keep(kept, reader, used + 1, most, &answer);
                return Ok(answer);
            }
        }
    }
    *doing = "connecting";
    let stream = TcpStream::connect_timeout(&SocketAddr::V4(VIP), TRY)?;
    stream.set_read_timeout(Some(TRY))?;
    stream.set_nodelay(true)?;
    *port = stream.local_addr()?.port();
    let mut reader = BufReader::new(stream);
    *doing = "waiting for an answer";
    let answer = exchange(path, &mut reader, most == 1)?;
    keep(kept, reader, 1, most, &answer);
    Ok(answer)
}

fn keep(kept: &mut Kept, reader: BufReader<TcpStream>, used: usize, most: usize, answer: &Answer) {
    if answer.goes_on && used < most {
        *kept = Some((reader, used));
    }
}

/// Whether a connection ended before the first byte of an answer.
fn is_end(error: &Error) -> bool {
    error.kind() == ErrorKind::NotConnected
}

fn exchange(path: &str, reader: &mut BufReader<TcpStream>, last: bool) -> Result<Answer> {
    let connection = if last { "close" } else { "keep-alive" };
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: {connection}\r\n\r\n");
    let ended = |error: Error| match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset if !last => {
            Error::from(ErrorKind::NotConnected)
        }
        _ => error,
    };
    reader
        .get_mut()
        .write_all(request.as_bytes())
        .map_err(ended)?;
    let mut line = String::new();
    if reader.read_line(&mut line).map_err(ended)? == 0 {
        return Err(ended(ErrorKind::ConnectionReset.into()));
    }
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| Error::other(format!("no status in {line:?}")))?;
    let (mut length, mut goes_on) = (None, !last);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let lower = line.trim_end().to_ascii_lowercase();
        if lower.is_empty() {
            break;
        }
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().ok();
        }
        goes_on &= lower != "connection: close";
    }
    let length = length.ok_or_else(|| Error::other("an answer without content-length"))?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Answer {
        status,
        body: String::from_utf8_lossy(&body).trim_end().to_owned(),
        goes_on,
    })
}

fn judged(answer: &Answer) -> Outcome {
    match (answer.status, answer.body.as_str()) {
        (200, "hello from backend v1") => Outcome::Answered("v1"),
        (200, "hello from backend v2") => Outcome::Answered("v2"),
        (500 | 503, body) => Outcome::Failed(format!("{} {body}", answer.status)),
        (status, body) => Outcome::Wrong(format!("{status} {body}")),
    }
}
