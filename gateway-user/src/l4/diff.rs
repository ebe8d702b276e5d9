//! From what the maps say to what they should say: ordered operations that are safe at every step.
//!
//! Make before break: a node is in the table before a row names it and leaves it after the last row that did;
//! draining starts before and ends after the rows change; VIPs come last, so that no packet meets a VIP whose
//! rows are not written. What changes together sits in one operation (a half that is built aside and flipped);
//! rows are single stores.

use std::collections::BTreeMap;
use std::net::IpAddr;

use gateway_common::abi::{
    Config, MAX_NODES, NodeEntry, NodeIndex, ROWS, Row, SourceKey, VipEntry, VipKey,
};
use gateway_common::abi::{config, node_flag};

use super::address_of;
use super::sources::SourceTable;
use super::tables::{Desired, VipHalf};

/// One change of the maps.
#[derive(Clone, Debug, PartialEq)]
pub enum MapOp {
    /// Words of the configuration; the halves and seeds in it are the writer's and are not looked at.
    Config(Config),
    /// A whole node table, by index: written into the resting half, then flipped.
    Nodes(Box<[NodeEntry]>),
    /// These nodes are not listed any more: one store each, in the live half.
    UnlistNodes(Vec<NodeIndex>),
    /// A whole VIP table: written into the resting half, then flipped together with its seed.
    Vips(VipHalf),
    /// Rows, one aligned store each.
    Rows(Vec<(u32, Row)>),
    /// Prefixes of lists of sources: bits that count, key, and what they say; none if they go.
    Sources(Vec<(u32, SourceKey, Option<u32>)>),
}

/// What the maps say: the live halves.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Configuration, halves and seeds zeroed.
    pub config: Config,
    /// Node table by index.
    pub nodes: Box<[NodeEntry]>,
    /// VIP entries by key.
    pub vips: BTreeMap<VipKey, VipEntry>,
    /// Rows.
    pub rows: Box<[Row]>,
    /// Prefixes of the lists of sources.
    pub sources: SourceTable,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            config: Config::default(),
            nodes: vec![NodeEntry::default(); MAX_NODES as usize].into_boxed_slice(),
            vips: BTreeMap::new(),
            rows: vec![Row::default(); ROWS as usize].into_boxed_slice(),
            sources: SourceTable::new(),
        }
    }
}

impl Image {
    /// Addresses of the listed nodes other than this one.
    pub fn others(&self) -> impl Iterator<Item = IpAddr> {
        let listed = |node: &&NodeEntry| {
            node.flags & (node_flag::LISTED | node_flag::SELF) == node_flag::LISTED
        };
        self.nodes
            .iter()
            .filter(listed)
            .map(|node| address_of(node.address))
    }

    /// What the maps say after `op`.
    pub fn apply(&mut self, op: &MapOp) {
        match op {
            MapOp::Config(config) => self.config = without_halves(*config),
            MapOp::Nodes(nodes) => self.nodes.clone_from(nodes),
            MapOp::UnlistNodes(indices) => {
                for index in indices {
                    if let Some(entry) = self.nodes.get_mut(usize::from(*index)) {
                        *entry = entry.unlisted();
                    }
                }
            }
            MapOp::Vips(half) => {
                self.vips = half
                    .slots
                    .iter()
                    .map(|(_, entry)| (entry.key, *entry))
                    .collect();
            }
            MapOp::Sources(prefixes) => {
                for (bits, key, says) in prefixes {
                    match says {
                        Some(says) => self.sources.insert((*bits, *key), *says),
                        None => self.sources.remove(&(*bits, *key)),
                    };
                }
            }
            MapOp::Rows(rows) => {
                for (index, row) in rows {
                    if let Some(place) = self.rows.get_mut(*index as usize) {
                        *place = *row;
                    }
                }
            }
        }
    }

    /// Rows that are in transition.
    #[must_use]
    pub fn rows_in_transition(&self) -> u32 {
        self.rows
            .iter()
            .map(|row| u32::from(row.in_transition()))
            .sum()
    }
}

/// `config` without the words that belong to the writer.
#[must_use]
pub fn without_halves(mut config: Config) -> Config {
    config.vip_half = 0;
    config.node_half = 0;
    config.vip_seed = [0; 2];
    // Whether somebody traces is no table's business.
    config.trace = 0;
    config
}

