//! The data plane end to end over loopback sockets: no privileges, every wait bounded.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

#[path = "proxy/answers.rs"]
mod answers;
#[path = "proxy/basic.rs"]
mod basic;
#[path = "proxy/change.rs"]
mod change;
#[path = "proxy/door.rs"]
mod door;
#[path = "proxy/limits.rs"]
mod limits;
#[path = "proxy/scarce.rs"]
mod scarce;
#[path = "proxy/support.rs"]
mod support;
#[path = "proxy/timers.rs"]
mod timers;
#[path = "proxy/udp.rs"]
mod udp;
#[path = "proxy/upstream.rs"]
mod upstream;
