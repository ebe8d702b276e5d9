//! The thread that owns the kernel's tables: it feeds the datapath driver and beats for the proxy.
//!
//! A change of the tables may block 100 ms, so it happens here and not on the control task. The heartbeat is written
//! here too, from the least beat of all workers: a worker that hangs stops it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;

use gateway_common::abi::SLOTS_PER_GROUP;
use socket2::SockRef;
use tokio::sync::oneshot;

use super::TICK;
use super::view::Shared;
use crate::args::ForwardArg;
use crate::cli::check::default_interface;
use crate::datapath::{
    Agent, AgentSettings, AttachMode, DatapathStatus, Driver, DriverSettings, Error, ForwardMode,
    return_freed_memory,
};
use crate::file::keys::Keys;
use crate::settings::{Datapath, Settings};
use crate::snapshot::{ObjectKey, Snapshot};

/// What the thread is told.
enum Command {
    Snapshot(Arc<Snapshot>, oneshot::Sender<Result<(), String>>),
    Drain,
    Status(oneshot::Sender<DatapathStatus>),
    Stop(oneshot::Sender<()>),
}

/// The handle of the thread.
#[derive(Clone, Debug)]
pub struct Kernel(Sender<Command>);

impl Kernel {
    /// Loads and attaches everything. None with `--datapath off`.
    ///
    /// # Errors
    /// One sentence that names what is missing.
    pub fn open(settings: &Settings, keys: &Keys) -> Result<Option<Driver>, Error> {
        let mode = match settings.datapath {
            Datapath::Off => return Ok(None),
            Datapath::Auto => AttachMode::Auto,
            Datapath::Native => AttachMode::Native,
            Datapath::Generic => AttachMode::Generic,
        };
        let forward = match settings.forward {
            ForwardArg::Auto => ForwardMode::Auto,
            ForwardArg::L2 => ForwardMode::L2,
            ForwardArg::Udp => ForwardMode::Udp,
        };
        let mut interfaces = settings.interfaces.clone();
        if interfaces.is_empty() {
            interfaces.push(default_interface().ok_or(Error::NoDefaultInterface)?);
        }
        let agent = Agent::open(&AgentSettings {
            interfaces,
            mode,
            bpffs: settings.bpffs.clone(),
            forward,
        })?;
        let (low, high) = keys.hash_seed.split_at(8);
        let half = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        let settings = DriverSettings {
            node_name: settings.node_name.clone(),
            hash_key: [half(low), half(high)],
            forward,
            tunnel_port: settings.tunnel_port,
            probe_port: settings.probe_port,
            drain_timeout: settings.drain_timeout,
        };
        Driver::new(Box::new(agent), &settings, Instant::now()).map(Some)
    }

    /// Starts the thread; it ends with [`Kernel::stop`] or the last handle.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(driver: Driver, shared: Arc<Shared>) -> std::io::Result<Self> {
        let (sender, commands) = channel();
        std::thread::Builder::new()
            .name("datapath".into())
            .spawn(move || serve(driver, &shared, &commands))?;
        Ok(Self(sender))
    }

    /// Brings the tables in line with a snapshot whose sockets are open.
    ///
    /// # Errors
    /// What the kernel refused; it is tried again.
    pub async fn publish(&self, snapshot: Arc<Snapshot>) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Snapshot(snapshot, reply));
        answer
            .await
            .unwrap_or_else(|_| Err("the datapath thread has ended".into()))
    }

    /// This node drains by its own decision.
    pub fn drain(&self) {
        self.tell(Command::Drain);
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
        drop(self.0.send(command));
    }
}

fn serve(mut driver: Driver, shared: &Shared, commands: &Receiver<Command>) {
    let tables = driver.shared();
    let mut next_beat = Instant::now();
    let mut failed = None;
    loop {
        let wait = next_beat
            .min(driver.next_tick())
            .saturating_duration_since(Instant::now());
        let result = match commands.recv_timeout(wait) {
            Ok(Command::Snapshot(snapshot, reply)) => {
                let result = publish(&mut driver, shared, &snapshot).map_err(|e| e.to_string());
                // Nobody waits any more only while the daemon stops.
                drop(reply.send(result));
                // Rows are computed in tables that are thrown away; configurations are far between.
                return_freed_memory();
                Ok(())
            }
            Ok(Command::Drain) => driver.set_draining(true, Instant::now()),
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
        let error = result.err().map(|error| error.to_string());
        if let Some(text) = error.as_ref().filter(|_| error != failed) {
            tracing::error!("the kernel tables are not as they should be, trying again: {text}");
        }
        failed = error;
        if Instant::now() >= next_beat {
            tables.beat(shared.proxy.beat());
            next_beat = Instant::now() + TICK;
        }
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
