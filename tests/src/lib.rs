//! Support for the end-to-end scenarios: namespaces, topologies, daemons, backends and clients.

pub mod bench;
pub mod object;
pub mod packet;
