//! Work that is done out of line, because it is rare or because several places need it.
//!
//! The kernel verifies a function that it is told of on its own, once, with any arguments: that keeps the whole program
//! within its limits of steps and stack. Such functions take the packet and words and hand back one word; the bodies are
//! here, and [`super::Tables`] names them so that each side calls them in its own way.

use super::place::{self, Place};
use super::{
    Tables, cookie, decide, forward, icmp, neighbour, path, probe, source, tables, too_big, trace,
    tunnel,
};
use crate::abi::{Counter, Row};
use crate::hash::{Key, flow_v6_of};
use crate::packet::Packet;
use crate::verdict::Verdict;

/// Packed `Place` of a packet, found header by header; 0 if it is no IP packet.
#[inline(always)]
pub fn walk<P: Packet>(packet: &P) -> u64 {
    place::walk(packet).map_or(0, Place::pack)
}

/// What becomes of an ARP packet: a packed verdict, 0 if nothing.
#[inline(always)]
pub fn arp<T: Tables>(packet: &mut T::Packet, tables: &T) -> u64 {
    neighbour::arp(packet, tables).map_or(0, Verdict::pack)
}

/// An ICMP packet: the packed place of the flow that it is about, a packed verdict, or 0.
#[inline(always)]
pub fn icmp<T: Tables>(packet: &mut T::Packet, tables: &T, place: u64, direct: bool) -> u64 {
    Place::unpack(place).map_or(0, |place| icmp::consider(packet, tables, place, direct))
}

/// A packet to the tunnel's port: its packed tunnel header, which is off then, or a packed verdict.
#[inline(always)]
pub fn tunnel<T: Tables>(packet: &mut T::Packet, tables: &T, place: u64) -> u64 {
    Place::unpack(place).map_or(0, |place| tunnel::open(packet, tables, place))
}

/// A packet to the port of the probes: a packed verdict.
#[inline(always)]
pub fn probe<T: Tables>(packet: &mut T::Packet, tables: &T, place: u64) -> u64 {
    Place::unpack(place)
        .and_then(|place| probe::answer(packet, tables, place))
        .unwrap_or(Verdict::pass(Counter::NotOurs))
        .pack()
}

/// A packet that may be a probe by way of a MAC rewrite: a packed verdict, 0 if it is none.
#[inline(always)]
pub fn path<T: Tables>(packet: &mut T::Packet, tables: &T, place: u64) -> u64 {
    Place::unpack(place)
        .and_then(|place| path::answer(packet, tables, place))
        .map_or(0, Verdict::pack)
}

/// The code under a key of the probe that begins at an offset of the packet, as its bytes lie; 0 if it is not whole.
#[inline(always)]
pub fn probe_code<P: Packet>(packet: &P, at: u64, key: Key) -> u64 {
    probe::code_of(packet, at, key)
}

/// The decision about a packet whose case is not one of the two plain ones: a packed `decide::Next`.
#[inline(always)]
pub fn decide<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: u64,
    hash: u64,
    arrival: u64,
) -> u64 {
    Place::unpack(place).map_or(0, |place| {
        decide::decide(packet, tables, place, hash, arrival)
    })
}

/// Sends a packet to another node, as a packed errand says; its packed verdict, or what `too_big` is to be told.
#[inline(always)]
pub fn send<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: u64,
    hash: u64,
    errand: u64,
    arrival: u64,
) -> u64 {
    forward::send(packet, tables, place, hash, errand, arrival)
}

/// Decides about a packet that a tracer asked for: a packed `decide::Next`, else 0. Of the VIP flags and number.
#[inline(always)]
pub fn traced<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: u64,
    hash: u64,
    vip: u64,
    arrival: u64,
) -> u64 {
    trace::flow(packet, tables, place, hash, vip, arrival)
}

/// Puts down what a tracer wants to know of a packet: 1 if it does. With `row` other than 0 it has one.
#[inline(always)]
pub fn wanted<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: u64,
    hash: u64,
    arrival: u64,
    row: u64,
) -> u64 {
    Place::unpack(place).map_or(0, |place| {
        trace::begin(packet, tables, place, hash, arrival, row != 0)
    })
}

