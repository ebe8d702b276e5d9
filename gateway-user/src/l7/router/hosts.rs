//! A sorted map from names that copies share block by block.

use std::sync::Arc;

/// Entries of a block that is cut in two.
const MOST: usize = 64;

/// Names in order, each with a value. A copy costs a look at each block, and a change of one entry makes one block anew: of
/// thousands of hostnames one changes at a time, while requests are still served by the router before.
#[derive(Clone, Debug)]
pub(super) struct Hosts<T>(Vec<Arc<Block<T>>>);

/// Never empty, sorted by name.
type Block<T> = Vec<(Arc<str>, T)>;

impl<T> Default for Hosts<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Hosts<T> {
    /// The value of a name.
    pub(super) fn get(&self, name: &str) -> Option<&T> {
        let block = self.0.get(self.block(name)?)?;
        let at = place(block, name).ok()?;
        Some(&block.get(at)?.1)
    }

    /// All, in the order of their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        let entries = self.0.iter().flat_map(|block| block.iter());
        entries.map(|(name, value)| (&**name, value))
    }

    /// The block that has a name, if any has it: the last that begins with it or with one before.
    fn block(&self, name: &str) -> Option<usize> {
        let begins_before =
            |block: &Arc<Block<T>>| block.first().is_some_and(|(n, _)| **n <= *name);
        self.0.partition_point(begins_before).checked_sub(1)
    }
}

impl<T: Clone> Hosts<T> {
    /// Sets the value of a name; none: takes it out.
    pub(super) fn set(&mut self, name: &str, value: Option<T>) {
        // What comes before all others goes to the first block.
        let at = self.block(name).unwrap_or(0);
        let Some(value) = value else {
            return self.remove(at, name);
        };
        let Some(block) = self.0.get_mut(at) else {
            return self.0.push(Arc::new(vec![(name.into(), value)]));
        };
        let block = Arc::make_mut(block);
        match place(block, name) {
            Ok(known) => block[known].1 = value,
            Err(new) => block.insert(new, (name.into(), value)),
        }
        if block.len() > MOST {
            let half = block.split_off(block.len() / 2);
            block.shrink_to_fit();
            self.0.insert(at + 1, Arc::new(half));
        }
    }

    fn remove(&mut self, at: usize, name: &str) {
        let Some(block) = self.0.get_mut(at) else {
            return;
        };
        let Ok(place) = place(block, name) else {
            return;
        };
        let block = Arc::make_mut(block);
        block.remove(place);
        if block.is_empty() {
            self.0.remove(at);
        }
    }
}

fn place<T>(block: &Block<T>, name: &str) -> Result<usize, usize> {
    block.binary_search_by(|(known, _)| (**known).cmp(name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The same as an ordinary map, whatever is done to it, and copies stay as they were.
    #[test]
    fn it_is_a_map() {
        let mut hosts = Hosts::default();
        let mut model = BTreeMap::new();
        let mut before = (hosts.clone(), model.clone());
        let mut random: u32 = 7;
        for round in 0..20_000_u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let name = format!("h{}.test", (random >> 8) % 900);
            // It grows, shrinks to nothing, and grows again.
            let shrinks = round % 8_000 > 4_000;
            let value = (random >> 28 < if shrinks { 1 } else { 12 }).then_some(round);
            hosts.set(&name, value);
            match value {
                Some(value) => drop(model.insert(name.clone(), value)),
                None => drop(model.remove(&name)),
            }
            assert_eq!(hosts.get(&name), model.get(&name));
            if round % 500 == 0 {
                let all = |hosts: &Hosts<u32>| {
                    let all = hosts.iter().map(|(name, value)| (name.to_owned(), *value));
                    all.collect::<Vec<_>>()
                };
                assert_eq!(all(&before.0), before.1.into_iter().collect::<Vec<_>>());
                assert!(hosts.0.iter().all(|b| !b.is_empty() && b.len() <= MOST));
                for name in ["", "a", "h5", "h9.test", "zz"] {
                    assert_eq!(hosts.get(name), model.get(name), "{name}");
                }
                before = (hosts.clone(), model.clone());
                assert_eq!(all(&hosts), model.clone().into_iter().collect::<Vec<_>>());
            }
        }
        assert!(model.len() > 100, "it held something");
    }

    #[test]
    fn a_change_makes_one_block_anew() {
        let mut hosts = Hosts::default();
        for number in 0..1_000 {
            hosts.set(&format!("h{number}.test"), Some(number));
        }
        let before = hosts.clone();
        hosts.set("h500.test", Some(0));
        let pairs = before.0.iter().zip(&hosts.0);
        let anew = pairs.filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!((anew, before.0.len() > 10), (1, true));
    }
}
