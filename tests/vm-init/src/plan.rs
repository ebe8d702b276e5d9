//! What the host wants to be run.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Written by the host.
const PATH: &str = "/plan.json";

/// The plan.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// A program of tests, as `cargo test` builds it; none: nothing is run, and that is reported.
    program: Option<String>,
    /// Words of its command line, if it is no program of tests: it counts as one, called by the first of `names`.
    #[serde(default)]
    words: Vec<String>,
    /// Beginnings of the names of tests that are run.
    names: Vec<String>,
    /// Tests whose names do not hold this are left out.
    filter: String,
    /// Longest time for one test.
    seconds: u64,
    /// Environment of the tests.
    environment: BTreeMap<String, String>,
}

impl Plan {
    /// Reads it.
    pub(crate) fn read() -> Result<Self> {
        let text = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
        serde_json::from_str(&text).with_context(|| format!("{PATH} is no plan"))
    }

    /// Names of all tests to run, in the program's order.
    pub(crate) fn tests(&self) -> Result<Vec<String>> {
        let Some(program) = &self.program else {
            return Ok(Vec::new());
        };
        if !self.words.is_empty() {
            return Ok(self.names.iter().take(1).cloned().collect());
        }
        let listed = Command::new(program)
            .args(["--list", "--format", "terse"])
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        ensure!(
            listed.status.success(),
            "{program} does not list its tests: {}",
            String::from_utf8_lossy(&listed.stderr)
        );
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        Ok(chosen(&text, &self.names, &self.filter))
    }

    /// The command of one test.
    pub(crate) fn command(&self, test: &str) -> Command {
        let mut command = Command::new(self.program.as_deref().unwrap_or_default());
        if self.words.is_empty() {
            command.args(["--exact", test, "--nocapture", "--include-ignored"]);
        }
        command
            .args(&self.words)
            .envs(&self.environment)
            .current_dir("/");
        command
    }

    /// Longest time for one test.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

fn chosen(listed: &str, names: &[String], filter: &str) -> Vec<String> {
    listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| names.iter().any(|begin| name.starts_with(begin)))
        .filter(|name| name.contains(filter))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_chosen_by_their_beginning_and_the_filter() {
        let listed = "datapath::a: test\nxdp_verdicts::b: test\nload::c: test\nx: benchmark\n";
        let names = ["datapath::".to_owned(), "xdp_".to_owned()];
        assert_eq!(
            chosen(listed, &names, ""),
            ["datapath::a", "xdp_verdicts::b"]
        );
        assert_eq!(chosen(listed, &names, "verdicts"), ["xdp_verdicts::b"]);
        assert!(chosen(listed, &[], "").is_empty());
    }
}
