//! Probes by way of a MAC rewrite: does a frame for a VIP with this node's MAC reach it?
//!
//! They come as forwarded packets do, for a VIP and from an address that is no node's, and are known by their signature
//! alone: what is not signed for this node is not looked at further, and dropped only if it is for a VIP. The answer goes
//! to the address that the question names, as an ordinary packet between nodes; if that address is of the other IP
//! version, the headers are made anew. So it says two things: the frame arrives, and it is known to come from a node.

use super::Tables;
use super::flow::is_mapped;
use super::place::{Place, kind};
use super::probe::{Addresses, LENGTH, key_of, peer, sum_v6, turn_frame, turned};
use super::tables::{address_entry, is_from_peer, node};
use crate::abi::{Counter, LiveConfig, fact, vip_flag};
use crate::checksum;
use crate::hash::{Key, of_words, words};
use crate::packet::{EtherType, Ipv4, Ipv6, Packet, Udp, ethertype, mapped, protocol};
use crate::probe::{Counts, Ends, First, PATH, PATH_ANSWER, SIZE, Subject, VERSION, Word, offset};
use crate::verdict::Verdict;

/// Hops that an answer may take.
const TTL: u8 = 64;

/// What becomes of a packet that is for no VIP and its port: only UDP to the port of the probes can be one of them.
#[inline(always)]
pub(super) fn consider<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    place: Place,
) -> Option<Verdict> {
    if place.protocol != protocol::UDP || place.unfit() || place.flow != place.l3 {
        return None;
    }
    let [ports] = packet.words(place.l4)?;
    let [_, _, a, b] = ports.to_ne_bytes();
    if [a, b] != config.probe_port() {
        return None;
    }
    Verdict::unpack(tables.call_path(packet, place.pack()))
}

/// Answers such a probe; `None` for what is none, which is untouched then.
#[inline(always)]
pub(super) fn answer<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: Place,
) -> Option<Verdict> {
    let config = tables.config()?;
    let (v4, v6) = (size_of::<Ipv4>() as u32, size_of::<Ipv6>() as u32);
    if place.l4 != place.l3 + if place.is(kind::V6) { v6 } else { v4 } {
        return None;
    }
    let body = place.l4 + size_of::<Udp>() as u32;
    let udp = packet.read::<Udp>(place.l4)?;
    let first = packet.read::<First>(body + offset::FIRST)?;
    let ends = packet.read::<Ends>(body + offset::ENDS)?;
    let code = packet.read::<Word>(body + offset::CODE)?.bytes;
    let own = tables.fact(fact::NAME_HASH);
    let for_us = own != 0 && u64::from_be_bytes(ends.addressee) == own;
    if udp.length != LENGTH || first.version != VERSION || first.kind != PATH || !for_us {
        return None;
    }
    let refused = Verdict::drop(Counter::ProbeRefused);
    let Some(key) = key_of(packet, tables, config, body, code) else {
        let vip = address_entry(tables, destination(packet, place)?);
        return (vip & vip_flag::USED != 0).then_some(refused);
    };
    Some(match reply(packet, tables, config, place, key) {
        Some(()) => Verdict::transmit(Counter::PathAnswered),
        None => refused,
    })
}

/// The destination in [`words`], IPv4-mapped for IPv4.
#[inline(always)]
fn destination<P: Packet>(packet: &P, place: Place) -> Option<[u64; 2]> {
    if place.is(kind::V6) {
        let [a, b] = packet.longs(place.l3 + Ipv6::ADDRESSES + 16)?;
        return Some([u64::from_le(a), u64::from_le(b)]);
    }
    let [address] = packet.words(place.l3 + Ipv4::ADDRESSES + 4)?;
    Some(words(mapped(address.to_ne_bytes())))
}

/// Makes the answer out of the question; `None` if the asking node is not listed, or the frame is not known to be one of a
/// node: what comes so would be taken for a router's, and its hop not counted.
#[inline(always)]
fn reply<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    place: Place,
    key: Key,
) -> Option<()> {
    if !is_from_peer(packet, tables, config) {
        return None;
    }
    let question = place.l4 + size_of::<Udp>() as u32;
    let sequence = packet.read::<Word>(question + offset::SEQUENCE)?;
    let ends = packet.read::<Ends>(question + offset::ENDS)?;
    let subject = packet.read::<Subject>(question + offset::SUBJECT)?;
    let udp = turned(packet.read::<Udp>(place.l4)?);
    let asker = node(tables, config, peer(tables, subject.address))?.address();
    let over_v4 = is_mapped(asker);
    if over_v4 != is_mapped(config.tunnel_source()) {
        return None;
    }
    let header = if over_v4 {
        size_of::<Ipv4>()
    } else {
        size_of::<Ipv6>()
    };
    let l4 = place.l3 + header as u32;
    let body = l4 + size_of::<Udp>() as u32;
    packet.set_len(body + SIZE as u32)?;
    write_answer(packet, body, sequence, ends, subject)?;
    let bytes = tables
        .call_probe_code(packet, body.into(), key)
        .to_ne_bytes();
    packet.write(body + offset::CODE, Word { bytes })?;
    turn_frame(packet)?;
    // The EtherType before the IP header: Ethernet's own, or that of the last tag.
    let kind_at = place.l3.wrapping_sub(2) & 0x1e;
    let kind = if over_v4 {
        ethertype::IPV4
    } else {
        ethertype::IPV6
    };
    packet.write(kind_at, EtherType { kind })?;
    if over_v4 {
        packet.write(place.l3, ipv4(config, asker))?;
        return packet.write(l4, udp);
    }
    let addresses = Addresses {
        source: of_words(config.tunnel_source()),
        destination: of_words(asker),
    };
    let ip = Ipv6 {
        version_class_label: [0x60, 0, 0, 0],
        payload_length: LENGTH,
        next_header: protocol::UDP,
        hop_limit: TTL,
        source: addresses.source,
        destination: addresses.destination,
    };
    packet.write(place.l3, ip)?;
    sum_v6(packet, l4, addresses, udp)
}

/// Writes the answer, not signed yet.
#[inline(always)]
fn write_answer<P: Packet>(
    packet: &mut P,
    body: u32,
    sequence: Word,
    ends: Ends,
    subject: Subject,
) -> Option<()> {
    let first = First {
        version: VERSION,
        kind: PATH_ANSWER,
        ..First::default()
    };
    let ends = Ends {
        sender: ends.addressee,
        addressee: ends.sender,
    };
    packet.write(body + offset::FIRST, first)?;
    packet.write(body + offset::SEQUENCE, sequence)?;
    packet.write(body + offset::ENDS, ends)?;
    packet.write(body + offset::SUBJECT, subject)?;
    packet.write(body + offset::COUNTS, Counts::default())
}

/// The header of an answer over IPv4.
#[inline(always)]
fn ipv4(config: LiveConfig<'_>, asker: [u64; 2]) -> Ipv4 {
    const TOTAL: usize = size_of::<Ipv4>() + size_of::<Udp>() + SIZE;
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        total_length: (TOTAL as u16).to_be_bytes(),
        fragment: [0x40, 0],
        ttl: TTL,
        protocol: protocol::UDP,
        source: config.tunnel_source_v4().to_ne_bytes(),
        destination: ((asker[1] >> 32) as u32).to_le_bytes(),
        ..Ipv4::default()
    };
    ip.checksum = checksum::ipv4(&ip).to_be_bytes();
    ip
}
