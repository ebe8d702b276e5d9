//! The daemons of a cluster: started in a cgroup of their own, recorded, asked for, and found again by a later command.
//!
//! A record is written by the process itself before it becomes the daemon: there is no moment in which one runs
//! unrecorded. With the number goes the time at which it began; a number that the kernel has given to somebody
//! else since is not taken for the daemon.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{cgroups, layout::Name};

/// `$0` is the record, `$1` the cgroup's list of processes, then follows the daemon's command line.
const BECOME: &str = "echo $$ > \"$1\" && shift && \
                      echo \"$$ $(cut -d' ' -f22 /proc/$$/stat)\" > \"$0.new\" && mv \"$0.new\" \"$0\" && \
                      exec \"$@\"";
/// Lines of a daemon's log that an error shows.
const TAIL: usize = 12;

/// A process, told from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) pid: u32,
    /// In ticks after the machine's start.
    began: u64,
}

/// A daemon that was started once, and its record.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) name: String,
    pub(super) record: Record,
}

impl Record {
    /// `PID BEGAN`, as the process has written it.
    fn parse(text: &str) -> Option<Self> {
        let (pid, began) = text.trim().split_once(' ')?;
        Some(Self {
            pid: pid.parse().ok()?,
            began: began.parse().ok()?,
        })
    }

    /// Whether this very process still runs.
    pub(super) fn is_alive(self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .ok()
            .and_then(|stat| began(&stat))
            == Some(self.began)
    }
}

/// When the process began, from its `/proc/PID/stat`; `None` for a dead one that nobody has asked for yet.
fn began(stat: &str) -> Option<u64> {
    // The name in brackets may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    (state != "Z" && state != "X")
        .then(|| fields.nth(18)?.parse().ok())
        .flatten()
}

/// Starts a daemon; `words` is its command line.
pub(super) fn start(cluster: &Name, name: &str, words: &[String]) -> Result<()> {
    let log = log_of(cluster, name);
    let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let both = file.try_clone().context("cannot share a daemon's log")?;
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new("setsid")
        .args(["sh", "-c", BECOME])
        .arg(record_of(cluster, name))
        .arg(cgroups::daemons(cluster))
        .args(words)
        // Debian's users have no administrators' programs there, and containerd's plugins call some.
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(both)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    Ok(())
}

/// Fails with the end of its log when the daemon has ended.
pub(super) fn require(cluster: &Name, name: &str) -> Result<()> {
    let ended = recorded(cluster, name).is_some_and(|record| !record.is_alive());
    if ended {
        bail!("{name} has ended\n{}", tail(&log_of(cluster, name)));
    }
    Ok(())
}

/// All daemons that were ever started, by name.
pub(super) fn all(cluster: &Name) -> Vec<Daemon> {
    let Ok(entries) = fs::read_dir(cluster.records()) else {
        return Vec::new();
    };
    let mut daemons: Vec<Daemon> = entries
        .flatten()
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path()).ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Record::parse(&text).map(|record| Daemon { name, record })
        })
        .collect();
    daemons.sort_by(|a, b| a.name.cmp(&b.name));
    daemons
}

pub(super) fn log_of(cluster: &Name, name: &str) -> PathBuf {
    cluster.logs().join(format!("{name}.log"))
}

/// The daemon of that name, if it runs.
pub(super) fn find(cluster: &Name, name: &str) -> Option<Record> {
    recorded(cluster, name).filter(|record| record.is_alive())
}

fn recorded(cluster: &Name, name: &str) -> Option<Record> {
    let text = fs::read_to_string(record_of(cluster, name)).ok()?;
    Record::parse(&text)
}

fn record_of(cluster: &Name, name: &str) -> PathBuf {
    cluster.records().join(name)
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/proc/PID/stat` up to the time at which the process began.
    fn stat(name: &str, state: &str) -> String {
        format!("77 ({name}) {state} 1 77 77 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 4242 9 8 7")
    }

    #[test]
    fn a_process_s_begin_is_found_behind_any_name() {
        assert_eq!(began(&stat("etcd", "S")), Some(4242));
        assert_eq!(began(&stat("a) R 1 (b", "R")), Some(4242));
        assert_eq!(began("77 (etcd"), None);
    }

    #[test]
    fn a_dead_process_that_nobody_asked_for_is_not_alive() {
        assert_eq!(began(&stat("etcd", "Z")), None);
    }

    #[test]
    fn a_number_that_was_given_away_is_not_the_daemon() {
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        let record = Record {
            pid: std::process::id(),
            began: began(&own).unwrap(),
        };
        assert!(record.is_alive());
        let earlier = Record {
            began: record.began - 1,
            ..record
        };
        assert!(!earlier.is_alive());
    }

    #[test]
    fn records_are_read_or_nothing() {
        assert_eq!(
            Record::parse("12 34\n"),
            Some(Record { pid: 12, began: 34 })
        );
        for text in ["", "12", "12 ", "a 3"] {
            assert_eq!(Record::parse(text), None, "{text}");
        }
    }
}
