//! `cargo xtask vm bench`: what packets cost in instructions, counted by the clock of an emulated machine.
//!
//! The same kernel and the same programs give the same counts on every machine, however busy it is, so a change of two in a
//! hundred can be told from chance. They say nothing about caches and memory: no claim of speed is made of them.

use std::{collections::BTreeMap, fs};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::{
    compare,
    counts::{self, Counts},
    emulator, history,
    image::{self, Guest, Image},
    kernels::{self, Listed, Wanted},
    qemu::{Accel, Folder, Machine},
    results::{Results, Verdict},
    store,
};
use crate::{
    build_ebpf,
    cluster::wait::Interrupt,
    paths,
    progress::{Step, Steps},
};

/// The kernel whose programs' instructions are counted where none is named.
pub(super) const KERNEL: &str = "6.12";

/// Beginning of the names of what is no count.
const SHARE: &str = "share: ";

/// What to count.
#[derive(clap::Args)]
pub(super) struct Args {
    /// On this kernel, an id of tests/vm/kernels.yaml.
    #[arg(long, default_value = KERNEL)]
    kernel: String,
    /// Write the counts to docs/benchmarks/instructions.json, and the chart of all records beside it.
    #[arg(long)]
    record: bool,
}

/// Runs and compares; whether nothing has become dearer.
pub(super) fn run(args: &Args) -> Result<bool> {
    let steps = Steps::new();
    let listed = listed(&args.kernel)?;
    let mut recorded = counts::read()?;
    ensure!(
        args.record || recorded.contains_key(&listed.id),
        "no counts of kernel {} are recorded to compare with: run it with --record first",
        listed.id
    );
    let _lock = super::lock()?;
    let interrupt = Interrupt::listen()?;
    let image = kernel(&steps, &listed)?;
    let mut guest = image::build_bench(&steps)?;
    let too_old = emulator::too_old(&emulator::version()?);
    if too_old.is_none() {
        guest = guest.with_daemon(&steps)?;
    }
    let mut now = steps.run_for("instructions", |step| {
        count(step, &interrupt, &image, &guest)
    })?;
    match &too_old {
        Some(why) => println!("note: {why}"),
        None => now
            .instructions
            .extend(stack(&steps, &interrupt, &image, &guest)?),
    }
    show(&now, recorded.get(&listed.id));
    if args.record {
        if let Some(before) = recorded.get(&listed.id) {
            now.keep_stack_of(before);
        }
        recorded.insert(listed.id, now);
        counts::write(&recorded)?;
        steps.run("chart", |_| history::draw())?;
        return Ok(true);
    }
    let Some(before) = recorded.get(&listed.id) else {
        bail!("the records of kernel {} are gone", listed.id);
    };
    let mut before = if before.release == now.release {
        before.clone()
    } else {
        compare::again(&steps, &interrupt, &image, &guest, (before, &now))?
    };
    if too_old.is_some() {
        before.leave_out(counts::is_stack);
    }
    let changes = counts::changes(&before, &now);
    for sentence in &changes.cheaper {
        println!("note: {sentence}");
    }
    for sentence in &changes.faults {
        println!("error: {sentence}");
    }
    let kinds = now.instructions.len();
    let failed = changes.faults.len();
    println!("{} passed, {failed} failed", kinds.saturating_sub(failed));
    Ok(failed == 0)
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
    steps.run("QEMU", |_| emulator::version())?;
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
    let results = machine(step, interrupt, image, guest, &image::instructions())?;
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

/// Counts what goes through the whole stack.
pub(super) fn stack(
    steps: &Steps,
    interrupt: &Interrupt,
    image: &Image,
    guest: &Guest,
) -> Result<BTreeMap<String, u64>> {
    steps.run_for("through the stack", |step| {
        let results = machine(step, interrupt, image, guest, &image::stack(guest))?;
        let all = instructions(&results)?;
        let (shares, counts): (BTreeMap<_, _>, BTreeMap<_, _>) = all
            .into_iter()
            .partition(|(name, _)| name.starts_with(SHARE));
        // Divided by a timer's ticks, so told and not compared.
        for (name, share) in shares {
            println!("note: {name} = {share}");
        }
        let said = format!("{} cases", counts.len());
        Ok((counts, said))
    })
}

/// Runs a machine that counts to its end.
fn machine(
    step: &Step,
    interrupt: &Interrupt,
    image: &Image,
    guest: &Guest,
    plan: &Value,
) -> Result<Results> {
    let folder = Folder::new(paths::target().join("vm/bench"), false)?;
    let made = image.make(folder.path(), plan, guest)?;
    let machine = Machine {
        kernel: &made.kernel,
        initramfs: &made.initramfs,
        folder: folder.path(),
        accel: Accel::Tcg,
        words: "",
        counts: true,
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
