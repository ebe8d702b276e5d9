//! The one timer of a client connection; it follows the connection's notes whenever it fires.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::downstream::{Check, Downstream, Timers};
use super::stats::Event;

pin_project_lite::pin_project! {
    /// See the module.
    pub(super) struct Clock<'a> {
        #[pin]
        sleep: Sleep,
        downstream: &'a Downstream,
        timers: &'a Timers,
        drain_seen: bool,
        retired: bool,
        resting: bool,
    }
}

/// What is to be done with the connection.
pub(super) enum Expired {
    /// Close without cutting anything off; what hangs even then is cut off at the next expiry.
    Retire(Event),
    /// Cut it off.
    Abort(Event),
    /// Nothing; it has been idle for a while.
    Rest,
}

impl<'a> Clock<'a> {
    /// The timer of a connection whose first request has begun to come in.
    pub(super) fn new(downstream: &'a Downstream, timers: &'a Timers) -> Self {
        Self {
            sleep: tokio::time::sleep(Duration::ZERO),
            downstream,
            timers,
            drain_seen: false,
            retired: false,
            resting: false,
        }
    }

    /// Waits until there is something to do.
    pub(super) fn poll_expired(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Expired> {
        let mut this = self.project();
        if this.downstream.is_draining() && !*this.drain_seen {
            // Draining shortens limits that the timer has not seen yet.
            *this.drain_seen = true;
            this.sleep.as_mut().reset(tokio::time::Instant::now());
        }
        loop {
            ready!(this.sleep.as_mut().poll(cx));
            let now = Instant::now();
            match this.downstream.check(now, this.timers) {
                Check::Wait(until) => {
                    let rests = this.downstream.rests(this.timers);
                    // Until it rests it is looked at more often than any limit asks for.
                    let until = if rests {
                        until
                    } else {
                        until.min(now + this.timers.rest)
                    };
                    this.sleep.as_mut().reset(until.into());
                    if rests && !std::mem::replace(this.resting, rests) {
                        return Poll::Ready(Expired::Rest);
                    }
                    *this.resting = rests;
                }
                Check::Retire(event) if !*this.retired => {
                    *this.retired = true;
                    let patience = now + this.timers.header;
                    this.sleep.as_mut().reset(patience.into());
                    return Poll::Ready(Expired::Retire(event));
                }
                Check::Retire(event) | Check::Abort(event) => {
                    return Poll::Ready(Expired::Abort(event));
                }
            }
        }
    }
}
