//! Counting: a plain add to this CPU's own cache lines.

use gateway_common::abi::COUNTERS_PER_CPU;

use crate::maps::{COUNTERS, cpu};

/// Counts one event in a cell.
#[inline(always)]
pub fn count(cell: u32) {
    if let Some(word) = COUNTERS.get_ptr_mut(cpu() * COUNTERS_PER_CPU + cell) {
        // SAFETY: the pointer comes from a lookup in a map of u64, and no other CPU writes to this word (those beyond the last row share it, and may lose a count).
        unsafe { word.write_volatile(word.read_volatile().wrapping_add(1)) };
    }
}
