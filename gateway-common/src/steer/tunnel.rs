//! Packets out of the tunnel: only from peers, only to our own address, only for VIPs.

use super::flow::{is_mapped, length as length_of};
use super::place::{Place, kind};
use super::{Tables, is_for_us};
use crate::abi::{Counter, LiveConfig};
use crate::checksum;
use crate::encap::{OVERHEAD_V4, OVERHEAD_V6, Tunnel, TunnelHeader};
use crate::hash::words;
use crate::packet::{Ethernet, IP, Ipv4, Ipv6, Outer, Packet, TAG, Udp, Vlan, ethertype, mapped};
use crate::verdict::Verdict;

/// Opens a packet of our tunnel: takes its outer headers off, all but the link layer. What they said, packed, or a packed
/// verdict.
#[inline(always)]
pub(super) fn open<T: Tables>(packet: &mut T::Packet, tables: &T, place: Place) -> u64 {
    let malformed = Verdict::drop(Counter::TunnelMalformed);
    if !tables
        .config()
        .is_some_and(|config| is_for_us(packet, config))
    {
        return Verdict::pass(Counter::OtherHost).pack();
    }
    let Some(sender) = sender(packet, place) else {
        return malformed.pack();
    };
    let [first, second] = words(sender);
    if tables.call_peer_address(first, second) == 0 {
        return Verdict::drop(Counter::PeerUnknown).pack();
    }
    let Some(tunnel) = decapsulate(packet, place) else {
        return malformed.pack();
    };
    tables.count(Counter::Decapsulated.slot());
    tunnel.pack()
}

/// The source address of a packet, IPv4-mapped for IPv4.
#[inline(always)]
pub(super) fn sender<P: Packet>(packet: &P, place: Place) -> Option<[u8; 16]> {
    Some(if place.is(kind::V6) {
        packet.read::<Ipv6>(place.l3)?.source
    } else {
        mapped(packet.read::<Ipv4>(place.l3)?.source)
    })
}

/// The port of a UDP packet to our own tunnel's address. What cannot be told (a fragment, options) is none.
#[inline(always)]
pub(super) fn own_port<P: Packet>(
    packet: &P,
    config: LiveConfig<'_>,
    place: Place,
) -> Option<[u8; 2]> {
    let own = if place.is(kind::V6) {
        let target = packet.longs(place.l3 + Ipv6::ADDRESSES + 16);
        let own = config.tunnel_source();
        target.is_some_and(|[a, b]| (u64::from_le(a) ^ own[0]) | (u64::from_le(b) ^ own[1]) == 0)
            && place.l4 == place.l3 + size_of::<Ipv6>() as u32
    } else {
        let target = packet.words(place.l3 + Ipv4::ADDRESSES + 4);
        let own = config.tunnel_source_v4();
        target.is_some_and(|[target]| target == own)
            && own != 0
            && place.l4 == place.l3 + size_of::<Ipv4>() as u32
    };
    if !own || place.unfit() {
        return None;
    }
    let [ports] = packet.words(place.l4)?;
    let [_, _, a, b] = ports.to_ne_bytes();
    // Last, since it is rarely asked: an address of IPv6 may end like the IPv4 address that the packet is for.
    (place.is(kind::V6) != is_mapped(config.tunnel_source())).then_some([a, b])
}

/// Takes the outer headers off; `None` if they, or the inner IP header, cannot be read.
#[inline(always)]
fn decapsulate<P: Packet>(packet: &mut P, place: Place) -> Option<Tunnel> {
    let (overhead, length, class) = if place.is(kind::V6) {
        let ip = packet.read::<Ipv6>(place.l3)?;
        let length = length_of(packet, place.l3, ip.payload_length, size_of::<Ipv6>());
        (OVERHEAD_V6, length, ip.traffic_class())
    } else {
        let ip = packet.read::<Ipv4>(place.l3)?;
        let length = length_of(packet, place.l3, ip.total_length, 0);
        (OVERHEAD_V4, length, ip.tos)
    };
    let udp = packet.read::<Udp>(place.l4)?;
    let header = packet.read::<TunnelHeader>(place.l4 + size_of::<Udp>() as u32)?;
    let tunnel = Tunnel::parse(header)?;
    // Of packets that the stack put together, both fields may be zero.
    let says = u16::from_be_bytes(udp.length) as u32;
    if place.l4 - place.l3 + says != length && (says != 0 || packet.segment() == 0) {
        return None;
    }
    let inner_at = place.l3 + overhead;
    // Both versions are known by the same four bits.
    let inner_v6 = packet.read::<Vlan>(inner_at)?.control[0] >> 4 == 6;
    let inner_length = if inner_v6 {
        let ip = packet.read::<Ipv6>(inner_at)?;
        length_of(packet, inner_at, ip.payload_length, size_of::<Ipv6>())
    } else {
        let ip = packet.read::<Ipv4>(inner_at)?;
        if ip.version_ihl >> 4 != 4 {
            return None;
        }
        length_of(packet, inner_at, ip.total_length, 0)
    };
    if length < overhead || inner_length > length - overhead || packet.len() < place.l3 + length {
        return None;
    }
    let outer = Outer {
        bytes: overhead,
        v6: place.is(kind::V6),
        inner_v6,
        vlan: 0,
    };
    strip(packet, place, outer)?;
    mark(packet, place.l3, inner_v6, class)?;
    Some(tunnel)
}

