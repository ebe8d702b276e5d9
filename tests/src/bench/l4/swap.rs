//! How long it takes to replace every row of the steering table through shared memory, as the daemon does.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use gateway_common::abi::{ROWS, map};
use gateway_user::datapath::mmap::MappedArray;

use super::kernel::{Kernel, OTHER, SELF};

/// Microseconds of each swap; the table changes with each.
pub(super) fn run(kernel: &Kernel, rounds: usize) -> Result<Vec<f64>> {
    let fd = kernel.fd(map::ROWS)?;
    let table =
        MappedArray::new(map::ROWS, fd, ROWS, size_of::<u64>()).context("cannot map the rows")?;
    let mut times = Vec::with_capacity(rounds);
    // The first round takes the page faults.
    for round in 0..=rounds {
        let owner = u64::from(if round % 2 == 0 { OTHER } else { SELF });
        let start = Instant::now();
        for row in table.words() {
            row.store(owner, Ordering::Release);
        }
        let elapsed = start.elapsed();
        ensure!(
            kernel.row(ROWS - 1)? == owner,
            "the run is void: the kernel does not see the stored rows"
        );
        if round > 0 {
            times.push(elapsed.as_nanos() as f64 / 1_000.0);
        }
    }
    Ok(times)
}
