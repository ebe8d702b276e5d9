//! The thread that probes the other nodes, and what it shares with the [`super::Driver`].
//!
//! It is a thread of its own: neither a change of the tables nor the control plane delays it. It writes what needs no
//! decision (alive words, and what this node says of itself) and reports the rest; the driver tells it whom to probe.
//! One round is one question to every node, spread over the interval in batches of one system call each.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use gateway_common::abi::{MAX_NODES, NodeIndex, fact};
use gateway_common::hash::Key;
use gateway_common::probe::{PATH_ANSWER, Probe, SIZE, view};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::SharedTables;
use super::batch::{self, MOST, Sockets};
use crate::l4::Time;
use crate::l4::liveness::{Liveness, PeerId, Report, Settings};
use crate::l4::tables::BEAT_LIMIT;

/// Sums the open connections of the rows for which the given function is false.
pub type CountForeign = dyn Fn(&dyn Fn(u32) -> bool) -> u32 + Send;

/// How long what was counted last may be shown while the tables change.
const STALE: Duration = Duration::from_secs(1);

/// How often a stop is looked for.
const STOP_SEEN: Duration = Duration::from_millis(100);

/// A node to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Who and where.
    pub id: PeerId,
    /// Its index in the tables.
    pub index: NodeIndex,
    /// Whether others may hold connections in its place.
    pub episode: bool,
}

/// Whom to probe, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// Own address, index and hash of the name; none before the first list.
    pub own: Option<(IpAddr, NodeIndex, u64)>,
    /// The membership that the rows were written for.
    pub fingerprint: u32,
    /// `--probe-port`.
    pub port: u16,
    /// Key of the probes, then the one before it.
    pub keys: [Key; 2],
    /// The others.
    pub peers: Vec<Target>,
}

/// What driver and prober tell each other.
#[derive(Debug)]
pub struct Link {
    started: Instant,
    targets: ArcSwap<Targets>,
    report: ArcSwap<Report>,
    tables: ArcSwap<SharedTables>,
    /// Odd while rows are being written: what is counted then belongs to no membership.
    generation: AtomicU64,
    gap: AtomicBool,
    stop: AtomicBool,
    /// Port of the socket that answers come to; 0 while there is none.
    port: AtomicU16,
    /// Answers about paths, which the driver asked for, and when they came.
    path_answers: Mutex<Vec<(Probe, Time)>>,
}

impl Link {
    /// Port that answers come to, if there is one.
    #[must_use]
    pub fn reply_port(&self) -> Option<u16> {
        Some(self.port.load(Ordering::Relaxed)).filter(|port| *port != 0)
    }

    /// Answers about paths that have come since this was last asked.
    #[must_use]
    pub fn take_path_answers(&self) -> Vec<(Probe, Time)> {
        let mut answers = self.path_answers.lock();
        std::mem::take(answers.as_deref_mut().unwrap_or(&mut Vec::new()))
    }

    fn put_path_answer(&self, answer: Probe, now: Time) {
        let mut answers = (self.path_answers.lock()).unwrap_or_else(PoisonError::into_inner);
        // Nobody takes them: they are as lost.
        if answers.len() < MAX_NODES as usize {
            answers.push((answer, now));
        }
    }

    /// What the prober knows.
    #[must_use]
    pub fn report(&self) -> Arc<Report> {
        self.report.load_full()
    }

    /// The time that the reports are written in.
    #[must_use]
    pub fn time(&self, now: Instant) -> Time {
        now.saturating_duration_since(self.started)
    }

    /// Other tables from now on.
    pub fn set_tables(&self, tables: SharedTables) {
        self.tables.store(Arc::new(tables));
    }

    /// Whether the tables were ever written for a list of nodes.
    #[must_use]
    pub fn is_programmed(&self) -> bool {
        self.targets.load().own.is_some()
    }

