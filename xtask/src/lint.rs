//! Formatting, clippy, documentation and manifests; every warning is an error.

use anyhow::Result;

use crate::{cmd, manifests, paths, progress::Steps};

/// `cargo xtask lint`.
pub(crate) fn run() -> Result<()> {
    let steps = Steps::new();
    let root = paths::root();
    steps.run("format", |_| {
        cmd::output(cmd::cargo(&root).args(["fmt", "--all", "--check"]))?;
        for workspace in ["gateway-ebpf", "fuzz"] {
            cmd::output(cmd::cargo(&root.join(workspace)).args(["fmt", "--check"]))?;
        }
        Ok(String::new())
    })?;
    steps.run("manifests", |_| {
        manifests::sealed()?;
        Ok(String::new())
    })?;
    steps.run("clippy", |step| {
        let mut cargo = cmd::cargo(&root);
        cargo.args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]);
        cmd::watched(&mut cargo, |line| step.say(line))?;
        Ok(String::new())
    })?;
    steps.run("documentation", |step| {
        let mut cargo = cmd::cargo(&root);
        cargo.env("RUSTDOCFLAGS", "-D warnings");
        cargo.args([
            "doc",
            "--no-deps",
            "--lib",
            "-p",
            "gateway-common",
            "-p",
            "gateway-user",
        ]);
        cmd::watched(&mut cargo, |line| step.say(line))?;
        Ok(String::new())
    })
}
