//! Development commands; `cargo xtask --help` lists them.
//!
//! This file turns flags into one call; it decides nothing else.

mod bench;
mod build_ebpf;
mod cluster;
mod cmd;
mod conformance;
mod demo;
mod dist;
mod fuzz;
mod helm;
mod lint;
mod manifests;
mod oci;
mod paths;
mod progress;
mod setup;
mod soak;
mod source;
mod test;
mod tidy;
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development commands of Forebay.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install the pinned tools: Rust with its sources, LLVM, bpf-linker, network tools.
    Setup {
        /// Install nothing; exit code 1 if something is missing.
        #[arg(long)]
        check: bool,
    },
    /// Build the kernel programs into `target/ebpf/forebay.o`.
    BuildEbpf {
        /// Build once more from a copy of the sources elsewhere and compare the bytes.
        #[arg(long)]
        verify: bool,
    },
    /// Compare with nginx, Envoy and nftables on this machine.
    Bench(bench::Args),
    /// Run the fuzz targets, each for a few seconds.
    Fuzz(fuzz::Args),
    /// Formatting, clippy, documentation and manifests, without a single warning.
    Lint,
    /// Size limits, layer rules and module docs.
    Tidy,
    /// Run every test, from a bare machine.
    Test(test::Args),
    /// The tutorial's ingress in network namespaces: set up, shown and asserted.
    Demo(demo::Args),
    /// A real Kubernetes cluster on this machine: start, show, remove, import images.
    Cluster(cluster::Args),
    /// The container image, from a static program with the kernel programs inside.
    Dist(dist::Args),
    /// Render the chart into `deploy/forebay.yaml`.
    Manifests(manifests::Args),
    /// The official suite of Gateway API against Forebay on such a cluster.
    Conformance(conformance::Args),
    /// The tests of the kernel programs on other kernels, in virtual machines.
    Vm(vm::Args),
    /// Faults at random on three whole nodes on this machine, for minutes, and a checker of what clients saw.
    Soak(soak::Choice),
}

fn main() -> ExitCode {
    // As RUSTC_WRAPPER of the kernel build this same program is called with a compiler's command line.
    if let Some(code) = build_ebpf::wrapper::run_if_called_by_cargo() {
        return code;
    }
    let result = match Args::parse().command {
        Command::Setup { check } => setup::run(check),
        Command::BuildEbpf { verify } => build_ebpf::run(verify),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Lint => lint::run(),
        Command::Tidy => tidy::run(),
        Command::Test(args) => return test::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Cluster(args) => cluster::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Manifests(args) => manifests::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Vm(args) => return vm::run(&args),
        Command::Soak(choice) => soak::run(&choice),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
