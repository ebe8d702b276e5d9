//! A worker: one OS thread with its own runtime, listening sockets and upstream connections.
//!
//! Nothing that a worker has begun ever moves to another one. It writes no file, and its only regular work is the beat:
//! a counter that shows that it lives, and the sweeps that ride on it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{JoinHandle, LocalSet};

use super::acceptor;
use super::access_log::{Clock, Sender};
use super::connection;
use super::downstream::{Cut, Downstream, Timers};
use super::headroom::{Headroom, Scarcity};
use super::held::{Held, Holding};
use super::reply::Reply;
use super::runtime::Live;
use super::stats::{Event, Stats};
use super::tls::Handshakes;
use super::udp::{self, SessionLimits, Sessions};
use crate::datapath::{self, SessionTags, Tag};
use crate::snapshot::{BindKey, UdpHash};

/// How often a worker shows that it lives.
pub const BEAT: Duration = Duration::from_millis(50);
/// Beats between two looks for idle upstream connections that are too old.
const BEATS_PER_REAP: u64 = 20;

/// Beats between two times that the system gets freed memory back while that is scarce.
const BEATS_PER_RETURN: u64 = 4;

/// Connections that give their buffers back before the system gets the memory: about a megabyte.
const RESTED_MANY: u64 = 64;

/// One in so many idle connections is closed in a beat while descriptors or memory are scarce.
const SHED: usize = 16;

/// Says whether this node is ready, for the built-in listener.
pub type Readiness = dyn Fn() -> bool + Send + Sync;

/// What all workers share.
pub(super) struct Shared {
    /// The running configuration.
    pub(super) live: ArcSwap<Live>,
    /// Counters.
    pub(super) stats: Arc<Stats>,
    /// Limits on slow clients.
    pub(super) timers: Timers,
    /// Whether draining has begun.
    pub(super) draining: AtomicBool,
    /// Beats of each worker.
    pub(super) beats: Box<[AtomicU64]>,
    /// For the built-in listener.
    pub(super) ready: Box<Readiness>,
    /// Where UDP sessions are told to the kernel, if it steers.
    pub(super) tags: Option<Arc<SessionTags>>,
    /// Bounds on the UDP sessions of each worker.
    pub(super) sessions: SessionLimits,
    /// Open connections by steering row.
    pub(super) held: Option<Arc<Held>>,
    /// What is left of descriptors and memory.
    pub(super) headroom: Headroom,
}

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Command {
    /// Accept on this socket. Without a bind, the local address of each connection tells it.
    Listen(u64, std::net::TcpListener, Option<BindKey>),
    /// Relay what comes to this socket.
    Relay(u64, std::net::UdpSocket, BindKey),
    /// Stop accepting on that socket.
    Unlisten(u64),
    /// Begin to drain.
    Drain,
    /// End once all connections are closed, at the latest then.
    Stop(Instant),
}

/// See the module.
pub(super) struct Worker {
    /// Number of the worker, from 0.
    pub(super) index: usize,
    shared: Arc<Shared>,
    log: Option<RefCell<Sender>>,
    random: Cell<u64>,
    next_connection: Cell<u64>,
    connections: RefCell<HashMap<u64, Rc<Downstream>>>,
    handshakes: Handshakes,
    /// Connections that gave their buffers back since the system got any.
    rested: Cell<u64>,
    sessions: Sessions,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// The running configuration. To be held for the length of a look-up only.
    pub(super) fn live(&self) -> arc_swap::Guard<Arc<Live>> {
        self.shared.live.load()
    }

    /// Counters.
    #[must_use]
    pub(super) fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// Counts an event.
    pub(super) fn count(&self, event: Event) {
        self.shared.stats.count(self.index, event);
    }

    /// Counts several events.
    pub(super) fn add(&self, event: Event, n: u64) {
        if n > 0 {
            self.shared.stats.add(self.index, event, n);
        }
    }

    /// An idle connection has given its buffers back.
    pub(super) fn rests(&self) {
        self.count(Event::DownstreamRests);
        self.rested.set(self.rested.get() + 1);
    }

    /// Handshakes with clients.
    #[must_use]
    pub(super) fn handshakes(&self) -> &Handshakes {
        &self.handshakes
    }

