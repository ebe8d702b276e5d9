//! What the kernel programs and the daemon share: map layout, packet headers, hashing, ranks and the
//! forwarding decision itself.
//!
//! The crate is `no_std`, allocates nothing and depends on `bytemuck` alone, so that the very same source is
//! compiled for the kernel and for the host. It holds no policy (who owns a row is decided in `gateway-user`)
//! and no pointer into a packet (that is `gateway-ebpf`).

#![cfg_attr(not(any(test, feature = "host")), no_std)]

pub mod abi;
pub mod checksum;
pub mod encap;
pub mod fingerprint;
pub mod hash;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod packet;
pub mod probe;
pub mod rendezvous;
pub mod steer;
pub mod verdict;
