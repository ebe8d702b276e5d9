//! What the kernel programs counted: sums over all CPUs, by reason, node and VIP.
//!
//! The array is as long as this machine needs: a row of cells for each CPU that it may have, and one more, in which is kept what was
//! counted for nodes and VIPs whose index or number others have by now. So sums of reasons never go down.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use gateway_common::abi::{
    COUNTERS_PER_CPU, Counter, MAX_CPUS, MAX_NODES, NodeIndex, Path, VIP_NUMBERS, VipCell,
    reason_of,
};

/// Packets to one node, in the order of [`Path::ALL`].
pub type OfNode = [u64; Path::ALL.len()];

/// Sums over all CPUs since the maps were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By the reasons' names.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Packets to other nodes, by index; those without any are left out.
    pub nodes: BTreeMap<NodeIndex, OfNode>,
    /// Packets for VIPs, by number; those without any are left out.
    pub vips: BTreeMap<u16, u64>,
}

impl Counts {
    /// Out of the sums of all cells, as [`sums`] gives them; missing ones count as zero.
    #[must_use]
    pub fn of(sums: &[u64]) -> Self {
        let at = |cell: u32| sums.get(cell as usize).copied().unwrap_or(0);
        let mut of_reasons = [0_u64; Counter::ALL.len()];
        for (cell, sum) in (0..COUNTERS_PER_CPU).zip(sums) {
            if let Some(reason) = reason_of(cell) {
                let place = &mut of_reasons[reason.slot() as usize];
                *place = place.wrapping_add(*sum);
            }
        }
        let reasons = Counter::ALL.iter().zip(of_reasons);
        let nodes = (1..MAX_NODES as NodeIndex)
            .map(|node| (node, Path::ALL.map(|path| at(path.cell(node)))))
            .filter(|(_, paths)| paths.iter().any(|sum| *sum != 0));
        let vips = (0..VIP_NUMBERS as u16)
            .map(|number| {
                let cells = VipCell::ALL.map(|cell| at(cell.cell(number)));
                (number, cells.iter().sum())
            })
            .filter(|(_, sum)| *sum != 0);
        Self {
            reasons: reasons
                .map(|(counter, sum)| (counter.name(), sum))
                .collect(),
            nodes: nodes.collect(),
            vips: vips.collect(),
        }
    }

    /// Packets to a node.
    #[must_use]
    pub fn of_node(&self, node: NodeIndex) -> OfNode {
        self.nodes.get(&node).copied().unwrap_or_default()
    }

    /// Packets for a VIP.
    #[must_use]
    pub fn of_vip(&self, number: u16) -> u64 {
        self.vips.get(&number).copied().unwrap_or(0)
    }
}

/// Words that the array has on this machine.
#[must_use]
pub fn words_here() -> u32 {
    let possible = aya::util::nr_cpus().map_or(MAX_CPUS, |cpus| cpus as u32);
    (possible.clamp(1, MAX_CPUS) + 1) * COUNTERS_PER_CPU
}

/// Whether an array of this many words has a row for a CPU and one more.
#[must_use]
pub const fn is_whole(words: u32) -> bool {
    words.is_multiple_of(COUNTERS_PER_CPU) && words / COUNTERS_PER_CPU >= 2
}

/// Sums of all cells over the rows of the array.
#[must_use]
pub fn sums(words: &[AtomicU64]) -> Vec<u64> {
    let mut sums = vec![0_u64; COUNTERS_PER_CPU as usize];
    for row in words.chunks_exact(COUNTERS_PER_CPU as usize) {
        for (sum, word) in sums.iter_mut().zip(row) {
            *sum = sum.wrapping_add(word.load(Ordering::Relaxed));
        }
    }
    sums
}

/// The index is another node's from now on: nothing is counted for it yet. To be called while no row names it.
pub fn retire_node(words: &[AtomicU64], node: NodeIndex) {
    for path in Path::ALL {
        retire(words, path.cell(node));
    }
}

/// The number is another VIP's from now on.
pub fn retire_vip(words: &[AtomicU64], number: u16) {
    for cell in VipCell::ALL {
        retire(words, cell.cell(number));
    }
}

/// Empties a cell; its reason keeps what it had.
fn retire(words: &[AtomicU64], cell: u32) {
    let row = COUNTERS_PER_CPU as usize;
    let had: u64 = words
        .iter()
        .skip(cell as usize)
        .step_by(row)
        .map(|word| word.swap(0, Ordering::Relaxed))
        .sum();
    // No CPU counts in the last row.
    let last = (words.len() / row).saturating_sub(1) * row;
    if let Some(reason) = reason_of(cell).filter(|_| had != 0) {
        words[last + reason.slot() as usize].fetch_add(had, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array() -> Vec<AtomicU64> {
        (0..3 * COUNTERS_PER_CPU)
            .map(|_| AtomicU64::new(0))
            .collect()
    }

    fn add(words: &[AtomicU64], cpu: u32, cell: u32, n: u64) {
        words[(cpu * COUNTERS_PER_CPU + cell) as usize].fetch_add(n, Ordering::Relaxed);
    }

    #[test]
    fn a_reason_is_the_sum_of_its_cells() {
        let words = array();
        add(&words, 0, Path::L2.cell(3), 5);
        add(&words, 1, Path::L2.cell(4), 6);
        add(&words, 1, Path::Heir.cell(4), 1);
        add(&words, 0, VipCell::Owned.cell(9), 10);
        add(&words, 1, VipCell::Other.cell(9), 12);
        add(&words, 1, Counter::OwnPass.slot(), 100);
        let counts = Counts::of(&sums(&words));
        assert_eq!(counts.reasons["forward_l2"], 11);
        assert_eq!(counts.reasons["syn_heir"], 1);
        assert_eq!(counts.reasons["own_pass"], 110);
        assert_eq!(counts.reasons["local_only"], 0);
        assert_eq!(
            counts.nodes,
            BTreeMap::from([(3, [5, 0, 0, 0]), (4, [6, 0, 0, 1])])
        );
        assert_eq!((counts.of_vip(9), counts.of_vip(8)), (22, 0));
        assert_eq!(counts.of_node(5), [0; 4]);
    }

    #[test]
    fn whoever_gets_an_index_or_a_number_begins_at_zero_and_sums_stay() {
        let words = array();
        add(&words, 0, Path::Udp.cell(3), 5);
        add(&words, 1, Path::Udp.cell(3), 6);
        add(&words, 1, Path::Udp.cell(4), 1);
        add(&words, 0, VipCell::Owned.cell(9), 10);
        add(&words, 0, VipCell::Other.cell(9), 3);
        let before = Counts::of(&sums(&words)).reasons;
        for _twice in 0..2 {
            retire_node(&words, 3);
            retire_vip(&words, 9);
        }
        let after = Counts::of(&sums(&words));
        assert_eq!(after.reasons, before);
        assert_eq!(after.nodes, BTreeMap::from([(4, [0, 1, 0, 0])]));
        assert_eq!(after.vips, BTreeMap::new());
    }

    #[test]
    fn the_array_has_a_row_for_every_cpu_and_one_more() {
        assert!(is_whole(words_here()));
        for bad in [0, COUNTERS_PER_CPU, 2 * COUNTERS_PER_CPU + 1] {
            assert!(!is_whole(bad), "{bad}");
        }
        assert_eq!(Counts::of(&[]).reasons.len(), Counter::ALL.len());
    }
}
