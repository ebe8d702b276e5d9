//! The forwarding decision: what becomes of a packet that arrives on an uplink.
//!
//! One function, generic over the packet and the tables, compiled for the kernel and for the host. What is
//! not for a VIP and not our tunnel leaves it untouched and before any check that could drop it. No state is
//! kept for a TCP flow. Here a packet is only told apart; finding its headers, deciding and sending are in the submodules.
//!
//! Rare work is in functions that are not inlined; they hand back one word, as functions of the kernel's target must.

mod cookie;
mod decide;
mod flow;
mod forward;
mod heartbeat;
mod icmp;
mod neighbour;
pub mod outline;
mod path;
mod place;
mod probe;
mod source;
mod tables;
mod too_big;
mod trace;
mod tunnel;

pub use tables::{Cookie, Headers, Local, Tables, Tuple, Way, find_vip};

use self::decide::Next;
use self::flow::Flow;
use self::place::{NOT_PLAIN, Place, kind};
use crate::abi::{ABI_VERSION, Counter, LiveConfig};
use crate::encap::Tunnel;
use crate::packet::{IP, Ipv4, Ipv6, Packet, ethertype, protocol};
use crate::verdict::Verdict;

/// Decides about a packet, and changes it as the verdict needs.
///
/// The caller counts in the verdict's cell; only what is counted beside it is counted here: [`Counter::Decapsulated`], and the
/// packets of VIPs that have another reason.
#[inline(always)]
pub fn steer<T: Tables>(packet: &mut T::Packet, tables: &T) -> Verdict {
    match consider(packet, tables) {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

/// The decision; an early verdict comes as an error.
///
/// Headers are read again where they are needed, rather than kept: that is cheaper than the stack.
#[inline(always)]
fn consider<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Verdict, Verdict> {
    let config = tables
        .config()
        .filter(|config| config.abi_version() == ABI_VERSION && config.self_index() != 0);
    let config = config.ok_or(Verdict::pass(Counter::NotConfigured))?;
    let foreign = Verdict::pass(Counter::NotOurs);
    // The last two bytes of the source, then the type.
    let [end] = packet.words(IP - 4).ok_or(foreign)?;
    let [first] = packet.words(0).ok_or(foreign)?;
    let [_, _, a, b] = end.to_ne_bytes();
    let ethertype = [a, b];
    // The stack takes no flow from a frame to a group, and a flooded one must not be forwarded by every node.
    let to_group = first.to_ne_bytes()[0] & 1 != 0;
    // Two copies of the way of plain packets, in which offsets are constants, and one for all others.
    let mut known = None;
    if ethertype == ethertype::IPV4 {
        let protocol = place::plain_v4(packet).ok_or(foreign)?;
        let place = Place::plain(size_of::<Ipv4>(), protocol, 0);
        known = (protocol != NOT_PLAIN).then_some(place);
        if is_plain(packet, config, place, to_group) {
            return onward::<T, true>(packet, tables, config, place, None, foreign);
        }
    } else if ethertype == ethertype::IPV6 {
        let protocol = place::plain_v6(packet).ok_or(foreign)?;
        let place = Place::plain(size_of::<Ipv6>(), protocol, kind::V6);
        known = is_steered(protocol).then_some(place);
        if is_plain(packet, config, place, to_group) {
            return onward::<T, true>(packet, tables, config, place, None, foreign);
        }
    } else if ethertype == ethertype::ARP {
        return Err(Verdict::unpack(tables.call_arp(packet)).unwrap_or(foreign));
    } else if ethertype != ethertype::VLAN && ethertype != ethertype::OUTER_VLAN {
        return Err(foreign);
    }
    let tagged = ethertype == ethertype::VLAN || ethertype == ethertype::OUTER_VLAN;
    closer(packet, tables, config, known, to_group, tagged)
}

/// A packet that is not plain, whose place may be `known`.
#[inline(always)]
fn closer<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    known: Option<Place>,
    to_group: bool,
    tagged: bool,
) -> Result<Verdict, Verdict> {
    let mut foreign = Verdict::pass(Counter::NotOurs);
    let Some(mut place) = known.or_else(|| Place::unpack(tables.call_walk(packet))) else {
        // Behind tags it may be ARP.
        let word = if tagged { tables.call_arp(packet) } else { 0 };
        return Err(Verdict::unpack(word).unwrap_or(foreign));
    };
    let mut arrival = None;
    let port = match place.protocol {
        protocol::UDP => tunnel::own_port(packet, config, place),
        _ => None,
    };
    if port == Some(config.tunnel_port()) {
        let word = tables.call_tunnel(packet, place.pack());
        if let Some(verdict) = Verdict::unpack(word) {
            return Err(verdict);
        }
        arrival = Tunnel::unpack(word);
        foreign = Verdict::drop(Counter::TunnelNotVip);
        place = Place::unpack(tables.call_walk(packet)).ok_or(foreign)?;
    } else if port == Some(config.probe_port()) {
        return Err(Verdict::unpack(tables.call_probe(packet, place.pack())).unwrap_or(foreign));
    }
    if place.protocol == icmp_of(place) {
        let word = tables.call_icmp(packet, place.pack(), arrival.is_none());
        if let Some(verdict) = Verdict::unpack(word) {
            return Err(verdict);
        }
        place = Place::unpack(word).ok_or(foreign)?;
    }
    // What lies behind headers that are cut or not walked may be a flow's; whether it is for a VIP is seen all the same.
    let hidden = place.kind & (kind::TOO_MANY | kind::BROKEN) != 0;
    if !is_steered(place.protocol) && !hidden || to_group {
        return Err(foreign);
    }
    onward::<T, false>(packet, tables, config, place, arrival, foreign)
}

/// Whether packets of a protocol have flows.
#[inline(always)]
const fn is_steered(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP)
}