/// Tells the tracer what became of the packet that was put down: 0.
#[inline(always)]
pub fn told<T: Tables>(tables: &T, verdict: u64, why: u64) -> u64 {
    trace::end(tables, verdict, why);
    0
}

/// Tells the tracer about a packet that is refused with this packed verdict, if it asked for it: 0.
#[inline(always)]
pub fn refused<T: Tables>(packet: &mut T::Packet, tables: &T, place: u64, verdict: u64) -> u64 {
    if let Some(place) = Place::unpack(place) {
        trace::refused(packet, tables, place, verdict);
    }
    0
}

/// What this node's sockets say about a TCP packet; see `decide::held`.
#[inline(always)]
pub fn held<T: Tables>(packet: &mut T::Packet, tables: &T, place: u64) -> u64 {
    Place::unpack(place).map_or(0, |place| decide::held(packet, tables, place))
}

/// Index of the first of a row's other nodes from place `from` on that may take a packet; see `decide::first_from`.
#[inline(always)]
pub fn first<T: Tables>(tables: &T, row: u64, from: u64, or_me: bool, ready: bool) -> u64 {
    u64::from(decide::first_from(tables, Row(row), from, or_me, ready))
}

/// Answers a SYN by a cookie: the interface that the answer leaves by, 0 if there is none.
#[inline(always)]
pub fn cookie<T: Tables>(packet: &mut T::Packet, tables: &T, place: u64, direct: bool) -> u64 {
    Place::unpack(place).map_or(0, |place| {
        u64::from(cookie::reply(packet, tables, place, direct).unwrap_or(0))
    })
}

/// Turns a SYN, all but its link layer, into the SYN-ACK with a packed cookie: 1 if that was possible, else it is as it was.
#[inline(always)]
pub fn syn_ack<P: Packet>(packet: &mut P, v6: bool, cookie: u64) -> u64 {
    u64::from(cookie::syn_ack(packet, v6, cookie).is_some())
}

/// Turns a packet into the message that it is too big: 1 if that was possible.
#[inline(always)]
pub fn too_big<P: Packet>(packet: &mut P, v6: bool, fits: u32) -> u64 {
    u64::from(too_big::message(packet, v6, fits).is_some())
}

/// Flags of the entry of a VIP address, given in two words, and above them the number of its list of sources and its own.
#[inline(always)]
pub fn address<T: Tables>(tables: &T, first: u64, second: u64) -> u64 {
    tables::find_address(tables, [first, second])
}

/// Slot plus 1 of a VIP's entry behind the first slot of its key, given in words as [`tables::find_vip`] does; 0 if there
/// is none.
#[inline(always)]
pub fn vip_beyond<T: Tables>(tables: &T, low: u64, high: u64, last_half: u64, first: u32) -> u64 {
    u64::from(tables::vip_beyond(tables, [low, high], last_half, first))
}

/// [`flow_v6_of`] under this node's key.
#[inline(always)]
pub fn hash_v6<T: Tables>(tables: &T, client: [u64; 2], vip: [u64; 2], last: u64) -> u64 {
    tables
        .config()
        .map_or(0, |config| flow_v6_of(config.hash_key(), client, vip, last))
}

/// Index of the listed node with this address, given in two words; 0 if there is none. Not this node.
#[inline(always)]
pub fn peer_address<T: Tables>(tables: &T, first: u64, second: u64) -> u64 {
    u64::from(tables::peer_at_address(tables, [first, second]))
}

/// Index of the node on our link with this MAC, also of one that is not listed any more; 0 if there is none. Its bytes in order from the lowest on.
#[inline(always)]
pub fn peer_mac<T: Tables>(tables: &T, mac: u64) -> u64 {
    u64::from(tables::peer_with_mac(tables, mac))
}

/// What a list of sources says of an address, given in two words.
#[inline(always)]
pub fn source<T: Tables>(tables: &T, list: u16, first: u64, second: u64) -> u64 {
    u64::from(source::source_says(tables, list, [first, second]))
}
