//! The decision's packet and tables on the host: a byte vector and plain vectors.
//!
//! For tests, of this crate and of the agreement between kernel and host. Nothing here is fast.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::abi::{
    Config, Live, LiveConfig, MAX_NODES, NodeEntry, NodeIndex, ROWS, Row, SourceKey, TraceEvent,
    TraceFilter, VIP_NUMBERS, VIP_PROBES, VIP_SLOTS, VipEntry, VipKey, cpu_state, fact, peers,
    state, vip_flag,
};
use crate::hash::vip_slot;
use crate::packet::{Header, Packet};
use crate::probe::view;
use crate::steer::{Cookie, Headers, Local, Tables, Tuple, Way};

/// A packet in a byte vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPacket {
    /// Its bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Index of the interface on which it came in.
    pub ingress: u32,
    /// Bytes that can be pushed in front.
    pub headroom: u32,
}

impl Packet for HostPacket {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn read<H: Header>(&self, offset: u32) -> Option<H> {
        let offset = offset as usize;
        self.bytes
            .get(offset..offset + size_of::<H>())
            .map(bytemuck::pod_read_unaligned)
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let offset = offset as usize;
        let bytes = self.bytes.get(offset..offset + 4 * N)?;
        let word = |i| u32::from_ne_bytes(core::array::from_fn(|j| bytes[4 * i + j]));
        Some(core::array::from_fn(word))
    }

    fn write<H: Header>(&mut self, offset: u32, header: H) -> Option<()> {
        let offset = offset as usize;
        let place = self.bytes.get_mut(offset..offset + size_of::<H>())?;
        place.copy_from_slice(bytemuck::bytes_of(&header));
        Some(())
    }

    fn longs<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        let offset = offset as usize;
        let bytes = self.bytes.get(offset..offset + 8 * N)?;
        let word = |i| u64::from_ne_bytes(core::array::from_fn(|j| bytes[8 * i + j]));
        Some(core::array::from_fn(word))
    }

    fn write_words<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
        let offset = offset as usize;
        let place = self.bytes.get_mut(offset..offset + 4 * N)?;
        for (bytes, word) in place.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Some(())
    }

    fn push(&mut self, bytes: u32) -> Option<()> {
        self.headroom = self.headroom.checked_sub(bytes)?;
        self.bytes
            .splice(0..0, std::iter::repeat_n(0, bytes as usize));
        Some(())
    }

    fn pop(&mut self, bytes: u32) -> Option<()> {
        if bytes > self.len() {
            return None;
        }
        self.bytes.drain(..bytes as usize);
        self.headroom += bytes;
        Some(())
    }

    fn set_len(&mut self, length: u32) -> Option<()> {
        self.bytes.resize(length as usize, 0);
        Some(())
    }
}

/// A table that copies share until one of them is changed: a case of a test changes little of megabytes.
#[derive(Clone, Debug)]
pub struct Table<T>(Arc<[T]>);

impl<T> Table<T> {
    /// Whether both are one, so that nothing in them differs.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> From<Vec<T>> for Table<T> {
    fn from(entries: Vec<T>) -> Self {
        Self(entries.into())
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Clone> DerefMut for Table<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        Arc::make_mut(&mut self.0)
    }
}

