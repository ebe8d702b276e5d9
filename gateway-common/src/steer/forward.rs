//! Sending a packet to another node: by MAC rewrite where that is enough, else in the UDP form.

use super::{
    Arrival, Flow, Tables, heartbeat,
    tables::{is_peer_mac, node},
};
use crate::abi::{Counter, LiveConfig, NodeEntry, NodeIndex, config::flag, node_flag};
use crate::checksum;
use crate::encap::{self, MAX_HOPS, OVERHEAD, Path, Phase, Tunnel};
use crate::packet::{Ethernet, IP, Ipv4, Packet, v4_of};
use crate::verdict::{Action, Verdict};

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
    /// The node may hold the flow's socket.
    Search,
}

/// Sends the packet to another node.
#[inline(always)]
pub(super) fn send<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    flow: &Flow,
    errand: Errand,
) -> Verdict {
    let Some(entry) =
        node(tables, config, errand.to).filter(|entry| entry.flags & node_flag::RESOLVED != 0)
    else {
        return Verdict::drop(Counter::NeighbourUnresolved);
    };
    let Some(ethernet) = packet.read::<Ethernet>(0) else {
        return Verdict::drop(Counter::Truncated);
    };
    let Some(ip) = packet.read::<Ipv4>(IP) else {
        return Verdict::drop(Counter::Truncated);
    };
    let (hops, from_peer) = match flow.arrival {
        Arrival::Tunnel(tunnel) => (tunnel.hops, true),
        Arrival::Direct if is_peer_mac(tables, config, &ethernet.source) => (MAX_HOPS - 1, true),
        Arrival::Direct => (MAX_HOPS, false),
    };
    if hops == 0 {
        return Verdict::drop(Counter::HopsSpent);
    }
    if ip.ttl <= 1 {
        return Verdict::drop(Counter::TtlSpent);
    }
    if errand.purpose == Purpose::Search && !heartbeat::take_hop(tables, config) {
        return Verdict::drop(Counter::HopBudget);
    }
    let ip = aged(&ip);
    let on_link = entry.flags & node_flag::ON_LINK != 0 && config.flags() & flag::ENCAP_ALWAYS == 0;
    if errand.purpose == Purpose::Deliver && on_link && !from_peer {
        return rewrite(packet, &entry, &ethernet, &ip);
    }
    let (phase, counter) = match errand.purpose {
        Purpose::Deliver => (Phase::Delivery, Counter::ForwardUdp),
        Purpose::Inherit => (Phase::SecondChance, Counter::SynHeir),
        Purpose::Search => (Phase::SecondChance, Counter::SecondChance),
    };
    let path = Path {
        destination_mac: entry.mac,
        source_mac: entry.source_mac,
        source: config.tunnel_source_v4(),
        destination: v4_of(&entry.address),
        port: config.tunnel_port(),
    };
    let tunnel = Tunnel {
        hops: hops - 1,
        phase,
        fingerprint: errand.fingerprint,
    };
    let outer = encap::outer(&path, &ip, flow.hash, tunnel);
    let written = packet
        .write(IP, ip)
        .and_then(|()| packet.push(OVERHEAD))
        .and_then(|()| packet.write(0, outer));
    match written {
        Some(()) => Verdict {
            action: way_out(packet, &entry),
            counter,
        },
        None => Verdict::drop(Counter::AdjustFailed),
    }
}

/// The header with its TTL taken down by one.
#[inline(always)]
fn aged(ip: &Ipv4) -> Ipv4 {
    let word = |ttl| u16::from_be_bytes([ttl, ip.protocol]);
    let ttl = ip.ttl.wrapping_sub(1);
    let sum = checksum::update(u16::from_be_bytes(ip.checksum), word(ip.ttl), word(ttl));
    Ipv4 {
        ttl,
        checksum: sum.to_be_bytes(),
        ..*ip
    }
}

#[inline(always)]
fn rewrite<P: Packet>(packet: &mut P, to: &NodeEntry, ethernet: &Ethernet, ip: &Ipv4) -> Verdict {
    let ethernet = Ethernet {
        destination: to.mac,
        source: to.source_mac,
        ..*ethernet
    };
    match packet
        .write(0, ethernet)
        .and_then(|()| packet.write(IP, *ip))
    {
        Some(()) => Verdict {
            action: way_out(packet, to),
            counter: Counter::ForwardL2,
        },
        None => Verdict::drop(Counter::Truncated),
    }
}

#[inline(always)]
fn way_out<P: Packet>(packet: &P, to: &NodeEntry) -> Action {
    if to.ifindex == packet.ingress() {
        Action::Transmit
    } else {
        Action::Redirect {
            ifindex: to.ifindex,
        }
    }
}
