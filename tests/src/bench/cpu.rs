//! Where threads run and what they cost: pinning, real-time priority, run time and memory from `/proc`.
//! Run times are the scheduler's own nanoseconds (`schedstat`), not clock ticks.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::time::TimeValLike;
use nix::time::ClockId;
use rustix::process::Pid;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

/// Pins a thread (`None`: the calling one) to one core.
pub(crate) fn pin(thread: Option<u32>, core: usize) -> Result<()> {
    let pid = thread.and_then(|t| Pid::from_raw(t as i32));
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(pid, &set).with_context(|| format!("cannot pin a thread to core {core}"))
}

/// The cores that this process may use, ascending; at least two, else nothing can be kept apart.
pub(crate) fn two_cores() -> Result<(usize, usize)> {
    let allowed = sched_getaffinity(None).context("cannot read the allowed cores")?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|&c| allowed.is_set(c))
        .collect();
    ensure!(
        cores.len() >= 2,
        "this benchmark needs two cores, one for what is measured and one for the rest"
    );
    Ok((cores[0], cores[1]))
}

/// Asks for SCHED_FIFO for a thread (`None`: the calling one); whether it was granted goes into the report.
pub(crate) fn real_time(thread: Option<u32>, priority: u8) -> bool {
    let thread = thread.map_or_else(|| gettid().as_raw_nonzero().to_string(), |t| t.to_string());
    let status = Command::new("chrt")
        .args(["--fifo", "--pid", &priority.to_string(), &thread])
        .status();
    status.is_ok_and(|s| s.success())
}

/// Nanoseconds that all threads of a process and of its children have run.
pub(crate) fn run_time(pid: u32) -> Result<u64> {
    let mut total = 0;
    for process in family(pid)? {
        for thread in numbers(&format!("/proc/{process}/task"))? {
            total += thread_run_time(&format!("/proc/{process}/task/{thread}"))?;
        }
    }
    Ok(total)
}

/// Nanoseconds that all threads of a process have run in user space. It is a timer's guess on a processor with a tick.
pub(crate) fn user_time(pid: u32) -> Result<u64> {
    // CPUCLOCK_VIRT of a process, see the kernel's include/linux/posix-timers_types.h: nobody has a name for it.
    let number = i32::try_from(pid).context("no process has such a number")?;
    let clock = ClockId::from_raw((!number << 3) | 1);
    let time = clock.now().context("how long did a process run?")?;
    u64::try_from(time.num_nanoseconds()).context("a process ran for less than nothing")
}

/// Nanoseconds that the thread with this directory in `/proc` has run.
pub(crate) fn thread_run_time(directory: &str) -> Result<u64> {
    let path = format!("{directory}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.split(' ')
        .next()
        .and_then(|ns| ns.parse().ok())
        .with_context(|| format!("{path} holds no run time"))
}

/// Resident KiB of the largest process of the family: the one that serves.
pub(crate) fn resident_kib(pid: u32) -> Result<u64> {
    let mut largest = 0;
    for process in family(pid)? {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .unwrap_or_default();
        largest = largest.max(line.trim().trim_end_matches(" kB").parse().unwrap_or(0));
    }
    Ok(largest)
}

/// The cores that the threads of a process family may use, e.g. `1`.
pub(crate) fn cores_of(pid: u32) -> Result<String> {
    let mut cores = std::collections::BTreeSet::new();
    for process in family(pid)? {
        for thread in numbers(&format!("/proc/{process}/task"))? {
            let status = fs::read_to_string(format!("/proc/{process}/task/{thread}/status"))?;
            let list = status
                .lines()
                .find_map(|l| l.strip_prefix("Cpus_allowed_list:"))
                .unwrap_or_default();
            cores.insert(list.trim().to_owned());
        }
    }
    Ok(cores.into_iter().collect::<Vec<_>>().join(" and "))
}

/// A process and all that descend from it.
fn family(pid: u32) -> Result<Vec<u32>> {
    let mut members = vec![pid];
    let mut next = 0;
    while let Some(&member) = members.get(next) {
        for thread in numbers(&format!("/proc/{member}/task"))? {
            let children = fs::read_to_string(format!("/proc/{member}/task/{thread}/children"))
                .unwrap_or_default();
            members.extend(
                children
                    .split_whitespace()
                    .filter_map(|c| c.parse::<u32>().ok()),
            );
        }
        next += 1;
    }
    Ok(members)
}

fn numbers(directory: &str) -> Result<Vec<u32>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {directory}"))?;
    Ok(entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_time_in_user_space_grows_and_that_of_nobody_is_an_error() {
        let own = std::process::id();
        let before = user_time(own).unwrap();
        while user_time(own).unwrap() == before {
            (0..100_000u64).for_each(|n| _ = std::hint::black_box(n));
        }
        assert!(user_time(u32::MAX).is_err());
    }

    #[test]
    fn own_run_time_grows_and_memory_is_there() {
        // Threads of other tests may end while they are read.
        let ran = || {
            let tries = (0..1_000).find_map(|_| run_time(std::process::id()).ok());
            tries.expect("threads stay for a moment")
        };
        let before = ran();
        while ran() == before {
            (0..100_000u64).for_each(|n| _ = std::hint::black_box(n));
        }
        assert!(resident_kib(std::process::id()).unwrap() > 500);
    }
}