/// The operations that lead from `applied` to `desired`, none if they are equal.
#[must_use]
pub fn diff(applied: &Image, desired: &Desired) -> Vec<MapOp> {
    let mut ops = Vec::new();
    let mut config = applied.config;
    if desired.config.flags & !config.flags & config::flag::DRAINING != 0 {
        config.flags |= config::flag::DRAINING;
        ops.push(MapOp::Config(config));
    }
    let rows: Vec<(u32, Row)> = (0..ROWS)
        .zip(&desired.rows)
        .filter(|(index, row)| applied.rows.get(*index as usize) != Some(row))
        .map(|(index, row)| (index, *row))
        .collect();
    // As long as old rows are there, whom they name stays listed.
    let leaving = leaving(applied, desired);
    let mut union = desired.nodes.clone();
    for index in &leaving {
        union[usize::from(*index)] = applied.nodes[usize::from(*index)];
    }
    if union != applied.nodes {
        ops.push(MapOp::Nodes(union));
    }
    if !rows.is_empty() {
        ops.push(MapOp::Rows(rows));
    }
    if config != desired.config {
        ops.push(MapOp::Config(desired.config));
    }
    if !leaving.is_empty() {
        ops.push(MapOp::UnlistNodes(leaving));
    }
    let vips: BTreeMap<VipKey, VipEntry> = desired
        .vips
        .slots
        .iter()
        .map(|(_, entry)| (entry.key, *entry))
        .collect();
    // Lists are whole before a VIP names them, and go after the last one that did.
    let new: Vec<_> = desired
        .sources
        .iter()
        .filter(|(prefix, says)| applied.sources.get(prefix) != Some(says))
        .map(|((bits, key), says)| (*bits, *key, Some(*says)))
        .collect();
    let old: Vec<_> = applied
        .sources
        .keys()
        .filter(|prefix| !desired.sources.contains_key(prefix))
        .map(|(bits, key)| (*bits, *key, None))
        .collect();
    ops.extend(chunks(&new));
    if vips != applied.vips {
        ops.push(MapOp::Vips(desired.vips.clone()));
    }
    ops.extend(chunks(&old));
    ops
}

/// Prefixes in operations that fit one message to another process.
fn chunks(prefixes: &[(u32, SourceKey, Option<u32>)]) -> impl Iterator<Item = MapOp> {
    const MOST: usize = 1_024;
    prefixes
        .chunks(MOST)
        .map(|chunk| MapOp::Sources(chunk.to_vec()))
}

