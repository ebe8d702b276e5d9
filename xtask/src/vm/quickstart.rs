//! `cargo xtask vm quickstart`: the quick start between three machines, a client and two nodes that run `forebay`.
//!
//! The scenarios `wire` do it and judge it; this makes the machines, joins their cards by sockets, and judges each machine.
//! All three go when one of them fails.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::{
    On, emulator, image,
    image::{Guest, Image},
    initramfs::Archive,
    qemu::{Accel, Clock, Fitting, Folder, Machine, Running},
    results::{Results, Verdict},
};
use crate::{
    cluster::wait::{Interrupt, until},
    paths,
    progress::{Step, Steps},
};

/// The machines; the client's has the sockets that the others' cards connect to, so it is first.
const NAMES: [&str; 3] = ["client", "node1", "node2"];
/// What each runs, in the same order.
const TESTS: [&str; 3] = [CLIENT, NODE, NODE];
const CLIENT: &str = "wire::the_client_sees_five_and_five_whichever_way_nodes_forward";
const NODE: &str = "wire::a_node_serves_until_the_client_has_seen_enough";

/// Memory of a machine, in MiB: with 384 the first file system was cut off while it was unpacked.
const MEMORY: u32 = 512;
/// Longest time of all three, and of one test in them.
const BOUND: Duration = Duration::from_secs(1200);
const PATIENCE: u64 = 900;
/// What the other machines have for their own end when one has failed: what they say tells why.
const GRACE: Duration = Duration::from_secs(30);

/// How often nodes ask each other, and when they give one up: emulated, a machine may not run for seconds.
const TIMES: [(&str, &str); 3] = [
    ("FOREBAY_PROBE_INTERVAL", "500ms"),
    ("FOREBAY_SUSPECT_AFTER", "20s"),
    ("FOREBAY_DEAD_AFTER", "120s"),
];

/// How packets get from one node to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    /// All three on one link: by MAC rewrite.
    OnLink,
    /// The client is the router between the nodes: encapsulated.
    OffLink,
}

impl Way {
    const ALL: [Self; 2] = [Self::OnLink, Self::OffLink];

    fn name(self) -> &'static str {
        match self {
            Self::OnLink => "on-link",
            Self::OffLink => "off-link",
        }
    }
}

/// What to do.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    on: On,
    /// Only with nodes that reach each other so; default: both.
    #[arg(long, value_enum)]
    path: Option<Way>,
}

/// Runs it; whether all held.
pub(super) fn run(args: &Args) -> Result<bool> {
    let steps = Steps::new();
    let listed = args.on.listed()?;
    let _lock = super::lock()?;
    let interrupt = Interrupt::listen()?;
    emulator::ready(&steps)?;
    let image = steps.run_for(&format!("kernel {}", listed.id), |step| {
        args.on.find(step, &listed)
    })?;
    let guest = image::build(&steps)?.with_daemon_for_tests(&steps)?;
    let accel = super::probe::accel(&steps, &interrupt, args.on.accel, &image, &guest)?;
    let ways = args.path.map_or(Way::ALL.to_vec(), |way| vec![way]);
    let mut counts = Counts::default();
    for way in ways {
        let wire = Wire {
            kernel: &listed.id,
            image: &image,
            guest: &guest,
            accel,
            keep: args.on.keep,
        };
        counts.add(wire.run(&steps, &interrupt, way)?);
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    Ok(counts.failed == 0)
}

/// Whether a test of it has this in its name.
pub(super) fn has(filter: &str) -> bool {
    TESTS.iter().any(|test| test.contains(filter))
}

/// Machines that held and that did not.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) passed: usize,
    pub(super) failed: usize,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Both ways on each of these kernels that Forebay serves, for `vm test`. The guest has the daemon.
pub(super) fn on_each<'a>(
    steps: &Steps,
    interrupt: &Interrupt,
    kernels: impl Iterator<Item = (String, &'a Image)>,
    guest: &Guest,
    (accel, keep): (Accel, bool),
) -> Result<Counts> {
    let mut counts = Counts::default();
    for (kernel, image) in kernels.filter(|(_, image)| !image.below) {
        let wire = Wire {
            kernel: &kernel,
            image,
            guest,
            accel,
            keep,
        };
        for way in Way::ALL {
            let ran = wire.run(steps, interrupt, way);
            interrupt.check()?;
            counts.add(ran.unwrap_or_else(|error| {
                println!("error: {} on {kernel}: {error:#}", way.name());
                Counts {
                    failed: 1,
                    ..Counts::default()
                }
            }));
        }
    }
    Ok(counts)
}

/// What the three machines are made of.
struct Wire<'a> {
    /// The kernel's name.
    kernel: &'a str,
    image: &'a Image,
    guest: &'a Guest,
    accel: Accel,
    keep: bool,
}

