//! VIPs that nobody announces: routers learn them by BGP from a daemon on each node (bird), which finds the host routes that
//! Forebay puts in a table of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gateway_tests::client::{Load, Tally};
use gateway_tests::eventually::eventually;
use gateway_tests::fixture::HOST;
use gateway_tests::leftovers::Ledger;
use gateway_tests::netns::Netns;
use gateway_tests::rig::{Options, Rig};
use gateway_tests::split::{RUN_USER, Split};
use gateway_tests::stalls::Stalls;
use gateway_tests::topology::UPLINK;

const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 10), 80);
const VIP_V6: &str = "2001:db8:113::10";
/// The router: the switch itself.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const ROUTER_AS: u32 = 64_500;
const NODES_AS: u32 = 64_501;

/// A routing daemon; ends with this.
struct Bird(Child);

impl Drop for Bird {
    fn drop(&mut self) {
        // Fails only for one that ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bird {
    fn start(
        ledger: &Ledger,
        netns: &Netns,
        name: &str,
        id: Ipv4Addr,
        protocols: &str,
    ) -> Result<Self> {
        let directory = PathBuf::from("/run").join(ledger.run()).join("bird");
        fs::create_dir_all(&directory)?;
        let path = |kind: &str| directory.join(format!("{name}.{kind}"));
        let whole = format!(
            "log \"{}\" all;\nrouter id {id};\nprotocol device {{ scan time 1; }}\n{protocols}",
            path("log").display()
        );
        fs::write(path("conf"), whole)?;
        let mut command = Command::new("bird");
        command.arg("-f").arg("-c").arg(path("conf"));
        command.arg("-s").arg(path("ctl"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = netns
            .spawn(&mut command)
            .context("bird is missing: run `cargo xtask setup`")?;
        ledger.process(child.id())?;
        Ok(Self(child))
    }
}

/// As docs/routed-vips.md has it.
fn bird_of_node() -> String {
    format!(
        "protocol kernel forebay4 {{
    kernel table 174;
    learn;
    scan time 1;
    ipv4 {{ import where krt_source = 174; export none; }};
}}
protocol bgp router4 {{
    local as {NODES_AS};
    neighbor {ROUTER} as {ROUTER_AS};
    connect delay time 1; error wait time 1, 2; hold time 9;
    ipv4 {{ import none; export where proto = \"forebay4\"; next hop self; }};
}}
"
    )
}

fn bird_of_router(nodes: &[Ipv4Addr]) -> String {
    let mut text =
        "protocol kernel { ipv4 { export all; }; merge paths yes; scan time 1; }\n".to_owned();
    for (number, address) in nodes.iter().enumerate() {
        text.push_str(&format!(
            "protocol bgp node{number} {{
    local {ROUTER} as {ROUTER_AS};
    neighbor {address} as {NODES_AS};
    connect delay time 1; error wait time 1, 2; hold time 9;
    ipv4 {{ import all; export none; }};
}}
"
        ));
    }
    text
}

const MANIFESTS: &str = "apiVersion: forebay.dev/v1alpha1
kind: AddressPool
metadata: {name: routed}
spec:
  ranges: [203.0.113.0/28, '2001:db8:113::/64']
  announce: None
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: routed, namespace: istio-test}
spec:
  gatewayClassName: istio
  addresses: [{value: 203.0.113.10}, {value: '2001:db8:113::10'}]
  listeners: [{name: http, protocol: HTTP, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: routed, namespace: istio-test}
spec:
  parentRefs: [{name: routed}]
  hostnames: [test.devopscube.com]
  rules: [{backendRefs: [{name: backend-v1, port: 80}]}]
";

fn output(netns: &Netns, words: &[&str]) -> Result<String> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    let done = netns.output(&mut command)?;
    Ok(String::from_utf8(done.stdout)?)
}

/// Addresses of the nodes through which the router sends packets for the VIP.
fn next_hops(switch: &Netns) -> Result<Vec<String>> {
    let text = output(switch, &["ip", "route", "show", &VIP.ip().to_string()])?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let pairs = words.windows(2).filter(|pair| pair[0] == "via");
    let mut hops: Vec<String> = pairs.map(|pair| pair[1].to_owned()).collect();
    hops.sort();
    Ok(hops)
}

fn wait_hops(rig: &Rig, nodes: &[usize], bound: Duration) -> Result<Duration> {
    let mut wanted: Vec<String> = nodes
        .iter()
        .map(|index| rig.topology.nodes[*index].address.to_string())
        .collect();
    wanted.sort();
    let started = Instant::now();
    eventually(&format!("routes through {wanted:?}"), bound, || {
        let hops = next_hops(&rig.topology.switch)?;
        ensure!(hops == wanted, "{hops:?}");
        Ok(())
    })?;
    Ok(started.elapsed())
}

/// What a node tells routers of.
fn exported(netns: &Netns) -> Result<String> {
    let v4 = output(netns, &["ip", "-4", "route", "show", "table", "174"])?;
    let v6 = output(netns, &["ip", "-6", "route", "show", "table", "174"])?;
    Ok(format!("{v4}{v6}"))
}

fn with_ipv6(netns: &Netns) -> Result<()> {
    netns.sysctl("net/ipv6/conf/all/disable_ipv6", "0")?;
    netns.sysctl("net/ipv6/conf/default/disable_ipv6", "0")
}

