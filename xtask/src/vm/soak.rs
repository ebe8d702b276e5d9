//! `cargo xtask vm soak`: a machine in which faults come at random while clients are served, for minutes.
//!
//! The scenario `datapath::soak` does it and judges it; this makes its machine, shows how it goes, and says how it is done
//! again.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    On, emulator,
    image::{self, Guest, Image},
    qemu::{Accel, Clock, Folder, Machine},
    results::{Results, Verdict},
};
use crate::{
    cluster::wait::Interrupt,
    paths,
    progress::{Step, Steps},
    soak::{Choice, Fault},
};

/// What the machine may take besides for its start, its programs and its end.
const BESIDES: u64 = 420;
/// How the machine's console tells how it goes.
const MARK: &str = "soak: ";

/// What to do.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    on: On,
    /// Three whole nodes, the program as it is shipped, in place of two nodes' parts in the kernel.
    #[arg(long)]
    whole: bool,
    #[command(flatten)]
    choice: Choice,
}

impl Args {
    fn faults(&self) -> Vec<Fault> {
        if self.whole {
            [&Fault::WHOLE[..], &Fault::IN_MACHINE].concat()
        } else {
            Fault::ALL.to_vec()
        }
    }

    /// The command that does the same again.
    fn again(&self, choice: &Choice) -> String {
        let whole = if self.whole { " --whole" } else { "" };
        let kernel = &self.on.kernel;
        let words = choice.words();
        format!("the same faults again: cargo xtask vm soak{whole} --kernel {kernel} {words}")
    }
}

/// Runs it; whether all held.
pub(super) fn run(args: &Args) -> Result<bool> {
    let steps = Steps::new();
    let listed = args.on.listed()?;
    let choice = args.choice.settled(&args.faults())?;
    let again = args.again(&choice);
    println!("{again}");
    let _lock = super::lock()?;
    let interrupt = Interrupt::listen()?;
    emulator::ready(&steps)?;
    let image = steps.run_for(&format!("kernel {}", listed.id), |step| {
        args.on.find(step, &listed)
    })?;
    let mut guest = image::build(&steps)?;
    if args.whole {
        guest = guest.with_daemon(&steps)?;
    }
    let accel = super::probe::accel(&steps, &interrupt, args.on.accel, &image, &guest)?;
    let what = format!("{} min of faults", choice.minutes());
    let results = steps.run_for(&what, |step| {
        machine(step, &interrupt, (args, &choice), &image, &guest, accel)
    })?;
    Ok(tell(&results, &again))
}

/// The plan of the one scenario, with what it is told.
fn plan(args: &Args, choice: &Choice) -> Value {
    let mut plan = image::scenarios(false, image::Extent::All, "");
    let seconds = choice.minutes() * 60;
    let name = if args.whole {
        "soak::"
    } else {
        "datapath::soak::"
    };
    plan["names"] = json!([name]);
    plan["seconds"] = json!(seconds + BESIDES);
    // What is freed is no leak: glibc would keep it for each of many threads.
    let allocator = [
        ("MALLOC_ARENA_MAX", "1"),
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
    ];
    let allocator = allocator.map(|(name, value)| (name, value.to_owned()));
    for (name, value) in choice.environment().into_iter().chain(allocator) {
        plan["environment"][name] = json!(value);
    }
    plan
}

fn machine(
    step: &Step,
    interrupt: &Interrupt,
    (args, choice): (&Args, &Choice),
    image: &Image,
    guest: &Guest,
    accel: Accel,
) -> Result<(Results, String)> {
    let folder = Folder::new(paths::target().join("vm/soak"), args.on.keep)?;
    let made = image.make(folder.path(), &plan(args, choice), guest)?;
    let machine = Machine {
        kernel: &made.kernel,
        initramfs: &made.initramfs,
        folder: folder.path(),
        accel,
        words: "",
        clock: Clock::Time,
        bound: Duration::from_secs(choice.minutes() * 60 + 2 * BESIDES),
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
        println!("all held; {again}");
    } else {
        println!(
            "FAILED; its console is in {}; {again}",
            paths::target().join("vm/soak.log").display()
        );
    }
    good
}