    /// The proxy's heart stood still for so long that others took its new connections. To be called before the kernel
    /// sees it beat again: from then on packets of its rows are passed without a second look. Asks nobody: the
    /// driver, which is told of it, may be busy.
    pub fn after_gap(&self) {
        if let Some((_, index, _)) = self.targets.load().own {
            self.tables.load().doubt_rows_of(index);
            self.gap.store(true, Ordering::SeqCst);
        }
    }

    /// Whether there was such a gap since this was last asked.
    #[must_use]
    pub fn take_gap(&self) -> bool {
        self.gap.swap(false, Ordering::SeqCst)
    }

    /// Rows are about to be written.
    pub fn begin_write(&self) {
        self.generation.fetch_or(1, Ordering::SeqCst);
    }

    /// Rows are written, for this membership.
    pub fn end_write(&self, targets: Targets) {
        self.targets.store(Arc::new(targets));
        let generation = self.generation.load(Ordering::SeqCst);
        self.generation
            .store((generation | 1) + 1, Ordering::SeqCst);
    }
}

/// The running thread; it ends with this handle.
#[derive(Debug)]
pub struct Prober {
    link: Arc<Link>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Starts it in the network namespace of the calling thread. Nobody is probed before the first list.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        settings: Settings,
        tables: SharedTables,
        count: Box<CountForeign>,
    ) -> io::Result<Self> {
        let link = Arc::new(Link {
            started: Instant::now(),
            targets: ArcSwap::default(),
            report: ArcSwap::default(),
            tables: ArcSwap::from_pointee(tables),
            generation: AtomicU64::new(1),
            gap: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            port: AtomicU16::new(0),
            path_answers: Mutex::default(),
        });
        let mut work = Work::new(settings, count, Arc::clone(&link));
        let thread = std::thread::Builder::new()
            .name("prober".into())
            .spawn(move || work.run())?;
        Ok(Self {
            link,
            thread: Some(thread),
        })
    }

    /// What it shares.
    #[must_use]
    pub fn link(&self) -> Arc<Link> {
        Arc::clone(&self.link)
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.link.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by itself.
            let _ended = thread.join();
        }
    }
}

/// What the thread works with.
struct Work {
    settings: Settings,
    tables: Arc<SharedTables>,
    count: Box<CountForeign>,
    link: Arc<Link>,
    targets: Arc<Targets>,
    liveness: Liveness,
    /// Sockets bound to the own address.
    sockets: Option<Sockets>,
    /// Whether a socket could be had the last time; a change is worth a line in the log.
    bound: bool,
    /// Alive words as they were written, by index.
    shown: BTreeMap<NodeIndex, u8>,
    /// Peers that are still to be asked in this round.
    left: Vec<u64>,
    next_batch: Instant,
    rounds: u64,
    /// The last beat, and when it changed.
    beat: (u64, Instant),
    counted_at: Instant,
}

impl Work {
    fn new(settings: Settings, count: Box<CountForeign>, link: Arc<Link>) -> Self {
        let now = Instant::now();
        let tables = link.tables.load_full();
        clear(&tables);
        Self {
            liveness: Liveness::new(settings, seed(), link.time(now)),
            settings,
            tables,
            count,
            targets: Arc::default(),
            link,
            sockets: None,
            bound: true,
            shown: BTreeMap::new(),
            left: Vec::new(),
            next_batch: now,
            rounds: 0,
            beat: (0, now),
            counted_at: now,
        }
    }

    fn run(&mut self) {
        while !self.link.stop.load(Ordering::SeqCst) {
            self.follow_tables();
            self.retarget();
            self.wait();
            // Answers first: what waited while this thread did not run is no silence.
            self.receive();
            self.liveness.advance(self.link.time(Instant::now()));
            if Instant::now() >= self.next_batch {
                if self.left.is_empty() {
                    self.begin_round();
                }
                self.ask_some();
                self.link.report.store(Arc::new(self.liveness.report()));
            }
            self.show();
        }
    }

