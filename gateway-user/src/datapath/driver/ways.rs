//! What a driver does for `--forward auto`: asks by way of a MAC rewrite, and lets the tables say what came of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use gateway_common::abi::vip_flag;
use gateway_common::rendezvous::name_hash;

use super::Driver;
use crate::datapath::asking::PathQuestion;
use crate::datapath::neighbours::ForwardMode;
use crate::datapath::prober::Link;
use crate::datapath::status::{Forward, Why};
use crate::l4::address_of;
use crate::l4::liveness::Settings as ProbeTimes;
use crate::l4::paths::{PathReport, Paths, Standing, Target, key_of};
use crate::l4::tables::ListedNode;

impl Driver {
    /// From now on a path is only used once it is proven. With another mode than `auto` there is nothing to prove.
    pub(super) fn start_asking(&mut self, times: ProbeTimes, seed: u64) {
        if self.forward == ForwardMode::Auto {
            self.paths = Some(Paths::new(times.interval, seed));
            self.planner.set_proven(BTreeSet::new());
        }
    }

    /// Hears what was answered, asks what is due, and takes over what that changes.
    pub(super) fn ask_paths(&mut self, link: &Link, now: Instant) {
        let Some(mut paths) = self.paths.take() else {
            return;
        };
        // The prober's time, in which answers come.
        let time = link.time(now);
        for (answer, at) in link.take_path_answers() {
            paths.hear(&answer, at);
        }
        let report = link.report();
        let names = |hash: u64| {
            let is = |node: &&ListedNode| self.hash_of(node) == hash;
            let node = self.planner.listed().iter().find(is)?;
            report.peers.get(&node.member.name)?.heard_at
        };
        paths.advance(time, names);
        self.retarget(&mut paths, link, now);
        self.send_questions(&mut paths, link, now);
        for change in paths.take_changes() {
            let name = self.name_of(change.node);
            let (node, vip) = (change.node, change.vip);
            match change.to {
                Standing::NotAnswered => tracing::warn!(
                    name, %node, %vip,
                    "frames for a VIP do not reach this node by its MAC, although it is well: packets go to it by UDP"
                ),
                Standing::Asking => tracing::info!(
                    name, %node, %vip,
                    "this node is not heard: packets for it go by UDP until frames for VIPs are answered again"
                ),
                Standing::Proven => tracing::info!(
                    name, %node, %vip,
                    "frames for VIPs reach this node by its MAC: packets go to it by a MAC rewrite"
                ),
            }
        }
        self.dirty |= self.planner.set_proven(paths.proven().collect());
        self.paths = Some(paths);
    }

    /// Nodes and VIPs as the tables have them.
    fn retarget(&self, paths: &mut Paths, link: &Link, now: Instant) {
        let listed = self.planner.listed();
        let Some(own) = listed.iter().find(|node| node.own) else {
            return;
        };
        // Who is listed anew is in the table only after the next write, and an agent sends nothing to others.
        let written: BTreeSet<IpAddr> = self.image.others().collect();
        let others = listed
            .iter()
            .filter(|node| !node.own && written.contains(&node.member.address));
        let targets: Vec<Target> = others
            .filter_map(|node| {
                let address = node.member.address;
                let reach = self.planner.on_link(address)?;
                Some(Target {
                    name_hash: self.hash_of(node),
                    address,
                    way: (reach.mac, reach.ifindex),
                })
            })
            .collect();
        paths.set_peers(
            self.hash_of(own),
            own.member.address,
            &targets,
            link.time(now),
        );
        paths.set_vips(self.forwarded_vips());
    }

    /// Addresses of VIPs whose packets go to other nodes.
    fn forwarded_vips(&self) -> Vec<IpAddr> {
        const STAYING: u32 = vip_flag::LOCAL_ONLY | vip_flag::SHARED;
        let entries = self.image.vips.values();
        let forwarded = entries.filter(|vip| vip.key.protocol != 0 && vip.flags & STAYING == 0);
        let mut addresses: Vec<IpAddr> = forwarded.map(|vip| address_of(vip.key.address)).collect();
        // They come in the order of their keys.
        addresses.dedup();
        addresses
    }

    fn send_questions(&mut self, paths: &mut Paths, link: &Link, now: Instant) {
        let Some(reply_port) = link.reply_port() else {
            return;
        };
        let keys = self.planner.settings().probe_keys;
        let questions: Vec<PathQuestion> = (paths.ask(link.time(now)).iter())
            .map(|question| PathQuestion {
                node: question.node,
                vip: question.vip,
                reply_port,
                message: bytemuck::cast(question.probe.sign(key_of(question, keys))),
            })
            .collect();
        if questions.is_empty() {
            return;
        }
        if let Err(error) = self.privileges.ask_paths(&questions) {
            tracing::debug!(%error, "paths cannot be asked for");
            paths.withdraw(link.time(now));
        }
    }

    fn hash_of(&self, node: &ListedNode) -> u64 {
        name_hash(self.hash_key, &node.member.name)
    }

    fn name_of(&self, address: IpAddr) -> &str {
        let is = |node: &&ListedNode| node.member.address == address;
        let node = self.planner.listed().iter().find(is);
        node.map_or("", |node| node.member.name.as_str())
    }

    /// What is known of the path to a node, while paths are asked for.
    pub(super) fn path_report(&self, node: &ListedNode) -> Option<PathReport> {
        self.paths.as_ref()?.report(self.hash_of(node))
    }

    /// Why packets go to a node the way they do.
    pub(super) fn why(&self, node: &ListedNode, forward: Forward) -> Why {
        let address = node.member.address;
        match (forward, self.forward) {
            (Forward::Own | Forward::Unresolved, _) => Why::None,
            (_, ForwardMode::Udp | ForwardMode::L2) => Why::Forced,
            (Forward::Udp, _) if !self.reach.get(&address).is_some_and(|r| r.on_link) => {
                Why::NotOnLink
            }
            (Forward::Udp, _) if self.planner.on_link(address).is_none() => Why::SharedMac,
            _ => match (&self.paths, self.path_report(node)) {
                (None, _) => Why::NotAsked,
                (_, Some(report)) if report.standing == Standing::Proven => Why::Proven,
                (_, Some(report)) if report.standing == Standing::NotAnswered => Why::NotAnswered,
                (Some(paths), _) if !paths.has_vips() => Why::NoVip,
                _ => Why::Asking,
            },
        }
    }
}
