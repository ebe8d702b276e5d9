//! `cargo xtask test`: every test, from a bare machine, with one closing line.
//!
//! Each check (tidy, object, lint) counts as one test. Nothing stops at the first failure; a suite that gave no
//! result (it did not compile, or died) counts as one failure.

use std::{
    io::{BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustix::process::geteuid;

use crate::{build_ebpf, cmd, fuzz, lint, paths, progress::Steps, setup, tidy};

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these suites; default: all.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Suite>,
}

/// One part of the tests.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Size limits, layer rules, module docs.
    Tidy,
    /// Formatting, clippy, documentation.
    Lint,
    /// The kernel programs: the same bytes from a checkout elsewhere.
    Object,
    /// Tests beside the code; no root, no network.
    Units,
    /// Each fuzz target for a few seconds.
    Fuzz,
    /// End-to-end scenarios in network namespaces; root.
    Scenarios,
    /// The kernel programs on the oldest and the newest kernel, and what packets cost in instructions; in virtual machines.
    Vm,
    /// On a Kubernetes of three nodes: the tutorial, and the official suite of Gateway API; root.
    Cluster,
}

/// Results added up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// A command that counts its tests itself: one that failed and counted no failure is one.
    fn counted(&mut self, (counted, ended): (Self, Result<()>)) {
        self.add(&counted);
        if counted.failed == 0 {
            self.check(ended);
        }
    }

    /// One check that either holds or does not.
    fn check(&mut self, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                self.failed += 1;
                println!("error: {error:#}");
            }
        }
    }
}

/// Kernels of the list on which the kernel programs are tried: the oldest of those that are served, and the newest.
const OLDEST_AND_NEWEST: [&str; 2] = ["6.1", "newest"];
/// The one whose counts of instructions are recorded.
const COUNTED: &str = "6.12";

