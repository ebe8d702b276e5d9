//! The thread that owns the kernel's tables: it feeds the datapath driver and beats for the proxy.
//!
//! A change of the tables may block 100 ms, so it happens here and not on the control task. The heartbeat is written
//! by another thread, from the least beat of all workers: a worker that hangs stops it, an agent that hangs does not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gateway_common::abi::SLOTS_PER_GROUP;
use gateway_common::hash::Key;
use socket2::SockRef;
use tokio::sync::{oneshot, watch};

use super::TICK;
use super::view::Shared;
use crate::agent::Remote;
use crate::args::ForwardArg;
use crate::cli::check::default_interface;
use crate::datapath::prober::Link;
use crate::datapath::{
    Agent, AgentSettings, AttachMode, DatapathStatus, Driver, DriverSettings, Error, ForwardMode,
    Lock, NodePrivileges, SharedTables, return_freed_memory,
};
use crate::file::keys::Keys;
use crate::l4::liveness::Settings as ProbeTimes;
use crate::l4::tables::BEAT_LIMIT;
use crate::proxy::held::Held;
use crate::settings::{Datapath, Settings};
use crate::snapshot::{BindKey, ObjectKey, Snapshot};

/// VIPs that this node may not serve, each with the reason.
pub type Refused = Vec<(BindKey, String)>;

/// A pause between two beats that the kernel may have taken for the end: its limit without what it cannot measure.
const GAP: Duration = BEAT_LIMIT.saturating_sub(Duration::from_millis(20));

/// What the thread is told.
enum Command {
    Snapshot(Arc<Snapshot>, oneshot::Sender<Result<Refused, String>>),
    Drain,
    OpenUdp(SocketAddr, Sender<Result<OwnedFd, String>>),
    ProbeKeys([Key; 2]),
    Status(oneshot::Sender<DatapathStatus>),
    Stop(oneshot::Sender<()>),
}

/// The handle of the thread.
#[derive(Clone, Debug)]
pub struct Kernel {
    commands: Sender<Command>,
    refused: watch::Receiver<Refused>,
}

impl Kernel {
    /// The lock of the pins, if this process is the one that sets them up.
    ///
    /// # Errors
    /// Another process has it.
    pub fn lock(settings: &Settings) -> Result<Option<Lock>, Error> {
        let ours = settings.datapath != Datapath::Off && settings.agent.is_none();
        ours.then(|| Lock::of_pins(&settings.bpffs)).transpose()
    }

    /// Loads and attaches everything, with the [`Self::lock`]. None with `--datapath off`.
    ///
    /// # Errors
    /// One sentence that names what is missing.
    pub fn open(
        settings: &Settings,
        keys: &Keys,
        lock: Option<Lock>,
    ) -> Result<Option<Driver>, Error> {
        let mode = match settings.datapath {
            Datapath::Off => return Ok(None),
            Datapath::Auto => AttachMode::Auto,
            Datapath::Native => AttachMode::Native,
            Datapath::Tcx => AttachMode::Tcx,
            Datapath::Generic => AttachMode::Generic,
        };
        let forward = match settings.forward {
            ForwardArg::Auto => ForwardMode::Auto,
            ForwardArg::L2 => ForwardMode::L2,
            ForwardArg::Udp => ForwardMode::Udp,
        };
        let (privileges, forward) = privileges(settings, mode, forward, lock)?;
        let settings = DriverSettings {
            node_name: settings.node_name.clone(),
            hash_key: keys.hash_key(),
            forward,
            tunnel_port: settings.tunnel_port,
            probe_port: settings.probe_port,
            probe_keys: keys.probe_keys(),
            drain_timeout: settings.drain_timeout,
        };
        Driver::new(privileges, &settings, Instant::now()).map(Some)
    }

