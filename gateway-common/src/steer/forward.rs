//! Sending a packet to another node: by MAC rewrite where that is enough, else in the UDP form.

use super::flow::is_mapped;
use super::place::{Place, kind};
use super::tables::{is_from_peer, node};
use super::{Tables, heartbeat, too_big};
use crate::abi::{Counter, Live, LiveConfig, NodeEntry, NodeIndex, config::flag, node_flag};
use crate::checksum;
use crate::encap::{Inner, MAX_HOPS, OVERHEAD_V4, OVERHEAD_V6, Phase, Tunnel, outer_v4, outer_v6};
use crate::hash::of_words;
use crate::packet::{
    EtherType, HopLimit, IP, Ipv6, MACS, Packet, TAG, TimeToLive, Vlan, ethertype,
};
use crate::verdict::Verdict;

/// What a packet goes to another node for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errand {
    /// The node.
    pub(super) to: NodeIndex,
    /// Why it.
    pub(super) purpose: Purpose,
    /// Membership fingerprint of the node where this phase began.
    pub(super) fingerprint: u32,
}

/// Why a packet goes to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The node owns the row.
    Deliver,
    /// The node is next to accept a new connection.
    Inherit,
    /// The node may hold the flow's socket or session.
    Search,
}

impl Errand {
    /// One word below bit 56.
    #[inline(always)]
    pub(super) const fn pack(self) -> u64 {
        let purpose = match self.purpose {
            Purpose::Deliver => 0,
            Purpose::Inherit => 1,
            Purpose::Search => 2,
        };
        self.fingerprint as u64 | (self.to as u64) << 32 | purpose << 48
    }

    /// What [`Self::pack`] packed.
    #[inline(always)]
    pub(super) const fn unpack(word: u64) -> Self {
        Self {
            to: (word >> 32) as NodeIndex,
            purpose: match word >> 48 & 3 {
                0 => Purpose::Deliver,
                1 => Purpose::Inherit,
                _ => Purpose::Search,
            },
            fingerprint: word as u32,
        }
    }
}

/// What sending needs to know of the packet's IP header.
#[derive(Clone, Copy)]
struct Carried {
    /// Bytes from it on.
    length: u32,
    /// DSCP and ECN.
    class: u8,
    /// Hops that its sender left it.
    ttl: u8,
}

/// Sends the packet to another node; arguments as the modules pack them.
#[inline(always)]
pub(super) fn send<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: u64,
    hash: u64,
    errand: u64,
    arrival: u64,
) -> Verdict {
    let (arrival, errand) = (Tunnel::unpack(arrival), Errand::unpack(errand));
    let Some(place) = Place::unpack(place) else {
        return Verdict::drop(Counter::Truncated);
    };
    try_send(packet, tables, place, hash, arrival, errand)
        .unwrap_or(Verdict::drop(Counter::Truncated))
}

#[inline(always)]
fn try_send<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: Place,
    hash: u64,
    arrival: Option<Tunnel>,
    errand: Errand,
) -> Option<Verdict> {
    let config = tables.config()?;
    let Some(entry) =
        node(tables, config, errand.to).filter(|entry| entry.flags() & node_flag::RESOLVED != 0)
    else {
        return Some(Verdict::drop(Counter::NeighbourUnresolved));
    };
    let carried = carried(packet, place)?;
    let (hops, from_peer) = match arrival {
        Some(tunnel) => (tunnel.hops, true),
        None if is_from_peer(packet, tables, config) => (MAX_HOPS - 1, true),
        None => (MAX_HOPS, false),
    };
    if let Some(counter) = spent(tables, config, hops, carried.ttl, errand.purpose) {
        return Some(Verdict::drop(counter));
    }
    let on_link =
        entry.flags() & node_flag::ON_LINK != 0 && config.flags() & flag::ENCAP_ALWAYS == 0;
    let rewrites = errand.purpose == Purpose::Deliver
        && on_link
        && !from_peer
        && has_tags_of(packet, place, entry.vlan());
    let address = entry.address();
    let over_v4 = is_mapped(address);
    let overhead = match (rewrites, over_v4) {
        (true, _) => 0,
        (false, true) => OVERHEAD_V4,
        (false, false) => OVERHEAD_V6,
    };
    let mtu = u32::from(entry.mtu());
    if mtu != 0 && carried.length + overhead > mtu {
        let fits = mtu.saturating_sub(overhead);
        return Some(too_big::answer(
            packet, tables, config, place, from_peer, fits,
        ));
    }
    age(packet, place)?;
    if rewrites {
        packet.write_words(0, entry.macs())?;
        return Some(Verdict::out_of(
            entry.ifindex(),
            packet.ingress(),
            Counter::ForwardL2,
        ));
    }
    let (tunnel, counter) = header(errand, hops - 1);
    let inner = Inner {
        length: carried.length,
        class: carried.class,
        flow: hash,
    };
    Some(
        match encapsulate(packet, config, place, entry, address, &inner, tunnel) {
            Some(()) => Verdict::out_of(entry.ifindex(), packet.ingress(), counter),
            None => Verdict::drop(Counter::AdjustFailed),
        },
    )
}