/// Listed nodes that are to leave.
fn leaving(applied: &Image, desired: &Desired) -> Vec<NodeIndex> {
    (0..MAX_NODES as NodeIndex)
        .zip(applied.nodes.iter().zip(&desired.nodes))
        .filter(|(_, (old, new))| {
            old.flags & node_flag::LISTED != 0 && new.flags & node_flag::LISTED == 0
        })
        .map(|(index, _)| index)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::tables::{Planner, Settings};
    use super::*;
    use crate::snapshot::{
        Bind, BindKey, ObjectKey, Protocol, Replica, ReplicaState, Snapshot, Transport,
    };

    fn planner() -> Planner {
        let own = IpAddr::from([10, 0, 0, 1]);
        let settings = Settings {
            hash_key: [7, 9],
            encapsulate_always: false,
            tunnel_port: 17410,
            probe_port: 17411,
            probe_keys: [[5, 6], [0, 0]],
            ticks_per_second: 250,
            drain_timeout: Duration::from_secs(60),
        };
        Planner::new(settings, "n1", own)
    }

    fn snapshot(replicas: &[(u8, ReplicaState, u8)], ports: &[u16]) -> Snapshot {
        let replicas = replicas
            .iter()
            .map(|(n, state, weight)| Replica {
                name: format!("n{n}"),
                address: IpAddr::from([10, 0, 0, *n]),
                state: *state,
                weight: *weight,
            })
            .collect();
        let mut snapshot = Snapshot {
            replicas,
            ..Snapshot::default()
        };
        for port in ports {
            let key = BindKey {
                transport: Transport::Tcp,
                address: IpAddr::from([10, 9, 0, 1]),
                port: *port,
            };
            let gateway = ObjectKey::new("ns", "gw");
            let bind = Bind {
                key,
                gateway: gateway.clone(),
                protocol: Protocol::Http,
                builtin_ready: false,
                policy: Arc::default(),
                listeners: Vec::new(),
            };
            snapshot.addresses.insert(key.address, gateway);
            snapshot.binds.insert(key, Arc::new(bind));
        }
        snapshot
    }

    /// Applies the difference step by step and checks what must hold at every step.
    fn go(image: &mut Image, desired: &Desired) {
        for op in diff(image, desired) {
            if matches!(op, MapOp::Vips(_)) {
                assert_eq!(image.rows, desired.rows, "VIPs come after rows");
            }
            image.apply(&op);
            for row in &image.rows {
                for index in [row.owner(), row.next(0), row.next(1), row.next(2)] {
                    let entry = image.nodes[usize::from(index)];
                    assert!(
                        index == 0 || entry.flags & node_flag::LISTED != 0,
                        "row names {index}"
                    );
                }
            }
        }
        assert_eq!(image.rows, desired.rows);
        assert_eq!(image.nodes, desired.nodes);
        assert_eq!(image.config, desired.config);
        assert_eq!(diff(image, desired), []);
    }

    #[test]
    fn the_first_tables_come_in_order() {
        let mut planner = planner();
        planner.on_snapshot(&snapshot(&[], &[80]), Duration::ZERO);
        let names: Vec<&str> = diff(&Image::default(), &planner.desired())
            .iter()
            .map(|op| match op {
                MapOp::Config(_) => "config",
                MapOp::Nodes(_) => "nodes",
                MapOp::UnlistNodes(_) => "unlist",
                MapOp::Vips(_) => "vips",
                MapOp::Rows(_) => "rows",
                MapOp::Sources(_) => "sources",
            })
            .collect();
        assert_eq!(names, ["nodes", "rows", "config", "vips"]);
    }

    #[test]
    fn draining_is_said_before_rows_change() {
        let mut planner = planner();
        let both = [(1, ReplicaState::Ready, 1), (2, ReplicaState::Ready, 1)];
        planner.on_snapshot(&snapshot(&both, &[80]), Duration::ZERO);
        let mut image = Image::default();
        go(&mut image, &planner.desired());
        planner.set_draining(true, Duration::from_secs(1));
        let ops = diff(&image, &planner.desired());
        let MapOp::Config(first) = &ops[0] else {
            panic!("{:?}", ops[0]);
        };
        assert_eq!(first.flags, config::flag::DRAINING);
        go(&mut image, &planner.desired());
        assert!(image.rows.iter().all(|row| row.owner() == 2));
    }

    #[test]
    fn tables_that_are_right_need_no_operation_after_a_restart() {
        let both = [(1, ReplicaState::Ready, 1), (2, ReplicaState::Ready, 1)];
        let mut image = Image::default();
        let mut first = planner();
        // Node 2 was there before node 1, so its index is the lower one.
        first.on_snapshot(
            &snapshot(&[(2, ReplicaState::Ready, 1)], &[80]),
            Duration::ZERO,
        );
        first.on_snapshot(&snapshot(&both, &[80]), Duration::ZERO);
        go(&mut image, &first.desired());
        let mut second = planner();
        second.adopt(&image, Duration::ZERO);
        second.on_snapshot(&snapshot(&both, &[80]), Duration::ZERO);
        go(&mut image, &second.desired());
        let kinds = diff(&image, &second.desired());
        assert_eq!(kinds, []);
        assert_eq!(image.nodes, first.desired().nodes);
    }

    fn state() -> impl Strategy<Value = ReplicaState> {
        prop_oneof![
            Just(ReplicaState::Joining),
            Just(ReplicaState::Ready),
            Just(ReplicaState::Draining)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3))]
        #[test]
        fn any_history_leads_to_the_desired_tables(
            steps in prop::collection::vec(
                (prop::collection::btree_map(1u8..9, (state(), 1u8..3), 0..7),
                 prop::collection::btree_set(80u16..90, 0..5),
                 any::<bool>(), 1u64..100),
                1..6,
            ),
        ) {
            let mut planner = planner();
            let mut image = Image::default();
            let mut now = Duration::ZERO;
            for (nodes, ports, draining, seconds) in steps {
                now += Duration::from_secs(seconds);
                let replicas: Vec<_> = nodes.into_iter().map(|(n, (s, w))| (n, s, w)).collect();
                let ports: Vec<u16> = ports.into_iter().collect();
                planner.handle_timeout(now);
                planner.set_draining(draining, now);
                planner.on_snapshot(&snapshot(&replicas, &ports), now);
                go(&mut image, &planner.desired());
                prop_assert!(planner.poll_timeout().is_none_or(|t| t > now));
            }
        }
    }
}
