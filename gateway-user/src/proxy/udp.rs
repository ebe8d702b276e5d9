//! UDP: datagrams to a VIP go to one endpoint for as long as their session lasts, and answers come back from the VIP.
//!
//! A session is a client's address and port at one VIP. Backend and endpoint are chosen at its first datagram; each
//! session has a socket of its own toward the endpoint, so that answers need no look-up and a port that nobody
//! listens on is told by the kernel. The client's side is one socket for each worker and VIP, bound to the VIP itself:
//! SO_REUSEPORT hashes a client's datagrams to the same worker always. Nothing here waits: what finds no room is
//! dropped and counted. A turn takes a bounded number of datagrams, so that a flood cannot starve the worker's other
//! work.

mod session;
mod table;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

use self::session::{End, Held, Parts, Session};
use self::table::Table;
use super::cluster::LiveEndpoint;
use super::permit::ConnectionPermit;
use super::runtime::Live;
use super::stats::{Event, Flag};
use super::worker::Worker;
use crate::l7::outlier::Outcome;
use crate::snapshot::BindKey;

/// Bounds on the sessions of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// So many at most; the one used longest ago goes for another.
    pub most: usize,
    /// A session without datagrams either way ends after this.
    pub idle: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            most: 16_384,
            idle: Duration::from_secs(30),
        }
    }
}

/// Datagrams that one socket may have handled before others get their turn.
const BUDGET: usize = 64;
/// Sessions that end for being idle in one sweep.
const SWEEP: usize = 1024;
/// No datagram is longer.
const LONGEST: usize = 65_535;

/// What tells sessions of one worker apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Number of the listening socket.
    listener: u64,
    /// The client.
    client: SocketAddr,
}

/// The sessions of one worker.
pub(super) struct Sessions {
    table: RefCell<Table<Key, Rc<Session>>>,
    idle: Duration,
    /// For answers; only borrowed between two waits.
    buffer: RefCell<Box<[u8]>>,
}

impl Sessions {
    /// None yet, and never more than the limits say.
    pub(super) fn new(limits: SessionLimits) -> Self {
        Self {
            idle: limits.idle,
            table: RefCell::new(Table::new(limits.most)),
            buffer: RefCell::new(vec![0; LONGEST].into()),
        }
    }

    /// Ends the sessions that were idle for too long.
    pub(super) fn expire(&self, worker: &Worker, now: Instant) {
        for _ in 0..SWEEP {
            let Some(session) = self.table.borrow_mut().pop_idle(now, self.idle) else {
                break;
            };
            session.end(worker, End::Idle);
        }
    }

    /// A listening socket is gone: its sessions end.
    pub(super) fn close(&self, worker: &Worker, listener: u64) {
        let gone = self
            .table
            .borrow_mut()
            .take_where(|key| key.listener == listener);
        for session in gone {
            session.end(worker, End::RouteGone);
        }
    }

    /// The worker ends.
    pub(super) fn stop(&self, worker: &Worker) {
        while let Some(session) = self.pop_oldest() {
            session.end(worker, End::Stopped);
        }
    }

    fn pop_oldest(&self) -> Option<Rc<Session>> {
        self.table.borrow_mut().pop_oldest()
    }

    /// Ends a session that may have ended already.
    fn end(&self, worker: &Worker, session: &Rc<Session>, why: End) {
        let same = |other: &Rc<Session>| Rc::ptr_eq(other, session);
        let taken = self.table.borrow_mut().remove_if(session.key(), same);
        if let Some(session) = taken {
            session.end(worker, why);
        }
    }
}

/// Takes what comes to a VIP, until it is aborted.
pub(super) async fn relay(
    worker: Rc<Worker>,
    number: u64,
    socket: std::net::UdpSocket,
    bind: BindKey,
) {
    let socket = match UdpSocket::from_std(socket) {
        Ok(socket) => Rc::new(socket),
        Err(error) => {
            tracing::error!(%error, vip = %bind, "cannot watch a UDP socket; its datagrams are not taken");
            return;
        }
    };
    let mut buffer = vec![0; LONGEST];
    loop {
        if let Err(error) = socket.readable().await {
            tracing::error!(%error, vip = %bind, "cannot wait for datagrams; they are not taken any more");
            return;
        }
        let now = Instant::now();
        let mut taken = 0;
        while taken < BUDGET {
            match socket.try_recv_from(&mut buffer) {
                Ok((length, client)) => {
                    taken += 1;
                    let key = Key {
                        listener: number,
                        client,
                    };
                    take(&worker, &socket, bind, key, &buffer[..length], now);
                }
                // An error of an earlier answer; it says nothing about the next datagram.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => taken += 1,
                Err(_) => break,
            }
        }
        if taken == BUDGET {
            tokio::task::yield_now().await;
        }
    }
}

