//! Clients by IPv6: the announcing node answers neighbour discovery, any node takes the packets, the owner serves them.

use std::net::Ipv6Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gateway_common::abi::Counter;
use gateway_tests::daemon::Daemon;
use gateway_tests::eventually::eventually;
use gateway_tests::fixture::{HOST, ReplicaState};
use gateway_tests::leftovers::Ledger;
use gateway_tests::maps::counter;
use gateway_tests::rig::{Options, Rig};
use gateway_tests::topology::UPLINK;
use gateway_tests::wire::{Kind, Tap};

const VIP: &str = "2001:db8::100";
const REQUESTS: usize = 40;

#[test]
fn clients_by_ipv6_are_served_on_link_and_by_the_tunnel() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    with_ipv6(&rig).unwrap();
    rig.fixture.write("gateway-v6.yaml", &gateway()).unwrap();
    for forward in ["auto", "udp"] {
        if forward == "udp" {
            rig.restart_with_forward(forward).unwrap();
        }
        eventually("an answer by IPv6", Duration::from_secs(15), || curl(&rig)).unwrap();
        let before = forwarded(&rig);
        for _ in 0..REQUESTS {
            // The announcement alone may have told the client; now it has to ask.
            rig.topology
                .client
                .ip(&format!("-6 neigh flush dev {UPLINK}"))
                .unwrap();
            curl(&rig).unwrap();
        }
        let after = forwarded(&rig);
        let [l2, udp] = [after[0] - before[0], after[1] - before[1]];
        println!("--forward {forward}: {l2} packets by MAC rewrite, {udp} by the tunnel");
        let (some, none) = if forward == "auto" {
            (l2, udp)
        } else {
            (udp, l2)
        };
        assert!(some > 0, "no packet went to another node");
        assert_eq!(none, 0, "packets went the other way");
    }
    let answers = sums(&rig, Counter::NeighbourReply);
    let speakers = answers.iter().filter(|n| **n > 0).count();
    assert_eq!(speakers, 1, "one node speaks for the VIP: {answers:?}");
    defended(&rig);
}

#[test]
fn the_announcer_vanishes_and_another_advertises_the_vip_within_a_second() {
    let options = Options {
        nodes: 3,
        ..Options::default()
    };
    let rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    with_ipv6(&rig).unwrap();
    rig.fixture.write("gateway-v6.yaml", &gateway()).unwrap();
    eventually("an answer by IPv6", Duration::from_secs(15), || curl(&rig)).unwrap();
    let speaks = |daemon: &Daemon| {
        let status = daemon.status().unwrap();
        let all = status["datapath"]["announcing"].as_array().unwrap();
        all.iter().any(|address| *address == VIP)
    };
    let speakers: Vec<&Daemon> = rig.daemons.iter().filter(|daemon| speaks(daemon)).collect();
    assert_eq!(speakers.len(), 1);
    let site = speakers[0].site();
    let tap = Tap::start(&rig.topology.client, Kind::Neighbours).unwrap();
    let gone = Instant::now();
    site.netns.ip(&format!("link del {UPLINK}")).unwrap();
    eventually("an answer in its place", Duration::from_secs(5), || {
        curl(&rig)
    })
    .unwrap();
    println!("answered {:?} after the announcer was gone", gone.elapsed());
    let frames = tap.stop().unwrap();
    // Ethernet, IPv6, then type 136, flags (override), and the address that it is about.
    let vip = VIP.parse::<Ipv6Addr>().unwrap().octets();
    let told = frames.iter().find(|frame| {
        let bytes = &frame.bytes;
        let override_it = bytes.get(58).is_some_and(|flags| flags & 0x20 != 0);
        frame.at > gone
            && bytes.get(54) == Some(&136)
            && override_it
            && bytes.get(62..78) == Some(&vip)
    });
    let after = told.unwrap().at.saturating_duration_since(gone);
    println!("the link was told {after:?} after");
    assert!(after <= Duration::from_secs(1), "{after:?}");
}

