//! HTTP/2, TLS, retries, mirrors and tunnels end to end over loopback sockets, with honest and hostile peers.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]
#![allow(
    clippy::too_many_lines,
    reason = "a scenario is read whole, and its length is no complexity"
)]

#[path = "proxy/protocols/abuse.rs"]
mod abuse;
#[path = "proxy/protocols/downgrade.rs"]
mod downgrade;
#[path = "proxy/protocols/draining.rs"]
mod draining;
#[path = "proxy/protocols/frames.rs"]
mod frames;
#[path = "proxy/protocols/header_out.rs"]
mod header_out;
#[path = "proxy/protocols/honest.rs"]
mod honest;
#[path = "proxy/protocols/mux.rs"]
mod mux;
#[path = "proxy/protocols/origin.rs"]
mod origin;
#[path = "proxy/protocols/retries.rs"]
mod retries;
#[path = "proxy/protocols/rules.rs"]
mod rules;
#[path = "proxy/support.rs"]
#[allow(dead_code, reason = "another test uses the rest")]
mod support;
#[path = "proxy/protocols/tls.rs"]
mod tls;
#[path = "proxy/protocols/websocket.rs"]
mod websocket;

/// Keeps the pace of a slow client or endpoint; never a wait for what the other side does.
pub(crate) async fn pace(time: std::time::Duration) {
    let mut tick = tokio::time::interval(time);
    tick.tick().await;
    tick.tick().await;
}
