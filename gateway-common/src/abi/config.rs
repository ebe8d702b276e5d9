//! The one-entry configuration map.

use bytemuck::{Pod, Zeroable};

/// What the programs need to know about this node. Fields are single aligned words: each is read and written
/// on its own, no two need to change together (what must change together sits in a flipped table).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// [`super::ABI_VERSION`] of whoever wrote the maps.
    pub abi_version: u32,
    /// This node's own index in its node table; 0 until it is known, then everything passes.
    pub self_index: u32,
    /// Live half of the VIP table, 0 or 1.
    pub vip_half: u32,
    /// Live half of the node table, 0 or 1.
    pub node_half: u32,
    /// Low 32 bits of the membership fingerprint (header bytes 4–7).
    pub fingerprint: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Tunnel UDP port in network order, then the probe port.
    pub tunnel_port: [u8; 2],
    /// Probe UDP port in network order.
    pub probe_port: [u8; 2],
    /// Jiffies without a heartbeat after which the local proxy counts as hanging.
    pub beat_limit_jiffies: u32,
    /// Not 0 while somebody traces. Written by the tracer, not with the other words; here, since this line of the cache is
    /// read for every packet.
    pub trace: u32,
    /// Length in jiffies of the window of this and of the other limits.
    pub window_jiffies: u32,
    /// Seed of the VIP table's slot hash, one for each half.
    pub vip_seed: [u32; 2],
    /// Flow hash key (SipHash-1-3), the same on all nodes.
    pub hash_key: [u64; 2],
    /// Outer source address of encapsulated packets (IPv4-mapped for IPv4).
    pub tunnel_source: [u8; 16],
    /// Key of the probes between nodes (SipHash-1-3), the same on all nodes.
    pub probe_key: [u64; 2],
    /// The key before that one: accepted, and used for the answer to what came under it; zero for none.
    pub probe_key_previous: [u64; 2],
    /// SYNs that one CPU passes to listeners in one window; those beyond are answered by cookies. 0: no limit.
    pub syn_limit: u32,
    /// "Too big" messages that one CPU sends in one window.
    pub too_big_limit: u32,
    /// Second-chance hops that this node may send in one window.
    pub hop_limit: u32,
    /// Room for later words; zero.
    pub padding: u32,
    /// MACs that frames for this machine carry on its uplinks, their bytes in order from the lowest on ([`mac_word`]); zero for
    /// none. Without a first one all frames count as meant for it.
    pub own_macs: [u64; 4],
    /// VLANs in which this machine takes packets on its uplinks; zero for none.
    pub vlans: [u16; 4],
    /// Room for later words; zero.
    pub reserved: u64,
}

/// A MAC as [`Config::own_macs`] holds it.
#[must_use]
pub const fn mac_word([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// Bits of [`Config::flags`].
pub mod flag {
    /// Never rewrite MACs toward a node, always encapsulate (`--forward udp`).
    pub const ENCAP_ALWAYS: u32 = 1 << 0;
    /// This node is draining by its own decision: every row counts as in transition.
    pub const DRAINING: u32 = 1 << 1;
}

const _: () = assert!(size_of::<Config>() == 176 && align_of::<Config>() == 8);
