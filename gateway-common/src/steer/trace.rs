//! Telling a tracer what becomes of a packet, and why.
//!
//! Without a tracer a packet pays for a look at one word of the configuration. With one, packets that it did not ask for pay
//! for the filter too, and those that it did are decided here, by the same functions as all others.

use super::Tables;
use super::decide::Next;
use super::flow::ends;
use super::forward::Purpose;
use super::place::{Place, kind};
use crate::abi::row::ROW_NODES;
use crate::abi::trace::{TraceEvent, seen, want, why};
use crate::abi::{Live, LiveConfig, TraceFilter, VipCell, vip_flag};
use crate::hash::{mix, of_words, row_of};
use crate::packet::Packet;
use crate::verdict::Verdict;

/// Decides about a packet of a flow that a tracer wants to know of: the packed [`Next`]; 0 if none wants to. `vip` are flags
/// and, above them, number of its VIP.
///
/// What is known by now is put down elsewhere, and told when it is done: there is no room for it on the stack meanwhile.
#[inline(always)]
pub(super) fn flow<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: u64,
    hash: u64,
    vip: u64,
    arrival: u64,
) -> u64 {
    if tables.call_wanted(packet, place, hash, arrival, 1) == 0 {
        return 0;
    }
    let (flags, number) = (vip as u32, (vip >> 32) as u16);
    let next = if flags & (vip_flag::LOCAL_ONLY | vip_flag::SHARED) != 0 {
        Next::Stay(Verdict::pass_in(VipCell::LocalOnly.cell(number)))
    } else {
        tables.count(VipCell::Other.cell(number));
        Next::unpack(tables.call_decide(packet, place, hash, arrival))
    };
    next.pack()
}

/// Tells the tracer about a packet for a VIP that is refused before its row is looked at.
#[inline(always)]
pub(super) fn refused<T: Tables>(packet: &mut T::Packet, tables: &T, place: Place, verdict: u64) {
    // Instead of the flow's hash, which it does not have: it goes to no other node that would have to agree.
    let hash = match packet.words(place.l4) {
        Some([word]) if !place.unfit() => mix(u64::from(word)),
        _ => 0,
    };
    if tables.call_wanted(packet, place.pack(), hash, 0, 0) != 0 {
        tables.call_told(verdict, u64::from(why::STAYS));
    }
}

/// Tells the tracer about the packet that was put down.
#[inline(always)]
pub(super) fn end<T: Tables>(tables: &T, verdict: u64, why: u64) {
    let mut event = tables.draft();
    event.verdict = verdict;
    event.why = why as u8;
    let hash = event.row;
    event.row = 0;
    if event.seen & seen::ROW != 0 {
        event.row_number = row_of(hash);
        event.row = tables.row(event.row_number).unwrap_or_default().0;
        event.suspects = suspects(tables, event.row);
    }
    tables.tell(&event);
}

/// Puts down what is known of a packet before it is decided about: 1 if a tracer wants to know. With `row` its row too.
#[inline(always)]
pub(super) fn begin<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    place: Place,
    hash: u64,
    arrival: u64,
    row: bool,
) -> u64 {
    let Some(filter) = tables.filter() else {
        return 0;
    };
    let Some((client, vip, ports)) = ends(packet, place) else {
        return 0;
    };
    let share = (hash >> 32) as u32;
    if !takes(filter, client, vip, ports, place.protocol) || share > filter.most() {
        return 0;
    }
    // Last: only those that are asked for pay for a clock.
    let time = tables.clock();
    if time > filter.until() {
        return 0;
    }
    let [a, b, c, d] = ports.to_le_bytes();
    let flag = |of: u8, flag: u8| if place.is(of) { flag } else { 0 };
    let event = TraceEvent {
        time,
        client: of_words(client),
        vip: of_words(vip),
        arrival,
        length: packet.len(),
        ingress: packet.ingress(),
        session: filter.session(),
        client_port: [a, b],
        vip_port: [c, d],
        protocol: place.protocol,
        seen: flag(kind::SYN, seen::SYN)
            | flag(kind::REVERSED, seen::ERROR)
            | flag(kind::FRAGMENT, seen::FRAGMENT)
            | if row { seen::ROW } else { 0 },
        // Until the packet is told about, the hash stands for the row: one function would need too much stack for all.
        row: hash,
        ..TraceEvent::default()
    };
    tables.set_draft(&event);
    1
}

/// Whether a flow is one that the filter takes.
#[inline(always)]
fn takes(
    filter: Live<'_, TraceFilter>,
    client: [u64; 2],
    vip: [u64; 2],
    ports: u32,
    protocol: u8,
) -> bool {
    let same = |a: [u64; 2], b: [u64; 2]| (a[0] ^ b[0]) | (a[1] ^ b[1]) == 0;
    let wants = filter.wants();
    if wants & want::ADDRESS != 0 {
        let address = filter.address();
        if !same(address, client) && !same(address, vip) {
            return false;
        }
    }
    if wants & want::VIP != 0 && !same(filter.vip(), vip) {
        return false;
    }
    let port = u32::from(u16::from_le_bytes(filter.port()));
    let vip_port = u32::from(u16::from_le_bytes(filter.vip_port()));
    let asked = filter.protocol();
    (port == 0 || port == ports & 0xffff || port == ports >> 16)
        && (vip_port == 0 || vip_port == ports >> 16)
        && (asked == 0 || asked == u32::from(protocol))
}

/// Which nodes of a row are suspected of being dead.
#[inline(always)]
fn suspects<T: Tables>(tables: &T, row: u64) -> u8 {
    let mut bits = 0;
    for place in 0..ROW_NODES {
        let node = (row >> (16 * place)) as u16 & 0x7fff;
        if node != 0 && tables.suspect(node) {
            bits |= 1 << place;
        }
    }
    bits
}

/// Why a packet goes where it goes, see [`why`].
#[inline(always)]
pub(super) const fn reason(next: Next) -> u64 {
    let why = match next {
        Next::Stay(_) | Next::Cookie => why::STAYS,
        Next::Send(errand) => match errand.purpose {
            Purpose::Deliver => why::OWNER,
            Purpose::Inherit => why::HEIR,
            Purpose::Search => why::SECOND_CHANCE,
            Purpose::Detour => why::DETOUR,
        },
    };
    why as u64
}

/// What is told about refused packets, as `consider` asks for it.
#[inline(always)]
pub(super) fn tell_refused<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    place: Place,
    verdict: Verdict,
) {
    if config.trace() != 0 {
        tables.call_refused(packet, place.pack(), verdict.pack());
    }
}
