//! A client connection's clock: what it is waiting for, and until when.
//!
//! The I/O wrapper and the exchanges note what happens; one timer per connection looks at the notes when it fires and
//! moves itself, so that no request sets a timer. Every limit is at least [`Timers::tick`], which is how often it looks
//! at most, so none is noticed late.

mod timers;
mod watched;

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

pub use self::timers::Timers;
pub(super) use self::timers::{Check, Cut};
pub(super) use self::watched::Watched;
use super::body::Progress;
use super::http2::Streams;
use super::scan::{Admission, Phase, Refusal};
use super::stats::Event;
use super::tunnel::Tunnel;
use crate::snapshot::{BindKey, ClientAddress, Scheme};

/// For how long a request head is waited for while there is no room for other connections.
const HURRIED: Duration = Duration::from_secs(1);

/// Notes about one client connection.
#[derive(Debug)]
pub(super) struct Downstream {
    /// Who connected: the client, or a proxy before this one.
    pub(super) peer: SocketAddr,
    /// VIP and port that it connected to.
    pub(super) bind: BindKey,
    /// When the connection was accepted.
    pub(super) accepted: Instant,
    /// Where the connection began, if a PROXY header says so.
    origin: Cell<Option<SocketAddr>>,
    believed: Cell<ClientAddress>,
    /// TLS is spoken, and this name was asked for.
    tls: OnceCell<Option<Box<str>>>,
    /// What the scanner below hyper sees; HTTP/1.
    admission: OnceCell<Admission>,
    /// The streams; HTTP/2.
    streams: OnceCell<Streams>,
    /// What becomes of the connection once hyper has given it up.
    tunnel: RefCell<Option<Tunnel>>,
    /// The next answer was the last: HTTP/2 says GOAWAY.
    last: Cell<bool>,
    /// When the connection has reached its maximal age.
    expires: Instant,
    exchanges: Cell<usize>,
    /// Exchanges that have become tunnels, which watch over themselves; HTTP/2.
    tunnels: Cell<usize>,
    /// When the last exchange ended, or the connection was accepted.
    idle_since: Cell<Instant>,
    /// Whether a request head has come.
    used: Cell<bool>,
    body: RefCell<Option<Arc<Progress>>>,
    body_mark: Cell<(Instant, u64)>,
    read_blocked: Cell<Option<Instant>>,
    write_blocked: Cell<Option<Instant>>,
    last_byte: Cell<Instant>,
    draining_since: Cell<Option<Instant>>,
    /// There is little time for a request head.
    hurried: Cell<bool>,
    cut: Cell<Option<Cut>>,
    waker: RefCell<Option<Waker>>,
    /// The socket, after the connection's end, if its client has not got everything.
    owing: RefCell<Option<OwnedFd>>,
}

impl Downstream {
    /// A connection accepted now.
    #[must_use]
    pub(super) fn new(peer: SocketAddr, bind: BindKey, now: Instant, max_age: Duration) -> Self {
        Self {
            peer,
            bind,
            accepted: now,
            origin: Cell::new(None),
            believed: Cell::new(ClientAddress::default()),
            tls: OnceCell::new(),
            admission: OnceCell::new(),
            streams: OnceCell::new(),
            tunnel: RefCell::new(None),
            last: Cell::new(false),
            expires: now + max_age,
            exchanges: Cell::new(0),
            tunnels: Cell::new(0),
            idle_since: Cell::new(now),
            used: Cell::new(false),
            body: RefCell::new(None),
            body_mark: Cell::new((now, 0)),
            read_blocked: Cell::new(None),
            write_blocked: Cell::new(None),
            last_byte: Cell::new(now),
            draining_since: Cell::new(None),
            hurried: Cell::new(false),
            cut: Cell::new(None),
            waker: RefCell::new(None),
            owing: RefCell::new(None),
        }
    }

    /// The connection has ended before its client got everything.
    fn owes(&self, socket: OwnedFd) {
        *self.owing.borrow_mut() = Some(socket);
    }

    /// The socket of a connection that has ended before its client got everything.
    pub(super) fn take_owing(&self) -> Option<OwnedFd> {
        self.owing.borrow_mut().take()
    }

    /// A request head is complete.
    pub(super) fn request_begins(&self) {
        self.exchanges.set(self.exchanges.get() + 1);
        self.used.set(true);
        self.hurried.set(false);
    }

    /// Whom to believe about the client's address.
    pub(super) fn believe(&self, policy: ClientAddress) {
        self.believed.set(policy);
    }

    /// Whom to believe about the client's address.
    pub(super) fn believed(&self) -> ClientAddress {
        self.believed.get()
    }

