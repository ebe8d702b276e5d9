//! What the programs counted, and what they told a tracer.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use aya::maps::RingBuf;
use gateway_common::abi::{
    COUNTERS_PER_CPU, Counter, Path, REASONS, TraceEvent, TraceFilter, VipCell, map, reason_of,
    vip_flag,
};
use gateway_common::host::HostTables;

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

    /// The reasons that were counted since `before`, in their order; with the same tables.
    pub fn counted_since(&self, before: &[u64]) -> Result<Vec<Counter>> {
        Ok(reasons(&grown_cells(
            &self.cells,
            before,
            &self.counters()?,
        )))
    }

    /// Sums over all CPUs of the cells that these tables can count in.
    pub fn counters(&self) -> Result<Vec<u64>> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, error)| anyhow::anyhow!("cannot read {path}: {error}"))?;
        let words = self.counters.words();
        let mut sums = vec![0; self.cells.len()];
        // Not all of them: runs are many, and a cookie that the kernel made is good for a minute or two only.
        for cpu in 0..cpus {
            for (sum, cell) in sums.iter_mut().zip(&self.cells) {
                let at = cpu * COUNTERS_PER_CPU as usize + *cell as usize;
                *sum += words[at].load(Ordering::Relaxed);
            }
        }
        Ok(sums)
    }
}

/// Those of `cells` that were counted in between two states of their counters.
pub(super) fn grown_cells(cells: &[u32], before: &[u64], after: &[u64]) -> Vec<u32> {
    let grown = cells.iter().zip(before.iter().zip(after));
    grown
        .filter(|(_, (before, after))| before != after)
        .flat_map(|(cell, (before, after))| (*before..*after).map(|_| *cell))
        .collect()
}

/// The reasons of cells, in their order.
#[must_use]
pub fn reasons(cells: &[u32]) -> Vec<Counter> {
    let mut reasons: Vec<Counter> = cells.iter().copied().filter_map(reason_of).collect();
    reasons.sort_by_key(|counter| counter.slot());
    reasons
}

/// The cells that packets can be counted in with these tables: those of the reasons, of the first nodes and of the VIPs.
pub(super) fn cells(tables: &HostTables) -> Vec<u32> {
    let nodes = (0..128).flat_map(|node| Path::ALL.map(|path| path.cell(node)));
    let used = tables.vips.iter();
    let used = used.filter(|entry| entry.flags & vip_flag::USED != 0);
    let vips = used.flat_map(|entry| VipCell::ALL.map(|cell| cell.cell(entry.number)));
    let mut cells: Vec<u32> = (0..REASONS).chain(nodes).chain(vips).collect();
    cells.sort_unstable();
    cells.dedup();
    cells
}
