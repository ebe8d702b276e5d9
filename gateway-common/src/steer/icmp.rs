//! ICMP for VIPs: echo is answered, errors belong to the flow of the packet that they quote.

use super::Tables;
use super::flow::is_mapped;
use super::heartbeat::{self, Proxy};
use super::is_for_us;
use super::neighbour;
use super::place::{self, Place, kind};
use super::tables::address_entry;
use super::too_big::back;
use crate::abi::{Counter, vip_flag};
use crate::checksum;
use crate::hash::words;
use crate::packet::{Ethernet, Icmp, Ipv4, Ipv6, Packet, TimeToLive, mapped, protocol};
use crate::verdict::Verdict;

/// Hops of an answer.
const TTL: u8 = 64;

/// Considers an ICMP packet: the packed place of the flow that an error belongs to, or a packed verdict; 0 for what is not
/// ours. Only what came directly is answered.
#[inline(always)]
pub(super) fn consider<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: Place,
    direct: bool,
) -> u64 {
    if place.unfit() {
        return 0;
    }
    let Some(icmp) = packet.read::<Icmp>(place.l4) else {
        return 0;
    };
    let v6 = place.is(kind::V6);
    let (error, echo) = if v6 {
        let error = icmp.kind >= Icmp::V6_UNREACHABLE && icmp.kind <= Icmp::V6_PARAMETER_PROBLEM;
        (error, Icmp::V6_ECHO)
    } else {
        let error = matches!(
            icmp.kind,
            Icmp::UNREACHABLE | Icmp::TIME_EXCEEDED | Icmp::PARAMETER_PROBLEM
        );
        (error, Icmp::ECHO)
    };
    if error {
        return quoted(packet, place, v6).map_or(0, Place::pack);
    }
    if !direct {
        return 0;
    }
    let verdict = if icmp.kind == echo && icmp.code == 0 {
        echoed(packet, tables, place, &icmp)
    } else if v6 && icmp.kind == Icmp::SOLICITATION && icmp.code == 0 {
        neighbour::solicited(packet, tables, place)
    } else {
        None
    };
    verdict.map_or(0, Verdict::pack)
}

/// The place of the packet that an error quotes. It was sent by whom the error is sent to, else it is no error of ours.
#[inline(always)]
fn quoted<P: Packet>(packet: &P, place: Place, v6: bool) -> Option<Place> {
    let at = place.l4 + size_of::<Icmp>() as u32;
    let (inner, same) = if v6 {
        let outer = packet.read::<Ipv6>(place.l3)?;
        let ip = packet.read::<Ipv6>(at).filter(|ip| ip.version() == 6)?;
        let inner = Place {
            l3: at,
            flow: at,
            l4: at + size_of::<Ipv6>() as u32,
            protocol: ip.next_header,
            kind: place.kind,
        };
        let whole = packet.len() >= place.l3 + outer.length();
        (inner, whole && ip.source == outer.destination)
    } else {
        let outer = packet.read::<Ipv4>(place.l3)?;
        let ip = packet.read::<Ipv4>(at)?;
        let whole = packet.len() >= place.l3 + outer.length();
        let same = whole && ip.source == outer.destination;
        (place::v4(packet, at)?, same)
    };
    let steered = matches!(inner.protocol, protocol::TCP | protocol::UDP);
    (same && steered && !inner.unfit()).then_some(Place {
        l3: place.l3,
        kind: inner.kind | kind::REVERSED,
        ..inner
    })
}

