//! Counters: one mmapable array of words, `[cpu][cell]`.
//!
//! A CPU's first cells are the closed reasons. Behind them each node has a cell for each path that packets take to it, and
//! each VIP a cell for each thing that becomes of its packets. A verdict names one cell: a packet that goes to a node is counted
//! there and nowhere else, and the reason's sum is that of all its cells ([`reason_of`]).

use super::{MAX_NODES, NodeIndex, VIP_NUMBERS};

/// CPUs that the counter array has room for; higher ones share the last one's cells.
pub const MAX_CPUS: u32 = 256;

/// Cells of the reasons.
pub const REASONS: u32 = 64;

/// First cell of the nodes, [`PATHS`] for each index.
const NODE_CELLS: u32 = REASONS;

/// First cell of the VIPs, [`VIP_NUMBERS`] for each [`VipCell`].
const VIP_CELLS: u32 = NODE_CELLS + PATHS * MAX_NODES;

/// Cells for each CPU: whole cache lines, so that no two CPUs write to one.
pub const COUNTERS_PER_CPU: u32 = VIP_CELLS + VipCell::ALL.len() as u32 * VIP_NUMBERS;

/// Ways to another node.
pub const PATHS: u32 = Path::ALL.len() as u32;

/// How, or why, a packet goes to another node.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// [`Counter::ForwardL2`].
    L2,
    /// [`Counter::ForwardUdp`].
    Udp,
    /// [`Counter::SecondChance`].
    SecondChance,
    /// [`Counter::SynHeir`].
    Heir,
}

impl Path {
    /// All paths in the order of their cells.
    pub const ALL: [Self; 4] = [Self::L2, Self::Udp, Self::SecondChance, Self::Heir];

    /// Name in metrics and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::Udp => "udp",
            Self::SecondChance => "second_chance",
            Self::Heir => "syn_heir",
        }
    }

    /// The reason that its packets are counted for.
    #[must_use]
    pub const fn reason(self) -> Counter {
        match self {
            Self::L2 => Counter::ForwardL2,
            Self::Udp => Counter::ForwardUdp,
            Self::SecondChance => Counter::SecondChance,
            Self::Heir => Counter::SynHeir,
        }
    }

    /// The cell of the packets that go to `node` so.
    #[inline(always)]
    #[must_use]
    pub const fn cell(self, node: NodeIndex) -> u32 {
        NODE_CELLS + (node as u32 & (MAX_NODES - 1)) * PATHS + self as u32
    }
}

/// What becomes of a VIP's packets, as far as it is told apart.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VipCell {
    /// [`Counter::OwnPass`] without a look at anything else: nothing else is counted for the packet.
    Owned,
    /// [`Counter::LocalOnly`]: nothing else is counted for the packet.
    LocalOnly,
    /// Anything else, counted beside its reason.
    Other,
}

impl VipCell {
    /// All of them in the order of their cells.
    pub const ALL: [Self; 3] = [Self::Owned, Self::LocalOnly, Self::Other];

    /// The cell of the VIP with this number.
    #[inline(always)]
    #[must_use]
    pub const fn cell(self, number: u16) -> u32 {
        VIP_CELLS + self as u32 * VIP_NUMBERS + (number as u32 & (VIP_NUMBERS - 1))
    }

    /// The reason that its packets are counted for, if they are not counted for one beside.
    #[must_use]
    pub const fn reason(self) -> Option<Counter> {
        match self {
            Self::Owned => Some(Counter::OwnPass),
            Self::LocalOnly => Some(Counter::LocalOnly),
            Self::Other => None,
        }
    }
}

/// The node that a cell counts packets to, if it is one of a node.
#[must_use]
pub const fn node_of(cell: u32) -> Option<NodeIndex> {
    if cell < NODE_CELLS || cell >= VIP_CELLS {
        return None;
    }
    Some(((cell - NODE_CELLS) / PATHS) as NodeIndex)
}

/// The reason that a cell counts for; none for those that count beside one.
#[must_use]
pub fn reason_of(cell: u32) -> Option<Counter> {
    if let Some(of_vips) = cell.checked_sub(VIP_CELLS) {
        VipCell::ALL.get((of_vips / VIP_NUMBERS) as usize)?.reason()
    } else if let Some(of_nodes) = cell.checked_sub(NODE_CELLS) {
        Some(Path::ALL[(of_nodes % PATHS) as usize].reason())
    } else {
        Counter::ALL.get(cell as usize).copied()
    }
}

macro_rules! counters {
    ($($name:ident = $text:literal, $doc:literal;)*) => {
        /// Why a packet (or a socket lookup) went where it went. Closed: each verdict counts exactly one.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter { $(#[doc = $doc] $name,)* }

        impl Counter {
            /// All counters in the order of their slots.
            pub const ALL: &'static [Counter] = &[$(Counter::$name,)*];

            /// Name in metrics and tables, `snake_case`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$name => $text,)* }
            }

            /// Slot in a CPU's words.
            #[must_use]
            pub const fn slot(self) -> u32 { self as u32 }
        }
    };
}