    /// A PROXY header says where the connection began.
    pub(super) fn came_from(&self, source: SocketAddr) {
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        self.origin.set(Some(source));
    }

    /// The client, as far as the connection tells.
    pub(super) fn client(&self) -> SocketAddr {
        self.origin.get().unwrap_or(self.peer)
    }

    /// TLS is established; with the server name that the client asked for, in lower case.
    pub(super) fn secured(&self, name: Option<Box<str>>) {
        // Called once, after the handshake.
        let _ = self.tls.set(name);
    }

    /// The server name of the handshake, if TLS is spoken.
    pub(super) fn server_name(&self) -> Option<Option<&str>> {
        self.tls.get().map(Option::as_deref)
    }

    /// The scheme of URLs that lead here.
    pub(super) fn scheme(&self) -> Scheme {
        match self.tls.get() {
            Some(_) => Scheme::Https,
            None => Scheme::Http,
        }
    }

    /// Watches these streams from now on.
    pub(super) fn watch_streams(&self, streams: &Streams) {
        // Called once, before the first request.
        let _ = self.streams.set(streams.clone());
    }

    /// The connection becomes a tunnel once hyper has given it up.
    pub(super) fn become_tunnel(&self, tunnel: Tunnel) {
        if let Some(admission) = self.admission.get() {
            admission.tunnel();
        }
        *self.tunnel.borrow_mut() = Some(tunnel);
    }

    /// One of the streams is a tunnel for as long as the guard lives.
    pub(super) fn tunnels(self: &Rc<Self>) -> Tunnelling {
        self.tunnels.set(self.tunnels.get() + 1);
        Tunnelling(Rc::clone(self))
    }

    /// An endpoint has answered a request.
    pub(super) fn answered(&self) {
        if let Some(streams) = self.streams.get() {
            streams.answered();
        }
    }

    /// What becomes of the connection.
    pub(super) fn take_tunnel(&self) -> Option<Tunnel> {
        self.tunnel.borrow_mut().take()
    }

    /// The request asked for an upgrade and got none: what follows it are requests.
    pub(super) fn no_upgrade(&self) {
        if let Some(admission) = self.admission.get() {
            admission.resume();
        }
    }

    /// The answer that is given now is the last one on the connection.
    pub(super) fn answers_last(&self) {
        self.last.set(true);
    }

    /// Whether an HTTP/2 client is to be told that no further request is taken.
    pub(super) fn goes_away(&self) -> bool {
        self.last.get() || self.is_draining()
    }

    /// Hears from the scanner from now on.
    pub(super) fn guard(&self, admission: Admission) {
        // Called once, before the first byte is read.
        let _ = self.admission.set(admission);
    }