/// Answers an echo request to a VIP, as long as the proxy here lives.
#[inline(always)]
fn echoed<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: Place,
    icmp: &Icmp,
) -> Option<Verdict> {
    let config = tables.config()?;
    let v6 = place.is(kind::V6);
    let ethernet = answerable(packet, place.l3, v6)?;
    let vip = if v6 {
        let ip = packet.read::<Ipv6>(place.l3)?;
        let whole = is_whole(packet, place, ip.length(), size_of::<Ipv6>());
        (whole && !is_mapped(words(ip.destination))).then_some(ip.destination)?
    } else {
        let ip = packet.read::<Ipv4>(place.l3)?;
        let whole = is_whole(packet, place, ip.length(), size_of::<Ipv4>());
        whole.then_some(mapped(ip.destination))?
    };
    let flags = address_entry(tables, words(vip));
    if !is_for_us(packet, config) {
        return None;
    }
    let ours = flags & (vip_flag::USED | vip_flag::SHARED) == vip_flag::USED;
    if !ours || heartbeat::proxy(tables, config) == Proxy::Silent {
        return None;
    }
    packet.write(0, back(ethernet))?;
    if v6 {
        let ip = packet.read::<Ipv6>(place.l3)?;
        packet.write(
            place.l3,
            Ipv6 {
                hop_limit: TTL,
                source: ip.destination,
                destination: ip.source,
                ..ip
            },
        )?;
    } else {
        answer_v4(packet, place.l3)?;
    }
    let kind = if v6 {
        Icmp::V6_ECHO_REPLY
    } else {
        Icmp::ECHO_REPLY
    };
    let word = |kind| u16::from_be_bytes([kind, 0]);
    let sum = checksum::update(
        u16::from_be_bytes(icmp.checksum),
        word(icmp.kind),
        word(kind),
    );
    packet.write(
        place.l4,
        Icmp {
            kind,
            checksum: sum.to_be_bytes(),
            ..*icmp
        },
    )?;
    Some(Verdict::transmit(Counter::EchoReply))
}

/// Whether all of an ICMP packet is there, right behind an IP header of `header` bytes: what stands between (options, a
/// routing header) would have to be understood to be answered.
#[inline(always)]
fn is_whole<P: Packet>(packet: &P, place: Place, length: u32, header: usize) -> bool {
    let header = header as u32;
    place.l4 == place.l3 + header
        && length >= header + size_of::<Icmp>() as u32
        && packet.len() >= place.l3 + length
}

/// Turns an IPv4 header round, with a new TTL.
#[inline(always)]
fn answer_v4<P: Packet>(packet: &mut P, at: u32) -> Option<()> {
    let ip = packet.read::<Ipv4>(at)?;
    let old = packet.read::<TimeToLive>(at + TimeToLive::OFFSET)?;
    let word = |ttl| u16::from_be_bytes([ttl, old.protocol]);
    let sum = checksum::update(u16::from_be_bytes(old.checksum), word(old.ttl), word(TTL));
    packet.write(
        at,
        Ipv4 {
            ttl: TTL,
            checksum: sum.to_be_bytes(),
            source: ip.destination,
            destination: ip.source,
            ..ip
        },
    )
}

/// The link-layer header of a packet that may be answered: between single machines that are not the same one (RFC 1122,
/// 3.2.2; RFC 4443, 2.4).
#[inline(always)]
pub(super) fn answerable<P: Packet>(packet: &P, l3: u32, v6: bool) -> Option<Ethernet> {
    let single = if v6 {
        let [a, b, c, d] = packet.longs(l3 + Ipv6::ADDRESSES)?;
        // Not multicast; not unspecified, loopback or mapped.
        a.to_ne_bytes()[0] != 0xff && a != 0 && (a ^ c) | (b ^ d) != 0
    } else {
        let [source, destination] = packet.words(l3 + Ipv4::ADDRESSES)?;
        usable_v4(source.to_ne_bytes()) && source != destination
    };
    packet
        .read::<Ethernet>(0)
        .filter(|e| single && (e.source[0] | e.destination[0]) & 1 == 0)
}

/// Whether an answer can go to an IPv4 source: not "this network", loopback, multicast or beyond.
#[inline(always)]
const fn usable_v4(source: [u8; 4]) -> bool {
    source[0] != 0 && source[0] != 127 && source[0] < 224
}
