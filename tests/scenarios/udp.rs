//! DNS through the nodes: a server and clients that nobody here wrote.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use anyhow::ensure;
use gateway_tests::{
    dns::{self, Load, Server},
    eventually::eventually,
    fixture::ReplicaState,
    leftovers::Ledger,
    rig::{Options, Rig},
    topology::BACKENDS_V1,
};
use serde_json::Value;

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 101);

/// What the two servers answer.
const ANSWERS: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2)];

const MANIFEST: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: dns, namespace: istio-test}
spec:
  gatewayClassName: istio
  addresses: [{value: 192.0.2.101}]
  listeners: [{name: dns, protocol: UDP, port: 53}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: UDPRoute
metadata: {name: dns, namespace: istio-test}
spec:
  parentRefs: [{name: dns}]
  rules: [{backendRefs: [{name: dns, port: 53}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: dns, namespace: istio-test}
spec: {host: dns, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: istio-test}
spec: {ports: [{name: dns, port: 53, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, namespace: istio-test, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}]
endpoints: [{addresses: [198.51.100.11]}, {addresses: [198.51.100.12]}]
";

/// A rig with two DNS servers behind the VIP, delivered to the first node and served there.
fn rig(nodes: u8) -> (Rig, Vec<Server>) {
    let options = Options {
        nodes,
        ..Options::default()
    };
    let rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    let servers = BACKENDS_V1
        .iter()
        .zip(ANSWERS)
        .map(|(at, answer)| {
            Server::start(rig.ledger(), &rig.topology.backends, *at, answer).unwrap()
        })
        .collect();
    rig.fixture.write("dns.yaml", MANIFEST).unwrap();
    for index in 0..usize::from(nodes) {
        rig.topology.deliver_to(index, VIP).unwrap();
        eventually("an answer of the VIP", Duration::from_secs(10), || {
            ensure!(dns::ask(&rig.topology.client, VIP)?.is_some(), "none");
            Ok(())
        })
        .unwrap();
    }
    rig.topology.deliver_to(0, VIP).unwrap();
    (rig, servers)
}

/// Rows of the second node in the table of the first.
fn rows_of_second(rig: &Rig) -> u64 {
    let answer = rig.daemons[0].ask(&["bpf", "--output", "json"]).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let nodes = answer["nodes"].as_array().unwrap();
    let second = nodes.iter().find(|node| node["name"] == "node2").unwrap();
    second["rows"].as_u64().unwrap()
}

/// A counter of the kernel programs of one node.
fn packets(rig: &Rig, node: usize, name: &str) -> u64 {
    let answer = rig.daemons[node].ask(&["bpf", "--output", "json"]).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["counters"][name].as_u64().unwrap()
}

#[test]
fn dns_through_one_node_on_a_privileged_port() {
    let (rig, _servers) = rig(1);
    let client = &rig.topology.client;
    let answers: BTreeSet<Ipv4Addr> = (0..6)
        .map(|_| dns::ask(client, VIP).unwrap().unwrap())
        .collect();
    assert_eq!(
        answers,
        ANSWERS.into(),
        "sessions take both servers in turn"
    );
    let directory = &rig.settings.directory;
    let length = Duration::from_secs(2);
    let load = Load::start(rig.ledger(), client, directory, VIP, (50, 5_000), length).unwrap();
    let tally = load.finish().unwrap();
    assert!(tally.sent > 5_000, "{tally:?}");
    assert_eq!((tally.completed, tally.lost), (tally.sent, 0));
}

#[test]
fn no_dns_query_is_lost_while_a_node_leaves_and_comes_back() {
    let (mut rig, _servers) = rig(3);
    let directory = rig.settings.directory.clone();
    let length = Duration::from_secs(8);
    let client = &rig.topology.client;
    let load = Load::start(rig.ledger(), client, &directory, VIP, (200, 2_000), length).unwrap();
    // More packets of sessions that it holds reach the second node, of rows in transition or of settled ones.
    let held = |rig: &Rig| packets(rig, 1, "own_session") + packets(rig, 1, "own_pass");
    let still_serves = |rig: &Rig| {
        let before = held(rig);
        eventually("packets of its sessions", Duration::from_secs(5), || {
            let found = held(rig) - before;
            ensure!(found > 200, "{found} on the second node");
            Ok(())
        })
        .unwrap();
    };
    let owns_rows = |rig: &Rig, wanted: bool| {
        eventually(
            "the rows of the second node",
            Duration::from_secs(5),
            || {
                let rows = rows_of_second(rig);
                ensure!((rows > 0) == wanted, "it owns {rows}");
                Ok(())
            },
        )
        .unwrap();
    };
    still_serves(&rig);
    for (state, owns) in [(ReplicaState::Draining, false), (ReplicaState::Ready, true)] {
        rig.fixture
            .set_replicas(|replicas| replicas[1].state = state)
            .unwrap();
        owns_rows(&rig, owns);
        still_serves(&rig);
    }
    let tally = load.finish().unwrap();
    assert!(tally.sent > 10_000, "{tally:?}");
    assert_eq!((tally.completed, tally.lost), (tally.sent, 0));
}
