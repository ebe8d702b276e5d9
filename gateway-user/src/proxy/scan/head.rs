//! One request head: request line and header fields, checked line by line as they come in.
//!
//! Every check looks at whole lines or at fixed distances, so the first fault in the order of the bytes decides, however they
//! were cut. What only the whole head can tell (Host is missing, two framings) is checked at its empty line.

use super::bytes::{elements, field, is_protected, is_protected_or_hop, is_token};
use super::host::is_authority;
use super::reason::Reason;
use super::scanner::Limits;
use super::target;

/// Longest method, in bytes.
pub(super) const METHOD_MAX: usize = 32;
/// Empty lines that are tolerated before a request line (RFC 9112, 2.2).
const EMPTY_LINES_MAX: u8 = 2;

/// How the body after a head is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// What the front of the bytes is.
pub(super) enum HeadStep {
    More,
    Refused(Reason),
    /// Drop the first bytes (what was edited out has been moved there), pass the next: one head.
    Whole {
        drop: usize,
        pass: usize,
        framing: Framing,
    },
}

/// A head in progress. Offsets count from the first byte that is shown.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Bytes at the front that are dropped; what is kept of the head begins behind them.
    skip: usize,
    /// Where the current line begins.
    line: usize,
    /// How far was searched for its end.
    seen: usize,
    empty_lines: u8,
    /// Where the header fields begin, once the request line is through.
    section: Option<usize>,
    fields: usize,
    http10: bool,
    host: bool,
    chunked: bool,
    length: Option<u64>,
    /// Whether the request asks for an upgrade that could be granted.
    pub(super) upgrade: bool,
    /// Fields dropped because of `_` in the name.
    pub(super) dropped_fields: u64,
}

/// What becomes of a header field.
enum Field {
    Keep,
    Drop,
}

impl Head {
    /// Looks at the bytes after the last message.
    pub(super) fn scan(&mut self, limits: &Limits, bytes: &mut [u8]) -> HeadStep {
        loop {
            match self.next_line(limits, bytes) {
                Ok(Some(true)) => match self.framing() {
                    Ok(framing) => {
                        return HeadStep::Whole {
                            drop: self.skip,
                            pass: self.line - self.skip,
                            framing,
                        };
                    }
                    Err(reason) => return HeadStep::Refused(reason),
                },
                Ok(Some(false)) => {}
                Ok(None) => return HeadStep::More,
                Err(reason) => return HeadStep::Refused(reason),
            }
        }
    }

    /// Takes one line. `None`: its end is not there yet; `true`: it was the empty line that ends the head.
    fn next_line(&mut self, limits: &Limits, bytes: &mut [u8]) -> Result<Option<bool>, Reason> {
        let found = memchr::memchr(b'\n', &bytes[self.seen..]).map(|at| self.seen + at);
        let reached = found.map_or(bytes.len(), |lf| lf + 1);
        match self.section {
            Some(start) if reached - start > limits.header_bytes => {
                return Err(Reason::HeadersTooLarge);
            }
            None => request_line_fits(limits, &bytes[self.line..reached])?,
            Some(_) => {}
        }
        let Some(lf) = found else {
            self.seen = bytes.len();
            return Ok(None);
        };
        let start = self.line;
        let text = bytes[start..lf].strip_suffix(b"\r").ok_or(Reason::BareLf)?;
        self.line = lf + 1;
        self.seen = lf + 1;
        if self.section.is_none() {
            if text.is_empty() {
                self.empty_lines += 1;
                self.skip = lf + 1;
                return if self.empty_lines > EMPTY_LINES_MAX {
                    Err(Reason::EmptyLines)
                } else {
                    Ok(Some(false))
                };
            }
            self.http10 = request_line(limits, text)?;
            self.section = Some(lf + 1);
            return Ok(Some(false));
        }
        if text.is_empty() {
            return Ok(Some(true));
        }
        self.fields += 1;
        if self.fields > limits.header_fields {
            return Err(Reason::TooManyHeaders);
        }
        if let Field::Drop = self.field(text)? {
            let length = lf + 1 - start;
            bytes.copy_within(self.skip..start, self.skip + length);
            self.skip += length;
        }
        Ok(Some(false))
    }

