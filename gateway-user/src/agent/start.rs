//! Starts `forebay agent` and ends it: what it loaded, attached and wrote stays in the kernel.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::policy::{Allowed, Policy};
use super::server::{Peers, Server};
use super::session::{Session, Source};
use super::source;
use crate::cli::check::default_interface;
use crate::datapath::{self, Agent, AgentSettings, Lock, NodePrivileges as _};
use crate::drain::Signals;
use crate::file::read::phrase;
use crate::k8s::{self, Ranges};
use crate::l4::address_of;
use crate::settings::agent::Settings;

/// Why the agent could not start or go on. Each is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The kernel half cannot be set up.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The directory of manifests cannot be read.
    #[error("--config {dir} cannot be read: {why}; give a directory of manifests", dir = .0.display(), why = .1)]
    Config(PathBuf, String),
    /// There is no API server to talk to.
    #[error(transparent)]
    Kubernetes(#[from] k8s::Error),
    /// The socket cannot be opened.
    #[error("--socket {path} cannot be opened: {why}; give a path in a directory that this user may write to", path = .0.display(), why = .1)]
    Socket(PathBuf, String),
    /// The system refuses a thread, a runtime or the signals.
    #[error("the agent cannot run: {0}; check the limits on processes and open files")]
    Runtime(#[from] io::Error),
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// See [`AgentError`].
pub fn run(settings: &Settings) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(settings))
}

async fn serve(settings: &Settings) -> Result<(), AgentError> {
    // Signals have their default action while it waits.
    let lock = Lock::of_pins(&settings.bpffs)?;
    let mut signals = Signals::new()?;
    let ranges = Ranges::default();
    let session = open(settings, lock.clone(), &ranges)?;
    give_up_privileges();
    if settings.kubernetes {
        ranges.follow()?;
    }
    let (stop, stopped) = UnixStream::pair()?;
    let peers = Peers {
        uids: settings.allow_uid.clone(),
        gids: settings.allow_gid.clone(),
    };
    let server = Server::bind(
        &settings.socket,
        peers,
        settings.keep_listeners,
        stopped,
        session,
    )
    .map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => "another agent answers there".to_owned(),
            _ => phrase(&error),
        };
        AgentError::Socket(settings.socket.clone(), why)
    })?;
    let (end, mut ended) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("agent".into())
        .spawn(move || {
            // Nobody waits any more only while the agent stops.
            drop(end.send(server.serve()));
        })?;
    tracing::info!(socket = %settings.socket.display(), "ready");
    let result = tokio::select! {
        () = signals.next() => {
            drop(stop);
            ended.await
        }
        result = &mut ended => result,
    };
    // A panic of the thread has been reported by itself, and shows as a missing result here.
    drop(thread.join());
    result.unwrap_or_else(|_| Err(io::Error::other("its thread has ended")))?;
    tracing::info!("stopped; programs, tables and routes stay");
    Ok(())
}

/// What the agent goes on with: tables, routes, neighbours and announcements. Loading the programs takes CAP_PERFMON
/// too, and whoever starts it as root gives it everything; none of that is there any more when the first peer speaks.
/// CAP_NET_BIND_SERVICE stays if it was given: UDP sockets on ports below 1024 are opened here, for VIPs that the rules allow.
/// Called before there is a second thread: capabilities belong to threads.
fn give_up_privileges() {
    let kept = CapabilitySet::BPF
        | CapabilitySet::NET_ADMIN
        | CapabilitySet::NET_RAW
        | CapabilitySet::NET_BIND_SERVICE;
    let result = capabilities(None).and_then(|sets| {
        let left = CapabilitySets {
            effective: sets.effective & kept,
            permitted: sets.permitted & kept,
            inheritable: sets.inheritable & kept,
        };
        set_capabilities(None, left)
    });
    if let Err(error) = result {
        tracing::warn!(%error, "the agent keeps more capabilities than it needs");
    }
}

/// Loads and attaches everything, and puts the rules beside it.
fn open(settings: &Settings, lock: Lock, ranges: &Ranges) -> Result<Session, AgentError> {
    let mut allowed = Allowed {
        ranges: settings.vips.clone(),
        ..Allowed::default()
    };
    let mut reader: Option<Source> = None;
    if let Some(directory) = settings.config.clone() {
        let read =
            source::read(&directory).map_err(|why| AgentError::Config(directory.clone(), why))?;
        allowed.ranges.extend(read.ranges);
        allowed.addresses = read.addresses;
        reader = Some(Box::new(move || source::read(&directory).ok()));
    }
    if settings.kubernetes {
        let ranges = ranges.clone();
        reader = Some(Box::new(move || source::of_cluster(&ranges)));
    }
    let mut interfaces = settings.interfaces.clone();
    if interfaces.is_empty() {
        interfaces.push(default_interface().ok_or(datapath::Error::NoDefaultInterface)?);
    }
    let agent_settings = AgentSettings {
        interfaces,
        mode: settings.mode,
        bpffs: settings.bpffs.clone(),
        forward: settings.forward,
        probe_port: settings.probe_port,
    };
    let agent = Agent::open_locked(&agent_settings, lock)?;
    let shared = datapath::open_shared(&settings.bpffs)?;
    if settings.kubernetes {
        // An agent before this one has judged them. The API server may be away now, and they are being served.
        let vips = agent.image().vips.into_keys();
        allowed
            .addresses
            .extend(vips.map(|key| address_of(key.address)));
    }
    let policy = Policy {
        allowed,
        remedy: remedy(settings.kubernetes),
        reserved: settings.reserved_ports.clone(),
        tunnel_port: settings.tunnel_port,
        probe_port: settings.probe_port,
        ephemeral: ephemeral_ports(),
    };
    Ok(Session::new(
        Box::new(agent),
        shared,
        settings.forward,
        policy,
        reader,
        Instant::now(),
    ))
}

/// Where addresses are added that may be VIPs.
const fn remedy(kubernetes: bool) -> &'static str {
    if kubernetes {
        "add it to an AddressPool of the cluster, or to --vips of `forebay agent`"
    } else {
        "add it to --vips of `forebay agent`, or to an AddressPool or Gateway of its --config"
    }
}

/// The range from which the kernel chooses ports in this network namespace; its default where that cannot be read.
fn ephemeral_ports() -> std::ops::RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let numbers: Vec<u16> = text
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect();
    match numbers.as_slice() {
        [low, high] => *low..=*high,
        _ => 32_768..=60_999,
    }
}
