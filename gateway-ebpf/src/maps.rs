//! The maps, and the decision's view of them.
//!
//! The daemon writes most of them through shared memory at any time, so a word is read once, by a volatile read. This program writes only
//! to `STATE`, `CPU_STATE` and `COUNTERS`, and tells a tracer through `TRACE_EVENTS`.

use core::marker::PhantomData;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{
    bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_release,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, DevMapHash, LpmTrie, RingBuf, SockMap};
use gateway_common::abi::{
    self, Config, Live, LiveConfig, MAX_CPUS, MAX_NODES, MAX_SOURCES, NodeEntry, NodeIndex, Row,
    SourceKey, TagSet, TraceEvent, TraceFilter, VIP_SLOTS, VipEntry, cpu_state, fact, state, tag,
};
use gateway_common::probe::view;
use gateway_common::steer::{Cookie, Headers, Local, Tables, Tuple, Way};

use crate::context::{SkbPacket, XdpPacket};
use crate::counters;
use crate::outline::{self, Outlined};

/// Devices that packets may be redirected to.
const MAX_DEVICES: u32 = 64;

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static ROWS: Array<u64> = Array::with_max_entries(abi::ROWS, BPF_F_MMAPABLE);
#[map]
static VIPS: Array<VipEntry> = Array::with_max_entries(2 * VIP_SLOTS, BPF_F_MMAPABLE);
#[map]
static NODES: Array<NodeEntry> = Array::with_max_entries(2 * MAX_NODES, BPF_F_MMAPABLE);
#[map]
static ALIVE: Array<u64> = Array::with_max_entries(MAX_NODES, BPF_F_MMAPABLE);
#[map]
static HEARTBEAT: Array<u64> = Array::with_max_entries(fact::WORDS, BPF_F_MMAPABLE);
#[map]
static STATE: Array<u64> = Array::with_max_entries(state::WORDS, BPF_F_MMAPABLE);
#[map]
static CPU_STATE: Array<u64> = Array::with_max_entries(MAX_CPUS * cpu_state::WORDS, BPF_F_MMAPABLE);
#[map]
static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::with_max_entries(MAX_SOURCES, BPF_F_NO_PREALLOC);
#[map]
pub static COUNTERS: Array<u64> =
    Array::with_max_entries((abi::MAX_CPUS + 1) * abi::COUNTERS_PER_CPU, BPF_F_MMAPABLE);
#[map]
pub static SOCKETS: SockMap = SockMap::with_max_entries(abi::GROUPS * abi::SLOTS_PER_GROUP, 0);
#[map]
static PORTS: Array<u64> = Array::with_max_entries(abi::PORT_WORDS, BPF_F_MMAPABLE);
#[map]
static TAGS: Array<TagSet> = Array::with_max_entries(abi::TAG_SETS, BPF_F_MMAPABLE);
#[map]
static TRACE: Array<TraceFilter> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static TRACE_DRAFT: Array<TraceEvent> = Array::with_max_entries(MAX_CPUS, 0);
#[map]
static TRACE_EVENTS: RingBuf = RingBuf::with_byte_size(abi::TRACE_BYTES, 0);
#[map]
pub static DEVICES: DevMapHash = DevMapHash::with_max_entries(MAX_DEVICES, 0);

/// Whether the proxy's own sockets are bound to this port (host order).
#[inline(always)]
pub fn is_proxy_port(port: u16) -> bool {
    let port = u32::from(port);
    word(&PORTS, port / 64) >> (port % 64) & 1 != 0
}

/// The decision's tables as they are in the kernel, for one form of packets.
pub struct Maps<P>(PhantomData<P>);

/// For what sees no packet.
pub const MAPS: Maps<XdpPacket> = Maps::frames();

impl Maps<XdpPacket> {
    /// For XDP.
    #[inline(always)]
    pub const fn frames() -> Self {
        Self(PhantomData)
    }
}

impl Maps<SkbPacket> {
    /// For traffic control.
    #[inline(always)]
    pub const fn buffers() -> Self {
        Self(PhantomData)
    }
}

impl<P: Outlined> Tables for Maps<P> {
    type Packet = P;

