//! What the decision reads: the tables of this node, its clock and its sockets.

use crate::abi::{
    Counter, LiveConfig, MAX_NODES, NodeEntry, NodeIndex, Row, VIP_PROBES, VIP_SLOTS, VipEntry,
    VipKey, node_flag, peers, vip_flag,
};
use crate::hash::vip_slot_of;
use crate::packet::Packet;

/// An IPv4 flow as its packets toward the VIP carry it, in network order.
#[repr(align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// The client.
    pub source: [u8; 4],
    /// The VIP.
    pub destination: [u8; 4],
    /// Port of the client, then of the VIP.
    pub ports: [u8; 4],
}

/// What this node's sockets say about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// No socket takes it.
    None,
    /// Only a listening socket takes it.
    Listener,
    /// Only a listening socket takes it, and it carries a SYN cookie that this kernel made.
    Cookie,
    /// A socket of the flow itself, in any state but LISTEN.
    Flow,
}

/// Tables, clock and sockets of a node. Every index is checked by the implementation: `None` where there is no
/// such entry.
pub trait Tables {
    /// The packets that go with these tables.
    type Packet: Packet;

    /// The configuration.
    fn config(&self) -> Option<LiveConfig<'_>>;
    /// A row of the steering table.
    fn row(&self, row: u32) -> Option<Row>;
    /// A slot of the VIP table, counted over both halves.
    fn vip(&self, slot: u32) -> Option<VipEntry>;
    /// A slot of the node table, counted over both halves.
    fn node(&self, slot: u32) -> Option<NodeEntry>;
    /// Whether a node is suspected of being dead.
    fn suspect(&self, node: NodeIndex) -> bool;
    /// The proxy's heartbeat; 0 until the first beat.
    fn heartbeat(&self) -> u64;
    /// A word of what the program itself remembers, see [`crate::abi::state`].
    fn state(&self, slot: u32) -> u64;
    /// Sets such a word.
    fn set_state(&self, slot: u32, word: u64);
    /// The kernel's tick counter.
    fn jiffies(&self) -> u64;
    /// What this node's sockets say about a packet of the flow.
    fn local(&self, packet: &Self::Packet, tuple: &Tuple) -> Local;
    /// Counts one event on this CPU.
    fn count(&self, counter: Counter);
}

/// The entry of a VIP, given by its [`crate::abi::VipKey::words`], in the live half of the table.
#[inline(always)]
pub fn find_vip<T: Tables>(tables: &T, config: LiveConfig<'_>, key: [u32; 5]) -> Option<VipEntry> {
    let half = config.vip_half() & 1;
    let first = vip_slot_of(key, config.vip_seed(half));
    for probe in 0..VIP_PROBES {
        let entry = tables.vip(half * VIP_SLOTS + ((first + probe) & (VIP_SLOTS - 1)))?;
        if entry.flags & vip_flag::USED == 0 {
            return None;
        }
        if same(entry.key.words(), key) {
            return Some(entry);
        }
    }
    None
}

/// Equality without a call of `memcmp`, which is a loop over bytes in the kernel.
#[inline(always)]
const fn same(a: [u32; 5], b: [u32; 5]) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) == 0
}

/// Flags of the entry of an IPv4 address itself, 0 if it is no VIP. Out of line, for the rarer packets.
#[inline(never)]
pub(super) fn address_flags<T: Tables>(
    tables: &T,
    config: LiveConfig<'_>,
    address: [u8; 4],
) -> u32 {
    find_vip(tables, config, VipKey::v4_words(address, [0; 2], 0)).map_or(0, |vip| vip.flags)
}

/// A listed node by its index.
#[inline(always)]
pub(super) fn node<T: Tables>(
    tables: &T,
    config: LiveConfig<'_>,
    index: NodeIndex,
) -> Option<NodeEntry> {
    let slot = u32::from(index);
    let entry = (slot < MAX_NODES)
        .then(|| tables.node((config.node_half() & 1) * MAX_NODES + slot))
        .flatten()?;
    (entry.flags & node_flag::LISTED != 0).then_some(entry)
}

/// Whether a listed node has this address (IPv4-mapped).
#[inline(never)]
pub(super) fn is_peer_address<T: Tables>(
    tables: &T,
    config: LiveConfig<'_>,
    address: &[u8; 16],
) -> bool {
    is_peer(
        tables,
        config,
        peers::address_slot(address),
        |slot| slot.by_address,
        |peer| u128::from_ne_bytes(peer.address) == u128::from_ne_bytes(*address),
    )
}

/// Whether a listed node on our link has this MAC.
#[inline(never)]
pub(super) fn is_peer_mac<T: Tables>(tables: &T, config: LiveConfig<'_>, mac: &[u8; 6]) -> bool {
    is_peer(
        tables,
        config,
        peers::mac_slot(*mac),
        |slot| slot.by_mac,
        |peer| peer.mac == *mac,
    )
}

#[inline(always)]
fn is_peer<T: Tables>(
    tables: &T,
    config: LiveConfig<'_>,
    first: u32,
    field: impl Fn(&NodeEntry) -> NodeIndex,
    is_it: impl Fn(&NodeEntry) -> bool,
) -> bool {
    let half = (config.node_half() & 1) * MAX_NODES;
    for probe in 0..peers::PROBES {
        let index = tables
            .node(half + ((first + probe) & (MAX_NODES - 1)))
            .map_or(0, |slot| field(&slot));
        if index == 0 {
            return false;
        }
        if node(tables, config, index).is_some_and(|peer| is_it(&peer)) {
            return true;
        }
    }
    false
}
