//! The L7 data plane: listens, forwards, limits, watches health, counts.
//!
//! [`Proxy`] is the handle that the rest of the daemon holds. It decides nothing by itself: what is listened on and
//! where requests go is in the snapshot given to [`Proxy::publish`], how they are treated in `l7`.

mod acceptor;
pub mod access_log;
mod admit;
mod answer;
mod body;
mod clock;
mod cluster;
mod connection;
mod downstream;
mod exchange;
mod forward;
pub mod headroom;
pub mod held;
mod http1;
mod http2;
mod matching;
mod mirror;
mod permit;
mod pool;
mod prepare;
mod prologue;
mod release;
mod reply;
mod runtime;
pub mod scan;
mod send;
mod settings;
pub mod stats;
mod stream;
mod tls;
mod tunnel;
mod udp;
mod upstream;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::mpsc::UnboundedSender;

pub use self::cluster::{ClusterStatus, EndpointStatus};
pub use self::downstream::Timers;
use self::headroom::Scarcity;
use self::runtime::{Basis, Live};
pub use self::settings::{Mode, OpenUdp, ProxySettings, StartError};
use self::stats::Stats;
pub use self::tls::TicketKeys;
use self::tls::TlsBasis;
pub use self::udp::SessionLimits;
pub use self::worker::{BEAT, Readiness};
use self::worker::{Command, Shared};
use crate::snapshot::{BindKey, ObjectKey, Snapshot, Transport};

/// What became of a published snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishReport {
    /// Binds that are not served, each with one sentence that says why and what to do. Sorted.
    pub failed: Vec<(BindKey, String)>,
}

/// What a group of listening sockets is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Bind(BindKey),
    Gateway(ObjectKey),
}

#[derive(Debug)]
struct Listening {
    /// One for each round over the workers.
    numbers: Vec<u64>,
    /// Duplicates of the workers' sockets; steered mode only.
    sockets: Vec<TcpListener>,
}

struct Control {
    listening: BTreeMap<Group, Listening>,
    /// Groups of sockets of an earlier process that nobody has taken yet.
    inherited: Vec<Vec<TcpListener>>,
    next_number: u64,
    /// Secrets of session tickets.
    tickets: Arc<TicketKeys>,
    workers: Vec<(UnboundedSender<Command>, JoinHandle<()>)>,
    log: Option<access_log::Writer>,
}

/// The handle of the data plane.
pub struct Proxy {
    shared: Arc<Shared>,
    workers: usize,
    seed: u64,
    mode: Mode,
    max_segment: Option<u32>,
    ready_endpoint: Option<SocketAddr>,
    open_udp: Box<OpenUdp>,
    control: Mutex<Control>,
}

