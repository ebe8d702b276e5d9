//! Counting: a plain add to this CPU's own cache lines.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use gateway_common::abi::{COUNTERS_PER_CPU, Counter, MAX_CPUS};

use crate::maps::COUNTERS;

/// Counts one event.
#[inline(always)]
pub fn count(counter: Counter) {
    // SAFETY: the helper takes nothing and reads no memory of ours.
    let cpu = unsafe { bpf_get_smp_processor_id() }.min(MAX_CPUS - 1);
    if let Some(word) = COUNTERS.get_ptr_mut(cpu * COUNTERS_PER_CPU + counter.slot()) {
        // SAFETY: the pointer comes from a lookup in a map of u64, and no other CPU writes to this word (CPUs
        // beyond the last row share it, and may lose a count).
        unsafe { word.write_volatile(word.read_volatile().wrapping_add(1)) };
    }
}
