//! The Kubernetes provider: objects watched at the API server, and what Forebay writes there.
//!
//! `manager` starts and stops watches, `watcher` turns their events into changes, `source` holds the objects for the control
//! task. Whatever the API server does, what is served stays until something newer has been read completely. Only the holder
//! of the lease writes statuses and objects for Gateways.

mod access;
mod cache;
pub mod discovery;
mod ensure;
mod events;
pub mod gateway_objects;
pub mod health;
mod lease;
pub mod manager;
mod pace;
pub mod permissions;
mod queue;
mod ranges;
pub mod raw;
mod reports;
pub mod rights;
pub mod seen;
mod services;
mod shared_keys;
pub mod source;
mod start;
mod status_write;
mod statuses;
pub mod store;
pub mod watcher;
pub mod writer;

pub use access::{Counters, Outcome, What};
pub use events::Remark;
pub use ranges::{Ranges, of_pools};
pub use reports::{NodeReport, Reports};
pub use source::{Meters, Source};
pub(crate) use start::connect;
pub use start::{Error, Options, start};

#[cfg(test)]
mod tests;
