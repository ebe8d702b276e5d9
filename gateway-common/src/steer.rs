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
mod place;
mod probe;
mod tables;
mod too_big;
mod trace;
mod tunnel;

pub use tables::{Cookie, Headers, Local, Tables, Tuple, Way, find_vip};

use self::decide::Next;
use self::flow::Flow;
use self::place::{Place, find, kind};
use crate::abi::{ABI_VERSION, Counter, LiveConfig};
use crate::encap::Tunnel;
use crate::packet::{Ethernet, Packet, ethertype, protocol};
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
    let mut foreign = Verdict::pass(Counter::NotOurs);
    let ethernet = packet.read::<Ethernet>(0).ok_or(foreign)?;
    if ethernet.kind == ethertype::ARP {
        return Err(Verdict::unpack(tables.call_arp(packet)).unwrap_or(foreign));
    }
    let mut place = find(packet, tables, &ethernet).ok_or(foreign)?;
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
    let steered = matches!(place.protocol, protocol::TCP | protocol::UDP);
    // The stack takes no flow from a frame to a group, and a flooded one must not be forwarded by every node.
    let to_group = ethernet.destination[0] & 1 != 0;
    if !steered && !place.is(kind::TOO_MANY) || to_group {
        return Err(foreign);
    }
    let flow = match Flow::of(packet, tables, config, place, foreign) {
        Ok(flow) => flow,
        Err(verdict) => {
            if verdict != foreign {
                trace::tell_refused(packet, tables, config, place, verdict);
            }
            return Err(verdict);
        }
    };
    Ok(decided(packet, tables, config, &flow, arrival))
}

/// What becomes of a packet of a VIP's flow; `arrival` is what the tunnel said that it came out of.
#[inline(always)]
fn decided<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    flow: &Flow,
    arrival: Option<Tunnel>,
) -> Verdict {
    if config.trace() != 0 {
        let (place, arrival) = (flow.place.pack(), arrival.map_or(0, Tunnel::pack));
        let vip = u64::from(flow.number) << 32 | u64::from(flow.vip);
        let word = tables.call_traced(packet, place, flow.hash, vip, arrival);
        if word != 0 {
            let next = Next::unpack(word);
            let verdict = carry_out(packet, tables, || place, flow.hash, arrival, next);
            tables.call_told(verdict.pack(), trace::reason(next));
            return verdict;
        }
    }
    let next = decide::next(packet, tables, config, flow, arrival);
    let (place, arrival) = (|| flow.place.pack(), arrival.map_or(0, Tunnel::pack));
    carry_out(packet, tables, place, flow.hash, arrival, next)
}

/// Does what was decided about a packet, whose packed place is asked for only if it is needed.
#[inline(always)]
fn carry_out<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: impl Fn() -> u64,
    hash: u64,
    arrival: u64,
    next: Next,
) -> Verdict {
    match next {
        Next::Stay(verdict) => verdict,
        Next::Send(errand) => {
            let word = tables.call_send(packet, place(), hash, errand.pack(), arrival);
            Verdict::unpack(word).unwrap_or_else(|| too_big::tell(packet, tables, word))
        }
        Next::Cookie => {
            let word = tables.call_cookie(packet, place(), arrival == 0);
            match word as u32 {
                0 => Verdict::pass(Counter::OwnSyn),
                way => Verdict::out_of(way, packet.ingress(), Counter::SynCookie),
            }
        }
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
