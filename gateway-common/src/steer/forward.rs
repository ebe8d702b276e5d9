//! Sending a packet to another node: by MAC rewrite where that is enough, else in the UDP form.

use super::flow::{is_mapped, length};
use super::place::{Place, kind};
use super::tables::{is_from_peer, may_be_from_peer, node};
use super::{Tables, heartbeat, too_big};
use crate::abi::{Counter, Live, LiveConfig, NodeEntry, NodeIndex, Path, config::flag, node_flag};
use crate::checksum;
use crate::encap::{Inner, MAX_HOPS, OVERHEAD_V4, OVERHEAD_V6, Phase, Tunnel, outer_v4, outer_v6};
use crate::hash::of_words;
use crate::packet::{
    HopLimit, IP, Ipv6, MACS, Outer, Packet, TAG, Tcp, TimeToLive, Udp, Vlan, ethertype, protocol,
};
use crate::verdict::Verdict;

/// What a packet goes to another node for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errand {
    /// The node.
    pub(super) to: NodeIndex,
    /// Why it.
    pub(super) purpose: Purpose,
    /// Membership fingerprint of the nodes on the way so far, see [`Tunnel::fingerprint`].
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
    /// The node is the heir of a suspect owner, and may hold the flow.
    Detour,
}

impl Errand {
    /// One word below bit 56.
    #[inline(always)]
    pub(super) const fn pack(self) -> u64 {
        let purpose = match self.purpose {
            Purpose::Deliver => 0,
            Purpose::Inherit => 1,
            Purpose::Search => 2,
            Purpose::Detour => 3,
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
                2 => Purpose::Search,
                _ => Purpose::Detour,
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

/// Sends the packet to another node; arguments as the modules pack them. A packed verdict, or what [`too_big::tell`] is to
/// be told.
#[inline(always)]
pub(super) fn send<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: u64,
    hash: u64,
    errand: u64,
    arrival: u64,
) -> u64 {
    let (arrival, errand) = (Tunnel::unpack(arrival), Errand::unpack(errand));
    let truncated = Verdict::drop(Counter::Truncated);
    let Some(place) = Place::unpack(place) else {
        return truncated.pack();
    };
    match try_send(packet, tables, place, hash, arrival, errand) {
        Some(Sent::Verdict(verdict)) => verdict.pack(),
        Some(Sent::TooBig(word)) => word,
        None => truncated.pack(),
    }
}

/// What became of a packet that was to be sent.
enum Sent {
    /// This.
    Verdict(Verdict),
    /// Its sender is to be told, see [`too_big::tell`].
    TooBig(u64),
}

#[inline(always)]
fn try_send<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: Place,
    hash: u64,
    arrival: Option<Tunnel>,
    errand: Errand,
) -> Option<Sent> {
    let silently = |counter| Some(Sent::Verdict(Verdict::drop(counter)));
    let config = tables.config()?;
    let Some(entry) =
        node(tables, config, errand.to).filter(|entry| entry.flags() & node_flag::RESOLVED != 0)
    else {
        return silently(Counter::NeighbourUnresolved);
    };
    let carried = carried(packet, place)?;
    let (hops, from_peer) = hops(packet, tables, config, arrival);
    if let Some(counter) = spent(tables, config, hops, carried.ttl, errand.purpose) {
        return silently(counter);
    }
    let on_link = entry.flags() & (node_flag::ON_LINK | node_flag::ENCAPSULATE)
        == node_flag::ON_LINK
        && config.flags() & flag::ENCAP_ALWAYS == 0;
    let rewrites = errand.purpose == Purpose::Deliver
        && on_link
        && !from_peer
        && has_tags_of(packet, place, entry.vlan());
    let address = entry.address();
    let overhead = overhead(rewrites, address);
    let mtu = u32::from(entry.mtu());
    if mtu != 0 && longest(packet, place, carried.length)? + overhead > mtu {
        let fits = mtu.saturating_sub(overhead);
        if too_big::may_tell(packet, tables, config, place, from_peer) {
            return Some(Sent::TooBig(too_big::pack(place, fits)));
        }
        return silently(Counter::TooBig);
    }
    let (tunnel, path) = header(errand, hops - 1);
    let path = if rewrites { Path::L2 } else { path };
    let to = Target {
        index: errand.to,
        entry,
        address,
        vlan: entry.vlan(),
    };
    go(packet, config, place, to, &carried, hash, tunnel, path).map(Sent::Verdict)
}

/// Delivers a packet that came from no peer to the owner of its row where nothing about it is out of the ordinary: no tag, hops
/// left, not too big, a node that is resolved. `None`, and nothing changed, for all others: [`send`] is for them.
#[inline(always)]
pub(super) fn plain<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    place: Place,
    hash: u64,
    to: NodeIndex,
) -> Option<Verdict> {
    let entry = node(tables, config, to)?;
    let flags = entry.flags();
    let carried = carried(packet, place)?;
    let ordinary = flags & node_flag::RESOLVED != 0
        && entry.vlan() == 0
        && place.l3 == IP
        && carried.ttl > 1
        && packet.segment() == 0
        && !may_be_from_peer(packet, tables, config);
    if !ordinary {
        return None;
    }
    let on_link = flags & (node_flag::ON_LINK | node_flag::ENCAPSULATE) == node_flag::ON_LINK;
    let rewrites = on_link && config.flags() & flag::ENCAP_ALWAYS == 0;
    let mtu = u32::from(entry.mtu());
    let address = entry.address();
    if mtu != 0 && carried.length + overhead(rewrites, address) > mtu {
        return None;
    }
    let tunnel = Tunnel {
        hops: MAX_HOPS - 1,
        phase: Phase::Delivery,
        fingerprint: config.fingerprint(),
    };
    let path = if rewrites { Path::L2 } else { Path::Udp };
    let to = Target {
        index: to,
        entry,
        address,
        vlan: 0,
    };
    go(packet, config, place, to, &carried, hash, tunnel, path)
}

