//! A downstream connection whose bytes pass the [`Scanner`] before hyper reads them.
//!
//! Reads go straight into the reader's buffer and are scanned there. Only what may not pass yet (a head or a size line that
//! is not whole) is kept aside, in a buffer that exists for no longer than that. Writes pass untouched.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::head::METHOD_MAX;
use super::reason::{Reason, Refusal};
use super::scanner::{Limits, Progress, Scanner, Verdict};

/// The method of the request that stands in for a refused one. No client can send it: it is too long to be admitted.
const REFUSED_METHOD: &str = "FOREBAY-STANDS-FOR-A-REFUSED-REQUEST";
const _: () = assert!(REFUSED_METHOD.len() > METHOD_MAX);

/// That request. hyper closes the connection after answering it.
const REFUSED_REQUEST: &[u8] =
    b"FOREBAY-STANDS-FOR-A-REFUSED-REQUEST / HTTP/1.1\r\nconnection: close\r\n\r\n";

/// Unread bytes that are thrown away before the socket is closed, at most: closing over unread bytes would make the
/// kernel reset the connection, and the client could lose the answer.
const DISCARD_MAX: usize = 256 * 1024;

const RESUME: u8 = 1;
const TUNNEL: u8 = 2;

/// Where the reading side of a connection is; for its timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Between requests: no byte of the next head has come.
    AwaitingHead,
    /// A part of a head has come, the first of it at this time after the connection began.
    Head {
        /// Since the `start` given to [`Guarded::new`].
        since: Duration,
    },
    /// Within a body, or held after an upgrade request.
    Body,
    /// Refused or broken: nothing more will be read.
    Ended,
}

/// What the scanner knows, for the service and the timers of the same connection. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Admission(Arc<Shared>);

/// Written by the reading side, one relaxed store a field and read; nothing else is ordered by them.
#[derive(Debug, Default)]
struct Shared {
    phase: AtomicU8,
    head_since_nanos: AtomicU64,
    heads: AtomicU64,
    body_bytes: AtomicU64,
    dropped_fields: AtomicU64,
    /// 0: none, else the number of the reason and one.
    refusal: AtomicU8,
    upgrade: AtomicU8,
    /// Who waits for the decision on an upgrade: reading, hyper would not ask again by itself.
    reader: Mutex<Option<Waker>>,
}

impl Admission {
    /// Whether this request stands in for a refused one: to be answered with [`Refusal::status`] and no body, before anything
    /// else looks at it. Costs a comparison of two lengths.
    #[must_use]
    pub fn refusal_for<B>(&self, request: &http::Request<B>) -> Option<Refusal> {
        (request.method().as_str() == REFUSED_METHOD)
            .then(|| self.refusal())
            .flatten()
    }

