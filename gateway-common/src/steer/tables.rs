//! What the decision reads: the tables of this node, its clock and its sockets.

mod by;

pub(super) use self::by::{is_from_peer, may_be_from_peer, node, peer_at_address, peer_with_mac};
use super::outline;
use crate::abi::{
    Live, LiveConfig, NodeEntry, NodeIndex, Row, SourceKey, TraceEvent, TraceFilter, VIP_PROBES,
    VIP_SLOTS, VipEntry, VipWords, vip_flag,
};
use crate::hash::{Key, vip_slot_of};
use crate::packet::{Packet, mapped};

/// A flow as its packets toward the VIP carry it: addresses and ports in network order, laid out as the kernel's socket
/// lookups take them (`struct bpf_sock_tuple`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// IPv4: client, VIP, ports, then zero. IPv6: client and VIP of four words each, ports. As they lie in memory.
    pub words: [u32; 9],
    /// IPv6, else IPv4.
    pub v6: bool,
}

impl Tuple {
    /// Of an IPv4 flow; ports are the client's, then the VIP's.
    #[inline(always)]
    #[must_use]
    pub const fn v4(client: u32, vip: u32, ports: u32) -> Self {
        Self {
            words: [client, vip, ports, 0, 0, 0, 0, 0, 0],
            v6: false,
        }
    }

    /// Of an IPv6 flow.
    #[inline(always)]
    #[must_use]
    pub const fn v6(client: [u32; 4], vip: [u32; 4], ports: u32) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (client, vip);
        Self {
            words: [a, b, c, d, e, f, g, h, ports],
            v6: true,
        }
    }

    /// Address (IPv4-mapped for IPv4) and port of the VIP.
    #[must_use]
    pub fn vip(&self) -> ([u8; 16], [u8; 2]) {
        let w = &self.words;
        let (address, ports) = if self.v6 {
            (bytemuck::cast([w[4], w[5], w[6], w[7]]), w[8])
        } else {
            (mapped(w[1].to_ne_bytes()), w[2])
        };
        let [_, _, a, b] = ports.to_ne_bytes();
        (address, [a, b])
    }

    /// Bytes of [`Self::words`] that count.
    #[inline(always)]
    #[must_use]
    pub const fn size(&self) -> u32 {
        if self.v6 { 36 } else { 12 }
    }
}

/// Where a packet's own headers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The IP header.
    pub ip: u32,
    /// The TCP header.
    pub tcp: u32,
    /// Whether they are those of the flow (and not inside of an ICMP error).
    pub own: bool,
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
    /// A socket of the flow itself, in any state but LISTEN and TIME_WAIT.
    Flow,
    /// What is left of a connection that this node ended (TIME_WAIT). The client may have opened another one from the same
    /// port since, which another node holds.
    TimeWait,
}

/// A SYN cookie that this kernel made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Initial sequence number.
    pub sequence: u32,
    /// Maximum segment size to offer.
    pub segment: u16,
}

impl Cookie {
    /// One word; 0 stands for none.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        1 << 63 | (self.segment as u64) << 32 | self.sequence as u64
    }

    /// What [`Self::pack`] packed.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Option<Self> {
        if word == 0 {
            return None;
        }
        Some(Self {
            sequence: word as u32,
            segment: (word >> 32) as u16,
        })
    }
}

