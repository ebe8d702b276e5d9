//! `cargo xtask bench compare`: instructions of packets and requests of the working tree and of another commit, on the same kernel.
//!
//! The other commit's sources are a copy below `target`, which goes with the command. Both sides are built by this checkout's
//! tools, so that what differs is the sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    bench,
    counts::{self, Counts},
    emulator::{self, Emulator},
    image::{self, Guest, Image},
    qemu::Folder,
};
use crate::{
    build_ebpf,
    cluster::wait::Interrupt,
    cmd, paths,
    progress::{Step, Steps},
};

/// Where a checkout says which form its tables have.
const ABI: &str = "gateway-common/src/abi.rs";
/// Where a checkout has what counts.
const COUNTS: &str = "tests/src/bench/l4/instructions.rs";
/// Where it has what counts through the whole stack.
const STACK: &str = "tests/src/bench/stack.rs";

/// What to compare with.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A commit, a tag or a branch.
    reference: String,
    /// On this kernel, an id of tests/vm/kernels.yaml.
    #[arg(long, default_value = bench::KERNEL)]
    kernel: String,
    /// Leave requests out, for which both daemons are built as they are shipped: that takes minutes.
    #[arg(long)]
    no_requests: bool,
    #[command(flatten)]
    emulator: Emulator,
}

/// Counts both and shows them side by side.
pub(crate) fn run(args: &Args) -> Result<()> {
    args.emulator.choose()?;
    let steps = Steps::new();
    let listed = bench::listed(&args.kernel)?;
    let commit = commit(&args.reference)?;
    let _lock = super::lock()?;
    let interrupt = Interrupt::listen()?;
    let too_old = emulator::too_old(&emulator::ready(&steps)?);
    too_old.iter().for_each(|why| println!("note: {why}"));
    let requests = too_old.is_none() && !args.no_requests;
    let image = bench::kernel(&steps, &listed)?;
    let mut here = image::build_bench(&steps)?;
    let short = commit.get(..12).unwrap_or(&commit);
    let there = steps.run_for(short, |step| {
        let there = other(step, &interrupt, &commit, (&here, requests))?;
        let said = there.in_words();
        Ok((there, said))
    });
    interrupt.check()?;
    let there = there.with_context(|| args.reference.clone())?;
    if there.is_same {
        println!(
            "the kernel programs of {} are those of the working tree, byte for byte",
            args.reference
        );
    }
    if there.guest.has_daemon() {
        here = here.with_daemon(&steps)?;
    }
    let through = too_old.is_none() && there.has_stack;
    let count = |name: &str, guest: &Guest| -> Result<BTreeMap<String, u64>> {
        let mut counts = BTreeMap::new();
        if !there.is_same {
            let name = format!("instructions {name}");
            let count = |step: &Step| bench::count(step, &interrupt, &image, guest);
            counts = steps.run_for(&name, count)?.instructions;
        }
        if through && (!there.is_same || guest.has_daemon()) {
            let name = format!("through the stack {name}");
            let count = |step: &Step| bench::stack(step, &interrupt, &image, guest);
            counts.extend(steps.run_for(&name, count)?);
        }
        Ok(counts)
    };
    let before = count(&format!("of {short}"), &there.guest)?;
    let now = count("here", &here)?;
    if !now.is_empty() {
        println!(
            "Instructions on Linux {}, with those of the harness; {} counted by {}",
            listed.id,
            args.reference,
            there.program.in_words()
        );
        print!("{}", table(&args.reference, &before, &now));
    }
    Ok(())
}

/// What is recorded, counted anew on another kernel than it was recorded on: there each of the kernel's own functions may take
/// more or less. `before` was counted on the other one, `now` on this one.
pub(super) fn again(
    steps: &Steps,
    interrupt: &Interrupt,
    image: &Image,
    here: &Guest,
    (before, now): (&Counts, &Counts),
) -> Result<Counts> {
    if before.object == now.object {
        return Ok(now.clone());
    }
    let words = ["log", "-1", "--format=%H", "--", counts::FILE];
    let commit = cmd::output(Command::new("git").args(words).current_dir(paths::root()))?;
    let record_anew = || {
        format!(
            "the counts are of Linux {}, this is Linux {}, and the programs that they are of cannot be built again: record anew",
            before.release, now.release
        )
    };
    let there = steps.run_for("the programs of the record", |step| {
        let there = other(step, interrupt, &commit, (here, false))?;
        let said = there.in_words();
        Ok((there.guest, said))
    });
    interrupt.check()?;
    let there = there.with_context(record_anew)?;
    ensure!(
        build_ebpf::hex_of(&there.object) == before.object,
        record_anew()
    );
    steps.run_for("their instructions", |step| {
        bench::count(step, interrupt, image, &there)
    })
}

/// What counts the other commit's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Ours,
    Theirs,
}

impl Program {
    fn in_words(self) -> &'static str {
        match self {
            Self::Ours => "the working tree's program",
            Self::Theirs => "its own program, since the form of the tables differs",
        }
    }
}

fn commit(reference: &str) -> Result<String> {
    let wanted = format!("{reference}^{{commit}}");
    let words = [
        "rev-parse",
        "--verify",
        "--quiet",
        "--end-of-options",
        &wanted,
    ];
    let found = cmd::output(Command::new("git").args(words).current_dir(paths::root()));
    match found {
        Ok(commit) if !commit.is_empty() => Ok(commit),
        _ => bail!("{reference}: this checkout knows no such commit, tag or branch"),
    }
}

