//! The daemon's own HTTP endpoints: admin, metrics, readiness. They read the shared state and decide nothing.

pub mod api;
pub mod certs;
pub mod early;
pub mod metrics;
pub mod server;
