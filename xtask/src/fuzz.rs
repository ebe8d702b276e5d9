//! `cargo xtask fuzz`: runs each fuzz target for a bounded time; an input that breaks one is a failure and is kept.
//!
//! The build needs no nightly: coverage is a stable option of the compiler, and no sanitizer is used, since the code under
//! test holds no `unsafe`.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::{
    cmd, paths,
    progress::{Step, Steps},
    setup, toolchain,
};

/// All targets: the programs of `fuzz/Cargo.toml`.
const TARGETS: [&str; 6] = [
    "translate_yaml",
    "router",
    "head_scanner",
    "proxy_header",
    "path",
    "authority",
];

/// Manifests of the tests and examples, where inputs of the first target begin beside those in `fuzz/seeds`.
const MANIFESTS: [&str; 2] = ["examples/quickstart", "gateway-user/tests/golden"];

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these targets; default: all.
    #[arg(value_parser = TARGETS)]
    targets: Vec<String>,
    /// Longest time for each.
    #[arg(long, default_value_t = SECONDS)]
    seconds: u32,
}

/// Time for each target where nothing else is said.
const SECONDS: u32 = 8;

impl Default for Args {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            seconds: SECONDS,
        }
    }
}

/// `cargo xtask fuzz`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let steps = Steps::new();
    setup::install_cargo_fuzz(&steps)?;
    steps.run("fuzz targets", build)?;
    let wanted = |name: &str| args.targets.is_empty() || args.targets.iter().any(|t| t == name);
    let mut broken = Vec::new();
    for target in TARGETS.into_iter().filter(|name| wanted(name)) {
        let outcome = steps.run(target, |step| fuzz(step, target, args.seconds));
        if let Err(error) = outcome {
            println!("error: {error:#}");
            broken.push(target);
        }
    }
    if broken.is_empty() {
        return Ok(());
    }
    bail!(
        "an input breaks {}: it is in fuzz/artifacts",
        broken.join(", ")
    )
}

fn build(step: &Step) -> Result<String> {
    let mut command = cargo_fuzz("build")?;
    cmd::watched(&mut command, |line| step.say(line))?;
    Ok("built".to_owned())
}

fn fuzz(step: &Step, target: &str, seconds: u32) -> Result<String> {
    let corpus = paths::target().join("fuzz-corpus").join(target);
    fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
    let mut command = cargo_fuzz("run")?;
    // libFuzzer writes what it finds to the first directory only.
    command.arg(target).arg(corpus).arg(seeds(target));
    if target == "translate_yaml" {
        command.args(MANIFESTS.map(|folder| paths::root().join(folder)));
    }
    command.arg("--").args([
        &format!("-max_total_time={seconds}"),
        "-max_len=8192",
        "-timeout=10",
        "-verbosity=1",
    ]);
    let (mut done, mut why, mut panicked) = (String::new(), String::new(), false);
    let outcome = cmd::watched(&mut command, |line| {
        step.say(line);
        if line.starts_with("Done ") {
            line.clone_into(&mut done);
        }
        // The end of the output is libFuzzer's stack: the reason stands far above it.
        if panicked || line.contains("panicked at") {
            why = format!("{why} {line}");
            panicked = !panicked;
        }
    });
    outcome.with_context(|| format!("an input breaks {target}:{why}"))?;
    Ok(done)
}

fn seeds(target: &str) -> PathBuf {
    paths::root().join("fuzz/seeds").join(target)
}

/// A command of cargo-fuzz, with the options that all builds share.
fn cargo_fuzz(command: &str) -> Result<std::process::Command> {
    let mut cargo = std::process::Command::new(setup::cargo_fuzz_path()?);
    toolchain::clean(&mut cargo)
        .env("RUSTUP_TOOLCHAIN", toolchain::PINNED)
        .current_dir(paths::root())
        .args([command, "--dev", "--sanitizer", "none", "--target-dir"])
        .arg(paths::target().join("fuzz"));
    Ok(cargo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_a_program_and_has_seeds() {
        let root = paths::root();
        let mut programs: Vec<String> = fs::read_dir(root.join("fuzz/fuzz_targets"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        programs.sort();
        let mut targets = TARGETS.map(|target| format!("{target}.rs"));
        targets.sort();
        assert_eq!(programs, targets);
        for target in TARGETS {
            assert!(
                seeds(target).read_dir().unwrap().next().is_some(),
                "{target}"
            );
        }
        for folder in MANIFESTS {
            assert!(root.join(folder).is_dir(), "{folder}");
        }
    }
}
