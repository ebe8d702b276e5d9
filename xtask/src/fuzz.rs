//! `cargo xtask fuzz`: runs each fuzz target for a bounded time; an input that breaks one is a failure and is kept.
//!
//! The build needs no nightly: coverage is a stable option of the compiler, and no sanitizer is used, since the code under
//! test holds no `unsafe`. What the targets depend on takes most of its time, and is built in the cache, once for all checkouts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    build_ebpf, cmd, paths,
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
    let _lock = setup::lock_on("fuzz.lock", "run of fuzz targets")?;
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
    let dependencies = fs::read(paths::root().join("fuzz/Cargo.lock"))
        .context("cannot read what the fuzz targets depend on")?;
    let hash = build_ebpf::hex_of(&dependencies);
    let root = paths::root().display().to_string();
    prune(&folder()?, &format!("{} {hash}", toolchain::PINNED), &root)?;
    let mut command = cargo_fuzz("build")?;
    cmd::watched(&mut command, |line| step.say(line))?;
    Ok("built".to_owned())
}

/// Where they are built.
fn folder() -> Result<PathBuf> {
    Ok(paths::cache()?.join("fuzz"))
}

/// Removes from `folder` what is of no more use: everything if it was built of other dependencies or by another compiler; what is of
/// another checkout's own sources if that was the last one, else each would leave its half a gigabyte.
fn prune(folder: &Path, dependencies: &str, root: &str) -> Result<()> {
    let stamp = folder.join("built");
    let before = fs::read_to_string(&stamp).unwrap_or_default();
    let mut lines = before.lines();
    if lines.next() != Some(dependencies) {
        drop(fs::remove_dir_all(folder));
    } else if lines.next() != Some(root) {
        forget_checkout(folder);
    }
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&stamp, format!("{dependencies}\n{root}\n")))
        .with_context(|| format!("cannot write to {}", folder.display()))
}

/// Removes what was built of a checkout's own sources, for the host and for the target.
fn forget_checkout(folder: &Path) {
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let mut builds = below(folder);
    builds.push(folder.to_owned());
    for kind in ["deps", ".fingerprint", "incremental", "build", ""] {
        let folders = builds.iter().map(|build| build.join("debug").join(kind));
        for path in folders.flat_map(|folder| below(&folder)) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = name.strip_prefix("lib").unwrap_or(&name);
            let own = TARGETS.into_iter().chain(["gateway_", "gateway-"]);
            if own.into_iter().any(|own| name.starts_with(own)) {
                // What stays is built over.
                drop(fs::remove_dir_all(&path));
                drop(fs::remove_file(&path));
            }
        }
    }
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
        .arg(folder()?);
    Ok(cargo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_use_stays_and_the_rest_goes() {
        let folder = std::env::temp_dir().join(format!("forebay-fuzz-{}", std::process::id()));
        let kept = folder.join("x86/debug/deps/libserde-1.rlib");
        let own = [
            folder.join("x86/debug/deps/libgateway_user-1.rlib"),
            folder.join("x86/debug/deps/router-1"),
            folder.join("x86/debug/.fingerprint/gateway-user-1/lib"),
            folder.join("debug/deps/libgateway_common-1.rmeta"),
            folder.join("x86/debug/router"),
        ];
        let lay = || {
            for path in own.iter().chain([&kept]) {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
        };
        let left = || own.iter().filter(|path| path.exists()).count();
        prune(&folder, "one", "/a").unwrap();
        lay();
        prune(&folder, "one", "/a").unwrap();
        assert_eq!((left(), kept.exists()), (own.len(), true));
        prune(&folder, "one", "/b").unwrap();
        assert_eq!((left(), kept.exists()), (0, true));
        prune(&folder, "two", "/b").unwrap();
        assert!(!kept.exists());
        fs::remove_dir_all(&folder).unwrap();
    }

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