/// `cargo xtask test`.
pub(crate) fn run(args: &Args) -> ExitCode {
    let wanted = |suite| args.only.is_empty() || args.only.contains(&suite);
    let mut tally = Tally::default();
    let needs_tools = [
        Suite::Object,
        Suite::Units,
        Suite::Lint,
        Suite::Scenarios,
        Suite::Vm,
        Suite::Cluster,
    ];
    let ready = prepare(needs_tools.into_iter().any(wanted));
    if ready.is_err() {
        tally.check(ready);
    } else {
        if wanted(Suite::Tidy) {
            tally.check(tidy::run());
        }
        if wanted(Suite::Object) {
            tally.check(build_ebpf::verify(&Steps::new()));
        }
        if wanted(Suite::Units) {
            tally.add(&units());
        }
        if wanted(Suite::Fuzz) {
            tally.check(fuzz::run(&fuzz::Args::default()));
        }
        if wanted(Suite::Scenarios) {
            tally.add(&scenarios());
        }
        if wanted(Suite::Vm) {
            tally.add(&on_other_kernels());
        }
        if wanted(Suite::Cluster) {
            tally.add(&on_cluster());
        }
        if wanted(Suite::Lint) {
            tally.check(lint::run());
        }
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn prepare(needs_tools: bool) -> Result<()> {
    if !needs_tools {
        return Ok(());
    }
    let steps = Steps::new();
    setup::install(&steps)?;
    build_ebpf::build(&steps)
}

fn units() -> Tally {
    println!("units");
    let mut cargo = cmd::cargo(&paths::root());
    libtest(cargo.args(["test", "--no-fail-fast"]))
}

fn scenarios() -> Tally {
    println!("scenarios");
    let mut tally = Tally::default();
    let prepared = can_make_namespaces()
        .and_then(|()| setup::install_clients(&Steps::new()))
        .and_then(|()| build_daemon())
        .and_then(|()| Ok((setup::clients_python()?, setup::grpcurl_path()?)));
    let (python, grpcurl) = match prepared {
        Ok(programs) => programs,
        Err(error) => {
            tally.check(Err(error.context("the scenarios cannot run")));
            return tally;
        }
    };
    let built = paths::target().join("debug");
    let mut cargo = cmd::cargo(&paths::root());
    cargo
        .env("FOREBAY_BIN", built.join("forebay"))
        .env("FOREBAY_EBPF_OBJECT", paths::object())
        .env("FOREBAY_PYTHON", python)
        .env("FOREBAY_GRPCURL", grpcurl)
        .args(["test", "--no-fail-fast", "-p", "gateway-tests"])
        // Each scenario fills the machine's cores by itself and some of them count time.
        .args(["--", "--test-threads=1"]);
    libtest(&mut cargo)
}

/// The kernel programs on other kernels, and their cost in instructions against what is recorded.
fn on_other_kernels() -> Tally {
    println!("virtual machines");
    let mut tally = Tally::default();
    let kernels = OLDEST_AND_NEWEST.map(|id| ["--kernel", id]);
    let kernels = kernels.as_flattened();
    let set_up = ["vm", "setup", "--cached", "--kernel", COUNTED];
    let (_, ready) = part(&[&set_up, kernels].concat());
    if ready.is_err() {
        tally.check(ready.context("nothing can be tried on other kernels"));
        return tally;
    }
    // Nothing that is missing is skipped: a kernel that cannot be had was a failure above.
    tally.counted(part(&[&["vm", "test", "--quick"], kernels].concat()));
    // The daemon as it is shipped takes longer to build than all of this takes.
    let bench = ["vm", "bench", "--no-requests", "--kernel", COUNTED];
    tally.counted(part(&bench));
    tally
}

/// What users install, on a real cluster. Each part is a process of its own, which an interrupt reaches by itself.
fn on_cluster() -> Tally {
    println!("cluster");
    let mut tally = Tally::default();
    let ready = can_make_namespaces().and_then(|()| part(&["dist", "--profile", "dev"]).1);
    if ready.is_err() {
        tally.check(ready.context("nothing can be tried on a cluster"));
        return tally;
    }
    tally.check(part(&["cluster", "demo", "--name", "test"]).1);
    tally.counted(part(&["conformance", "--no-report", "--name", "test"]));
    tally
}

/// Runs another command of this program with its output shown; what its line of counts says, and how it ended.
fn part(words: &[&str]) -> (Tally, Result<()>) {
    let mut tally = Tally::default();
    let ended = std::env::current_exe()
        .context("this program has no path")
        .and_then(|program| {
            stream(Command::new(program).args(words), |line| {
                println!("{line}");
                tally.add(&counts_line(line).unwrap_or_default());
            })
        })
        .with_context(|| words.join(" "));
    (tally, ended)
}

/// `12 passed, 0 failed`, with or without more behind it.
fn counts_line(line: &str) -> Option<Tally> {
    let (passed, rest) = line.split_once(" passed, ")?;
    let (failed, _) = rest.split_once(" failed")?;
    Some(Tally {
        passed: passed.parse().ok()?,
        failed: failed.parse().ok()?,
    })
}

pub(crate) fn can_make_namespaces() -> Result<()> {
    if !geteuid().is_root() {
        bail!(
            "they need root: run `sudo -E cargo xtask test`, or `cargo xtask test --only tidy,lint,units`"
        );
    }
    cmd::output(Command::new("unshare").args(["--net", "true"]))
        .map(drop)
        .context("this machine does not let root make network namespaces")
}

pub(crate) fn build_daemon() -> Result<()> {
    Steps::new().run("forebay", |step| {
        let mut cargo = cmd::cargo(&paths::root());
        cargo.env("FOREBAY_EBPF_OBJECT", paths::object()).args([
            "build",
            "-p",
            "gateway-user",
            "--bin",
            "forebay",
        ]);
        cmd::watched(&mut cargo, |line| step.say(line))?;
        Ok("built".to_owned())
    })
}

/// Runs a `cargo test` with its output shown and adds up what its test binaries say.
fn libtest(cargo: &mut Command) -> Tally {
    let mut tally = Tally::default();
    let outcome = stream(cargo, |line| {
        println!("{line}");
        tally.add(&result_line(line).unwrap_or_default());
    });
    if let Err(error) = outcome
        && tally.failed == 0
    {
        tally.check(Err(error));
    }
    tally
}

pub(crate) fn stream(cargo: &mut Command, mut each: impl FnMut(&str)) -> Result<()> {
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run it")?;
    let stdout = child
        .stdout
        .take()
        .context("its standard output was not piped")?;
    for line in BufReader::new(stdout).lines() {
        each(&line.context("cannot read what it says")?);
    }
    let status = child.wait().context("cannot wait for it")?;
    if !status.success() {
        bail!("it failed ({status})");
    }
    Ok(())
}

/// `test result: ok. 12 passed; 0 failed; 3 ignored; …`
fn result_line(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |name: &str| {
        let part = counts
            .split("; ")
            .find_map(|part| part.trim().strip_suffix(name))?;
        part.trim().parse().ok()
    };
    Some(Tally {
        passed: count("passed")?,
        failed: count("failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_added_up() {
        let mut tally = Tally::default();
        for line in [
            "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test tidy ... ok",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ] {
            tally.add(&result_line(line).unwrap_or_default());
        }
        assert_eq!(
            tally,
            Tally {
                passed: 14,
                failed: 1
            }
        );
    }

    #[test]
    fn only_a_line_of_counts_counts() {
        let counted = |line| counts_line(line).map(|tally| (tally.passed, tally.failed));
        assert_eq!(counted("96 passed, 2 failed, 74 skipped"), Some((96, 2)));
        assert_eq!(counted("7 passed, 0 failed"), Some((7, 0)));
        // A step says the same as the closing line.
        assert_eq!(counted("  ok    run     96 passed, 0 failed (3 s)"), None);
        assert_eq!(counted("hello from backend v1"), None);
    }

    #[test]
    fn a_suite_without_a_result_counts_as_one_failure() {
        let dead = libtest(Command::new("sh").args([
            "-c",
            "echo 'test result: ok. 4 passed; 0 failed; '; exit 101",
        ]));
        assert_eq!(
            dead,
            Tally {
                passed: 4,
                failed: 1
            }
        );
        let failed = libtest(Command::new("sh").args([
            "-c",
            "echo 'test result: FAILED. 4 passed; 2 failed; '; exit 101",
        ]));
        assert_eq!(
            failed,
            Tally {
                passed: 4,
                failed: 2
            }
        );
    }
}
