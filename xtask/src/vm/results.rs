//! What a machine said: records of tests, and what its kernel complained about.

use anyhow::{Result, bail};
use serde::Deserialize;

/// One line of the machine's results.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Record {
    /// A test.
    Test(Outcome),
    /// The kernel's release.
    Kernel {
        /// As `uname -r` has it.
        kernel: String,
    },
    /// Something went wrong before the tests.
    Fault {
        /// In words.
        fault: String,
    },
    /// The last one.
    End {
        /// Number of tests that were told.
        end: usize,
    },
}

/// What became of one test.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Outcome {
    /// Its name.
    pub(super) test: String,
    /// What became of it.
    pub(super) verdict: Verdict,
    /// How long it took.
    pub(super) milliseconds: u64,
    /// Why it was skipped or failed, else what it found out about the machine.
    pub(super) said: Vec<String>,
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// It held.
    Passed,
    /// It did not.
    Failed,
    /// This machine lacks what it needs.
    Skipped,
}

/// All that is known of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Results {
    /// The kernel's release.
    pub(super) release: String,
    /// Tests in their order.
    pub(super) tests: Vec<Outcome>,
    /// What is wrong with the machine itself, a sentence each.
    pub(super) faults: Vec<String>,
}

impl Results {
    /// From the machine's two ways out. Whether it ended well is told by its last record alone.
    pub(super) fn read(records: &str, console: &str) -> Self {
        let mut results = Self::default();
        let mut ended = false;
        for line in records.lines() {
            match serde_json::from_str(line) {
                Ok(Record::Test(outcome)) => results.tests.push(outcome),
                Ok(Record::Kernel { kernel }) => results.release = kernel,
                Ok(Record::Fault { fault }) => results.faults.push(fault),
                Ok(Record::End { end }) => ended = end == results.tests.len(),
                Err(_) => results
                    .faults
                    .push(format!("the machine said what is no record: {line}")),
            }
        }
        results.faults.extend(complaints(console));
        if !ended {
            results
                .faults
                .push("the machine did not come to its end".to_owned());
        }
        results
    }

    /// Tests with this verdict.
    pub(super) fn count(&self, verdict: Verdict) -> usize {
        let tests = self.tests.iter();
        tests.filter(|test| test.verdict == verdict).count()
    }

    /// What a test or another said under this name.
    pub(super) fn fact(&self, name: &str) -> Option<&str> {
        let said = self.tests.iter().flat_map(|test| &test.said);
        said.filter_map(|line| line.split_once(" = "))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }
}

/// One line of the records while the machine still runs.
pub(super) fn record(line: &str) -> Result<Record> {
    match serde_json::from_str(line) {
        Ok(record) => Ok(record),
        Err(error) => bail!("no record: {error}"),
    }
}

/// Lines by which a kernel says that something is wrong with itself.
fn complaints(console: &str) -> Vec<String> {
    const WORDS: [&str; 7] = [
        "BUG: ",
        "Oops",
        "Kernel panic",
        "general protection fault",
        "soft lockup",
        "detected stalls",
        "blocked for more than",
    ];
    let is_complaint = |line: &&str| {
        let said = line.split_once("] ").map_or(*line, |(_, said)| said);
        said.starts_with("WARNING: ") || WORDS.iter().any(|word| said.contains(word))
    };
    let lines = console.lines().filter(is_complaint);
    lines
        .map(|line| format!("the kernel says: {}", line.trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDS: &str = r#"{"kernel":"6.1.0"}
{"test":"a","verdict":"passed","milliseconds":12,"said":["instructions = 9"]}
{"test":"b","verdict":"skipped","milliseconds":1,"said":["no tcx"]}
{"test":"c","verdict":"failed","milliseconds":1,"said":["left: 1"]}
"#;

    #[test]
    fn a_run_is_what_its_records_say() {
        let results = Results::read(&format!("{RECORDS}{{\"end\":3}}\n"), "[    1.0] hello");
        assert_eq!(results.release, "6.1.0");
        assert_eq!(results.count(Verdict::Passed), 1);
        assert_eq!(results.count(Verdict::Failed), 1);
        assert_eq!(results.count(Verdict::Skipped), 1);
        assert_eq!(results.fact("instructions"), Some("9"));
        assert!(results.faults.is_empty(), "{:?}", results.faults);
    }

    #[test]
    fn without_its_last_record_a_run_did_not_end() {
        for end in ["", "{\"end\":2}\n", "{\"en"] {
            let results = Results::read(&format!("{RECORDS}{end}"), "");
            let last = results.faults.last().map(String::as_str);
            assert_eq!(last, Some("the machine did not come to its end"), "{end}");
        }
    }

    #[test]
    fn complaints_of_the_kernel_are_faults() {
        let console = "[    0.1] Spectre V2 : WARNING: Unprivileged eBPF is enabled\n\
                       [    1.2] ------------[ cut here ]------------\n\
                       [    1.2] WARNING: CPU: 0 PID: 1 at net/core/dev.c:1 x+0x1/0x2\n\
                       [    1.3] BUG: kernel NULL pointer dereference\n\
                       [    1.4] Kernel panic - not syncing: x";
        let found = complaints(console);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("the kernel says: [    1.2] WARNING: CPU: 0"));
    }
}
