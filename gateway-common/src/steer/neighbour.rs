//! ARP and neighbour discovery: the announcing node answers for a VIP, nobody else's request is touched.

use super::Tables;
use super::place::Place;
use super::tables::{address_entry, node};
use super::too_big::pseudo;
use crate::abi::{Counter, Live, NodeEntry, node_flag, vip_flag};
use crate::checksum::{add, of_sum};
use crate::hash::words;
use crate::packet::{
    Arp, Ethernet, IP, Icmp, Ipv6, LinkAddress, Neighbour, Packet, mapped, protocol,
};
use crate::verdict::Verdict;

/// Answers an ARP request for a VIP that this node announces, with the MAC of its own node entry.
///
/// An announcement (sender and target the same) asks nothing and is left alone, as is a request on an interface
/// other than the own entry's, whose MAC would be a wrong answer.
#[inline(always)]
pub(super) fn arp<T: Tables>(packet: &mut T::Packet, tables: &T) -> Option<Verdict> {
    let request = packet.read::<Arp>(IP)?;
    let asks = request.kind == Arp::ETHERNET_IPV4 && request.operation == Arp::REQUEST;
    if !asks || request.sender == request.target {
        return None;
    }
    let own = announcer(packet, tables, mapped(request.target))?;
    let reply = Arp {
        operation: Arp::REPLY,
        sender_mac: own,
        sender: request.target,
        target_mac: request.sender_mac,
        target: request.sender,
        ..request
    };
    packet.write(
        0,
        Ethernet {
            destination: request.sender_mac,
            source: own,
            ..packet.read(0)?
        },
    )?;
    packet.write(IP, reply)?;
    Some(Verdict::transmit(Counter::ArpReply))
}

/// The own MAC, if this node speaks for the address and the request came in on its uplink.
#[inline(always)]
fn announcer<T: Tables>(packet: &T::Packet, tables: &T, address: [u8; 16]) -> Option<[u8; 6]> {
    let config = tables.config()?;
    if address_entry(tables, words(address)) & (vip_flag::ANNOUNCE | vip_flag::SHARED)
        != vip_flag::ANNOUNCE
    {
        return None;
    }
    node(tables, config, config.self_index() as u16)
        .filter(|own| own.flags() & node_flag::RESOLVED != 0 && own.ifindex() == packet.ingress())
        .map(Live::<NodeEntry>::source_mac)
}

/// Answers a neighbour solicitation (RFC 4861, 7.2.4). A search for duplicates, whose sender has no address yet, is left
/// alone.
#[inline(always)]
pub(super) fn solicited<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: Place,
) -> Option<Verdict> {
    const HEADERS: u32 = (size_of::<Icmp>() + size_of::<Neighbour>()) as u32;
    const OPTION: u32 = size_of::<LinkAddress>() as u32;
    const SOLICITED_OVERRIDE: [u8; 4] = [0x60, 0, 0, 0];
    const OWN_OPTION: u8 = 2;
    if place.l3 != IP || place.l4 != IP + size_of::<Ipv6>() as u32 {
        return None;
    }
    let ethernet = packet.read::<Ethernet>(0)?;
    let least = size_of::<Ipv6>() as u32 + HEADERS;
    let ip = packet
        .read::<Ipv6>(IP)
        .filter(|ip| ip.hop_limit == 255 && ip.source != [0; 16] && ip.length() >= least)?;
    let Neighbour { target } = packet.read(place.l4 + size_of::<Icmp>() as u32)?;
    let own = announcer(packet, tables, target)?;
    // The sender's MAC comes with a multicast question: then ours goes with the answer.
    let with_option =
        packet.read::<LinkAddress>(place.l4 + HEADERS).is_some() && ip.length() >= least + OPTION;
    let payload = HEADERS + if with_option { OPTION } else { 0 };
    packet.set_len(place.l4 + payload)?;
    packet.write(
        0,
        Ethernet {
            destination: ethernet.source,
            source: own,
            kind: ethernet.kind,
        },
    )?;
    let answer = Ipv6 {
        version_class_label: [0x60, 0, 0, 0],
        payload_length: (payload as u16).to_be_bytes(),
        next_header: protocol::ICMPV6,
        hop_limit: 255,
        source: target,
        destination: ip.source,
    };
    packet.write(IP, answer)?;
    let mut icmp = Icmp {
        kind: Icmp::ADVERTISEMENT,
        code: 0,
        checksum: [0; 2],
        rest: SOLICITED_OVERRIDE,
    };
    let mut sum = add(
        pseudo(&answer, payload),
        bytemuck::cast::<_, [u32; 2]>(icmp),
    );
    sum = add(sum, bytemuck::cast::<[u8; 16], [u32; 4]>(target));
    if with_option {
        let option = LinkAddress {
            kind: OWN_OPTION,
            length: 1,
            mac: own,
        };
        sum = add(sum, bytemuck::cast::<_, [u32; 2]>(option));
        packet.write(place.l4 + HEADERS, option)?;
    }
    icmp.checksum = of_sum(sum);
    packet.write(place.l4, icmp)?;
    Some(Verdict::transmit(Counter::NeighbourReply))
}
