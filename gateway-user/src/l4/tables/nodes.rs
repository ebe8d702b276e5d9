//! The table of nodes, and how they are reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gateway_common::abi::{MAX_NODES, NodeEntry, node_flag};
use serde::{Deserialize, Serialize};

use super::Planner;
use crate::l4::abi_address;
use crate::snapshot::ReplicaState;

/// How a node is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Its MAC, or that of the next hop.
    pub mac: [u8; 6],
    /// MAC of our interface toward it.
    pub source_mac: [u8; 6],
    /// Our interface toward it.
    pub ifindex: u32,
    /// MTU of that interface, 0 if not known.
    pub mtu: u32,
    /// VLAN in which the node is, if that interface carries several; 0: untagged.
    pub vlan: u16,
    /// Forward by MAC rewrite (the node itself is on our link and the forward mode allows it).
    pub on_link: bool,
    /// MACs and interface are known.
    pub resolved: bool,
}

impl Planner {
    /// How nodes are reached, by node address.
    pub fn set_reach(&mut self, reach: BTreeMap<IpAddr, Reach>) {
        self.reach = reach;
    }

    /// From now on MACs are only rewritten toward nodes for which that is known to work. True if the tables change.
    pub fn set_proven(&mut self, proven: BTreeSet<IpAddr>) -> bool {
        let changed = self.proven.as_ref() != Some(&proven);
        self.proven = Some(proven);
        changed
    }

    /// How a node is reached, if frames for it reach it and nobody else: it is on our link and has a MAC of its own.
    #[must_use]
    pub fn on_link(&self, node: IpAddr) -> Option<Reach> {
        let reach = self
            .reach
            .get(&node)
            .filter(|reach| reach.resolved && reach.on_link)?;
        (!self.shared_macs().contains(&reach.mac)).then_some(*reach)
    }

    /// MAC and index of the uplink: in the own entry they are what ARP answers carry.
    pub fn set_own_reach(&mut self, reach: Reach) {
        self.own_reach = reach;
    }

    /// MACs that more than one listed node answers with: a router or a fabric speaks for them all, and a frame
    /// for it does not reach the node that was meant.
    fn shared_macs(&self) -> BTreeSet<[u8; 6]> {
        let mut seen = BTreeSet::new();
        let others = self.listed.iter().filter(|node| !node.own);
        others
            .filter_map(|node| self.reach.get(&node.member.address))
            .filter(|reach| reach.resolved && !seen.insert(reach.mac))
            .map(|reach| reach.mac)
            .collect()
    }

    /// Remembers whose frames carry which MAC.
    pub(super) fn note_macs(&mut self) {
        let others = self.listed.iter().filter(|node| !node.own);
        let known: Vec<_> = others
            .filter_map(|node| Some((node.index, self.on_link(node.member.address)?.mac)))
            .collect();
        self.macs.extend(known);
    }

    pub(super) fn node_table(&self) -> Box<[NodeEntry]> {
        let shared_macs = self.shared_macs();
        let mut table = vec![NodeEntry::default(); MAX_NODES as usize].into_boxed_slice();
        for (index, mac) in &self.macs {
            table[usize::from(*index)] = NodeEntry {
                mac: *mac,
                flags: node_flag::MAC_KNOWN,
                ..NodeEntry::default()
            };
        }
        for node in &self.listed {
            let reach = if node.own {
                self.own_reach
            } else {
                let known = self.reach.get(&node.member.address);
                known.copied().unwrap_or_default()
            };
            let flag = |set: bool, flag: u32| if set { flag } else { 0 };
            let on_link = reach.on_link && !shared_macs.contains(&reach.mac);
            let unproven =
                (self.proven.as_ref()).is_some_and(|proven| !proven.contains(&node.member.address));
            // A dead node stays listed: its probes are answered, and its packets taken.
            let is = |state| node.member.state == state && !node.member.dead;
            // Who is not resolved just now may send all the same.
            let known = self.macs.get(&node.index).filter(|_| !reach.resolved);
            table[usize::from(node.index)] = NodeEntry {
                address: abi_address(node.member.address),
                mac: known.copied().unwrap_or(reach.mac),
                source_mac: reach.source_mac,
                ifindex: reach.ifindex,
                mtu: u16::try_from(reach.mtu).unwrap_or(0),
                vlan: reach.vlan,
                flags: node_flag::LISTED
                    | flag(is(ReplicaState::Ready), node_flag::READY)
                    | flag(is(ReplicaState::Draining), node_flag::DRAINING)
                    | flag(on_link, node_flag::ON_LINK)
                    | flag(on_link && unproven, node_flag::ENCAPSULATE)
                    | flag(reach.resolved, node_flag::RESOLVED)
                    | flag(known.is_some(), node_flag::MAC_KNOWN)
                    | flag(node.own, node_flag::SELF),
                ..NodeEntry::default()
            };
        }
        table
    }
}
