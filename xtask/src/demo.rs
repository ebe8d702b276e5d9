//! `cargo xtask demo`: all set-up with a progress line for each step, then the demo itself takes over.

use std::os::unix::process::CommandExt;

use anyhow::{Result, bail};
use rustix::process::geteuid;

use crate::{build_ebpf, cmd, paths, progress::Steps, setup};

/// Flags of the demo; handed on to the `forebay-demo` program.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Forebay nodes, 1 to 3.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// Leave everything running at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// How packets reach the owner node.
    #[arg(long, default_value = "auto", value_parser = ["auto", "l2", "udp"])]
    forward: String,
}

/// `cargo xtask demo`.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !geteuid().is_root() {
        bail!(
            "the demo makes network namespaces and loads kernel programs: run `sudo -E cargo xtask demo`"
        );
    }
    let steps = Steps::new();
    setup::install(&steps)?;
    build_ebpf::build(&steps)?;
    steps.run("forebay", |step| {
        cmd::release(step, "gateway-user", "forebay")
    })?;
    steps.run("the demo", |step| {
        cmd::release(step, "gateway-tests", "forebay-demo")
    })?;
    let built = paths::target().join("release");
    let error = std::process::Command::new(built.join("forebay-demo"))
        .env("FOREBAY_BIN", built.join("forebay"))
        .env("FOREBAY_EBPF_OBJECT", paths::object())
        .args([
            "--nodes",
            &args.nodes.to_string(),
            "--forward",
            &args.forward,
        ])
        .args(args.keep.then_some("--keep"))
        .exec();
    bail!("cannot start the demo: {error}")
}
