//! What a tracer asks for, and what it gets.

use bytemuck::{Pod, Zeroable};

/// Which packets are told to the tracer. Written by the tracer alone, word by word, read by the programs while
/// [`super::Config::trace`] is set.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TraceFilter {
    /// Nanoseconds of CLOCK_MONOTONIC after which nothing is told any more: a tracer that lives puts it off.
    pub until: u64,
    /// Address that the client or the VIP must have ([`want::ADDRESS`]); IPv4-mapped for IPv4.
    pub address: [u8; 16],
    /// Address that the VIP must have ([`want::VIP`]).
    pub vip: [u8; 16],
    /// Port that the client or the VIP must have, in network order; 0: any.
    pub port: [u8; 2],
    /// Port that the VIP must have; 0: any.
    pub vip_port: [u8; 2],
    /// IP protocol; 0: any.
    pub protocol: u32,
    /// Bits of [`want`].
    pub wants: u32,
    /// Most that the upper half of a flow's hash may be: a share of the flows, the same on every node.
    pub most: u32,
    /// Process that traces, for whoever else wants to.
    pub process: u32,
    /// Number of this tracer, which its events carry.
    pub session: u32,
}

/// Bits of [`TraceFilter::wants`].
pub mod want {
    /// The address of client or VIP.
    pub const ADDRESS: u32 = 1 << 0;
    /// The address of the VIP.
    pub const VIP: u32 = 1 << 1;
}

/// One packet as one node decided about it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TraceEvent {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// Address of the client, IPv4-mapped for IPv4.
    pub client: [u8; 16],
    /// Address of the VIP.
    pub vip: [u8; 16],
    /// The row's [`super::Row`]; 0 if it was refused before.
    pub row: u64,
    /// The packed [`crate::verdict::Verdict`].
    pub verdict: u64,
    /// The packed tunnel header that it came out of; 0 for none.
    pub arrival: u64,
    /// Number of the row, below [`super::ROWS`].
    pub row_number: u32,
    /// Bytes of the packet as it came, or as it was inside of the tunnel.
    pub length: u32,
    /// Interface on which it came.
    pub ingress: u32,
    /// [`TraceFilter::session`].
    pub session: u32,
    /// Port of the client, in network order; 0 where there are none.
    pub client_port: [u8; 2],
    /// Port of the VIP.
    pub vip_port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// Bits of [`seen`].
    pub seen: u8,
    /// Nodes of the row that are suspected of being dead: bit 0 for the owner, then the others in the row's order.
    pub suspects: u8,
    /// Why it went to another node, see [`why`].
    pub why: u8,
}

/// Bits of [`TraceEvent::seen`].
pub mod seen {
    /// A SYN without ACK.
    pub const SYN: u8 = 1 << 0;
    /// An ICMP error about a packet of the flow.
    pub const ERROR: u8 = 1 << 1;
    /// A fragment.
    pub const FRAGMENT: u8 = 1 << 2;
    /// The row is known: it was not refused before.
    pub const ROW: u8 = 1 << 3;
}

/// Values of [`TraceEvent::why`].
pub mod why {
    /// It went to no other node.
    pub const STAYS: u8 = 0;
    /// The node owns the row.
    pub const OWNER: u8 = 1;
    /// The node is next to accept a new connection.
    pub const HEIR: u8 = 2;
    /// The node may hold the flow's socket or session.
    pub const SECOND_CHANCE: u8 = 3;
    /// The node is the heir of a suspect owner, and may hold the flow.
    pub const DETOUR: u8 = 4;
}

const _: () = assert!(size_of::<TraceFilter>() == 64 && align_of::<TraceFilter>() == 8);
const _: () = assert!(size_of::<TraceEvent>() == 88 && align_of::<TraceEvent>() == 8);
