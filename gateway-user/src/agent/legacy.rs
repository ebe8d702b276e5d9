//! The border's IPv4-only methods, as long as it has them: the protocol itself knows both families.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::message::Refusal;

/// The addresses as the border takes them.
pub(super) fn v4(addresses: BTreeSet<IpAddr>) -> Result<BTreeSet<Ipv4Addr>, Refusal> {
    addresses.into_iter().map(one_v4).collect()
}

/// One address as the border takes it.
pub(super) fn one_v4(address: IpAddr) -> Result<Ipv4Addr, Refusal> {
    match address {
        IpAddr::V4(v4) => Ok(v4),
        IpAddr::V6(v6) => Err(Refusal::denied(format!(
            "{v6} is IPv6: the kernel programs of this version read IPv4 only"
        ))),
    }
}