/// A node, and what was already read of its entry.
#[derive(Clone, Copy)]
struct Target<'a> {
    index: NodeIndex,
    entry: Live<'a, NodeEntry>,
    address: [u64; 2],
    vlan: u16,
}

/// Takes a hop off the packet and sends it on its path: by MAC rewrite, else in the UDP form.
#[allow(
    clippy::too_many_arguments,
    reason = "all of them are at hand in registers, and it is inlined twice"
)]
#[inline(always)]
fn go<P: Packet>(
    packet: &mut P,
    config: LiveConfig<'_>,
    place: Place,
    to: Target<'_>,
    carried: &Carried,
    hash: u64,
    tunnel: Tunnel,
    path: Path,
) -> Option<Verdict> {
    age(packet, place)?;
    let (ifindex, cell) = (to.entry.ifindex(), path.cell(to.index));
    if path == Path::L2 {
        packet.write_words(0, to.entry.macs())?;
        return Some(Verdict::out_in(ifindex, packet.ingress(), cell));
    }
    let inner = Inner {
        length: carried.length,
        long: packet.segment() != 0 && carried.length + OVERHEAD_V6 > u32::from(u16::MAX),
        class: carried.class,
        flow: hash,
    };
    if encapsulate(packet, config, place, to, &inner, tunnel).is_none() {
        return Some(Verdict::drop(Counter::AdjustFailed));
    }
    Some(Verdict::out_in(ifindex, packet.ingress(), cell))
}

/// The tunnel header of an errand, and what it is counted as.
#[inline(always)]
const fn header(errand: Errand, hops: u8) -> (Tunnel, Path) {
    let (phase, path) = match errand.purpose {
        Purpose::Deliver => (Phase::Delivery, Path::Udp),
        Purpose::Inherit => (Phase::SecondChance, Path::Heir),
        Purpose::Search => (Phase::SecondChance, Path::SecondChance),
        Purpose::Detour => (Phase::Detour, Path::SecondChance),
    };
    let fingerprint = errand.fingerprint;
    let tunnel = Tunnel {
        hops,
        phase,
        fingerprint,
    };
    (tunnel, path)
}

/// Hops that the packet has left, and whether it comes from a peer.
#[inline(always)]
fn hops<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    arrival: Option<Tunnel>,
) -> (u8, bool) {
    match arrival {
        Some(tunnel) => (tunnel.hops, true),
        None if is_from_peer(packet, tables, config) => (MAX_HOPS - 1, true),
        None => (MAX_HOPS, false),
    }
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

/// Bytes that are added on the way to a node.
#[inline(always)]
const fn overhead(rewrites: bool, address: [u64; 2]) -> u32 {
    if rewrites {
        0
    } else if is_mapped(address) {
        OVERHEAD_V4
    } else {
        OVERHEAD_V6
    }
}

#[inline(always)]
fn carried<P: Packet>(packet: &P, place: Place) -> Option<Carried> {
    if place.is(kind::V6) {
        let [first, second] = packet.words(place.l3)?;
        let [a, b, ..] = first.to_ne_bytes();
        let [high, low, _, hop_limit] = second.to_ne_bytes();
        return Some(Carried {
            length: length(packet, place.l3, [high, low], size_of::<Ipv6>()),
            class: a << 4 | b >> 4,
            ttl: hop_limit,
        });
    }
    let [first, _, third] = packet.words(place.l3)?;
    let [_, tos, high, low] = first.to_ne_bytes();
    let [ttl, ..] = third.to_ne_bytes();
    Some(Carried {
        length: length(packet, place.l3, [high, low], 0),
        class: tos,
        ttl,
    })
}

/// Bytes of the longest packet that goes out, from its IP header on: `length`, or less if the packet is one that is cut
/// into pieces then.
#[inline(always)]
fn longest<P: Packet>(packet: &P, place: Place, length: u32) -> Option<u32> {
    if packet.segment() == 0 {
        return Some(length);
    }
    let headers = match headers(packet, place.pack()) {
        0 => return None,
        bytes => bytes as u32,
    };
    Some(length.min(headers + packet.segment()))
}

/// Bytes of a packet's IP and TCP or UDP headers; 0 if they cannot be read. Not inlined for the sake of the caller's stack.
#[inline(never)]
fn headers<P: Packet>(packet: &P, place: u64) -> u64 {
    let Some(place) = Place::unpack(place) else {
        return 0;
    };
    let last = if place.protocol == protocol::TCP {
        packet.read::<Tcp>(place.l4).map(|tcp| tcp.header_length())
    } else {
        Some(size_of::<Udp>() as u32)
    };
    last.map_or(0, |last| u64::from(place.l4 - place.l3 + last))
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
    to: Target<'_>,
    inner: &Inner,
    tunnel: Tunnel,
) -> Option<()> {
    let address = to.address;
    let over_v4 = is_mapped(address);
    let outer = Outer {
        bytes: if over_v4 { OVERHEAD_V4 } else { OVERHEAD_V6 },
        v6: !over_v4,
        inner_v6: place.is(kind::V6),
        vlan: to.vlan,
    };
    let link = packet.wrap(place.l3, outer)?;
    packet.write_words(0, to.entry.macs())?;
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
