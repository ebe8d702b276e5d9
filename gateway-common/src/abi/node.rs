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

impl NodeEntry {
    /// The MAC that frames of the node are known to carry, if that of its entry is one.
    #[must_use]
    pub const fn known_mac(&self) -> Option<[u8; 6]> {
        let near = node_flag::ON_LINK | node_flag::RESOLVED;
        let known = self.flags & near == near || self.flags & node_flag::MAC_KNOWN != 0;
        if known && self.flags & node_flag::SELF == 0 {
            Some(self.mac)
        } else {
            None
        }
    }

    /// What stays of the entry when its node is not listed any more: its frames are none of a router's for that.
    #[must_use]
    pub fn unlisted(&self) -> Self {
        self.known_mac().map_or_else(Self::default, |mac| Self {
            mac,
            flags: node_flag::MAC_KNOWN,
            ..Self::default()
        })
    }
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
    /// Every listed node but the own one goes in by address, and by MAC if that is known. Returns the first node for
    /// which there was no slot within [`PROBES`]: its packets would be taken for a stranger's. Nodes that are not listed
    /// any more go in by MAC as far as there is room.
    pub fn index(half: &mut [NodeEntry]) -> Result<(), NodeIndex> {
        for entry in half.iter_mut() {
            (entry.by_address, entry.by_mac) = (0, 0);
        }
        for node in 1..half.len().min(MAX_NODES as usize) {
            let entry = half[node];
            let index = node as NodeIndex;
            if entry.flags & node_flag::LISTED == 0 || entry.flags & node_flag::SELF != 0 {
                continue;
            }
            place(half, address_slot(&entry.address), index, |entry| {
                &mut entry.by_address
            })?;
            if let Some(mac) = entry.known_mac() {
                place(half, mac_slot(mac), index, |entry| &mut entry.by_mac)?;
            }
        }
        for node in 1..half.len().min(MAX_NODES as usize) {
            let entry = half[node];
            if let (0, Some(mac)) = (entry.flags & node_flag::LISTED, entry.known_mac()) {
                // Without room its frames are a stranger's, which those of a node that is gone may be.
                let _full = place(half, mac_slot(mac), node as NodeIndex, |entry| {
                    &mut entry.by_mac
                });
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
    /// Frames of the node carry `mac`, although it is not listed any more or not resolved just now: they are not taken for a
    /// router's.
    pub const MAC_KNOWN: u32 = 1 << 7;
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
    fn a_node_that_left_is_known_by_its_mac_and_listed_ones_come_first() {
        let near = node_flag::LISTED | node_flag::ON_LINK | node_flag::RESOLVED;
        let of = |last: u8, flags| NodeEntry {
            address: [last; 16],
            mac: [2, 0, 0, 0, 0, last],
            flags,
            ..NodeEntry::default()
        };
        let left = of(1, near).unlisted();
        assert_eq!((left.mac[5], left.flags), (1, node_flag::MAC_KNOWN));
        assert_eq!(left.unlisted(), left);
        // Behind a router, unresolved, or this node itself: there is no MAC to know.
        for flags in [
            near & !node_flag::ON_LINK,
            near & !node_flag::RESOLVED,
            near | node_flag::SELF,
        ] {
            assert_eq!(of(1, flags).unlisted(), NodeEntry::default());
        }
        let mut half = vec![NodeEntry::default(); MAX_NODES as usize];
        // More than there is room for.
        half[1..=20].fill(of(7, near).unlisted());
        half[30] = of(7, near);
        half[31] = of(
            8,
            near & !(node_flag::ON_LINK | node_flag::RESOLVED) | node_flag::MAC_KNOWN,
        );
        assert_eq!(peers::index(&mut half), Ok(()));
        let first = |last| half[peers::mac_slot([2, 0, 0, 0, 0, last]) as usize].by_mac;
        assert_eq!((first(7), first(8)), (30, 31));
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
