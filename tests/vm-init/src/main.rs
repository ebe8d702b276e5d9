//! First process of a virtual machine of `cargo xtask vm`: mounts, loads modules, runs the tests of the plan one after
//! the other, each in a process of its own, tells the host what became of them, and switches the machine off.
//!
//! The host hears one JSON object a line on a virtio port. It takes nothing for done that does not end with the last record:
//! a panic of this process is one of the kernel, and QEMU's exit code says the same as after a good run.

mod modules;
mod plan;
mod report;
mod run;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

use self::plan::Plan;
use self::report::Report;

/// What is mounted where, with its kind. What a kernel lacks is missed by the tests that need it.
const MOUNTS: [(&str, &str); 9] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("bpf", "/sys/fs/bpf"),
    ("tracefs", "/sys/kernel/tracing"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("securityfs", "/sys/kernel/security"),
];

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!(
            "this is the first process of a virtual machine: `cargo xtask vm test` starts it"
        );
        return ExitCode::from(2);
    }
    // The firmware leaves its last line open.
    println!();
    if let Err(error) = work() {
        // The missing last record tells the host; this tells its user.
        println!("vm-init: {error:#}");
    }
    rustix::fs::sync();
    let refused = reboot(RebootCommand::PowerOff);
    println!("vm-init: the machine does not switch off: {refused:?}");
    ExitCode::FAILURE
}

fn work() -> Result<()> {
    mounts()?;
    let plan = Plan::read()?;
    let modules = modules::load();
    let mut report = Report::open()?;
    report.fault_unless(modules)?;
    loopback_up();
    for test in plan.tests()? {
        let outcome = run::one(&plan, &test)?;
        report.tell(&outcome)?;
    }
    report.end()
}

fn mounts() -> Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| format!("cannot create {place}"))?;
        let mounted = mount(kind, place, kind, MountFlags::empty(), None);
        if !matches!(kind, "tracefs" | "cgroup2" | "securityfs") {
            mounted.with_context(|| format!("cannot mount {kind} at {place}"))?;
        }
    }
    Ok(())
}

/// As every machine has it. A kernel where this fails fails the tests that use it.
fn loopback_up() {
    let mut ip = std::process::Command::new("ip");
    drop(ip.args(["link", "set", "lo", "up"]).status());
}
