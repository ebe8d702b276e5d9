//! A machine: its tables, its sockets, and the process that probes, decides and writes, as `datapath` does it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use gateway_common::abi::{
    MAX_NODES, NodeIndex, Row, VipKey, config::flag, fact, node_flag, peers, vip_flag,
};
use gateway_common::host::HostTables;
use gateway_common::packet::mapped;
use gateway_common::probe::{Probe, view};
use gateway_common::rendezvous::name_hash;
use gateway_common::steer::Local;

use super::wire::{self, Ends, FLOWS, KEY, PROBE_KEY, ROWS};
use crate::l4::Time;
use crate::l4::diff::{Image, MapOp, diff};
use crate::l4::liveness::{self, Liveness, PeerId};
use crate::l4::membership::Absence;
use crate::l4::paths::{self, Paths};
use crate::l4::tables::{ListedNode, Planner, Reach, Settings};
use crate::snapshot::{Replica, Snapshot};

/// Ticks of the kernel per second.
const HZ: u32 = 250;
/// A pause of the heart that others may have noticed.
const GAP: Duration = Duration::from_millis(280);

/// What a machine has for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    /// Its kernel answered a SYN.
    HalfOpen,
    /// The proxy has the connection or the session.
    Open,
}

/// The running daemon.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) planner: Planner,
    pub(super) liveness: Liveness,
    pub(super) paths: Paths,
    /// Operations that are decided and not carried out yet.
    pending: VecDeque<MapOp>,
    /// Lists seen so far.
    pub(super) seen: usize,
    dirty: bool,
    programmed: bool,
    rounds: u64,
    /// The membership that the rows were written for.
    fingerprint: u32,
    /// Since when it does not run.
    pub(super) stopped: Option<Time>,
    /// Since when it drains.
    pub(super) draining: Option<Time>,
}

/// A machine.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u8,
    name: String,
    pub(super) up: bool,
    pub(super) tables: HostTables,
    pub(super) process: Option<Process>,
    pub(super) sockets: BTreeMap<usize, Socket>,
    /// Whom the rows were written for.
    pub(super) listed: Vec<ListedNode>,
    image: Image,
    beats: u64,
    drain_timeout: Duration,
    reach: BTreeMap<IpAddr, Reach>,
    starts: u64,
}

impl Node {
    /// A machine that is off. `names` are those of all machines, `routed` those that are not on the link, by bit.
    pub(super) fn new(id: u8, names: &[String], routed: u8, drain_timeout: Duration) -> Self {
        let is_routed = |machine: u8| routed >> machine & 1 == 1;
        let others = (0..names.len() as u8).filter(|other| *other != id);
        let reach = others.map(|other| {
            let through = is_routed(id) || is_routed(other);
            let reach = Reach {
                mac: if through {
                    wire::router()
                } else {
                    wire::mac(other)
                },
                source_mac: wire::mac(id),
                ifindex: 1,
                mtu: 9_000,
                on_link: !through,
                resolved: true,
                ..Reach::default()
            };
            (IpAddr::from(wire::address(other)), reach)
        });
        Self {
            id,
            name: names[usize::from(id)].clone(),
            up: false,
            tables: HostTables::default(),
            process: None,
            sockets: BTreeMap::new(),
            listed: Vec::new(),
            image: small_image(),
            beats: 0,
            drain_timeout,
            reach: reach.collect(),
            starts: 0,
        }
    }

    /// The machine starts, with empty tables, and its process.
    pub(super) fn boot(&mut self, now: Time) {
        if self.up {
            return;
        }
        self.up = true;
        self.tables = HostTables {
            rows: vec![Row::default(); ROWS as usize].into(),
            ..HostTables::default()
        };
        for protocol in [wire::TCP, wire::UDP] {
            let vip = VipKey::v4(wire::VIP, wire::PORT, protocol);
            assert!(self.tables.put_vip(vip, 0, vip_flag::USED));
        }
        self.image = small_image();
        self.start(now);
    }

