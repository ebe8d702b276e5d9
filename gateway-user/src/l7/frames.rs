//! Counts the HTTP/2 frames of a client, below the h2 crate, which hides what makes a flood: frames that cost work and bring
//! no request on.
//!
//! Only the nine bytes before each payload are read (RFC 9113, 4.1). What they mean is the codec's business, and so are errors
//! of the protocol; here is judged how many they are:
//!
//! - Idle frames (SETTINGS, PING, PRIORITY, WINDOW_UPDATE, GOAWAY, unknown types, empty DATA that ends nothing, empty
//!   CONTINUATION): at most [`IDLE_A_MINUTE`], and of SETTINGS and PING at most [`CONTROL_IN_A_ROW`] of them with neither HEADERS
//!   nor DATA between. What was sent pays for some, so that long downloads and streams (whose clients send a WINDOW_UPDATE for
//!   some DATA, and gRPC a PING for each round trip) never count as a flood; a PING's own answer does not pay for it.
//! - RST_STREAM: [`FREE_RESETS`], one for each two HEADERS (CVE-2023-44487), and one for each two requests that an endpoint has
//!   answered: clients reset streams whose answers came before their requests had ended (gRPC), or that never end.
//! - CONTINUATION: at most [`CONTINUATIONS`] for one block (CVE-2024-27316).
//! - Payloads: at most [`MAX_PAYLOAD`] bytes.

use std::time::Duration;

/// Most idle frames in a minute that are not paid for.
pub const IDLE_A_MINUTE: u32 = 10_000;
/// Most SETTINGS and PING in a minute, not paid for, with neither HEADERS nor DATA between.
pub const CONTROL_IN_A_ROW: u32 = 1_000;
/// RST_STREAM frames that need no HEADERS.
pub const FREE_RESETS: u64 = 200;
/// Most CONTINUATION frames of one header block.
pub const CONTINUATIONS: u32 = 32;
/// Longest payload, in bytes: the default of SETTINGS_MAX_FRAME_SIZE (RFC 9113, 6.5.2) and some slack. The codec itself refuses
/// what is above what it announced.
pub const MAX_PAYLOAD: usize = 16_384 + 256;

/// What a WINDOW_UPDATE costs of the bytes that were sent. Clients send two (connection and stream) for each frame of DATA at most.
const WINDOW_UPDATE_PRICE: u64 = 512;
/// What a PING or SETTINGS costs: more than the 17 bytes of a PING's answer, at most what a small message and that answer
/// together measure.
const CONTROL_PRICE: u64 = 32;
/// Most bytes that are remembered as sent: what can be on its way to a client.
const MAX_CREDIT: u64 = 4 << 20;

/// Length of the window in which idle frames are counted.
const MINUTE: Duration = Duration::from_secs(60);

/// What a client begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes before a payload.
const HEADER_LEN: usize = 9;

/// Types of frames (RFC 9113, 6).
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

/// `END_STREAM` of DATA.
const END_STREAM: u8 = 1;

/// Why a connection is to be closed (with ENHANCE_YOUR_CALM where that can still be said).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Flood {
    /// It does not begin as HTTP/2 does.
    #[error("the connection does not begin with the HTTP/2 preface")]
    Preface,
    /// A payload longer than [`MAX_PAYLOAD`].
    #[error("an HTTP/2 frame is longer than was allowed")]
    TooLarge,
    /// Too many frames that bring nothing on.
    #[error("more than 10000 HTTP/2 frames in a minute brought no request on")]
    Idle,
    /// Too many SETTINGS and PING in a row.
    #[error("more than 1000 HTTP/2 SETTINGS and PING frames came in a row")]
    Control,
    /// Too many streams reset.
    #[error("too many HTTP/2 streams were reset")]
    Resets,
    /// Too many pieces of one header block.
    #[error("an HTTP/2 header block has more than 32 CONTINUATION frames")]
    Continuations,
}

impl Flood {
    /// A label for counters.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preface => "preface",
            Self::TooLarge => "frame_too_large",
            Self::Idle => "idle_frames",
            Self::Control => "control_frames",
            Self::Resets => "resets",
            Self::Continuations => "continuations",
        }
    }
}