impl Wire<'_> {
    /// Three machines, run and judged; what they said is printed.
    fn run(&self, steps: &Steps, interrupt: &Interrupt, way: Way) -> Result<Counts> {
        let what = format!("{}, Linux {}", way.name(), self.kernel);
        let results = steps.run_for(&what, |step| {
            let started = Instant::now();
            let results = self.machines(step, interrupt, way)?;
            let held = results.iter().filter(|results| is_good(results)).count();
            let took = started.elapsed().as_secs();
            let said = format!("{held} of three machines held, {took} s");
            Ok((results, said))
        })?;
        let mut counts = Counts::default();
        for (name, results) in NAMES.into_iter().zip(&results) {
            let good = is_good(results);
            println!("{name} on Linux {}: {}", results.release, word(good));
            let said = results.tests.iter().flat_map(|test| &test.said);
            said.chain(&results.faults)
                .for_each(|line| println!("    {line}"));
            counts.passed += usize::from(good);
            counts.failed += usize::from(!good);
        }
        Ok(counts)
    }

    fn machines(&self, step: &Step, interrupt: &Interrupt, way: Way) -> Result<[Results; 3]> {
        let folder = Folder::new(paths::target().join("vm/quickstart"), self.keep)?;
        step.say("file systems");
        let made = self
            .image
            .make(folder.path(), &image::nothing(), self.guest)?;
        let base = fs::read(&made.initramfs).context("cannot read a file system")?;
        let mut all = Vec::new();
        for (i, name) in NAMES.into_iter().enumerate() {
            let own = folder.path().join(name);
            fs::create_dir(&own).with_context(|| format!("cannot create {}", own.display()))?;
            let initramfs = own.join("initramfs.cpio");
            // The kernel unpacks one archive after the other: what is in the second one replaces what was.
            let whole = [&base[..], &self.more(way, i)].concat();
            fs::write(&initramfs, whole)
                .with_context(|| format!("cannot write {}", initramfs.display()))?;
            let machine = Machine {
                kernel: &made.kernel,
                initramfs: &initramfs,
                folder: &own,
                accel: self.accel,
                words: "",
                clock: Clock::Time,
                bound: BOUND,
            };
            let running = machine.start(&Fitting {
                memory: MEMORY,
                cards: cards(way, i),
                apart: &[],
            })?;
            if i == 0 {
                listens(interrupt, &own)?;
            }
            all.push(Started {
                own,
                running,
                ended: false,
            });
        }
        step.say("running");
        let ended = watch(step, interrupt, &mut all);
        interrupt.check()?;
        let mut results = [0, 1, 2].map(|i| all[i].results());
        results[0]
            .faults
            .extend(ended.err().map(|error| format!("{error:#}")));
        for ((name, started), results) in NAMES.into_iter().zip(&all).zip(&mut results) {
            if !is_good(results) {
                started.keep_log(name, results)?;
            }
        }
        Ok(results)
    }

    /// What this machine has besides what all have.
    fn more(&self, way: Way, machine: usize) -> Vec<u8> {
        let mut archive = Archive::default();
        let plan = plan(way, machine);
        archive.file("/plan.json", plan.to_string().as_bytes());
        archive.finish()
    }
}

fn plan(way: Way, machine: usize) -> Value {
    let mut plan = image::scenarios(false, image::Extent::All, "");
    plan["names"] = json!([TESTS[machine]]);
    plan["seconds"] = json!(PATIENCE);
    let own = [
        ("FOREBAY_WIRE_PATH", way.name()),
        ("FOREBAY_WIRE_NODE", NAMES[machine]),
    ];
    for (name, value) in own.into_iter().chain(TIMES) {
        plan["environment"][name] = json!(value);
    }
    plan
}

