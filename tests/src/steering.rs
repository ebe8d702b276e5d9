//! Which node should own a connection: computed from `gateway-common` alone, without asking any node.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use gateway_common::{
    abi::{NodeIndex, ROWS},
    hash::{Key, flow_v4, row_of},
    rendezvous::{RankedNode, name_hash, rank},
};

const TCP: u8 = 6;

/// Local ports that the client binds itself: below the kernel's own range.
const OWN_PORTS: std::ops::Range<u16> = 10_000..32_000;

/// The listed nodes and the cluster's key.
#[derive(Clone, Debug)]
pub struct Steering {
    key: Key,
    names: Vec<String>,
    nodes: Vec<RankedNode>,
}

impl Steering {
    /// Listed nodes with whether they are ready, under the seed of Secret `forebay-keys`.
    #[must_use]
    pub fn new(
        seed: [u8; 16],
        members: impl IntoIterator<Item = (impl Into<String>, bool)>,
    ) -> Self {
        let key = key_of(seed);
        let mut steering = Self {
            key,
            names: Vec::new(),
            nodes: Vec::new(),
        };
        for (index, (name, ready)) in (1..).zip(members) {
            let name = name.into();
            steering.nodes.push(RankedNode {
                index,
                name_hash: name_hash(key, &name),
                weight: 1,
                ready,
            });
            steering.names.push(name);
        }
        steering
    }

    /// The node that owns the TCP connection from `client` to `vip`; `None` if no node is ready.
    #[must_use]
    pub fn owner(&self, client: SocketAddrV4, vip: SocketAddrV4) -> Option<&str> {
        let [a, b] = client.port().to_be_bytes();
        let [c, d] = vip.port().to_be_bytes();
        let flow = flow_v4(
            self.key,
            client.ip().octets(),
            vip.ip().octets(),
            [a, b, c, d],
            TCP,
        );
        let owner = rank(row_of(flow), &self.nodes, false).owner();
        self.name(owner)
    }

    fn name(&self, index: NodeIndex) -> Option<&str> {
        let name = self.names.get(usize::from(index).checked_sub(1)?)?;
        Some(name)
    }

    /// Rows of every listed node.
    #[must_use]
    pub fn shares(&self) -> BTreeMap<String, usize> {
        let mut shares: BTreeMap<String, usize> =
            self.names.iter().map(|name| (name.clone(), 0)).collect();
        for row in 0..ROWS {
            let owner = rank(row, &self.nodes, false).owner();
            if let Some(name) = self.name(owner) {
                *shares.entry(name.to_owned()).or_default() += 1;
            }
        }
        shares
    }

    /// Local ports from which connections to `vip` belong to `node`, in rising order.
    #[must_use]
    pub fn ports_of(&self, node: &str, client: Ipv4Addr, vip: SocketAddrV4) -> Vec<u16> {
        let owned = |port: &u16| self.owner(SocketAddrV4::new(client, *port), vip) == Some(node);
        OWN_PORTS.filter(owned).collect()
    }
}

/// SipHash takes its key as two words, lowest byte first.
fn key_of(seed: [u8; 16]) -> Key {
    let word = |from: usize| u64::from_le_bytes(std::array::from_fn(|i| seed[from + i]));
    [word(0), word(8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 100), 80);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    #[test]
    fn every_port_has_one_owner_and_shares_are_about_equal() {
        let steering = Steering::new([7; 16], [("node1", true), ("node2", true), ("node3", true)]);
        let shares: Vec<usize> = ["node1", "node2", "node3"]
            .iter()
            .map(|node| steering.ports_of(node, CLIENT, VIP).len())
            .collect();
        assert_eq!(shares.iter().sum::<usize>(), OWN_PORTS.len());
        assert!(
            shares.iter().all(|share| (7_000..7_700).contains(share)),
            "{shares:?}"
        );
    }

    #[test]
    fn a_node_that_is_not_ready_owns_nothing() {
        let steering = Steering::new([7; 16], [("node1", false), ("node2", true)]);
        assert_eq!(steering.ports_of("node1", CLIENT, VIP), [0; 0]);
        let none = Steering::new([7; 16], [("node1", false)]);
        assert_eq!(none.owner(SocketAddrV4::new(CLIENT, 10_000), VIP), None);
    }
}
