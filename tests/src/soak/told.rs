//! What a run is told by its command, and what it tells.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use super::course::Course;
use super::history::{Verdict, Window};
use super::nemesis::{Act, Fault};

/// Violations that are told.
const TOLD: usize = 20;

/// What the run is told by its command.
#[derive(Clone, Debug)]
pub struct Told {
    /// What faults are drawn from.
    pub seed: u64,
    /// For how long faults come.
    pub length: Duration,
    /// Those to draw from.
    pub faults: Vec<Fault>,
}

impl Told {
    /// Reads the environment; `all` are the faults where none are named.
    ///
    /// # Panics
    /// If a number is none, or a fault is not known.
    #[must_use]
    pub fn read(all: &[Fault]) -> Self {
        let said = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let number = |name: &str| {
            said(name).map(|value| {
                let parsed = value.parse();
                parsed.unwrap_or_else(|_| panic!("{name}={value} is no number"))
            })
        };
        let faults = said("FOREBAY_SOAK_FAULTS").map_or_else(
            || all.to_vec(),
            |names| {
                let named = |name| Fault::named(name).unwrap_or_else(|| panic!("no fault {name}"));
                names.split(',').map(named).collect()
            },
        );
        Self {
            seed: number("FOREBAY_SOAK_SEED").unwrap_or(1),
            length: Duration::from_secs(number("FOREBAY_SOAK_SECONDS").unwrap_or(30)),
            faults,
        }
    }

    /// Tells whoever watches the machine how it goes.
    pub fn show(&self, text: &str) {
        if let Ok(mut console) = File::options().write(true).open("/dev/console") {
            // Nobody may watch.
            drop(writeln!(console, "soak: {text}"));
        }
        println!("{text}");
    }

    /// Tells of a fault that begins.
    pub fn begins(&self, course: &Course, act: &Act) {
        let at = course.now().as_secs_f64();
        self.show(&format!(
            "{at:.1} s: {} for {:?}",
            act.fault.name(),
            act.hold
        ));
    }

    /// Ends the run: every violation is told.
    ///
    /// # Panics
    /// If there is one.
    pub fn judge(&self, windows: &[Window], verdict: &Verdict) {
        let count = verdict.violations.len();
        if count > 0 {
            for window in windows.iter().filter(|it| it.fault != Fault::Stall) {
                let (begin, heal) = (window.begin.as_secs_f64(), window.heal.as_secs_f64());
                println!("{} from {begin:.3} s to {heal:.3} s", window.fault.name());
            }
        }
        for violation in verdict.violations.iter().take(TOLD) {
            println!("violation: {violation}");
        }
        assert_eq!(count, 0, "what must not be, with seed {}", self.seed);
    }
}

/// Tells of what was seen, a fact each.
pub fn report(told: &Told, windows: &[Window], verdict: &Verdict) {
    let list = |map: &BTreeMap<&'static str, u64>| -> String {
        let parts = map.iter().map(|(name, count)| format!("{count} {name}"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let mut faults: BTreeMap<&'static str, u64> = BTreeMap::new();
    for window in windows {
        *faults.entry(window.fault.name()).or_default() += 1;
    }
    let seconds = told.length.as_secs();
    println!(
        "fact: seed = {}, {seconds} s of {}",
        told.seed,
        list(&faults)
    );
    println!("fact: requests = {}", list(&verdict.tally));
    println!("fact: explained by = {}", list(&verdict.explained));
    println!("fact: backends = {:?}", verdict.backends);
    println!(
        "fact: ms until all was served again, at most = {:?}",
        verdict.again
    );
}
