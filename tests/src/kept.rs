//! Connections by HTTP/1.1 that a client keeps, one request at a time.

use std::{
    io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write},
    net::TcpStream,
    time::Duration,
};

use crate::{fixture::HOST, machine::patience, rig::VIP};

/// Longest time of one step; it takes a second or two.
const STEP: Duration = Duration::from_secs(20);

/// A connection that a client keeps.
#[derive(Debug)]
pub struct Kept(BufReader<TcpStream>);

/// What a request on it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// This status; whether the connection may be used again.
    Answered(u16, bool),
    /// Closed before, in order.
    Closed,
}

impl Kept {
    /// Opens one to the VIP from the calling thread's namespace.
    ///
    /// # Errors
    /// What the system says; also if it takes too long.
    pub fn open() -> Result<Self> {
        let stream = TcpStream::connect_timeout(&VIP.into(), patience(STEP))?;
        stream.set_read_timeout(Some(patience(STEP)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Opens so many, each of which has been answered and may be used again.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Self::ask`], and any other answer.
    pub fn many(count: usize) -> Result<Vec<Self>> {
        let each = (0..count).map(|_| {
            let mut kept = Self::open()?;
            match kept.ask()? {
                Asked::Answered(200, true) => Ok(kept),
                other => Err(Error::other(format!("{other:?}"))),
            }
        });
        each.collect()
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// A connection that was reset, an answer that is late or has no end.
    pub fn ask(&mut self) -> Result<Asked> {
        let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
        if let Err(error) = self.0.get_mut().write_all(request.as_bytes()) {
            let is_end = error.kind() == ErrorKind::BrokenPipe;
            return if is_end {
                Ok(Asked::Closed)
            } else {
                Err(error)
            };
        }
        let (mut status, mut length, mut goes_on) = (0, 0, true);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return match status {
                    0 => Ok(Asked::Closed),
                    _ => Err(ErrorKind::UnexpectedEof.into()),
                };
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            } else if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest
                    .get(..3)
                    .and_then(|code| code.parse().ok())
                    .unwrap_or(0);
            } else if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().map_err(Error::other)?;
            }
            goes_on &= line != "connection: close";
        }
        self.0.read_exact(&mut vec![0; length])?;
        Ok(Asked::Answered(status, goes_on))
    }
}
