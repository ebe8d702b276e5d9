//! `cargo xtask bench l4|l7|protocols`: all set-up with a progress line for each step, then the benchmark itself takes over.
//! `cargo xtask bench --vm`: what packets cost in instructions, in a machine that counts them.
//! `cargo xtask bench compare`: two commits against each other, in such a machine.
//!
//! The daemon is built by a cargo call of its own: built together with the tests it would get their features.

use std::os::unix::process::CommandExt;

use anyhow::{Result, bail};
use rustix::process::geteuid;

use crate::{
    build_ebpf, cmd, paths,
    progress::{Step, Steps},
    setup, vm,
};

/// Programs that the benchmarks compare with or call, and the packages that hold them.
const PEERS: [(&str, &str); 4] = [
    ("nginx", "nginx"),
    ("nft", "nftables"),
    ("h2load", "nghttp2-client"),
    ("pip3", "python3-pip"),
];

/// What to measure.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    which: Option<Which>,
    /// Count the instructions of packets in virtual machines: the same as `cargo xtask vm bench`.
    #[arg(long, required = true)]
    vm: bool,
    #[command(flatten)]
    counts: vm::bench::Args,
    #[command(flatten)]
    emulator: vm::emulator::Emulator,
}

#[derive(clap::Subcommand)]
enum Which {
    /// Cost of the forwarding decision, and throughput against nftables.
    #[command(disable_help_flag = true)]
    L4(Flags),
    /// CPU per request against nginx and Envoy.
    #[command(disable_help_flag = true)]
    L7(Flags),
    /// CPU of TLS, HTTP/2 and gRPC against nginx and Envoy.
    #[command(disable_help_flag = true)]
    Protocols(Flags),
    /// Instructions of packets of each kind, of the working tree and of another commit.
    Compare(vm::compare::Args),
}

/// All flags are handed on to the `forebay-bench` program.
#[derive(clap::Args)]
struct Flags {
    /// Flags of the benchmark: --quick, --record, ... (--help lists them).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<String>,
}

/// `cargo xtask bench`.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.which {
        Some(Which::L4(flags)) => measure("l4", flags),
        Some(Which::L7(flags)) => measure("l7", flags),
        Some(Which::Protocols(flags)) => measure("protocols", flags),
        Some(Which::Compare(args)) => vm::compare::run(args),
        None => vm::bench::alone(&args.counts, &args.emulator),
    }
}

/// The benchmark's own words on its flags, for which nothing else has to be there.
fn explain(name: &str) -> Result<()> {
    let mut program = cmd::cargo(&paths::root());
    program.args(["run", "--quiet", "-p", "gateway-tests"]);
    program.args(["--bin", "forebay-bench", "--", name, "--help"]);
    bail!("cannot start cargo: {}", program.exec())
}

/// Builds everything and hands over to the benchmark; returns only if it cannot be started.
fn measure(name: &str, flags: &Flags) -> Result<()> {
    if flags
        .flags
        .iter()
        .any(|flag| flag == "--help" || flag == "-h")
    {
        return explain(name);
    }
    if !geteuid().is_root() {
        bail!(
            "the benchmarks make network namespaces and load kernel programs: run `sudo -E cargo xtask bench`"
        );
    }
    let steps = Steps::new();
    setup::install(&steps)?;
    steps.run("peers", peers)?;
    build_ebpf::build(&steps)?;
    if name == "l4" {
        steps.run("clang", clang)?;
        build_ebpf::build_bench(&steps)?;
    } else {
        steps.run("forebay", |step| {
            cmd::release(step, "gateway-user", "forebay")
        })?;
    }
    steps.run("the benchmark", |step| {
        cmd::release(step, "gateway-tests", "forebay-bench")
    })?;
    let built = paths::target().join("release");
    let error = std::process::Command::new(built.join("forebay-bench"))
        .current_dir(paths::root())
        .env("FOREBAY_BIN", built.join("forebay"))
        .env(
            "FOREBAY_BENCH_OBJECT",
            paths::target().join("ebpf/forebay-bench.o"),
        )
        .arg(name)
        .arg("--out")
        .arg(paths::target().join("bench"))
        .args(&flags.flags)
        .exec();
    bail!("cannot start the benchmark: {error}")
}

/// The compiler of the forwarding path in C. Where it cannot be had the benchmark says so, and goes on without that comparison.
fn clang(step: &Step) -> Result<String> {
    if ["clang-22", "clang"].into_iter().any(cmd::is_there) {
        return Ok("installed".to_owned());
    }
    Ok(setup::packages(step, &["clang-22"]).unwrap_or_else(|_| "not to be had".to_owned()))
}

fn peers(step: &Step) -> Result<String> {
    let missing: Vec<&str> = PEERS
        .iter()
        .filter(|(program, _)| !cmd::is_there(program))
        .map(|(_, package)| *package)
        .collect();
    setup::packages(step, &missing)
}
