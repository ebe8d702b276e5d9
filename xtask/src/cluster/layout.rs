//! Names, addresses and places of one cluster; all follow from its name and the number of a node.

use std::{net::Ipv4Addr, path::PathBuf, str::FromStr};

use anyhow::{Result, ensure};

/// Below it each cluster has a folder.
const STATE: &str = "/var/lib/forebay-cluster";
/// Where `ip netns` keeps its names.
const NAMESPACES: &str = "/run/netns";
/// Longest name of a cluster.
const LONGEST: usize = 16;

/// Most nodes of a cluster.
pub(super) const MOST_NODES: u8 = 9;
/// Address of the hub, where the control plane listens.
pub(super) const HUB: Ipv4Addr = Ipv4Addr::new(10, 231, 0, 1);
/// Addresses of hub and nodes.
pub(super) const NODES: &str = "10.231.0.0/24";
/// Addresses of Services.
pub(super) const SERVICES: &str = "10.233.0.0/16";
/// The API server's address as a Service.
pub(super) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 233, 0, 1);

/// The name of a cluster: a few small letters and digits, so that no cluster's name begins another's places.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(String);

/// Node 1, 2, 3…
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node(pub(super) u8);

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        ensure!(
            (1..=LONGEST).contains(&text.len()) && text.bytes().all(is_fine),
            "the name of a cluster is 1 to {LONGEST} small letters and digits"
        );
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Name {
    /// The folder with everything of this cluster.
    pub(super) fn state(&self) -> PathBuf {
        states().join(&self.0)
    }

    /// Held while a command changes the cluster.
    pub(super) fn lock(&self) -> PathBuf {
        states().join(format!("{self}.lock"))
    }

    pub(super) fn pki(&self) -> PathBuf {
        self.state().join("pki")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.state().join("log")
    }

    pub(super) fn records(&self) -> PathBuf {
        self.state().join("processes")
    }

    /// The administrator's.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.state().join("kubeconfig")
    }

    /// `kubectl` in the hub, with the administrator's rights.
    pub(super) fn kubectl(&self) -> PathBuf {
        self.state().join("kubectl")
    }

    /// The folder of a node.
    pub(super) fn of(&self, node: Node) -> PathBuf {
        self.state().join(node.to_string())
    }

    /// Begins the names of all network namespaces of this cluster.
    pub(super) fn prefix(&self) -> String {
        format!("fbc-{self}-")
    }

    pub(super) fn hub(&self) -> String {
        self.prefix() + "hub"
    }

    pub(super) fn namespace(&self, node: Node) -> String {
        format!("{}{node}", self.prefix())
    }

    /// Name of the cgroup that holds all processes of this cluster.
    pub(super) fn cgroup(&self) -> String {
        format!("forebay-cluster-{self}")
    }
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("node{}", self.0))
    }
}

impl Node {
    pub(super) fn all(count: u8) -> impl Iterator<Item = Self> {
        (1..=count).map(Self)
    }

    /// The node of that name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let number = name.strip_prefix("node")?.parse().ok()?;
        (1..=MOST_NODES).contains(&number).then_some(Self(number))
    }

    pub(super) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 231, 0, 10 + self.0)
    }

    /// Addresses of the pods on this node.
    pub(super) fn pods(self) -> String {
        format!("10.232.{}.0/24", self.0)
    }

    /// The first node's kube-proxy writes iptables rules, the others' write nftables.
    pub(super) fn proxy_mode(self) -> &'static str {
        if self.0 == 1 { "iptables" } else { "nftables" }
    }
}

/// Where a network namespace's name is.
pub(super) fn namespace_file(namespace: &str) -> PathBuf {
    namespaces().join(namespace)
}

pub(super) fn namespaces() -> PathBuf {
    NAMESPACES.into()
}

pub(super) fn states() -> PathBuf {
    STATE.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for name in ["dev", "a1", "0123456789abcdef"] {
            assert_eq!(name.parse::<Name>().unwrap().to_string(), name);
        }
        for name in ["", "a-b", "../a", "A", "0123456789abcdefg"] {
            assert!(name.parse::<Name>().is_err(), "{name}");
        }
    }

    #[test]
    fn no_cluster_s_namespaces_begin_like_another_s() {
        let (a, ab): (Name, Name) = ("a".parse().unwrap(), "ab".parse().unwrap());
        assert!(!ab.namespace(Node(1)).starts_with(&a.prefix()));
        assert_eq!(a.namespace(Node(1)), "fbc-a-node1");
    }

    #[test]
    fn nodes_have_addresses_of_their_own() {
        assert_eq!(Node(3).address(), Ipv4Addr::new(10, 231, 0, 13));
        assert_eq!(Node(3).pods(), "10.232.3.0/24");
    }
}
