//! `forebay-bench stack`: packets and requests through the whole stack, in a virtual machine whose clock counts instructions.
//!
//! There (QEMU's `-icount shift=0`, one processor) a nanosecond is an instruction of the guest. `cargo xtask vm bench` starts it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{l4, l7};

/// Times that everything is done; the cheapest counts: now and then the kernel has millions of instructions to do for itself.
const ROUNDS: usize = 3;

/// Flags of `stack`.
#[derive(clap::Args, Debug)]
pub(super) struct Stack {
    /// The kernel programs, built with the feature `bench`
    #[arg(long)]
    object: PathBuf,
    /// A directory of this run's own
    #[arg(long)]
    work: PathBuf,
    /// Requests to the daemon too, which is FOREBAY_BIN
    #[arg(long)]
    requests: bool,
    /// Only what the daemon does in user space, on a second processor without a tick (`nohz_full=1`)
    #[arg(long)]
    apart: bool,
}

/// Runs them, and prints a line for each case: instructions of a packet or of a request.
pub(super) fn run(args: &Stack) -> Result<()> {
    std::fs::create_dir_all(&args.work)
        .with_context(|| format!("cannot make {}", args.work.display()))?;
    if args.apart {
        return l7::requests::run_apart(&args.work);
    }
    l4::loops::run(&args.object, &args.work)?;
    if args.requests {
        l7::requests::run(&args.work)?;
    }
    Ok(())
}

/// Nanoseconds of one of many like `take` does them in the time that it gives: the difference of a long and a short run.
pub(super) fn cost(
    (few, many): (u32, u32),
    take: &mut dyn FnMut(u32) -> Result<Duration>,
) -> Result<f64> {
    // The first one warms caches and tables.
    take(few)?;
    let mut least = f64::INFINITY;
    for _ in 0..ROUNDS {
        let (short, long) = (take(few)?, take(many)?);
        let nanoseconds = long.as_nanos() as f64 - short.as_nanos() as f64;
        least = least.min(nanoseconds / f64::from(many - few));
    }
    Ok(least)
}

/// A line that the machine hands on.
pub(super) fn tell(name: &str, instructions: f64) {
    println!("fact: {name} = {instructions:.0}");
}
