//! What is to be looked at, now or later: each key is in it once, and none is handed out twice at a time.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

/// Keys with the time from which they are due.
#[derive(Debug)]
pub(super) struct Queue<K> {
    ready: BTreeSet<K>,
    later: BTreeSet<(Instant, K)>,
    due: BTreeMap<K, Instant>,
    /// Handed out and not done; with the time from which they are due again.
    busy: BTreeMap<K, Option<Instant>>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            ready: BTreeSet::new(),
            later: BTreeSet::new(),
            due: BTreeMap::new(),
            busy: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone> Queue<K> {
    /// Puts a key in; the earlier of two times counts.
    pub(super) fn push(&mut self, key: K, at: Instant, now: Instant) {
        if let Some(again) = self.busy.get_mut(&key) {
            *again = Some(again.map_or(at, |before| before.min(at)));
            return;
        }
        if self.ready.contains(&key) {
            return;
        }
        match self.due.get(&key) {
            Some(before) if *before <= at => return,
            Some(before) => drop(self.later.remove(&(*before, key.clone()))),
            None => {}
        }
        if at <= now {
            self.due.remove(&key);
            self.ready.insert(key);
        } else {
            self.due.insert(key.clone(), at);
            self.later.insert((at, key));
        }
    }

    /// Hands out the least key that is due. It comes back by [`Self::done`].
    pub(super) fn pop(&mut self, now: Instant) -> Option<K> {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.later.pop_first() {
                self.due.remove(&key);
                self.ready.insert(key);
            }
        }
        let key = self.ready.pop_first()?;
        self.busy.insert(key.clone(), None);
        Some(key)
    }

    /// Takes a key back.
    pub(super) fn done(&mut self, key: &K, now: Instant) {
        if let Some(Some(again)) = self.busy.remove(key) {
            self.push(key.clone(), again, now);
        }
    }

    /// Whether a key is due now.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When the next key is due that is not due yet.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_key_is_handed_out_once_in_order_when_it_is_due() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut queue = Queue::default();
        for (key, seconds) in [("b", 0), ("a", 0), ("b", 5), ("c", 9), ("c", 3), ("c", 7)] {
            queue.push(key, at(seconds), now);
        }
        assert_eq!(
            (queue.pop(now), queue.pop(now), queue.pop(now)),
            (Some("a"), Some("b"), None)
        );
        assert_eq!(queue.next_due(), Some(at(3)));
        // Pushed while it is out, it waits until it is back.
        queue.push("a", at(2), now);
        queue.push("a", at(1), now);
        assert_eq!(queue.pop(at(2)), None);
        queue.done(&"a", now);
        queue.done(&"b", now);
        assert_eq!(queue.next_due(), Some(at(1)));
        assert_eq!(
            (queue.pop(at(3)), queue.pop(at(3)), queue.pop(at(9))),
            (Some("a"), Some("c"), None)
        );
        assert!(!queue.has_ready());
    }
}
