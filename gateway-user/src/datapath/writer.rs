//! Carries out map operations: halves are built aside and flipped, rows are single stores.
//!
//! The half that was live before the last flip rests [`REST`] before it is written again, so that a program that
//! read the flip word just before finds its half whole. A flip is one store, after everything that it shows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use gateway_common::abi::{
    Config, MAX_NODES, NodeEntry, NodeIndex, VIP_SLOTS, VipEntry, VipKey, node_flag, peers,
    vip_flag,
};

use super::mmap::{MappedArray, SharedTables};
use super::trace::{TRACE_WORD, end_if_over};
use super::{Error, counts};
use crate::l4::diff::{Image, MapOp, without_halves};
use crate::l4::sources::SourceTable;
use crate::l4::tables::VipHalf;

/// How long a half rests after the other one went live.
pub const REST: Duration = Duration::from_millis(100);

const NODE_WORDS: usize = size_of::<NodeEntry>() / 4;
const VIP_WORDS: usize = size_of::<VipEntry>() / 4;
const VIP_HALF_WORD: usize = std::mem::offset_of!(Config, vip_half) / 4;
const NODE_HALF_WORD: usize = std::mem::offset_of!(Config, node_half) / 4;
const VIP_SEED_WORD: usize = std::mem::offset_of!(Config, vip_seed) / 4;
const NODE_FLAGS_WORD: usize = std::mem::offset_of!(NodeEntry, flags) / 4;

/// Writes the tables.
#[derive(Debug)]
pub struct Writer {
    config: Arc<MappedArray>,
    nodes: Arc<MappedArray>,
    vips: Arc<MappedArray>,
    counters: Arc<MappedArray>,
    shared: SharedTables,
    nodes_flipped: Option<Instant>,
    vips_flipped: Option<Instant>,
}

impl Writer {
    /// A writer over mapped tables.
    #[must_use]
    pub fn new(
        config: Arc<MappedArray>,
        nodes: Arc<MappedArray>,
        vips: Arc<MappedArray>,
        counters: Arc<MappedArray>,
        shared: SharedTables,
    ) -> Self {
        // Who wrote before us may have flipped just now.
        let now = Some(Instant::now());
        Self {
            config,
            nodes,
            vips,
            counters,
            shared,
            nodes_flipped: now,
            vips_flipped: now,
        }
    }

    /// Ends what a tracer left that was killed; `filter` is what it asked for.
    pub fn end_trace_if_over(&self, filter: &MappedArray) {
        end_if_over(&self.config, filter);
    }

    /// Rows, alive words and heartbeat.
    #[must_use]
    pub fn shared(&self) -> &SharedTables {
        &self.shared
    }

    /// What the live halves say.
    #[must_use]
    pub fn image(&self) -> Image {
        let config: Config = self.config.read(0);
        let first = live(config.node_half) * MAX_NODES as usize;
        let nodes = (first..first + MAX_NODES as usize)
            .map(|slot| self.nodes.read::<NodeEntry>(slot * NODE_WORDS))
            .map(|entry| match entry.flags & node_flag::LISTED {
                0 => entry.unlisted(),
                // The peer index belongs to slots and is made anew with every half.
                _ => NodeEntry {
                    by_address: 0,
                    by_mac: 0,
                    ..entry
                },
            })
            .collect();
        let vips: BTreeMap<_, _> = self
            .live_vips(live(config.vip_half))
            .map(|entry| (entry.key, entry))
            .collect();
        Image {
            config: without_halves(config),
            nodes,
            vips,
            rows: self.shared.rows(),
            sources: SourceTable::new(),
        }
    }

    /// Entries of a half of the VIP table.
    fn live_vips(&self, half: usize) -> impl Iterator<Item = VipEntry> {
        let first = half * VIP_SLOTS as usize;
        (first..first + VIP_SLOTS as usize)
            .map(|slot| self.vips.read::<VipEntry>(slot * VIP_WORDS))
            .filter(|entry| entry.flags & vip_flag::USED != 0)
    }