/// One datagram of a client.
fn take(
    worker: &Rc<Worker>,
    listener: &Rc<UdpSocket>,
    bind: BindKey,
    key: Key,
    datagram: &[u8],
    now: Instant,
) {
    worker.count(Event::UdpDatagramsReceived);
    let sessions = worker.sessions();
    let live = worker.live();
    let known = sessions.table.borrow_mut().touch(&key, now);
    let mut except = None;
    if let Some(session) = known {
        let why = match session.over(&live) {
            Some(why) => why,
            None => match session.send(worker, datagram) {
                Ok(()) => return,
                Err(_) => End::Refused,
            },
        };
        sessions.end(worker, &session, why);
        except = Some(Arc::clone(session.endpoint()));
    }
    match open(worker, &live, listener, bind, key, except.as_deref()) {
        Ok(session) => {
            let evicted = sessions
                .table
                .borrow_mut()
                .insert(key, Rc::clone(&session), now);
            if let Some(evicted) = evicted {
                evicted.end(worker, End::Evicted);
            }
            if session.send(worker, datagram).is_err() {
                sessions.end(worker, &session, End::Refused);
            }
        }
        Err(refusal) => refusal.count(worker),
    }
}

/// Why a datagram found no session and none could be made.
enum Refusal {
    /// The sender is not admitted.
    Source,
    /// There is no way to an endpoint; with the flag that a request would get.
    Unroutable(Flag),
}

impl Refusal {
    fn count(self, worker: &Worker) {
        match self {
            Self::Source => worker.count(Event::SourcesDenied),
            Self::Unroutable(flag) => {
                worker.count(Event::UdpDatagramsUnroutable);
                worker.stats().flagged(worker.index, flag);
            }
        }
    }
}

/// Begins a session: match, split, limits, balance, socket.
fn open(
    worker: &Rc<Worker>,
    live: &Live,
    listener: &Rc<UdpSocket>,
    bind: BindKey,
    key: Key,
    except: Option<&LiveEndpoint>,
) -> Result<Rc<Session>, Refusal> {
    let unroutable = Refusal::Unroutable;
    let configured = live.binds.get(&bind).ok_or(unroutable(Flag::NoRoute))?;
    if !configured.policy.sources.admits(key.client.ip()) {
        return Err(Refusal::Source);
    }
    let rule = configured.listeners.first().and_then(|l| l.rule);
    let rule = rule.and_then(|at| live.rules.get(at as usize));
    let rule = rule.ok_or(unroutable(Flag::NoRoute))?;
    let cluster = rule.next().and_then(|backend| rule.target(backend));
    let cluster = Arc::clone(cluster.ok_or(unroutable(Flag::NoCluster))?);
    let endpoint = cluster
        .pick(worker.random(), except)
        .ok_or(unroutable(Flag::NoHealthyUpstream))?;
    let permit = ConnectionPermit::take(&cluster).ok_or(unroutable(Flag::Overflow))?;
    let upstream = Session::connect(&endpoint).map_err(|error| {
        unroutable(if is_out_of_descriptors(&error) {
            make_room(worker);
            Flag::Overload
        } else {
            cluster.record(&endpoint, Outcome::ConnectFailure);
            Flag::ConnectFailure
        })
    })?;
    let parts = Parts {
        key,
        bind,
        listener: Rc::clone(listener),
        rule: Arc::clone(rule),
        cluster,
        endpoint,
    };
    let held = Held {
        _permit: permit,
        _tag: worker.tag(key.client, bind.into(), configured.policy.udp_hash),
        _row: worker.holds_session(key.client, bind, configured.policy.udp_hash),
    };
    let session = Session::begin(worker, parts, held, upstream, live.number);
    let session = Rc::new(session);
    let task = tokio::task::spawn_local(answers(Rc::clone(worker), Rc::clone(&session)));
    session.answered_by(task.abort_handle());
    Ok(session)
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Ends the sessions used longest ago, for their descriptors; this datagram is lost, later ones find room.
fn make_room(worker: &Worker) {
    for _ in 0..BUDGET {
        if let Some(oldest) = worker.sessions().pop_oldest() {
            oldest.end(worker, End::Evicted);
        }
    }
}

/// Brings answers back to the client, until the session ends.
async fn answers(worker: Rc<Worker>, session: Rc<Session>) {
    loop {
        if session.ready().await.is_err() {
            return;
        }
        let sessions = worker.sessions();
        if sessions
            .table
            .borrow_mut()
            .touch(session.key(), Instant::now())
            .is_none()
        {
            return;
        }
        let mut spent = true;
        for _ in 0..BUDGET {
            let buffer = &mut *sessions.buffer.borrow_mut();
            match session.receive(buffer) {
                Ok(length) => session.answer(&worker, &buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    spent = false;
                    break;
                }
                Err(_) => {
                    sessions.end(&worker, &session, End::Refused);
                    return;
                }
            }
        }
        if spent {
            tokio::task::yield_now().await;
        }
    }
}