    /// UDP sessions.
    #[must_use]
    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Tells the kernel that a UDP session is here, if it steers; holds as long as the value.
    pub(super) fn tag(&self, client: SocketAddr, vip: SocketAddr, by: UdpHash) -> Option<Tag> {
        static TOLD: std::sync::Once = std::sync::Once::new();
        let tag = self.shared.tags.as_ref()?.add(client, vip, by);
        if tag.is_none() {
            self.count(Event::UdpTagsFull);
            TOLD.call_once(|| {
                tracing::warn!(%client, %vip, "no room for the tag of a UDP session: it ends if another node takes its row over; told once, counted as udp_tags_full");
            });
        }
        tag
    }

    /// Limits on slow clients.
    #[must_use]
    pub(super) fn timers(&self) -> &Timers {
        &self.shared.timers
    }

    /// Whether draining has begun.
    #[must_use]
    pub(super) fn is_draining(&self) -> bool {
        self.shared.draining.load(Relaxed)
    }

    /// How little is left of descriptors and memory.
    #[must_use]
    pub(super) fn scarcity(&self) -> Scarcity {
        self.shared.headroom.scarcity()
    }

    /// Whether there is room for another client connection.
    #[must_use]
    pub(super) fn has_room(&self) -> bool {
        let headroom = &self.shared.headroom;
        headroom.has_room(|| self.shared.stats.open_connections())
    }

    /// A client connection is accepted.
    pub(super) fn accepts(&self) {
        self.shared.headroom.accepted();
        self.count(Event::DownstreamConnections);
    }

    /// A random number (xorshift; good for balancing, for nothing else).
    pub(super) fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x
    }

    /// The answer of the built-in listener.
    #[must_use]
    pub(super) fn readiness(&self, path: &str) -> Reply {
        match path {
            "/healthz/live" => Reply::Ready,
            "/healthz/ready" if (self.shared.ready)() => Reply::Ready,
            "/healthz/ready" => Reply::NotReady,
            _ => Reply::NoRoute,
        }
    }

    /// Whether there is an access log.
    #[must_use]
    pub(super) fn logs(&self) -> bool {
        self.log.is_some()
    }

    /// Writes a line to the access log.
    pub(super) fn log(&self, format: impl FnOnce(&mut Vec<u8>, &mut Clock)) {
        if let Some(log) = &self.log {
            let dropped = log.borrow_mut().line(format);
            self.lines_dropped(dropped);
        }
    }

    /// A client connection is open; it is known until the returned number is given to [`Self::closed`].
    pub(super) fn opened(&self, downstream: &Rc<Downstream>) -> u64 {
        let number = self.next_connection.get();
        self.next_connection.set(number + 1);
        self.connections
            .borrow_mut()
            .insert(number, Rc::clone(downstream));
        self.shared.stats.opened(self.index);
        number
    }

    /// A client connection is closed.
    pub(super) fn closed(&self, number: u64) {
        self.connections.borrow_mut().remove(&number);
        self.shared.stats.closed(self.index);
    }

    /// Counts a client connection for its steering row, as long as the guard lives.
    #[must_use]
    pub(super) fn holds(&self, client: SocketAddr, vip: BindKey) -> Option<Holding> {
        let held = self.shared.held.as_ref();
        held.map(|held| held.connection(client, vip))
    }

    /// Counts a UDP session for its steering row, as long as the guard lives.
    #[must_use]
    pub(super) fn holds_session(
        &self,
        client: SocketAddr,
        vip: BindKey,
        by: UdpHash,
    ) -> Option<Holding> {
        let held = self.shared.held.as_ref();
        held.map(|held| held.session(client, vip, by))
    }

    fn lines_dropped(&self, lines: u64) {
        self.add(Event::LogLinesDropped, lines);
    }

    fn drain(&self) {
        let now = Instant::now();
        for downstream in self.connections.borrow().values() {
            downstream.drain(now);
        }
    }

    /// Tells some of the connections that have been idle longest to close: what they hold is scarce. Where none can be accepted, those
    /// that owe a request head are not waited for long.
    fn shed(&self, scarcity: Scarcity) {
        let now = Instant::now();
        let connections = self.connections.borrow();
        if scarcity >= Scarcity::Full {
            connections.values().for_each(|one| one.hurry());
        }
        let idle = connections.values().filter(|one| !one.is_draining());
        let mut idle: Vec<_> = idle.filter_map(|one| Some((one.idle()?, one))).collect();
        let count = idle.len().div_ceil(SHED);
        if idle.len() > count {
            idle.select_nth_unstable_by_key(count, |(since, _)| *since);
        }
        for (_, downstream) in &idle[..count] {
            self.count(Event::Shed);
            downstream.drain(now);
        }
    }

    async fn beat(self: Rc<Self>) {
        let mut interval = tokio::time::interval(BEAT);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for beat in 1_u64.. {
            interval.tick().await;
            self.shared.beats[self.index].fetch_add(1, Relaxed);
            if let Some(log) = &self.log {
                let dropped = log.borrow_mut().flush();
                self.lines_dropped(dropped);
            }
            if beat.is_multiple_of(BEATS_PER_REAP) && self.rested.get() >= RESTED_MANY {
                self.rested.set(0);
                // The allocator keeps what is freed for this thread, which may be idle now.
                datapath::return_freed_memory();
            }
            let headroom = &self.shared.headroom;
            let scarcity = if self.index == 0 {
                headroom.look(self.shared.stats.open_connections())
            } else {
                headroom.scarcity()
            };
            if scarcity > Scarcity::None {
                self.shed(scarcity);
                if beat.is_multiple_of(BEATS_PER_RETURN) {
                    datapath::return_freed_memory();
                }
            }
            let live = self.shared.live.load_full();
            let now = Instant::now();
            self.sessions.expire(&self, now);
            let (sweeps, reaps) = (self.index == 0, beat.is_multiple_of(BEATS_PER_REAP));
            if !sweeps && !reaps {
                continue;
            }
            for cluster in live.all_clusters() {
                if sweeps {
                    cluster.sweep(now);
                }
                if reaps {
                    cluster.reap_idle(self.index, now);
                }
            }
        }
    }
}

