//! Who is a VIP? Neighbours hear one node, and a pod with the VIP's port does no harm.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    num::NonZeroU32,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    fd::OwnedFd,
    net::{
        AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use serde_json::{Value, json};

use super::super::{forebay, layout::Node};
use super::{
    http::{ask, get},
    load::Load,
    stage::{HELLO, HOST, NAMESPACE, PATIENCE, Stage, container},
};
use crate::cmd;

const ETHERTYPE_ARP: u16 = 0x0806;
/// Time for every node to answer.
const HEARD: Duration = Duration::from_millis(400);
/// How often each VIP is asked for.
const ASKED: usize = 3;
const BOUND: Duration = Duration::from_secs(5);
/// Load beside a pod that has the port of the VIP.
const BESIDE: Duration = Duration::from_secs(3);

type Mac = [u8; 6];

/// All pods of Forebay have started together, with the Gateways already there; then they do once more.
pub(super) fn cold_start(stage: &Stage<'_>) -> Result<String> {
    let first = one_each(stage)?;
    let words = ["delete", "pods", "--all", "--wait=true", "-n"];
    stage
        .running
        .kubectl(&[&words[..], &[forebay::NAMESPACE]].concat())?;
    stage.rolled_out()?;
    let second = one_each(stage)?;
    Ok(format!(
        "one announcer for each of {} VIPs: {first}; after all pods ended together: {second}",
        stage.vips.len()
    ))
}

/// Fails unless each VIP has exactly one announcer, by what the nodes say and by what a neighbour hears.
fn one_each(stage: &Stage<'_>) -> Result<String> {
    let said = said(stage)?;
    let mut nodes = Vec::new();
    for vip in &stage.vips {
        let by = said.get(vip).cloned().unwrap_or_default();
        ensure!(by.len() == 1, "{vip} is announced by {by:?}");
        let heard = heard(*vip)?;
        ensure!(heard.len() == 1, "{vip} is at {heard:02x?}");
        nodes.extend(by);
    }
    Ok(nodes.join(", "))
}

/// Which nodes say that they announce each VIP; waits for one each, since an announcer may just have changed.
fn said(stage: &Stage<'_>) -> Result<BTreeMap<Ipv4Addr, Vec<String>>> {
    let mut last = BTreeMap::new();
    let settled = stage.until("announcers", Duration::from_secs(10), || {
        last = announcers(stage)?;
        let one = |vip: &Ipv4Addr| last.get(vip).is_some_and(|by| by.len() == 1);
        Ok(stage.vips.iter().all(one).then_some(()))
    });
    settled.with_context(|| format!("announced by: {last:?}"))?;
    Ok(last)
}

fn announcers(stage: &Stage<'_>) -> Result<BTreeMap<Ipv4Addr, Vec<String>>> {
    let mut found = BTreeMap::<Ipv4Addr, Vec<String>>::new();
    for pod in stage.pods()? {
        let words = ["exec", &pod.name, "-c", "forebay", "-n", forebay::NAMESPACE];
        let status = ["--", "forebay", "status", "--output", "json"];
        let text = stage.running.kubectl(&[&words[..], &status].concat())?;
        let status: Value = serde_json::from_str(&text).context("the status is no JSON")?;
        let all = status["datapath"]["announcing"].as_array();
        for vip in all.into_iter().flatten().filter_map(Value::as_str) {
            let vip = vip.parse().with_context(|| format!("{vip} is announced"))?;
            found.entry(vip).or_default().push(pod.node.clone());
        }
    }
    Ok(found)
}

/// The hardware addresses that answer when the hub asks for a VIP.
fn heard(vip: Ipv4Addr) -> Result<BTreeSet<Mac>> {
    let socket = listen()?;
    let mut macs = BTreeSet::new();
    for _ in 0..ASKED {
        forget(vip);
        // Somebody must want to send something there; what comes of it does not matter.
        ask(SocketAddrV4::new(vip, 80), &get(HOST, "/"), BOUND).ok();
        let until = Instant::now() + HEARD;
        while Instant::now() < until {
            let mut frame = [0; 64];
            // Nothing within the time limit is an error here.
            let Ok((_, length)) = recv(&socket, &mut frame[..], RecvFlags::empty()) else {
                break;
            };
            macs.extend(frame.get(..length).and_then(|frame| says(frame, vip)));
        }
    }
    Ok(macs)
}

/// A socket that gets every ARP packet of the hub.
fn listen() -> Result<OwnedFd> {
    let protocol = NonZeroU32::new(u32::from(ETHERTYPE_ARP.to_be())).map(Protocol::from_raw);
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )
    .context("cannot listen to ARP")?;
    set_socket_timeout(&socket, Timeout::Recv, Some(HEARD)).context("cannot set a time limit")?;
    Ok(socket)
}

