//! The framing of a chunked body (RFC 9112, 7.1): size lines, data, trailers.
//!
//! Data is not looked at. A size line and the trailer section pass only when they are whole and valid.
//! Stricter than the RFC: no white space after the size, and no trailer that touches framing, routing or credentials.

use super::bytes::{field, has_control, is_protected_or_hop};
use super::reason::Reason;
use super::scanner::Limits;

/// Most hexadecimal digits of a size; with more, servers disagree about overflow.
const SIZE_DIGITS: usize = 16;

#[derive(Debug, Default)]
enum State {
    #[default]
    Size,
    /// This many bytes of data are to come in this chunk.
    Data(u64),
    /// CRLF after data.
    DataEnd,
    /// Fields so far, where the current line begins, how far was searched.
    Trailers {
        fields: usize,
        line: usize,
        seen: usize,
    },
    End,
}

/// Where in a chunked body the connection is.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    state: State,
    /// Bytes of extensions in this body.
    extensions: usize,
}

/// What the front of the bytes is.
pub(super) enum ChunkedStep {
    /// So many bytes may pass.
    Pass(usize),
    More,
    Broken(Reason),
}

impl Chunked {
    /// Whether the body is complete.
    pub(super) fn is_end(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Looks at the bytes after those that passed.
    pub(super) fn step(&mut self, limits: &Limits, bytes: &[u8]) -> ChunkedStep {
        let outcome = match &mut self.state {
            State::Size => self.size_line(limits, bytes),
            State::Data(left) => {
                let pass = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                *left -= pass as u64;
                if *left == 0 {
                    self.state = State::DataEnd;
                }
                Ok(Some(pass))
            }
            State::DataEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.state = State::Size;
                    Ok(Some(2))
                }
                [] | [b'\r'] => Ok(None),
                _ => Err(Reason::ChunkEnd),
            },
            State::Trailers { fields, line, seen } => {
                let outcome = trailers(limits, bytes, fields, line, seen);
                if let Ok(Some(_)) = outcome {
                    self.state = State::End;
                }
                outcome
            }
            State::End => Ok(None),
        };
        match outcome {
            Ok(Some(pass)) => ChunkedStep::Pass(pass),
            Ok(None) => ChunkedStep::More,
            Err(reason) => ChunkedStep::Broken(reason),
        }
    }

    fn size_line(&mut self, limits: &Limits, bytes: &[u8]) -> Result<Option<usize>, Reason> {
        let longest = SIZE_DIGITS + limits.chunk_extension + b"\r\n".len();
        let end = memchr::memchr(b'\n', &bytes[..bytes.len().min(longest)]);
        if end.is_none() && bytes.len() < longest {
            return Ok(None);
        }
        let line = match end {
            Some(end) => bytes[..end].strip_suffix(b"\r").ok_or(Reason::BareLf)?,
            None => &bytes[..longest],
        };
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if digits == 0
            || digits > SIZE_DIGITS
            || !matches!(line.get(digits), None | Some(b';' | b'\r'))
        {
            return Err(Reason::ChunkSize);
        }
        let extension = &line[digits..];
        let Some(end) = end else {
            return Err(Reason::ChunkExtension);
        };
        self.extensions += extension.len();
        if extension.len() > limits.chunk_extension
            || self.extensions > limits.chunk_extensions
            || has_control(extension)
        {
            return Err(Reason::ChunkExtension);
        }
        let size = line[..digits].iter().fold(0, |size, d| {
            size << 4 | u64::from(char::from(*d).to_digit(16).unwrap_or(0))
        });
        if size > i64::MAX as u64 {
            return Err(Reason::ChunkSize);
        }
        self.state = match size {
            0 => State::Trailers {
                fields: 0,
                line: 0,
                seen: 0,
            },
            size => State::Data(size),
        };
        Ok(Some(end + 1))
    }
}

/// The length of the trailer section with its empty line, once it is whole.
fn trailers(
    limits: &Limits,
    bytes: &[u8],
    fields: &mut usize,
    line: &mut usize,
    seen: &mut usize,
) -> Result<Option<usize>, Reason> {
    loop {
        let shown = bytes.len().min(limits.trailer_bytes);
        let Some(at) = memchr::memchr(b'\n', &bytes[*seen..shown]) else {
            *seen = shown;
            return if bytes.len() > limits.trailer_bytes {
                Err(Reason::TrailersTooLarge)
            } else {
                Ok(None)
            };
        };
        let end = *seen + at;
        let text = bytes[*line..end]
            .strip_suffix(b"\r")
            .ok_or(Reason::BareLf)?;
        *line = end + 1;
        *seen = end + 1;
        if text.is_empty() {
            return Ok(Some(end + 1));
        }
        let (name, _) = field(text).map_err(|reason| match reason {
            Reason::HeaderName | Reason::HeaderValue => Reason::TrailerInvalid,
            other => other,
        })?;
        *fields += 1;
        if *fields > limits.trailer_fields {
            return Err(Reason::TrailersTooLarge);
        }
        if name.contains(&b'_') || is_protected_or_hop(name) {
            return Err(Reason::TrailerForbidden);
        }
    }
}
