//! Sums of what the kernel programs counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use gateway_common::abi::{COUNTERS_PER_CPU, Counter};

/// Sums over all CPUs, by the counters' names, from the words of the whole array.
#[must_use]
pub fn reasons(words: &[AtomicU64]) -> BTreeMap<&'static str, u64> {
    let sum = |counter: &Counter| {
        let of_cpu = |cpu: &[AtomicU64]| cpu[counter.slot() as usize].load(Ordering::Relaxed);
        words
            .chunks_exact(COUNTERS_PER_CPU as usize)
            .map(of_cpu)
            .sum()
    };
    Counter::ALL
        .iter()
        .map(|counter| (counter.name(), sum(counter)))
        .collect()
}
