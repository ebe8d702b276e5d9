//! The steering rows: which node owns each, who comes next, which are in transition.
//!
//! The ranking of the listed nodes is kept per row (the best `KEPT` of them, by index), because it depends on
//! names and weights alone: a node that turns ready or draining costs no hashing, one that comes or goes only
//! its own scores and the rows that it was in. Rows come out as `gateway_common::rendezvous::rank` makes them.

use std::collections::BTreeMap;

use gateway_common::abi::{NodeIndex, ROWS, Row};
use gateway_common::rendezvous::score;

use super::membership::Member;
use crate::snapshot::ReplicaState;

/// Best nodes remembered for each row: one more than a row names, so that a leaving node seldom costs a
/// ranking from scratch.
const KEPT: usize = 5;

/// What a node's scores depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranked {
    /// `rendezvous::name_hash` of its name.
    pub name_hash: u64,
    /// Its capacity, 1 to 255.
    pub weight: u8,
}

/// What a row needs to know of a node beside its rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// It may own rows.
    pub ready: bool,
    /// It may hold sockets of rows in which it outranks the owner.
    pub holds: bool,
    /// Others may hold sockets of the rows that it owns.
    pub settling: bool,
}

impl Standing {
    /// Of a listed node.
    #[must_use]
    pub fn of(member: &Member) -> Self {
        Self {
            ready: member.state == ReplicaState::Ready,
            // Others may be a step ahead, where it owns rows already.
            holds: member.holds_until.is_some() || member.waits(),
            settling: member.settles_at.is_some() || member.episode.is_some(),
        }
    }
}

/// The rankings of all rows.
#[derive(Clone, Debug)]
pub struct Ranks {
    nodes: BTreeMap<NodeIndex, Ranked>,
    /// Highest first, 0 ends the list.
    best: Box<[[NodeIndex; KEPT]]>,
}

impl Default for Ranks {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            best: vec![[0; KEPT]; ROWS as usize].into_boxed_slice(),
        }
    }
}

impl Ranks {
    /// The rankings of the first `rows` rows alone: a model of many nodes needs no more.
    #[cfg(test)]
    pub(super) fn of_first(rows: u32) -> Self {
        Self {
            nodes: BTreeMap::new(),
            best: vec![[0; KEPT]; rows as usize].into_boxed_slice(),
        }
    }

    /// Ranks exactly `nodes`.
    pub fn update(&mut self, nodes: &BTreeMap<NodeIndex, Ranked>) {
        let gone: Vec<NodeIndex> = self
            .nodes
            .iter()
            .filter(|(index, node)| nodes.get(index) != Some(node))
            .map(|(index, _)| *index)
            .collect();
        let come: Vec<NodeIndex> = nodes
            .iter()
            .filter(|(index, node)| self.nodes.get(index) != Some(node))
            .map(|(index, _)| *index)
            .collect();
        if gone.is_empty() && come.is_empty() {
            return;
        }
        let staying = self.nodes.len() - gone.len();
        self.nodes.clone_from(nodes);
        let listed: Vec<(NodeIndex, Ranked)> = nodes.iter().map(|(i, node)| (*i, *node)).collect();
        let highest = listed.last().map_or(0, |(index, _)| usize::from(*index));
        let mut by_index = vec![Ranked::default(); highest + 1];
        for (index, node) in &listed {
            by_index[usize::from(*index)] = *node;
        }
        let mut candidates = Vec::with_capacity(KEPT + come.len());
        for (row, best) in (0..ROWS).zip(&mut self.best) {
            let before = length(best);
            remove(best, &gone);
            let kept = length(best);
            if kept < before && kept < KEPT - 1 && kept < staying {
                *best = top(row, &listed);
            } else if !come.is_empty() {
                let last = kept.checked_sub(1).map(|last| best[last]);
                // Most rows see nothing of a newcomer: two scores tell, where a new ranking takes one for each node.
                let below_all = |last: NodeIndex| {
                    let lowest = key(&by_index[usize::from(last)], row);
                    come.iter()
                        .all(|index| key(&by_index[usize::from(*index)], row) < lowest)
                };
                if (kept == KEPT || kept < staying) && last.is_some_and(below_all) {
                    continue;
                }
                let indices = best[..kept].iter().chain(&come);
                candidates.clear();
                candidates.extend(indices.map(|index| (*index, by_index[usize::from(*index)])));
                *best = top(row, &candidates);
                // Below the last one kept there may be staying nodes that the list does not have.
                if kept < staying {
                    let end = best.iter().position(|i| Some(*i) == last);
                    best[end.map_or(KEPT, |end| end + 1)..].fill(0);
                }
            }
        }
    }