    /// The privileged side may have made new tables: all is said there again.
    fn follow_tables(&mut self) {
        let tables = self.link.tables.load_full();
        if !Arc::ptr_eq(&tables, &self.tables) {
            self.tables = tables;
            clear(&self.tables);
            self.shown.clear();
            self.targets = Arc::default();
        }
    }

    fn retarget(&mut self) {
        let targets = self.link.targets.load_full();
        if Arc::ptr_eq(&targets, &self.targets) {
            return;
        }
        self.targets = targets;
        let Some((address, _, own)) = self.targets.own else {
            return;
        };
        let peers: Vec<PeerId> = (self.targets.peers.iter())
            .map(|target| target.id.clone())
            .collect();
        self.liveness.set_peers(own, &peers);
        self.forget();
        self.tables.set_fact(fact::NAME_HASH, own);
        if self.sockets.as_ref().is_none_or(|s| s.address != address) {
            self.sockets = None;
            self.link.port.store(0, Ordering::Relaxed);
        }
    }

    /// Sockets at the own address: the other nodes know this one by it.
    fn bind(&mut self) {
        let Some((address, ..)) = self.targets.own.filter(|_| self.sockets.is_none()) else {
            return;
        };
        match Sockets::bind(address) {
            Ok(sockets) => {
                self.link.port.store(sockets.port(), Ordering::Relaxed);
                self.sockets = Some(sockets);
                self.bound = true;
            }
            Err(error) => {
                if std::mem::replace(&mut self.bound, false) {
                    tracing::warn!(
                        %address, %error,
                        "no other node can be probed: the address of this node that its replica names is not on this machine"
                    );
                }
            }
        }
    }

    /// Waits for an answer, for the next batch or for a silence that becomes too long.
    fn wait(&self) {
        let now = Instant::now();
        let due = self.liveness.poll_timeout();
        let due = due.map_or(self.next_batch, |at| self.link.started + at);
        let time = due.min(self.next_batch).saturating_duration_since(now);
        let time = time.min(STOP_SEEN);
        let timeout = Timespec {
            tv_sec: time.as_secs().cast_signed(),
            tv_nsec: time.subsec_nanos().into(),
        };
        let sockets = self.sockets.iter().flat_map(Sockets::both);
        let mut sockets: Vec<_> = sockets
            .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
            .collect();
        // An interrupted wait is a short one.
        let _woken = poll(&mut sockets, Some(&timeout));
    }

    fn receive(&mut self) {
        let [key, previous] = self.targets.keys;
        loop {
            let sockets = self.sockets.iter().flat_map(Sockets::both);
            let batches: Vec<_> = sockets.map(batch::receive::<{ SIZE + 1 }>).collect();
            let full = batches.iter().any(|batch| batch.len() == MOST);
            let now = self.link.time(Instant::now());
            for (bytes, length) in batches.into_iter().flatten() {
                match Probe::open(&bytes[..length], key, previous) {
                    Some(answer) if answer.kind == PATH_ANSWER => {
                        self.link.put_path_answer(answer, now);
                    }
                    Some(answer) => {
                        self.liveness.hear(&answer, now);
                    }
                    None => {}
                }
            }
            if !full {
                return;
            }
        }
    }

    fn begin_round(&mut self) {
        self.bind();
        self.left = self.liveness.peers().map(|peer| peer.name_hash).collect();
        self.rounds += 1;
        self.tables.set_fact(fact::ROUNDS, self.rounds);
        self.count();
    }

