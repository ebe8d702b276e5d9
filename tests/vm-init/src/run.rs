//! One test: a process, its output, and how it ended.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::plan::Plan;
use crate::report::{Outcome, Verdict};

/// Where a test's output goes meanwhile.
const OUTPUT: &str = "/tmp/output";
/// Lines of a failed test that the host is told.
const TAIL: usize = 60;
/// How a line of a test begins that says why this machine cannot show it.
const SKIPPED: &str = "skipped: ";
/// How a line of a test begins that says what it found out about the machine.
const FACT: &str = "fact: ";

/// Runs one test to its end, or to the end of what it is given.
pub(crate) fn one(plan: &Plan, test: &str) -> Result<Outcome> {
    println!("vm-init: {test}");
    let output = File::create(OUTPUT).context("cannot create a file for the output")?;
    let mut command = plan.command(test);
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("cannot share the output")?)
        .stderr(output)
        .process_group(0);
    let started = Instant::now();
    let mut child = command.spawn().context("cannot start a test")?;
    let in_time = wait(&child, plan.patience())?;
    end_group(&child);
    let status = child.wait().context("cannot wait for a test")?;
    let text = fs::read(OUTPUT).context("cannot read the output")?;
    let text = String::from_utf8_lossy(&text);
    let ended = if in_time {
        how_it_ended(status)
    } else {
        Some(format!("not done after {} s", plan.patience().as_secs()))
    };
    let (verdict, said) = judge(&text, ended);
    Ok(Outcome {
        test: test.to_owned(),
        verdict,
        milliseconds: started.elapsed().as_millis(),
        said,
    })
}

/// Whether it ends in time.
fn wait(child: &Child, patience: Duration) -> Result<bool> {
    let pid = pid_of(child)?;
    let watched = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch a test")?;
    let mut events = [PollFd::new(&watched, PollFlags::IN)];
    let patience = Timespec::try_from(patience).context("too much patience")?;
    let ended = poll(&mut events, Some(&patience)).context("cannot wait for a test")?;
    Ok(ended > 0)
}

/// What a test has started goes with it.
fn end_group(child: &Child) {
    if let Ok(pid) = pid_of(child) {
        // Nobody may be left in it.
        let _gone = kill_process_group(pid, Signal::KILL);
    }
}

fn pid_of(child: &Child) -> Result<Pid> {
    let number = i32::try_from(child.id()).ok();
    number
        .and_then(Pid::from_raw)
        .context("a process without a number")
}

fn how_it_ended(status: ExitStatus) -> Option<String> {
    if status.success() {
        return None;
    }
    Some(match status.signal() {
        Some(signal) => format!("ended by signal {signal}"),
        None => format!("{status}"),
    })
}

fn judge(text: &str, failed: Option<String>) -> (Verdict, Vec<String>) {
    let told = |begin: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.strip_prefix(begin))
            .map(str::to_owned)
            .collect()
    };
    if let Some(why) = failed {
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        let said = tail.iter().map(|line| (*line).to_owned());
        return (Verdict::Failed, said.chain([why]).collect());
    }
    let skipped = told(SKIPPED);
    if skipped.is_empty() {
        (Verdict::Passed, told(FACT))
    } else {
        (Verdict::Skipped, skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_test_says_decides_only_where_it_did_not_fail() {
        let text = "running 1 test\nfact: a = 1\nskipped: no tcx\nend";
        assert_eq!(
            judge(text, None),
            (Verdict::Skipped, vec!["no tcx".to_owned()])
        );
        assert_eq!(
            judge("fact: a = 1\nfact: b = 2", None),
            (
                Verdict::Passed,
                vec!["a = 1".to_owned(), "b = 2".to_owned()]
            )
        );
        let (verdict, said) = judge(text, Some("ended by signal 9".to_owned()));
        assert_eq!(verdict, Verdict::Failed);
        assert_eq!(said.last().map(String::as_str), Some("ended by signal 9"));
        assert_eq!(said.len(), 5);
    }
}