    /// The rows for nodes that stand as `standing` says. `all` puts every row in transition that names more
    /// than one node.
    #[must_use]
    pub fn rows(&self, standing: &BTreeMap<NodeIndex, Standing>, all: bool) -> Box<[Row]> {
        let highest = standing.keys().next_back().map_or(0, |i| usize::from(*i));
        let mut by_index = vec![Standing::default(); highest + 1];
        for (index, stands) in standing {
            by_index[usize::from(*index)] = *stands;
        }
        (0..ROWS)
            .zip(&self.best)
            .map(|(row, best)| self.row(row, best, &by_index, all))
            .collect()
    }

    fn row(&self, row: u32, best: &[NodeIndex; KEPT], standing: &[Standing], all: bool) -> Row {
        let of = |index: NodeIndex| {
            standing
                .get(usize::from(index))
                .copied()
                .unwrap_or_default()
        };
        let listed = &best[..length(best)];
        let owner = match listed.iter().find(|index| of(**index).ready) {
            Some(owner) => *owner,
            None => self.highest_ready(row, &of),
        };
        let mut next = [(0, false); 3];
        let mut above = true;
        let mut held = false;
        let mut places = next.iter_mut();
        for index in listed {
            if *index == owner {
                above = false;
                continue;
            }
            held |= above && of(*index).holds;
            if let Some(place) = places.next() {
                *place = (*index, above);
            }
        }
        let others = next[0].0 != 0;
        let transition = others && (all || held || owner == 0 || of(owner).settling);
        Row::new(owner, transition, next)
    }

    /// The owner of a row whose best nodes are all not ready.
    fn highest_ready(&self, row: u32, of: &impl Fn(NodeIndex) -> Standing) -> NodeIndex {
        self.nodes
            .iter()
            .filter(|(index, _)| of(**index).ready)
            .max_by_key(|(_, node)| key(node, row))
            .map_or(0, |(index, _)| *index)
    }
}

/// The node that speaks for `row` among `nodes`: the highest rank, 0 if there is none.
#[must_use]
pub fn highest(row: u32, nodes: &BTreeMap<NodeIndex, Ranked>) -> NodeIndex {
    nodes
        .iter()
        .max_by_key(|(_, node)| key(node, row))
        .map_or(0, |(index, _)| *index)
}

/// Ranks compare by score, equal scores by the name's hash, as `rendezvous` says.
fn key(node: &Ranked, row: u32) -> (u64, u64) {
    (score(node.name_hash, node.weight, row), node.name_hash)
}

fn length(best: &[NodeIndex; KEPT]) -> usize {
    best.iter().position(|index| *index == 0).unwrap_or(KEPT)
}

fn remove(best: &mut [NodeIndex; KEPT], gone: &[NodeIndex]) {
    let mut kept = [0; KEPT];
    let left = best.iter().filter(|i| **i != 0 && !gone.contains(i));
    for (place, index) in kept.iter_mut().zip(left) {
        *place = *index;
    }
    *best = kept;
}

/// The best of `nodes` in a row, each scored once.
fn top(row: u32, nodes: &[(NodeIndex, Ranked)]) -> [NodeIndex; KEPT] {
    let mut best = [((0, 0), 0); KEPT];
    for (index, node) in nodes {
        let mut carried = (key(node, row), *index);
        for place in &mut best {
            if place.1 == 0 || place.0 < carried.0 {
                std::mem::swap(place, &mut carried);
            }
            if carried.1 == 0 {
                break;
            }
        }
    }
    best.map(|(_, index)| index)
}

#[cfg(test)]
mod tests {
    use gateway_common::rendezvous::{RankedNode, name_hash, rank};
    use proptest::prelude::*;

    use super::*;

    const KEY: [u64; 2] = [1, 2];

    fn ranked(index: NodeIndex, weight: u8) -> Ranked {
        Ranked {
            name_hash: name_hash(KEY, &format!("node-{index}")),
            weight,
        }
    }

    fn ready(nodes: &BTreeMap<NodeIndex, Ranked>) -> BTreeMap<NodeIndex, Standing> {
        let stands = Standing {
            ready: true,
            ..Standing::default()
        };
        nodes.keys().map(|index| (*index, stands)).collect()
    }