    /// Why the connection's bytes were refused, if they were.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.admission.get()?.refusal()
    }

    /// The refusal that this request stands in for.
    pub(super) fn refusal_for<B>(&self, request: &http::Request<B>) -> Option<Refusal> {
        self.admission.get()?.refusal_for(request)
    }

    /// Since when the head of the next request is being waited for; `None`: between requests.
    fn head_since(&self) -> Option<Instant> {
        match self.admission.get().map(Admission::phase) {
            // HTTP/2 has begun with its preface: there it is idle as between requests.
            _ if self.streams.get().is_some() => None,
            // What was pipelined behind a long exchange counts from the end of that.
            Some(Phase::Head { since }) => Some((self.accepted + since).max(self.idle_since.get())),
            _ => (!self.used.get()).then_some(self.accepted),
        }
    }

    /// The request has a body; its progress is watched from now on.
    pub(super) fn watch_body(&self, body: &Arc<Progress>) {
        self.body_mark.set((Instant::now(), 0));
        *self.body.borrow_mut() = Some(Arc::clone(body));
    }

    /// The exchange is over.
    pub(super) fn request_ends(&self, now: Instant) {
        self.exchanges.set(self.exchanges.get().saturating_sub(1));
        self.idle_since.set(now);
        *self.body.borrow_mut() = None;
    }

    /// Whether the next answer should be the last.
    #[must_use]
    pub(super) fn should_close(&self, now: Instant) -> bool {
        self.draining_since.get().is_some() || now >= self.expires
    }

    /// Draining begins: idle connections are closed soon, others after their answer.
    pub(super) fn drain(&self, now: Instant) {
        if self.draining_since.get().is_none() {
            self.draining_since.set(Some(now));
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    /// Leaves a handshake or a request head that is waited for no more than [`HURRIED`]; those that have begun notice it within a second.
    pub(super) fn hurry(&self) {
        self.hurried.set(true);
    }

    /// For how long a handshake or a request head is waited for.
    pub(super) fn patience(&self, usual: Duration) -> Duration {
        if self.hurried.get() {
            usual.min(HURRIED)
        } else {
            usual
        }
    }

    /// We cut the connection off, now; not its client.
    pub(super) fn cut_off(&self, why: Cut) {
        self.cut.set(Some(why));
    }

    /// Whether it has been idle for a while: no exchange, nothing to be written, no byte of a request.
    #[must_use]
    pub(super) fn rests(&self, timers: &Timers) -> bool {
        self.exchanges.get() == 0
            && self.used.get()
            && self.write_blocked.get().is_none()
            && self.idle_since.get().elapsed() >= timers.rest
            && self
                .admission
                .get()
                .is_some_and(|admission| admission.phase() == Phase::AwaitingHead)
    }

    /// Since when no exchange has been under way, if none is.
    #[must_use]
    pub(super) fn idle(&self) -> Option<Instant> {
        (self.exchanges.get() == 0).then_some(self.idle_since.get())
    }

    /// Why we cut it off, if we did.
    #[must_use]
    pub(super) fn cut(&self) -> Option<Cut> {
        self.cut.get()
    }

    /// Whether draining has begun.
    #[must_use]
    pub(super) fn is_draining(&self) -> bool {
        self.draining_since.get().is_some()
    }

    /// The connection's task, to be woken when draining begins.
    pub(super) fn register(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|w| w.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// What the timer has to do now.
    #[must_use]
    pub(super) fn check(&self, now: Instant, timers: &Timers) -> Check {
        if let Some(streams) = self.streams.get() {
            streams.sweep(now, timers);
        }
        let limit = if self.exchanges.get() > 0 {
            self.exchange_limit(now, timers)
        } else {
            self.idle_limit(timers)
        };
        let written = self
            .write_blocked
            .get()
            .map(|t| (t + timers.write_idle, Check::Abort(Event::WriteTimeouts)));
        let (at, then) = match written {
            Some(write) if write.0 < limit.0 => write,
            _ => limit,
        };
        if now >= at {
            then
        } else {
            Check::Wait(at.min(now + timers.tick()))
        }
    }

    fn idle_limit(&self, timers: &Timers) -> (Instant, Check) {
        if let Some(since) = self.head_since() {
            let limit = self.patience(timers.header);
            return (since + limit, Check::Abort(Event::HeaderTimeouts));
        }
        let idle = self.idle_since.get();
        let mut limit = (idle + timers.keep_alive, Event::IdleTimeouts);
        if let Some(since) = self.draining_since.get() {
            limit = limit.min((idle.max(since) + timers.drain_idle, Event::Drained));
        }
        limit = limit.min((self.expires.max(idle), Event::MaxAge));
        (limit.0, Check::Retire(limit.1))
    }

    fn exchange_limit(&self, now: Instant, timers: &Timers) -> (Instant, Check) {
        let stream = (
            self.last_byte.get() + timers.stream_idle,
            Check::Abort(Event::StreamTimeouts),
        );
        if self.tunnels.get() >= self.exchanges.get() {
            return (now + timers.tick(), Check::Wait(now + timers.tick()));
        }
        let body = self.body.borrow();
        let (Some(body), Some(blocked)) = (&*body, self.read_blocked.get()) else {
            return stream;
        };
        if body.ended() {
            return stream;
        }
        let (mark, bytes) = self.body_mark.get();
        let window = now.duration_since(mark);
        if window >= timers.body_idle {
            if body.bytes() - bytes < timers.body_rate * window.as_secs() {
                return (now, Check::Abort(Event::BodyTimeouts));
            }
            self.body_mark.set((now, body.bytes()));
        }
        let idle = (
            blocked + timers.body_idle,
            Check::Abort(Event::BodyTimeouts),
        );
        if idle.0 < stream.0 { idle } else { stream }
    }

    fn note_read(&self, result: Option<usize>) {
        match result {
            Some(0) => {}
            Some(_) => {
                let now = Instant::now();
                self.last_byte.set(now);
                self.read_blocked.set(None);
            }
            None if self.read_blocked.get().is_none() => {
                self.read_blocked.set(Some(self.last_byte.get()));
            }
            None => {}
        }
    }

    fn note_write(&self, result: Option<usize>) {
        match result {
            Some(_) => {
                self.write_blocked.set(None);
                self.last_byte.set(Instant::now());
            }
            None if self.write_blocked.get().is_none() => {
                self.write_blocked.set(Some(Instant::now()));
            }
            None => {}
        }
    }
}

/// See [`Downstream::tunnels`].
#[derive(Debug)]
pub(super) struct Tunnelling(Rc<Downstream>);

impl Drop for Tunnelling {
    fn drop(&mut self) {
        self.0.tunnels.set(self.0.tunnels.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests;
