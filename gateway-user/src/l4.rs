//! What the kernel's tables should say, computed from the snapshot and the membership.
//!
//! Pure: no socket, no map, no clock. Time is a [`Time`] that the caller passes in; everything that changes by
//! itself answers `poll_timeout` and is told by `handle_timeout`. Writing the tables is `datapath`'s work.

pub mod diff;
pub mod index;
pub mod liveness;
pub mod membership;
pub mod paths;
pub mod ranks;
pub mod sources;
pub mod tables;
pub mod vips;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Time since a fixed moment of this process; only differences count.
pub type Time = Duration;

/// The 16-byte form of an address in the map ABI: IPv4 is mapped.
#[must_use]
pub fn abi_address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address that [`abi_address`] wrote.
#[must_use]
pub fn address_of(bytes: [u8; 16]) -> IpAddr {
    let v6 = Ipv6Addr::from(bytes);
    v6.to_ipv4_mapped()
        .map_or(IpAddr::V6(v6), |v4: Ipv4Addr| IpAddr::V4(v4))
}

#[cfg(test)]
mod tests;
