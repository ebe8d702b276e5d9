//! Weighted rendezvous: which nodes a row ranks highest.
//!
//! A node's score in a row is a pure function of (row, node name, weight), so nodes that list the same members
//! agree without a log, and a node that comes or goes moves no row between the others. Scores are integers:
//! core has no `ln`, and all hosts must agree bit for bit. Who is listed or ready is not decided here.

use crate::abi::{NodeIndex, Row};
use crate::hash::{Key, mix, sip13};

/// A listed node as the ranks see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankedNode {
    /// Its index in this machine's node table; has no influence on ranks.
    pub index: NodeIndex,
    /// [`name_hash`] of its name.
    pub name_hash: u64,
    /// Its capacity, 1 to 255; 0 counts as 1.
    pub weight: u8,
    /// Whether it may own rows (neither joining nor draining).
    pub ready: bool,
}

/// What a node contributes to its scores, computed once per node.
#[must_use]
pub fn name_hash(key: Key, name: &str) -> u64 {
    sip13(key, name.as_bytes())
}

/// Score of a node in a row; the highest wins, equal scores are broken by the higher `name_hash`.
///
/// With `u` uniform in (0, 1] from the pair's hash the winner is the node with the least −log2(u) / weight,
/// which makes its share of rows proportional to its weight (Thaler and Ravishankar's rendezvous with
/// exponential variates).
#[inline]
#[must_use]
pub const fn score(name_hash: u64, weight: u8, row: u32) -> u64 {
    let hash = mix(name_hash ^ mix(row as u64 + 1));
    let weight = if weight == 0 { 1 } else { weight as u64 };
    !(minus_log2(hash) / weight)
}

/// The row that `nodes` (in any order) make: the owner is the highest-ranked ready one, the others are the
/// three highest-ranked of the rest.
#[must_use]
pub fn rank(row: u32, nodes: &[RankedNode], in_transition: bool) -> Row {
    let mut owner: Option<Ranked> = None;
    for node in nodes.iter().filter(|node| node.ready) {
        let ranked = Ranked::of(node, row);
        if owner.is_none_or(|best| ranked.above(best)) {
            owner = Some(ranked);
        }
    }
    let owner_index = owner.map_or(0, |owner| owner.index);
    let mut others = [None; 3];
    for node in nodes.iter().filter(|node| node.index != owner_index) {
        let mut ranked = Some(Ranked::of(node, row));
        for place in &mut others {
            if beats(ranked, *place) {
                core::mem::swap(&mut ranked, place);
            }
        }
    }
    Row::new(
        owner_index,
        in_transition,
        others.map(|other| other.map_or((0, false), |o| (o.index, beats(Some(o), owner)))),
    )
}

#[derive(Clone, Copy)]
struct Ranked {
    score: u64,
    name_hash: u64,
    index: NodeIndex,
}

impl Ranked {
    fn of(node: &RankedNode, row: u32) -> Self {
        Self {
            score: score(node.name_hash, node.weight, row),
            name_hash: node.name_hash,
            index: node.index,
        }
    }

    fn above(self, other: Self) -> bool {
        (self.score, self.name_hash) > (other.score, other.name_hash)
    }
}

/// Whether `a` exists and ranks above `b`, if that exists.
fn beats(a: Option<Ranked>, b: Option<Ranked>) -> bool {
    a.is_some_and(|a| b.is_none_or(|b| a.above(b)))
}

/// Fraction bits of logarithms: 64 × 2^57 just fits.
const FRACTION: u32 = 57;

/// log2(1 + i/256) with [`FRACTION`] bits, i from 0 to 256.
const LOG2: [u64; 257] = log2_table();

/// −log2(hash / 2^64) with [`FRACTION`] bits, between table entries by a straight line.
const fn minus_log2(hash: u64) -> u64 {
    let hash = hash | 1;
    let zeros = hash.leading_zeros();
    let mantissa = hash << zeros << 1;
    let index = (mantissa >> 56) as usize;
    let step = (LOG2[index + 1] - LOG2[index]) as u128;
    let between = ((step * (mantissa << 8) as u128) >> 64) as u64;
    ((zeros as u64 + 1) << FRACTION) - LOG2[index] - between
}

const fn log2_table() -> [u64; 257] {
    let mut table = [0; 257];
    let mut i = 0;
    while i < 256 {
        table[i] = log2_fraction((256 + i as u64) << 54);
        i += 1;
    }
    table[256] = 1 << FRACTION;
    table
}

