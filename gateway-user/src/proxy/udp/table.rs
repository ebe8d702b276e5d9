//! Sessions by key, with a bound, in the order of their last use. Knows no socket; time is an argument.
//!
//! Slots are linked from the one used last to the one used longest ago, so that finding, using, adding and ending are
//! each a few steps at any size.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// No slot.
const NONE: usize = usize::MAX;

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    used: Instant,
    newer: usize,
    older: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    capacity: usize,
    places: HashMap<K, usize>,
    slots: Vec<Option<Slot<K, V>>>,
    free: Vec<usize>,
    newest: usize,
    oldest: usize,
}

impl<K: Copy + Eq + Hash, V: Clone> Table<K, V> {
    /// An empty table for at most `capacity` sessions (at least one).
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            places: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Finds a session and notes that it is in use.
    pub(super) fn touch(&mut self, key: &K, now: Instant) -> Option<V> {
        let at = *self.places.get(key)?;
        self.unlink(at);
        self.link(at);
        let slot = self.slots[at].as_mut()?;
        slot.used = now;
        Some(slot.value.clone())
    }

    /// Adds a session that is not there; gives back the one used longest ago if it had to go for it.
    pub(super) fn insert(&mut self, key: K, value: V, now: Instant) -> Option<V> {
        let evicted = if self.len() >= self.capacity {
            self.pop_oldest()
        } else {
            None
        };
        let slot = Some(Slot {
            key,
            value,
            used: now,
            newer: NONE,
            older: NONE,
        });
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.places.insert(key, at);
        self.link(at);
        evicted
    }

    /// Takes a session out, if it is the one that `is` says.
    pub(super) fn remove_if(&mut self, key: &K, is: impl FnOnce(&V) -> bool) -> Option<V> {
        let at = *self.places.get(key)?;
        let found = self.slots[at].as_ref().is_some_and(|slot| is(&slot.value));
        if found { self.take(at) } else { None }
    }

    /// Takes out the session used longest ago.
    pub(super) fn pop_oldest(&mut self) -> Option<V> {
        self.take(self.oldest)
    }

    /// Takes out the session used longest ago, if that was at least `idle` ago.
    pub(super) fn pop_idle(&mut self, now: Instant, idle: Duration) -> Option<V> {
        let slot = self.slots.get(self.oldest)?.as_ref()?;
        if now.saturating_duration_since(slot.used) < idle {
            return None;
        }
        self.pop_oldest()
    }

    /// Takes out all sessions whose key is of this kind.
    pub(super) fn take_where(&mut self, is: impl Fn(&K) -> bool) -> Vec<V> {
        let matching = self.places.iter().filter(|(key, _)| is(key));
        let places: Vec<usize> = matching.map(|(_, at)| *at).collect();
        places.into_iter().filter_map(|at| self.take(at)).collect()
    }

    fn take(&mut self, at: usize) -> Option<V> {
        self.slots.get(at)?.as_ref()?;
        self.unlink(at);
        let slot = self.slots[at].take()?;
        self.free.push(at);
        self.places.remove(&slot.key);
        Some(slot.value)
    }

    /// Puts a slot that is not linked at the front.
    fn link(&mut self, at: usize) {
        let front = self.newest;
        if let Some(slot) = &mut self.slots[at] {
            (slot.newer, slot.older) = (NONE, front);
        }
        match self.slots.get_mut(front) {
            Some(Some(slot)) => slot.newer = at,
            _ => self.oldest = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: usize) {
        let Some((newer, older)) = self.slots[at].as_ref().map(|slot| (slot.newer, slot.older))
        else {
            return;
        };
        match self.slots.get_mut(newer) {
            Some(Some(slot)) => slot.older = older,
            _ => self.newest = older,
        }
        match self.slots.get_mut(older) {
            Some(Some(slot)) => slot.newer = newer,
            _ => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_session_used_longest_ago_goes_first() {
        let start = Instant::now();
        let mut table = Table::new(3);
        for key in [1, 2, 3] {
            assert_eq!(table.insert(key, key * 10, at(start, key)), None);
        }
        assert_eq!(table.touch(&1, at(start, 4)), Some(10));
        assert_eq!(table.touch(&9, at(start, 4)), None);
        assert_eq!(table.insert(4, 40, at(start, 5)), Some(20));
        let idle = Duration::from_secs(30);
        assert_eq!(table.pop_idle(at(start, 32), idle), None);
        assert_eq!(table.pop_idle(at(start, 33), idle), Some(30));
        assert_eq!(table.pop_idle(at(start, 33), idle), None);
        assert_eq!(table.pop_idle(at(start, 34), idle), Some(10));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn only_the_session_that_is_meant_is_removed() {
        let now = Instant::now();
        let mut table = Table::new(3);
        table.insert(1, "new", now);
        assert_eq!(table.remove_if(&1, |value| *value == "old"), None);
        assert_eq!(table.remove_if(&1, |value| *value == "new"), Some("new"));
        assert_eq!(table.remove_if(&1, |_| true), None);
        table.insert(2, "a", now);
        table.insert(3, "b", now);
        assert_eq!(table.take_where(|key| *key == 3), ["b"]);
        assert_eq!((table.pop_oldest(), table.pop_oldest()), (Some("a"), None));
    }

    proptest! {
        /// Against a plain list, the most recent last.
        #[test]
        fn behaves_like_a_list(steps in prop::collection::vec((0_u8..5, 0_u8..8), 0..200)) {
            let now = Instant::now();
            let mut table = Table::new(4);
            let mut list: Vec<u8> = Vec::new();
            for (what, key) in steps {
                let known = list.iter().position(|k| *k == key);
                match (what, known) {
                    (0 | 1, None) => {
                        let evicted = (list.len() == 4).then(|| list.remove(0));
                        list.push(key);
                        prop_assert_eq!(table.insert(key, key, now), evicted);
                    }
                    (0..=2, known) => {
                        if let Some(at) = known {
                            list.remove(at);
                            list.push(key);
                        }
                        prop_assert_eq!(table.touch(&key, now), known.map(|_| key));
                    }
                    (3, known) => {
                        prop_assert_eq!(table.remove_if(&key, |_| true), known.map(|at| list.remove(at)));
                    }
                    _ => {
                        let oldest = (!list.is_empty()).then(|| list.remove(0));
                        prop_assert_eq!(table.pop_oldest(), oldest);
                    }
                }
                prop_assert_eq!(table.len(), list.len());
            }
            let rest: Vec<u8> = std::iter::from_fn(|| table.pop_oldest()).collect();
            prop_assert_eq!(rest, list);
        }
    }
}
