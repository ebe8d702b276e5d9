//! The Kubernetes provider: objects watched at the API server, and what Forebay writes there.
//!
//! `watch` turns events into [`crate::translate::Inputs`]; whatever the API server does, what is served stays until something newer has
//! been read completely. Only the holder of the lease writes statuses and objects for Gateways.

pub mod seen;