/// Whether a packet whose headers lie in a plain place is neither one of the cluster's own nor one that needs more thought.
#[inline(always)]
fn is_plain<P: Packet>(packet: &P, config: LiveConfig<'_>, place: Place, to_group: bool) -> bool {
    let steered = match place.protocol {
        protocol::TCP => true,
        protocol::UDP => tunnel::own_port(packet, config, place)
            .is_none_or(|port| port != config.tunnel_port() && port != config.probe_port()),
        _ => false,
    };
    steered && !to_group
}

/// Looks for the VIP and decides; `PLAIN` for a packet in a plain place that came out of no tunnel.
#[inline(always)]
fn onward<T: Tables, const PLAIN: bool>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    place: Place,
    arrival: Option<Tunnel>,
    foreign: Verdict,
) -> Result<Verdict, Verdict> {
    let flow = match Flow::of(packet, tables, config, place, foreign) {
        Ok(flow) => flow,
        Err(verdict) if verdict == foreign && arrival.is_none() => {
            return Err(path::consider(packet, tables, config, place).unwrap_or(foreign));
        }
        Err(verdict) => {
            if verdict != foreign && verdict != Verdict::pass(Counter::OtherHost) {
                trace::tell_refused(packet, tables, config, place, verdict);
            }
            return Err(verdict);
        }
    };
    if !is_for_us(packet, config) {
        return Err(Verdict::pass(Counter::OtherHost));
    }
    if config.trace() != 0 {
        let place = place.of_flow(flow.syn);
        let arrival = arrival.map_or(0, Tunnel::pack);
        let vip = u64::from(flow.number) << 32 | u64::from(flow.vip);
        let word = tables.call_traced(packet, place.pack(), flow.hash, vip, arrival);
        if word != 0 {
            let next = Next::unpack(word);
            let verdict = carry_out(packet, tables, place, flow.hash, arrival, next);
            tables.call_told(verdict.pack(), trace::reason(next));
            return Ok(verdict);
        }
    }
    let next = decide::next::<T, PLAIN>(packet, tables, config, place, &flow, arrival);
    let (place, arrival) = (place.of_flow(flow.syn), arrival.map_or(0, Tunnel::pack));
    Ok(carry_out(packet, tables, place, flow.hash, arrival, next))
}

/// Does what was decided about a packet.
#[inline(always)]
fn carry_out<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    mut place: Place,
    hash: u64,
    arrival: u64,
    mut next: Next,
) -> Verdict {
    if next == Next::Cookie {
        let way = tables.call_cookie(packet, place.pack(), arrival == 0) as u32;
        if way != 0 {
            return Verdict::out_of(way, packet.ingress(), Counter::SynCookie);
        }
        place.kind |= kind::NO_COOKIE;
        next = Next::unpack(tables.call_decide(packet, place.pack(), hash, arrival));
    }
    match next {
        Next::Stay(verdict) => verdict,
        Next::Send(errand) => {
            let word = tables.call_send(packet, place.pack(), hash, errand.pack(), arrival);
            Verdict::unpack(word).unwrap_or_else(|| too_big::tell(packet, tables, word))
        }
        Next::Cookie => Verdict::pass(Counter::OwnSyn),
    }
}

/// Whether the frame is for this machine. A switch that has forgotten where a MAC is floods its frames: then only one machine
/// may act on them. Stacks drop what is not for them, as do we who pass it on to ours.
#[inline(always)]
fn is_for_us<P: Packet>(packet: &P, config: LiveConfig<'_>) -> bool {
    let own = config.own_mac();
    let Some([first, second]) = packet.words(0) else {
        return false;
    };
    let to = u32::from_le(first) as u64 | (u32::from_le(second) as u64 & 0xffff) << 32;
    own == 0 || to == own || {
        let [_, a, b, c] = config.own_macs();
        to == a || to == b || to == c
    }
}

/// The ICMP of the packet's IP version.
#[inline(always)]
const fn icmp_of(place: Place) -> u8 {
    if place.is(kind::V6) {
        protocol::ICMPV6
    } else {
        protocol::ICMP
    }
}