    /// Starts the thread, and the one that probes the other nodes; both end with [`Kernel::stop`] or the last handle.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        mut driver: Driver,
        shared: Arc<Shared>,
        probes: ProbeTimes,
        held: Arc<Held>,
    ) -> std::io::Result<Self> {
        driver.start_probing(probes, Box::new(move |own| held.foreign(own)))?;
        let (sender, commands) = channel();
        let (refused, refusals) = watch::channel(Refused::new());
        std::thread::Builder::new()
            .name("datapath".into())
            .spawn(move || serve(driver, &shared, &commands, &refused))?;
        Ok(Self {
            commands: sender,
            refused: refusals,
        })
    }

    /// Brings the tables in line with a snapshot whose sockets are open.
    ///
    /// # Errors
    /// What the kernel refused; it is tried again.
    pub async fn publish(&self, snapshot: Arc<Snapshot>) -> Result<Refused, String> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Snapshot(snapshot, reply));
        answer
            .await
            .unwrap_or_else(|_| Err("the datapath thread has ended".into()))
    }

    /// VIPs that this node may not serve, as they are now: an address of the machine may become a VIP's, or the other way
    /// round, while the snapshot stays.
    #[must_use]
    pub fn refused(&self) -> watch::Receiver<Refused> {
        self.refused.clone()
    }

    /// A UDP socket on a VIP; waits for the thread, which must not wait for the caller.
    ///
    /// # Errors
    /// One sentence that says why there is none.
    pub fn open_udp(&self, vip: SocketAddr) -> Result<OwnedFd, String> {
        let (reply, answer) = channel();
        self.tell(Command::OpenUdp(vip, reply));
        answer
            .recv()
            .unwrap_or_else(|_| Err("the datapath thread has ended".into()))
    }

    /// This node drains by its own decision.
    pub fn drain(&self) {
        self.tell(Command::Drain);
    }

    /// Other keys of the probes; the same again change nothing.
    pub fn set_probe_keys(&self, keys: [Key; 2]) {
        self.tell(Command::ProbeKeys(keys));
    }

    /// What the datapath does right now; none once it has ended.
    pub async fn status(&self) -> Option<DatapathStatus> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Status(reply));
        answer.await.ok()
    }

    /// Withdraws the local routes and ends the thread; the programs go on.
    pub async fn stop(&self) {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Stop(reply));
        // An error says that it has ended already.
        drop(answer.await);
    }

    fn tell(&self, command: Command) {
        // A thread that has ended answers nothing, which whoever waits sees.
        drop(self.commands.send(command));
    }
}

/// The privileges of this process, or an agent's; with an agent, `--forward` is the agent's too.
fn privileges(
    settings: &Settings,
    mode: AttachMode,
    forward: ForwardMode,
    lock: Option<Lock>,
) -> Result<(Box<dyn NodePrivileges>, ForwardMode), Error> {
    if let Some(socket) = &settings.agent {
        let agent = Remote::connect(socket)?;
        let forward = agent.forward();
        return Ok((Box::new(agent), forward));
    }
    let mut interfaces = settings.interfaces.clone();
    if interfaces.is_empty() {
        interfaces.push(default_interface().ok_or(Error::NoDefaultInterface)?);
    }
    let agent_settings = AgentSettings {
        interfaces,
        mode,
        bpffs: settings.bpffs.clone(),
        forward,
        probe_port: settings.probe_port,
    };
    let agent = match lock {
        Some(lock) => Agent::open_locked(&agent_settings, lock)?,
        None => Agent::open(&agent_settings)?,
    };
    Ok((Box::new(agent), forward))
}

