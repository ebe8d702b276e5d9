//! The maps, and the decision's view of them.
//!
//! The daemon writes most of them through shared memory at any time, so a word is read once, by a volatile read,
//! and entries are copied out before they are looked at. This program writes only to `STATE` and `COUNTERS`.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::bpf_jiffies64;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMapHash, SockMap};
use bytemuck::{Pod, cast};
use gateway_common::abi::{
    self, Config, Counter, LiveConfig, MAX_NODES, NodeEntry, NodeIndex, Row, VIP_SLOTS, VipEntry,
    state,
};
use gateway_common::steer::{Local, Tables, Tuple};

use crate::context::XdpPacket;
use crate::counters;

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
static HEARTBEAT: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static STATE: Array<u64> = Array::with_max_entries(state::WORDS, BPF_F_MMAPABLE);
#[map]
pub static COUNTERS: Array<u64> =
    Array::with_max_entries(abi::MAX_CPUS * abi::COUNTERS_PER_CPU, BPF_F_MMAPABLE);
#[map]
pub static SOCKETS: SockMap = SockMap::with_max_entries(abi::GROUPS * abi::SLOTS_PER_GROUP, 0);
#[map]
static PORTS: Array<u64> = Array::with_max_entries(abi::PORT_WORDS, BPF_F_MMAPABLE);
#[map]
pub static DEVICES: DevMapHash = DevMapHash::with_max_entries(MAX_DEVICES, 0);

/// Whether the proxy's own sockets are bound to this port (host order).
#[inline(always)]
pub fn is_proxy_port(port: u16) -> bool {
    let port = u32::from(port);
    word(&PORTS, port / 64) >> (port % 64) & 1 != 0
}

/// The decision's tables as they are in the kernel.
pub struct Maps;

impl Tables for Maps {
    type Packet = XdpPacket;

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
    fn vip(&self, slot: u32) -> Option<VipEntry> {
        entry::<VipEntry, 4>(&VIPS, slot)
    }

    #[inline(always)]
    fn node(&self, slot: u32) -> Option<NodeEntry> {
        entry::<NodeEntry, 6>(&NODES, slot)
    }

    #[inline(always)]
    fn suspect(&self, node: NodeIndex) -> bool {
        word(&ALIVE, u32::from(node)) != 0
    }

    #[inline(always)]
    fn heartbeat(&self) -> u64 {
        word(&HEARTBEAT, 0)
    }

    #[inline(always)]
    fn state(&self, slot: u32) -> u64 {
        word(&STATE, slot)
    }

    #[inline(always)]
    fn set_state(&self, slot: u32, word: u64) {
        if let Some(place) = STATE.get_ptr_mut(slot) {
            // SAFETY: the pointer comes from a lookup in a map of u64; one aligned store.
            unsafe { place.write_volatile(word) };
        }
    }

    #[inline(always)]
    fn jiffies(&self) -> u64 {
        // SAFETY: the helper takes nothing and reads no memory of ours.
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn local(&self, packet: &XdpPacket, tuple: &Tuple) -> Local {
        packet.local(tuple)
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        counters::count(counter);
    }
}

/// A word of a map of words; 0 where there is no such entry.
#[inline(always)]
fn word(map: &Array<u64>, index: u32) -> u64 {
    // SAFETY: the pointer comes from a lookup in a map of u64; one aligned load.
    map.get_ptr(index)
        .map_or(0, |word| unsafe { word.read_volatile() })
}

/// An entry of a map, copied out word by word.
#[inline(always)]
fn entry<T: Pod, const WORDS: usize>(map: &Array<T>, index: u32) -> Option<T> {
    const { assert!(size_of::<T>() == WORDS * 8) };
    let first = map.get_ptr(index)?.cast::<u64>();
    // SAFETY: the pointer comes from a lookup in a map whose values are WORDS words long, and elements of an
    // array map lie at multiples of eight bytes.
    let words: [u64; WORDS] = core::array::from_fn(|i| unsafe { first.add(i).read_volatile() });
    Some(cast(words))
}