/// What another commit's machine is made of.
struct Other {
    guest: Guest,
    program: Program,
    /// Its program counts what goes through the whole stack.
    has_stack: bool,
    /// Its kernel programs are those of the working tree, byte for byte.
    is_same: bool,
    abi: u32,
}

impl Other {
    fn in_words(&self) -> String {
        if self.is_same {
            return "the same kernel programs".to_owned();
        }
        let hash = build_ebpf::hex_of(&self.guest.object);
        format!("{} of ABI {}", &hash[..12], self.abi)
    }
}

/// Builds it, with its daemon if `requests` are counted and its program can count them.
fn other(
    step: &Step,
    interrupt: &Interrupt,
    commit: &str,
    (here, requests): (&Guest, bool),
) -> Result<Other> {
    let built = paths::target().join("compare");
    // The same place for all commits, so that what others were built from is of use.
    let copy = Folder::new(built.join("copy"), false)?;
    step.say("sources");
    copy_of(commit, copy.path())?;
    interrupt.check()?;
    let theirs = abi(copy.path()).context("it has no kernel programs to measure")?;
    let ours = abi(&paths::root())?;
    ensure!(
        theirs == ours || copy.path().join(COUNTS).is_file(),
        "its tables are of form {theirs}, ours of form {ours}, and it has no program of its own that counts instructions: compare with a later commit"
    );
    let object = build_ebpf::build_bench_of(step, copy.path().to_path_buf())?;
    let is_same = object == here.object;
    let mut guest = here.with_object(object);
    let build = built.join("build");
    let program = if theirs == ours {
        Program::Ours
    } else {
        step.say("its program");
        guest = guest.with_bench_of(step, copy.path(), &build)?;
        Program::Theirs
    };
    let has_stack = program == Program::Ours || copy.path().join(STACK).is_file();
    if requests && has_stack {
        interrupt.check()?;
        let object = build_ebpf::build_of(step, copy.path().to_path_buf())?;
        guest = guest.with_daemon_of(step, copy.path(), &build, &object)?;
    }
    Ok(Other {
        guest,
        program,
        has_stack,
        is_same,
        abi: theirs,
    })
}

/// Lays the commit's files down, as if they had been changed now: cargo takes older ones than it has built for unchanged.
fn copy_of(commit: &str, to: &Path) -> Result<()> {
    let archive = to.with_extension("tar");
    let mut git = Command::new("git");
    git.args(["archive", "--format", "tar", "--output"])
        .arg(&archive)
        .arg(commit)
        .current_dir(paths::root());
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--touch", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(to);
    let done = cmd::output(&mut git).and_then(|_| cmd::output(&mut tar));
    drop(fs::remove_file(&archive));
    done.map(drop)
}

/// The version of the tables' form.
fn abi(root: &Path) -> Result<u32> {
    let path = root.join(ABI);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    version(&text).with_context(|| format!("{ABI} names no version"))
}

fn version(text: &str) -> Option<u32> {
    let (_, behind) = text.split_once("const ABI_VERSION: u32 = ")?;
    let (version, _) = behind.split_once(';')?;
    version.trim().parse().ok()
}

/// Both sides, a line for each case; what only one of them has comes last.
fn table(reference: &str, before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> String {
    let mut text = format!("{reference:>12}  {:>12}  {:>7}\n", "here", "ratio");
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let mut alone = String::new();
    for name in names {
        // Writing to a string does not fail.
        let _written = match (before.get(name), now.get(name)) {
            (Some(was), Some(is)) => {
                let ratio = *is as f64 / (*was).max(1) as f64;
                writeln!(text, "{was:>12}  {is:>12}  {ratio:>7.3}  {name}")
            }
            (Some(was), None) => {
                writeln!(
                    alone,
                    "{was:>12}  {:>12}  {:>7}  {name} (only in {reference})",
                    "-", ""
                )
            }
            (None, Some(is)) => {
                writeln!(
                    alone,
                    "{:>12}  {is:>12}  {:>7}  {name} (only here)",
                    "-", ""
                )
            }
            (None, None) => Ok(()),
        };
    }
    text + &alone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_stand_beside_each_other_and_what_is_alone_comes_last() {
        let counts = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            let pairs = pairs.iter();
            pairs
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect()
        };
        let before = counts(&[("a", 200), ("b", 7), ("d", 100)]);
        let now = counts(&[("a", 150), ("c", 8), ("d", 103)]);
        assert_eq!(
            table("v1", &before, &now),
            "          v1          here    ratio\n         \
                      200           150    0.750  a\n         \
                      100           103    1.030  d\n           \
                        7             -           b (only in v1)\n           \
                        -             8           c (only here)\n"
        );
    }

    #[test]
    fn a_commit_that_is_not_there_is_one_sentence() {
        for bad in ["no-such-commit", "--help", "", "HEAD:README.md"] {
            let error = commit(bad).unwrap_err().to_string();
            let expected = format!("{bad}: this checkout knows no such commit, tag or branch");
            assert_eq!(error, expected);
        }
        assert_eq!(commit("HEAD").unwrap().len(), 40);
    }

    #[test]
    fn the_form_of_the_tables_is_read_from_the_sources() {
        assert_eq!(version("x\npub const ABI_VERSION: u32 = 12;\n"), Some(12));
        assert_eq!(version("nothing"), None);
        assert!(abi(&paths::root()).unwrap() >= 5);
    }
}