#[test]
fn where_ipv6_is_off_only_its_vip_is_not_served() {
    let options = Options {
        nodes: 2,
        ..Options::default()
    };
    let mut rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    rig.fixture.write("gateway-v6.yaml", &gateway()).unwrap();
    let patience = Duration::from_secs(10);
    eventually("a word about the VIP", patience, || says_unserved(&rig)).unwrap();
    let told = rig.daemons[0].ask(&["status"]).unwrap();
    assert!(told.contains("Not served: 2001:db8::100"), "{told}");
    assert!(told.contains("disable_ipv6=0"), "{told}");
    // Whatever else changes is written as ever.
    rig.mark(1, ReplicaState::Joining).unwrap();
    rig.wait_agreed().unwrap();
    rig.mark(1, ReplicaState::Ready).unwrap();
    rig.wait_agreed().unwrap();
    for index in 0..2 {
        rig.wait_served(index, HOST).unwrap();
    }
    // Somebody takes lo down, and all local routes with it.
    let node = rig.topology.nodes[0].netns.clone();
    node.ip("link set lo down").unwrap();
    node.ip("link set lo up").unwrap();
    rig.wait_served(0, HOST).unwrap();
    with_ipv6(&rig).unwrap();
    for site in &rig.topology.nodes {
        site.netns
            .sysctl("net/ipv6/conf/lo/disable_ipv6", "0")
            .unwrap();
    }
    eventually("an answer by IPv6", patience, || curl(&rig)).unwrap();
    assert!(says_unserved(&rig).is_err());
}

/// Whether both nodes say that they do not serve the VIP, and that nothing else is wrong.
fn says_unserved(rig: &Rig) -> Result<()> {
    for daemon in &rig.daemons {
        let status = daemon.status()?;
        let left_out = &status["datapath"]["left_out"];
        let all = left_out.as_array().context("no list")?;
        let one = all.len() == 1 && all[0].as_str().is_some_and(|why| why.starts_with(VIP));
        ensure!(one, "{left_out}");
        ensure!(
            status["datapath"]["routes"]
                .as_array()
                .is_some_and(|r| !r.iter().any(|a| *a == VIP))
        );
    }
    Ok(())
}

/// A machine that gives itself the VIP finds that it is taken; on the nodes it is no address of an interface and nothing
/// looks for duplicates of it.
fn defended(rig: &Rig) {
    for site in &rig.topology.nodes {
        let mut show = Command::new("ip");
        let shown = site.netns.output(show.args(["-6", "address"])).unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(!shown.contains(VIP), "{shown}");
    }
    let client = &rig.topology.client;
    client
        .sysctl(&format!("net/ipv6/conf/{UPLINK}/accept_dad"), "1")
        .unwrap();
    client
        .ip(&format!("address add {VIP}/64 dev {UPLINK}"))
        .unwrap();
    eventually("a duplicate", Duration::from_secs(5), || {
        let mut show = Command::new("ip");
        let shown = client.output(show.args(["-6", "address", "show", "dadfailed"]))?;
        let shown = String::from_utf8(shown.stdout)?;
        ensure!(shown.contains(VIP), "{shown}");
        Ok(())
    })
    .unwrap();
}

/// Gives client and nodes addresses of IPv6.
fn with_ipv6(rig: &Rig) -> Result<()> {
    let nodes = rig.topology.nodes.iter().map(|site| &site.netns);
    for (number, netns) in std::iter::once(&rig.topology.client)
        .chain(nodes)
        .enumerate()
    {
        netns.sysctl("net/ipv6/conf/all/disable_ipv6", "0")?;
        netns.sysctl(&format!("net/ipv6/conf/{UPLINK}/disable_ipv6"), "0")?;
        let address = format!("2001:db8::{}/64", number + 1);
        netns.ip(&format!("address add {address} dev {UPLINK} nodad"))?;
    }
    Ok(())
}

fn gateway() -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: six, namespace: istio-test}}
spec:
  gatewayClassName: istio
  addresses: [{{type: IPAddress, value: '{VIP}'}}]
  listeners: [{{name: http, protocol: HTTP, port: 80}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: six, namespace: istio-test}}
spec:
  parentRefs: [{{name: six}}]
  hostnames: [{HOST}]
  rules: [{{backendRefs: [{{name: backend-v1, port: 80}}]}}]
"
    )
}

fn curl(rig: &Rig) -> Result<()> {
    let mut command = Command::new("curl");
    command.args(["-gsS", "--max-time", "5", "-H"]);
    command.arg(format!("Host: {HOST}"));
    command.arg(format!("http://[{VIP}]/"));
    let done = rig.topology.client.output(&mut command)?;
    let body = String::from_utf8(done.stdout).context("no text")?;
    ensure!(
        body.starts_with("hello from backend v1"),
        "{body}{}",
        String::from_utf8_lossy(&done.stderr).trim()
    );
    Ok(())
}

/// Packets that nodes sent on, by MAC rewrite and by the tunnel.
fn forwarded(rig: &Rig) -> [u64; 2] {
    [Counter::ForwardL2, Counter::ForwardUdp].map(|kind| sums(rig, kind).iter().sum())
}

fn sums(rig: &Rig, kind: Counter) -> Vec<u64> {
    let daemons = rig.daemons.iter();
    daemons
        .map(|daemon| counter(daemon.bpffs(), kind).unwrap())
        .collect()
}