    #[inline(always)]
    fn config(&self) -> Option<LiveConfig<'_>> {
        // SAFETY: a map's value is aligned to eight bytes and stays; the daemon writes whole words.
        CONFIG
            .get_ptr(0)
            .map(|config| unsafe { LiveConfig::at(config) })
    }

    #[inline(always)]
    fn row(&self, row: u32) -> Option<Row> {
        Some(Row(word(&ROWS, row)))
    }

    #[inline(always)]
    fn vip(&self, slot: u32) -> Option<Live<'_, VipEntry>> {
        // SAFETY: as for the configuration.
        VIPS.get_ptr(slot).map(|entry| unsafe { Live::at(entry) })
    }

    #[inline(always)]
    fn node(&self, slot: u32) -> Option<Live<'_, NodeEntry>> {
        // SAFETY: as for the configuration.
        NODES.get_ptr(slot).map(|entry| unsafe { Live::at(entry) })
    }

    #[inline(always)]
    fn suspect(&self, node: NodeIndex) -> bool {
        self.alive(node) & u64::from(view::SUSPECT) != 0
    }

    #[inline(always)]
    fn alive(&self, node: NodeIndex) -> u64 {
        word(&ALIVE, u32::from(node))
    }

    #[inline(always)]
    fn fact(&self, slot: u32) -> u64 {
        word(&HEARTBEAT, slot)
    }

    #[inline(always)]
    fn heartbeat(&self) -> u64 {
        self.fact(fact::BEAT)
    }

    #[inline(always)]
    fn state(&self, slot: u32) -> u64 {
        word(&STATE, slot)
    }

    #[inline(always)]
    fn set_state(&self, slot: u32, word: u64) {
        store(&STATE, slot, word);
    }

    #[inline(always)]
    fn jiffies(&self) -> u64 {
        // SAFETY: the helper takes nothing and reads no memory of ours.
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn cpu_state(&self, slot: u32) -> u64 {
        word(&CPU_STATE, cpu() * cpu_state::WORDS + slot)
    }

    #[inline(always)]
    fn set_cpu_state(&self, slot: u32, word: u64) {
        store(&CPU_STATE, cpu() * cpu_state::WORDS + slot, word);
    }

    #[inline(always)]
    fn local(&self, packet: &P, tuple: &Tuple, headers: Headers) -> Local {
        packet.local(tuple, headers)
    }

    #[inline(always)]
    fn listens(&self, group: u16) -> bool {
        let first = u32::from(group) % abi::GROUPS * abi::SLOTS_PER_GROUP;
        (first..first + abi::SLOTS_PER_GROUP).any(has_socket)
    }

    #[inline(always)]
    fn cookie(&self, packet: &P, tuple: &Tuple, headers: Headers) -> Option<Cookie> {
        // The helper's word: the sequence number, then the segment size.
        Cookie::unpack(packet.syn_cookie(tuple, headers))
    }

    #[inline(always)]
    fn way_back(&self, packet: &P, tuple: &Tuple) -> Option<Way> {
        let mut way = Way {
            destination_mac: [0; 6],
            source_mac: [0; 6],
            ifindex: 0,
        };
        packet.way_back(tuple, &mut way).then_some(way)
    }

    #[inline(always)]
    fn session(&self, hash: u64) -> bool {
        let Some(set) = TAGS.get_ptr(tag::set_of(hash)) else {
            return false;
        };
        let first = set.cast::<u64>();
        // SAFETY: the pointer comes from a lookup in a map of sets, each two words long and aligned to eight bytes.
        let words: [u64; 2] = core::array::from_fn(|i| unsafe { first.add(i).read_volatile() });
        tag::holds(bytemuck::cast(words), hash)
    }

    #[inline(always)]
    fn source(&self, key: &SourceKey) -> u32 {
        SOURCES
            .get(&Key::new(8 * size_of::<SourceKey>() as u32, *key))
            .copied()
            .unwrap_or(0)
    }

    #[inline(always)]
    fn count(&self, cell: u32) {
        counters::count(cell);
    }

    #[inline(always)]
    fn filter(&self) -> Option<Live<'_, TraceFilter>> {
        // SAFETY: as for the configuration.
        TRACE.get_ptr(0).map(|filter| unsafe { Live::at(filter) })
    }

    #[inline(always)]
    fn clock(&self) -> u64 {
        // SAFETY: the helper takes nothing and reads no memory of ours.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn draft(&self) -> TraceEvent {
        TRACE_DRAFT.get(cpu()).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn set_draft(&self, event: &TraceEvent) {
        if let Some(draft) = TRACE_DRAFT.get_ptr_mut(cpu()) {
            // SAFETY: the pointer comes from a lookup in a map of events, and no other CPU writes to this one.
            unsafe { draft.write(*event) };
        }
    }

    /// The reader is not woken: it looks from time to time.
    #[inline(always)]
    fn tell(&self, event: &TraceEvent) {
        if TRACE_EVENTS
            .output::<TraceEvent>(event, u64::from(BPF_RB_NO_WAKEUP))
            .is_err()
        {
            let lost = self.cpu_state(cpu_state::TRACE_LOST);
            self.set_cpu_state(cpu_state::TRACE_LOST, lost.wrapping_add(1));
        }
    }

    #[inline(always)]
    fn call_walk(&self, packet: &mut P) -> u64 {
        packet.walk()
    }

    #[inline(always)]
    fn call_arp(&self, packet: &mut P) -> u64 {
        packet.arp()
    }

    #[inline(always)]
    fn call_icmp(&self, packet: &mut P, place: u64, direct: bool) -> u64 {
        packet.icmp(place, u64::from(direct))
    }

    #[inline(always)]
    fn call_tunnel(&self, packet: &mut P, place: u64) -> u64 {
        packet.tunnel(place)
    }

    #[inline(always)]
    fn call_probe(&self, packet: &mut P, place: u64) -> u64 {
        packet.probe(place)
    }

    #[inline(always)]
    fn call_path(&self, packet: &mut P, place: u64) -> u64 {
        packet.path(place)
    }

    #[inline(always)]
    fn call_probe_code(&self, packet: &mut P, at: u64, [low, high]: [u64; 2]) -> u64 {
        packet.probe_code(at, low, high)
    }

    #[inline(always)]
    fn call_decide(&self, packet: &mut P, place: u64, hash: u64, arrival: u64) -> u64 {
        packet.decide(place, hash, arrival)
    }

    #[inline(always)]
    fn call_send(&self, packet: &mut P, place: u64, hash: u64, errand: u64, arrival: u64) -> u64 {
        packet.send(place, hash, errand, arrival)
    }

    #[inline(always)]
    fn call_traced(&self, packet: &mut P, place: u64, hash: u64, vip: u64, arrival: u64) -> u64 {
        packet.traced(place, hash, vip, arrival)
    }

    #[inline(always)]
    fn call_wanted(&self, packet: &mut P, place: u64, hash: u64, arrival: u64, row: u64) -> u64 {
        packet.wanted(place, hash, arrival, row)
    }

    #[inline(always)]
    fn call_told(&self, verdict: u64, why: u64) -> u64 {
        outline::forebay_told(verdict, why)
    }

    #[inline(always)]
    fn call_refused(&self, packet: &mut P, place: u64, verdict: u64) -> u64 {
        packet.refused(place, verdict)
    }

    #[inline(always)]
    fn call_held(&self, packet: &mut P, place: u64) -> u64 {
        packet.held(place)
    }

    #[inline(always)]
    fn call_first(&self, row: u64, from: u64, or_me: bool, ready: bool) -> u64 {
        outline::forebay_first(row, from, u64::from(or_me), u64::from(ready))
    }

    #[inline(always)]
    fn call_cookie(&self, packet: &mut P, place: u64, direct: bool) -> u64 {
        packet.cookie(place, u64::from(direct))
    }

    #[inline(always)]
    fn call_syn_ack(&self, packet: &mut P, v6: bool, cookie: u64) -> u64 {
        packet.syn_ack(u64::from(v6), cookie)
    }

    #[inline(always)]
    fn call_too_big(&self, packet: &mut P, v6: bool, fits: u32) -> u64 {
        packet.too_big(u64::from(v6), u64::from(fits))
    }

    #[inline(always)]
    fn call_address(&self, first: u64, second: u64) -> u64 {
        outline::forebay_address(first, second)
    }

    #[inline(always)]
    fn call_vip_beyond(&self, low: u64, high: u64, last_half: u64, first: u32) -> u64 {
        outline::forebay_vip_beyond(low, high, last_half, u64::from(first))
    }

    #[inline(always)]
    fn call_hash_v6(&self, [a, b]: [u64; 2], [c, d]: [u64; 2], last: u64) -> u64 {
        outline::forebay_hash_v6(a, b, c, d, last)
    }

    #[inline(always)]
    fn call_peer_address(&self, first: u64, second: u64) -> u64 {
        outline::forebay_peer_address(first, second)
    }

    #[inline(always)]
    fn call_peer_mac(&self, mac: u64) -> u64 {
        outline::forebay_peer_mac(mac)
    }

    #[inline(always)]
    fn call_source(&self, list: u16, first: u64, second: u64) -> u64 {
        outline::forebay_source(u64::from(list), first, second)
    }
}

