//! The access log: one JSON object per request or UDP session, with Envoy's field names.
//!
//! Lines are formatted on the worker into a buffer; a thread of its own writes buffers. A worker never waits for a
//! file: when the writer is behind, lines are dropped and counted.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderValue, Version};

use super::StartError;
use super::exchange::Head;
use super::stats::Flag;
use crate::file::read::phrase;
use crate::l7::digits::{number, socket};

/// Size at which a worker's buffer goes to the writer.
const BUFFER: usize = 16 * 1024;
/// Buffers on their way to the writer.
const QUEUE: usize = 256;

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// Nowhere.
    #[default]
    Off,
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// The writer thread.
#[derive(Debug)]
pub struct Writer {
    sender: SyncSender<Buffer>,
    thread: JoinHandle<()>,
}

/// Lines of one worker.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    text: Vec<u8>,
    lines: u64,
}

impl Writer {
    /// Starts the thread; `None` if the log is off.
    ///
    /// # Errors
    /// If the file cannot be opened or the thread not be started.
    pub fn start(destination: &Destination) -> Result<Option<Self>, StartError> {
        let output: Box<dyn Write + Send> = match destination {
            Destination::Off => return Ok(None),
            Destination::Stdout => Box::new(io::stdout()),
            Destination::File(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                Box::new(file.map_err(|error| StartError::AccessLog {
                    path: path.clone(),
                    why: why(path, &error),
                })?)
            }
        };
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_all(&receiver, output))
            .map_err(StartError::Worker)?;
        Ok(Some(Self { sender, thread }))
    }

    pub(super) fn sender(&self) -> Sender {
        Sender {
            channel: self.sender.clone(),
            buffer: Buffer::default(),
            clock: Clock::default(),
        }
    }

    /// Waits until all is written; the workers' senders must be gone.
    pub fn finish(self) {
        drop(self.sender);
        // A panic of the writer has been reported by its own thread.
        let _ = self.thread.join();
    }
}

fn why(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "its directory does not exist".into(),
        _ if path.is_dir() => "it is a directory".into(),
        _ => phrase(error),
    }
}

fn write_all(receiver: &Receiver<Buffer>, mut output: Box<dyn Write + Send>) {
    let mut failing = false;
    while let Ok(buffer) = receiver.recv() {
        let result = output.write_all(&buffer.text).and_then(|()| output.flush());
        if let Err(error) = &result
            && !failing
        {
            tracing::error!(%error, "cannot write the access log; lines are lost until it can be written again");
        }
        failing = result.is_err();
    }
}

/// One worker's end.
#[derive(Debug)]
pub(super) struct Sender {
    channel: SyncSender<Buffer>,
    buffer: Buffer,
    clock: Clock,
}

impl Sender {
    /// Formats a line; returns how many lines had to be dropped.
    pub(super) fn line(&mut self, format: impl FnOnce(&mut Vec<u8>, &mut Clock)) -> u64 {
        format(&mut self.buffer.text, &mut self.clock);
        self.buffer.lines += 1;
        if self.buffer.text.len() >= BUFFER {
            self.flush()
        } else {
            0
        }
    }

    /// Sends what there is to the writer; returns how many lines had to be dropped.
    pub(super) fn flush(&mut self) -> u64 {
        if self.buffer.text.is_empty() {
            return 0;
        }
        let empty = Buffer {
            text: Vec::with_capacity(BUFFER + 1024),
            lines: 0,
        };
        match self
            .channel
            .try_send(std::mem::replace(&mut self.buffer, empty))
        {
            Ok(()) => 0,
            Err(TrySendError::Full(lost) | TrySendError::Disconnected(lost)) => lost.lines,
        }
    }
}

/// How long the two clocks are taken to go alike.
const SAME_RATE: Duration = Duration::from_secs(1);

/// Formats times of day; the part up to the second is kept until the second changes.
#[derive(Debug, Default)]
pub(super) struct Clock {
    second: u64,
    text: String,
    /// What both clocks showed at one moment.
    both: Option<(Instant, SystemTime)>,
}

impl Clock {
    /// The time of day of a moment shortly before `now`, for which the system need not be asked.
    fn time_of_day(&mut self, at: Instant, now: Instant) -> SystemTime {
        let fresh =
            |(read, _): &(Instant, SystemTime)| now.saturating_duration_since(*read) < SAME_RATE;
        let both = self.both.filter(fresh);
        let (read, time) = *self
            .both
            .insert(both.unwrap_or_else(|| (Instant::now(), SystemTime::now())));
        match at.checked_duration_since(read) {
            Some(after) => time + after,
            None => time - (read - at),
        }
    }

    fn write(&mut self, out: &mut Vec<u8>, at: SystemTime) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.text.is_empty() || since.as_secs() != self.second {
            self.second = since.as_secs();
            self.text = date_time(self.second);
        }
        out.extend_from_slice(self.text.as_bytes());
        let millis = since.subsec_millis();
        out.push(b'.');
        for unit in [100, 10, 1] {
            number(out, millis / unit % 10);
        }
        out.push(b'Z');
    }
}

/// `YYYY-MM-DDTHH:MM:SS` of a Unix time in UTC (days to civil date in the proleptic Gregorian calendar).
pub(crate) fn date_time(second: u64) -> String {
    let (days, rest) = (second / 86_400, second % 86_400);
    // Count days from 1 March of year 0, so that the leap day is the last of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// What a line is made of.
pub(super) struct Line<'a> {
    pub(super) head: &'a Head,
    pub(super) started: Instant,
    pub(super) took: Duration,
    pub(super) upstream_took: Option<Duration>,
    pub(super) status: u16,
    pub(super) flag: Option<Flag>,
    /// Why the scanner refused the request, or who closed the client's connection.
    pub(super) details: Option<&'static str>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) cluster: Option<&'a str>,
    pub(super) rule: Option<&'a str>,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
}