fn forget(vip: Ipv4Addr) {
    let vip = vip.to_string();
    // It may not be known at all.
    cmd::output(Command::new("ip").args(["neigh", "del", &vip, "dev", "br0"])).ok();
}

/// Who says in an ARP reply that it has the address.
fn says(frame: &[u8], address: Ipv4Addr) -> Option<Mac> {
    let is_reply = frame.get(12..14)? == ETHERTYPE_ARP.to_be_bytes()
        && frame.get(20..22)? == 2_u16.to_be_bytes();
    let same = frame.get(28..32)? == address.octets();
    (is_reply && same)
        .then(|| frame.get(22..28)?.try_into().ok())
        .flatten()
}

/// Pods with port 80 of their nodes, of which the VIP's port 80 is none: where kube-proxy writes rules of iptables, and where
/// it writes some of nftables.
pub(super) fn host_port(stage: &Stage<'_>) -> Result<String> {
    let nodes: Vec<Node> = stage.nodes().into_iter().take(2).collect();
    let tried = beside(stage, &nodes);
    let mut words = vec!["delete", "pod", "--grace-period=1", "-n", NAMESPACE];
    let names: Vec<String> = nodes.iter().map(|&node| name(node)).collect();
    words.push("--ignore-not-found");
    words.extend(names.iter().map(String::as_str));
    let removed = stage.running.kubectl(&words);
    let said = tried?;
    removed?;
    Ok(said)
}

fn beside(stage: &Stage<'_>, nodes: &[Node]) -> Result<String> {
    for &node in nodes {
        stage.running.apply(&pod(node))?;
    }
    for &node in nodes {
        let to = SocketAddrV4::new(node.address(), 80);
        let right = format!("{HELLO} {}", name(node));
        stage.until(&format!("port 80 of {node}"), PATIENCE, || {
            let came = ask(to, &get(HOST, "/"), BOUND);
            Ok(came
                .is_ok_and(|came| came.body.starts_with(&right))
                .then_some(()))
        })?;
    }
    let own = nodes.iter().map(|&node| {
        let to = SocketAddrV4::new(node.address(), 80);
        Load::start(to, HOST, &format!("{HELLO} {}", name(node)))
    });
    let own: Vec<Load> = own.collect();
    let vip = Load::start(stage.vip(), HOST, &format!("{HELLO} v1"));
    stage.pause(BESIDE)?;
    let vip = vip.stop();
    vip.none_failed().context("the VIP")?;
    let mut said = format!("the VIP: {vip}");
    for (load, node) in own.into_iter().zip(nodes) {
        let tally = load.stop();
        tally.none_failed().with_context(|| node.to_string())?;
        said += &format!("; {node}:80 ({}): {tally}", node.proxy_mode());
    }
    Ok(said)
}

fn name(node: Node) -> String {
    format!("hostport-{node}")
}

/// Without `hostIP`: the network plugin's rules mean every local address, and the VIPs are local.
fn pod(node: Node) -> Value {
    let name = name(node);
    let mut container = container(&name);
    container["ports"] = json!([{"containerPort": 5678, "hostPort": 80}]);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeName": node.to_string(),
            "containers": [container],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ARP packet of its kind, from `sender` with the address.
    fn frame(kind: u8, sender: Mac, address: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0xff; 12];
        frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, kind]);
        frame.extend(sender);
        frame.extend(address);
        frame.extend([0; 10]);
        frame
    }

    #[test]
    fn only_replies_about_the_address_count() {
        let (mac, vip) = ([2, 0, 0, 0, 0, 1], Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(says(&frame(2, mac, vip.octets()), vip), Some(mac));
        assert_eq!(says(&frame(1, mac, vip.octets()), vip), None);
        assert_eq!(says(&frame(2, mac, [10, 0, 0, 2]), vip), None);
        assert_eq!(says(&frame(2, mac, vip.octets())[..30], vip), None);
    }
}
