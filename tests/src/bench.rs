//! Benchmarks: `forebay-bench l4` and `forebay-bench l7`, started by `cargo xtask bench`.
//!
//! Every comparison is made inside one run, alternating, and reported as medians with their range; nothing here is a timed test.
//! Each run lives in namespaces of its own ([`sandbox`]) and leaves nothing but its report.

mod cpu;
mod l4;
mod l7;
mod report;
mod sandbox;
mod stack;
mod stats;
mod svg;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::machine;

/// Benchmarks of the kernel path and of the proxy.
#[derive(Parser, Debug)]
#[command(name = "forebay-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Which,
}

#[derive(Subcommand, Debug)]
enum Which {
    /// Cost of the forwarding decision, and throughput against nftables
    L4(l4::L4),
    /// The same decision in instructions, where a virtual machine's clock counts them
    #[command(hide = true)]
    Instructions(l4::instructions::Instructions),
    /// Packets and requests through the whole stack in instructions, likewise
    #[command(hide = true)]
    Stack(stack::Stack),
    /// CPU per request against nginx and Envoy
    L7(l7::L7),
    /// CPU of TLS, HTTP/2 and gRPC against nginx and Envoy, and memory of idle connections
    Protocols(l7::protocols::Protocols),
}

/// Flags of every benchmark.
#[derive(Args, Debug)]
struct Common {
    /// A short run, to see whether everything works
    #[arg(long)]
    quick: bool,
    /// Write a dated copy below docs/benchmarks
    #[arg(long)]
    record: bool,
    /// Where results go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Set by the program itself for its second start inside of its namespaces
    #[arg(long, hide = true)]
    inside: Option<String>,
}

/// Runs the benchmark that the command line names.
///
/// # Errors
/// Not root, a missing tool, or a run that is void: one sentence says which.
pub fn main() -> Result<()> {
    match Cli::parse().command {
        Which::L4(args) => match &args.common.inside {
            Some(outside) => l4::run(&args, outside),
            // NAPI threads are seen from the first process namespace only.
            None => sandbox::enter(false),
        },
        Which::Instructions(args) => {
            in_a_machine()?;
            l4::instructions::run(&args)
        }
        Which::Stack(args) => {
            in_a_machine()?;
            stack::run(&args)
        }
        Which::L7(args) => match &args.common.inside {
            Some(outside) => l7::run(&args, outside),
            None => {
                l7::prepare(&args)?;
                sandbox::enter(true)
            }
        },
        Which::Protocols(args) => match &args.common.inside {
            Some(outside) => l7::protocols::run(&args, outside),
            None => {
                l7::protocols::prepare(&args)?;
                sandbox::enter(true)
            }
        },
    }
}

/// What is made to count instructions is left to the machine, which ends with it; anywhere else it would stay.
fn in_a_machine() -> Result<()> {
    ensure!(
        machine::is_here(),
        "this runs in a virtual machine of its own alone: call `cargo xtask bench --vm`"
    );
    Ok(())
}