    /// Carries out one operation; blocks at most [`REST`].
    ///
    /// # Errors
    /// More nodes than the table can index; the live half is as it was.
    pub fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        match op {
            MapOp::Config(config) => self.write_config(*config),
            MapOp::Nodes(nodes) => self.write_nodes(nodes)?,
            MapOp::UnlistNodes(indices) => self.unlist(indices),
            MapOp::Vips(half) => self.write_vips(half),
            MapOp::Rows(rows) => self.shared.store_rows(rows),
            // A trie, not a table in shared memory: not this writer's.
            MapOp::Sources(_) => {}
        }
        Ok(())
    }

    fn write_config(&self, wanted: Config) {
        let current: Config = self.config.read(0);
        let whole = Config {
            vip_half: current.vip_half,
            node_half: current.node_half,
            vip_seed: current.vip_seed,
            ..wanted
        };
        // All but the tracer's word: it is not ours, and the tracer may write it at any moment.
        let words: &[u32] = bytemuck::cast_slice(bytemuck::bytes_of(&whole));
        for (at, (place, word)) in self.config.half_words().iter().zip(words).enumerate() {
            if at != TRACE_WORD {
                place.store(*word, Ordering::Relaxed);
            }
        }
    }

    fn write_nodes(&mut self, nodes: &[NodeEntry]) -> Result<(), Error> {
        let mut nodes = nodes.to_vec();
        peers::index(&mut nodes).map_err(|index| Error::TooManyNodes { index })?;
        rest(self.nodes_flipped);
        let half = 1 - live(self.config.half_words()[NODE_HALF_WORD].load(Ordering::Relaxed));
        let first = half * MAX_NODES as usize;
        let other = (1 - half) * MAX_NODES as usize;
        for (index, entry) in (0..MAX_NODES as NodeIndex).zip(&nodes) {
            let slot = other + usize::from(index);
            let was: NodeEntry = self.nodes.read(slot * NODE_WORDS);
            let listed = was.flags & node_flag::LISTED != 0 && was.address == entry.address;
            if entry.flags & node_flag::LISTED != 0 && !listed {
                counts::retire_node(self.counters.words(), index);
            }
        }
        for (slot, entry) in (first..first + MAX_NODES as usize).zip(&nodes) {
            self.nodes.write(slot * NODE_WORDS, entry);
        }
        self.flip(NODE_HALF_WORD, half);
        self.nodes_flipped = Some(Instant::now());
        Ok(())
    }

    fn unlist(&self, indices: &[NodeIndex]) {
        let half = live(self.config.half_words()[NODE_HALF_WORD].load(Ordering::Relaxed));
        for index in indices
            .iter()
            .filter(|index| u32::from(**index) < MAX_NODES)
        {
            let at = (half * MAX_NODES as usize + usize::from(*index)) * NODE_WORDS;
            let entry: NodeEntry = self.nodes.read(at);
            self.nodes.half_words()[at + NODE_FLAGS_WORD]
                .store(entry.unlisted().flags, Ordering::Release);
        }
    }

    fn write_vips(&mut self, vips: &VipHalf) {
        rest(self.vips_flipped);
        let half = 1 - live(self.config.half_words()[VIP_HALF_WORD].load(Ordering::Relaxed));
        let first = half * VIP_SLOTS as usize;
        let had: BTreeMap<u16, VipKey> = self
            .live_vips(1 - half)
            .map(|entry| (entry.number, entry.key))
            .collect();
        for (_, entry) in &vips.slots {
            if had.get(&entry.number) != Some(&entry.key) {
                counts::retire_vip(self.counters.words(), entry.number);
            }
        }
        let words =
            &self.vips.half_words()[first * VIP_WORDS..(first + VIP_SLOTS as usize) * VIP_WORDS];
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
        for (slot, entry) in &vips.slots {
            self.vips.write((first + *slot as usize) * VIP_WORDS, entry);
        }
        self.config.half_words()[VIP_SEED_WORD + half].store(vips.seed, Ordering::Relaxed);
        self.flip(VIP_HALF_WORD, half);
        self.vips_flipped = Some(Instant::now());
    }

    fn flip(&self, word: usize, half: usize) {
        fence(Ordering::SeqCst);
        self.config.half_words()[word].store(u32::from(half == 1), Ordering::SeqCst);
    }
}

fn live(half: u32) -> usize {
    usize::from(half & 1 == 1)
}

fn rest(flipped: Option<Instant>) {
    if let Some(left) = flipped.and_then(|at| REST.checked_sub(at.elapsed())) {
        std::thread::sleep(left);
    }
}

#[cfg(test)]
mod tests {
    use gateway_common::abi::{COUNTERS_PER_CPU, Path, ROWS, Row, VipCell, fact};

    use super::*;

