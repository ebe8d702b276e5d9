//! Nodes found by their index, or by what their packets carry: an address or a MAC.

use super::Tables;
use crate::abi::{Live, LiveConfig, MAX_NODES, NodeEntry, NodeIndex, node_flag, peers};
use crate::hash::of_words;
use crate::packet::Packet;

/// The listed node, not this one, with this address (IPv4-mapped for IPv4); 0 if there is none.
#[allow(
    clippy::redundant_closure_for_method_calls,
    reason = "the method by its name is for one lifetime, the closure for all"
)]
#[inline(always)]
pub(in crate::steer) fn peer_at_address<T: Tables>(tables: &T, address: [u64; 2]) -> NodeIndex {
    peer(
        tables,
        peers::address_slot(&of_words(address)),
        node_flag::LISTED,
        |slot| slot.by_address(),
        |peer| {
            let [first, second] = peer.address();
            (first ^ address[0]) | (second ^ address[1]) == 0
        },
    )
}

/// The node on our link with this MAC, also one that is not listed any more; 0 if there is none.
#[allow(
    clippy::redundant_closure_for_method_calls,
    reason = "the method by its name is for one lifetime, the closure for all"
)]
#[inline(always)]
pub(in crate::steer) fn peer_with_mac<T: Tables>(tables: &T, word: u64) -> NodeIndex {
    let [a, b, c, d, e, f, ..] = word.to_le_bytes();
    let mac = [a, b, c, d, e, f];
    peer(
        tables,
        peers::mac_slot(mac),
        node_flag::LISTED | node_flag::MAC_KNOWN,
        |slot| slot.by_mac(),
        |peer| {
            let [first, second, _] = peer.macs();
            let ([a, b, c, d], [e, f, ..]) = (first.to_ne_bytes(), second.to_ne_bytes());
            u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) == word
        },
    )
}

/// Whether the packet's source MAC is that of a node on our link, listed or not any more. Most senders are none, which their first slot says;
/// the rest is done out of line.
#[inline(always)]
pub(in crate::steer) fn is_from_peer<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
) -> bool {
    source_mac(packet).is_some_and(|mac| {
        is_known(tables, config, mac) && tables.call_peer_mac(u64::from_le_bytes(mac)) != 0
    })
}

/// Whether [`is_from_peer`] needs a closer look.
#[inline(always)]
pub(in crate::steer) fn may_be_from_peer<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
) -> bool {
    source_mac(packet).is_some_and(|mac| is_known(tables, config, mac))
}

/// The source MAC, and two zeros.
#[inline(always)]
fn source_mac<P: Packet>(packet: &P) -> Option<[u8; 8]> {
    // The last two bytes of the destination, then the source.
    let [first, second] = packet.words(4)?;
    let ([_, _, a, b], [c, d, e, f]) = (first.to_ne_bytes(), second.to_ne_bytes());
    Some([a, b, c, d, e, f, 0, 0])
}

/// Whether the first slot of a MAC is used.
#[inline(always)]
fn is_known<T: Tables>(
    tables: &T,
    config: LiveConfig<'_>,
    [a, b, c, d, e, f, ..]: [u8; 8],
) -> bool {
    let half = (config.node_half() & 1) * MAX_NODES;
    tables
        .node(half + peers::mac_slot([a, b, c, d, e, f]))
        .is_some_and(|slot| slot.by_mac() != 0)
}

#[inline(always)]
fn peer<T: Tables>(
    tables: &T,
    first: u32,
    flags: u32,
    field: impl Fn(Live<'_, NodeEntry>) -> NodeIndex,
    is_it: impl Fn(Live<'_, NodeEntry>) -> bool,
) -> NodeIndex {
    let Some(config) = tables.config() else {
        return 0;
    };
    let half = (config.node_half() & 1) * MAX_NODES;
    for probe in 0..peers::PROBES {
        let index = tables
            .node(half + ((first + probe) & (MAX_NODES - 1)))
            .map_or(0, &field);
        if index == 0 || node_with(tables, config, index, flags).is_some_and(&is_it) {
            return index;
        }
    }
    0
}

/// A listed node by its index.
#[inline(always)]
pub(in crate::steer) fn node<'a, T: Tables>(
    tables: &'a T,
    config: LiveConfig<'_>,
    index: NodeIndex,
) -> Option<Live<'a, NodeEntry>> {
    node_with(tables, config, index, node_flag::LISTED)
}

/// The node of an index, if its entry has one of these flags.
#[inline(always)]
fn node_with<'a, T: Tables>(
    tables: &'a T,
    config: LiveConfig<'_>,
    index: NodeIndex,
    flags: u32,
) -> Option<Live<'a, NodeEntry>> {
    let slot = u32::from(index);
    if slot >= MAX_NODES {
        return None;
    }
    let entry = tables.node((config.node_half() & 1) * MAX_NODES + slot)?;
    (entry.flags() & flags != 0).then_some(entry)
}
