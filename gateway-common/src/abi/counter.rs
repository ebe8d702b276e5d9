//! Counters: one word for each closed reason, for each CPU, in one mmapable array.

/// CPUs that the counter array has room for; higher ones share the last row.
pub const MAX_CPUS: u32 = 256;

/// Words for each CPU: whole cache lines, so that no two CPUs write to one.
pub const COUNTERS_PER_CPU: u32 = 64;

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

const _: () = assert!(Counter::ALL.len() <= COUNTERS_PER_CPU as usize);
