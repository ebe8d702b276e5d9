//! Network namespaces of a cluster: a hub with a bridge, and a node on each of its ports.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use super::layout::{HUB, Name, Node, namespace_file, namespaces};
use crate::cmd;

/// Makes them all and joins them.
pub(super) fn make(cluster: &Name, nodes: u8) -> Result<()> {
    for namespace in wanted(cluster, nodes) {
        cmd::output(Command::new("ip").args(["netns", "add", &namespace]))?;
    }
    batch(cluster, &cluster.hub(), &hub(cluster, nodes))?;
    for node in Node::all(nodes) {
        batch(cluster, &cluster.namespace(node), &of_node(node, nodes))?;
    }
    for namespace in wanted(cluster, nodes) {
        let mut forward = inside(&namespace);
        forward.args(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        cmd::output(&mut forward)?;
    }
    Ok(())
}

fn wanted(cluster: &Name, nodes: u8) -> Vec<String> {
    let mut all = vec![cluster.hub()];
    all.extend(Node::all(nodes).map(|node| cluster.namespace(node)));
    all
}

/// `ip` commands for the hub: every namespace is one of ours, so that no interface is ever the host's.
fn hub(cluster: &Name, nodes: u8) -> String {
    let mut text = format!(
        "link set lo up\nlink add br0 type bridge\naddr add {HUB}/24 dev br0\nlink set br0 up\n"
    );
    for node in Node::all(nodes) {
        text += &format!(
            "link add {node} type veth peer name eth0 netns {}\n\
             link set {node} master br0 up\nroute add {} via {}\n",
            cluster.namespace(node),
            node.pods(),
            node.address()
        );
    }
    text
}

fn of_node(node: Node, nodes: u8) -> String {
    let mut text = format!(
        "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {HUB}\n",
        node.address()
    );
    for other in Node::all(nodes).filter(|&other| other != node) {
        text += &format!("route add {} via {}\n", other.pods(), other.address());
    }
    text
}

fn batch(cluster: &Name, namespace: &str, text: &str) -> Result<()> {
    let path = cluster.state().join("ip.batch");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let mut ip = Command::new("ip");
    cmd::output(ip.args(["-n", namespace, "-batch"]).arg(&path)).map(drop)
}

/// A command in a network namespace; not by `ip netns exec`, which would hide the cgroups.
pub(super) fn inside(namespace: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(enter(namespace));
    command
}

/// Words that take `nsenter` into a network namespace.
pub(super) fn enter(namespace: &str) -> Vec<String> {
    vec![format!("--net={}", namespace_file(namespace).display())]
}

/// The namespaces of this cluster that there are.
pub(super) fn existing(cluster: &Name) -> Vec<String> {
    let Ok(entries) = fs::read_dir(namespaces()) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&cluster.prefix()))
        .collect()
}

/// Removes them with all their interfaces.
pub(super) fn remove(cluster: &Name) -> Result<usize> {
    let found = existing(cluster);
    for namespace in &found {
        cmd::output(Command::new("ip").args(["netns", "delete", namespace]))?;
    }
    Ok(found.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_has_a_port_and_a_route_for_each_node() {
        let text = hub(&"dev".parse().unwrap(), 2);
        assert_eq!(
            text,
            "link set lo up\nlink add br0 type bridge\naddr add 10.231.0.1/24 dev br0\nlink set br0 up\n\
             link add node1 type veth peer name eth0 netns fbc-dev-node1\n\
             link set node1 master br0 up\nroute add 10.232.1.0/24 via 10.231.0.11\n\
             link add node2 type veth peer name eth0 netns fbc-dev-node2\n\
             link set node2 master br0 up\nroute add 10.232.2.0/24 via 10.231.0.12\n"
        );
    }

    #[test]
    fn a_node_reaches_the_pods_of_the_others() {
        assert_eq!(
            of_node(Node(2), 3),
            "link set lo up\naddr add 10.231.0.12/24 dev eth0\nlink set eth0 up\n\
             route add default via 10.231.0.1\nroute add 10.232.1.0/24 via 10.231.0.11\n\
             route add 10.232.3.0/24 via 10.231.0.13\n"
        );
    }
}