/// The tunnel header of an errand, and what it is counted as.
#[inline(always)]
const fn header(errand: Errand, hops: u8) -> (Tunnel, Counter) {
    let (phase, counter) = match errand.purpose {
        Purpose::Deliver => (Phase::Delivery, Counter::ForwardUdp),
        Purpose::Inherit => (Phase::SecondChance, Counter::SynHeir),
        Purpose::Search => (Phase::SecondChance, Counter::SecondChance),
    };
    let fingerprint = errand.fingerprint;
    let tunnel = Tunnel {
        hops,
        phase,
        fingerprint,
    };
    (tunnel, counter)
}

/// Why the packet may go no further, if so.
#[inline(always)]
fn spent<T: Tables>(
    tables: &T,
    config: LiveConfig<'_>,
    hops: u8,
    ttl: u8,
    purpose: Purpose,
) -> Option<Counter> {
    if hops == 0 {
        Some(Counter::HopsSpent)
    } else if ttl <= 1 {
        Some(Counter::TtlSpent)
    } else if purpose == Purpose::Search && !heartbeat::take_hop(tables, config) {
        Some(Counter::HopBudget)
    } else {
        None
    }
}

#[inline(always)]
fn carried<P: Packet>(packet: &P, place: Place) -> Option<Carried> {
    if place.is(kind::V6) {
        let [first, second] = packet.words(place.l3)?;
        let [a, b, ..] = first.to_ne_bytes();
        let [high, low, _, hop_limit] = second.to_ne_bytes();
        return Some(Carried {
            length: u16::from_be_bytes([high, low]) as u32 + size_of::<Ipv6>() as u32,
            class: a << 4 | b >> 4,
            ttl: hop_limit,
        });
    }
    let [first, _, third] = packet.words(place.l3)?;
    let [_, tos, high, low] = first.to_ne_bytes();
    let [ttl, ..] = third.to_ne_bytes();
    Some(Carried {
        length: u16::from_be_bytes([high, low]) as u32,
        class: tos,
        ttl,
    })
}

/// Takes the packet's TTL or hop limit down by one.
#[inline(always)]
fn age<P: Packet>(packet: &mut P, place: Place) -> Option<()> {
    if place.is(kind::V6) {
        let at = place.l3 + HopLimit::OFFSET;
        let old = packet.read::<HopLimit>(at)?;
        return packet.write(
            at,
            HopLimit {
                hop_limit: old.hop_limit.wrapping_sub(1),
                ..old
            },
        );
    }
    let at = place.l3 + TimeToLive::OFFSET;
    let old = packet.read::<TimeToLive>(at)?;
    let ttl = old.ttl.wrapping_sub(1);
    let word = |ttl| u16::from_be_bytes([ttl, old.protocol]);
    let sum = checksum::update(u16::from_be_bytes(old.checksum), word(old.ttl), word(ttl));
    packet.write(
        at,
        TimeToLive {
            ttl,
            checksum: sum.to_be_bytes(),
            ..old
        },
    )
}

/// Whether the packet carries the VLAN tag that the node is reached by.
#[inline(always)]
fn has_tags_of<P: Packet>(packet: &P, place: Place, vlan: u16) -> bool {
    if place.l3 == IP {
        return vlan == 0;
    }
    place.l3 == IP + TAG
        && vlan != 0
        && packet.words(MACS).is_some_and(|[word]| {
            let [a, b, high, low] = word.to_ne_bytes();
            [a, b] == ethertype::VLAN && u16::from_be_bytes([high, low]) & Vlan::IDENTIFIER == vlan
        })
}

/// Puts outer headers in the place of the packet's link layer.
#[inline(always)]
fn encapsulate<P: Packet>(
    packet: &mut P,
    config: LiveConfig<'_>,
    place: Place,
    to: Live<'_, NodeEntry>,
    address: [u64; 2],
    inner: &Inner,
    tunnel: Tunnel,
) -> Option<()> {
    let (vlan, over_v4) = (to.vlan(), is_mapped(address));
    let link = if vlan == 0 { IP } else { IP + TAG };
    let (overhead, kind) = if over_v4 {
        (OVERHEAD_V4, ethertype::IPV4)
    } else {
        (OVERHEAD_V6, ethertype::IPV6)
    };
    packet.push(link + overhead - place.l3)?;
    packet.write_words(0, to.macs())?;
    let last = EtherType { kind };
    if vlan == 0 {
        packet.write(MACS, last)?;
    } else {
        let kind = ethertype::VLAN;
        packet.write(MACS, EtherType { kind })?;
        let control = vlan.to_be_bytes();
        packet.write(
            IP,
            Vlan {
                control,
                ..Vlan::default()
            },
        )?;
        packet.write(IP + TAG - 2, last)?;
    }
    let port = config.tunnel_port();
    if over_v4 {
        let from = config.tunnel_source_v4();
        let to = ((address[1] >> 32) as u32).to_le_bytes();
        let outer = outer_v4(from.to_ne_bytes(), to, port, inner, tunnel);
        packet.write(link, outer)
    } else {
        let (from, to) = (of_words(config.tunnel_source()), of_words(address));
        let outer = outer_v6(from, to, port, inner, tunnel);
        packet.write(link, outer)
    }
}