    fn field(&mut self, line: &[u8]) -> Result<Field, Reason> {
        let (name, value) = field(line)?;
        if name.contains(&b'_') {
            if is_protected_or_hop(name) {
                return Err(Reason::UnderscoreTwin);
            }
            self.dropped_fields += 1;
            return Ok(Field::Drop);
        }
        // By length first: most fields are none of these.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value)?,
            6 if name.eq_ignore_ascii_case(b"expect") => expect(value)?,
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                if elements(value).any(|element| element.eq_ignore_ascii_case(b"h2c")) {
                    return Ok(Field::Drop);
                }
                self.upgrade = !self.http10;
            }
            10 if name.eq_ignore_ascii_case(b"connection") => connection(value)?,
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value)?,
            14 if name.eq_ignore_ascii_case(b"http2-settings") => return Ok(Field::Drop),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.transfer_encoding(value)?;
            }
            _ => {}
        }
        Ok(Field::Keep)
    }

    fn host(&mut self, value: &[u8]) -> Result<(), Reason> {
        if self.host {
            return Err(Reason::HostDuplicate);
        }
        self.host = true;
        is_authority(value).then_some(()).ok_or(Reason::HostInvalid)
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Reason> {
        if self.length.is_some() {
            return Err(Reason::ContentLengthDuplicate);
        }
        // Nineteen digits at most, so that nobody overflows or counts zeros.
        if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
            return Err(Reason::ContentLengthInvalid);
        }
        let length = value
            .iter()
            .fold(0_u64, |n, d| n * 10 + u64::from(d - b'0'));
        if length > i64::MAX as u64 {
            return Err(Reason::ContentLengthInvalid);
        }
        self.length = Some(length);
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Reason> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Reason::TransferEncodingInvalid);
        }
        self.chunked = true;
        Ok(())
    }

    fn framing(&self) -> Result<Framing, Reason> {
        if !self.host && !self.http10 {
            return Err(Reason::HostMissing);
        }
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Reason::FramingConflict),
            (true, None) if self.http10 => Err(Reason::TransferEncodingInHttp10),
            (true, None) => Ok(Framing::Chunked),
            (false, None | Some(0)) => Ok(Framing::None),
            (false, Some(length)) => Ok(Framing::Length(length)),
        }
    }
}

/// The only expectation there is (RFC 9110, 10.1.1).
fn expect(value: &[u8]) -> Result<(), Reason> {
    if value.eq_ignore_ascii_case(b"100-continue") {
        Ok(())
    } else {
        Err(Reason::Expect)
    }
}

/// `Connection` lists tokens, none of which may be a field that others rely on.
fn connection(value: &[u8]) -> Result<(), Reason> {
    for element in elements(value) {
        if !is_token(element) {
            return Err(Reason::ConnectionInvalid);
        }
        if is_protected(element) {
            return Err(Reason::ConnectionNominates);
        }
    }
    Ok(())
}

/// Refuses a request line as soon as no end that may still come could make it good.
fn request_line_fits(limits: &Limits, line: &[u8]) -> Result<(), Reason> {
    let longest = METHOD_MAX + limits.target + "  HTTP/1.1\r\n".len();
    if line.len() <= longest {
        return Ok(());
    }
    if line[..=METHOD_MAX].contains(&b' ') {
        Err(Reason::TargetTooLong)
    } else {
        Err(Reason::Method)
    }
}

/// Checks a request line without its end; whether it is HTTP/1.0.
fn request_line(limits: &Limits, line: &[u8]) -> Result<bool, Reason> {
    if line.contains(&b'\r') {
        return Err(Reason::BareCr);
    }
    let mut parts = line.split(|b| *b == b' ');
    let method = parts.next().unwrap_or_default();
    if !is_method(method) {
        return Err(Reason::Method);
    }
    let (Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Reason::RequestLine);
    };
    let http10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        [b'H', b'T', b'T', b'P', b'/', a, b'.', b] if a.is_ascii_digit() && b.is_ascii_digit() => {
            return Err(Reason::Version);
        }
        _ => return Err(Reason::RequestLine),
    };
    if target.len() > limits.target {
        return Err(Reason::TargetTooLong);
    }
    if method == b"CONNECT" {
        return Err(Reason::Connect);
    }
    check_target(method, target)?;
    Ok(http10)
}

/// Upper case only: a method is matched with its case, and servers that do not are confused by the rest.
pub fn is_method(method: &[u8]) -> bool {
    method.len() <= METHOD_MAX
        && method.first().is_some_and(u8::is_ascii_uppercase)
        && method
            .iter()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

fn check_target(method: &[u8], target: &[u8]) -> Result<(), Reason> {
    if let [b'/', ..] = target {
        return target::check(target);
    }
    if target == b"*" {
        return if method == b"OPTIONS" {
            Ok(())
        } else {
            Err(Reason::Target)
        };
    }
    let rest = [&b"http://"[..], b"https://"]
        .iter()
        .find_map(|scheme| {
            let (start, rest) = target.split_at_checked(scheme.len())?;
            start.eq_ignore_ascii_case(scheme).then_some(rest)
        })
        .ok_or(Reason::Target)?;
    let end = rest
        .iter()
        .position(|b| matches!(b, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    if !is_authority(&rest[..end]) {
        return Err(Reason::HostInvalid);
    }
    target::check(&rest[end..])
}