/// Whether a slot of the map of listening sockets is taken. A socket leaves the map when it is closed.
#[inline(always)]
fn has_socket(slot: u32) -> bool {
    let map = (&raw const SOCKETS).cast_mut().cast();
    // SAFETY: the map's key is a word; what is found is a socket, given back once and not used after.
    unsafe {
        let socket = bpf_map_lookup_elem(map, (&raw const slot).cast());
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
    }
    true
}

/// A word of a map of words; 0 where there is no such entry.
#[inline(always)]
fn word(map: &Array<u64>, index: u32) -> u64 {
    // SAFETY: the pointer comes from a lookup in a map of u64; one aligned load.
    map.get_ptr(index)
        .map_or(0, |word| unsafe { word.read_volatile() })
}

/// Sets a word of a map of words; nothing where there is no such entry.
#[inline(always)]
fn store(map: &Array<u64>, index: u32, word: u64) {
    if let Some(place) = map.get_ptr_mut(index) {
        // SAFETY: the pointer comes from a lookup in a map of u64; one aligned store.
        unsafe { place.write_volatile(word) };
    }
}

/// The processor that runs this; those beyond the last row of per-processor arrays share it.
#[inline(always)]
pub fn cpu() -> u32 {
    // SAFETY: the helper takes nothing and reads no memory of ours.
    unsafe { bpf_get_smp_processor_id() }.min(MAX_CPUS - 1)
}
