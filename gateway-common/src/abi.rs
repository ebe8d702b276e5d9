//! The map ABI: names, capacities and value layouts of every BPF map.
//!
//! Rules: `repr(C)`, sizes asserted, no padding, no enum, no `bool`; addresses and ports are byte arrays in
//! network order, everything else is in the host's order. A change of any layout bumps [`ABI_VERSION`]: pinned
//! maps of another version are never adopted.

pub mod config;
pub mod counter;
pub mod live;
pub mod node;
pub mod row;
pub mod tag;
pub mod trace;
pub mod vip;

pub use config::{Config, mac_word};
pub use counter::{COUNTERS_PER_CPU, Counter, MAX_CPUS, PATHS, Path, REASONS, VipCell, reason_of};
pub use live::{Live, LiveConfig};
pub use node::{NodeEntry, NodeIndex, node_flag, peers};
pub use row::Row;
pub use tag::{TAG_SETS, TAG_WAYS, TagSet};
pub use trace::{TraceEvent, TraceFilter};
pub use vip::{SourceKey, VipEntry, VipKey, VipWords, vip_flag};

/// Version of all layouts in this module; part of the pin path and stored in [`Config`].
pub const ABI_VERSION: u32 = 5;

/// Rows in the steering table; a flow's hash modulo this is its row.
pub const ROWS: u32 = 65_536;

/// Capacity of one half of the VIP table, a power of two; at most half of it is filled.
pub const VIP_SLOTS: u32 = 8_192;

/// VIPs and addresses of VIPs that a half holds at most: half full, so that every key finds a near slot. Their numbers are
/// below this.
pub const VIP_NUMBERS: u32 = VIP_SLOTS / 2;

/// How far a VIP may lie from the slot that its key hashes to. The writer picks a seed for each half that
/// keeps every VIP within it.
pub const VIP_PROBES: u32 = 8;

/// Capacity of one half of the node table. Index 0 means "no node".
pub const MAX_NODES: u32 = 1_024;

/// SO_REUSEPORT groups: one for each Gateway, hashed beyond this number.
pub const GROUPS: u32 = 64;

/// SOCKMAP slots of a group, tried in turn.
pub const SLOTS_PER_GROUP: u32 = 8;

/// Words of the bitmap of loopback ports that the proxy's own sockets are bound to.
pub const PORT_WORDS: u32 = 1_024;

/// Names of the maps, as in the object and below the pin directory.
pub mod map {
    /// `Array<Config>`, 1 entry, mmapable; written by the agent.
    pub const CONFIG: &str = "CONFIG";
    /// `Array<u64>` of [`super::Row`], [`super::ROWS`] entries, mmapable.
    pub const ROWS: &str = "ROWS";
    /// `Array<VipEntry>`, two halves of [`super::VIP_SLOTS`], mmapable.
    pub const VIPS: &str = "VIPS";
    /// `Array<NodeEntry>`, two halves of [`super::MAX_NODES`], mmapable.
    pub const NODES: &str = "NODES";
    /// `Array<u64>`, one alive word for each node index, mmapable: the low bits of [`crate::probe::view`].
    pub const ALIVE: &str = "ALIVE";
    /// `Array<u64>`, what the proxy's side says of itself, mmapable: see [`super::fact`].
    pub const HEARTBEAT: &str = "HEARTBEAT";
    /// `Array<u64>`, what XDP itself remembers: see [`super::state`].
    pub const STATE: &str = "STATE";
    /// `Array<u64>`, `[cpu][cell]`, [`super::COUNTERS_PER_CPU`] words for each CPU, mmapable. Loaded for the CPUs that
    /// the machine may have, and one row more: it holds what nodes and VIPs had counted whose index or number went to others.
    pub const COUNTERS: &str = "COUNTERS";
    /// `SockMap`, [`super::GROUPS`] × [`super::SLOTS_PER_GROUP`] listening sockets.
    pub const SOCKETS: &str = "SOCKETS";
    /// `Array<u64>`, bitmap of the loopback ports in [`SOCKETS`], mmapable: bit `port % 64` of word
    /// `port / 64`, the port in host order.
    pub const PORTS: &str = "PORTS";
    /// `Array<u64>`, `[cpu][slot]`, what each CPU remembers: see [`super::cpu_state`]; mmapable.
    pub const CPU_STATE: &str = "CPU_STATE";
    /// `LpmTrie` from [`super::SourceKey`] to [`super::SOURCE_ALLOWED`] or [`super::SOURCE_DENIED`].
    pub const SOURCES: &str = "SOURCES";
    /// `Array` of [`super::TagSet`], [`super::TAG_SETS`] entries, mmapable: the UDP sessions that the proxy holds.
    pub const TAGS: &str = "TAGS";
    /// `Array<TraceFilter>`, 1 entry, mmapable; written by whoever traces.
    pub const TRACE: &str = "TRACE";
    /// `Array<TraceEvent>`, `[cpu]`: the packet that is decided about, if it is traced.
    pub const TRACE_DRAFT: &str = "TRACE_DRAFT";
    /// Ring buffer of [`super::TraceEvent`].
    pub const TRACE_EVENTS: &str = "TRACE_EVENTS";
    /// `DevMapHash` from ifindex to device, for forwarding across interfaces.
    pub const DEVICES: &str = "DEVICES";
}