/// Appends one line.
pub(super) fn write(out: &mut Vec<u8>, clock: &mut Clock, line: &Line<'_>) {
    let head = line.head;
    out.extend_from_slice(b"{\"start_time\":\"");
    let started = clock.time_of_day(line.started, line.started + line.took);
    clock.write(out, started);
    out.extend_from_slice(b"\",\"method\":\"");
    // Of a refused request nothing is known that could be trusted in a log.
    let refused = line.details.is_some() && line.flag == Some(Flag::DownstreamProtocol);
    escape(
        out,
        if refused {
            b"-"
        } else {
            head.method.as_str().as_bytes()
        },
    );
    out.extend_from_slice(b"\",\"path\":\"");
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    escape(out, path.as_bytes());
    let protocol = match head.version {
        Version::HTTP_10 => &b"HTTP/1.0"[..],
        Version::HTTP_2 => b"HTTP/2",
        _ => b"HTTP/1.1",
    };
    out.extend_from_slice(b"\",\"protocol\":\"");
    out.extend_from_slice(protocol);
    out.extend_from_slice(b"\",\"response_code\":");
    number(out, line.status);
    out.extend_from_slice(b",\"response_flags\":\"");
    out.extend_from_slice(line.flag.map_or("-", Flag::name).as_bytes());
    out.extend_from_slice(b"\",\"bytes_received\":");
    number(out, line.received);
    out.extend_from_slice(b",\"bytes_sent\":");
    number(out, line.sent);
    out.extend_from_slice(b",\"duration\":");
    number(out, line.took.as_millis());
    out.extend_from_slice(b",\"upstream_service_time\":");
    match line.upstream_took {
        Some(took) => number(out, took.as_millis()),
        None => out.extend_from_slice(b"null"),
    }
    for (name, value) in [
        ("x_forwarded_for", &head.forwarded_for),
        ("user_agent", &head.user_agent),
        ("x_request_id", &head.request_id),
        ("authority", &head.authority),
    ] {
        text(out, name, value.as_ref().map(HeaderValue::as_bytes));
    }
    address(out, "upstream_host", line.endpoint);
    text(out, "upstream_cluster", line.cluster.map(str::as_bytes));
    text(
        out,
        "response_code_details",
        line.details.map(str::as_bytes),
    );
    text(out, "route_name", line.rule.map(str::as_bytes));
    address(out, "downstream_remote_address", Some(line.peer));
    address(out, "downstream_local_address", Some(line.local));
    out.extend_from_slice(b"}\n");
}

/// What the line of a UDP session is made of.
pub(super) struct SessionLine<'a> {
    pub(super) took: Duration,
    pub(super) flag: Option<Flag>,
    /// Datagrams and bytes from the client.
    pub(super) received: (u64, u64),
    /// Datagrams and bytes to the client.
    pub(super) sent: (u64, u64),
    pub(super) endpoint: SocketAddr,
    pub(super) cluster: &'a str,
    pub(super) rule: &'a str,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
}

/// Appends the line of a UDP session.
pub(super) fn write_session(out: &mut Vec<u8>, clock: &mut Clock, line: &SessionLine<'_>) {
    out.extend_from_slice(b"{\"start_time\":\"");
    clock.write(out, SystemTime::now() - line.took);
    let ((datagrams_in, bytes_in), (datagrams_out, bytes_out)) = (line.received, line.sent);
    let _ = write!(
        out,
        "\",\"protocol\":\"UDP\",\"response_flags\":\"{}\",\"bytes_received\":{bytes_in},\"bytes_sent\":{bytes_out},\"datagrams_received\":{datagrams_in},\"datagrams_sent\":{datagrams_out},\"duration\":{}",
        line.flag.map_or("-", Flag::name),
        line.took.as_millis(),
    );
    address(out, "upstream_host", Some(line.endpoint));
    text(out, "upstream_cluster", Some(line.cluster.as_bytes()));
    text(out, "route_name", Some(line.rule.as_bytes()));
    address(out, "downstream_remote_address", Some(line.peer));
    address(out, "downstream_local_address", Some(line.local));
    out.extend_from_slice(b"}\n");
}

fn address(out: &mut Vec<u8>, name: &str, value: Option<SocketAddr>) {
    quoted(out, name, value, socket);
}

fn text(out: &mut Vec<u8>, name: &str, value: Option<&[u8]>) {
    quoted(out, name, value, escape);
}

/// Appends a field whose value is a string, or null.
fn quoted<T>(out: &mut Vec<u8>, name: &str, value: Option<T>, write: impl FnOnce(&mut Vec<u8>, T)) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    match value {
        Some(value) => {
            out.extend_from_slice(b"\":\"");
            write(out, value);
            out.push(b'"');
        }
        None => out.extend_from_slice(b"\":null"),
    }
}

/// Appends bytes as the inside of a JSON string; what is not plain ASCII is escaped, so that a line is always valid.
fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    let is_plain = |b: &u8| matches!(b, 0x20..=0x7e) && *b != b'"' && *b != b'\\';
    // To the end of them whatever comes: so it is done many at a time.
    if bytes.iter().fold(true, |plain, b| plain & is_plain(b)) {
        out.extend_from_slice(bytes);
        return;
    }
    for byte in bytes {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b if is_plain(b) => out.push(*b),
            b => {
                let _ = write!(out, "\\u{b:04x}");
            }
        }
    }
}

#[cfg(test)]
mod tests;
