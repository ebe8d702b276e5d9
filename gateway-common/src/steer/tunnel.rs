//! Packets out of the tunnel: only from peers, only to our own address, only for VIPs.

use super::{Tables, tables::is_peer_address};
use crate::abi::{Counter, LiveConfig};
use crate::checksum;
use crate::encap::{OVERHEAD, Outer, Tunnel};
use crate::packet::{IP, Ipv4, L4, Packet, Udp, mapped};
use crate::verdict::Verdict;

/// Opens a packet of our tunnel: takes its outer headers off and returns what they said.
///
/// What is not for our tunnel's address and port, or cannot be told (a fragment, options), passes untouched.
#[inline(always)]
pub(super) fn open<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    ip: &Ipv4,
) -> Result<Tunnel, Verdict> {
    let foreign = Verdict::pass(Counter::NotOurs);
    let own = config.tunnel_source_v4();
    if ip.destination != own || own == [0; 4] || ip.version_ihl != 0x45 || ip.is_fragment() {
        return Err(foreign);
    }
    packet
        .read::<Udp>(L4)
        .filter(|udp| udp.destination == config.tunnel_port())
        .ok_or(foreign)?;
    if !is_peer_address(tables, config, &mapped(ip.source)) {
        return Err(Verdict::drop(Counter::PeerUnknown));
    }
    let opened = decapsulate(packet, ip).ok_or(Verdict::drop(Counter::TunnelMalformed))?;
    tables.count(Counter::Decapsulated);
    Ok(opened)
}

/// Takes the outer headers off; `None` if they, or the inner IPv4 header, cannot be read.
#[inline(always)]
fn decapsulate<P: Packet>(packet: &mut P, ip: &Ipv4) -> Option<Tunnel> {
    let outer = packet.read::<Outer>(0)?;
    let inner = packet.read::<Ipv4>(IP + OVERHEAD)?;
    let tunnel = Tunnel::parse(outer.tunnel)?;
    let payload = ip.length().wrapping_sub(OVERHEAD);
    let fits =
        packet.len() >= IP + ip.length() && ip.length() >= OVERHEAD && inner.length() <= payload;
    if !fits || inner.version_ihl >> 4 != 4 {
        return None;
    }
    packet.pop(OVERHEAD)?;
    packet.write(0, outer.ethernet)?;
    let inner = with_congestion_mark(inner, ip.tos);
    packet.write(IP, inner)?;
    Some(tunnel)
}

/// Carries a router's congestion mark on the outer header over to the inner one (RFC 6040).
#[inline(always)]
fn with_congestion_mark(inner: Ipv4, outer_tos: u8) -> Ipv4 {
    const MARKED: u8 = 3;
    if outer_tos & MARKED != MARKED || inner.tos & MARKED == 0 {
        return inner;
    }
    let tos = inner.tos | MARKED;
    let word = |tos| u16::from_be_bytes([inner.version_ihl, tos]);
    let sum = checksum::update(
        u16::from_be_bytes(inner.checksum),
        word(inner.tos),
        word(tos),
    );
    Ipv4 {
        tos,
        checksum: sum.to_be_bytes(),
        ..inner
    }
}