fn serve(
    mut driver: Driver,
    shared: &Arc<Shared>,
    commands: &Receiver<Command>,
    refused: &watch::Sender<Refused>,
) {
    let heart = Heart::start(Arc::clone(shared), driver.shared(), driver.link());
    let mut last = None;
    let mut failed = None;
    loop {
        let wait = driver.next_tick().saturating_duration_since(Instant::now());
        let result = match commands.recv_timeout(wait) {
            Ok(Command::Snapshot(snapshot, reply)) => {
                let result = publish(&mut driver, shared, &snapshot);
                last = Some(snapshot);
                let result = result.map(|()| refused_by(&driver));
                // Nobody waits any more only while the daemon stops.
                drop(reply.send(result.map_err(|e| e.to_string())));
                Ok(())
            }
            Ok(Command::Drain) => driver.set_draining(true, Instant::now()),
            Ok(Command::OpenUdp(vip, reply)) => {
                let opened = driver.open_udp(vip).map_err(|error| error.to_string());
                drop(reply.send(opened));
                Ok(())
            }
            Ok(Command::ProbeKeys(keys)) => driver.set_probe_keys(keys, Instant::now()),
            Ok(Command::Status(reply)) => {
                drop(reply.send(driver.status()));
                Ok(())
            }
            Ok(Command::Stop(reply)) => {
                if let Err(error) = driver.shutdown() {
                    tracing::error!("{error}");
                }
                let _nobody_waits = reply.send(());
                return;
            }
            Err(RecvTimeoutError::Timeout) => driver.tick(Instant::now()),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let result = result.and_then(|()| {
            if !driver.take_renewed() {
                return Ok(());
            }
            heart.beat_into(driver.shared());
            last.as_ref()
                .map_or(Ok(()), |snapshot| publish(&mut driver, shared, snapshot))
        });
        refused.send_if_modified(|known| {
            let now = refused_by(&driver);
            let changed = *known != now;
            *known = now;
            changed
        });
        if driver.take_written() {
            // Rows are computed in tables that are thrown away; changes are far between.
            return_freed_memory();
        }
        let error = result.err().map(|error| error.to_string());
        if let Some(text) = error.as_ref().filter(|_| error != failed) {
            tracing::error!("the kernel tables are not as they should be, trying again: {text}");
        }
        failed = error;
    }
}

fn refused_by(driver: &Driver) -> Refused {
    let refused = driver.refused().iter().filter(|(vip, _)| vip.port != 0);
    let refused = refused.map(|(vip, why)| (*vip, why.clone()));
    let unserved = driver.unserved().map(|(vip, why)| (vip, why.to_owned()));
    refused.chain(unserved).collect()
}

/// Writes the heartbeat until it is dropped.
struct Heart {
    tables: Arc<Mutex<SharedTables>>,
    /// Dropped to end the thread.
    _stop: Sender<()>,
}

impl Heart {
    /// A beat says that the tables are ours: there is none before they are written. After a pause that the kernel may
    /// have noticed the other nodes hold connections of our rows, and the rows say so before the kernel sees a beat.
    fn start(shared: Arc<Shared>, tables: SharedTables, link: Option<Arc<Link>>) -> Self {
        let tables = Arc::new(Mutex::new(tables));
        let (stop, stopped) = channel();
        let into = Arc::clone(&tables);
        let mut last = (0, Instant::now());
        let beat = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(TICK) {
                if link.as_ref().is_some_and(|link| !link.is_programmed()) {
                    continue;
                }
                let (value, now) = (shared.proxy.beat(), Instant::now());
                if value != last.0 {
                    if now.saturating_duration_since(last.1) >= GAP {
                        link.iter().for_each(|link| link.after_gap());
                    }
                    last = (value, now);
                }
                let tables = into.lock().unwrap_or_else(PoisonError::into_inner);
                tables.beat(value);
            }
        };
        let started = std::thread::Builder::new()
            .name("heartbeat".into())
            .spawn(beat);
        if let Err(error) = started {
            tracing::error!(%error, "there is no heartbeat: this node gets no new connections; check the limit on processes");
        }
        Self {
            tables,
            _stop: stop,
        }
    }

    /// Other tables from now on.
    fn beat_into(&self, tables: SharedTables) {
        *self.tables.lock().unwrap_or_else(PoisonError::into_inner) = tables;
    }
}

/// Sockets first, then the tables that lead to them.
fn publish(driver: &mut Driver, shared: &Shared, snapshot: &Snapshot) -> Result<(), Error> {
    let mut opened: Vec<OwnedFd> = Vec::new();
    let mut by_group: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    let groups = driver.groups(snapshot);
    for (gateway, group) in &groups {
        for socket in sockets(shared, gateway, *group)? {
            by_group.entry(*group).or_default().push(opened.len());
            opened.push(socket);
        }
    }
    for (group, sockets) in &by_group {
        let sockets = sockets.iter().take(SLOTS_PER_GROUP as usize);
        let sockets: Vec<BorrowedFd<'_>> = sockets.map(|at| opened[*at].as_fd()).collect();
        driver.set_listeners(*group, &sockets)?;
    }
    let now = Instant::now();
    driver.on_snapshot(snapshot, now)?;
    let segment = driver.listener_mss().unwrap_or(0);
    for socket in &opened {
        // 0 takes the kernel's own choice again.
        if let Err(error) = SockRef::from(socket).set_tcp_mss(segment) {
            tracing::warn!(%error, "the segment size of a listening socket cannot be set: uploads may stall while nodes drain");
        }
    }
    driver.set_proxy_alive(true, now)
}

fn sockets(shared: &Shared, gateway: &ObjectKey, group: u16) -> Result<Vec<OwnedFd>, Error> {
    shared
        .proxy
        .listener_fds(gateway)
        .map_err(|error| Error::Listeners {
            group,
            reason: error.to_string(),
        })
}
