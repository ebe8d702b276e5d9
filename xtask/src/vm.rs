//! `cargo xtask vm`: the tests of the kernel programs on other kernels, each in a virtual machine.
//!
//! Kernels are Debian's, fetched by this machine's apt and kept in the cache, or files of the user's own. A machine holds
//! one process, the same test program that runs here, and the programs that the tests call. One machine runs at a time, or
//! the three of the quick start.

mod apt;
pub(crate) mod bench;
mod chart;
pub(crate) mod compare;
mod counts;
pub(crate) mod emulator;
mod history;
mod image;
mod initramfs;
mod kernels;
mod lockdown;
mod modules;
mod probe;
mod qemu;
mod quickstart;
mod record;
mod results;
mod soak;
mod store;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::Value;

use self::{
    emulator::Emulator,
    image::{Extent, Guest, Image},
    kernels::{Listed, Wanted},
    lockdown::Lockdown,
    qemu::{Accel, Clock, Folder, Machine},
    results::{Record, Results, Verdict},
    store::Cached,
};
use crate::{
    cluster::wait::Interrupt,
    paths,
    progress::{Step, Steps},
    setup,
};

/// What machines need of this one.
const PACKAGES: [&str; 6] = [
    "qemu-system-x86",
    "xz-utils",
    "iproute2",
    "ethtool",
    "nftables",
    "xdp-tools",
];

/// Longest time of one machine.
const BOUND: Duration = Duration::from_secs(3600);

/// `cargo xtask vm`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    emulator: Emulator,
}

#[derive(Subcommand)]
enum Command {
    /// Install QEMU and fetch the newest versions of the kernels.
    Setup {
        /// Only these kernels (ids); default: all.
        #[arg(long)]
        kernel: Vec<String>,
        /// Leave kernels that are in the cache as they are.
        #[arg(long)]
        cached: bool,
    },
    /// Run the tests on each kernel.
    Test(TestArgs),
    /// Count the instructions that packets of each kind take, and compare with docs/benchmarks/instructions.json.
    Bench(bench::Args),
    /// Faults at random under connections in one machine, for minutes, and a checker of what clients saw.
    Soak(soak::Args),
    /// The quick start between three machines: a client and two nodes, on one link and with a router between them.
    Quickstart(quickstart::Args),
}

/// Where a command with one kernel runs it.
#[derive(clap::Args)]
struct On {
    /// On this kernel, an id of tests/vm/kernels.yaml.
    #[arg(long, default_value = bench::KERNEL)]
    kernel: String,
    /// How instructions are carried out.
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    accel: Accel,
    /// Keep what machines were made of and what they said, in target/vm.
    #[arg(long)]
    keep: bool,
    /// Fetch nothing.
    #[arg(long)]
    offline: bool,
}

impl On {
    /// The kernel of the list.
    fn listed(&self) -> Result<Listed> {
        let mut chosen = kernels::chosen(std::slice::from_ref(&self.kernel), &kernels::list()?)?;
        match chosen.pop() {
            Some(Wanted::Listed(listed)) if !listed.below => Ok(listed),
            _ => bail!(
                "--kernel {}: only kernels of the list that Forebay serves",
                self.kernel
            ),
        }
    }

    /// Its files, fetched where they are not in the cache and may be.
    fn find(&self, step: &Step, listed: &Listed) -> Result<(Image, String)> {
        let cached = match store::cached(listed)? {
            Some(cached) => cached,
            None if self.offline => bail!("kernel {} is not in the cache", listed.id),
            None => store::fetch(step, listed)?,
        };
        let version = cached.lock.version.clone();
        Ok((Image::of_cache(cached, listed.below), version))
    }
}

#[derive(clap::Args)]
pub(crate) struct TestArgs {
    /// Only this kernel: an id of tests/vm/kernels.yaml or the path of a bzImage; repeatable; default: all of the list.
    #[arg(long, value_name = "ID|PATH")]
    kernel: Vec<String>,
    /// The modules of kernels given by path (lib/modules/RELEASE).
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// How instructions are carried out.
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    accel: Accel,
    /// Only tests whose names hold this.
    #[arg(long, default_value = "")]
    filter: String,
    /// All tests that depend on the kernel, not only those that show most about it.
    #[arg(long)]
    all: bool,
    /// Only the loading of every program and the packet table.
    #[arg(long, conflicts_with = "all")]
    quick: bool,
    /// Lock the kernel down from its start, and run the tests of that alone.
    #[arg(long, value_enum, conflicts_with_all = ["all", "quick", "record"])]
    lockdown: Option<Lockdown>,
    /// Keep what each machine was made of and what it said, in target/vm.
    #[arg(long)]
    keep: bool,
    /// Write the table in docs/kernels.md.
    #[arg(long, conflicts_with_all = ["all", "quick", "filter"])]
    record: bool,
    /// Fetch nothing: a kernel that is not in the cache is skipped.
    #[arg(long)]
    offline: bool,
}

