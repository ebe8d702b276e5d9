//! Request bodies on their way to endpoints: streamed, and kept as far as they may have to be sent again.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::is_last;
use crate::proxy::mirror::Tap;
use crate::proxy::scan::is_twin;

/// Most bytes of a body that are kept for another try; a longer one is sent once.
const KEPT_MAX: usize = 64 * 1024;

/// How far a request body has come.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Progress {
    bytes: AtomicU64,
    ended: AtomicBool,
    waits: AtomicBool,
}

impl Progress {
    /// Bytes taken from the client.
    #[must_use]
    pub(in crate::proxy) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// More bytes were taken.
    pub(in crate::proxy) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Whether the whole body was taken.
    #[must_use]
    pub(in crate::proxy) fn ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// Whether the endpoint has room and the client sends nothing.
    #[must_use]
    pub(in crate::proxy) fn waits(&self) -> bool {
        self.waits.load(Relaxed)
    }

    /// Takes the next frame of the client's body and notes it.
    fn take(
        &self,
        incoming: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let polled = Pin::new(&mut *incoming).poll_frame(cx);
        self.waits.store(polled.is_pending(), Relaxed);
        let mut frame = ready!(polled);
        let good = frame.as_mut().and_then(|f| f.as_mut().ok());
        let last = is_last(good.as_deref());
        if let Some(frame) = good {
            if let Some(data) = frame.data_ref() {
                self.add(data.len() as u64);
            }
            if let Some(trailers) = frame.trailers_mut() {
                keep_harmless(trailers);
            }
        }
        if last || incoming.is_end_stream() {
            self.ended.store(true, Relaxed);
        }
        Poll::Ready(frame.map(|f| f.map_err(BrokenOff::Client)))
    }
}

/// Trailers that would touch framing, routing or credentials do not go on. The scanner has refused them in HTTP/1.
fn keep_harmless(trailers: &mut HeaderMap) {
    let harmful = |name: &&HeaderName| is_twin(name.as_str().as_bytes());
    let harmful: Vec<HeaderName> = trailers.keys().filter(harmful).cloned().collect();
    for name in harmful {
        trailers.remove(name);
    }
}

/// Why a request body breaks off.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum BrokenOff {
    /// The client broke it off.
    #[error("the client broke off its request")]
    Client(#[source] hyper::Error),
    /// Another try has taken it over.
    #[error("another try has taken the request over")]
    TakenOver,
}

/// A request body on its way to an endpoint.
#[derive(Debug)]
pub(in crate::proxy) enum RequestBody {
    /// No body.
    Empty,
    /// The client's, sent once.
    Client(Incoming, Arc<Progress>),
    /// The client's, for one of several tries.
    Try(Try),
    /// A copy for a mirror.
    Copy(Tap),
}

/// A body that may be sent several times, and copied.
#[derive(Debug)]
pub(in crate::proxy) struct Replay(Mutex<Source>);

#[derive(Debug)]
struct Source {
    incoming: Incoming,
    progress: Arc<Progress>,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    /// More came than is kept.
    overflown: bool,
    /// The client broke off: what came is not the whole body and must never look like it.
    broken: bool,
    /// Number of the try that may read.
    turn: u32,
    mirrors: Vec<Tap>,
}

/// One try's view of a body.
#[derive(Debug)]
pub(in crate::proxy) struct Try {
    replay: Arc<Replay>,
    turn: u32,
    /// Kept pieces that it has sent.
    sent: usize,
}

impl Replay {
    /// Keeps what it can of a client's body, and copies it to mirrors.
    pub(in crate::proxy) fn new(
        incoming: Incoming,
        progress: Arc<Progress>,
        mirrors: Vec<Tap>,
    ) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Source {
            incoming,
            progress,
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            overflown: false,
            broken: false,
            turn: 0,
            mirrors,
        })))
    }

    /// The body for another try; `None` if too much of it has been sent already. Tries before this one get no more of it.
    pub(in crate::proxy) fn again(self: &Arc<Self>) -> Option<RequestBody> {
        let mut source = self.source();
        if source.overflown || source.broken {
            return None;
        }
        source.turn += 1;
        Some(RequestBody::Try(Try {
            replay: Arc::clone(self),
            turn: source.turn,
            sent: 0,
        }))
    }

    fn source(&self) -> MutexGuard<'_, Source> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            for mirror in &mut self.mirrors {
                mirror.give(data);
            }
            self.kept_bytes += data.len();
            if self.kept_bytes > KEPT_MAX {
                self.overflown = true;
                self.kept = Vec::new();
            } else if !self.overflown {
                self.kept.push(data.clone());
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
        if self.progress.ended() {
            self.mirrors.iter_mut().for_each(Tap::end);
        }
    }
}

impl Try {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let replay = Arc::clone(&self.replay);
        let mut source = replay.source();
        let source = &mut *source;
        if source.turn != self.turn {
            return Poll::Ready(Some(Err(BrokenOff::TakenOver)));
        }
        if !source.overflown {
            if let Some(piece) = source.kept.get(self.sent) {
                self.sent += 1;
                return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
            }
            if source.progress.ended() {
                let trailers = source.trailers.take();
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            }
        }
        let frame = ready!(source.progress.take(&mut source.incoming, cx));
        match &frame {
            Some(Ok(frame)) => {
                source.keep(frame);
                self.sent += usize::from(frame.is_data());
            }
            Some(Err(_)) => {
                source.broken = true;
                source.mirrors.iter_mut().for_each(Tap::break_off);
            }
            None => source.mirrors.iter_mut().for_each(Tap::end),
        }
        Poll::Ready(frame)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Client(incoming, progress) => progress.take(incoming, cx),
            Self::Try(view) => view.poll(cx),
            Self::Copy(tap) => tap.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(incoming, _) => incoming.is_end_stream(),
            Self::Try(view) => {
                let source = view.replay.source();
                let all_sent = view.sent >= source.kept.len() && source.trailers.is_none();
                source.incoming.is_end_stream() && all_sent
            }
            Self::Copy(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(incoming, _) => incoming.size_hint(),
            Self::Try(view) => {
                let source = view.replay.source();
                let kept = source.kept.iter().skip(view.sent);
                let kept: u64 = kept.map(|piece| piece.len() as u64).sum();
                let rest = source.incoming.size_hint();
                let mut hint = SizeHint::new();
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper + kept);
                }
                hint.set_lower(rest.lower() + kept);
                hint
            }
            Self::Copy(tap) => tap.size_hint(),
        }
    }
}
