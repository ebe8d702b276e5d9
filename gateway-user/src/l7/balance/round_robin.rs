//! Each endpoint in turn.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The next position; `count` is at least 1.
pub(super) fn pick(turn: &AtomicUsize, count: usize) -> usize {
    turn.fetch_add(1, Ordering::Relaxed) % count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_all_in_turn() {
        let turn = AtomicUsize::new(4);
        let picks: Vec<_> = (0..6).map(|_| pick(&turn, 3)).collect();
        assert_eq!(picks, [1, 2, 0, 1, 2, 0]);
    }
}
