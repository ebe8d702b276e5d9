//! The desired tables: everything that the maps of this node should say, from snapshot, membership and reach.
//!
//! Same input, same tables. Nothing here knows which half is live, what is written already or how to write it.

mod frames;
mod nodes;
mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use gateway_common::abi::{
    ABI_VERSION, Config, MAX_NODES, NodeEntry, NodeIndex, Row, VipEntry, config, node_flag,
};
use gateway_common::hash::{Key, sip13};
use gateway_common::rendezvous::name_hash;

pub use self::frames::Frames;
pub use self::nodes::Reach;
pub use self::place::vip_half;
use super::diff::Image;
use super::index::Indices;
use super::liveness::Report;
use super::membership::{Absence, Member, Membership};
use super::ranks::{Ranked, Ranks, Standing, highest};
use super::sources::SourceTable;
use super::vips::Vips;
use super::{Time, abi_address, address_of};
use crate::snapshot::{BindKey, ObjectKey, ReplicaState, Snapshot};

/// What stays the same while the process runs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Key of flow hash, ranks and fingerprint, the same on all nodes.
    pub hash_key: Key,
    /// `--forward udp`: never by MAC rewrite.
    pub encapsulate_always: bool,
    /// `--tunnel-port`.
    pub tunnel_port: u16,
    /// `--probe-port`.
    pub probe_port: u16,
    /// Key of the probes, then the one before it; zero for none.
    pub probe_keys: [Key; 2],
    /// Ticks of the kernel per second, for the limits below.
    pub ticks_per_second: u32,
    /// `--drain-timeout`.
    pub drain_timeout: Duration,
}

/// Time without a heartbeat after which the kernel takes the local proxy for hung.
pub const BEAT_LIMIT: Duration = Duration::from_millis(300);

/// Window of the second-chance rate limit.
pub const WINDOW: Duration = Duration::from_millis(100);

/// Second-chance hops of one node in one window.
pub const HOP_LIMIT: u32 = 10_000;

/// SYNs that one CPU passes to listeners in one window; the kernel's own queue answers by cookies long before that, so this
/// is for floods of a size at which its way through the stack costs too much.
pub const SYN_LIMIT: u32 = 2_000;
/// "Too big" messages that one CPU sends in one window: as many as the kernel sends in all by default.
pub const TOO_BIG_LIMIT: u32 = 100;

/// One half of the VIP table, ready to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VipHalf {
    /// Seed of the slot hash under which every key lies near enough.
    pub seed: u32,
    /// Used slots in order.
    pub slots: Vec<(u32, VipEntry)>,
}

/// All tables.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Configuration, halves and seeds zeroed.
    pub config: Config,
    /// VIPs.
    pub vips: VipHalf,
    /// Nodes by index.
    pub nodes: Box<[NodeEntry]>,
    /// Rows.
    pub rows: Box<[Row]>,
    /// Prefixes of the lists of sources.
    pub sources: SourceTable,
}

/// A listed node for status pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedNode {
    /// Who.
    pub member: Member,
    /// Its index on this machine.
    pub index: NodeIndex,
    /// Whether this is the node itself.
    pub own: bool,
}

/// Keeps what tables are made of and makes them.
#[derive(Clone, Debug)]
pub struct Planner {
    settings: Settings,
    indices: Indices,
    membership: Membership,
    vips: Vips,
    ranks: Ranks,
    reach: BTreeMap<IpAddr, Reach>,
    own_reach: Reach,
    shared: BTreeSet<IpAddr>,
    frames: Frames,
    /// Nodes to which MACs may be rewritten if they are on our link; none: all of them.
    proven: Option<BTreeSet<IpAddr>>,
    /// The MAC that frames of the node with an index carried last, also when it is not listed any more.
    macs: BTreeMap<NodeIndex, [u8; 6]>,
    listed: Vec<ListedNode>,
    left_out: Vec<String>,
}

