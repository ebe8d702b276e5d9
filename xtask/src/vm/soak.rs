//! `cargo xtask vm soak`: a machine in which faults come at random while clients are served, for minutes.
//!
//! The scenario `datapath::soak` does it and judges it; this makes its machine, shows how it goes, and says how it is done
//! again.

/// The list of the scenario itself: not its crate, which is built for the machine.
#[path = "../../../tests/src/soak/fault.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "it is a public module of the scenario's crate"
)]
mod fault;

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use self::fault::Fault;
use super::{
    emulator,
    image::{self, Guest, Image},
    kernels::{self, Listed, Wanted},
    qemu::{Accel, Folder, Machine},
    results::{Results, Verdict},
    store,
};
use crate::{
    cluster::wait::Interrupt,
    paths,
    progress::{Step, Steps},
};

/// The kernel where none is named.
const KERNEL: &str = "6.12";
/// What the machine may take besides for its start, its programs and its end.
const BESIDES: u64 = 420;
/// How the machine's console tells how it goes.
const MARK: &str = "soak: ";

/// What to do.
#[derive(clap::Args)]
pub(super) struct Args {
    /// On this kernel, an id of tests/vm/kernels.yaml.
    #[arg(long, default_value = KERNEL)]
    kernel: String,
    /// Draw the faults from this number; the same one gives the same faults in the same order. Default: another each time.
    #[arg(long)]
    seed: Option<u64>,
    /// For so long.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    minutes: u64,
    /// Only these faults; default: all but `wreck`.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// How instructions are carried out.
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    accel: Accel,
    /// Keep what the machine was made of and what it said, in target/vm.
    #[arg(long)]
    keep: bool,
    /// Fetch nothing.
    #[arg(long)]
    offline: bool,
}

/// Runs it; whether all held.
pub(super) fn run(args: &Args) -> Result<bool> {
    let steps = Steps::new();
    let kernel = kernels::chosen(std::slice::from_ref(&args.kernel), &kernels::list()?)?;
    let Some(Wanted::Listed(listed)) = kernel.first() else {
        bail!("--kernel {}: only kernels of the list", args.kernel);
    };
    let seed = args.seed.unwrap_or_else(any);
    let again = replay(args, seed);
    println!("seed {seed}; the same faults again: {again}");
    let _lock = super::lock()?;
    let interrupt = Interrupt::listen()?;
    steps.run("QEMU", |_| emulator::version())?;
    let image = steps.run_for(&format!("kernel {}", listed.id), |step| {
        find(step, listed, args.offline)
    })?;
    let guest = image::build(&steps)?;
    let accel = super::accel(&steps, &interrupt, args.accel, &image, &guest)?;
    let what = format!("{} min of faults", args.minutes);
    let results = steps.run_for(&what, |step| {
        machine(step, &interrupt, args, seed, &image, &guest, accel)
    })?;
    Ok(tell(&results, &again))
}

fn find(step: &Step, listed: &Listed, offline: bool) -> Result<(Image, String)> {
    let cached = match store::cached(listed)? {
        Some(cached) => cached,
        None if offline => bail!("kernel {} is not in the cache", listed.id),
        None => store::fetch(step, listed)?,
    };
    let version = cached.lock.version.clone();
    Ok((Image::of_cache(cached, listed.below), version))
}

fn any() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |now| {
        u64::from(now.subsec_nanos()) ^ (now.as_secs() & 0xffff)
    })
}

/// The command that does the same again.
fn replay(args: &Args, seed: u64) -> String {
    let names = names(&args.faults);
    let faults = if names.is_empty() {
        String::new()
    } else {
        format!(" --faults {names}")
    };
    format!(
        "cargo xtask vm soak --kernel {} --seed {seed} --minutes {}{faults}",
        args.kernel, args.minutes
    )
}

fn names(faults: &[Fault]) -> String {
    let values = faults.iter().filter_map(ValueEnum::to_possible_value);
    let names: Vec<String> = values.map(|value| value.get_name().to_owned()).collect();
    names.join(",")
}

/// The plan of the one scenario, with what it is told.
fn plan(args: &Args, seed: u64) -> Value {
    let mut plan = image::scenarios(false, image::Extent::All, "");
    let seconds = args.minutes * 60;
    plan["names"] = json!(["datapath::soak::"]);
    plan["seconds"] = json!(seconds + BESIDES);
    for (name, value) in [
        ("FOREBAY_SOAK_SEED", seed.to_string()),
        ("FOREBAY_SOAK_SECONDS", seconds.to_string()),
        ("FOREBAY_SOAK_FAULTS", names(&args.faults)),
    ] {
        plan["environment"][name] = json!(value);
    }
    plan
}

fn machine(
    step: &Step,
    interrupt: &Interrupt,
    args: &Args,
    seed: u64,
    image: &Image,
    guest: &Guest,
    accel: Accel,
) -> Result<(Results, String)> {
    let folder = Folder::new(paths::target().join("vm/soak"), args.keep)?;
    let made = image.make(folder.path(), &plan(args, seed), guest)?;
    let machine = Machine {
        kernel: &made.kernel,
        initramfs: &made.initramfs,
        folder: folder.path(),
        accel,
        words: "",
        counts: false,
        bound: Duration::from_secs(args.minutes * 60 + 2 * BESIDES),
    };
    let console = folder.path().join("console.log");
    let ended = AtomicBool::new(false);
    let ran = thread::scope(|scope| {
        scope.spawn(|| show(step, &console, &ended));
        let ran = machine.run(interrupt, |_| {});
        ended.store(true, Ordering::Relaxed);
        ran
    });
    interrupt.check()?;
    let said = |name: &str| {
        let bytes = fs::read(folder.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let mut results = Results::read(&said("results.jsonl"), &said("console.log"));
    results
        .faults
        .extend(ran.err().map(|error| format!("{error:#}")));
    let kept = paths::target().join("vm/soak.log");
    drop(fs::write(&kept, said("console.log")));
    let summary = format!("Linux {}", results.release);
    Ok((results, summary))
}

/// Shows what the machine's console told last, until its end.
fn show(step: &Step, console: &Path, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        let text = fs::read(console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        if let Some((_, last)) = text.rsplit_once(MARK) {
            step.say(last.lines().next().unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// Prints what came of it; whether all held.
fn tell(results: &Results, again: &str) -> bool {
    for line in results.tests.iter().flat_map(|test| &test.said) {
        println!("  {line}");
    }
    for fault in &results.faults {
        println!("  {fault}");
    }
    let good = results.faults.is_empty() && results.count(Verdict::Passed) == 1;
    if good {
        println!("all held; the same faults again: {again}");
    } else {
        println!(
            "FAILED; its console is in {}; the same faults again: {again}",
            paths::target().join("vm/soak.log").display()
        );
    }
    good
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_done_again_by_the_command_that_it_prints() {
        let mut args = Args {
            kernel: "6.1".to_owned(),
            seed: None,
            minutes: 3,
            faults: Vec::new(),
            accel: Accel::Auto,
            keep: false,
            offline: false,
        };
        assert_eq!(
            replay(&args, 7),
            "cargo xtask vm soak --kernel 6.1 --seed 7 --minutes 3"
        );
        args.faults = vec![Fault::Flap, Fault::Memory];
        assert!(replay(&args, 7).ends_with("--minutes 3 --faults flap,memory"));
        let plan = plan(&args, 7);
        assert_eq!(plan["environment"]["FOREBAY_SOAK_SEED"], "7");
        assert_eq!(plan["environment"]["FOREBAY_SOAK_FAULTS"], "flap,memory");
        assert_eq!(plan["seconds"], 600);
    }
}