/// The cards of a machine, and what their cables end in: sockets of the client's machine.
fn cards(way: Way, machine: usize) -> Vec<String> {
    let card = |netdev: &str, mac: &str| format!("virtio-net-pci,netdev={netdev},mac={mac}");
    let socket = |node: &str, end: &str| {
        format!("stream,id={node},addr.type=unix,addr.path=../client/{node}.sock,server={end}")
    };
    let mut words = Vec::new();
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    match (machine, way) {
        (0, Way::OnLink) => {
            add("-netdev", "hubport,id=own,hubid=0".to_owned());
            for node in &NAMES[1..] {
                add("-netdev", socket(node, "on"));
                add(
                    "-netdev",
                    format!("hubport,id=to-{node},hubid=0,netdev={node}"),
                );
            }
            add("-device", card("own", "52:54:00:00:00:01"));
        }
        (0, Way::OffLink) => {
            for (i, node) in NAMES.into_iter().enumerate().skip(1) {
                add("-netdev", socket(node, "on"));
                add("-device", card(node, &format!("52:54:00:00:00:0{i}")));
            }
        }
        (i, _) => {
            add("-netdev", socket(NAMES[i], "off"));
            add("-device", card(NAMES[i], &format!("52:54:00:00:01:0{i}")));
        }
    }
    words
}

/// Waits for the sockets of the client's machine: a card whose cable ends nowhere does not start.
fn listens(interrupt: &Interrupt, folder: &Path) -> Result<()> {
    let what = "the sockets of the client's machine";
    until(interrupt, what, Duration::from_secs(30), || {
        let is_there = |node: &str| folder.join(format!("{node}.sock")).exists();
        Ok(NAMES[1..].iter().all(|node| is_there(node)).then_some(()))
    })
}

/// One of the machines.
struct Started {
    own: PathBuf,
    running: Running,
    ended: bool,
}

impl Started {
    fn said(&self, name: &str) -> String {
        let bytes = fs::read(self.own.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn results(&self) -> Results {
        Results::read(&self.said("results.jsonl"), &self.said("console.log"))
    }

    fn keep_log(&self, name: &str, results: &mut Results) -> Result<()> {
        let kept = paths::target().join(format!("vm/quickstart-{name}.log"));
        let text = format!("{}{}", self.said("qemu.log"), self.said("console.log"));
        fs::write(&kept, text).with_context(|| format!("cannot write {}", kept.display()))?;
        let sentence = format!("its console is in {}", kept.display());
        results.faults.push(sentence);
        Ok(())
    }
}

/// Until all have ended, or a while after one has failed.
fn watch(step: &Step, interrupt: &Interrupt, all: &mut [Started]) -> Result<()> {
    let mut failed: Option<Instant> = None;
    let what = "the three machines' end";
    until(interrupt, what, BOUND, || {
        for (name, machine) in NAMES.into_iter().zip(all.iter_mut()) {
            if machine.ended || !machine.running.ended(|_| {})? {
                continue;
            }
            machine.ended = true;
            step.say(&format!("{name} has ended"));
            if !is_good(&machine.results()) {
                failed = failed.or(Some(Instant::now()));
            }
        }
        let enough = failed.is_some_and(|since| since.elapsed() > GRACE);
        Ok((enough || all.iter().all(|machine| machine.ended)).then_some(()))
    })
}

/// Whether a machine's one test held, and nothing else is wrong with it.
fn is_good(results: &Results) -> bool {
    results.faults.is_empty() && results.count(Verdict::Passed) == 1 && results.tests.len() == 1
}

fn word(good: bool) -> &'static str {
    if good { "passed" } else { "FAILED" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_cable_are_one_socket() {
        for way in Way::ALL {
            let client = cards(way, 0).join(" ");
            for (i, node) in NAMES.into_iter().enumerate().skip(1) {
                let path = format!("addr.path=../client/{node}.sock");
                let own = cards(way, i).join(" ");
                assert!(client.contains(&format!("{path},server=on")), "{client}");
                assert!(own.contains(&format!("{path},server=off")), "{own}");
            }
            let count = client.matches("virtio-net-pci").count();
            assert_eq!(count, if way == Way::OnLink { 1 } else { 2 });
        }
    }

    #[test]
    fn each_machine_runs_one_test_that_there_is() {
        let scenarios = fs::read_to_string(paths::root().join("tests/scenarios/wire.rs")).unwrap();
        for (machine, own) in NAMES.into_iter().enumerate() {
            let plan = plan(Way::OffLink, machine);
            let name = plan["names"][0].as_str().unwrap().strip_prefix("wire::");
            let function = format!("fn {}()", name.unwrap());
            assert!(scenarios.contains(&function), "{function}");
            assert_eq!(plan["environment"]["FOREBAY_WIRE_NODE"], own);
            assert_eq!(plan["environment"]["FOREBAY_WIRE_PATH"], "off-link");
        }
        assert!(has("") && has("five_and_five") && !has("xdp_"));
    }
}
