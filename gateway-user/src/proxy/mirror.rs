//! Mirrors: copies of requests whose answers are thrown away.
//!
//! A copy never holds up the request that it was made of: its body waits in a queue of bounded size, and a mirror that is
//! too slow for it loses the copy. It uses connections and limits of its own and counts for nobody's health.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, request};
use http_body::{Body as _, Frame, SizeHint};

use super::body::{BrokenOff, RequestBody};
use super::cluster::LiveCluster;
use super::pool::{self, Demand};
use super::release::release;
use super::send;
use super::stats::Event;
use super::worker::Worker;

/// Most bytes of a body that wait for a mirror.
const QUEUE_MAX: usize = 64 * 1024;
/// How long a copy may take in all.
const LIMIT: Duration = Duration::from_secs(30);

/// One copy's end of a body.
#[derive(Debug)]
pub(super) struct Tap {
    queue: Arc<Mutex<Queue>>,
    length: Option<u64>,
    gives: bool,
}

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    state: State,
    reader: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Flowing,
    Ended,
    /// The queue ran over, or the client broke off.
    Broken,
}

impl Tap {
    /// The two ends: what is given to the first comes out of the second.
    pub(super) fn pair(length: Option<u64>) -> (Self, Self) {
        let queue = Arc::<Mutex<Queue>>::default();
        let end = |gives| Self {
            queue: Arc::clone(&queue),
            length,
            gives,
        };
        (end(true), end(false))
    }

    /// More of the body.
    pub(super) fn give(&mut self, piece: &Bytes) {
        self.change(|queue| {
            if queue.state != State::Flowing {
                return;
            }
            if queue.bytes + piece.len() > QUEUE_MAX {
                queue.state = State::Broken;
                queue.pieces.clear();
            } else {
                queue.bytes += piece.len();
                queue.pieces.push_back(piece.clone());
            }
        });
    }

    /// That was all of it.
    pub(super) fn end(&mut self) {
        self.become_state(State::Ended);
    }

    /// There will be no end.
    pub(super) fn break_off(&mut self) {
        self.become_state(State::Broken);
    }

    /// The next piece.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let mut queue = self.lock();
        if let Some(piece) = queue.pieces.pop_front() {
            queue.bytes -= piece.len();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match queue.state {
            State::Ended => Poll::Ready(None),
            State::Broken => Poll::Ready(Some(Err(BrokenOff::TakenOver))),
            State::Flowing => {
                queue.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The body's length, as far as the client told it.
    pub(super) fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    fn become_state(&mut self, state: State) {
        self.change(|queue| {
            if queue.state == State::Flowing {
                queue.state = state;
            }
        });
    }

    fn change(&mut self, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.lock();
        change(&mut queue);
        if let Some(reader) = queue.reader.take() {
            reader.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if self.gives {
            self.break_off();
        }
    }
}

/// Sends a copy of a request, on its own.
pub(super) fn spawn(
    worker: &Rc<Worker>,
    cluster: &Arc<LiveCluster>,
    demand: Demand,
    head: &request::Parts,
    body: Option<Tap>,
) {
    let mut request = Request::new(body.map_or(RequestBody::Empty, RequestBody::Copy));
    head.method.clone_into(request.method_mut());
    head.uri.clone_into(request.uri_mut());
    head.headers.clone_into(request.headers_mut());
    let (worker, cluster) = (Rc::clone(worker), Arc::clone(cluster));
    tokio::task::spawn_local(async move {
        let copy = copy(&worker, &cluster, &demand, request);
        let whole = matches!(tokio::time::timeout(LIMIT, copy).await, Ok(Some(())));
        worker.count(if whole {
            Event::Mirrored
        } else {
            Event::MirrorsDropped
        });
    });
}

async fn copy(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    demand: &Demand,
    mut request: Request<RequestBody>,
) -> Option<()> {
    let mut lease = pool::lease(worker, cluster, demand, None).await.ok()?;
    send::fit(&mut request, &lease.connection, &demand.transport);
    let response = lease.connection.send(request).await.ok()?;
    let mut body = response.into_body();
    while !body.is_end_stream() {
        match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(frame) => drop(frame.ok()?),
            None => break,
        }
    }
    release(lease, cluster, true);
    Some(())
}
