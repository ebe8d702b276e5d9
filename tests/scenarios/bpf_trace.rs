//! `forebay bpf trace` on real nodes: one connection over two of them, and what is left of a tracer that was killed.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::ensure;
use aya::maps::{Map, MapData, RingBuf};
use gateway_common::abi::{ABI_VERSION, map};
use gateway_tests::client::{Load, Tally};
use gateway_tests::daemon::{Daemon, program};
use gateway_tests::eventually::eventually;
use gateway_tests::fixture::HOST;
use gateway_tests::leftovers::Ledger;
use gateway_tests::rig::{Options, Rig, VIP};
use gateway_user::datapath::look::Look;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bpf::{acks, at_rest, said};

/// A tracer on a node, and what it prints.
struct Tracer {
    child: Child,
    out: PathBuf,
}

impl Tracer {
    fn start(rig: &Rig, daemon: &Daemon, words: &[&str]) -> Self {
        let at = |end: &str| {
            rig.settings
                .directory
                .join(format!("{}-trace.{end}", daemon.site().name))
        };
        let mut command = Command::new(program());
        command
            .args(["bpf", "trace", "--output", "json"])
            .args(words)
            .args(["--admin", &daemon.admin()])
            .arg("--bpffs")
            .arg(daemon.bpffs())
            .stdin(Stdio::null())
            .stdout(File::create(at("out")).unwrap())
            .stderr(File::create(at("err")).unwrap());
        let child = daemon.site().netns.spawn(&mut command).unwrap();
        rig.ledger().process(child.id()).unwrap();
        let tracer = Self {
            child,
            out: at("out"),
        };
        eventually("a tracer", Duration::from_secs(5), || {
            let text = fs::read_to_string(at("err"))?;
            ensure!(text.starts_with("tracing on "), "{text}");
            Ok(())
        })
        .unwrap();
        tracer
    }

