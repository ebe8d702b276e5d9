//! `cargo xtask soak`: faults at random on whole nodes in network namespaces of this machine, for minutes; and what is common
//! to this and `cargo xtask vm soak`.
//!
//! The scenario `soak` does it and judges it; this builds, shows how it goes, and says how it is done again.

/// The list of the scenarios themselves: not their crate, which is built for machines too.
#[path = "../../tests/src/soak/fault.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "it is a public module of the scenarios' crate"
)]
mod fault;

use std::{
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use clap::ValueEnum;

pub(crate) use self::fault::Fault;
use crate::{build_ebpf, cmd, paths, progress::Steps, test};

/// Which faults, and for how long.
#[derive(clap::Args)]
pub(crate) struct Choice {
    /// Draw the faults from this number; the same one gives the same faults in the same order. Default: another each time.
    #[arg(long)]
    seed: Option<u64>,
    /// For so long.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    minutes: u64,
    /// Only these faults; default: all that there are here but `wreck`.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
}

impl Choice {
    /// The same with a seed; refuses faults that are not among `all`.
    pub(crate) fn settled(&self, all: &[Fault]) -> Result<Self> {
        let known = |fault: &&Fault| **fault == Fault::Wreck || all.contains(fault);
        if let Some(other) = self.faults.iter().find(|fault| !known(fault)) {
            bail!(
                "--faults {}: this soak has {}",
                names(&[*other]),
                names(all)
            );
        }
        Ok(Self {
            seed: Some(self.seed.unwrap_or_else(any)),
            minutes: self.minutes,
            faults: self.faults.clone(),
        })
    }

    /// For how long faults come.
    pub(crate) const fn minutes(&self) -> u64 {
        self.minutes
    }

    /// The words of a command that does the same again.
    pub(crate) fn words(&self) -> String {
        let faults = if self.faults.is_empty() {
            String::new()
        } else {
            format!(" --faults {}", names(&self.faults))
        };
        let seed = self.seed.unwrap_or(1);
        format!("--seed {seed} --minutes {}{faults}", self.minutes)
    }

    /// What the scenario is told.
    pub(crate) fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("FOREBAY_SOAK_SEED", self.seed.unwrap_or(1).to_string()),
            ("FOREBAY_SOAK_SECONDS", (self.minutes * 60).to_string()),
            ("FOREBAY_SOAK_FAULTS", names(&self.faults)),
        ]
    }
}

fn any() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |now| {
        u64::from(now.subsec_nanos()) ^ (now.as_secs() & 0xffff)
    })
}

fn names(faults: &[Fault]) -> String {
    let values = faults.iter().filter_map(ValueEnum::to_possible_value);
    let names: Vec<String> = values.map(|value| value.get_name().to_owned()).collect();
    names.join(",")
}

/// Runs it; an error if something did not hold.
pub(crate) fn run(choice: &Choice) -> Result<()> {
    test::can_make_namespaces()?;
    let choice = choice.settled(&Fault::WHOLE)?;
    let again = format!("the same faults again: cargo xtask soak {}", choice.words());
    build_ebpf::build(&Steps::new())?;
    test::build_daemon()?;
    println!("{again}");
    let mut cargo: Command = cmd::cargo(&paths::root());
    cargo
        .envs(choice.environment())
        .env("RUST_BACKTRACE", "0")
        .env("FOREBAY_BIN", paths::target().join("debug/forebay"))
        .env("FOREBAY_EBPF_OBJECT", paths::object())
        .args(["test", "-q", "-p", "gateway-tests", "--test", "scenarios"])
        .args(["soak::whatever_comes_whole", "--"])
        .args(["--ignored", "--nocapture"]);
    let mut passed = false;
    let ran = test::stream(&mut cargo, |line| {
        passed |= line.starts_with("test result: ok. 1 passed");
        println!("{line}");
    });
    if ran.is_err() || !passed {
        bail!("what must hold did not; {again}");
    }
    println!("all held; {again}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_done_again_by_the_words_that_it_prints() {
        let mut choice = Choice {
            seed: Some(7),
            minutes: 3,
            faults: Vec::new(),
        };
        assert_eq!(choice.words(), "--seed 7 --minutes 3");
        choice.faults = vec![Fault::Flap, Fault::Kill];
        assert_eq!(choice.words(), "--seed 7 --minutes 3 --faults flap,kill");
        let told = choice.environment().map(|(_, value)| value);
        assert_eq!(told, ["7", "180", "flap,kill"]);
        assert!(choice.settled(&Fault::WHOLE).is_ok());
        let refused = choice.settled(&Fault::ALL).err().map(|e| e.to_string());
        assert_eq!(
            refused.as_deref(),
            Some(
                "--faults kill: this soak has flap,reload,queues,restart,away,memory,churn,drain,flood,clock"
            )
        );
        choice.faults = vec![Fault::Wreck];
        assert!(choice.settled(&Fault::ALL).is_ok());
    }
}
