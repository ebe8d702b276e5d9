//! The streams of one HTTP/2 connection: tasks that can be ended, and notes that say whether they get on.
//!
//! hyper runs each stream as a task of its own and asks a response body for more only when the client has room for it. A
//! client that opens no window thus never comes back to the body, so somebody has to look from outside: the
//! connection's clock does.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::Executor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;

use crate::l7::frames::Frames;
use crate::proxy::body::Progress;
use crate::proxy::downstream::{Cut, Timers};
use crate::proxy::stats::Event;

/// What is known of one stream.
#[derive(Debug, Default)]
pub(in crate::proxy) struct StreamNotes {
    task: OnceCell<AbortHandle>,
    body: RefCell<Option<Arc<Progress>>>,
    body_mark: Cell<Option<(Instant, u64)>>,
    /// When response bytes were given to hyper that the client has not made room for.
    given: Cell<Option<Instant>>,
    cut: Cell<Option<Cut>>,
}

impl StreamNotes {
    /// The request has a body; its progress is watched from now on.
    pub(in crate::proxy) fn watch_body(&self, body: &Arc<Progress>) {
        self.body_mark.set(Some((Instant::now(), 0)));
        *self.body.borrow_mut() = Some(Arc::clone(body));
    }

    /// hyper asks for more of the response: the client has room.
    pub(in crate::proxy) fn asked(&self) {
        self.given.set(None);
    }

    /// hyper was given response bytes.
    pub(in crate::proxy) fn gave(&self) {
        self.given.set(Some(Instant::now()));
    }

    /// Why it was cut off, if it was.
    pub(in crate::proxy) fn cut(&self) -> Option<Cut> {
        self.cut.get()
    }

    /// Ends the stream: the client gets RST_STREAM.
    fn end(&self, why: Cut) {
        self.cut.set(Some(why));
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// Why it gets on no more, if so.
    fn stall(&self, now: Instant, timers: &Timers) -> Option<Event> {
        let blocked = |since: Instant| now.duration_since(since) >= timers.write_idle;
        if self.given.get().is_some_and(blocked) {
            return Some(Event::WriteTimeouts);
        }
        let body = self.body.borrow();
        let (body, (mark, bytes)) = (body.as_ref()?, self.body_mark.get()?);
        if body.ended() || !body.waits() {
            self.body_mark.set(Some((now, body.bytes())));
            return None;
        }
        let window = now.duration_since(mark);
        if window < timers.body_idle {
            return None;
        }
        let least = timers.body_rate * window.as_secs().max(1);
        self.body_mark.set(Some((now, body.bytes())));
        (body.bytes() - bytes < least).then_some(Event::BodyTimeouts)
    }
}

/// All streams of a connection. It is hyper's executor: it runs their tasks on this worker.
#[derive(Clone, Debug, Default)]
pub(in crate::proxy) struct Streams(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The notes of the stream whose task comes next.
    next: RefCell<Option<Rc<StreamNotes>>>,
    open: RefCell<Vec<Weak<StreamNotes>>>,
    /// Tasks that are no streams: what tunnels send.
    others: RefCell<Vec<AbortHandle>>,
    stalled: RefCell<Vec<Event>>,
    /// Requests that endpoints have answered, and that the budget of frames has not been told of.
    answered: Cell<u64>,
}

impl Streams {
    /// Notes for the stream that hyper is about to run.
    pub(in crate::proxy) fn next(&self) -> Rc<StreamNotes> {
        let notes = Rc::<StreamNotes>::default();
        *self.0.next.borrow_mut() = Some(Rc::clone(&notes));
        notes
    }

    /// Ends the streams that get on no more.
    pub(in crate::proxy) fn sweep(&self, now: Instant, timers: &Timers) {
        let mut open = self.0.open.borrow_mut();
        open.retain(|notes| notes.strong_count() > 0);
        for notes in open.iter().filter_map(Weak::upgrade) {
            if let Some(event) = notes.stall(now, timers) {
                self.0.stalled.borrow_mut().push(event);
                notes.end(Cut::Limit(event));
            }
        }
    }

    /// Why streams were ended since the last time this was asked.
    pub(in crate::proxy) fn take_stalled(&self) -> Vec<Event> {
        self.0.stalled.take()
    }

    /// An endpoint has answered a request.
    pub(in crate::proxy) fn answered(&self) {
        self.0.answered.set(self.0.answered.get() + 1);
    }

    /// The connection is gone: so are its streams.
    pub(in crate::proxy) fn end(&self) {
        let open = std::mem::take(&mut *self.0.open.borrow_mut());
        for task in open.iter().filter_map(Weak::upgrade) {
            if let Some(task) = task.task.get() {
                task.abort();
            }
        }
        for task in self.0.others.borrow_mut().drain(..) {
            task.abort();
        }
    }
}

impl<F: Future<Output = ()> + 'static> Executor<F> for Streams {
    fn execute(&self, future: F) {
        let task = tokio::task::spawn_local(future).abort_handle();
        match self.0.next.borrow_mut().take() {
            Some(notes) => {
                let mut open = self.0.open.borrow_mut();
                if open.len() == open.capacity() {
                    open.retain(|notes| notes.strong_count() > 0);
                }
                open.push(Rc::downgrade(&notes));
                // Each notes are handed to one stream.
                let _ = notes.task.set(task);
            }
            None => {
                let mut others = self.0.others.borrow_mut();
                others.retain(|task| !task.is_finished());
                others.push(task);
            }
        }
    }
}

/// An I/O object that ends once the client has spent its budget of frames.
#[derive(Debug)]
pub(super) struct Budgeted<T> {
    inner: T,
    frames: Frames,
    streams: Streams,
    start: Instant,
    /// When time was looked at last, since the start.
    now: Duration,
    flooded: Rc<Cell<bool>>,
}

impl<T> Budgeted<T> {
    /// Wraps `inner`; the second value says whether the budget was spent.
    pub(super) fn new(inner: T, streams: &Streams, start: Instant) -> (Self, Rc<Cell<bool>>) {
        let flooded = Rc::<Cell<bool>>::default();
        let budgeted = Self {
            inner,
            frames: Frames::default(),
            streams: streams.clone(),
            start,
            now: Duration::ZERO,
            flooded: Rc::clone(&flooded),
        };
        (budgeted, flooded)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Budgeted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        this.now = this.start.elapsed();
        this.frames.answered(this.streams.0.answered.take());
        match this.frames.feed(&buf.filled()[before..], this.now) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(flood) => {
                tracing::debug!(
                    why = flood.as_str(),
                    "a client floods its HTTP/2 connection"
                );
                this.flooded.set(true);
                Poll::Ready(Err(io::Error::other(flood.as_str())))
            }
        }
    }
}

impl<T> Budgeted<T> {
    fn sent(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &written {
            self.frames.sent(*count);
        }
        written
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Budgeted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.sent(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
