//! One UDP session: a client's address at one VIP, an endpoint, and a socket of its own toward it.
//!
//! It ends exactly once, by whoever takes it out of the table; what is counted and logged then is here.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rustix::net::{RecvFlags, SendFlags, recv, send, sendto};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

use super::Key;
use crate::datapath::Tag;
use crate::l7::outlier::Outcome;
use crate::proxy::access_log::{self, SessionLine};
use crate::proxy::cluster::{LiveCluster, LiveEndpoint};
use crate::proxy::held::Holding;
use crate::proxy::permit::ConnectionPermit;
use crate::proxy::runtime::{Live, LiveRule};
use crate::proxy::stats::{Event, Flag};
use crate::proxy::worker::Worker;
use crate::snapshot::BindKey;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing came and nothing went for the idle timeout.
    Idle,
    /// The endpoint's host said that nobody listens there.
    Refused,
    /// The endpoint is gone or ejected.
    EndpointGone,
    /// No route leads to the cluster any more, or the client is not admitted any more.
    RouteGone,
    /// It was the one used longest ago when there was no room for another.
    Evicted,
    /// The worker ends.
    Stopped,
}

impl End {
    fn event(self) -> Option<Event> {
        match self {
            Self::Idle => Some(Event::UdpSessionsIdle),
            Self::Refused => Some(Event::UdpSessionsRefused),
            Self::EndpointGone | Self::RouteGone => Some(Event::UdpSessionsMoved),
            Self::Evicted => Some(Event::UdpSessionsEvicted),
            Self::Stopped => None,
        }
    }

    fn flag(self) -> Option<Flag> {
        match self {
            Self::Idle | Self::Stopped => None,
            Self::Refused => Some(Flag::ConnectFailure),
            Self::EndpointGone => Some(Flag::UpstreamClosed),
            Self::RouteGone => Some(Flag::NoRoute),
            Self::Evicted => Some(Flag::Overload),
        }
    }
}

/// A datagram, or an ICMP error: the latter alone does not make a socket readable.
const EVENTS: Interest = Interest::READABLE.add(Interest::ERROR);

/// What a session is made of.
pub(super) struct Parts {
    pub(super) key: Key,
    pub(super) bind: BindKey,
    pub(super) listener: Rc<UdpSocket>,
    pub(super) rule: Arc<LiveRule>,
    pub(super) cluster: Arc<LiveCluster>,
    pub(super) endpoint: Arc<LiveEndpoint>,
}

/// What a session holds until it ends.
#[derive(Debug)]
pub(super) struct Held {
    /// Its place under `maxConnections`.
    pub(super) _permit: ConnectionPermit,
    /// Its tag in the kernel's table.
    pub(super) _tag: Option<Tag>,
    /// Its share in the count of its row.
    pub(super) _row: Option<Holding>,
}

/// See the module.
pub(super) struct Session {
    parts: Parts,
    upstream: UdpSocket,
    started: Instant,
    /// The configuration under which it was last found to be right.
    checked: Cell<u64>,
    received: Cell<Traffic>,
    sent: Cell<Traffic>,
    answers: RefCell<Option<AbortHandle>>,
    held: RefCell<Option<Held>>,
}

/// What went one way.
#[derive(Clone, Copy, Debug, Default)]
struct Traffic {
    datagrams: u64,
    bytes: u64,
}

impl Traffic {
    fn and(self, bytes: usize) -> Self {
        Self {
            datagrams: self.datagrams + 1,
            bytes: self.bytes + bytes as u64,
        }
    }
}