/// log2 of `x` / 2^62 for 2^62 ≤ `x` < 2^63, bit by bit: squaring a number doubles its logarithm.
const fn log2_fraction(mut x: u64) -> u64 {
    let mut result = 0;
    let mut bit = 1 << (FRACTION - 1);
    while bit > 0 {
        x = ((x as u128 * x as u128) >> 62) as u64;
        if x >= 1 << 63 {
            x >>= 1;
            result |= bit;
        }
        bit >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::ROWS;
    use proptest::prelude::*;

    const KEY: Key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    fn nodes(count: u16) -> Vec<RankedNode> {
        nodes_under(KEY, count)
    }

    fn nodes_under(key: Key, count: u16) -> Vec<RankedNode> {
        let hash = |index: u16| name_hash(key, &format!("node-{index}"));
        (1..=count)
            .map(|index| RankedNode {
                index,
                name_hash: hash(index),
                weight: 1,
                ready: true,
            })
            .collect()
    }

    /// Rows owned by each index.
    fn shares(nodes: &[RankedNode]) -> Vec<u32> {
        let mut shares = vec![0; nodes.len() + 1];
        for row in 0..ROWS {
            shares[usize::from(rank(row, nodes, false).owner())] += 1;
        }
        shares
    }

    /// Median over some keys of the largest share, in parts of the mean share.
    fn largest<const KEYS: usize>(count: u16) -> f64 {
        let mut largest: [f64; KEYS] = core::array::from_fn(|seed| {
            let nodes = nodes_under([seed as u64, 7], count);
            f64::from(*shares(&nodes).iter().max().unwrap()) * f64::from(count) / f64::from(ROWS)
        });
        largest.sort_by(f64::total_cmp);
        largest[KEYS / 2]
    }

    #[test]
    fn log2_golden_vectors() {
        let table = [
            0,
            810_582_964_917_646,
            84_301_980_808_752_399,
            143_708_708_440_709_634,
            1 << FRACTION,
        ];
        assert_eq!([0, 1, 128, 255, 256].map(|i| LOG2[i]), table);
        let golden = [1, 1 << FRACTION, 59_813_207_267_103_473, 64 << FRACTION];
        assert_eq!([u64::MAX, 1 << 63, 3 << 62, 0].map(minus_log2), golden);
    }

    #[test]
    fn log2_is_close_and_monotonic() {
        let mut last = u64::MAX;
        for i in 0..100_000u64 {
            let hash = i * (u64::MAX / 100_000) + 12_345;
            let exact = 64.0 - (hash as f64).log2();
            let ours = minus_log2(hash) as f64 / (1u64 << FRACTION) as f64;
            assert!((exact - ours).abs() < 4e-6, "{hash:#x}: {exact} {ours}");
            assert!(minus_log2(hash) <= last);
            last = minus_log2(hash);
        }
    }

    #[test]
    fn score_golden_vectors() {
        let name = name_hash(KEY, "node-1");
        assert_eq!(name, 0xba2a_5eb0_49d7_3fc5);
        let golden = [
            0xff81_81ec_cece_a3dd,
            0xff88_781d_70f6_22ec,
            0xffff_8102_efbe_8d31,
        ];
        assert_eq!(
            [
                score(name, 1, 0),
                score(name, 1, 65_535),
                score(name, 255, 0)
            ],
            golden
        );
        let three = nodes(3);
        let golden = [0x3_0001_0002, 0x3_0001_0002, 0x2_0003_0001, 0x3_0002_0001];
        assert_eq!(
            [0, 1, 2, 65_535].map(|row| rank(row, &three, false).0),
            golden
        );
    }

    #[test]
    fn no_node_gets_much_more_than_its_share() {
        assert!(largest::<5>(10) <= 1.02, "{}", largest::<5>(10));
        assert!(largest::<1>(100) <= 1.10, "{}", largest::<1>(100));
    }

    #[test]
    fn shares_follow_weights() {
        let mut four = nodes(4);
        for (node, weight) in four.iter_mut().zip([1, 2, 5, 8]) {
            node.weight = weight;
        }
        for (share, weight) in shares(&four)[1..].iter().zip([1.0, 2.0, 5.0, 8.0]) {
            let expected = f64::from(ROWS) * weight / 16.0;
            assert!(
                (f64::from(*share) / expected - 1.0).abs() < 0.05,
                "{share} of {expected}"
            );
        }
    }

    #[test]
    fn owner_outside_the_top_four_is_still_found() {
        let mut ten = nodes(10);
        for node in &mut ten {
            node.ready = node.index == 10;
        }
        for row in 0..1_000 {
            let entry = rank(row, &ten, true);
            assert!(entry.owner() == 10 && entry.in_transition());
            let below = (0..3).filter(|&i| !entry.outranks_owner(i)).count();
            let place = ten
                .iter()
                .filter(|n| score(n.name_hash, 1, row) > score(ten[9].name_hash, 1, row))
                .count();
            assert_eq!(below, 3usize.saturating_sub(place), "row {row}");
        }
        assert_eq!(rank(0, &[], false), Row::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_node_that_leaves_moves_only_its_rows(count in 2u16..12, gone in 0usize..12, from in 0u32..60_000) {
            let before = nodes(count);
            let gone = gone % usize::from(count);
            let mut after = before.clone();
            let gone = after.remove(gone).index;
            for row in from..from + 2_000 {
                let (old, new) = (rank(row, &before, false), rank(row, &after, false));
                if old.owner() == gone {
                    prop_assert_eq!(new.owner(), old.next(0));
                } else {
                    prop_assert_eq!(new.owner(), old.owner());
                }
            }
        }

        #[test]
        fn order_and_indices_do_not_matter(count in 1u16..9, turn in 0usize..9, row in 0u32..ROWS) {
            let list = nodes(count);
            let mut turned = list.clone();
            turned.rotate_left(turn % list.len());
            prop_assert_eq!(rank(row, &list, false), rank(row, &turned, false));
        }

        #[test]
        fn a_draining_node_keeps_its_rank(count in 2u16..9, row in 0u32..ROWS) {
            let ready = nodes(count);
            let old = rank(row, &ready, false);
            let mut draining = ready.clone();
            draining[usize::from(old.owner()) - 1].ready = false;
            let new = rank(row, &draining, true);
            prop_assert_eq!(new.owner(), old.next(0));
            prop_assert_eq!((new.next(0), new.outranks_owner(0)), (old.owner(), true));
            prop_assert_eq!((new.next(1), new.outranks_owner(1)), (old.next(1), false));
        }
    }
}