/// The body of a worker's thread.
pub(super) fn run(
    index: usize,
    shared: Arc<Shared>,
    log: Option<Sender>,
    seed: u64,
    runtime: &tokio::runtime::Runtime,
    commands: UnboundedReceiver<Command>,
) {
    let limits = shared.sessions;
    let worker = Rc::new(Worker {
        index,
        shared,
        log: log.map(RefCell::new),
        // Any odd multiple of a non-zero number is a fine start for xorshift; zero is the only bad one.
        random: Cell::new((seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1),
        next_connection: Cell::new(0),
        connections: RefCell::default(),
        handshakes: Handshakes::default(),
        rested: Cell::new(0),
        sessions: Sessions::new(limits),
    });
    let local = LocalSet::new();
    local.block_on(runtime, serve(Rc::clone(&worker), commands));
    // Dropping the tasks closes what is left and logs what was cut off.
    drop(local);
    if let Some(log) = &worker.log {
        let dropped = log.borrow_mut().flush();
        worker.lines_dropped(dropped);
    }
}

async fn serve(worker: Rc<Worker>, mut commands: UnboundedReceiver<Command>) {
    let beat = tokio::task::spawn_local(Rc::clone(&worker).beat());
    let mut listeners: HashMap<u64, JoinHandle<()>> = HashMap::new();
    let mut deadline = None;
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen(number, listener, bind) => {
                let accept = acceptor::accept(Rc::clone(&worker), listener, bind);
                listeners.insert(number, tokio::task::spawn_local(accept));
            }
            Command::Relay(number, socket, bind) => {
                let relay = udp::relay(Rc::clone(&worker), number, socket, bind);
                listeners.insert(number, tokio::task::spawn_local(relay));
            }
            Command::Unlisten(number) => {
                if let Some(listener) = listeners.remove(&number) {
                    listener.abort();
                    worker.sessions.close(&worker, number);
                }
            }
            Command::Drain => worker.drain(),
            Command::Stop(at) => {
                deadline = Some(at);
                break;
            }
        }
    }
    for listener in listeners.into_values() {
        listener.abort();
    }
    let at = deadline.unwrap_or_else(Instant::now);
    let all_closed = async {
        while !worker.connections.borrow().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // Past the deadline the rest is cut off.
    let _ = tokio::time::timeout_at(at.into(), all_closed).await;
    for downstream in worker.connections.borrow().values() {
        worker.count(Event::DrainCutOff);
        downstream.cut_off(Cut::Drained);
    }
    worker.sessions.stop(&worker);
    beat.abort();
}

/// Serves one accepted connection on this worker.
pub(super) fn spawn(worker: &Rc<Worker>, stream: tokio::net::TcpStream, bind: BindKey) {
    tokio::task::spawn_local(connection::serve(Rc::clone(worker), stream, bind));
}
