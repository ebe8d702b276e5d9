//! `cargo xtask vm bench`: what packets cost in instructions, counted by the clock of an emulated machine.
//!
//! The same kernel and the same programs give the same counts on every machine, however busy it is, so a change of two in a
//! hundred can be told from chance. They say nothing about caches and memory: no claim of speed is made of them.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{
    image,
    kernels::{self, Wanted},
    qemu::{self, Accel, Folder, Machine},
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
const KERNEL: &str = "6.12";
/// Instructions in a thousand that a packet may take more than at the last record.
const MORE: u64 = 20;
/// Fewer are chance.
const CHANCE: u64 = 5;

/// What to count.
#[derive(clap::Args)]
pub(super) struct Args {
    /// On this kernel, an id of tests/vm/kernels.yaml.
    #[arg(long, default_value = KERNEL)]
    kernel: String,
    /// Write the counts to docs/benchmarks/instructions.json.
    #[arg(long)]
    record: bool,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    /// The kernel's release.
    release: String,
    /// SHA-256 of the kernel programs.
    object: String,
    /// Instructions of a packet with those of the harness, by case.
    instructions: BTreeMap<String, u64>,
}

/// Runs and compares; whether nothing has become dearer.
pub(super) fn run(args: &Args) -> Result<bool> {
    let steps = Steps::new();
    let kernel = kernels::chosen(std::slice::from_ref(&args.kernel), &kernels::list()?)?;
    let Some(Wanted::Listed(listed)) = kernel.first() else {
        bail!(
            "--kernel {}: counts are compared on kernels of the list only",
            args.kernel
        );
    };
    let mut recorded = read()?;
    ensure!(
        args.record || recorded.contains_key(&listed.id),
        "no counts of kernel {} are recorded to compare with: run it with --record first",
        listed.id
    );
    let _lock = super::lock()?;
    let interrupt = Interrupt::listen()?;
    steps.run("QEMU", |_| qemu::version())?;
    let cached = steps.run_for(&format!("kernel {}", listed.id), |step| {
        let cached = match store::cached(listed)? {
            Some(cached) => cached,
            None => store::fetch(step, listed)?,
        };
        let version = cached.lock.version.clone();
        Ok((cached, version))
    })?;
    let guest = image::build_bench(&steps)?;
    let image = image::Image::of_cache(cached, listed.below);
    let counts = steps.run_for("instructions", |step| {
        count(step, &interrupt, &image, &guest)
    })?;
    let dearer = recorded
        .get(&listed.id)
        .map_or(Ok(Vec::new()), |before| compare(before, &counts))?;
    show(&counts, recorded.get(&listed.id));
    if args.record {
        recorded.insert(listed.id.clone(), counts);
        let text = format!("{}\n", serde_json::to_string_pretty(&recorded)?);
        fs::write(path(), text).with_context(|| format!("cannot write {}", path().display()))?;
        return Ok(true);
    }
    for sentence in &dearer {
        println!("error: {sentence}");
    }
    Ok(dearer.is_empty())
}

fn count(
    step: &Step,
    interrupt: &Interrupt,
    image: &image::Image,
    guest: &image::Guest,
) -> Result<(Counts, String)> {
    let folder = Folder::new(paths::target().join("vm/bench"), false)?;
    let made = image.make(folder.path(), &image::instructions(), guest)?;
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
    let results = Results::read(&said("results.jsonl"), &said("console.log"));
    let failed = results
        .tests
        .iter()
        .find(|test| test.verdict != Verdict::Passed);
    if let Some(test) = failed {
        bail!("nothing was counted:\n{}", test.said.join("\n"));
    }
    ensure!(
        results.faults.is_empty(),
        "nothing was counted: {}",
        results.faults.join("; ")
    );
    let facts = results.tests.iter().flat_map(|test| &test.said);
    let pairs = facts.filter_map(|line| line.split_once(" = "));
    let instructions: BTreeMap<String, u64> = pairs
        .filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?)))
        .collect();
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

fn path() -> PathBuf {
    paths::root().join("docs/benchmarks/instructions.json")
}

/// What was recorded, by kernel.
fn read() -> Result<BTreeMap<String, Counts>> {
    let path = path();
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} holds no counts", path.display()))
}

fn show(counts: &Counts, before: Option<&Counts>) {
    for (name, count) in &counts.instructions {
        let was = before.and_then(|before| before.instructions.get(name));
        let was = was.map_or_else(String::new, |was| format!(" (recorded: {was})"));
        println!("{count:>8}  {name}{was}");
    }
}

/// What has become dearer, a sentence each.
fn compare(before: &Counts, now: &Counts) -> Result<Vec<String>> {
    let mut dearer = Vec::new();
    for (name, was) in &before.instructions {
        let is = now.instructions.get(name);
        let is = is.with_context(|| format!("\"{name}\" was not counted: record anew"))?;
        let more = is.saturating_sub(*was);
        if more > CHANCE && more * 1000 > was * MORE {
            dearer.push(format!(
                "\"{name}\" takes {is} instructions, {was} are recorded (on Linux {}): make it cheaper, or record it and say why",
                before.release
            ));
        }
    }
    Ok(dearer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(own: u64, other: u64) -> Counts {
        Counts {
            release: "6.12.1".to_owned(),
            object: String::new(),
            instructions: [("own".to_owned(), own), ("other".to_owned(), other)].into(),
        }
    }

    #[test]
    fn only_what_is_more_than_chance_and_two_in_a_hundred_is_dearer() {
        let before = counts(100, 1_000);
        for same in [counts(100, 1_000), counts(105, 1_020), counts(20, 900)] {
            assert!(compare(&before, &same).unwrap().is_empty());
        }
        let dearer = compare(&before, &counts(106, 1_021)).unwrap();
        assert_eq!(dearer.len(), 2);
        assert_eq!(
            dearer[1],
            "\"own\" takes 106 instructions, 100 are recorded (on Linux 6.12.1): make it cheaper, or record it and say why"
        );
        let mut fewer = before.clone();
        fewer.instructions.remove("own");
        assert!(compare(&before, &fewer).is_err());
    }
}