    /// Why the connection reads no further: a refused head, or a body whose framing broke (its stream ended in an error).
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        let number = self.0.refusal.load(Ordering::Relaxed);
        let reason = *Reason::ALL.get(usize::from(number.checked_sub(1)?))?;
        Some(Refusal { reason })
    }

    /// Where the reading side is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::Relaxed) {
            0 => Phase::AwaitingHead,
            1 => Phase::Head {
                since: Duration::from_nanos(self.0.head_since_nanos.load(Ordering::Relaxed)),
            },
            2 => Phase::Body,
            _ => Phase::Ended,
        }
    }

    /// Heads, bytes of bodies and dropped fields so far: bytes that still grow are a body that makes progress.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            heads: self.0.heads.load(Ordering::Relaxed),
            body_bytes: self.0.body_bytes.load(Ordering::Relaxed),
            dropped_fields: self.0.dropped_fields.load(Ordering::Relaxed),
        }
    }

    /// With [`Limits::hold_upgrades`]: takes what follows the upgrade request as the next request. To be called before
    /// the response that refuses the upgrade is given to hyper.
    pub fn resume(&self) {
        self.decide(RESUME);
    }

    /// With [`Limits::hold_upgrades`]: lets everything that follows pass unseen. To be called before the 101 is given to hyper.
    pub fn tunnel(&self) {
        self.decide(TUNNEL);
    }

    fn decide(&self, decision: u8) {
        self.0.upgrade.store(decision, Ordering::Relaxed);
        if let Some(reader) = self.reader().take() {
            reader.wake();
        }
    }

    fn reader(&self) -> MutexGuard<'_, Option<Waker>> {
        self.0.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(
        &self,
        scanner: &Scanner,
        holds_head: bool,
        ended: bool,
        now: impl FnOnce() -> Duration,
    ) {
        let progress = scanner.progress();
        let shared = &*self.0;
        let same_head = shared.heads.load(Ordering::Relaxed) == progress.heads
            && shared.phase.load(Ordering::Relaxed) == 1;
        shared.heads.store(progress.heads, Ordering::Relaxed);
        shared
            .body_bytes
            .store(progress.body_bytes, Ordering::Relaxed);
        shared
            .dropped_fields
            .store(progress.dropped_fields, Ordering::Relaxed);
        let phase = match (ended, scanner.at_head(), holds_head) {
            (true, ..) => 3,
            (false, true, false) => 0,
            (false, true, true) => 1,
            (false, false, _) => 2,
        };
        // The clock is read once for a head that comes in pieces, never for one that comes whole.
        if phase == 1 && !same_head {
            let nanos = u64::try_from(now().as_nanos()).unwrap_or(u64::MAX);
            shared.head_since_nanos.store(nanos, Ordering::Relaxed);
        }
        shared.phase.store(phase, Ordering::Relaxed);
    }
}

/// Bytes that were read and could not be given on at once.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    /// `bytes[..ready]` have passed.
    ready: usize,
}

/// A connection behind the scanner. For hyper, wrap it in `hyper_util::rt::TokioIo`.
pub struct Guarded<IO> {
    io: IO,
    scanner: Scanner,
    admission: Admission,
    held: Held,
    start: Instant,
    stop: Option<Verdict>,
    discarded: usize,
}

impl<IO: fmt::Debug> fmt::Debug for Guarded<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded")
            .field("io", &self.io)
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}

impl<IO> Guarded<IO> {
    /// Guards a connection that began at `start`; the second value goes to its service and timers.
    pub fn new(io: IO, limits: Limits, start: Instant) -> (Self, Admission) {
        let admission = Admission::default();
        let guarded = Self {
            io,
            scanner: Scanner::new(limits),
            admission: admission.clone(),
            held: Held::default(),
            start,
            stop: None,
            discarded: 0,
        };
        (guarded, admission)
    }

    /// The connection below, for its addresses.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// Takes back what was read last: it has passed already and is read again.
    pub fn unread(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.held.bytes.splice(..0, bytes.iter().copied());
            self.held.ready += bytes.len();
        }
    }

    /// The connection and the bytes that were read from it and not given on. After hyper gave up the connection for a tunnel.
    pub fn into_parts(self) -> (IO, Vec<u8>) {
        (self.io, self.held.bytes)
    }
}

impl<IO: AsyncRead + Unpin> Guarded<IO> {
    /// Scans what was just read into `buf` behind `before`; keeps aside what may not pass.
    fn take_read(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        if self.held.bytes.is_empty() {
            let bytes = &mut buf.filled_mut()[before..];
            let sifted = self.scanner.sift(bytes);
            self.held.bytes.extend_from_slice(&bytes[sifted.rest..]);
            buf.set_filled(before + sifted.passed);
            self.settle(sifted.verdict);
        } else {
            self.held.bytes.extend_from_slice(&buf.filled()[before..]);
            buf.set_filled(before);
            self.sift_held();
        }
    }

    fn sift_held(&mut self) {
        let sifted = self.scanner.sift(&mut self.held.bytes);
        self.held.bytes.drain(sifted.passed..sifted.rest);
        self.held.ready = sifted.passed;
        self.settle(sifted.verdict);
    }

