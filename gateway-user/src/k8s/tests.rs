//! The writer against an API server in memory, by a clock that stands still while there is something to do.

mod cache;
mod cluster;
mod events;
mod fake;
mod lease;
mod missing;
mod ranges;
mod reading;
mod reports;
mod rights;
mod scope;
mod services;
mod shared_keys;
mod statuses;
