//! ARP and neighbour discovery: the announcing node answers for a VIP, nobody else's request is touched.

use super::Tables;
use super::place::{Place, TAGS};
use super::tables::{address_entry, node};
use super::too_big::pseudo;
use crate::abi::{Counter, Live, NodeEntry, node_flag, vip_flag};
use crate::checksum::{add, of_sum};
use crate::hash::words;
use crate::packet::{
    Arp, Ethernet, IP, Icmp, Ipv6, LinkAddress, Neighbour, Packet, TAG, Vlan, ethertype, mapped,
    protocol,
};
use crate::verdict::Verdict;

/// The group of all nodes on the link, and its MAC.
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Bytes of a solicitation or advertisement without options.
const HEADERS: u32 = (size_of::<Icmp>() + size_of::<Neighbour>()) as u32;

/// Answers an ARP request for a VIP that this node announces, with the MAC of its own node entry.
///
/// An announcement (sender and target the same) asks nothing and is left alone, as is a request on an interface
/// other than the own entry's, whose MAC would be a wrong answer.
#[inline(always)]
pub(super) fn arp<T: Tables>(packet: &mut T::Packet, tables: &T) -> Option<Verdict> {
    let at = tagged_arp(packet, tables)?;
    let request = packet.read::<Arp>(at)?;
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
    packet.write(at, reply)?;
    Some(Verdict::transmit(Counter::ArpReply))
}

/// Where the ARP message of a frame begins, behind the tags of a VLAN of this machine.
#[inline(always)]
fn tagged_arp<T: Tables>(packet: &T::Packet, tables: &T) -> Option<u32> {
    let mut kind = packet.read::<Ethernet>(0)?.kind;
    let mut at = IP;
    for _ in 0..TAGS {
        if kind == ethertype::VLAN || kind == ethertype::OUTER_VLAN {
            kind = packet.read::<Vlan>(at)?.kind;
            at += TAG;
        }
    }
    (kind == ethertype::ARP && is_in_own_vlan(packet, tables, at)).then_some(at)
}

/// Whether a frame whose payload begins at `l3` is untagged, or has its outer tag from a VLAN in which this machine takes
/// packets: in others the address may be somebody else's.
#[inline(always)]
fn is_in_own_vlan<T: Tables>(packet: &T::Packet, tables: &T, l3: u32) -> bool {
    if l3 == IP {
        return true;
    }
    let (Some(tag), Some(config)) = (packet.read::<Vlan>(IP), tables.config()) else {
        return false;
    };
    let [a, b, c, d] = config.vlans();
    let vlan = tag.identifier();
    // A tag of 0 has a priority and no VLAN (802.1Q, 9.6).
    vlan == 0 || vlan == a || vlan == b || vlan == c || vlan == d
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

/// Answers a neighbour solicitation (RFC 4861, 7.2.4). A search for duplicates (RFC 4862, 5.4.3), whose sender has no address
/// yet, is answered to all nodes: the address is taken.
#[inline(always)]
pub(super) fn solicited<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: Place,
) -> Option<Verdict> {
    const OPTION: u32 = size_of::<LinkAddress>() as u32;
    const SOLICITED_OVERRIDE: [u8; 4] = [0x60, 0, 0, 0];
    const OVERRIDE: [u8; 4] = [0x20, 0, 0, 0];
    let l3 = place.l3;
    if place.l4 != l3 + size_of::<Ipv6>() as u32 || !is_in_own_vlan(packet, tables, l3) {
        return None;
    }
    let ethernet = packet.read::<Ethernet>(0)?;
    let least = size_of::<Ipv6>() as u32 + HEADERS;
    let ip = packet
        .read::<Ipv6>(l3)
        .filter(|ip| ip.hop_limit == 255 && ip.length() >= least)?;
    let search = words(ip.source) == [0, 0];
    let Neighbour { target } = packet.read(place.l4 + size_of::<Icmp>() as u32)?;
    let own = announcer(packet, tables, target)?;
    // The sender's MAC comes with a multicast question: then ours goes with the answer.
    let with_option = search
        || packet.read::<LinkAddress>(place.l4 + HEADERS).is_some()
            && ip.length() >= least + OPTION;
    let payload = HEADERS + if with_option { OPTION } else { 0 };
    packet.set_len(place.l4 + payload)?;
    packet.write(
        0,
        Ethernet {
            destination: if search {
                ALL_NODES_MAC
            } else {
                ethernet.source
            },
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
        destination: if search { ALL_NODES } else { ip.source },
    };
    packet.write(l3, answer)?;
    let rest = if search { OVERRIDE } else { SOLICITED_OVERRIDE };
    advertise(packet, place.l4, &answer, rest, with_option.then_some(own))?;
    Some(Verdict::transmit(Counter::NeighbourReply))
}

/// Writes the advertisement behind an IPv6 header, with the MAC if one is given; the target stands there already.
#[inline(always)]
fn advertise<P: Packet>(
    packet: &mut P,
    at: u32,
    ip: &Ipv6,
    rest: [u8; 4],
    own: Option<[u8; 6]>,
) -> Option<()> {
    const OWN_OPTION: u8 = 2;
    let payload = u16::from_be_bytes(ip.payload_length) as u32;
    let mut icmp = Icmp {
        kind: Icmp::ADVERTISEMENT,
        code: 0,
        checksum: [0; 2],
        rest,
    };
    let mut sum = add(pseudo(ip, payload), bytemuck::cast::<_, [u32; 2]>(icmp));
    sum = add(sum, bytemuck::cast::<[u8; 16], [u32; 4]>(ip.source));
    if let Some(mac) = own {
        let option = LinkAddress {
            kind: OWN_OPTION,
            length: 1,
            mac,
        };
        sum = add(sum, bytemuck::cast::<_, [u32; 2]>(option));
        packet.write(at + HEADERS, option)?;
    }
    icmp.checksum = of_sum(sum);
    packet.write(at, icmp)
}
