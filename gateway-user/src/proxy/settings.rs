//! What a proxy is started with, and why it cannot be.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::acceptor;
use super::access_log::Destination;
use super::downstream::Timers;
use super::headroom::Headroom;
use super::held::Held;
use super::udp::SessionLimits;
use super::worker::Readiness;
use crate::datapath::SessionTags;

/// How connections reach the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Sockets on the Gateway's own addresses (`--datapath off`).
    #[default]
    Direct,
    /// Sockets on loopback ports, to which the kernel program hands connections to VIPs.
    Steered,
}

/// Opens a UDP socket on a VIP, or says in one sentence why it cannot.
pub type OpenUdp = dyn Fn(SocketAddr) -> Result<OwnedFd, String> + Send + Sync;

/// What a proxy is started with.
pub struct ProxySettings {
    /// Worker threads, at least 1.
    pub workers: usize,
    /// How connections reach the proxy.
    pub mode: Mode,
    /// Largest TCP segment, if it must leave room for encapsulation (bytes).
    pub max_segment: Option<u32>,
    /// Limits on slow clients.
    pub timers: Timers,
    /// Where the access log goes.
    pub access_log: Destination,
    /// Differs from node to node: where cursors start.
    pub seed: u64,
    /// Whether this node is ready, for the built-in listener.
    pub ready: Box<Readiness>,
    /// Where this process answers for its readiness itself: no built-in listener is opened on an address that this
    /// one covers, which the system would refuse.
    pub ready_endpoint: Option<SocketAddr>,
    /// Opens the sockets of UDP listeners.
    pub open_udp: Box<OpenUdp>,
    /// Where UDP sessions are told to the kernel, if it steers.
    pub tags: Option<Arc<SessionTags>>,
    /// Bounds on the UDP sessions of each worker.
    pub sessions: SessionLimits,
    /// Where open connections are counted by steering row, if packets are steered.
    pub held: Option<Arc<Held>>,
    /// What is left of descriptors and memory.
    pub headroom: Headroom,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            workers: 1,
            mode: Mode::default(),
            max_segment: None,
            timers: Timers::default(),
            access_log: Destination::default(),
            seed: 0,
            ready: Box::new(|| true),
            ready_endpoint: None,
            open_udp: Box::new(acceptor::open_udp),
            tags: None,
            sessions: SessionLimits::default(),
            held: None,
            headroom: Headroom::default(),
        }
    }
}

/// Why a proxy cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The access log cannot be written.
    #[error("--access-log {path} cannot be opened: {why}; give a file that can be written, stdout or off", path = .path.display())]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// No secret for session tickets.
    #[error("the system gives no random bytes; check that /dev/urandom can be read")]
    Randomness,
    /// No thread or runtime.
    #[error("cannot start a worker: {0}; check the limits on processes and open files")]
    Worker(#[source] io::Error),
}