    fn array(entries: u32, value_size: usize) -> Arc<MappedArray> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(u64::from(entries) * value_size as u64)
            .unwrap();
        Arc::new(MappedArray::new("TEST", &file, entries, value_size).unwrap())
    }

    fn writer() -> Writer {
        let shared = SharedTables {
            rows: array(ROWS, 8),
            alive: array(MAX_NODES, 8),
            heartbeat: array(fact::WORDS, 8),
            tags: array(1, 16),
        };
        Writer::new(
            array(1, size_of::<Config>()),
            array(2 * MAX_NODES, size_of::<NodeEntry>()),
            array(2 * VIP_SLOTS, size_of::<VipEntry>()),
            array(2 * COUNTERS_PER_CPU, 8),
            shared,
        )
    }

    #[test]
    fn operations_do_to_the_maps_what_they_do_to_an_image() {
        let mut writer = writer();
        let mut image = Image::default();
        assert_eq!(writer.image(), image);
        let mut nodes = image.nodes.clone();
        nodes[3] = NodeEntry {
            flags: node_flag::LISTED,
            ifindex: 2,
            ..NodeEntry::default()
        };
        nodes[4] = NodeEntry {
            flags: node_flag::LISTED | node_flag::ON_LINK | node_flag::RESOLVED,
            mac: [2, 0, 0, 0, 0, 4],
            ..NodeEntry::default()
        };
        let key = VipKey {
            address: [9; 16],
            port: [0, 80],
            protocol: 6,
            pad: 0,
        };
        let vip = VipEntry {
            key,
            flags: vip_flag::USED,
            group: 5,
            number: 1,
            sources: 0,
            reserved: 0,
        };
        let ops = [
            MapOp::Nodes(nodes),
            MapOp::Rows(vec![(0, Row(3)), (65_535, Row(4))]),
            MapOp::Config(Config {
                self_index: 3,
                flags: 1,
                ..Config::default()
            }),
            MapOp::UnlistNodes(vec![4]),
            MapOp::Vips(VipHalf {
                seed: 8,
                slots: vec![(8191, vip)],
            }),
            MapOp::Vips(VipHalf {
                seed: 9,
                slots: vec![],
            }),
        ];
        for op in &ops {
            writer.apply(op).unwrap();
            image.apply(op);
            assert_eq!(writer.image(), image, "after {op:?}");
        }
        assert_eq!(image.nodes[4].mac[5], 4, "who left is known by its MAC");
        let slot = peers::address_slot(&[0; 16]) as usize + MAX_NODES as usize;
        let indexed: NodeEntry = writer.nodes.read(slot * NODE_WORDS);
        assert_eq!(indexed.by_address, 3, "peers are indexed");
        let config: Config = writer.config.read(0);
        assert_eq!(
            (config.node_half, config.vip_half, config.vip_seed),
            (1, 0, [9, 8])
        );
    }

    #[test]
    fn the_tracers_word_is_neither_written_nor_part_of_the_tables() {
        let mut writer = writer();
        let before = writer.image();
        writer.config.half_words()[TRACE_WORD].store(7, Ordering::Relaxed);
        assert_eq!(writer.image(), before);
        let config = Config {
            self_index: 3,
            ..Config::default()
        };
        writer.apply(&MapOp::Config(config)).unwrap();
        let written: Config = writer.config.read(0);
        assert_eq!((written.trace, written.self_index), (7, 3));
    }

    #[test]
    fn a_newcomer_does_not_inherit_what_was_counted() {
        let mut writer = writer();
        let node = |last: u8| NodeEntry {
            address: [last; 16],
            flags: node_flag::LISTED,
            ..NodeEntry::default()
        };
        let nodes = |index: usize, last| {
            let mut nodes = Image::default().nodes;
            nodes[1] = node(1);
            nodes[index] = node(last);
            MapOp::Nodes(nodes)
        };
        let vips = |last: u8| {
            let vip = |last: u8, number| VipEntry {
                key: VipKey::v4([192, 0, 2, last], [0, 80], 6),
                flags: vip_flag::USED,
                number,
                ..VipEntry::default()
            };
            MapOp::Vips(VipHalf {
                seed: 1,
                slots: vec![(0, vip(100, 7)), (1, vip(last, 8))],
            })
        };
        let cells = [
            Path::L2.cell(1),
            Path::L2.cell(2),
            VipCell::Owned.cell(7),
            VipCell::Owned.cell(8),
        ];
        let count = |writer: &Writer| {
            for cell in cells {
                writer.counters.words()[cell as usize].fetch_add(1, Ordering::Relaxed);
            }
        };
        let counted = |writer: &Writer| {
            let sums = counts::sums(writer.counters.words());
            cells.map(|cell| sums[cell as usize])
        };
        // The same tables again: they keep what they have.
        for _twice in 0..2 {
            for op in [nodes(2, 2), vips(1)] {
                writer.apply(&op).unwrap();
            }
            count(&writer);
        }
        assert_eq!(counted(&writer), [2, 2, 2, 2]);
        for op in [nodes(2, 3), vips(2)] {
            writer.apply(&op).unwrap();
        }
        assert_eq!(counted(&writer), [2, 0, 2, 0]);
        let counts = counts::Counts::of(&counts::sums(writer.counters.words()));
        assert_eq!(
            (counts.reasons["forward_l2"], counts.reasons["own_pass"]),
            (4, 4)
        );
        count(&writer);
        // A node that went and came begins anew.
        writer.apply(&MapOp::UnlistNodes(vec![2])).unwrap();
        writer.apply(&nodes(2, 3)).unwrap();
        assert_eq!(counted(&writer), [3, 0, 3, 1]);
    }

    #[test]
    fn a_half_rests_before_it_is_written_again() {
        let mut writer = writer();
        let half = MapOp::Vips(VipHalf {
            seed: 1,
            slots: vec![],
        });
        writer.apply(&half).unwrap();
        let flipped = Instant::now();
        writer.apply(&half).unwrap();
        assert!(
            flipped.elapsed() >= REST - Duration::from_millis(5),
            "{:?}",
            flipped.elapsed()
        );
    }
}