impl Proxy {
    /// Starts the workers; nothing is listened on until the first snapshot.
    ///
    /// # Errors
    /// If the access log cannot be opened or a thread not be started.
    pub fn start(settings: ProxySettings, stats: Arc<Stats>) -> Result<Self, StartError> {
        let workers = settings.workers.max(1);
        let shared = Arc::new(Shared {
            live: ArcSwap::default(),
            stats,
            timers: settings.timers,
            draining: AtomicBool::new(false),
            beats: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            ready: settings.ready,
            tags: settings.tags,
            sessions: settings.sessions,
            held: settings.held,
            headroom: settings.headroom,
        });
        let tickets = Arc::new(TicketKeys::random().map_err(|_| StartError::Randomness)?);
        let log = access_log::Writer::start(&settings.access_log)?;
        let mut threads = Vec::with_capacity(workers);
        for index in 0..workers {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(StartError::Worker)?;
            let (sender, commands) = tokio::sync::mpsc::unbounded_channel();
            let (shared, log) = (
                Arc::clone(&shared),
                log.as_ref().map(access_log::Writer::sender),
            );
            let seed = settings.seed;
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || worker::run(index, shared, log, seed, &runtime, commands))
                .map_err(StartError::Worker)?;
            threads.push((sender, thread));
        }
        Ok(Self {
            shared,
            workers,
            seed: settings.seed,
            mode: settings.mode,
            max_segment: settings.max_segment,
            ready_endpoint: settings.ready_endpoint,
            open_udp: settings.open_udp,
            control: Mutex::new(Control {
                listening: BTreeMap::new(),
                inherited: Vec::new(),
                next_number: 0,
                tickets,
                workers: threads,
                log,
            }),
        })
    }

    /// Makes a snapshot the running configuration. No connection is closed and no request dropped by it.
    pub fn publish(&self, snapshot: &Snapshot) -> PublishReport {
        let mut datagrams = self.open_datagram_sockets(snapshot);
        let mut control = self.control();
        let previous = self.shared.live.load_full();
        let basis = Basis {
            workers: self.workers,
            seed: self.seed,
            tls: TlsBasis {
                tickets: Arc::clone(&control.tickets),
            },
        };
        let next = Arc::new(Live::build(snapshot, &previous, &basis, Instant::now()));
        self.shared.live.store(Arc::clone(&next));
        for cluster in previous.gone(&next) {
            cluster.close_idle();
        }
        let mut wanted: BTreeMap<Group, Vec<BindKey>> = BTreeMap::new();
        for (key, bind) in &snapshot.binds {
            let group = match (self.mode, key.transport) {
                (Mode::Direct, _) if bind.builtin_ready && self.answers_already(*key) => continue,
                (Mode::Direct, _) | (_, Transport::Udp) => Group::Bind(*key),
                (Mode::Steered, Transport::Tcp) => Group::Gateway(bind.gateway.clone()),
            };
            wanted.entry(group).or_default().push(*key);
        }
        let mut report = PublishReport::default();
        for (group, binds) in &wanted {
            let result = match group {
                Group::Bind(bind) if bind.transport == Transport::Udp => {
                    match datagrams.remove(bind) {
                        Some(sockets) => sockets.map(|sockets| control.relay(*bind, sockets)),
                        None => Ok(()),
                    }
                }
                _ => self.listen(&mut control, group),
            };
            if let Err(why) = result {
                let failed = binds.iter().map(|bind| (*bind, why.clone()));
                report.failed.extend(failed);
            }
        }
        let unwanted: Vec<Group> = control
            .listening
            .keys()
            .filter(|group| !wanted.contains_key(group))
            .cloned()
            .collect();
        for group in unwanted {
            if let Some(listening) = control.listening.remove(&group) {
                for number in listening.numbers {
                    control.tell(|_| Command::Unlisten(number));
                }
            }
        }
        // Nobody's any more: the Gateways that they were for are gone.
        control.inherited.clear();
        report.failed.sort();
        report
    }

    /// Takes the secrets from which session tickets' keys follow; they count from the next snapshot on. Without any,
    /// tickets are good in this process only.
    pub fn set_ticket_keys(&self, keys: TicketKeys) {
        let mut control = self.control();
        if *control.tickets != keys {
            control.tickets = Arc::new(keys);
        }
    }

    /// Whether the readiness endpoint of this process is reached at that address.
    fn answers_already(&self, bind: BindKey) -> bool {
        self.ready_endpoint.is_some_and(|at| {
            let same_family = at.is_ipv4() == bind.address.is_ipv4();
            let covers = at.ip().is_unspecified() && same_family || at.ip() == bind.address;
            covers && at.port() == bind.port
        })
    }

    /// Takes over the listening sockets of an earlier process, group by group: the next snapshot's Gateways are served
    /// from them, and connections that wait in them are answered. Which group a Gateway gets does not matter: the local
    /// address of each connection says what it is for.
    pub fn inherit(&self, groups: impl IntoIterator<Item = Vec<OwnedFd>>) {
        let groups = groups.into_iter().filter(|sockets| !sockets.is_empty());
        let mut control = self.control();
        control
            .inherited
            .extend(groups.map(|sockets| sockets.into_iter().map(TcpListener::from).collect()));
    }

    /// One socket for each worker for every UDP bind that has none yet. Whoever opens them may take its time and may
    /// ask for listeners meanwhile, so nothing is locked.
    fn open_datagram_sockets(
        &self,
        snapshot: &Snapshot,
    ) -> BTreeMap<BindKey, Result<Vec<UdpSocket>, String>> {
        let wanted = snapshot.binds.keys();
        let wanted = wanted.filter(|key| key.transport == Transport::Udp);
        let open: BTreeSet<BindKey> = {
            let control = self.control();
            let is_open = |key: &&BindKey| control.listening.contains_key(&Group::Bind(**key));
            wanted.clone().filter(is_open).copied().collect()
        };
        wanted
            .filter(|key| !open.contains(key))
            .map(|key| {
                let vip = SocketAddr::from(*key);
                let one = |_| (self.open_udp)(vip).map(UdpSocket::from);
                (*key, (0..self.workers).map(one).collect())
            })
            .collect()
    }

    /// Opens a group's sockets unless they are open.
    fn listen(&self, control: &mut Control, group: &Group) -> Result<(), String> {
        if control.listening.contains_key(group) {
            return Ok(());
        }
        let (workers, segment) = (self.workers, self.max_segment);
        let (sockets, bind) = match group {
            Group::Bind(bind) => (acceptor::listen_on(*bind, workers, segment)?, Some(*bind)),
            Group::Gateway(_) => match control.inherited.pop() {
                Some(sockets) => (acceptor::fill_up(sockets, workers, segment), None),
                None => (acceptor::listen_on_loopback(workers, segment)?, None),
            },
        };
        let kept = match group {
            Group::Bind(_) => Vec::new(),
            Group::Gateway(_) => duplicate(&sockets).map_err(|error| {
                format!(
                    "cannot duplicate a listening socket: {error}; check the limit on open files"
                )
            })?,
        };
        let mut numbers = Vec::new();
        let mut sockets = sockets.into_iter().peekable();
        while sockets.peek().is_some() {
            let number = control.number();
            numbers.push(number);
            // An earlier process may have had more workers, or fewer, than this one.
            let round: Vec<TcpListener> = sockets.by_ref().take(workers).collect();
            control.tell_some(round, |socket| Command::Listen(number, socket, bind));
        }
        let listening = Listening {
            numbers,
            sockets: kept,
        };
        control.listening.insert(group.clone(), listening);
        Ok(())
    }

    /// Duplicates of the listening sockets of a Gateway (steered mode), for the SOCKMAP; empty if it has none.
    ///
    /// # Errors
    /// If the process is out of file descriptors.
    pub fn listener_fds(&self, gateway: &ObjectKey) -> io::Result<Vec<OwnedFd>> {
        let control = self.control();
        let listening = control.listening.get(&Group::Gateway(gateway.clone()));
        let sockets = listening.map_or(&[][..], |l| &l.sockets);
        Ok(duplicate(sockets)?.into_iter().map(OwnedFd::from).collect())
    }

    /// Tells sets of listening sockets apart: none that was opened later has the number of one before.
    #[must_use]
    pub fn listeners(&self) -> Vec<u64> {
        let control = self.control();
        let numbers = control.listening.values().flat_map(|l| &l.numbers);
        numbers.copied().collect()
    }

    /// Begins to drain: answers close their connection, idle connections are closed after a few seconds. New
    /// connections are still served.
    pub fn drain(&self) {
        self.shared.draining.store(true, Relaxed);
        self.control().tell(|_| Command::Drain);
    }

    /// The drain is taken back: connections that come from now on are kept open between requests again. Those that were open
    /// meanwhile still end: some of their clients have been told so.
    pub fn end_drain(&self) {
        self.shared.draining.store(false, Relaxed);
    }

    /// How little is left of descriptors and memory.
    #[must_use]
    pub fn scarcity(&self) -> Scarcity {
        self.shared.headroom.scarcity()
    }

    /// Client connections that are open now, exactly.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.shared.stats.open_connections()
    }

    /// UDP sessions that are open now.
    #[must_use]
    pub fn open_sessions(&self) -> usize {
        self.shared.stats.open_sessions()
    }

    /// Rises by one each 50 ms while every worker is alive: the least of their beats.
    #[must_use]
    pub fn beat(&self) -> u64 {
        let beats = self.shared.beats.iter().map(|b| b.load(Relaxed));
        beats.min().unwrap_or(0)
    }

    /// Clusters and endpoints with their live state, in the order of their keys.
    #[must_use]
    pub fn endpoints(&self) -> Vec<ClusterStatus> {
        let live = self.shared.live.load_full();
        let now = Instant::now();
        let mut clusters: Vec<_> = live.clusters.iter().collect();
        clusters.sort_by(|a, b| a.key.cmp(&b.key));
        clusters.into_iter().map(|c| c.status(now)).collect()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.shared.stats
    }

    /// Drains without accepting, waits for open connections at most until `deadline`, and ends all threads.
    pub fn shutdown(&self, deadline: Instant) {
        self.drain();
        let (workers, log) = {
            let mut control = self.control();
            control.tell(|_| Command::Stop(deadline));
            control.listening.clear();
            (std::mem::take(&mut control.workers), control.log.take())
        };
        for (commands, thread) in workers {
            drop(commands);
            // A panic of the worker has been reported by its own thread.
            let _ = thread.join();
        }
        for cluster in self.shared.live.load().all_clusters() {
            cluster.close_idle();
        }
        if let Some(log) = log {
            log.finish();
        }
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Gives the workers the sockets of a UDP bind, one for each.
    fn relay(&mut self, bind: BindKey, sockets: Vec<UdpSocket>) {
        let number = self.number();
        let mut sockets = sockets.into_iter();
        self.tell(|_| {
            let socket = sockets
                .next()
                .expect("one socket was opened for each worker");
            Command::Relay(number, socket, bind)
        });
        let listening = Listening {
            numbers: vec![number],
            sockets: Vec::new(),
        };
        self.listening.insert(Group::Bind(bind), listening);
    }

    fn tell(&self, mut command: impl FnMut(usize) -> Command) {
        for (index, (worker, _)) in self.workers.iter().enumerate() {
            // A worker that is gone has panicked; its missing beat says so.
            let _ = worker.send(command(index));
        }
    }
}

impl Control {
    /// Gives each of the first workers one of `values`.
    fn tell_some<T>(&self, values: Vec<T>, command: impl Fn(T) -> Command) {
        for ((worker, _), value) in self.workers.iter().zip(values) {
            // A worker that is gone has panicked; its missing beat says so.
            let _ = worker.send(command(value));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shutdown(Instant::now());
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

fn duplicate(sockets: &[TcpListener]) -> io::Result<Vec<TcpListener>> {
    sockets.iter().map(TcpListener::try_clone).collect()
}