impl Planner {
    /// A planner that lists nobody yet.
    #[must_use]
    pub fn new(settings: Settings, own_name: &str, own_address: IpAddr) -> Self {
        Self {
            settings,
            indices: Indices::default(),
            membership: Membership::new(own_name, own_address, settings.drain_timeout),
            vips: Vips::new(settings.drain_timeout),
            ranks: Ranks::default(),
            reach: BTreeMap::new(),
            own_reach: Reach::default(),
            shared: BTreeSet::new(),
            frames: Frames::default(),
            proven: None,
            macs: BTreeMap::new(),
            listed: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Keeps the first `rows` rows alone: a model of many nodes needs no more.
    #[cfg(test)]
    pub(super) fn keep_rows(&mut self, rows: u32) {
        self.ranks = Ranks::of_first(rows);
    }

    /// Takes over the node indices of pinned tables, so that old rows never name a wrong machine.
    pub fn adopt(&mut self, image: &Image, now: Time) {
        for (index, entry) in (0..MAX_NODES as NodeIndex).zip(&image.nodes) {
            if entry.flags & node_flag::LISTED != 0 {
                self.indices.adopt(index, address_of(entry.address), now);
            }
            if let Some(mac) = entry.known_mac() {
                self.macs.insert(index, mac);
            }
        }
        self.vips.adopt_sources(&image.sources);
        self.vips.adopt_numbers(&image.vips);
    }

    /// Socket group of each Gateway; see [`Vips::groups`].
    pub fn groups(&mut self, snapshot: &Snapshot) -> BTreeMap<ObjectKey, u16> {
        self.vips.groups(snapshot)
    }

    /// Takes a snapshot.
    pub fn on_snapshot(&mut self, snapshot: &Snapshot, now: Time) {
        self.membership.update(&snapshot.replicas, now);
        self.vips.update(snapshot, now);
        self.relist(now);
    }

    /// This node's own decision to drain.
    pub fn set_draining(&mut self, draining: bool, now: Time) {
        self.membership.set_draining(draining, now);
        self.relist(now);
    }

    /// What the absence of a list of replicas means.
    pub fn set_absence(&mut self, absence: Absence) {
        self.membership.set_absence(absence);
    }

    /// From now on reports about the peers come.
    pub fn set_probing(&mut self) {
        self.membership.set_probing();
    }

    /// Takes what is known of the peers; true if the tables change.
    pub fn observe(&mut self, report: &Report, now: Time) -> bool {
        let changed = self.membership.observe(report, self.settings.hash_key, now);
        if changed {
            self.relist(now);
        }
        changed
    }

    /// The own proxy's heart stood still, and is about to beat again.
    pub fn after_gap(&mut self, now: Time) {
        self.membership.after_gap(now);
        self.relist(now);
    }

    /// Other keys of the probes.
    pub fn set_probe_keys(&mut self, keys: [Key; 2]) {
        self.settings.probe_keys = keys;
    }

    /// What stays the same while the process runs, the keys of the probes excepted.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The membership fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> u32 {
        self.membership.fingerprint(self.settings.hash_key)
    }

    /// The proxy's last socket of a VIP is gone.
    pub fn sockets_gone(&mut self, key: BindKey) {
        self.vips.sockets_gone(key);
    }

    /// Which frames are for this machine.
    pub fn set_frames(&mut self, frames: Frames) {
        self.frames = frames;
    }

    /// Addresses that are configured on an interface of this node.
    pub fn set_shared(&mut self, shared: BTreeSet<IpAddr>) {
        self.shared = shared;
    }

    /// Addresses that a machine has for itself: those configured here and those of the listed nodes. A VIP among them is served
    /// only by that machine; whoever else spoke for it, or had a route to it, would cut the node off.
    #[must_use]
    pub fn shared(&self) -> BTreeSet<IpAddr> {
        let nodes = self.listed.iter().map(|node| node.member.address);
        nodes.chain(self.shared.iter().copied()).collect()
    }

    /// When [`Self::handle_timeout`] will change something.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        [self.membership.poll_timeout(), self.vips.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Time) {
        self.membership.handle_timeout(now);
        self.vips.handle_timeout(now);
        self.relist(now);
    }

    /// The listed nodes in the order of their names.
    #[must_use]
    pub fn listed(&self) -> &[ListedNode] {
        &self.listed
    }

    /// The VIPs.
    #[must_use]
    pub fn vips(&self) -> &Vips {
        &self.vips
    }

    /// Nodes and VIPs that found no place, one sentence part each.
    pub fn left_out(&self) -> impl Iterator<Item = &str> {
        self.left_out
            .iter()
            .chain(self.vips.left_out())
            .map(String::as_str)
    }