impl TestArgs {
    fn extent(&self) -> Extent {
        match (self.quick, self.all) {
            (true, _) => Extent::Quick,
            (false, true) => Extent::All,
            (false, false) => Extent::Usual,
        }
    }

    /// What a machine of this kernel is to run.
    fn plan(&self, image: &Image) -> Value {
        let mut plan = image::scenarios(image.below, self.extent(), &self.filter);
        if let Some(level) = self.lockdown {
            level.choose(&mut plan);
        }
        plan
    }

    /// Whether tests are a part of it that call newer xdp-tools.
    fn has_tools(&self) -> bool {
        !self.quick && self.lockdown.is_none()
    }

    /// Whether the quick start between three machines is a part of it.
    fn has_quickstart(&self) -> bool {
        !self.quick && self.lockdown.is_none() && quickstart::has(&self.filter)
    }
}

/// Runs one of them.
pub(crate) fn run(args: &Args) -> ExitCode {
    let run = || match &args.command {
        Command::Setup { kernel, cached } => set_up(kernel, *cached).map(|()| true),
        Command::Test(args) => test(args),
        Command::Bench(args) => bench::run(args),
        Command::Soak(args) => soak::run(args),
        Command::Quickstart(args) => quickstart::run(args),
    };
    match args.emulator.choose().and_then(|()| run()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn set_up(asked: &[String], cached: bool) -> Result<()> {
    let steps = Steps::new();
    let wanted = kernels::chosen(asked, &kernels::list()?)?;
    let _lock = lock()?;
    steps.run("packages", |step| {
        let said = setup::packages(step, &PACKAGES)?;
        apt::refresh(step)?;
        Ok(said)
    })?;
    emulator::fetch_newer(&steps, cached)?;
    for kernel in &wanted {
        let Wanted::Listed(listed) = kernel else {
            bail!(
                "--kernel {}: only kernels of the list are fetched",
                kernel.name()
            );
        };
        steps.run(&format!("kernel {}", listed.id), |step| {
            let found = match store::cached(listed)? {
                Some(found) if cached => found,
                _ => store::fetch(step, listed)?,
            };
            Ok(found.lock.version)
        })?;
    }
    steps.run("newer xdp-tools", |step| {
        let found = store::tools(step, false)?;
        Ok(found.map_or_else(String::new, |found| found.lock.version))
    })
}

fn lock() -> Result<std::fs::File> {
    setup::lock_on("vm.lock", "run of virtual machines")
}

/// Counts over all kernels.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Whether images of the user's own come with their modules.
fn have_modules(wanted: &[Wanted], args: &TestArgs) -> Result<()> {
    for kernel in wanted {
        if let Wanted::Image(path) = kernel
            && args.modules.is_none()
        {
            bail!(
                "--kernel {} needs --modules DIR, the lib/modules/RELEASE of that kernel",
                path.display()
            );
        }
    }
    Ok(())
}

fn test(args: &TestArgs) -> Result<bool> {
    let steps = Steps::new();
    let wanted = kernels::chosen(&args.kernel, &kernels::list()?)?;
    have_modules(&wanted, args)?;
    let _lock = lock()?;
    let interrupt = Interrupt::listen()?;
    emulator::ready(&steps)?;
    let head = args.record.then(record::head).transpose()?;
    let mut tally = Tally::default();
    let (mut images, mut ran_on) = (Vec::new(), Vec::new());
    for kernel in &wanted {
        let found = steps.run_for(&format!("kernel {}", kernel.name()), |step| {
            find(step, kernel, args)
        });
        match found {
            Ok(Some(image)) => images.push((kernel, image)),
            Ok(None) => tally.skipped += 1,
            Err(error) => {
                tally.failed += 1;
                println!("error: {error:#}");
            }
        }
        interrupt.check()?;
    }
    if !images.is_empty() {
        let guest = built(&steps, args)?;
        let accel = probe::accel(&steps, &interrupt, args.accel, &images[0].1, &guest)?;
        for (kernel, image) in &images {
            if !guest.has_test_of(&args.plan(image))? {
                continue;
            }
            let name = kernel.name();
            let ran = steps.run_for(&format!("tests on {name}"), |step| {
                one(step, &interrupt, args, (kernel, image), &guest, accel)
            });
            interrupt.check()?;
            ran_on.extend(tally.add(&name, ran).map(|results| (name, results)));
        }
        if args.has_quickstart() {
            let kernels = images.iter().map(|(kernel, image)| (kernel.name(), image));
            let how = (accel, args.keep);
            let counts = quickstart::on_each(&steps, &interrupt, kernels, &guest, how)?;
            tally.passed += counts.passed;
            tally.failed += counts.failed;
        }
    }
    if !images.is_empty() && tally.total() == 0 {
        bail!("no test has --filter {} in its name", args.filter);
    }
    if let Some(head) = head {
        steps.run("docs", |_| record::write(&head, &ran_on))?;
    }
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed, tally.failed, tally.skipped
    );
    Ok(tally.failed == 0)
}

/// What all machines have.
fn built(steps: &Steps, args: &TestArgs) -> Result<Guest> {
    let mut guest = image::build(steps)?;
    if args.has_tools() {
        guest.tools = steps.run_for("newer xdp-tools", |step| {
            let found = store::tools(step, args.offline)?;
            let version = found.as_ref().map(|found| found.lock.version.clone());
            Ok((found, version.unwrap_or("not in the cache".to_owned())))
        })?;
        if args.has_quickstart() || guest.has_test_of(&image::of_daemon(&args.filter))? {
            guest = guest.with_daemon_for_tests(steps)?;
        }
    }
    Ok(guest)
}

/// The kernel's files, unless it is not in the cache and nothing may be fetched.
fn find(step: &Step, kernel: &Wanted, args: &TestArgs) -> Result<(Option<Image>, String)> {
    let listed = match kernel {
        Wanted::Listed(listed) => listed,
        Wanted::Image(path) => {
            let modules = args.modules.clone().context("no --modules")?;
            let image = Image::of_user(path.clone(), modules);
            return Ok((Some(image), "given".to_owned()));
        }
    };
    let cached: Cached = match store::cached(listed)? {
        Some(cached) => cached,
        None if args.offline => {
            return Ok((None, "skipped: not in the cache".to_owned()));
        }
        None => store::fetch(step, listed)?,
    };
    let version = cached.lock.version.clone();
    Ok((Some(Image::of_cache(cached, listed.below)), version))
}

/// One kernel: its machine made, run and judged.
fn one(
    step: &Step,
    interrupt: &Interrupt,
    args: &TestArgs,
    (kernel, image): (&Wanted, &Image),
    guest: &Guest,
    accel: Accel,
) -> Result<(Results, String)> {
    let name = kernel.name().replace('/', "_");
    let folder = Folder::new(paths::target().join("vm").join(&name), args.keep)?;
    step.say("file system");
    let made = image.make(folder.path(), &args.plan(image), guest)?;
    let machine = Machine {
        kernel: &made.kernel,
        initramfs: &made.initramfs,
        folder: folder.path(),
        accel,
        words: args.lockdown.map_or("", Lockdown::words),
        clock: Clock::Time,
        bound: BOUND,
    };
    step.say("starting");
    let (ended, took) = qemu::timed(|| {
        Ok(machine.run(interrupt, |line| {
            if let Ok(Record::Test(outcome)) = results::record(line) {
                step.say(&outcome.test);
            }
        }))
    })?;
    interrupt.check()?;
    let said = |name: &str| {
        let bytes = std::fs::read(folder.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let console = said("console.log");
    let mut results = Results::read(&said("results.jsonl"), &console);
    if let Err(error) = ended {
        results.faults.push(format!("{error:#}"));
    }
    if !results.faults.is_empty() {
        let kept = paths::target().join("vm").join(format!("{name}.log"));
        std::fs::write(&kept, format!("{}{console}", said("qemu.log")))
            .with_context(|| format!("cannot write {}", kept.display()))?;
        results
            .faults
            .push(format!("its console is in {}", kept.display()));
    }
    let summary = format!(
        "Linux {}: {} passed, {} failed, {} skipped, {} s",
        results.release,
        results.count(Verdict::Passed),
        results.count(Verdict::Failed),
        results.count(Verdict::Skipped),
        took.as_secs()
    );
    Ok((results, summary))
}

impl Tally {
    fn total(&self) -> usize {
        self.passed + self.failed + self.skipped
    }

    /// Adds a kernel's results and hands them back; faults of the machine are one failure.
    fn add(&mut self, name: &str, ran: Result<Results>) -> Option<Results> {
        let results = match ran {
            Ok(results) => results,
            Err(error) => {
                self.failed += 1;
                println!("error: kernel {name}: {error:#}");
                return None;
            }
        };
        for test in &results.tests {
            let text = test.said.join("\n        ");
            match test.verdict {
                Verdict::Passed => {}
                Verdict::Skipped => println!("  skip  {name} {}: {text}", test.test),
                Verdict::Failed => println!("  FAIL  {name} {}\n        {text}", test.test),
            }
        }
        for fault in &results.faults {
            println!("  FAIL  {name}: {fault}");
        }
        self.passed += results.count(Verdict::Passed);
        self.failed += results.count(Verdict::Failed) + usize::from(!results.faults.is_empty());
        self.skipped += results.count(Verdict::Skipped);
        Some(results)
    }
}