impl Session {
    /// Opens the socket toward the endpoint.
    ///
    /// # Errors
    /// Out of descriptors, or no way to the endpoint.
    pub(super) fn connect(endpoint: &LiveEndpoint) -> io::Result<UdpSocket> {
        let address = endpoint.key.address;
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM.nonblocking(),
            Some(Protocol::UDP),
        )?;
        let any = match address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        socket.bind(&any.into())?;
        socket.connect(&address.into())?;
        UdpSocket::from_std(socket.into())
    }

    /// A session that has just begun, under the configuration with this number.
    pub(super) fn begin(
        worker: &Worker,
        parts: Parts,
        held: Held,
        upstream: UdpSocket,
        number: u64,
    ) -> Self {
        parts.endpoint.enter();
        parts.cluster.shard(worker.index).connected();
        worker.stats().session_opened(worker.index);
        worker.count(Event::UdpSessions);
        Self {
            held: RefCell::new(Some(held)),
            parts,
            upstream,
            started: Instant::now(),
            checked: Cell::new(number),
            received: Cell::default(),
            sent: Cell::default(),
            answers: RefCell::default(),
        }
    }

    /// The task that brings answers back; it ends with the session.
    pub(super) fn answered_by(&self, task: AbortHandle) {
        self.answers.replace(Some(task));
    }

    /// Its key in the table.
    pub(super) fn key(&self) -> &Key {
        &self.parts.key
    }

    /// The endpoint that it goes to.
    pub(super) fn endpoint(&self) -> &Arc<LiveEndpoint> {
        &self.parts.endpoint
    }

    /// Waits for an answer or an error.
    pub(super) async fn ready(&self) -> io::Result<()> {
        self.upstream.ready(EVENTS).await.map(drop)
    }

    /// The next answer, if there is one.
    ///
    /// # Errors
    /// There is none, or the endpoint cannot be reached.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut receive = || Ok(recv(&self.upstream, &mut *buffer, RecvFlags::empty())?.0);
        // One after the other: the runtime knows no state of both together.
        match self.upstream.try_io(Interest::READABLE, &mut receive) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.upstream.try_io(Interest::ERROR, receive)
            }
            result => result,
        }
    }

    /// Why it cannot go on under this configuration, if it cannot.
    pub(super) fn over(&self, live: &Live) -> Option<End> {
        if !self.parts.endpoint.is_usable() {
            return Some(End::EndpointGone);
        }
        if self.checked.get() == live.number {
            return None;
        }
        let bind = live.binds.get(&self.parts.bind);
        let client = self.parts.key.client.ip();
        let listener = bind
            .filter(|bind| bind.policy.sources.admits(client))
            .and_then(|bind| bind.listeners.first());
        let rule = listener.and_then(|listener| live.rules.get(listener.rule? as usize));
        if rule.is_some_and(|rule| rule.leads_to(&self.parts.cluster)) {
            self.checked.set(live.number);
            None
        } else {
            Some(End::RouteGone)
        }
    }

    /// Sends a datagram of the client on. One that finds no room is dropped and counted, as on any wire.
    ///
    /// # Errors
    /// The endpoint cannot be reached.
    pub(super) fn send(&self, worker: &Worker, datagram: &[u8]) -> io::Result<()> {
        // The kernel is asked, and not what the runtime has last seen of the socket: it has seen nothing yet of a new one.
        match send(&self.upstream, datagram, SendFlags::empty()).map_err(io::Error::from) {
            Ok(_) => {
                self.received.set(self.received.get().and(datagram.len()));
                Ok(())
            }
            Err(error) if is_passing(&error) => {
                worker.count(Event::UdpDatagramsDropped);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Sends an answer of the endpoint to the client, from the VIP.
    pub(super) fn answer(&self, worker: &Worker, datagram: &[u8]) {
        let sent = self.sent.get();
        if sent.datagrams == 0 {
            // A first answer shows that the endpoint is well.
            let outcome = Outcome::Status(200);
            self.parts.cluster.record(&self.parts.endpoint, outcome);
        }
        self.sent.set(sent.and(datagram.len()));
        let client = self.parts.key.client;
        match sendto(&*self.parts.listener, datagram, SendFlags::empty(), &client) {
            Ok(_) => worker.count(Event::UdpDatagramsSent),
            Err(_) => worker.count(Event::UdpDatagramsDropped),
        }
    }

    /// It is out of the table: counts, logs, and lets its socket go.
    pub(super) fn end(&self, worker: &Worker, why: End) {
        if let Some(task) = self.answers.take() {
            task.abort();
        }
        drop(self.held.take());
        let parts = &self.parts;
        parts.endpoint.leave();
        worker.stats().session_closed(worker.index);
        if let Some(event) = why.event() {
            worker.count(event);
        }
        if why == End::Refused {
            parts
                .cluster
                .record(&parts.endpoint, Outcome::ConnectFailure);
        }
        let (received, sent) = (self.received.get(), self.sent.get());
        let line = SessionLine {
            took: self.started.elapsed(),
            flag: why.flag(),
            received: (received.datagrams, received.bytes),
            sent: (sent.datagrams, sent.bytes),
            endpoint: parts.endpoint.key.address,
            cluster: &parts.cluster.name,
            rule: &parts.rule.name,
            peer: parts.key.client,
            local: parts.bind.into(),
        };
        worker.log(|buffer, clock| access_log::write_session(buffer, clock, &line));
    }
}

/// Whether only this datagram is concerned: no room in a buffer, or it is too long for the way.
fn is_passing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || matches!(
            error.raw_os_error(),
            Some(libc::ENOBUFS | libc::EMSGSIZE | libc::EINTR)
        )
}