    fn signal(&mut self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it, and reads what it printed.
    fn end(mut self) -> Vec<Value> {
        // It looks every 20 ms; the signal comes after what it has been told by now.
        let before = fs::metadata(&self.out).unwrap().len();
        let _more = eventually("more lines", Duration::from_millis(200), || {
            ensure!(fs::metadata(&self.out)?.len() > before, "none");
            Ok(())
        });
        self.signal(Signal::INT);
        let text = fs::read_to_string(&self.out).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// The word that makes the programs look at the filter.
fn word(daemon: &Daemon) -> u32 {
    let look = Look::open(daemon.bpffs()).unwrap();
    look.tables().unwrap().config.trace
}

#[test]
fn bpf_trace_follows_a_connection_over_its_nodes() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    at_rest(&rig);
    let ports = rig.ports(1, 2).unwrap();
    rig.deliver_to(0).unwrap();
    let port = ports[0].to_string();
    let vip = format!("{VIP}/tcp");
    let wanted = ["--port", &port, "--vip", &vip];
    let tracers: Vec<Tracer> = rig
        .daemons
        .iter()
        .map(|daemon| Tracer::start(&rig, daemon, &wanted))
        .collect();
    let (code, out, error) = said(&rig.daemons[0], &["trace"]);
    let process = tracers[0].child.id();
    assert_eq!(
        (code, out.as_str(), error),
        (
            Some(1),
            "",
            format!(
                "forebay: another `forebay bpf trace` (process {process}) traces this node: end it first\n"
            )
        )
    );
    let load = |port: u16| Load {
        ports: vec![port],
        ..Load::new(VIP, HOST, 1)
    };
    // One connection that is asked for, and one that is not.
    for port in &ports {
        let tally = Tally::of(&rig.client.send(load(*port)).unwrap());
        assert_eq!(tally.status(200), 1, "{tally}");
    }
    let events: Vec<Vec<Value>> = tracers.into_iter().map(Tracer::end).collect();
    let names: Vec<String> = rig.topology.nodes.iter().map(|n| n.name.clone()).collect();
    let [entry, owner, other] = &events[..] else {
        panic!("three nodes")
    };
    assert!(entry.len() >= 4, "{entry:?}");
    assert_eq!(entry.len(), owner.len(), "{entry:?} {owner:?}");
    assert_eq!(other.len(), 0, "{other:?}");
    let client = format!("{}:{port}", gateway_tests::topology::CLIENT);
    for (i, (entry, owner)) in entry.iter().zip(owner).enumerate() {
        for (event, node) in [(entry, &names[0]), (owner, &names[1])] {
            assert_eq!(event["node"], node.as_str(), "{event}");
            assert_eq!(event["client"], client.as_str(), "{event}");
            assert_eq!(event["vip"], VIP.to_string().as_str(), "{event}");
            assert_eq!(event["owner"], names[1].as_str(), "{event}");
            assert_eq!(event["row"], entry["row"], "{event}");
            assert_eq!(event["syn"], i == 0, "{event}");
        }
        assert_eq!(
            (
                &entry["action"],
                &entry["reason"],
                &entry["to"],
                &entry["why"]
            ),
            (
                &"send".into(),
                &"forward_l2".into(),
                &names[1].as_str().into(),
                &"the owner".into()
            ),
            "{entry}"
        );
        let reason = if i == 0 { "own_syn" } else { "own_pass" };
        assert_eq!(
            (&owner["action"], &owner["reason"], &owner["to"]),
            (&"pass".into(), &reason.into(), &Value::Null),
            "{owner}"
        );
    }
    for daemon in &rig.daemons {
        assert_eq!(word(daemon), 0, "tracers that end leave nothing");
    }
}

#[test]
fn bpf_trace_ends_with_a_tracer_that_is_killed() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    at_rest(&rig);
    let port = rig.ports(1, 1).unwrap()[0];
    rig.deliver_to(0).unwrap();
    let mut tracer = Tracer::start(&rig, &rig.daemons[0], &[]);
    assert_eq!(word(&rig.daemons[0]), 1);
    tracer.signal(Signal::KILL);
    eventually("the end of the trace", Duration::from_secs(4), || {
        ensure!(word(&rig.daemons[0]) == 0, "the word is still set");
        Ok(())
    })
    .unwrap();

    // Without a daemon the word stays, but nothing is told any more.
    let mut tracer = Tracer::start(&rig, &rig.daemons[0], &[]);
    rig.daemons[0].kill().unwrap();
    tracer.signal(Signal::KILL);
    let directory = rig.daemons[0].bpffs().join(format!("v{ABI_VERSION}"));
    let data = MapData::from_pin(directory.join(map::TRACE_EVENTS)).unwrap();
    let mut events = RingBuf::try_from(Map::RingBuf(data)).unwrap();
    eventually(
        "packets that nobody is told of",
        Duration::from_secs(4),
        || {
            while events.next().is_some() {}
            acks(&rig.topology.client, port, 3);
            ensure!(events.next().is_none(), "the tracer is told still");
            Ok(())
        },
    )
    .unwrap();
    assert_eq!(word(&rig.daemons[0]), 1, "nobody was there to clear it");
    // The next one is not hindered, counts to a number, and does not see what was told to others.
    let mut command = Command::new(program());
    command
        .args([
            "bpf",
            "trace",
            "--count",
            "2",
            "--timeout",
            "20s",
            "--bpffs",
        ])
        .arg(rig.daemons[0].bpffs())
        .args(["--admin", "off", "--node-name", "here"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let child = rig.daemons[0].site().netns.spawn(&mut command).unwrap();
    rig.ledger().process(child.id()).unwrap();
    eventually("a tracer", Duration::from_secs(5), || {
        let look = Look::open(rig.daemons[0].bpffs())?;
        ensure!(look.tracer()? == child.id(), "another one's filter");
        Ok(())
    })
    .unwrap();
    acks(&rig.topology.client, port, 3);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    let owner = rig.topology.nodes[1].address;
    for line in text.lines() {
        assert!(line.contains(" here "), "{line}");
        let end = format!(": send forward_l2 to {owner}, the owner");
        assert!(line.ends_with(&end), "{line}");
    }
}