    /// Sends one batch, and plans the next: a round takes an interval, however many there are.
    fn ask_some(&mut self) {
        let all = self.liveness.peers().len();
        let batches = u32::try_from(all.div_ceil(MOST).max(1)).unwrap_or(u32::MAX);
        let now = Instant::now();
        let pause = self.settings.interval / batches;
        // What was missed is not caught up.
        self.next_batch = Some(self.next_batch + pause)
            .filter(|next| *next > now)
            .unwrap_or(now + pause);
        let asked = self.left.split_off(self.left.len().saturating_sub(MOST));
        let Some(sockets) = &self.sockets else {
            return;
        };
        let time = self.link.time(now);
        let mut well = Vec::with_capacity(asked.len());
        let mut peers = Vec::with_capacity(asked.len());
        let mut datagrams = Vec::with_capacity(asked.len());
        for peer in asked {
            let Some(target) = (self.targets.peers.iter()).find(|t| t.id.name_hash == peer) else {
                continue;
            };
            let key = self.liveness.key_for(peer, self.targets.keys);
            if let Some(question) = self.liveness.ask(peer, time) {
                let to = SocketAddr::new(target.id.address, self.targets.port);
                datagrams.push((to, bytemuck::bytes_of(&question.sign(key)).to_vec()));
                peers.push(peer);
                well.push(self.liveness.answers(peer));
            }
        }
        for (peer, sent) in peers.iter().zip(sockets.send(&datagrams, &well)) {
            self.liveness.sent(*peer, sent);
        }
    }

    /// Counts the foreign sockets of this node, if the rows stand still meanwhile.
    fn count(&mut self) {
        let now = Instant::now();
        let counted = self.counted();
        if let Some((fingerprint, foreign)) = counted {
            let word = u64::from(fingerprint) << 32 | u64::from(foreign);
            self.tables.set_fact(fact::COUNTED, word);
            self.counted_at = now;
        } else if now.saturating_duration_since(self.counted_at) > STALE {
            self.tables.set_fact(fact::COUNTED, 0);
        }
        let beat = self.tables.last_beat();
        if beat != self.beat.0 {
            self.beat = (beat, now);
        }
        let alive = beat != 0 && now.saturating_duration_since(self.beat.1) <= BEAT_LIMIT;
        self.liveness.count_own(counted.filter(|_| alive));
    }

    fn counted(&self) -> Option<(u32, u32)> {
        let generation = self.link.generation.load(Ordering::SeqCst);
        let targets = self.link.targets.load();
        let (_, index, _) = targets.own.filter(|_| generation & 1 == 0)?;
        let foreign = (self.count)(&|row| self.tables.owner(row) == index);
        let unchanged = self.link.generation.load(Ordering::SeqCst) == generation;
        unchanged.then_some((targets.fingerprint, foreign))
    }

    /// Writes the alive words that changed.
    fn show(&mut self) {
        for target in &self.targets.peers {
            let episode = if target.episode { view::EPISODE } else { 0 };
            let bits = self.liveness.alive_bits(target.id.name_hash) | episode;
            if self.shown.insert(target.index, bits).unwrap_or_default() != bits {
                self.tables.set_alive(target.index, bits);
            }
        }
    }

    /// Clears the alive words of nodes that are not listed any more: others will have their indices.
    fn forget(&mut self) {
        let (targets, tables) = (&self.targets, &self.tables);
        self.shown.retain(|index, _| {
            let listed = targets.peers.iter().any(|target| target.index == *index);
            if !listed {
                tables.set_alive(*index, 0);
            }
            listed
        });
    }
}

/// Takes back what an earlier process said of itself and of others: it is not known to be true any more.
fn clear(tables: &SharedTables) {
    for slot in [fact::NAME_HASH, fact::COUNTED, fact::ROUNDS] {
        tables.set_fact(slot, 0);
    }
    for index in 1..MAX_NODES as NodeIndex {
        tables.set_alive(index, 0);
    }
}

/// Where sequences begin: not where an earlier process had them.
pub(super) fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanoseconds = now.map_or(0, |time| time.as_nanos());
    gateway_common::hash::mix(u64::try_from(nanoseconds & u128::from(u64::MAX)).unwrap_or(0))
}
