//! `cargo xtask bench l4|l7|protocols`: all set-up with a progress line for each step, then the benchmark itself takes over.
//!
//! The daemon is built by a cargo call of its own: built together with the tests it would get their features.

use std::os::unix::process::CommandExt;

use anyhow::{Result, bail};
use rustix::process::geteuid;

use crate::{
    build_ebpf, cmd, paths,
    progress::{Step, Steps},
    setup,
};

/// Programs that the benchmarks compare with or call, and the packages that hold them.
const PEERS: [(&str, &str); 4] = [
    ("nginx", "nginx"),
    ("nft", "nftables"),
    ("h2load", "nghttp2-client"),
    ("pip3", "python3-pip"),
];

/// What to measure; all other flags are handed on to the `forebay-bench` program.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The forwarding path or the proxy.
    #[arg(value_enum)]
    which: Which,
    /// Flags of the benchmark: --quick, --record, ... (`-- --help` lists them).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// Cost of the forwarding decision, and throughput against nftables.
    L4,
    /// CPU per request against nginx and Envoy.
    L7,
    /// CPU of TLS, HTTP/2 and gRPC against nginx and Envoy.
    Protocols,
}

/// `cargo xtask bench`.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !geteuid().is_root() {
        bail!(
            "the benchmarks make network namespaces and load kernel programs: run `sudo -E cargo xtask bench`"
        );
    }
    let steps = Steps::new();
    setup::install(&steps)?;
    steps.run("peers", peers)?;
    build_ebpf::build(&steps)?;
    let name = match args.which {
        Which::L4 => {
            steps.run("clang", clang)?;
            build_ebpf::build_bench(&steps)?;
            "l4"
        }
        Which::L7 | Which::Protocols => {
            steps.run("forebay", |step| {
                cmd::release(step, "gateway-user", "forebay")
            })?;
            match args.which {
                Which::Protocols => "protocols",
                _ => "l7",
            }
        }
    };
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
        .args(&args.flags)
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