counters! {
    NotOurs = "not_ours", "Neither for a VIP nor our tunnel: passed untouched.";
    NotConfigured = "not_configured", "The tables are not written yet: passed untouched.";
    OtherHost = "other_host", "VIP packet in a frame for another machine, flooded by a switch: passed untouched.";
    OwnPass = "own_pass", "This node owns the row: passed to the local stack.";
    OwnSyn = "own_syn", "SYN for this node with a socket that takes it: passed.";
    OwnSocket = "own_socket", "Row in transition, a local socket holds the flow: passed.";
    OwnCookie = "own_cookie", "Row in transition, the ACK carries a valid SYN cookie: passed.";
    OwnSession = "own_session", "Row in transition, a UDP session here has the flow: passed.";
    LocalOnly = "local_only", "VIP that each node serves by itself: passed.";
    ForwardL2 = "forward_l2", "Sent to the owner by MAC rewrite.";
    ForwardUdp = "forward_udp", "Sent to the owner by UDP encapsulation.";
    SecondChance = "second_chance", "No local socket: sent to the next node that may hold one.";
    SynHeir = "syn_heir", "The local proxy does not listen: SYN sent to the next ready node.";
    Decapsulated = "decapsulated", "Tunnel packet of a known peer, header taken off (counted beside the inner verdict).";
    ArpReply = "arp_reply", "ARP request for a VIP that this node announces: answered.";
    NeighbourReply = "neighbour_reply", "Neighbour solicitation for a VIP that this node announces: answered.";
    EchoReply = "echo_reply", "Echo request to a VIP: answered.";
    SynCookie = "syn_cookie", "SYN beyond the budget: answered by a SYN cookie.";
    TooBigReply = "too_big_reply", "Too big for the way to its node: sender told, dropped.";
    ExhaustedPass = "exhausted_pass", "No node holds the flow and all agree on the membership: passed, the kernel resets.";
    ExhaustedDrop = "exhausted_drop", "No node holds the flow and memberships differ: dropped, the client retransmits.";
    NoOwner = "no_owner", "No node is ready for the row: dropped.";
    SynNoListener = "syn_no_listener", "No node listens for this SYN: dropped.";
    PeerUnknown = "peer_unknown", "Tunnel packet from an address that is no node: dropped.";
    TunnelMalformed = "tunnel_malformed", "Tunnel packet of a peer that cannot be read: dropped.";
    TunnelNotVip = "tunnel_not_vip", "Tunnel packet of a peer for an address that is no VIP here: dropped.";
    HopsSpent = "hops_spent", "No hops left in the header: dropped.";
    HopBudget = "hop_budget", "Second-chance rate limit of this node reached: dropped.";
    TtlSpent = "ttl_spent", "TTL 1 or less on forward: dropped.";
    NeighbourUnresolved = "neighbour_unresolved", "No MAC known toward the node: dropped.";
    TooBig = "too_big", "Too big for the way to its node, and the sender cannot be told or was told: dropped.";
    SourceDenied = "source_denied", "The VIP's list of sources refuses the sender: dropped.";
    AdjustFailed = "adjust_failed", "The driver gave no headroom for the tunnel header: dropped.";
    Truncated = "truncated", "VIP packet shorter than its headers say: dropped.";
    Fragment = "fragment", "Fragment for a VIP whose packets are hashed with their ports: dropped.";
    NotUnderstood = "not_understood", "VIP packet with more headers than the program walks: passed.";
    ProbeAnswered = "probe_answered", "Probe of a peer: answered.";
    ProbeRefused = "probe_refused", "Well-formed probe that no peer signed for this node: dropped.";
    LookupRedirected = "lookup_redirected", "sk_lookup gave the connection to the proxy.";
    LookupRefused = "lookup_refused", "VIP port without a listener: refused by sk_lookup.";
    LookupLoopback = "lookup_loopback", "Direct dial of the proxy's loopback port: refused by sk_lookup.";
    LookupNoSocket = "lookup_no_socket", "VIP port whose group has no live socket: refused by sk_lookup.";
    PathAnswered = "path_answered", "Probe of a peer by way of a MAC rewrite: answered.";
}

const _: () = assert!(Counter::ALL.len() <= REASONS as usize);
const _: () = assert!(COUNTERS_PER_CPU.is_multiple_of(8) && COUNTERS_PER_CPU <= 1 << 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_things_share_a_cell_and_every_cell_has_its_reason() {
        let mut cells = vec![None; COUNTERS_PER_CPU as usize];
        let mut take = |cell: u32, reason| {
            let place = &mut cells[cell as usize];
            assert_eq!(*place, None, "cell {cell}");
            *place = Some(reason);
        };
        for counter in Counter::ALL {
            take(counter.slot(), Some(*counter));
        }
        for node in 0..MAX_NODES as NodeIndex {
            for path in Path::ALL {
                take(path.cell(node), Some(path.reason()));
                assert_eq!(node_of(path.cell(node)), Some(node));
            }
        }
        for number in 0..VIP_NUMBERS as u16 {
            for cell in VipCell::ALL {
                take(cell.cell(number), cell.reason());
            }
        }
        for (cell, reason) in (0..).zip(cells) {
            assert_eq!(reason_of(cell), reason.flatten(), "cell {cell}");
        }
        assert_eq!(reason_of(COUNTERS_PER_CPU), None);
    }

    #[test]
    fn what_is_beyond_the_tables_stays_within_its_kind() {
        let last = |cell: u32| cell < COUNTERS_PER_CPU;
        assert!(last(VipCell::Other.cell(u16::MAX)) && last(Path::Heir.cell(NodeIndex::MAX)));
        assert_eq!(
            reason_of(Path::Udp.cell(u16::MAX)),
            Some(Counter::ForwardUdp)
        );
        assert_eq!(
            reason_of(VipCell::Owned.cell(u16::MAX)),
            Some(Counter::OwnPass)
        );
    }
}
