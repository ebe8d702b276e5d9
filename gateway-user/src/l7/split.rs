//! Smooth weighted round robin over the backends of one rule.
//!
//! One cursor per node and rule, shared by all workers and kept across snapshots, so that short samples match the
//! weights: ten requests at 50/50 are five and five. Each node starts at a phase of its own, so that N nodes with
//! the same cursor do not all send their first request to the same backend. It knows weights only, no backends.

use std::sync::{Mutex, PoisonError};

/// Steps that a start phase may skip at most: bounds the work for weights like 1 : 999,999.
const MAX_PHASE: u64 = 4096;

/// The cursor of one rule.
#[derive(Debug)]
pub struct Split {
    state: Mutex<State>,
    phase: u64,
}

#[derive(Debug, Default)]
struct State {
    weights: Box<[u32]>,
    total: i64,
    current: Box<[i64]>,
    /// The only backend with a weight, if there is just one.
    single: Option<usize>,
}

impl Split {
    /// A cursor for these weights. `phase` differs from node to node and decides where in the cycle it starts.
    #[must_use]
    pub fn new(weights: &[u32], phase: u64) -> Self {
        let split = Self {
            state: Mutex::default(),
            phase,
        };
        split.set_weights(weights);
        split
    }

    /// Takes new weights. If the same backends have any, the cursor goes on from where it is.
    pub fn set_weights(&self, weights: &[u32]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state.weights == *weights {
            return;
        }
        let total = weights.iter().map(|w| i64::from(*w)).sum();
        let same = |(old, new): (&u32, &u32)| (*old == 0) == (*new == 0);
        let restart =
            state.weights.len() != weights.len() || !state.weights.iter().zip(weights).all(same);
        if !restart {
            state.rescale(total);
        }
        state.weights = weights.into();
        state.total = total;
        let mut used = (0..weights.len()).filter(|i| weights[*i] > 0);
        state.single = used.next().filter(|_| used.next().is_none());
        if restart {
            state.current = vec![0; weights.len()].into();
            let cycle = state.cycle();
            for _ in 0..self.phase.checked_rem(cycle.min(MAX_PHASE)).unwrap_or(0) {
                state.step();
            }
        }
    }

    /// Position of the backend that gets the next request; `None` if no backend has a weight.
    pub fn next(&self) -> Option<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.single {
            Some(only) => Some(only),
            None => state.step(),
        }
    }
}

impl State {
    /// Requests after which the sequence repeats.
    fn cycle(&self) -> u64 {
        let divisor = self
            .weights
            .iter()
            .fold(0, |a, w| gcd(a, u64::from(*w)))
            .max(1);
        self.total.unsigned_abs() / divisor
    }

    /// Keeps the credits' shares of the total: in the measure of the old weights they could outweigh the new ones for
    /// thousands of requests.
    fn rescale(&mut self, total: i64) {
        for credit in &mut self.current {
            *credit = (*credit * total).checked_div(self.total).unwrap_or(0);
        }
        // Credits sum to zero, else the balance drifts; what rounding left over goes to one that has any.
        let rest: i64 = self.current.iter().sum();
        if let Some(credit) = self.current.iter_mut().find(|credit| **credit != 0) {
            *credit -= rest;
        }
    }

    fn step(&mut self) -> Option<usize> {
        let mut best: Option<usize> = None;
        for (i, weight) in self.weights.iter().enumerate().filter(|(_, w)| **w > 0) {
            self.current[i] += i64::from(*weight);
            if best.is_none_or(|b| self.current[i] > self.current[b]) {
                best = Some(i);
            }
        }
        let best = best?;
        self.current[best] -= self.total;
        Some(best)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(split: &Split, backends: usize, requests: usize) -> Vec<usize> {
        let mut counts = vec![0; backends];
        for _ in 0..requests {
            counts[split.next().unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn ten_requests_are_five_and_five_from_any_phase() {
        for phase in 0..7 {
            assert_eq!(counts(&Split::new(&[50, 50], phase), 2, 10), [5, 5]);
        }
    }

    #[test]
    fn nodes_start_at_different_backends() {
        let first = |phase| Split::new(&[1, 1], phase).next();
        assert_ne!(first(0), first(1));
    }

    #[test]
    fn every_cycle_has_the_exact_shares() {
        let split = Split::new(&[7, 2, 1], 3);
        for _ in 0..20 {
            assert_eq!(counts(&split, 3, 10), [7, 2, 1]);
        }
    }

    #[test]
    fn weight_zero_gets_nothing() {
        assert_eq!(counts(&Split::new(&[0, 3, 0], 5), 3, 9), [0, 9, 0]);
        assert_eq!(counts(&Split::new(&[1, 0, 1], 5), 3, 8), [4, 0, 4]);
        assert_eq!(Split::new(&[0, 0], 1).next(), None);
        assert_eq!(Split::new(&[], 1).next(), None);
    }

    #[test]
    fn shares_are_smooth() {
        let split = Split::new(&[5, 1, 1], 0);
        let sequence: Vec<_> = (0..7).filter_map(|_| split.next()).collect();
        assert_eq!(sequence, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn new_weights_go_on_from_the_old_position() {
        let split = Split::new(&[1, 1], 0);
        assert_eq!(split.next(), Some(0));
        split.set_weights(&[2, 2]);
        assert_eq!(split.next(), Some(1), "a restart would give 0 again");
        split.set_weights(&[1, 3]);
        assert_eq!(counts(&split, 2, 400), [100, 300]);
    }

    #[test]
    fn the_old_measure_does_not_outweigh_new_weights() {
        for old in [[1_000_000, 1], [1, 1_000_000], [90, 10], [33, 67], [1, 1]] {
            for new in [[1, 1], [7, 3], [500_000, 500_000], [50, 50]] {
                for position in 0..20 {
                    let split = Split::new(&old, 4000);
                    counts(&split, 2, position);
                    split.set_weights(&new);
                    let got = counts(&split, 2, 10);
                    let want = 10 * new[0] as usize / (new[0] + new[1]) as usize;
                    assert!(
                        got[0].abs_diff(want) <= 1,
                        "{old:?} at {position}, then {new:?}: {got:?}"
                    );
                    assert_eq!(
                        split.state.lock().unwrap().current.iter().sum::<i64>(),
                        0,
                        "{old:?} {new:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_backend_that_comes_or_goes_starts_the_cycle_anew() {
        let split = Split::new(&[1, 1, 0], 0);
        counts(&split, 3, 7);
        split.set_weights(&[1, 1, 2]);
        assert_eq!(counts(&split, 3, 8), [2, 2, 4]);
        split.set_weights(&[0, 1, 1]);
        assert_eq!(counts(&split, 3, 8), [0, 4, 4]);
    }

    #[test]
    fn huge_weights_start_fast() {
        let split = Split::new(&[1, 1_000_000], u64::MAX);
        assert_eq!(split.next(), Some(1));
    }
}
