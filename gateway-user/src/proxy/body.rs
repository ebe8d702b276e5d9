//! The two body types: what goes upstream and what goes to the client.
//!
//! Both stream frame by frame; backpressure is the codec's: nothing is read before the other side takes it.

mod request;

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

pub(super) use self::request::{BrokenOff, Progress, Replay, RequestBody};
use super::exchange::Exchange;
use super::stats::Flag;

/// Whether nothing comes after this frame. The codec asks no more after trailers, so they have to be known as the end.
fn is_last(frame: Option<&Frame<Bytes>>) -> bool {
    frame.is_none_or(Frame::is_trailers)
}

/// Whether the endpoint's framing was broken, rather than its connection.
pub(super) fn is_malformed(error: &hyper::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput};
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            return matches!(error.kind(), InvalidData | InvalidInput);
        }
        source = cause.source();
    }
    false
}

/// An endpoint's response body, of which what came with the head has been looked at: what breaks at once is then
/// answered by the proxy instead of being cut off.
#[derive(Debug)]
pub(super) struct UpstreamBody {
    first: Option<Frame<Bytes>>,
    rest: Incoming,
}

impl UpstreamBody {
    /// Takes the first frame if it is there already; does not wait for it.
    ///
    /// # Errors
    /// If the body is broken before its first frame.
    pub(super) async fn begin(mut rest: Incoming) -> Result<Self, hyper::Error> {
        if rest.is_end_stream() {
            return Ok(Self { first: None, rest });
        }
        let first = std::future::poll_fn(|cx| {
            Poll::Ready(match Pin::new(&mut rest).poll_frame(cx) {
                Poll::Ready(frame) => frame.transpose(),
                Poll::Pending => Ok(None),
            })
        })
        .await?;
        Ok(Self { first, rest })
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.first.take() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.size_hint();
        let first = self.first.as_ref().and_then(Frame::data_ref);
        let first = first.map_or(0, |data| data.len() as u64);
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + first);
        }
        hint.set_lower(rest.lower() + first);
        hint
    }
}

/// How long an endpoint has to end the stream of a response of which every announced byte has come.
const END_AWAITED: Duration = Duration::from_secs(1);

/// Takes the end of a stream of HTTP/2 that came apart from the last byte. A stream that is dropped before it is reset, and
/// endpoints count resets.
async fn hear_out(mut body: UpstreamBody) {
    let end = std::future::poll_fn(|cx| {
        while let Some(Ok(_)) = ready!(Pin::new(&mut body).poll_frame(cx)) {}
        Poll::Ready(())
    });
    let _ = tokio::time::timeout(END_AWAITED, end).await;
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
    Upstream(UpstreamBody, Box<Exchange>),
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (body, exchange) = match &mut *self {
            Self::Local(bytes) => return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Upstream(body, exchange) => (body, exchange),
        };
        if let Some(notes) = exchange.notes() {
            notes.asked();
        }
        if exchange.timed_out(cx) {
            exchange.fail(Flag::Timeout);
            return Poll::Ready(Some(Err(BodyError::Timeout)));
        }
        let frame = match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(Err(error)) => {
                exchange.fail(if is_malformed(&error) {
                    Flag::UpstreamProtocol
                } else {
                    Flag::UpstreamClosed
                });
                return Poll::Ready(Some(Err(error.into())));
            }
            Some(Ok(frame)) => Some(frame),
            None => None,
        };
        if let Some(data) = frame.as_ref().and_then(Frame::data_ref) {
            exchange.sent += data.len() as u64;
            if let Some(notes) = exchange.notes() {
                notes.gave();
            }
        }
        if is_last(frame.as_ref()) || body.is_end_stream() {
            exchange.complete();
        } else if exchange.notes().is_none() && body.size_hint().exact() == Some(0) {
            // The codec of HTTP/1 asks no more after the last announced byte.
            exchange.complete();
            if let Self::Upstream(body, _) = std::mem::replace(&mut *self, Self::Local(None)) {
                tokio::task::spawn_local(hear_out(body));
            }
        }
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(bytes) => bytes.is_none(),
            Self::Upstream(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Self::Upstream(body, _) => body.size_hint(),
        }
    }
}
