//! Nothing stays behind: not after a run, and not after a run that was killed.

use std::{
    env,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use gateway_tests::{
    eventually::eventually,
    leftovers::{Ledger, PREFIX, Process, inventory, sweep},
    netns::Netns,
};

/// Tells this test binary to play the run that is killed.
const VICTIM: &str = "FOREBAY_LEFTOVERS_VICTIM";

#[test]
fn a_killed_run_is_removed_by_the_next() {
    // What earlier runs left is their business.
    sweep().unwrap();
    let before = inventory();
    let mut victim = victim();
    let run = format!("{PREFIX}{}", victim.id());
    eventually(
        "the victim's things",
        Duration::from_secs(20),
        || -> Result<()> {
            let now = inventory();
            let made = now
                .namespaces
                .iter()
                .any(|name| *name == format!("{run}-left"));
            let pinned = now.pins.iter().any(|name| *name == format!("{run}-left"));
            ensure!(made && pinned, "{now:?}");
            Ok(())
        },
    )
    .unwrap();
    let child = child_of(&run).unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert_ne!(inventory(), before, "the killed run left nothing to remove");

    assert_eq!(sweep().unwrap(), [run]);
    assert_eq!(inventory(), before);
    assert_eq!(Process::of(child), None, "process {child} is left");
}

#[test]
fn a_run_that_ends_removes_what_it_made() {
    sweep().unwrap();
    let before = inventory();
    let ledger = Ledger::open().unwrap();
    let netns = Netns::new(&ledger, "ends").unwrap();
    assert!(inventory().namespaces.contains(netns.name()));
    drop(ledger);
    assert_eq!(inventory(), before);
}

#[test]
fn a_run_that_lives_is_left_alone() {
    let ledger = Ledger::open().unwrap();
    let netns = Netns::new(&ledger, "lives").unwrap();
    assert_eq!(sweep().unwrap(), [""; 0]);
    assert!(inventory().namespaces.contains(netns.name()));
}

/// Not a test of its own: it makes things and waits to be killed when [`VICTIM`] is set.
#[test]
fn victim_of_a_killed_run() {
    if env::var_os(VICTIM).is_none() {
        return;
    }
    let ledger = Ledger::open().unwrap();
    let netns = Netns::new(&ledger, "left").unwrap();
    let mut idle = Command::new("tail");
    idle.args(["-f", "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut child = netns.spawn(&mut idle).unwrap();
    ledger.process(child.id()).unwrap();
    let pins = format!("/sys/fs/bpf/{}-left", ledger.run());
    ledger.directory(pins.as_ref()).unwrap();
    gateway_user::datapath::pins::prepare(pins.as_ref()).unwrap();
    child.wait().unwrap();
}

fn victim() -> Child {
    let program = env::current_exe().unwrap();
    let mut command = Command::new(program);
    command
        .args(["--exact", "leftovers::victim_of_a_killed_run"])
        .env(VICTIM, "1");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The id of the process in the ledger of a run.
fn child_of(run: &str) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/run/forebay-demo/{run}.json")).ok()?;
    let ledger: serde_json::Value = serde_json::from_str(&text).ok()?;
    ledger["processes"][0]["pid"].as_i64()?.try_into().ok()
}
