//! One request on a connection of its own, and how it ended.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, SocketAddrV4, TcpStream},
    time::{Duration, Instant},
};

/// Longest answer that is read.
const MOST: usize = 64 << 20;

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// Why nothing whole came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Refused,
    Reset,
    TimedOut,
    /// The connection ended in order, the answer had not.
    Short,
    Other,
}

/// Sends `request` and reads until the other side closes.
pub(super) fn ask(to: SocketAddrV4, request: &str, bound: Duration) -> Result<Answer, Fault> {
    let started = Instant::now();
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(to), bound).map_err(fault)?;
    let rest = |stream: &TcpStream| {
        let left = bound.saturating_sub(started.elapsed());
        // Zero would be no bound at all.
        let left = left.max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).map_err(fault)
    };
    stream.set_nodelay(true).map_err(fault)?;
    stream.set_write_timeout(Some(bound)).map_err(fault)?;
    stream.write_all(request.as_bytes()).map_err(fault)?;
    let (mut text, mut part) = (Vec::new(), [0; 16 << 10]);
    loop {
        rest(&stream)?;
        match stream.read(&mut part).map_err(fault)? {
            0 => return parse(&text).ok_or(Fault::Short),
            got => text.extend_from_slice(part.get(..got).unwrap_or_default()),
        }
        if text.len() > MOST || started.elapsed() >= bound {
            return Err(Fault::TimedOut);
        }
    }
}

/// Answers in a row after which every node has given one, very likely.
const IN_A_ROW: usize = 20;
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// A change that is looked for from outside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// When the first answer was as it should be.
    pub(super) first: Duration,
    /// When the last one was not, or zero.
    pub(super) last_old: Duration,
}

/// Looks until all answers begin as they should; `None` if that takes longer than `bound`.
pub(super) fn watch(to: SocketAddrV4, host: &str, expected: &str, bound: Duration) -> Option<Seen> {
    let (began, request) = (Instant::now(), get(host, "/"));
    let (mut first, mut last_old, mut row) = (None, Duration::ZERO, 0);
    while row < IN_A_ROW {
        let came = ask(to, &request, bound);
        let now = began.elapsed();
        if came.is_ok_and(|came| came.status == 200 && came.body.starts_with(expected)) {
            first = first.or(Some(now));
            row += 1;
            continue;
        }
        if now > bound {
            return None;
        }
        (last_old, row) = (now, 0);
        std::thread::sleep(LOOK);
    }
    Some(Seen {
        first: first?,
        last_old,
    })
}

/// A request that keeps nothing open.
pub(super) fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// `None` for what is no whole answer.
fn parse(text: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(text);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    let whole = length.is_none_or(|length| body.len() == length);
    whole.then(|| Answer {
        status,
        body: body.to_owned(),
    })
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "given to map_err, which hands it over"
)]
fn fault(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Fault::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Fault::Reset,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Fault::TimedOut,
        _ => Fault::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_answer_is_none() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        let answer = parse(whole).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "abc"));
        assert_eq!(parse(&whole[..whole.len() - 1]), None);
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(parse(b""), None);
        let open = parse(b"HTTP/1.0 404 Not Found\r\n\r\nno").unwrap();
        assert_eq!((open.status, open.body.as_str()), (404, "no"));
    }

    #[test]
    fn faults_are_told_apart() {
        let of = |kind: io::ErrorKind| fault(kind.into());
        assert_eq!(of(io::ErrorKind::ConnectionRefused), Fault::Refused);
        assert_eq!(of(io::ErrorKind::ConnectionReset), Fault::Reset);
        assert_eq!(of(io::ErrorKind::WouldBlock), Fault::TimedOut);
        assert_eq!(of(io::ErrorKind::HostUnreachable), Fault::Other);
    }
}