/// A node's tables, clock and sockets as plain values.
#[derive(Clone, Debug)]
pub struct HostTables {
    /// The configuration.
    pub config: Config,
    /// All rows.
    pub rows: Table<Row>,
    /// Both halves of the VIP table.
    pub vips: Table<VipEntry>,
    /// Both halves of the node table.
    pub nodes: Table<NodeEntry>,
    /// Nodes suspected of being dead.
    pub suspects: Vec<NodeIndex>,
    /// Alive words of nodes that are not merely suspected.
    pub alive: Vec<(NodeIndex, u64)>,
    /// The words of `abi::fact`, the heartbeat excepted.
    pub facts: Vec<u64>,
    /// The proxy's heartbeat.
    pub heartbeat: u64,
    /// The kernel's tick counter.
    pub jiffies: u64,
    /// What the sockets say about a flow.
    pub sockets: Vec<(Tuple, Local)>,
    /// Address and port of listening sockets, which take every other flow; the rest have no socket.
    pub listeners: Vec<([u8; 16], [u8; 2])>,
    /// Groups of VIPs for which the proxy has a listening socket.
    pub groups: Vec<u16>,
    /// Flow hashes of UDP sessions.
    pub sessions: Vec<u64>,
    /// Prefixes of lists of sources: bits of the key that count, key, value.
    pub sources: Vec<(u32, SourceKey, u32)>,
    /// The cookie that the kernel would make, whatever the SYN.
    pub cookie: Option<Cookie>,
    /// The way to every client.
    pub way_back: Option<Way>,
    /// What the program remembers.
    pub state: RefCell<Vec<u64>>,
    /// What the CPU remembers.
    pub cpu_state: RefCell<Vec<u64>>,
    /// Cells that were counted in, in order; the verdict's own is not among them.
    pub cells: RefCell<Vec<u32>>,
    /// What a tracer asks for, while the configuration says that there is one.
    pub filter: TraceFilter,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub clock: u64,
    /// What is put down of a packet that is traced.
    pub draft: RefCell<TraceEvent>,
    /// What the tracer was told, in order.
    pub events: RefCell<Vec<TraceEvent>>,
}

impl Default for HostTables {
    fn default() -> Self {
        Self {
            config: Config::default(),
            rows: vec![Row::default(); ROWS as usize].into(),
            vips: vec![VipEntry::default(); 2 * VIP_SLOTS as usize].into(),
            nodes: vec![NodeEntry::default(); 2 * MAX_NODES as usize].into(),
            suspects: Vec::new(),
            alive: Vec::new(),
            facts: vec![0; fact::WORDS as usize],
            heartbeat: 0,
            jiffies: 0,
            sockets: Vec::new(),
            listeners: Vec::new(),
            groups: Vec::new(),
            sessions: Vec::new(),
            sources: Vec::new(),
            cookie: None,
            way_back: None,
            state: RefCell::new(vec![0; state::WORDS as usize]),
            cpu_state: RefCell::new(vec![0; cpu_state::WORDS as usize]),
            cells: RefCell::new(Vec::new()),
            filter: TraceFilter::default(),
            clock: 0,
            draft: RefCell::default(),
            events: RefCell::new(Vec::new()),
        }
    }
}

impl HostTables {
    /// Puts a VIP into the live half, numbered by its slot; `false` if no slot within the probes is free.
    pub fn put_vip(&mut self, key: VipKey, group: u16, flags: u32) -> bool {
        let half = self.config.vip_half & 1;
        let first = vip_slot(&key, self.config.vip_seed[half as usize]);
        for probe in 0..VIP_PROBES {
            let number = (first + probe) & (VIP_SLOTS - 1);
            let slot = &mut self.vips[(half * VIP_SLOTS + number) as usize];
            if slot.flags & vip_flag::USED == 0 {
                *slot = VipEntry {
                    key,
                    flags: flags | vip_flag::USED,
                    group,
                    number: (number % VIP_NUMBERS) as u16,
                    ..VipEntry::default()
                };
                return true;
            }
        }
        false
    }

    /// Puts a node into the live half and indexes it.
    pub fn put_node(&mut self, index: NodeIndex, entry: NodeEntry) {
        let first = ((self.config.node_half & 1) * MAX_NODES) as usize;
        let half = &mut self.nodes[first..first + MAX_NODES as usize];
        half[usize::from(index)] = entry;
        peers::index(half).expect("a test lists fewer nodes than there are probes");
    }
}

impl Tables for HostTables {
    type Packet = HostPacket;

