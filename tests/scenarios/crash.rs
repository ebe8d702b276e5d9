//! The daemon of a node that all packets come by is killed under load and comes back, as the same or another version.
//!
//! What it pinned goes on without it: not one packet of other nodes' connections is lost, neither while it is away nor while
//! its successor takes over.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gateway_common::abi::ABI_VERSION;
use gateway_tests::eventually::{eventually, throughout};
use gateway_tests::maps;
use gateway_tests::rig::{Rig, VIP};
use gateway_tests::sustained::Seen;
use gateway_tests::topology::CLIENT;
use gateway_tests::wire;

use crate::load::{Loaded, PACKETS, accounted, count, counted, no_room, tell};

/// How long the daemon is away: seconds, `FOREBAY_TEST_AWAY` overrides it.
const AWAY: u64 = 5;

#[test]
fn the_kernel_goes_on_without_its_daemon_and_with_another_version() {
    let away = std::env::var("FOREBAY_TEST_AWAY").map_or(AWAY, |text| text.parse().unwrap());
    let Loaded {
        mut rig,
        load,
        packets,
        ..
    } = Loaded::start().unwrap();
    packets.stop().unwrap();
    let victim = rig.announcer().unwrap();
    let name = rig.topology.nodes[victim].name.clone();
    let steering = rig.steering();
    let owner = move |port: u16| {
        let client = SocketAddrV4::new(CLIENT, port);
        steering.owner(client, VIP).unwrap_or("none").to_owned()
    };
    count(&rig).unwrap();
    for (what, version) in [
        ("the same version", ABI_VERSION),
        ("a newer one than before", 1),
        ("an older one than before", ABI_VERSION + 7),
    ] {
        drop(load.take());
        let (earlier, full) = (counted(&rig).unwrap(), no_room(&rig).unwrap());
        let (others, its) = (owner.clone(), name.clone());
        let client = &rig.topology.client;
        let its_netns = rig.topology.nodes[victim].netns.clone();
        let astray = || wire::marked(&its_netns).unwrap();
        let before = astray();
        let packets = load
            .packets_of(client, PACKETS, move |port| others(port) != its)
            .unwrap();
        go_and_come(&mut rig, victim, version, Duration::from_secs(away)).unwrap();
        let (sent, rate) = packets.stop().unwrap();
        let arrived = || counted(&rig).map(|counted| counted - earlier);
        eventually("the last packets", Duration::from_secs(2), || {
            ensure!(arrived()? >= sent, "{} of {sent}", arrived()?);
            Ok(())
        })
        .ok();
        let (arrived, full) = (arrived().unwrap(), no_room(&rig).unwrap() - full);
        let seen = load.take();
        println!(
            "{what} comes back after {away} s: {sent} packets of others' connections ({rate:.0} a second), {arrived} arrived, the links had no room for {full}; requests: {}",
            seen.tally
        );
        for (port, how) in seen.broken.iter().filter(|(port, _)| owner(*port) != name) {
            tell(&rig, *port, how);
        }
        assert_eq!(astray() - before, 0, "packets that {name} took for its own");
        accounted(sent, arrived, full, what);
        judge(&seen, &name, &owner).unwrap();
    }
    drop(load.stop().unwrap());
}

/// Kills the daemon, lets its pins look as if that version had made them, and starts it again.
fn go_and_come(rig: &mut Rig, victim: usize, version: u32, away: Duration) -> Result<()> {
    let bpffs = rig.daemons[victim].bpffs().to_owned();
    let ours = bpffs.join(format!("v{ABI_VERSION}"));
    let pins = pinned(&ours)?;
    rig.daemons[victim].kill()?;
    let tables = maps::guarded(&bpffs)?;
    throughout("what it left in the kernel", away, || {
        ensure!(pinned(&ours)? == pins, "pins are gone");
        ensure!(maps::guarded(&bpffs)? == tables, "tables changed");
        Ok(())
    })?;
    let theirs = bpffs.join(format!("v{version}"));
    if theirs != ours {
        fs::rename(&ours, &theirs).context("giving the pins another version")?;
    }
    rig.start_again(victim)?;
    let status = rig.daemons[victim].status()?;
    let uplink = &status["datapath"]["interfaces"][0];
    ensure!(uplink["adopted"] == true, "{uplink}");
    ensure!(pinned(&ours)? == pins, "{:?}", pinned(&ours)?);
    ensure!(theirs == ours || !theirs.exists(), "the old pins are left");
    rig.wait_agreed()
}

fn pinned(directory: &std::path::Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("{}", directory.display()))?;
    let name = |entry: std::io::Result<fs::DirEntry>| {
        Ok(entry?.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}

/// Only connections that were the killed node's are broken, and no new one is refused.
fn judge(seen: &Seen, victim: &str, owner: &impl Fn(u16) -> String) -> Result<()> {
    let tally = &seen.tally;
    let answers: usize = tally.answers.values().sum();
    ensure!(tally.status(200) == answers && answers > 0, "{tally}");
    ensure!(tally.refused == 0 && tally.timed_out == 0, "{tally}");
    for (port, how) in &seen.broken {
        ensure!(owner(*port) == victim, "{} lost one: {how}", owner(*port));
    }
    Ok(())
}
