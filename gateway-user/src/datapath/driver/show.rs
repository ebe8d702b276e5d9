//! What the driver's tables say, for whoever looks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use gateway_common::abi::{NodeIndex, vip_flag};

use super::Driver;
use crate::datapath::Unset;
use crate::datapath::counts::Counts;
use crate::datapath::neighbours::ForwardMode;
use crate::datapath::status::{DatapathStatus, Forward, NodeStatus, ProbeStatus, VipStatus};
use crate::l4::address_of;
use crate::snapshot::Transport;

/// The addresses whose routes are there.
fn there(wanted: Option<&BTreeSet<IpAddr>>, unset: &Unset) -> Vec<IpAddr> {
    let wanted = wanted.into_iter().flatten().copied();
    wanted
        .filter(|address| !unset.contains_key(address))
        .collect()
}

impl Driver {
    /// What the datapath does right now.
    #[must_use]
    pub fn status(&self) -> DatapathStatus {
        let mut rows: BTreeMap<NodeIndex, u32> = BTreeMap::new();
        for row in &self.image.rows {
            *rows.entry(row.owner()).or_default() += 1;
        }
        let counts = Counts::of(&self.privileges.counters());
        DatapathStatus {
            interfaces: self.privileges.attachments().to_vec(),
            forward: self.forward,
            nodes: self.node_status(&rows, &counts),
            rows_in_transition: self.image.rows_in_transition(),
            draining: self.draining,
            proxy_alive: self.proxy_alive,
            vips: self.vip_status(&counts),
            announcing: self.announced.iter().copied().collect(),
            routes: there(self.routes.as_ref(), &self.unset),
            routed: self.planner.routed().into_iter().collect(),
            nat_shield: self.shield.clone(),
            exported: there(self.exported.as_ref(), &self.unexported),
            withheld: self.withheld(),
            shared: self
                .planner
                .vips()
                .addresses()
                .intersection(&self.planner.shared())
                .copied()
                .collect(),
            left_out: self
                .planner
                .left_out()
                .map(str::to_owned)
                .chain(self.refused.values().cloned())
                .chain(self.misnamed())
                .chain(self.unset.values().cloned())
                .chain(self.unexported.values().cloned())
                .collect(),
            counters: counts.reasons,
            last_apply: self.last_apply,
        }
    }

    fn node_status(&self, rows: &BTreeMap<NodeIndex, u32>, counts: &Counts) -> Vec<NodeStatus> {
        let link = self.link();
        let report = link.as_ref().map(|link| link.report()).unwrap_or_default();
        let heard = link.map_or(Duration::ZERO, |link| link.time(Instant::now()));
        let fingerprint = self.planner.fingerprint();
        self.planner
            .listed()
            .iter()
            .map(|node| {
                let reach = self
                    .reach
                    .get(&node.member.address)
                    .copied()
                    .unwrap_or_default();
                let peer = report.peers.get(&node.member.name);
                let forward = self.way(node.index);
                NodeStatus {
                    name: node.member.name.clone(),
                    address: node.member.address,
                    state: node.member.state,
                    weight: node.member.weight,
                    index: node.index,
                    rows: rows.get(&node.index).copied().unwrap_or_default(),
                    forward,
                    forward_why: self.why(node, forward),
                    path: self.path_report(node),
                    mac: reach.mac,
                    dead: node.member.dead,
                    episode: node.member.episode.is_some(),
                    packets: counts.of_node(node.index).into(),
                    probes: peer.map(|peer| ProbeStatus::of(peer, fingerprint, heard)),
                }
            })
            .collect()
    }

    /// As the table in the kernel says it.
    fn way(&self, index: NodeIndex) -> Forward {
        let flags = self.image.nodes[usize::from(index)].flags;
        Forward::of(flags, self.forward == ForwardMode::Udp)
    }

    fn vip_status(&self, counts: &Counts) -> Vec<VipStatus> {
        self.image
            .vips
            .values()
            .filter(|entry| entry.key.protocol != 0)
            .map(|entry| VipStatus {
                vip: format!(
                    "{}{}",
                    SocketAddr::new(
                        address_of(entry.key.address),
                        u16::from_be_bytes(entry.key.port),
                    ),
                    Transport::of_number(entry.key.protocol).map_or("", Transport::suffix)
                ),
                group: entry.group,
                draining: entry.flags & vip_flag::DRAINING != 0,
                packets: counts.of_vip(entry.number),
            })
            .collect()
    }
}
