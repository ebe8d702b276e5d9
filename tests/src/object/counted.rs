//! What the programs counted, and what they told a tracer.

use anyhow::{Context, Result};
use aya::maps::RingBuf;
use gateway_common::abi::{Counter, TraceEvent, TraceFilter, map, reason_of};

use super::Object;

impl Object {
    /// What a tracer asks for, from the next write of tables on that say that there is one.
    pub fn set_filter(&mut self, filter: &TraceFilter) -> Result<()> {
        self.set::<{ size_of::<TraceFilter>() }>(map::TRACE, 0, bytemuck::cast(*filter))
    }

    /// What the tracer was told since this was last asked, without times.
    pub fn events(&mut self) -> Result<Vec<TraceEvent>> {
        let map = self
            .ebpf
            .map_mut(map::TRACE_EVENTS)
            .context("no map TRACE_EVENTS")?;
        let mut ring = RingBuf::try_from(map)?;
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            let event: TraceEvent = bytemuck::pod_read_unaligned(&item);
            events.push(TraceEvent { time: 0, ..event });
        }
        Ok(events)
    }
}

/// The cells that were counted in between two states of the counters.
pub(super) fn grown_cells(before: &[u64], after: &[u64]) -> Vec<u32> {
    let grown = (0..).zip(before.iter().zip(after));
    grown
        .filter(|(_, (before, after))| before != after)
        .flat_map(|(cell, (before, after))| (*before..*after).map(move |_| cell))
        .collect()
}

/// The reasons of cells, in their order.
#[must_use]
pub fn reasons(cells: &[u32]) -> Vec<Counter> {
    let mut reasons: Vec<Counter> = cells.iter().copied().filter_map(reason_of).collect();
    reasons.sort_by_key(|counter| counter.slot());
    reasons
}