    /// VIP addresses that this node speaks for: it has the highest rank of the ready nodes that are heard (if there is
    /// none, of those that drain, else open connections would lose their neighbour entry).
    #[must_use]
    pub fn announced(&self) -> BTreeSet<IpAddr> {
        let of_state = |state| -> BTreeMap<NodeIndex, Ranked> {
            self.listed
                .iter()
                .filter(|node| node.member.state == state)
                .filter(|node| !node.member.dead && !node.member.unheard)
                .map(|node| (node.index, self.ranked(&node.member)))
                .collect()
        };
        let mut speakers = of_state(ReplicaState::Ready);
        if speakers.is_empty() {
            speakers = of_state(ReplicaState::Draining);
        }
        let own = self.own().map_or(0, |node| node.index);
        let (routed, shared) = (self.vips.routed(), self.shared());
        self.vips
            .addresses()
            .into_iter()
            .filter(|address| !shared.contains(address) && !routed.contains(address))
            .filter(|address| {
                let row = sip13(self.settings.hash_key, &abi_address(*address)) as u32;
                own != 0 && highest(row, &speakers) == own
            })
            .collect()
    }

    /// Whether others may have acted in this node's place since they did not hear it.
    #[must_use]
    pub fn own_episode(&self) -> bool {
        self.own().is_some_and(|node| node.member.episode.is_some())
    }

    /// VIP addresses that need a local route here.
    #[must_use]
    pub fn routes(&self) -> BTreeSet<IpAddr> {
        let (mut addresses, shared) = (self.vips.addresses(), self.shared());
        addresses.retain(|address| !shared.contains(address));
        addresses
    }

    /// VIP addresses that no node announces.
    #[must_use]
    pub fn routed(&self) -> BTreeSet<IpAddr> {
        let (mut routed, shared) = (self.vips.routed(), self.shared());
        routed.retain(|address| !shared.contains(address));
        routed
    }

    /// Why routers are not to send packets for [`Self::routed`] here, if so: a node that is not ready would only pass
    /// them on, and one that drains is about to go.
    #[must_use]
    pub fn unfit_for_routers(&self) -> Option<&'static str> {
        match self.own().map(|node| &node.member) {
            None => Some("this node is not listed"),
            Some(own) if own.dead => Some("the other nodes hold this one for dead"),
            Some(own) => match own.state {
                ReplicaState::Ready => None,
                ReplicaState::Joining => Some("this node is not ready yet"),
                ReplicaState::Draining => Some("this node drains"),
            },
        }
    }

    /// The tables as they should be now.
    pub fn desired(&mut self) -> Desired {
        let alive = || self.listed.iter().filter(|node| !node.member.dead);
        let nodes: BTreeMap<NodeIndex, Ranked> = alive()
            .map(|node| (node.index, self.ranked(&node.member)))
            .collect();
        let standing = alive()
            .map(|node| (node.index, Standing::of(&node.member)))
            .collect();
        self.ranks.update(&nodes);
        self.note_macs();
        let entries = self.vips.entries(&self.announced(), &self.shared());
        Desired {
            config: self.config(),
            vips: vip_half(&entries),
            sources: self.vips.sources().clone(),
            nodes: self.node_table(),
            rows: self
                .ranks
                .rows(&standing, self.membership.all_in_transition()),
        }
    }

    fn relist(&mut self, now: Time) {
        let addresses = self
            .membership
            .members()
            .map(|m| (m.name.clone(), m.address))
            .collect();
        let (indices, left_out) = self.indices.assign(&addresses, now);
        let own_name = self.membership.own_name();
        self.listed = self
            .membership
            .members()
            .filter_map(|member| {
                Some(ListedNode {
                    index: *indices.get(&member.name)?,
                    own: member.name == own_name,
                    member: member.clone(),
                })
            })
            .collect();
        self.left_out = left_out
            .into_iter()
            .map(|name| {
                format!(
                    "node {name} is beyond the {} entries of the node table",
                    MAX_NODES - 1
                )
            })
            .collect();
    }

    fn own(&self) -> Option<&ListedNode> {
        self.listed.iter().find(|node| node.own)
    }

    fn ranked(&self, member: &Member) -> Ranked {
        Ranked {
            name_hash: name_hash(self.settings.hash_key, &member.name),
            weight: member.weight,
        }
    }

    fn config(&self) -> Config {
        let settings = &self.settings;
        let own = self.own();
        let ticks = |time: Duration| {
            let ticks = time.as_millis() * u128::from(settings.ticks_per_second) / 1000;
            u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
        };
        let mut flags = 0;
        if settings.encapsulate_always {
            flags |= config::flag::ENCAP_ALWAYS;
        }
        if self.membership.draining() {
            flags |= config::flag::DRAINING;
        }
        let mut config = Config {
            abi_version: ABI_VERSION,
            self_index: own.map_or(0, |node| u32::from(node.index)),
            fingerprint: self.fingerprint(),
            flags,
            tunnel_port: settings.tunnel_port.to_be_bytes(),
            probe_port: settings.probe_port.to_be_bytes(),
            probe_key: settings.probe_keys[0],
            probe_key_previous: settings.probe_keys[1],
            beat_limit_jiffies: ticks(BEAT_LIMIT),
            hop_limit: HOP_LIMIT,
            syn_limit: SYN_LIMIT,
            too_big_limit: TOO_BIG_LIMIT,
            window_jiffies: ticks(WINDOW),
            hash_key: settings.hash_key,
            tunnel_source: own.map_or([0; 16], |node| abi_address(node.member.address)),
            ..Config::default()
        };
        self.frames.write(&mut config);
        config
    }
}

