//! `forebay-bench instructions`: the test runs of `bench l4` in a virtual machine whose clock counts instructions.
//!
//! There (QEMU's `-icount shift=0`) a nanosecond is an instruction of the guest, whatever else the machine does. `cargo xtask vm
//! bench` starts it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::cases;
use super::kernel::Kernel;
use super::sockets::Sockets;
use super::tables::{Setting, Tables};
use super::testrun;

/// Rounds, of which the cheapest counts: now and then the kernel has millions of instructions to do for itself, and in which case's
/// run that is depends on all that ran before.
const ROUNDS: usize = 3;

/// Passes of one test run: interrupts of the timer are spread over them.
const REPEAT: u32 = 10_000;

/// Flags of `instructions`.
#[derive(clap::Args, Debug)]
pub(in crate::bench) struct Instructions {
    /// The kernel programs, built with the feature `bench`
    #[arg(long)]
    object: PathBuf,
    /// A directory of this run's own
    #[arg(long)]
    work: PathBuf,
}

/// Runs them, and prints a line for each case: the instructions of a packet, with those of the harness.
pub(in crate::bench) fn run(args: &Instructions) -> Result<()> {
    fs::create_dir_all(&args.work)
        .with_context(|| format!("cannot make {}", args.work.display()))?;
    let mut kernel = Kernel::load(&args.object, &args.work, 1)?;
    let mut tables = Tables::new(&kernel)?;
    let cases = cases::cases(false);
    tables.set(Setting::default());
    let sockets = Sockets::open(&mut kernel)?;
    let figures = testrun::run(&mut kernel, &mut tables, &sockets, &cases, (ROUNDS, REPEAT))?;
    for outcome in testrun::outcomes(&cases, &figures) {
        println!("fact: {} = {:.0}", outcome.case.name, outcome.gross.quiet);
    }
    sockets.close()
}