fn with_router(rig: &Rig) -> Result<Vec<Bird>> {
    let topology = &rig.topology;
    let switch = &topology.switch;
    switch.address("br0", ROUTER, 24)?;
    switch.checksums_in_software("br0")?;
    switch.sysctl("net/ipv4/ip_forward", "1")?;
    switch.sysctl("net/ipv4/fib_multipath_hash_policy", "1")?;
    for interface in ["all", "br0"] {
        switch.sysctl(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
    }
    topology.client.ip(&format!(
        "route add 203.0.113.0/24 via {ROUTER} dev {UPLINK}"
    ))?;
    let addresses: Vec<Ipv4Addr> = topology.nodes.iter().map(|site| site.address).collect();
    let ledger = rig.ledger();
    let mut birds = vec![Bird::start(
        ledger,
        switch,
        "router",
        ROUTER,
        &bird_of_router(&addresses),
    )?];
    for site in &topology.nodes {
        let node = bird_of_node();
        birds.push(Bird::start(
            ledger,
            &site.netns,
            &site.name,
            site.address,
            &node,
        )?);
    }
    Ok(birds)
}

fn load() -> Load {
    Load {
        count: None,
        overlap: 4,
        timeout: Duration::from_secs(10),
        ..Load::new(VIP, HOST, 0)
    }
}

#[test]
fn routers_learn_vips_that_nobody_announces_and_turn_away_from_nodes_that_leave() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    let nodes = rig.topology.nodes.iter();
    nodes.for_each(|site| with_ipv6(&site.netns).unwrap());
    rig.fixture.write("routed.yaml", MANIFESTS).unwrap();
    let _birds = with_router(&rig).unwrap();
    wait_hops(&rig, &[0, 1, 2], Duration::from_secs(20)).unwrap();
    for site in &rig.topology.nodes {
        let routes = exported(&site.netns).unwrap();
        assert!(routes.contains("dev forebay0 proto 174"), "{routes}");
        assert!(routes.contains(VIP_V6), "{routes}");
    }
    let shown = rig.daemons[0].ask(&["status"]).unwrap();
    assert!(
        shown.contains(
            "announced by: nobody (routed). Routers are told of: 203.0.113.10,2001:db8:113::10."
        ),
        "{shown}"
    );

    // Nobody speaks for it on the link, neither Forebay nor the kernel.
    let client = &rig.topology.client;
    let on_link = format!("{} dev {UPLINK}", VIP.ip());
    client.ip(&format!("route add {on_link}")).unwrap();
    let url = format!("http://{VIP}/");
    let mut curl = Command::new("curl");
    let answer = client.output(curl.args(["-s", "--max-time", "2", &url]));
    assert!(!answer.unwrap().status.success());
    let neighbour = output(client, &["ip", "neigh", "show", "to", "203.0.113.10"]).unwrap();
    assert!(!neighbour.contains("lladdr"), "{neighbour}");
    client.ip(&format!("route del {on_link}")).unwrap();

    let running = rig.client.start(load()).unwrap();
    eventually("some answers", Duration::from_secs(10), || {
        ensure!(running.finished() >= 40);
        Ok(())
    })
    .unwrap();
    let (stalls, begun) = (Stalls::watch().unwrap(), Instant::now());
    rig.daemons[0].ask(&["drain"]).unwrap();
    let took = wait_hops(&rig, &[1, 2], Duration::from_secs(5)).unwrap();
    println!("withdrawn {took:?} after the drain began");
    let bound = Duration::from_secs(1) + stalls.allowance(begun);
    assert!(took < bound, "{took:?} > {bound:?}");
    let shown = rig.daemons[0].ask(&["status"]).unwrap();
    assert!(
        shown.contains("Routers are told of: none, this node drains."),
        "{shown}"
    );
    let seen = running.finished();
    eventually("more answers", Duration::from_secs(10), || {
        ensure!(running.finished() >= seen + 40);
        Ok(())
    })
    .unwrap();
    let finished = running.stop().unwrap();
    let tally = Tally::of(&finished);
    println!("{} requests across it: {tally:?}", finished.len());
    assert_eq!(tally.status(200), finished.len(), "{tally:?}");

    // The process is gone before it can say anything.
    rig.daemons[1].kill().unwrap();
    let took = wait_hops(&rig, &[2], Duration::from_secs(5)).unwrap();
    println!("withdrawn {took:?} after the daemon was killed");
    assert_eq!(exported(&rig.topology.nodes[1].netns).unwrap(), "");
    rig.start_again(1).unwrap();
    wait_hops(&rig, &[1, 2], Duration::from_secs(10)).unwrap();
}

#[test]
fn an_agent_withdraws_what_a_run_that_is_gone_cannot() {
    let allow = RUN_USER.to_string();
    let vips = [
        "--vips",
        "192.0.2.100-192.0.2.119",
        "--vips",
        "203.0.113.0/28",
        "--vips",
        "2001:db8:113::/64",
    ];
    let flags = [&vips[..], &["--allow-uid", &allow]].concat();
    let mut split = Split::start(Ledger::open().unwrap(), &flags).unwrap();
    with_ipv6(&split.site().netns).unwrap();
    split.fixture.write("routed.yaml", MANIFESTS).unwrap();
    split.start_run().unwrap();
    split.wait_ready().unwrap();
    let netns = split.site().netns.clone();
    let both = || {
        let routes = exported(&netns)?;
        let there = routes.contains("203.0.113.10") && routes.contains(VIP_V6);
        ensure!(there && routes.contains("proto 174"), "{routes:?}");
        Ok(())
    };
    eventually("routes for routers", Duration::from_secs(10), both).unwrap();
    split.kill_run();
    let none = || {
        let routes = exported(&netns)?;
        ensure!(routes.is_empty(), "{routes:?}");
        Ok(())
    };
    eventually("no routes for routers", Duration::from_secs(3), none).unwrap();
    split.start_run().unwrap();
    eventually("routes again", Duration::from_secs(15), both).unwrap();
}
