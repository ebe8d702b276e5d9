//! Whether a run may be believed: every proxy answered, logged and forwarded exactly the same number of requests with the
//! same log fields. Anything else makes the run void.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// What one access log holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Log {
    pub(super) lines: u64,
    /// Lines whose `response_code` is 200.
    pub(super) good: u64,
    /// Names of the fields of the last line.
    pub(super) fields: BTreeSet<String>,
}

/// One proxy's totals at the end of a run.
#[derive(Clone, Debug)]
pub(super) struct Totals {
    pub(super) name: &'static str,
    pub(super) cores: String,
    /// Answers to measured requests; equal for all.
    pub(super) measured: u64,
    /// All answers, also those before the measurement, and those of them with 200.
    pub(super) requests: u64,
    pub(super) good: u64,
    pub(super) log: Log,
}

/// Counts the lines of an access log.
pub(super) fn read_log(path: &Path) -> Result<Log> {
    let mut reader = BufReader::with_capacity(
        1 << 20,
        File::open(path).with_context(|| format!("no access log {}", path.display()))?,
    );
    let (mut log, mut line, mut last) = (Log::default(), String::new(), String::new());
    while reader.read_line(&mut line)? > 0 {
        if line.ends_with('\n') {
            log.lines += 1;
            log.good += u64::from(
                line.contains("\"response_code\":200")
                    || line.contains("\"response_code\":\"200\""),
            );
            std::mem::swap(&mut last, &mut line);
        }
        line.clear();
    }
    if !last.is_empty() {
        let record: Value = serde_json::from_str(&last)
            .with_context(|| format!("{} is not JSON: {last}", path.display()))?;
        log.fields = record
            .as_object()
            .map(|o| o.keys().cloned().collect())
            .unwrap_or_default();
    }
    Ok(log)
}

/// Reasons why the run is void; empty if it counts.
pub(super) fn problems(all: &[Totals], expected: u64, served: u64, core: usize) -> Vec<String> {
    let mut problems = Vec::new();
    let mut say = |name: &str, what: String| problems.push(format!("{name}: {what}"));
    for t in all {
        if t.measured != expected {
            say(
                t.name,
                format!("{} measured requests instead of {expected}", t.measured),
            );
        }
        if t.good != t.requests {
            say(
                t.name,
                format!(
                    "{} of {} answers were not 200",
                    t.requests - t.good,
                    t.requests
                ),
            );
        }
        if t.log.lines != t.requests || t.log.good != t.good {
            say(
                t.name,
                format!(
                    "{} log lines ({} with 200) for {} requests",
                    t.log.lines, t.log.good, t.requests
                ),
            );
        }
        if t.cores != core.to_string() {
            say(
                t.name,
                format!("runs on core {} instead of {core}", t.cores),
            );
        }
        if let Some(first) = all.first().filter(|first| first.log.fields != t.log.fields) {
            let odd: Vec<_> = first
                .log
                .fields
                .symmetric_difference(&t.log.fields)
                .cloned()
                .collect();
            say(
                t.name,
                format!(
                    "its log fields differ from those of {}: {}",
                    first.name,
                    odd.join(", ")
                ),
            );
        }
    }
    let good: u64 = all.iter().map(|t| t.good).sum();
    if good != served {
        say(
            "backend",
            format!("served {served} requests, the proxies answered {good} with 200"),
        );
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn totals(name: &'static str) -> Totals {
        let log = Log {
            lines: 11,
            good: 11,
            fields: ["a".to_owned(), "b".to_owned()].into(),
        };
        Totals {
            name,
            cores: "1".to_owned(),
            measured: 10,
            requests: 11,
            good: 11,
            log,
        }
    }

    #[test]
    fn a_run_with_equal_counts_is_valid() {
        assert_eq!(
            problems(&[totals("x"), totals("y")], 10, 22, 1),
            Vec::<String>::new()
        );
    }

    #[test]
    fn every_inequality_voids_the_run() {
        let case = |change: fn(&mut Totals), served| {
            let mut second = totals("y");
            change(&mut second);
            problems(&[totals("x"), second], 10, served, 1)
        };
        assert_eq!(
            case(|t| t.measured = 9, 22),
            ["y: 9 measured requests instead of 10"]
        );
        assert_eq!(
            case(|t| (t.good, t.log.good) = (10, 10), 21),
            ["y: 1 of 11 answers were not 200"]
        );
        assert_eq!(
            case(|t| t.log.lines = 10, 22),
            ["y: 10 log lines (11 with 200) for 11 requests"]
        );
        assert_eq!(
            case(|t| t.cores = "0 and 1".to_owned(), 22),
            ["y: runs on core 0 and 1 instead of 1"]
        );
        assert_eq!(
            case(|t| t.log.fields = ["a".to_owned()].into(), 22),
            ["y: its log fields differ from those of x: b"]
        );
        assert_eq!(
            case(|_| (), 21),
            ["backend: served 21 requests, the proxies answered 22 with 200"]
        );
    }

    #[test]
    fn a_log_is_counted_by_whole_lines() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "{{\"response_code\":200,\"a\":1}}\n{{\"response_code\":\"503\",\"b\":1}}\n{{\"response_code\":200").unwrap();
        let log = read_log(file.path()).unwrap();
        assert_eq!((log.lines, log.good), (2, 1));
        assert_eq!(
            log.fields,
            ["b".to_owned(), "response_code".to_owned()].into()
        );
    }
}