/// Words of the [`map::HEARTBEAT`] array, written by the unprivileged side. The program reads them only.
pub mod fact {
    /// The proxy's heartbeat.
    pub const BEAT: u32 = 0;
    /// [`crate::rendezvous::name_hash`] of this node's name; 0 until it is known, then no probe is answered.
    pub const NAME_HASH: u32 = 1;
    /// High half: a membership fingerprint. Low half: sockets, counted under that membership, of rows that this
    /// node does not own. One word, so that the two always belong together; 0 until they are known.
    pub const COUNTED: u32 = 2;
    /// Rounds of probing that this node has finished.
    pub const ROUNDS: u32 = 3;
    /// Words in the array.
    pub const WORDS: u32 = 8;
}

/// Slots of the [`map::STATE`] array.
pub mod state {
    /// Heartbeat value last seen by XDP.
    pub const BEAT_VALUE: u32 = 0;
    /// `bpf_jiffies64` at the last change of the heartbeat.
    pub const BEAT_JIFFIES: u32 = 1;
    /// Second-chance hops: jiffies at the start of the current window.
    pub const HOP_WINDOW: u32 = 2;
    /// Second-chance hops sent in the current window.
    pub const HOP_COUNT: u32 = 3;
    /// Heartbeat value at which a SYN last found no listening socket.
    pub const NO_LISTENER: u32 = 4;
    /// Words in the array.
    pub const WORDS: u32 = 8;
}

/// Slots of one CPU in the [`map::CPU_STATE`] array: a budget has its window's first jiffy, then its count.
pub mod cpu_state {
    /// SYNs passed to listeners.
    pub const SYNS: u32 = 0;
    /// "Too big" messages sent.
    pub const TOO_BIG: u32 = 2;
    /// Packets that a tracer should have been told of, but its ring buffer was full.
    pub const TRACE_LOST: u32 = 4;
    /// Words of each CPU: a cache line.
    pub const WORDS: u32 = 8;
}

/// Bytes of [`map::TRACE_EVENTS`].
pub const TRACE_BYTES: u32 = 256 * 1024;

/// Prefixes that all lists of sources may hold together.
pub const MAX_SOURCES: u32 = 65_536;

/// Value of [`map::SOURCES`]: the source may send.
pub const SOURCE_ALLOWED: u32 = 1;

/// Value of [`map::SOURCES`]: the source is refused.
pub const SOURCE_DENIED: u32 = 2;