/// Takes the outer headers off; the link layer with its tags stays in front.
#[inline(always)]
fn strip<P: Packet>(packet: &mut P, place: Place, outer: Outer) -> Option<()> {
    let kind = if outer.inner_v6 {
        ethertype::IPV6
    } else {
        ethertype::IPV4
    };
    let ethernet = packet.read::<Ethernet>(0)?;
    let tags = (place.l3 - IP) / TAG;
    let first = if tags > 0 {
        Some(packet.read::<Vlan>(IP)?)
    } else {
        None
    };
    let second = if tags > 1 {
        Some(packet.read::<Vlan>(IP + TAG)?)
    } else {
        None
    };
    packet.peel(place.l3, outer)?;
    match (first, second) {
        (None, _) => packet.write(0, Ethernet { kind, ..ethernet }),
        (Some(first), None) => {
            packet.write(0, ethernet)?;
            packet.write(IP, Vlan { kind, ..first })
        }
        (Some(first), Some(second)) => {
            packet.write(0, ethernet)?;
            packet.write(IP, first)?;
            packet.write(IP + TAG, Vlan { kind, ..second })
        }
    }
}

/// Carries what routers marked on the outer header over to the inner one (RFC 6040, 4.2). `None` for a mark of congestion
/// on a packet whose ends do not know marks: it has to be dropped.
#[inline(always)]
fn mark<P: Packet>(packet: &mut P, at: u32, v6: bool, outer_class: u8) -> Option<()> {
    if v6 {
        let ip = packet.read::<Ipv6>(at)?;
        let class = ip.traffic_class();
        let marks = marks(class, outer_class)?;
        if marks == class & MARKS {
            return Some(());
        }
        let marked = ip.with_traffic_class(class & !MARKS | marks);
        packet.write(at, marked)?;
        packet.changed(ip.version_class_label, marked.version_class_label);
        return Some(());
    }
    let ip = packet.read::<Ipv4>(at)?;
    let marks = marks(ip.tos, outer_class)?;
    if marks == ip.tos & MARKS {
        return Some(());
    }
    let tos = ip.tos & !MARKS | marks;
    let word = |tos| u16::from_be_bytes([ip.version_ihl, tos]);
    let sum = checksum::update(u16::from_be_bytes(ip.checksum), word(ip.tos), word(tos));
    packet.write(
        at,
        Ipv4 {
            tos,
            checksum: sum.to_be_bytes(),
            ..ip
        },
    )
}

/// The bits of ECN in a traffic class (RFC 3168).
const MARKS: u8 = 3;

/// The bits of ECN with which a packet goes on, by its own traffic class and that of its outer header.
#[inline(always)]
const fn marks(inner: u8, outer: u8) -> Option<u8> {
    const NONE: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CONGESTED: u8 = 3;
    let (inner, outer) = (inner & MARKS, outer & MARKS);
    match (inner, outer) {
        (NONE, CONGESTED) => None,
        (ECT_0 | ECT_1, CONGESTED) => Some(CONGESTED),
        (ECT_0, ECT_1) => Some(ECT_1),
        _ => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::marks;

    /// The table of RFC 6040, 4.2; the class's upper bits are of no account.
    #[test]
    fn marks_are_carried_over_as_the_table_says() {
        let inner = |inner: u8| [0, 2, 1, 3].map(|outer| marks(inner | 0xb8, outer | 0x28));
        assert_eq!(inner(0), [Some(0), Some(0), Some(0), None]);
        assert_eq!(inner(2), [Some(2), Some(2), Some(1), Some(3)]);
        assert_eq!(inner(1), [Some(1), Some(1), Some(1), Some(3)]);
        assert_eq!(inner(3), [Some(3), Some(3), Some(3), Some(3)]);
    }
}
