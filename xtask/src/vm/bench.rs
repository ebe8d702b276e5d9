//! `cargo xtask vm bench`: what packets cost in instructions, counted by the clock of an emulated machine.
//!
//! The same kernel and the same programs give the same counts on every machine, however busy it is, so a change of two in a
//! hundred can be told from chance. They say nothing about caches and memory: no claim of speed is made of them.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    compare,
    counts::{self, Counts, Recorded},
    emulator::{self, Emulator},
    history,
    image::{self, Guest, Image, Stack},
    kernels::{self, Listed, Wanted},
    qemu::{Accel, Clock, Folder, Machine},
    results::{Results, Verdict},
    store,
};
use crate::{
    build_ebpf,
    cluster::wait::Interrupt,
    paths,
    progress::{Step, Steps},
};

/// The kernel that commands with one run where none is named.
pub(super) const KERNEL: &str = "6.12";

/// End of the names of counts that are a part of another one.
const IN_USER_SPACE: &str = ", in user space";

/// What to count.
#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// On these kernels, ids of tests/vm/kernels.yaml; default: all that are recorded, or all that Forebay serves with --record.
    #[arg(long)]
    kernel: Vec<String>,
    /// Write the counts to docs/benchmarks/instructions.json, and the chart of all records beside it.
    #[arg(long)]
    record: bool,
    /// Leave requests out, for which the daemon is built as it is shipped: that takes minutes.
    #[arg(long, conflicts_with = "record")]
    no_requests: bool,
}

/// `cargo xtask bench --vm`.
pub(crate) fn alone(args: &Args, emulator: &Emulator) -> Result<()> {
    emulator.choose()?;
    ensure!(run(args)?, "not all counts are as recorded");
    Ok(())
}