    fn of(indices: &[NodeIndex]) -> BTreeMap<NodeIndex, Ranked> {
        indices.iter().map(|i| (*i, ranked(*i, 1))).collect()
    }

    fn shares(rows: &[Row]) -> BTreeMap<NodeIndex, usize> {
        rows.iter().fold(BTreeMap::new(), |mut shares, row| {
            *shares.entry(row.owner()).or_default() += 1;
            shares
        })
    }

    #[test]
    fn three_equal_nodes_share_the_rows_within_two_percent() {
        let nodes = of(&[1, 2, 3]);
        let mut ranks = Ranks::default();
        ranks.update(&nodes);
        let rows = ranks.rows(&ready(&nodes), false);
        let shares = shares(&rows);
        assert_eq!(shares.len(), 3);
        assert!(
            shares.values().all(|n| (21_400..22_300).contains(n)),
            "{shares:?}"
        );
        assert!(rows.iter().all(|row| !row.in_transition()));
    }

    #[test]
    fn a_node_that_leaves_moves_only_its_own_rows() {
        let mut ranks = Ranks::default();
        ranks.update(&of(&[1, 2, 3, 4]));
        let before = ranks.rows(&ready(&of(&[1, 2, 3, 4])), false);
        ranks.update(&of(&[1, 3, 4]));
        let after = ranks.rows(&ready(&of(&[1, 3, 4])), false);
        for (old, new) in before.iter().zip(&after) {
            assert!(old.owner() == 2 || old.owner() == new.owner());
            assert_ne!(new.owner(), 2);
        }
    }

    #[test]
    fn rows_are_in_transition_where_a_draining_node_outranks_the_owner() {
        let nodes = of(&[1, 2, 3]);
        let mut ranks = Ranks::default();
        ranks.update(&nodes);
        let mut standing = ready(&nodes);
        let whole = ranks.rows(&standing, false);
        standing.insert(
            2,
            Standing {
                ready: false,
                holds: true,
                settling: false,
            },
        );
        let rows = ranks.rows(&standing, false);
        for (old, new) in whole.iter().zip(&rows) {
            assert_eq!(new.in_transition(), old.owner() == 2);
            assert_eq!(new.next(0) == 2 && new.outranks_owner(0), old.owner() == 2);
        }
        standing.insert(2, Standing::default());
        assert!(
            ranks
                .rows(&standing, false)
                .iter()
                .all(|row| !row.in_transition())
        );
    }

    #[test]
    fn rows_of_a_settling_owner_are_in_transition_unless_it_is_alone() {
        let settling = Standing {
            ready: true,
            holds: false,
            settling: true,
        };
        let mut ranks = Ranks::default();
        ranks.update(&of(&[1, 2]));
        let mut standing = ready(&of(&[1, 2]));
        standing.insert(1, settling);
        for row in &ranks.rows(&standing, false) {
            assert_eq!(row.in_transition(), row.owner() == 1);
        }
        ranks.update(&of(&[1]));
        let alone = ranks.rows(&[(1, settling)].into(), true);
        assert!(
            alone
                .iter()
                .all(|row| *row == Row::new(1, false, [(0, false); 3]))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3))]
        #[test]
        fn kept_rankings_equal_rankings_from_scratch(
            steps in prop::collection::vec(prop::collection::btree_map(1u16..14, (1u8..4, any::<bool>()), 0..12), 1..5),
            sample in prop::collection::vec(0..ROWS, 200),
        ) {
            let mut ranks = Ranks::default();
            for step in &steps {
                let nodes: BTreeMap<NodeIndex, Ranked> = step.iter().map(|(i, (w, _))| (*i, ranked(*i, *w))).collect();
                ranks.update(&nodes);
                let standing = step.iter()
                    .map(|(i, (_, ready))| (*i, Standing { ready: *ready, ..Standing::default() }))
                    .collect();
                let rows = ranks.rows(&standing, false);
                let listed: Vec<RankedNode> = step.iter().map(|(i, (_, ready))| {
                    let node = ranked(*i, nodes[i].weight);
                    RankedNode { index: *i, name_hash: node.name_hash, weight: node.weight, ready: *ready }
                }).collect();
                for row in &sample {
                    let got = rows[*row as usize];
                    prop_assert_eq!(got, rank(*row, &listed, got.in_transition()), "row {}", row);
                }
            }
        }
    }
}