/// The way to an address, as the kernel's routes and neighbours give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// MAC of the next hop.
    pub destination_mac: [u8; 6],
    /// MAC of our interface.
    pub source_mac: [u8; 6],
    /// Our interface.
    pub ifindex: u32,
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
    fn vip(&self, slot: u32) -> Option<Live<'_, VipEntry>>;
    /// A slot of the node table, counted over both halves.
    fn node(&self, slot: u32) -> Option<Live<'_, NodeEntry>>;
    /// Whether a node is suspected of being dead.
    fn suspect(&self, node: NodeIndex) -> bool;
    /// The alive word of a node: the low bits of [`crate::probe::view`].
    fn alive(&self, node: NodeIndex) -> u64;
    /// A word of what the proxy's side says of itself, see [`crate::abi::fact`].
    fn fact(&self, slot: u32) -> u64;
    /// The proxy's heartbeat; 0 until the first beat.
    fn heartbeat(&self) -> u64;
    /// A word of what the program itself remembers, see [`crate::abi::state`].
    fn state(&self, slot: u32) -> u64;
    /// Sets such a word.
    fn set_state(&self, slot: u32, word: u64);
    /// A word of what this CPU remembers, see [`crate::abi::cpu_state`].
    fn cpu_state(&self, slot: u32) -> u64;
    /// Sets such a word.
    fn set_cpu_state(&self, slot: u32, word: u64);
    /// The kernel's tick counter.
    fn jiffies(&self) -> u64;
    /// What this node's sockets say about a packet of the flow.
    fn local(&self, packet: &Self::Packet, tuple: &Tuple, headers: Headers) -> Local;
    /// Whether the proxy has a listening socket for the VIPs of a group; what is looked up for their SYNs, in short.
    fn listens(&self, group: u16) -> bool;
    /// A cookie for the SYN of a flow that has a listening socket here, if the kernel makes one (RFC 4987): not while the
    /// listener's queue has room.
    fn cookie(&self, packet: &Self::Packet, tuple: &Tuple, headers: Headers) -> Option<Cookie>;
    /// The way from the VIP of a flow to its client.
    fn way_back(&self, packet: &Self::Packet, tuple: &Tuple) -> Option<Way>;
    /// Whether this node has a UDP session under a flow hash.
    fn session(&self, hash: u64) -> bool;
    /// What the list of sources says: [`crate::abi::SOURCE_ALLOWED`], [`crate::abi::SOURCE_DENIED`], 0 if nothing.
    fn source(&self, key: &SourceKey) -> u32;
    /// Counts one event in a cell of this CPU.
    fn count(&self, cell: u32);
    /// What a tracer asks for.
    fn filter(&self) -> Option<Live<'_, TraceFilter>>;
    /// Nanoseconds of CLOCK_MONOTONIC.
    fn clock(&self) -> u64;
    /// What this CPU put down of the packet that is decided about.
    fn draft(&self) -> TraceEvent;
    /// Puts that down.
    fn set_draft(&self, event: &TraceEvent);
    /// Tells the tracer about a packet.
    fn tell(&self, event: &TraceEvent);

    /// Calls [`outline::walk`].
    fn call_walk(&self, packet: &mut Self::Packet) -> u64 {
        outline::walk(packet)
    }
    /// Calls [`outline::arp`].
    fn call_arp(&self, packet: &mut Self::Packet) -> u64
    where
        Self: Sized,
    {
        outline::arp(packet, self)
    }
    /// Calls [`outline::icmp`].
    fn call_icmp(&self, packet: &mut Self::Packet, place: u64, direct: bool) -> u64
    where
        Self: Sized,
    {
        outline::icmp(packet, self, place, direct)
    }
    /// Calls [`outline::tunnel`].
    fn call_tunnel(&self, packet: &mut Self::Packet, place: u64) -> u64
    where
        Self: Sized,
    {
        outline::tunnel(packet, self, place)
    }
    /// Calls [`outline::probe`].
    fn call_probe(&self, packet: &mut Self::Packet, place: u64) -> u64
    where
        Self: Sized,
    {
        outline::probe(packet, self, place)
    }
    /// Calls [`outline::path`].
    fn call_path(&self, packet: &mut Self::Packet, place: u64) -> u64
    where
        Self: Sized,
    {
        outline::path(packet, self, place)
    }
    /// Calls [`outline::probe_code`].
    fn call_probe_code(&self, packet: &mut Self::Packet, at: u64, key: Key) -> u64 {
        outline::probe_code(packet, at, key)
    }
    /// Calls [`outline::decide`].
    fn call_decide(&self, packet: &mut Self::Packet, place: u64, hash: u64, arrival: u64) -> u64
    where
        Self: Sized,
    {
        outline::decide(packet, self, place, hash, arrival)
    }
    /// Calls [`outline::send`].
    fn call_send(
        &self,
        packet: &mut Self::Packet,
        place: u64,
        hash: u64,
        errand: u64,
        arrival: u64,
    ) -> u64
    where
        Self: Sized,
    {
        outline::send(packet, self, place, hash, errand, arrival)
    }
    /// Calls [`outline::traced`].
    fn call_traced(
        &self,
        packet: &mut Self::Packet,
        place: u64,
        hash: u64,
        vip: u64,
        arrival: u64,
    ) -> u64
    where
        Self: Sized,
    {
        outline::traced(packet, self, place, hash, vip, arrival)
    }
    /// Calls [`outline::wanted`].
    fn call_wanted(
        &self,
        packet: &mut Self::Packet,
        place: u64,
        hash: u64,
        arrival: u64,
        row: u64,
    ) -> u64
    where
        Self: Sized,
    {
        outline::wanted(packet, self, place, hash, arrival, row)
    }
    /// Calls [`outline::told`].
    fn call_told(&self, verdict: u64, why: u64) -> u64
    where
        Self: Sized,
    {
        outline::told(self, verdict, why)
    }
    /// Calls [`outline::refused`].
    fn call_refused(&self, packet: &mut Self::Packet, place: u64, verdict: u64) -> u64
    where
        Self: Sized,
    {
        outline::refused(packet, self, place, verdict)
    }
    /// Calls [`outline::held`].
    fn call_held(&self, packet: &mut Self::Packet, place: u64) -> u64
    where
        Self: Sized,
    {
        outline::held(packet, self, place)
    }
    /// Calls [`outline::first`].
    fn call_first(&self, row: u64, from: u64, or_me: bool, ready: bool) -> u64
    where
        Self: Sized,
    {
        outline::first(self, row, from, or_me, ready)
    }
    /// Calls [`outline::cookie`].
    fn call_cookie(&self, packet: &mut Self::Packet, place: u64, direct: bool) -> u64
    where
        Self: Sized,
    {
        outline::cookie(packet, self, place, direct)
    }
    /// Calls [`outline::syn_ack`].
    fn call_syn_ack(&self, packet: &mut Self::Packet, v6: bool, cookie: u64) -> u64 {
        outline::syn_ack(packet, v6, cookie)
    }
    /// Calls [`outline::too_big`].
    fn call_too_big(&self, packet: &mut Self::Packet, v6: bool, fits: u32) -> u64 {
        outline::too_big(packet, v6, fits)
    }
    /// Calls [`outline::address`].
    fn call_address(&self, first: u64, second: u64) -> u64
    where
        Self: Sized,
    {
        outline::address(self, first, second)
    }
    /// Calls [`outline::vip_beyond`].
    fn call_vip_beyond(&self, low: u64, high: u64, last_half: u64, first: u32) -> u64
    where
        Self: Sized,
    {
        outline::vip_beyond(self, low, high, last_half, first)
    }
    /// Calls [`outline::hash_v6`].
    fn call_hash_v6(&self, client: [u64; 2], vip: [u64; 2], last: u64) -> u64
    where
        Self: Sized,
    {
        outline::hash_v6(self, client, vip, last)
    }
    /// Calls [`outline::peer_address`].
    fn call_peer_address(&self, first: u64, second: u64) -> u64
    where
        Self: Sized,
    {
        outline::peer_address(self, first, second)
    }
    /// Calls [`outline::peer_mac`].
    fn call_peer_mac(&self, mac: u64) -> u64
    where
        Self: Sized,
    {
        outline::peer_mac(self, mac)
    }
    /// Calls [`outline::source`].
    fn call_source(&self, list: u16, first: u64, second: u64) -> u64
    where
        Self: Sized,
    {
        outline::source(self, list, first, second)
    }
}

