//! Values that are held once, however many say the same.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What most of thousands of objects have in common, as the statuses of routes.
#[derive(Debug)]
pub(crate) struct Shared<T: ?Sized> {
    known: BTreeSet<Arc<T>>,
    /// Number at which those that nobody has any more are looked for.
    limit: usize,
}

impl<T: ?Sized + Ord> Default for Shared<T> {
    fn default() -> Self {
        Self {
            known: BTreeSet::new(),
            limit: 0,
        }
    }
}

impl<T: ?Sized + Ord> Shared<T> {
    /// The one that says the same, if there is one.
    pub(crate) fn shared(&mut self, value: Arc<T>) -> Arc<T> {
        let wanted: &T = value.borrow();
        if let Some(known) = self.known.get(wanted) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.limit {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.limit = 64 + 2 * self.known.len();
        }
        self.known.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_held_once_and_what_nobody_has_is_forgotten() {
        let mut shared = Shared::<str>::default();
        let first = shared.shared("a".into());
        assert!(Arc::ptr_eq(&first, &shared.shared("a".into())));
        for number in 0..10_000 {
            drop(shared.shared(number.to_string().into()));
        }
        assert!(shared.known.len() <= 66, "{}", shared.known.len());
        assert!(Arc::ptr_eq(&first, &shared.shared("a".into())));
    }
}
