//! The two body types: what goes upstream and what goes to the client.
//!
//! Both stream frame by frame; backpressure is the codec's: nothing is read before the other side takes it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::exchange::Exchange;
use super::stats::Flag;

/// How far a request body has come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    bytes: AtomicU64,
    ended: AtomicBool,
}

impl Progress {
    /// Bytes taken from the client.
    #[must_use]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// More bytes were taken.
    pub(super) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Whether the whole body was taken.
    #[must_use]
    pub(super) fn ended(&self) -> bool {
        self.ended.load(Relaxed)
    }
}

/// A request body on its way to an endpoint.
#[derive(Debug)]
pub(super) enum RequestBody {
    /// No body.
    Empty,
    /// The client's.
    Client(Incoming, Arc<Progress>),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self::Client(incoming, progress) = &mut *self else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        if let Some(data) = frame
            .as_ref()
            .and_then(|f| f.as_ref().ok())
            .and_then(Frame::data_ref)
        {
            progress.add(data.len() as u64);
        }
        if frame.is_none() || incoming.is_end_stream() {
            progress.ended.store(true, Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(incoming, _) => incoming.size_hint(),
        }
    }
}

/// Why a response body breaks off.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// The endpoint broke it off.
    #[error("the endpoint broke off its response")]
    Upstream(#[from] hyper::Error),
    /// The route's timeout passed.
    #[error("the request timeout passed while the response was sent")]
    Timeout,
}

/// A response body on its way to the client.
#[derive(Debug)]
pub(super) enum ResponseBody {
    /// A local answer, or nothing.
    Local(Option<Bytes>),
    /// The endpoint's.
    Upstream(Incoming, Box<Exchange>),
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (incoming, exchange) = match &mut *self {
            Self::Local(bytes) => return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Upstream(incoming, exchange) => (incoming, exchange),
        };
        if exchange.timed_out(cx) {
            exchange.fail(Flag::Timeout);
            return Poll::Ready(Some(Err(BodyError::Timeout)));
        }
        let frame = match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
            Some(Err(error)) => {
                exchange.fail(Flag::UpstreamClosed);
                return Poll::Ready(Some(Err(error.into())));
            }
            Some(Ok(frame)) => Some(frame),
            None => None,
        };
        if let Some(data) = frame.as_ref().and_then(Frame::data_ref) {
            exchange.sent += data.len() as u64;
        }
        if frame.is_none() || incoming.is_end_stream() {
            exchange.complete();
        }
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(bytes) => bytes.is_none(),
            Self::Upstream(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Self::Upstream(incoming, _) => incoming.size_hint(),
        }
    }
}
