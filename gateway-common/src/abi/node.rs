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
    /// MAC of our own interface toward the node.
    pub source_mac: [u8; 6],
    /// Interface index toward the node.
    pub ifindex: u32,
    /// Bits of [`node_flag`].
    pub flags: u32,
    /// Room for later words; zero.
    pub reserved: [u32; 3],
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
}

const _: () = assert!(size_of::<NodeEntry>() == 48 && align_of::<NodeEntry>() == 4);
