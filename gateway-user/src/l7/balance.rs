//! Which endpoint of a cluster gets a request.
//!
//! Works on positions in the list of usable endpoints; what is usable (ready, not ejected) is decided by the caller
//! and changes rarely. Random numbers are arguments.

mod least_request;
mod random;
mod round_robin;

use std::sync::atomic::AtomicUsize;

use crate::snapshot::Balancer;

/// The balancing state of one cluster: shared by all workers of the node, kept across snapshots.
#[derive(Debug, Default)]
pub struct Balance {
    turn: AtomicUsize,
}

impl Balance {
    /// A balancer whose turn starts at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "any start is as good as another"
        )]
        Self {
            turn: AtomicUsize::new(seed as usize >> 1),
        }
    }

    /// Position of the endpoint to use among `count`; `None` if there is none.
    ///
    /// `random` is a fresh random number; `active` tells how many requests an endpoint has.
    pub fn pick(
        &self,
        policy: Balancer,
        count: usize,
        random: u64,
        active: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        if count <= 1 {
            return (count == 1).then_some(0);
        }
        Some(match policy {
            Balancer::RoundRobin => round_robin::pick(&self.turn, count),
            Balancer::LeastRequest => least_request::pick(count, random, active),
            Balancer::Random => random::pick(count, random),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_pick_from() {
        let balance = Balance::new(7);
        for policy in [
            Balancer::RoundRobin,
            Balancer::LeastRequest,
            Balancer::Random,
        ] {
            assert_eq!(balance.pick(policy, 0, 1, |_| 0), None);
            assert_eq!(balance.pick(policy, 1, u64::MAX, |_| 0), Some(0));
        }
    }

    #[test]
    fn any_seed_is_a_valid_start() {
        for seed in [0, 1, u64::MAX] {
            let balance = Balance::new(seed);
            assert!(balance.pick(Balancer::RoundRobin, 3, 0, |_| 0) < Some(3));
        }
    }
}
