//! What a connection is waited for, and what is done when that has taken too long.

use std::time::{Duration, Instant};

use crate::proxy::stats::{Event, Flag};

/// Limits on slow and idle clients (research: reliability 3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timers {
    /// From the first byte of a request head to its last.
    pub header: Duration,
    /// Without a byte of the request body while we wait for one.
    pub body_idle: Duration,
    /// Least bytes per second of a request body, over [`Self::body_idle`].
    pub body_rate: u64,
    /// Without the client taking a response byte that we want to send.
    pub write_idle: Duration,
    /// Between requests.
    pub keep_alive: Duration,
    /// Without a byte in any direction during an exchange.
    pub stream_idle: Duration,
    /// Age after which the next answer closes the connection; spread by a tenth.
    pub max_age: Duration,
    /// How long an idle connection stays open once draining has begun.
    pub drain_idle: Duration,
    /// After how long an idle connection by HTTP/1 gives its buffers back.
    pub rest: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            body_idle: Duration::from_secs(30),
            body_rate: 100,
            write_idle: Duration::from_secs(30),
            keep_alive: Duration::from_secs(60),
            stream_idle: Duration::from_secs(300),
            max_age: Duration::from_secs(3600),
            drain_idle: Duration::from_secs(3),
            rest: Duration::from_secs(1),
        }
    }
}

impl Timers {
    /// How often a connection looks at its clock at most: the shortest limit that can begin unnoticed.
    pub(super) fn tick(&self) -> Duration {
        self.header
            .min(self.body_idle)
            .min(self.write_idle)
            .min(self.keep_alive)
            .min(self.stream_idle)
    }
}

/// What the timer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Check {
    /// All is well; look again then.
    Wait(Instant),
    /// Idle for long enough: close without cutting anything off.
    Retire(Event),
    /// A limit has passed: close now.
    Abort(Event),
}

/// Why we cut off a connection with an exchange on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Cut {
    /// A limit has passed.
    Limit(Event),
    /// The time for draining is over.
    Drained,
}

impl Cut {
    /// Flag and details in the access log, as Envoy names them: to Envoy, too, a connection that it closes itself ends with
    /// `DC`, and the details say whose doing it was.
    pub(in crate::proxy) fn told(self) -> (Flag, &'static str) {
        match self {
            Self::Limit(Event::StreamTimeouts) => (Flag::StreamIdle, "stream_idle_timeout"),
            Self::Limit(Event::BodyTimeouts) => (
                Flag::DownstreamClosed,
                "downstream_local_disconnect(request_body_timeout)",
            ),
            Self::Limit(Event::WriteTimeouts) => (
                Flag::DownstreamClosed,
                "downstream_local_disconnect(response_write_timeout)",
            ),
            Self::Limit(Event::Http2Floods) => (Flag::DownstreamProtocol, "http2_flood"),
            Self::Limit(_) => (Flag::DownstreamClosed, "downstream_local_disconnect"),
            Self::Drained => (
                Flag::DownstreamClosed,
                "downstream_local_disconnect(drain_timeout)",
            ),
        }
    }
}
