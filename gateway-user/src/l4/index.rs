//! Small stable integers for nodes.
//!
//! A node keeps its index while it is listed; after that the index rests for [`REST`] before another node gets
//! it, so that no packet in flight and no half-written table can name the wrong machine. Indices are local to
//! this machine and are never sent to others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use gateway_common::abi::{MAX_NODES, NodeIndex};

use super::Time;

/// How long an index stays unused after its node left.
pub const REST: Duration = Duration::from_secs(60);

/// Which node has which index.
#[derive(Clone, Debug, Default)]
pub struct Indices {
    listed: BTreeMap<String, NodeIndex>,
    resting: BTreeMap<NodeIndex, Time>,
    adopted: BTreeMap<IpAddr, NodeIndex>,
}

impl Indices {
    /// Remembers what the pinned tables of an earlier process call the node at `address`: the node gets that
    /// index again, anybody else only after the rest.
    pub fn adopt(&mut self, index: NodeIndex, address: IpAddr, now: Time) {
        if index != 0 && u32::from(index) < MAX_NODES {
            self.adopted.insert(address, index);
            self.resting.insert(index, now + REST);
        }
    }

    /// Lists exactly `nodes` (name and address) and returns their indices; names for which the table has no
    /// room come back beside them, in order.
    pub fn assign(
        &mut self,
        nodes: &BTreeMap<String, IpAddr>,
        now: Time,
    ) -> (BTreeMap<String, NodeIndex>, Vec<String>) {
        let gone: Vec<String> = self
            .listed
            .keys()
            .filter(|name| !nodes.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            if let Some(index) = self.listed.remove(&name) {
                self.resting.insert(index, now + REST);
            }
        }
        self.resting.retain(|_, until| *until > now);
        let mut left_out = Vec::new();
        for (name, address) in nodes {
            if self.listed.contains_key(name) {
                continue;
            }
            match self.pick(*address) {
                Some(index) => {
                    self.resting.remove(&index);
                    self.listed.insert(name.clone(), index);
                }
                None => left_out.push(name.clone()),
            }
        }
        (self.listed.clone(), left_out)
    }

    fn pick(&mut self, address: IpAddr) -> Option<NodeIndex> {
        let used: BTreeSet<NodeIndex> = self.listed.values().copied().collect();
        if let Some(index) = self.adopted.remove(&address)
            && !used.contains(&index)
        {
            return Some(index);
        }
        let last = NodeIndex::try_from(MAX_NODES - 1).expect("MAX_NODES fits an index");
        (1..=last).find(|index| !used.contains(index) && !self.resting.contains_key(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[(&str, u8)]) -> BTreeMap<String, IpAddr> {
        names
            .iter()
            .map(|(name, last)| ((*name).to_owned(), IpAddr::from([10, 0, 0, *last])))
            .collect()
    }

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_index_stays_and_rests_before_it_is_given_again() {
        let mut indices = Indices::default();
        let (first, _) = indices.assign(&nodes(&[("a", 1), ("b", 2), ("c", 3)]), at(0));
        assert_eq!((first["a"], first["b"], first["c"]), (1, 2, 3));
        let (second, _) = indices.assign(&nodes(&[("b", 2), ("c", 3), ("d", 4)]), at(10));
        assert_eq!((second["b"], second["c"], second["d"]), (2, 3, 4));
        let (third, _) = indices.assign(&nodes(&[("b", 2), ("c", 3), ("d", 4), ("e", 5)]), at(69));
        assert_eq!(third["e"], 5, "index 1 still rests");
        let (fourth, _) = indices.assign(
            &nodes(&[("b", 2), ("c", 3), ("d", 4), ("e", 5), ("f", 6)]),
            at(70),
        );
        assert_eq!(fourth["f"], 1);
    }

    #[test]
    fn adopted_indices_belong_to_their_addresses() {
        let mut indices = Indices::default();
        indices.adopt(7, IpAddr::from([10, 0, 0, 2]), at(0));
        indices.adopt(1, IpAddr::from([10, 0, 0, 9]), at(0));
        let (given, _) = indices.assign(&nodes(&[("a", 1), ("b", 2)]), at(0));
        assert_eq!((given["a"], given["b"]), (2, 7));
    }

    #[test]
    fn a_full_table_names_who_is_left_out() {
        let mut indices = Indices::default();
        let many: BTreeMap<String, IpAddr> = (0..MAX_NODES)
            .map(|i| {
                let [_, _, high, low] = i.to_be_bytes();
                (format!("n{i:04}"), IpAddr::from([10, 1, high, low]))
            })
            .collect();
        let (given, left_out) = indices.assign(&many, at(0));
        assert_eq!(given.len(), 1023);
        assert_eq!(left_out, ["n1023"]);
    }
}
