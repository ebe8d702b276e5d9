//! The data plane end to end over loopback sockets: no privileges, no sleeps, every wait bounded.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

#[path = "proxy/basic.rs"]
mod basic;
#[path = "proxy/support.rs"]
mod support;
