//! Telling a sender that its packet is too big for the way to the node it goes to (RFC 1191, RFC 8201).

use super::icmp::answerable;
use super::place::{Place, kind};
use super::{Tables, heartbeat};
use crate::abi::{Counter, LiveConfig, cpu_state};
use crate::checksum::{add, ipv4, of_sum};
use crate::packet::{Ethernet, IP, Icmp, Ipv4, Ipv6, Packet, QuotedV4, QuotedV6, protocol};
use crate::verdict::Verdict;

/// Length of an ICMP header.
const ICMP: u32 = size_of::<Icmp>() as u32;

/// The bit in the first byte of flags and fragment offset.
const DONT_FRAGMENT: u8 = 0x40;

/// Whether the sender of a packet that does not go through may be told; the packet is gone in any case. Nobody is told
/// beyond the budget, nobody whose frame came from a peer (the answer's way back is not known), and nobody for an ICMP
/// error, a fragment, a packet that may be fragmented, one with options, or one that no single machine sent. Those take
/// nothing from the budget.
#[inline(always)]
pub(super) fn may_tell<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    place: Place,
    from_peer: bool,
) -> bool {
    let plain = place.l3 == IP && place.flow == IP && !place.unfit();
    !from_peer
        && plain
        && (place.is(kind::V6) || must_not_be_cut(packet, place))
        && answerable(packet, IP, place.is(kind::V6)).is_some()
        && heartbeat::take(tables, config, cpu_state::TOO_BIG, config.too_big_limit())
}

/// Whether an IPv4 packet without options says so.
#[inline(always)]
fn must_not_be_cut<P: Packet>(packet: &P, place: Place) -> bool {
    place.l4 == IP + size_of::<Ipv4>() as u32
        && packet
            .words(IP + 4)
            .is_some_and(|[word]| word.to_ne_bytes()[2] & DONT_FRAGMENT != 0)
}

/// What [`tell`] needs, in one word whose top bit is clear: `fits` bytes from the IP header on go through.
#[inline(always)]
pub(super) const fn pack(place: Place, fits: u32) -> u64 {
    (place.is(kind::V6) as u64) << 32 | fits as u64
}

/// Answers the packet. Done by the main program, where no other frame lies on the stack.
#[inline(always)]
pub(super) fn tell<T: Tables>(packet: &mut T::Packet, tables: &T, word: u64) -> Verdict {
    if tables.call_too_big(packet, word >> 32 != 0, word as u32) != 0 {
        Verdict::transmit(Counter::TooBigReply)
    } else {
        Verdict::drop(Counter::TooBig)
    }
}

/// Makes the message out of the packet.
#[inline(always)]
pub(super) fn message<P: Packet>(packet: &mut P, v6: bool, fits: u32) -> Option<()> {
    if v6 {
        message_v6(packet, fits)
    } else {
        message_v4(packet, fits)
    }
}

#[inline(always)]
fn message_v4<P: Packet>(packet: &mut P, fits: u32) -> Option<()> {
    const QUOTE: u32 = size_of::<QuotedV4>() as u32;
    const LENGTH: u32 = size_of::<Ipv4>() as u32 + ICMP + QUOTE;
    let ethernet = packet.read::<Ethernet>(0)?;
    let quoted = packet
        .read::<QuotedV4>(IP)
        .filter(|q| q.ip.version_ihl == 0x45 && q.ip.fragment[0] & DONT_FRAGMENT != 0)?;
    packet.set_len(IP + QUOTE)?;
    packet.push(LENGTH - QUOTE)?;
    packet.write(0, back(ethernet))?;
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: (LENGTH as u16).to_be_bytes(),
        identification: [0; 2],
        fragment: [DONT_FRAGMENT, 0],
        ttl: 64,
        protocol: protocol::ICMP,
        checksum: [0; 2],
        source: quoted.ip.destination,
        destination: quoted.ip.source,
    };
    ip.checksum = ipv4(&ip).to_be_bytes();
    packet.write(IP, ip)?;
    let mut icmp = Icmp {
        kind: Icmp::UNREACHABLE,
        code: Icmp::TOO_BIG,
        checksum: [0; 2],
        rest: fits.to_be_bytes(),
    };
    let sum = add(0, bytemuck::cast::<_, [u32; 2]>(icmp));
    icmp.checksum = of_sum(add(sum, bytemuck::cast::<_, [u32; 7]>(quoted)));
    packet.write(IP + size_of::<Ipv4>() as u32, icmp)
}

#[inline(always)]
fn message_v6<P: Packet>(packet: &mut P, fits: u32) -> Option<()> {
    const QUOTE: u32 = size_of::<QuotedV6>() as u32;
    const PAYLOAD: u32 = ICMP + QUOTE;
    let ethernet = packet.read::<Ethernet>(0)?;
    let quoted = packet.read::<QuotedV6>(IP)?;
    packet.set_len(IP + QUOTE)?;
    packet.push(size_of::<Ipv6>() as u32 + ICMP)?;
    packet.write(0, back(ethernet))?;
    let ip = Ipv6 {
        version_class_label: [0x60, 0, 0, 0],
        payload_length: (PAYLOAD as u16).to_be_bytes(),
        next_header: protocol::ICMPV6,
        hop_limit: 64,
        source: quoted.ip.destination,
        destination: quoted.ip.source,
    };
    packet.write(IP, ip)?;
    let mut icmp = Icmp {
        kind: Icmp::V6_TOO_BIG,
        code: 0,
        checksum: [0; 2],
        rest: fits.to_be_bytes(),
    };
    let sum = pseudo(&ip, PAYLOAD);
    let sum = add(sum, bytemuck::cast::<_, [u32; 2]>(icmp));
    icmp.checksum = of_sum(add(sum, bytemuck::cast::<_, [u32; 12]>(quoted)));
    packet.write(IP + size_of::<Ipv6>() as u32, icmp)
}

/// Sum over the pseudo-header of an IPv6 packet whose payload is of `length` bytes (RFC 8200, 8.1).
#[inline(always)]
pub(super) fn pseudo(ip: &Ipv6, length: u32) -> u64 {
    let addresses = add(0, bytemuck::cast::<[u8; 16], [u32; 4]>(ip.source));
    let addresses = add(
        addresses,
        bytemuck::cast::<[u8; 16], [u32; 4]>(ip.destination),
    );
    let rest = [
        u32::from_ne_bytes(length.to_be_bytes()),
        u32::from_ne_bytes([0, 0, 0, ip.next_header]),
    ];
    add(addresses, rest)
}

/// The link-layer header of an answer.
#[inline(always)]
pub(super) const fn back(ethernet: Ethernet) -> Ethernet {
    Ethernet {
        destination: ethernet.source,
        source: ethernet.destination,
        kind: ethernet.kind,
    }
}