    /// The machine is gone.
    pub(super) fn die(&mut self) {
        self.kill();
        self.up = false;
        self.listed.clear();
    }

    /// The process is gone, and its sockets with it; the tables stay.
    pub(super) fn kill(&mut self) {
        self.process = None;
        self.sockets.clear();
        self.tables.sockets.clear();
        self.tables.sessions.clear();
        self.tables.listeners.clear();
    }

    /// The process starts, with what the tables say.
    pub(super) fn start(&mut self, now: Time) {
        if !self.up || self.process.is_some() {
            return;
        }
        let settings = Settings {
            hash_key: KEY,
            encapsulate_always: false,
            tunnel_port: wire::TUNNEL_PORT,
            probe_port: wire::PROBE_PORT,
            probe_keys: [PROBE_KEY, [0, 0]],
            ticks_per_second: HZ,
            drain_timeout: self.drain_timeout,
        };
        let own = IpAddr::from(wire::address(self.id));
        let mut planner = Planner::new(settings, &self.name, own);
        planner.keep_rows(ROWS);
        planner.adopt(&self.image, now);
        planner.set_absence(Absence::Unknown);
        planner.set_own_reach(Reach {
            source_mac: wire::mac(self.id),
            ifindex: 1,
            resolved: true,
            ..Reach::default()
        });
        planner.set_reach(self.reach.clone());
        planner.set_probing();
        planner.set_proven(BTreeSet::new());
        self.starts += 1;
        let seed = self.starts << 40;
        self.tables.facts.fill(0);
        self.tables.alive.clear();
        self.tables.listeners.push(wire::listener());
        self.process = Some(Process {
            planner,
            liveness: Liveness::new(liveness::Settings::default(), seed, now),
            paths: Paths::new(liveness::Settings::default().interval, seed),
            pending: VecDeque::new(),
            seen: 0,
            dirty: false,
            programmed: false,
            rounds: 0,
            fingerprint: 0,
            stopped: None,
            draining: None,
        });
    }

    /// The process hangs from now on.
    pub(super) fn stop(&mut self, now: Time) {
        if let Some(process) = &mut self.process {
            process.stopped = process.stopped.or(Some(now));
        }
    }

    /// The process goes on. If the kernel may have noticed, the own rows are in doubt before the heart beats.
    pub(super) fn go_on(&mut self, now: Time) {
        let Some(process) = &mut self.process else {
            return;
        };
        let since = process.stopped.take();
        if since.is_some_and(|since| now - since >= GAP) && process.programmed {
            let own = self.tables.config.self_index as NodeIndex;
            let doubt = Row::new(0, true, [(0, false); 3]).0;
            for row in self.tables.rows.iter_mut() {
                if row.owner() == own && row.next(0) != 0 {
                    row.0 |= doubt;
                }
            }
            self.image.rows.copy_from_slice(&self.tables.rows);
            process.planner.after_gap(now);
            process.dirty = true;
        }
    }

    /// The process, if it runs.
    pub(super) fn running(&mut self) -> Option<&mut Process> {
        self.process.as_mut().filter(|p| p.stopped.is_none())
    }

    /// The process sees a list.
    pub(super) fn see(&mut self, list: &[Replica], number: usize, now: Time) {
        if let Some(process) = self.running() {
            let snapshot = Snapshot {
                replicas: list.to_vec(),
                ..Snapshot::default()
            };
            process.planner.on_snapshot(&snapshot, now);
            process.seen = number;
            process.dirty = true;
        }
    }

    /// The node decides to drain.
    pub(super) fn drain(&mut self, now: Time) {
        if let Some(process) = self.running() {
            process.planner.set_draining(true, now);
            process.dirty = process.seen > 0;
            process.draining = process.draining.or(Some(now));
        }
    }