/// Runs and compares; whether nothing has become dearer.
pub(super) fn run(args: &Args) -> Result<bool> {
    let steps = Steps::new();
    let mut recorded = counts::read()?;
    let kernels = asked(args, &recorded)?;
    let _lock = super::lock()?;
    let interrupt = Interrupt::listen()?;
    // Before anything that takes minutes.
    let too_old = emulator::too_old(&emulator::ready(&steps)?);
    let mut guest = image::build_bench(&steps)?;
    match &too_old {
        Some(why) => println!("note: {why}"),
        None if args.no_requests => {}
        None => guest = guest.with_daemon(&steps)?,
    }
    let mut tally = (0, 0);
    for listed in kernels {
        let image = kernel(&steps, &listed)?;
        let mut now = steps.run_for(&format!("instructions on {}", listed.id), |step| {
            count(step, &interrupt, &image, &guest)
        })?;
        if too_old.is_none() {
            let through = |step: &Step| stack(step, &interrupt, &image, &guest);
            now.instructions
                .extend(steps.run_for("through the stack", through)?);
        }
        show(&now, recorded.get(&listed.id));
        if args.record {
            if let Some(before) = recorded.get(&listed.id) {
                now.keep_stack_of(before);
            }
            recorded.insert(listed.id, now);
            counts::write(&recorded)?;
            continue;
        }
        let before = recorded.get(&listed.id).context("a record is gone")?;
        let mut before = if before.release == now.release {
            before.clone()
        } else {
            compare::again(&steps, &interrupt, &image, &guest, (before, &now))?
        };
        before.leave_out(|name| {
            let whole = too_old.is_some() && counts::is_stack(name);
            whole || args.no_requests && counts::is_request(name)
        });
        let failed = judge(&before, &now);
        tally = (
            tally.0 + now.instructions.len().saturating_sub(failed),
            tally.1 + failed,
        );
    }
    if args.record {
        steps.run("chart", |_| history::draw())?;
        return Ok(true);
    }
    let (passed, failed) = tally;
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// The kernels to count on.
fn asked(args: &Args, recorded: &Recorded) -> Result<Vec<Listed>> {
    let kernels: Vec<Listed> = if args.kernel.is_empty() {
        let all = kernels::list()?.into_iter();
        all.filter(|one| !one.below && (args.record || recorded.contains_key(&one.id)))
            .collect()
    } else {
        let named = args.kernel.iter();
        named.map(|id| listed(id)).collect::<Result<_>>()?
    };
    ensure!(
        !kernels.is_empty(),
        "no counts are recorded to compare with: run it with --record first"
    );
    for one in &kernels {
        ensure!(
            args.record || recorded.contains_key(&one.id),
            "no counts of kernel {} are recorded to compare with: run it with --record first",
            one.id
        );
    }
    Ok(kernels)
}

/// Says what is not as recorded, and returns how much of it may not be.
fn judge(before: &Counts, now: &Counts) -> usize {
    let changes = counts::changes(before, now);
    for sentence in &changes.cheaper {
        println!("note: {sentence}");
    }
    for sentence in &changes.faults {
        println!("error: {sentence}");
    }
    changes.faults.len()
}

/// The kernel of the list that is called so.
pub(super) fn listed(id: &str) -> Result<Listed> {
    let mut chosen = kernels::chosen(&[id.to_owned()], &kernels::list()?)?;
    match chosen.pop() {
        Some(Wanted::Listed(listed)) if !listed.below => Ok(listed),
        _ => bail!(
            "--kernel {id}: counts are compared on kernels of the list only that Forebay serves"
        ),
    }
}

/// Its files, fetched where they are not in the cache.
pub(super) fn kernel(steps: &Steps, listed: &Listed) -> Result<Image> {
    let cached = steps.run_for(&format!("kernel {}", listed.id), |step| {
        let cached = match store::cached(listed)? {
            Some(cached) => cached,
            None => store::fetch(step, listed)?,
        };
        let version = cached.lock.version.clone();
        Ok((cached, version))
    })?;
    Ok(Image::of_cache(cached, listed.below))
}

/// Runs a machine of `guest`, which counts.
pub(super) fn count(
    step: &Step,
    interrupt: &Interrupt,
    image: &Image,
    guest: &Guest,
) -> Result<(Counts, String)> {
    let plan = image::instructions();
    let results = machine(step, interrupt, image, guest, &plan, Clock::Instructions)?;
    let instructions = instructions(&results)?;
    let said = format!(
        "{} kinds of packets on Linux {}",
        instructions.len(),
        results.release
    );
    let counts = Counts {
        release: results.release,
        object: build_ebpf::hex_of(&guest.object),
        instructions,
    };
    Ok((counts, said))
}

/// Counts what goes through the whole stack; of requests only if the machine has the daemon.
pub(super) fn stack(
    step: &Step,
    interrupt: &Interrupt,
    image: &Image,
    guest: &Guest,
) -> Result<(BTreeMap<String, u64>, String)> {
    let mut counts = BTreeMap::new();
    for (which, clock) in [
        (Stack::Whole, Clock::Instructions),
        (Stack::Apart, Clock::InstructionsApart),
    ] {
        if which == Stack::Apart && !guest.has_daemon() {
            continue;
        }
        let plan = image::stack(guest, which);
        let results = machine(step, interrupt, image, guest, &plan, clock)?;
        counts.extend(instructions(&results)?);
    }
    counts.extend(in_the_kernel(&counts));
    let said = format!("{} cases", counts.len());
    Ok((counts, said))
}

/// What is left of each count of which a part is known to be in user space.
fn in_the_kernel(counts: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let left = counts.iter().filter_map(|(name, user)| {
        let whole = name.strip_suffix(IN_USER_SPACE)?;
        let left = counts.get(whole)?.saturating_sub(*user);
        Some((format!("{whole}, in the kernel"), left))
    });
    left.collect()
}

/// Runs a machine that counts to its end.
fn machine(
    step: &Step,
    interrupt: &Interrupt,
    image: &Image,
    guest: &Guest,
    plan: &Value,
    clock: Clock,
) -> Result<Results> {
    let folder = Folder::new(paths::target().join("vm/bench"), false)?;
    let made = image.make(folder.path(), plan, guest)?;
    let machine = Machine {
        kernel: &made.kernel,
        initramfs: &made.initramfs,
        folder: folder.path(),
        accel: Accel::Tcg,
        words: "",
        clock,
        bound: super::BOUND,
    };
    step.say("counting");
    machine.run(interrupt, |_| {})?;
    let said = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    Ok(Results::read(&said("results.jsonl"), &said("console.log")))
}

fn instructions(results: &Results) -> Result<BTreeMap<String, u64>> {
    let tests = &results.tests;
    if let Some(test) = tests.iter().find(|test| test.verdict != Verdict::Passed) {
        bail!("nothing was counted:\n{}", test.said.join("\n"));
    }
    ensure!(
        results.faults.is_empty(),
        "nothing was counted: {}",
        results.faults.join("; ")
    );
    let facts = tests.iter().flat_map(|test| &test.said);
    let pairs = facts.filter_map(|line| line.split_once(" = "));
    let counts: BTreeMap<String, u64> = pairs
        .filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?)))
        .collect();
    ensure!(!counts.is_empty(), "the machine ended and counted nothing");
    Ok(counts)
}

fn show(counts: &Counts, before: Option<&Counts>) {
    for (name, count) in &counts.instructions {
        let was = before.and_then(|before| before.instructions.get(name));
        let was = was.map_or_else(String::new, |was| format!(" (recorded: {was})"));
        println!("{count:>8}  {name}{was}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_user_space_is_in_the_kernel() {
        let counts = [
            ("l7: a, whole machine", 30),
            ("l7: a, daemon", 10),
            ("l7: a, daemon, in user space", 4),
            ("l7: b, daemon, in user space", 4),
        ];
        let counts = counts.map(|(name, count)| (name.to_owned(), count)).into();
        let want = [("l7: a, daemon, in the kernel".to_owned(), 6)].into();
        assert_eq!(in_the_kernel(&counts), want);
    }
}