    fn config(&self) -> Option<LiveConfig<'_>> {
        Some(LiveConfig::of(&self.config))
    }

    fn row(&self, row: u32) -> Option<Row> {
        self.rows.get(row as usize).copied()
    }

    fn vip(&self, slot: u32) -> Option<Live<'_, VipEntry>> {
        self.vips.get(slot as usize).map(Live::of)
    }

    fn node(&self, slot: u32) -> Option<Live<'_, NodeEntry>> {
        self.nodes.get(slot as usize).map(Live::of)
    }

    fn suspect(&self, node: NodeIndex) -> bool {
        self.alive(node) & u64::from(view::SUSPECT) != 0
    }

    fn alive(&self, node: NodeIndex) -> u64 {
        let word = self.alive.iter().find(|(index, _)| *index == node);
        let suspect = u64::from(self.suspects.contains(&node)) * u64::from(view::SUSPECT);
        word.map_or(0, |(_, word)| *word) | suspect
    }

    fn fact(&self, slot: u32) -> u64 {
        self.facts.get(slot as usize).copied().unwrap_or(0)
    }

    fn heartbeat(&self) -> u64 {
        self.heartbeat
    }

    fn state(&self, slot: u32) -> u64 {
        self.state.borrow()[slot as usize]
    }

    fn set_state(&self, slot: u32, word: u64) {
        self.state.borrow_mut()[slot as usize] = word;
    }

    fn jiffies(&self) -> u64 {
        self.jiffies
    }

    fn cpu_state(&self, slot: u32) -> u64 {
        self.cpu_state.borrow()[slot as usize]
    }

    fn set_cpu_state(&self, slot: u32, word: u64) {
        self.cpu_state.borrow_mut()[slot as usize] = word;
    }

    fn local(&self, _: &HostPacket, tuple: &Tuple, headers: Headers) -> Local {
        match self.sockets.iter().find(|(flow, _)| flow == tuple) {
            Some((_, Local::Cookie)) if !headers.own => Local::Listener,
            Some((_, local)) => *local,
            None if self.listeners.contains(&tuple.vip()) => Local::Listener,
            None => Local::None,
        }
    }

    fn listens(&self, group: u16) -> bool {
        self.groups.contains(&group)
    }

    fn cookie(&self, _: &HostPacket, _: &Tuple, _: Headers) -> Option<Cookie> {
        self.cookie
    }

    fn way_back(&self, _: &HostPacket, _: &Tuple) -> Option<Way> {
        self.way_back
    }

    fn session(&self, hash: u64) -> bool {
        self.sessions.contains(&hash)
    }

    fn source(&self, key: &SourceKey) -> u32 {
        let bits = |key: &SourceKey| {
            let [a, b, c, d] = key.list;
            (
                u32::from_be_bytes([a, b, c, d]),
                u128::from_be_bytes(key.address),
            )
        };
        let (list, address) = bits(key);
        let covers = |length: u32, prefix: &SourceKey| {
            let (of, prefix) = bits(prefix);
            let rest = 128 - (length - SourceKey::LIST_BITS);
            of == list && (rest == 128 || (address ^ prefix) >> rest == 0)
        };
        self.sources
            .iter()
            .filter(|(length, prefix, _)| covers(*length, prefix))
            .max_by_key(|(length, ..)| *length)
            .map_or(0, |(.., value)| *value)
    }

    fn count(&self, cell: u32) {
        self.cells.borrow_mut().push(cell);
    }

    fn filter(&self) -> Option<Live<'_, TraceFilter>> {
        Some(Live::of(&self.filter))
    }

    fn clock(&self) -> u64 {
        self.clock
    }

    fn draft(&self) -> TraceEvent {
        *self.draft.borrow()
    }

    fn set_draft(&self, event: &TraceEvent) {
        self.draft.replace(*event);
    }

    fn tell(&self, event: &TraceEvent) {
        self.events.borrow_mut().push(*event);
    }
}
