//! The Kubernetes provider: objects watched at the API server, and what Forebay writes there.
//!
//! `manager` starts and stops watches, `watcher` turns their events into changes, `source` holds the objects for the control
//! task. Whatever the API server does, what is served stays until something newer has been read completely. Only the holder
//! of the lease writes statuses and objects for Gateways.

pub mod discovery;
pub mod health;
pub mod manager;
pub mod raw;
pub mod seen;
pub mod source;
mod start;
pub mod store;
pub mod watcher;

pub use source::Source;
pub use start::{Error, Options, start};
