//! What Forebay's processes take of their nodes.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::stage::Stage;

/// Shares of one core, one for each node.
#[derive(Debug)]
pub(super) struct Shares(Vec<f64>);

impl Shares {
    /// The highest.
    pub(super) fn worst(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }
}

impl std::fmt::Display for Shares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: Vec<String> = (self.0.iter())
            .map(|share| format!("{:.2}", share * 100.0))
            .collect();
        write!(f, "{} % of a core", all.join(" / "))
    }
}

/// Processor time that one of the processes takes on each node while `work` goes on.
pub(super) fn shares(
    stage: &Stage<'_>,
    process: &str,
    work: impl FnOnce() -> Result<()>,
) -> Result<Shares> {
    let pids = pids(stage, process)?;
    let before: Vec<_> = pids.iter().map(|pid| threads(*pid)).collect();
    let began = Instant::now();
    work()?;
    let passed = began.elapsed().as_secs_f64();
    let share = |(pid, before): (&i32, BTreeMap<i32, u64>)| {
        let ran = threads(*pid).into_iter().map(|(thread, now)| {
            let before = before.get(&thread).copied().unwrap_or_default();
            now.saturating_sub(before)
        });
        Duration::from_nanos(ran.sum()).as_secs_f64() / passed
    };
    Ok(Shares(pids.iter().zip(before).map(share).collect()))
}

/// Of `forebay run` while nobody does anything.
pub(super) fn idle(stage: &Stage<'_>, time: Duration) -> Result<Shares> {
    shares(stage, "run", || stage.pause(time))
}

/// Time on a processor of each thread, in nanoseconds: `/proc/PID/stat` counts ticks, too coarse for an idle process.
fn threads(pid: i32) -> BTreeMap<i32, u64> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return BTreeMap::new();
    };
    let of = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("schedstat")).ok()?;
        let ran = text.split(' ').next()?.parse().ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, ran))
    };
    tasks.flatten().filter_map(of).collect()
}

fn pids(stage: &Stage<'_>, process: &str) -> Result<Vec<i32>> {
    let nodes = stage.nodes();
    let pids: Vec<i32> = nodes
        .iter()
        .filter_map(|&node| stage.process(node, process))
        .collect();
    ensure!(
        pids.len() == nodes.len(),
        "`forebay {process}` runs on {} nodes",
        pids.len()
    );
    Ok(pids)
}

/// What each node's `forebay run` holds in memory, in MiB.
#[derive(Debug)]
pub(super) struct Memory(Vec<u64>);

impl Memory {
    pub(super) fn of(stage: &Stage<'_>) -> Result<Self> {
        let of = |pid: i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:"))?;
            let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
            Some(kib >> 10)
        };
        Ok(Self(
            pids(stage, "run")?.into_iter().filter_map(of).collect(),
        ))
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: Vec<String> = self.0.iter().map(u64::to_string).collect();
        write!(f, "{} MiB", all.join(" / "))
    }
}
