//! What is there of a cluster, and how to reach it.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, SystemTime},
};

use super::{
    control,
    layout::{Name, Node, states},
    network, node, processes,
};

/// All clusters of which something is there.
pub(super) fn clusters() -> BTreeSet<Name> {
    let entries = fs::read_dir(states());
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Prints one cluster.
pub(super) fn print(cluster: &Name) {
    println!("cluster {cluster}{}", age(cluster));
    let daemons = processes::all(cluster);
    let dead = daemons.iter().filter(|daemon| !daemon.record.is_alive());
    for daemon in dead {
        let log = processes::log_of(cluster, &daemon.name);
        println!("  {} has ended: {}", daemon.name, log.display());
    }
    match control::kubectl(cluster, &["get", "nodes"]) {
        Ok(nodes) => print!("{}", table(&nodes)),
        Err(_) => println!("  the API server does not answer"),
    }
    println!("  kubectl     {}", cluster.kubectl().display());
    println!(
        "  kubeconfig  {}, in the hub: nsenter {}",
        cluster.kubeconfig().display(),
        network::enter(&cluster.hub()).join(" ")
    );
    for node in node::of_cluster(cluster) {
        if let Ok(words) = node::enter(cluster, node) {
            println!("  {node:<10}  nsenter {}", words.join(" "));
        }
    }
}

/// What `kubectl get nodes` says, and beside it what it does not know.
fn table(nodes: &str) -> String {
    let width = nodes.lines().map(str::len).max().unwrap_or_default();
    let line = |line: &str| {
        let number = line.split(' ').next().and_then(Node::parse);
        let more = number.map_or_else(
            || "ADDRESS       KUBE-PROXY".to_owned(),
            |node| format!("{:<13} {}", node.address().to_string(), node.proxy_mode()),
        );
        format!("  {line:<width$}   {more}\n")
    };
    nodes.lines().map(line).collect()
}

fn age(cluster: &Name) -> String {
    let made = fs::metadata(cluster.pki()).and_then(|found| found.created());
    made.ok()
        .and_then(|made| SystemTime::now().duration_since(made).ok())
        .map_or_else(String::new, |age| format!(", up for {}", readable(age)))
}

fn readable(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_s_line_says_which_proxy_it_has() {
        let nodes = "NAME    STATUS   ROLES    AGE   VERSION\n\
                     node1   Ready    <none>   22s   v1.37.2\n\
                     node2   Ready    <none>   22s   v1.37.2";
        assert_eq!(
            table(nodes),
            "  NAME    STATUS   ROLES    AGE   VERSION   ADDRESS       KUBE-PROXY\n  \
               node1   Ready    <none>   22s   v1.37.2   10.231.0.11   iptables\n  \
               node2   Ready    <none>   22s   v1.37.2   10.231.0.12   nftables\n"
        );
    }

    #[test]
    fn ages_are_read_at_a_glance() {
        let of = |seconds| readable(Duration::from_secs(seconds));
        assert_eq!(
            [of(7), of(119), of(120), of(7199), of(90_000)],
            ["7 s", "119 s", "2 min", "119 min", "25 h"]
        );
    }
}