    /// One look at everything: time, reports, and what is to be written. `steps` operations are carried out at most.
    pub(super) fn tick(&mut self, now: Time, steps: usize) {
        self.tables.jiffies = now.as_millis() as u64 * u64::from(HZ) / 1_000;
        let Some(process) = self.process.as_mut().filter(|p| p.stopped.is_none()) else {
            return;
        };
        process.liveness.advance(now);
        if process.seen == 0 {
            return;
        }
        if process.pending.is_empty() {
            if process.planner.poll_timeout().is_some_and(|at| at <= now) {
                process.planner.handle_timeout(now);
                process.dirty = true;
            }
            process.dirty |= process.planner.observe(&process.liveness.report(), now);
            if process.dirty {
                let desired = process.planner.desired();
                process.pending = diff(&self.image, &desired).into();
                process.dirty = false;
                // Nothing to write is written at once.
                if process.pending.is_empty() {
                    self.written();
                }
            }
        }
        for _ in 0..steps {
            let op = self.process.as_mut().and_then(|p| p.pending.pop_front());
            let Some(op) = op else {
                break;
            };
            self.apply(&op);
            if self.process.as_ref().is_some_and(|p| p.pending.is_empty()) {
                self.written();
            }
        }
        self.beat();
    }

    fn beat(&mut self) {
        if self.process.as_ref().is_some_and(|p| p.programmed) {
            self.beats += 1;
            self.tables.heartbeat = self.beats;
        }
    }

    fn apply(&mut self, op: &MapOp) {
        self.image.apply(op);
        match op {
            MapOp::Config(config) => self.tables.config = *config,
            MapOp::Nodes(_) | MapOp::UnlistNodes(_) => {
                let half = &mut self.tables.nodes[..MAX_NODES as usize];
                half.copy_from_slice(&self.image.nodes);
                peers::index(half).expect("few nodes");
            }
            MapOp::Rows(rows) => {
                for (index, row) in rows {
                    self.tables.rows[*index as usize] = *row;
                }
            }
            MapOp::Vips(_) | MapOp::Sources(_) => {}
        }
    }

    /// The tables say what the planner says.
    fn written(&mut self) {
        let Some(process) = &mut self.process else {
            return;
        };
        self.listed = process.planner.listed().to_vec();
        process.programmed = true;
        process.fingerprint = process.planner.fingerprint();
        let peers: Vec<PeerId> = (self.listed.iter().filter(|node| !node.own))
            .map(|node| PeerId {
                name: node.member.name.clone(),
                name_hash: name_hash(KEY, &node.member.name),
                address: node.member.address,
            })
            .collect();
        let own = name_hash(KEY, &self.name);
        process.liveness.set_peers(own, &peers);
        self.tables.facts[fact::NAME_HASH as usize] = own;
        self.show();
    }

    /// Questions by way of a MAC rewrite, as the tables have the other nodes.
    pub(super) fn questions(&mut self, now: Time) -> Vec<paths::Question> {
        let Some(process) = self.process.as_mut().filter(|p| p.stopped.is_none()) else {
            return Vec::new();
        };
        let report = process.liveness.report();
        let others = self.listed.iter().filter(|node| !node.own);
        let targets: Vec<paths::Target> = others
            .filter_map(|node| {
                let reach = process.planner.on_link(node.member.address)?;
                Some(paths::Target {
                    name_hash: name_hash(KEY, &node.member.name),
                    address: node.member.address,
                    way: (reach.mac, reach.ifindex),
                })
            })
            .collect();
        let heard = |hash: u64| {
            let mut names = self.listed.iter().map(|node| &node.member.name);
            let name = names.find(|name| name_hash(KEY, name) == hash)?;
            report.peers.get(name)?.heard_at
        };
        process.paths.advance(now, heard);
        let own = (name_hash(KEY, &self.name), wire::address(self.id));
        process.paths.set_peers(own.0, own.1.into(), &targets, now);
        process.paths.set_vips(vec![wire::VIP.into()]);
        process.paths.ask(now)
    }

    /// Takes the answers.
    pub(super) fn answered(&mut self, answers: &[Probe], now: Time) {
        let Some(process) = self.running() else {
            return;
        };
        for answer in answers {
            process.paths.hear(answer, now);
        }
        let proven = process.paths.proven().collect();
        process.dirty |= process.planner.set_proven(proven) && process.seen > 0;
    }