    /// Hands out bytes that passed while the reader had no room for them.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let held = &mut self.held;
        let count = held.ready.min(buf.remaining());
        buf.put_slice(&held.bytes[..count]);
        if count == held.bytes.len() {
            *held = Held::default();
        } else {
            held.bytes.drain(..count);
            held.ready -= count;
        }
    }

    /// Whether a held upgrade has been decided; what was held is scanned anew.
    fn decide_upgrade(&mut self) -> bool {
        match self.admission.0.upgrade.swap(0, Ordering::Relaxed) {
            RESUME => self.scanner.resume(),
            TUNNEL => self.scanner.tunnel(),
            _ => return false,
        }
        self.stop = None;
        self.sift_held();
        true
    }

    /// Acts on a verdict, after the bytes that passed have been set aside for the reader.
    fn settle(&mut self, verdict: Verdict) {
        let refusal = match verdict {
            Verdict::More | Verdict::Hold => None,
            Verdict::Refused(refusal) | Verdict::Broken(refusal) => Some(refusal),
        };
        if verdict != Verdict::More {
            self.stop = Some(verdict);
        }
        if let Some(refusal) = refusal {
            self.held.bytes.truncate(self.held.ready);
            if let Verdict::Refused(_) = verdict {
                self.held.bytes.extend_from_slice(REFUSED_REQUEST);
                self.held.ready = self.held.bytes.len();
            }
            let number = refusal.reason as u8 + 1;
            self.admission.0.refusal.store(number, Ordering::Relaxed);
        }
        let holds_head = self.held.bytes.len() > self.held.ready;
        let start = self.start;
        self.admission
            .publish(&self.scanner, holds_head, refusal.is_some(), || {
                start.elapsed()
            });
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if this.held.ready > 0 {
                this.give(buf);
                return Poll::Ready(Ok(()));
            }
            match this.stop {
                None | Some(Verdict::More) => {}
                // hyper polls again once its service has answered; until then no byte could be taken anyway.
                Some(Verdict::Refused(_)) => return Poll::Pending,
                Some(Verdict::Broken(refusal)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refusal)));
                }
                Some(Verdict::Hold) => {
                    *this.admission.reader() = Some(cx.waker().clone());
                    if this.decide_upgrade() {
                        continue;
                    }
                    return Poll::Pending;
                }
            }
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            this.take_read(buf, before);
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    /// Ends the writing side, then throws away what has already arrived, up to a bound, without waiting for more.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        let mut scratch = [0; 4096];
        while this.discarded < DISCARD_MAX {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    this.discarded += buf.filled().len();
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn no_client_can_send_the_stand_in() {
        assert!(REFUSED_REQUEST.starts_with(REFUSED_METHOD.as_bytes()));
        let mut bytes = REFUSED_REQUEST.to_vec();
        let sifted = Scanner::new(Limits::default()).sift(&mut bytes);
        let refusal = Refusal {
            reason: Reason::Method,
        };
        assert_eq!(
            (sifted.passed, sifted.verdict),
            (0, Verdict::Refused(refusal))
        );
    }

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const UPGRADE: &[u8] =
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

    fn guarded(
        limits: Limits,
    ) -> (
        tokio::io::DuplexStream,
        Guarded<tokio::io::DuplexStream>,
        Admission,
    ) {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (guarded, admission) = Guarded::new(server, limits, Instant::now());
        (client, guarded, admission)
    }

    /// One read into so much room; `None` if nothing passes now.
    async fn read(guarded: &mut Guarded<tokio::io::DuplexStream>, room: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; room];
        tokio::select! {
            biased;
            count = guarded.read(&mut bytes) => {
                bytes.truncate(count.unwrap());
                Some(bytes)
            }
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn phases_and_the_time_of_a_head() {
        let (mut client, mut guarded, admission) = guarded(Limits::default());
        assert_eq!(admission.phase(), Phase::AwaitingHead);
        tokio::time::advance(Duration::from_secs(3)).await;
        client.write_all(&HEAD[..5]).await.unwrap();
        assert_eq!(read(&mut guarded, 100).await, None);
        let since = Duration::from_secs(3);
        assert_eq!(admission.phase(), Phase::Head { since });
        // More of the same head does not move its beginning.
        tokio::time::advance(Duration::from_secs(4)).await;
        client.write_all(&HEAD[5..7]).await.unwrap();
        assert_eq!(read(&mut guarded, 100).await, None);
        assert_eq!(admission.phase(), Phase::Head { since });
        // The rest, and the beginning of the next one in the same read: that one began now.
        client
            .write_all(&[&HEAD[7..], b"PO"].concat())
            .await
            .unwrap();
        assert_eq!(read(&mut guarded, 100).await.unwrap(), HEAD);
        let since = Duration::from_secs(7);
        assert_eq!(admission.phase(), Phase::Head { since });
        let rest = b"ST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab";
        client.write_all(rest).await.unwrap();
        assert_eq!(
            read(&mut guarded, 1000).await.unwrap().len(),
            rest.len() + 2
        );
        assert_eq!(admission.phase(), Phase::Body);
        assert_eq!(
            (admission.progress().heads, admission.progress().body_bytes),
            (2, 2)
        );
        client.write_all(b"c").await.unwrap();
        assert_eq!(read(&mut guarded, 1000).await.unwrap(), b"c");
        assert_eq!(admission.phase(), Phase::AwaitingHead);
        assert_eq!(
            guarded.held.bytes.capacity(),
            0,
            "an idle connection keeps no buffer"
        );
        client.write_all(b"\n").await.unwrap();
        assert_eq!(read(&mut guarded, 1000).await.unwrap(), REFUSED_REQUEST);
        assert_eq!(admission.phase(), Phase::Ended);
        assert_eq!(admission.refusal().unwrap().reason, Reason::BareLf);
        assert_eq!(read(&mut guarded, 1000).await, None);
    }

    #[tokio::test]
    async fn what_is_taken_back_is_read_again_first() {
        let (mut client, mut guarded, admission) = guarded(Limits::default());
        client
            .write_all(&[HEAD, &HEAD[..9]].concat())
            .await
            .unwrap();
        let first = read(&mut guarded, 1000).await.unwrap();
        assert_eq!(first, HEAD);
        guarded.unread(&first);
        assert_eq!(read(&mut guarded, 4).await.unwrap(), &HEAD[..4]);
        assert_eq!(read(&mut guarded, 1000).await.unwrap(), &HEAD[4..]);
        assert_eq!(read(&mut guarded, 1000).await, None);
        client.write_all(&HEAD[9..]).await.unwrap();
        assert_eq!(read(&mut guarded, 1000).await.unwrap(), HEAD);
        assert_eq!(admission.progress().heads, 2);
    }

    #[tokio::test]
    async fn small_buffers_lose_nothing() {
        let (mut client, mut guarded, _) = guarded(Limits::default());
        client.write_all(&HEAD.repeat(3)).await.unwrap();
        let mut all = Vec::new();
        while let Some(bytes) = read(&mut guarded, 7).await {
            all.extend(bytes);
        }
        assert_eq!(all, HEAD.repeat(3));
    }

    #[tokio::test]
    async fn what_follows_an_upgrade_waits_for_the_answer() {
        let hold = Limits {
            hold_upgrades: true,
            ..Limits::default()
        };
        let (mut client, mut tunnelled, admission) = guarded(hold);
        client
            .write_all(&[UPGRADE, b"\x81\x00"].concat())
            .await
            .unwrap();
        assert_eq!(read(&mut tunnelled, 1000).await.unwrap(), UPGRADE);
        assert_eq!(read(&mut tunnelled, 1000).await, None);
        admission.tunnel();
        assert_eq!(read(&mut tunnelled, 1000).await.unwrap(), b"\x81\x00");
        client.write_all(b"\n\n").await.unwrap();
        assert_eq!(read(&mut tunnelled, 1000).await.unwrap(), b"\n\n");

        let (mut client, mut resumed, admission) = guarded(hold);
        client.write_all(&[UPGRADE, HEAD].concat()).await.unwrap();
        assert_eq!(read(&mut resumed, 1000).await.unwrap(), UPGRADE);
        assert_eq!(read(&mut resumed, 1000).await, None);
        admission.resume();
        assert_eq!(read(&mut resumed, 1000).await.unwrap(), HEAD);
    }
}