#[cfg(test)]
mod tests {
    use gateway_common::abi::{VIP_PROBES, VIP_SLOTS, VipKey, vip_flag};
    use gateway_common::hash::vip_slot;

    use super::*;
    use crate::l4::liveness::{PeerReport, Standing};
    use crate::l4::vips::Vip;
    use crate::snapshot::{ObjectKey, Replica, Transport};

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    /// Node `own` of four that are ready, with VIPs 10.9.0.1 to .16.
    fn planner(own: u8) -> Planner {
        let settings = Settings {
            hash_key: [1, 2],
            encapsulate_always: false,
            tunnel_port: 17410,
            probe_port: 17411,
            probe_keys: [[5, 6], [0, 0]],
            ticks_per_second: 250,
            drain_timeout: Duration::from_secs(60),
        };
        let mut planner = Planner::new(settings, &format!("n{own}"), address(own));
        planner.on_snapshot(&snapshot(&[1, 2, 3, 4]), Duration::ZERO);
        planner
    }

    /// Four nodes of which these are ready, and the VIPs.
    fn snapshot(ready: &[u8]) -> Snapshot {
        let replicas = (1..=4).map(|n| Replica {
            name: format!("n{n}"),
            address: address(n),
            state: match ready.contains(&n) {
                true => ReplicaState::Ready,
                false => ReplicaState::Joining,
            },
            weight: 1,
        });
        let vips = (1..=16).map(|n| IpAddr::from([10, 9, 0, n]));
        Snapshot {
            replicas: replicas.collect(),
            addresses: vips.map(|vip| (vip, ObjectKey::new("a", "b"))).collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn one_node_speaks_for_each_vip_also_when_one_of_them_is_not_heard() {
        let all = |speakers: &[Planner]| -> Vec<IpAddr> {
            let said = speakers.iter().flat_map(Planner::announced);
            let mut said: Vec<_> = said.collect();
            said.sort_unstable();
            said
        };
        let mut planners: Vec<_> = (1..=4).map(planner).collect();
        let vips: Vec<_> = (1..=16).map(|n| IpAddr::from([10, 9, 0, n])).collect();
        assert_eq!(all(&planners), vips);
        let gone = planners.remove(2);
        assert!(!gone.announced().is_empty(), "of 16 VIPs it has some");
        for planner in &mut planners {
            let suspect = PeerReport {
                standing: Standing::Suspect,
                known: true,
                ..PeerReport::default()
            };
            let report = Report {
                peers: [("n3".to_owned(), suspect)].into(),
                ..Report::default()
            };
            planner.membership.set_probing();
            assert!(planner.observe(&report, Duration::from_secs(5)));
        }
        assert_eq!(all(&planners), vips);
    }

    /// Who speaks for a VIP follows from who is ready, and from nothing that went before.
    #[test]
    fn after_all_nodes_have_started_together_the_vips_are_spread_as_ever() {
        let before: Vec<_> = (1..=4).map(|own| planner(own).announced()).collect();
        let shares: Vec<usize> = before.iter().map(BTreeSet::len).collect();
        assert!(
            shares.iter().all(|share| (1..=8).contains(share)),
            "{shares:?}"
        );
        for first in 0..4 {
            let mut planners: Vec<_> = (1..=4).map(planner).collect();
            let mut now = Duration::from_secs(100);
            let mut ready = Vec::new();
            for n in 0..=4 {
                if n > 0 {
                    ready.push((first + n) % 4 + 1);
                }
                // Longer than anybody waits for agreement, whether to be ready or not to be.
                for _ in 0..2 {
                    now += Duration::from_secs(5);
                    for planner in &mut planners {
                        planner.membership.set_probing();
                        planner.handle_timeout(now);
                        planner.on_snapshot(&snapshot(&ready), now);
                        planner.handle_timeout(now + Duration::from_secs(4));
                    }
                }
                let said = planners.iter().map(|planner| planner.announced().len());
                let wanted = if n == 0 { 0 } else { 16 };
                assert_eq!(said.sum::<usize>(), wanted, "{ready:?} are ready");
            }
            let after: Vec<_> = planners.iter().map(Planner::announced).collect();
            assert_eq!(after, before, "in the order {ready:?}");
        }
    }

    #[test]
    fn the_address_of_a_node_is_nobody_elses_vip() {
        for own in 1..=4 {
            let mut planner = planner(own);
            let mut snapshot = Snapshot {
                replicas: planner
                    .listed()
                    .iter()
                    .map(|node| Replica {
                        name: node.member.name.clone(),
                        address: node.member.address,
                        state: ReplicaState::Ready,
                        weight: 1,
                    })
                    .collect(),
                ..Snapshot::default()
            };
            let vips = (1..=8).map(|n| (address(n), ObjectKey::new("a", "b")));
            snapshot.addresses = vips.collect();
            planner.on_snapshot(&snapshot, Duration::ZERO);
            let others: BTreeSet<IpAddr> = (5..=8).map(address).collect();
            assert_eq!(planner.routes(), others, "node {own}");
            assert!(planner.announced().is_subset(&others), "node {own}");
            for entry in planner.desired().vips.slots.iter().map(|(_, entry)| entry) {
                let shared = entry.flags & vip_flag::SHARED != 0;
                assert_eq!(shared, entry.key.address[15] <= 4, "{entry:?}");
            }
        }
    }

    #[test]
    fn a_mac_that_several_nodes_answer_with_is_no_way_to_any() {
        let mut planner = planner(1);
        let reach = |mac: u8| Reach {
            mac: [2, 0, 0, 0, 0, mac],
            on_link: true,
            resolved: true,
            ..Reach::default()
        };
        planner.set_reach(
            [
                (address(2), reach(7)),
                (address(3), reach(7)),
                (address(4), reach(8)),
            ]
            .into(),
        );
        let nodes = planner.desired().nodes;
        let on_link: Vec<bool> = (1..=4)
            .map(|i: usize| nodes[i].flags & node_flag::ON_LINK != 0)
            .collect();
        assert_eq!(on_link, [false, false, false, true]);
    }

    fn keys(count: u32) -> BTreeMap<VipKey, Vip> {
        let vip = Vip {
            flags: vip_flag::USED,
            group: 0,
            number: 0,
            sources: 0,
        };
        (0..count)
            .map(|i| {
                let address = IpAddr::from((0x0a09_0000 + i / 4).to_be_bytes());
                let key = BindKey {
                    transport: Transport::Tcp,
                    address,
                    port: [80, 443, 8080, 15021][(i % 4) as usize],
                };
                (super::super::vips::port_key(key), vip)
            })
            .collect()
    }

    #[test]
    fn every_key_of_a_full_table_lies_within_the_probes() {
        for count in [0, 1, 100, super::super::vips::MAX_VIPS as u32] {
            let entries = keys(count);
            let half = vip_half(&entries);
            assert_eq!(half.slots.len(), entries.len(), "{count} entries");
            let slots: BTreeMap<u32, VipEntry> = half.slots.iter().copied().collect();
            assert_eq!(slots.len(), entries.len());
            for key in entries.keys() {
                let home = vip_slot(key, half.seed);
                let found = (0..VIP_PROBES)
                    .map_while(|i| slots.get(&((home + i) % VIP_SLOTS)))
                    .any(|entry| entry.key == *key);
                assert!(found, "{key:?} is not found from slot {home}");
            }
        }
    }
}
