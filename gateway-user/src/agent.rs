//! The privileged half of the daemon as a process of its own, and how the other half talks to it.
//!
//! `forebay agent` holds CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW; `forebay run --agent` holds none and terminates the
//! traffic of strangers. Whatever passes between them is judged by [`policy`], so that a proxy that has been taken over can
//! do no more to its node than misplace the connections of its own VIPs. The border itself is
//! [`crate::datapath::NodePrivileges`]: the agent carries it out in its process, [`client::Remote`] asks for it.

pub mod client;
pub mod limit;
pub mod message;
pub mod policy;
pub mod server;
pub mod session;
pub mod source;
pub mod start;
pub mod wire;

pub use client::Remote;
pub use start::{AgentError, run};