/// The entry of a VIP, given by its [`crate::abi::VipKey::words`], in the live half of the table.
///
/// Most VIPs lie in the slot that their key hashes to; the way beyond is walked out of line.
#[inline(always)]
pub fn find_vip<'a, T: Tables>(
    tables: &'a T,
    config: LiveConfig<'_>,
    key: VipWords,
) -> Option<Live<'a, VipEntry>> {
    let half = config.vip_half() & 1;
    let first = vip_slot_of(key, config.vip_seed(half));
    let entry = tables.vip(half * VIP_SLOTS + first)?;
    if entry.flags() & vip_flag::USED == 0 {
        return None;
    }
    if same(entry.key(), key) {
        return Some(entry);
    }
    let ([high, low], last) = key;
    let last_half = last as u64 | (half as u64) << 32;
    match tables.call_vip_beyond(high, low, last_half, first) {
        0 => None,
        slot => tables.vip(slot as u32 - 1),
    }
}

/// Slot of a VIP's entry plus 1, looked for behind the first slot of its key; 0 if there is none.
#[inline(always)]
pub(super) fn vip_beyond<T: Tables>(
    tables: &T,
    address: [u64; 2],
    last_half: u64,
    first: u32,
) -> u32 {
    let (key, half) = ((address, last_half as u32), (last_half >> 32) as u32 & 1);
    for probe in 1..VIP_PROBES {
        let slot = half * VIP_SLOTS + (first.wrapping_add(probe) & (VIP_SLOTS - 1));
        let Some(entry) = tables.vip(slot) else {
            return 0;
        };
        if entry.flags() & vip_flag::USED == 0 {
            return 0;
        }
        if same(entry.key(), key) {
            return slot + 1;
        }
    }
    0
}

/// Equality without a call of `memcmp`, which is a loop over bytes in the kernel.
#[inline(always)]
const fn same(a: VipWords, b: VipWords) -> bool {
    (a.0[0] ^ b.0[0]) | (a.0[1] ^ b.0[1]) | (a.1 ^ b.1) as u64 == 0
}

/// Flags of the entry of an address itself (IPv4-mapped for IPv4), 0 if it is no VIP; above them its list of sources and its
/// number, 16 bits each.
#[inline(always)]
pub(super) fn find_address<T: Tables>(tables: &T, address: [u64; 2]) -> u64 {
    let Some(config) = tables.config() else {
        return 0;
    };
    find_vip(tables, config, (address, 0)).map_or(0, |entry| {
        let (sources, number) = (u64::from(entry.sources()), u64::from(entry.number()));
        number << 48 | sources << 32 | u64::from(entry.flags())
    })
}

/// [`find_address`], out of line: flags, list and number.
#[inline(always)]
pub(super) fn address_and_sources<T: Tables>(
    tables: &T,
    [first, second]: [u64; 2],
) -> (u32, u16, u16) {
    let word = tables.call_address(first, second);
    (word as u32, (word >> 32) as u16, (word >> 48) as u16)
}

/// The flags of [`address_and_sources`].
#[inline(always)]
pub(super) fn address_entry<T: Tables>(tables: &T, address: [u64; 2]) -> u32 {
    address_and_sources(tables, address).0
}