/// The frames of one connection, from client to server.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    /// Bytes of the preface that have come.
    preface: usize,
    /// The bytes before the next payload, as far as they have come.
    header: [u8; HEADER_LEN],
    have: usize,
    /// Bytes of the current payload that are to come.
    payload: usize,
    /// When the current minute began, since the connection did.
    minute: Duration,
    idle: u32,
    control: u32,
    headers: u64,
    resets: u64,
    answered: u64,
    continuations: u32,
    /// Bytes sent that have not paid for a frame yet.
    credit: u64,
    flood: Option<Flood>,
}

impl Frames {
    /// At the beginning of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes from the client, `now` after the connection began. The verdict depends on how bytes were cut only
    /// as far as `now` does.
    ///
    /// # Errors
    /// From the first frame too many on, always.
    pub fn feed(&mut self, bytes: &[u8], now: Duration) -> Result<(), Flood> {
        if let Some(flood) = self.flood {
            return Err(flood);
        }
        let verdict = self.take(bytes, now);
        self.flood = verdict.err();
        verdict
    }

    /// Takes note of bytes written to the client.
    pub fn sent(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.credit = self.credit.saturating_add(bytes).min(MAX_CREDIT);
    }

    /// Takes note of requests that endpoints have answered.
    pub fn answered(&mut self, requests: u64) {
        self.answered += requests;
    }

    fn take(&mut self, mut bytes: &[u8], now: Duration) -> Result<(), Flood> {
        if self.preface < PREFACE.len() {
            let want = &PREFACE[self.preface..];
            let (front, rest) = bytes.split_at(want.len().min(bytes.len()));
            if !want.starts_with(front) {
                return Err(Flood::Preface);
            }
            self.preface += front.len();
            bytes = rest;
        }
        loop {
            let skip = self.payload.min(bytes.len());
            self.payload -= skip;
            bytes = &bytes[skip..];
            if bytes.is_empty() {
                return Ok(());
            }
            let (front, rest) = bytes.split_at((HEADER_LEN - self.have).min(bytes.len()));
            self.header[self.have..self.have + front.len()].copy_from_slice(front);
            self.have += front.len();
            bytes = rest;
            if self.have == HEADER_LEN {
                self.have = 0;
                self.frame(now)?;
            }
        }
    }

    /// Counts the frame whose header is complete.
    fn frame(&mut self, now: Duration) -> Result<(), Flood> {
        let [high, middle, low, kind, flags, ..] = self.header;
        let length = (usize::from(high) << 16) | (usize::from(middle) << 8) | usize::from(low);
        if length > MAX_PAYLOAD {
            return Err(Flood::TooLarge);
        }
        self.payload = length;
        match kind {
            kind::HEADERS => {
                self.headers += 1;
                self.control = 0;
                self.continuations = 0;
                Ok(())
            }
            kind::DATA => {
                self.control = 0;
                if length > 0 || flags & END_STREAM != 0 {
                    return Ok(());
                }
                self.count_idle(now)
            }
            kind::CONTINUATION => {
                self.continuations += 1;
                if self.continuations > CONTINUATIONS {
                    return Err(Flood::Continuations);
                }
                if length > 0 {
                    return Ok(());
                }
                self.count_idle(now)
            }
            kind::RST_STREAM => {
                self.resets += 1;
                if self.resets > FREE_RESETS + self.headers / 2 + self.answered / 2 {
                    return Err(Flood::Resets);
                }
                Ok(())
            }
            kind::WINDOW_UPDATE if self.pay(WINDOW_UPDATE_PRICE) => Ok(()),
            kind::SETTINGS | kind::PING if self.pay(CONTROL_PRICE) => Ok(()),
            kind::SETTINGS | kind::PING => {
                self.count_idle(now)?;
                self.control += 1;
                if self.control > CONTROL_IN_A_ROW {
                    return Err(Flood::Control);
                }
                Ok(())
            }
            _ => self.count_idle(now),
        }
    }

    /// Whether what was sent pays for a frame.
    fn pay(&mut self, price: u64) -> bool {
        let left = self.credit.checked_sub(price);
        self.credit = left.unwrap_or(self.credit);
        left.is_some()
    }

    /// Counts a frame that brings nothing on.
    fn count_idle(&mut self, now: Duration) -> Result<(), Flood> {
        if now.saturating_sub(self.minute) >= MINUTE {
            self.minute = now;
            self.idle = 0;
            self.control = 0;
        }
        self.idle += 1;
        if self.idle > IDLE_A_MINUTE {
            return Err(Flood::Idle);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