    /// Writes the alive words.
    pub(super) fn show(&mut self) {
        let Some(process) = &self.process else {
            return;
        };
        let others = self.listed.iter().filter(|node| !node.own);
        self.tables.alive = others
            .map(|node| {
                let hash = name_hash(KEY, &node.member.name);
                let episode = if node.member.episode.is_some() {
                    view::EPISODE
                } else {
                    0
                };
                (
                    node.index,
                    u64::from(process.liveness.alive_bits(hash) | episode),
                )
            })
            .collect();
    }

    /// Counts its foreign sockets, as a round of probing begins with.
    pub(super) fn count(&mut self) {
        let own = self.tables.config.self_index as NodeIndex;
        let rows = &self.tables.rows;
        let foreign = (self.sockets.iter())
            .filter(|(_, socket)| **socket == Socket::Open)
            .filter(|(flow, _)| rows[FLOWS[**flow].row as usize].owner() != own)
            .count() as u32;
        let Some(process) = self.process.as_mut().filter(|p| p.stopped.is_none()) else {
            return;
        };
        process.rounds += 1;
        self.tables.facts[fact::ROUNDS as usize] = process.rounds;
        let still = process.programmed && process.pending.is_empty();
        let counted = still.then_some((process.fingerprint, foreign));
        if let Some((fingerprint, foreign)) = counted {
            let word = u64::from(fingerprint) << 32 | u64::from(foreign);
            self.tables.facts[fact::COUNTED as usize] = word;
        }
        process.liveness.count_own(counted);
    }

    /// Puts a socket there.
    pub(super) fn open(&mut self, flow: usize, socket: Socket) {
        let ends: &Ends = &FLOWS[flow];
        if self.sockets.insert(flow, socket).is_none() {
            if ends.protocol == wire::UDP {
                self.tables.sessions.push(ends.hash);
            } else {
                self.tables.sockets.push((ends.tuple(), Local::Flow));
            }
        }
    }

    /// Takes it away.
    pub(super) fn close(&mut self, flow: usize) {
        let ends: &Ends = &FLOWS[flow];
        if self.sockets.remove(&flow).is_some() {
            self.tables.sessions.retain(|hash| *hash != ends.hash);
            self.tables
                .sockets
                .retain(|(tuple, _)| *tuple != ends.tuple());
        }
    }

    /// Whether it knows itself, and so takes packets for the VIP.
    pub(super) fn configured(&self) -> bool {
        self.up && self.tables.config.self_index != 0
    }

    /// Whether new connections are taken here.
    pub(super) fn listens(&self) -> bool {
        self.up && !self.tables.listeners.is_empty()
    }

    /// The machine behind an index of this one.
    pub(super) fn machine(&self, index: NodeIndex, machines: u8) -> Option<u8> {
        let entry = self.image.nodes.get(usize::from(index))?;
        let listed = entry.flags & node_flag::LISTED != 0;
        (0..machines).find(|m| listed && mapped(wire::address(*m)) == entry.address)
    }

    /// Whether this node holds that index for ready and well.
    pub(super) fn trusts(&self, index: NodeIndex) -> bool {
        let suspect = u64::from(view::SUSPECT);
        let bits = self.tables.alive.iter().find(|(i, _)| *i == index);
        let entry = &self.image.nodes[usize::from(index)];
        entry.flags & node_flag::READY != 0 && bits.is_none_or(|(_, bits)| bits & suspect == 0)
    }

    /// Rows that are in transition.
    pub(super) fn in_transition(&self) -> usize {
        self.tables
            .rows
            .iter()
            .filter(|row| row.in_transition())
            .count()
    }

    /// Whether it drains by its own decision, as its tables say.
    pub(super) fn drains(&self) -> bool {
        self.tables.config.flags & flag::DRAINING != 0
    }
}

/// What empty tables of few rows say.
fn small_image() -> Image {
    Image {
        rows: vec![Row::default(); ROWS as usize].into_boxed_slice(),
        ..Image::default()
    }
}
