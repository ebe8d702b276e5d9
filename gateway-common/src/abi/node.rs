//! The node table: one entry for each Forebay replica.

use bytemuck::{Pod, Zeroable};

/// Index of a node in this machine's own table, 1 to [`super::MAX_NODES`] − 1; 0 means none. Stable while the
/// node is listed; never sent to others.
pub type NodeIndex = u16;

/// How to reach one replica.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NodeEntry {
    /// Address of the node: source of its tunnel packets and target of ours; IPv4-mapped for IPv4.
    pub address: [u8; 16],
    /// MAC of the node if it is on-link ([`node_flag::ON_LINK`]), else of the next hop toward it.
    pub mac: [u8; 6],
    /// MAC of our own interface toward the node; in the own entry ([`node_flag::SELF`], with `ifindex` and
    /// [`node_flag::RESOLVED`]) the MAC of the uplink, which ARP answers carry.
    pub source_mac: [u8; 6],
    /// Interface index toward the node.
    pub ifindex: u32,
    /// Bits of [`node_flag`].
    pub flags: u32,
    /// Index of peers by address, kept here so that it flips together with the entries; see [`peers`].
    pub by_address: u16,
    /// Index of peers by MAC address, see [`peers`].
    pub by_mac: u16,
    /// MTU of the interface toward the node, in bytes; 0: not known, nothing is too big.
    pub mtu: u16,
    /// VLAN identifier in which the node is reached through `ifindex`; 0: untagged.
    pub vlan: u16,
    /// Room for later words; zero.
    pub reserved: u32,
}

/// How a packet's sender is found in the node table without a scan.
///
/// The fields `by_address` and `by_mac` of one half are two small hash tables from a node's address and MAC to
/// its index: the entry at [`peers::address_slot`] (or a following one, wrapping, at most [`peers::PROBES`]
/// slots, ending at an unused one) names the node. They belong to the slot, not to the node listed there.
pub mod peers {
    use super::{NodeEntry, NodeIndex, node_flag};
    use crate::abi::MAX_NODES;
    use crate::hash::mix;

    /// How far a node may lie from the slot that it hashes to.
    pub const PROBES: u32 = 16;

    /// First slot of an address (IPv4-mapped for IPv4).
    #[inline(always)]
    #[must_use]
    pub const fn address_slot(address: &[u8; 16]) -> u32 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
        let high = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let low = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
        mix(high.rotate_left(32) ^ low) as u32 & (MAX_NODES - 1)
    }

    /// First slot of a MAC address.
    #[inline(always)]
    #[must_use]
    pub const fn mac_slot(mac: [u8; 6]) -> u32 {
        let [a, b, c, d, e, f] = mac;
        mix(u64::from_le_bytes([a, b, c, d, e, f, 0, 0])) as u32 & (MAX_NODES - 1)
    }

    /// Writes both tables into a half of the node table that is not live: the last step of filling it.
    ///
    /// Every listed node but the own one goes in by address, those on-link and resolved also by MAC. Returns the
    /// first node for which there was no slot within [`PROBES`]: its packets would be taken for a stranger's.
    pub fn index(half: &mut [NodeEntry]) -> Result<(), NodeIndex> {
        for entry in half.iter_mut() {
            (entry.by_address, entry.by_mac) = (0, 0);
        }
        for node in 1..half.len().min(MAX_NODES as usize) {
            let NodeEntry {
                flags,
                address,
                mac,
                ..
            } = half[node];
            let index = node as NodeIndex;
            if flags & node_flag::LISTED == 0 || flags & node_flag::SELF != 0 {
                continue;
            }
            place(half, address_slot(&address), index, |entry| {
                &mut entry.by_address
            })?;
            if flags & node_flag::ON_LINK != 0 && flags & node_flag::RESOLVED != 0 {
                place(half, mac_slot(mac), index, |entry| &mut entry.by_mac)?;
            }
        }
        Ok(())
    }

    fn place(
        half: &mut [NodeEntry],
        first: u32,
        node: NodeIndex,
        field: fn(&mut NodeEntry) -> &mut u16,
    ) -> Result<(), NodeIndex> {
        for probe in 0..PROBES {
            let slot = (first + probe) & (MAX_NODES - 1);
            let cell = half.get_mut(slot as usize).map(field).ok_or(node)?;
            if *cell == 0 {
                *cell = node;
                return Ok(());
            }
        }
        Err(node)
    }
}

/// Bits of [`NodeEntry::flags`].
pub mod node_flag {
    /// The entry is in use.
    pub const LISTED: u32 = 1 << 0;
    /// The node may own rows.
    pub const READY: u32 = 1 << 1;
    /// The node is leaving: it keeps its sockets and owns nothing.
    pub const DRAINING: u32 = 1 << 2;
    /// The node's MAC is reachable on our link: forward by MAC rewrite.
    pub const ON_LINK: u32 = 1 << 3;
    /// `mac`, `source_mac` and `ifindex` are resolved.
    pub const RESOLVED: u32 = 1 << 4;
    /// The entry is this machine itself.
    pub const SELF: u32 = 1 << 5;
    /// Although the node is on our link, frames for a VIP are not known to reach it: encapsulate. Its own frames are
    /// still known by their MAC.
    pub const ENCAPSULATE: u32 = 1 << 6;
}

const _: () = assert!(size_of::<NodeEntry>() == 48 && align_of::<NodeEntry>() == 4);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::MAX_NODES;

    #[test]
    fn every_peer_is_found_within_the_probes() {
        let mut half = vec![NodeEntry::default(); MAX_NODES as usize];
        for node in 1..=256u16 {
            let [high, low] = node.to_be_bytes();
            half[usize::from(node)] = NodeEntry {
                address: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, high, low],
                mac: [2, 0, 0, 0, high, low],
                flags: node_flag::LISTED | node_flag::ON_LINK | node_flag::RESOLVED,
                ..NodeEntry::default()
            };
        }
        half[7].flags |= node_flag::SELF;
        assert_eq!(peers::index(&mut half), Ok(()));
        for node in 1..=256u16 {
            let entry = half[usize::from(node)];
            let probe = |first: u32| {
                (0..peers::PROBES).map(move |i| ((first + i) & (MAX_NODES - 1)) as usize)
            };
            let by_address = probe(peers::address_slot(&entry.address))
                .any(|slot| half[slot].by_address == node);
            let by_mac = probe(peers::mac_slot(entry.mac)).any(|slot| half[slot].by_mac == node);
            assert_eq!((by_address, by_mac), (node != 7, node != 7), "node {node}");
        }
    }

    #[test]
    fn a_table_without_room_names_the_node() {
        let listed = NodeEntry {
            flags: node_flag::LISTED,
            ..NodeEntry::default()
        };
        assert_eq!(peers::index(&mut vec![listed; MAX_NODES as usize]), Err(17));
    }
}
