//! Machines, links, lists and clients, step by step; every packet is walked from machine to machine.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use gateway_common::abi::{Counter, MAX_NODES, node_flag};
use gateway_common::encap::MAX_HOPS;
use gateway_common::host::HostPacket;
use gateway_common::packet::mapped;
use gateway_common::probe::Probe;
use gateway_common::rendezvous::{name_hash, score};
use gateway_common::steer::steer;
use gateway_common::verdict::Action;

use super::node::{Node, Socket};
use super::script::{Event, MACHINES, Script, Skew, draw};
use super::wire::{self, Arrival, FLOWS, KEY, PROBE_KEY, TCP};
use crate::l4::Time;
use crate::l4::tables::ListedNode;
use crate::snapshot::{Replica, ReplicaState};

/// One round of probing.
const STEP: Duration = Duration::from_millis(100);
/// A client sends its SYN again after that.
const AGAIN: Duration = Duration::from_secs(1);

/// What was counted in histories.
pub(super) type Counts = BTreeMap<&'static str, u64>;

/// How a packet's way ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The stack of the last machine has it.
    Passed,
    /// The last machine dropped it.
    Dropped(Counter),
    /// It was lost on the way from the last machine, or at one that takes nothing.
    Lost,
}

/// A packet's way.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    pub(super) path: Vec<(u8, Arrival)>,
    pub(super) end: End,
}

impl Walk {
    pub(super) fn last(&self) -> u8 {
        self.path.last().map_or(0, |(machine, _)| *machine)
    }
}

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its SYN is sent again at this time.
    Opening(Time),
    /// This machine answered.
    Open(u8),
    /// The machine that had it lost it; the client does not know yet.
    Orphan(Time),
}

/// A client with one flow.
#[derive(Clone, Debug)]
struct Client {
    flow: usize,
    state: State,
    since: Time,
    until: Time,
    /// A second machine answered its SYN too.
    twice: bool,
}

/// Everything.
#[derive(Debug)]
pub(super) struct World {
    script: Script,
    now: Time,
    pub(super) nodes: Vec<Node>,
    hashes: Vec<u64>,
    cut: [[bool; MACHINES as usize]; MACHINES as usize],
    deaf: [[bool; MACHINES as usize]; MACHINES as usize],
    /// What is to be said by the next lists.
    unsaid: VecDeque<(u8, Option<ReplicaState>)>,
    lists: Vec<(Time, BTreeMap<u8, ReplicaState>)>,
    clients: Vec<Client>,
    flows: usize,
    /// Machines whose drain has ended, and when.
    drained: Vec<(u8, Time)>,
    pub(super) counts: Counts,
    draws: u64,
}

impl World {
    /// The machines that are ready at the beginning have just started.
    pub(super) fn new(script: Script) -> Self {
        let names: Vec<String> = (0..MACHINES)
            .map(|id| format!("node-{:x}-{id}", script.seed))
            .collect();
        let drain_timeout = Duration::from_millis(script.drain_timeout);
        let mut nodes: Vec<Node> = (0..MACHINES)
            .map(|id| Node::new(id, &names, script.routed, drain_timeout))
            .collect();
        let ready = 0..script.ready;
        for id in ready.clone() {
            nodes[usize::from(id)].boot(Duration::ZERO);
        }
        let first = ready.map(|id| (id, ReplicaState::Ready)).collect();
        Self {
            now: Duration::ZERO,
            nodes,
            hashes: names.iter().map(|name| name_hash(KEY, name)).collect(),
            cut: Default::default(),
            deaf: Default::default(),
            unsaid: VecDeque::new(),
            lists: vec![(Duration::ZERO, first)],
            clients: Vec::new(),
            flows: 0,
            drained: Vec::new(),
            counts: Counts::new(),
            draws: 0,
            script,
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// A number below a limit. Each is for one time and purpose, so that histories stay alike while they are cut down.
    fn below(&mut self, limit: u64) -> u64 {
        self.draws += 1;
        draw(self.script.seed, 2, self.now.as_millis() as u64, self.draws) % limit
    }

    fn node(&mut self, machine: u8) -> &mut Node {
        &mut self.nodes[usize::from(machine)]
    }

    /// The whole history, and the quiet after it.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let mut events: VecDeque<(u64, Event)> = self.script.events.clone().into();
        let end = Duration::from_millis(self.script.length);
        while self.now < end || !events.is_empty() {
            while let Some((_, event)) =
                events.pop_front_if(|(at, _)| *at <= self.now.as_millis() as u64)
            {
                self.happen(event);
            }
            if self.now < end && self.below(3) == 0 {
                self.add_client();
            }
            self.step()?;
        }
        self.calm_down()?;
        self.check_service()?;
        self.check_rows()
    }

    /// Lets some rounds pass.
    pub(super) fn settle(&mut self, rounds: u32) -> Result<(), String> {
        (0..rounds).try_for_each(|_| self.step())
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::List(machine, state) => self.unsaid.push_back((machine, state)),
            Event::Boot(machine) => {
                self.drained.retain(|(drained, _)| *drained != machine);
                self.node(machine).boot(now);
            }
            Event::Die(machine) => self.node(machine).die(),
            Event::Kill(machine) => self.node(machine).kill(),
            Event::Start(machine) => self.node(machine).start(now),
            Event::Stop(machine) => self.node(machine).stop(now),
            Event::Continue(machine) => self.node(machine).go_on(now),
            Event::Drain(machine) => self.node(machine).drain(now),
            Event::Cut(a, b) => self.set_link(a, b, true),
            Event::Deaf(a, b) => self.deaf[usize::from(a)][usize::from(b)] = true,
            Event::Mend(a, b) => self.set_link(a, b, false),
        }
    }

    fn set_link(&mut self, a: u8, b: u8, cut: bool) {
        for (a, b) in [
            (usize::from(a), usize::from(b)),
            (usize::from(b), usize::from(a)),
        ] {
            self.cut[a][b] = cut && a != b;
            self.deaf[a][b] &= cut;
        }
    }

    /// Whether everybody that follows lists has seen the last one.
    fn all_have_seen(&self) -> bool {
        let last = self.lists.len();
        let mut processes = self.nodes.iter().filter(|node| node.up);
        processes.all(|node| node.process.as_ref().is_some_and(|p| p.seen >= last))
    }

    fn say_next(&mut self) {
        if self.script.skew == Skew::OneStep && !self.all_have_seen() {
            return;
        }
        let Some((machine, state)) = self.unsaid.pop_front() else {
            return;
        };
        let mut list = self
            .lists
            .last()
            .map(|(_, list)| list.clone())
            .unwrap_or_default();
        let node = &self.nodes[usize::from(machine)];
        let runs = node.up && node.process.is_some();
        let leaves = list.get(&machine) == Some(&ReplicaState::Draining);
        match state {
            // Who terminates does not come back before it is gone.
            Some(ReplicaState::Ready | ReplicaState::Joining) if leaves => return,
            // Nor is one that runs taken off, for which a history would have to lose what happened to it before.
            None if runs => return,
            Some(ReplicaState::Ready) if runs && !node.drains() => {
                list.insert(machine, ReplicaState::Ready)
            }
            Some(ReplicaState::Draining) if !list.contains_key(&machine) => return,
            Some(ReplicaState::Draining) => list.insert(machine, ReplicaState::Draining),
            Some(_) => list.insert(machine, ReplicaState::Joining),
            None => list.remove(&machine),
        };
        if self.lists.last().is_none_or(|(_, last)| *last != list) {
            self.lists.push((self.now, list));
        }
    }

    /// Shows a machine the list, if its time has come.
    fn show_list(&mut self, machine: u8) {
        let last = self.lists.len();
        let (now, seed, skew) = (self.now, self.script.seed, self.script.skew);
        let Some(process) = self.node(machine).running() else {
            return;
        };
        let seen = process.seen;
        if seen >= last {
            return;
        }
        let (said, list) = &self.lists[last - 1];
        let most = if skew == Skew::OneStep { 12 } else { 80 };
        let slow = draw(seed, 3, last as u64, machine.into()) % most;
        // Most lists come soon.
        let delay = if slow.is_multiple_of(3) {
            slow
        } else {
            slow % 4
        };
        if seen != 0 && now < *said + STEP * delay as u32 {
            return;
        }
        let replicas: Vec<Replica> = (list.iter())
            .map(|(id, state)| Replica {
                name: format!("node-{seed:x}-{id}"),
                address: IpAddr::from(wire::address(*id)),
                state: *state,
                weight: 1,
            })
            .collect();
        self.node(machine).see(&replicas, last, now);
    }

    /// One round: everybody looks, decides, writes and probes, in any order, and clients send in between.
    fn step(&mut self) -> Result<(), String> {
        self.now += STEP;
        self.draws = 0;
        let now = self.now;
        self.say_next();
        let first = self.below(MACHINES.into()) as u8;
        let stride = [1, 3, 5, 7][self.below(4) as usize];
        for turn in 0..MACHINES {
            let machine = (first + turn * stride) % MACHINES;
            self.show_list(machine);
            // A write that takes a while is seen in parts.
            let steps = if self.below(4) == 0 { 1 } else { 9 };
            self.node(machine).tick(now, steps);
            self.probe_from(machine);
            self.end_drain(machine);
            for client in (0..self.clients.len()).rev() {
                if self.clients[client].flow % usize::from(MACHINES) == usize::from(turn) {
                    self.serve(client)?;
                }
            }
        }
        Ok(())
    }

    fn probe_from(&mut self, machine: u8) {
        let now = self.now;
        self.node(machine).count();
        let Some(process) = self.node(machine).running() else {
            return;
        };
        let peers: Vec<(u64, IpAddr)> = (process.liveness.peers())
            .map(|peer| (peer.name_hash, peer.address))
            .collect();
        for (peer, address) in peers {
            let Some(process) = self.node(machine).running() else {
                return;
            };
            let Some(question) = process.liveness.ask(peer, now) else {
                continue;
            };
            process.liveness.sent(peer, true);
            let to = (0..MACHINES).find(|m| IpAddr::from(wire::address(*m)) == address);
            let signed = question.sign(PROBE_KEY);
            let answer = to.and_then(|to| self.answer(machine, to, bytemuck::bytes_of(&signed)));
            if let (Some(answer), Some(process)) = (answer, self.node(machine).running()) {
                process.liveness.hear(&answer, now);
            }
        }
        self.ask_paths(machine);
        self.node(machine).show();
    }

    /// Asks the other machines by frames for the VIP.
    fn ask_paths(&mut self, machine: u8) {
        let now = self.now;
        let mut answers = Vec::new();
        for question in self.node(machine).questions(now) {
            let to = (0..MACHINES).find(|m| IpAddr::from(wire::address(*m)) == question.node);
            let signed = question.probe.sign(PROBE_KEY);
            let frame = |to| wire::question(machine, to, bytemuck::bytes_of(&signed));
            answers.extend(to.and_then(|to| self.answer_to(machine, to, frame(to))));
        }
        self.node(machine).answered(&answers, now);
    }

    fn answer(&mut self, from: u8, to: u8, message: &[u8]) -> Option<Probe> {
        self.answer_to(from, to, wire::probe(from, to, message))
    }

    fn answer_to(&mut self, from: u8, to: u8, mut packet: HostPacket) -> Option<Probe> {
        let (a, b) = (usize::from(from), usize::from(to));
        if self.cut[a][b] || self.deaf[a][b] || self.deaf[b][a] || !self.nodes[b].up {
            return None;
        }
        let verdict = steer(&mut packet, &self.nodes[b].tables);
        self.nodes[b].tables.cells.borrow_mut().clear();
        let answered = verdict.action() == Action::Transmit;
        answered
            .then(|| Probe::open(wire::probe_in(&packet), PROBE_KEY, [0, 0]))
            .flatten()
    }

    /// A drain ends with the last socket or with its time; then the process ends, and later the machine.
    fn end_drain(&mut self, machine: u8) {
        let now = self.now;
        let timeout = Duration::from_millis(self.script.drain_timeout);
        let node = self.node(machine);
        let leaves = |node: &ListedNode| node.own && node.member.state == ReplicaState::Draining;
        let draining = node.listed.iter().any(leaves);
        let empty = node.sockets.is_empty();
        if let Some(process) = node.running().filter(|_| draining) {
            let since = *process.draining.get_or_insert(now);
            if (empty && now >= since + Duration::from_secs(1)) || now >= since + timeout {
                node.kill();
                self.unsaid.push_back((machine, None));
                self.drained.push((machine, now));
            }
        }
        let over = |(drained, at): &&(u8, Time)| {
            *drained == machine && now >= *at + Duration::from_secs(2)
        };
        if self.drained.iter().any(|drained| over(&drained)) {
            self.drained.retain(|(drained, _)| *drained != machine);
            self.node(machine).die();
        }
    }

    fn add_client(&mut self) {
        if self.flows == FLOWS.len() {
            return;
        }
        let begin = draw(self.script.seed, 4, 0, 0) as usize;
        let flow = (begin + self.flows) % FLOWS.len();
        self.flows += 1;
        let longest = self.script.drain_timeout * 3 / 4;
        let life = Duration::from_millis(1_000 + self.below(longest));
        self.count("flows");
        self.clients.push(Client {
            flow,
            state: State::Opening(self.now),
            since: self.now,
            until: self.now + life,
            twice: false,
        });
    }

    /// What a client does in a round.
    fn serve(&mut self, at: usize) -> Result<(), String> {
        let now = self.now;
        let client = self.clients[at].clone();
        match client.state {
            State::Opening(when) if now >= when => {
                self.clients[at].state = State::Opening(now + AGAIN);
                if FLOWS[client.flow].protocol == TCP {
                    self.open(at)?;
                } else {
                    self.exchange(at)?;
                }
            }
            State::Opening(_) => {}
            State::Open(holder) => {
                if !self.nodes[usize::from(holder)]
                    .sockets
                    .contains_key(&client.flow)
                {
                    self.count("flows: owner died or ended its drain");
                    self.clients[at].state = State::Orphan(now + 2 * AGAIN);
                } else if now >= client.until {
                    for node in &mut self.nodes {
                        node.close(client.flow);
                    }
                    self.count("flows: whole");
                    self.clients.swap_remove(at);
                } else if self.below(3) == 0 {
                    self.exchange(at)?;
                    if self.below(400) == 0 {
                        self.old_syn(at)?;
                    }
                }
            }
            State::Orphan(until) => {
                let walk = self.send(client.flow, false)?;
                let fast = walk.as_ref().is_some_and(|walk| walk.end == End::Passed);
                if fast || now >= until {
                    self.count(if fast {
                        "orphans: reset"
                    } else {
                        "orphans: silent"
                    });
                    for node in &mut self.nodes {
                        node.close(client.flow);
                    }
                    self.clients.swap_remove(at);
                }
            }
        }
        Ok(())
    }

    /// A machine that takes packets for the VIP, at random.
    fn entry(&mut self) -> Option<u8> {
        let open: Vec<u8> = (self.nodes.iter())
            .filter(|node| node.configured())
            .map(|node| node.id)
            .collect();
        let pick = self.below(open.len().max(1) as u64) as usize;
        open.get(pick).copied()
    }

    fn send(&mut self, flow: usize, syn: bool) -> Result<Option<Walk>, String> {
        let Some(entry) = self.entry() else {
            return Ok(None);
        };
        self.walk(FLOWS[flow].frame(syn, entry), entry).map(Some)
    }

    /// Follows a packet. It is an error if it is sent more than four times, or goes round.
    pub(super) fn walk(&mut self, mut packet: HostPacket, entry: u8) -> Result<Walk, String> {
        let protocol = packet.bytes[23];
        let mut walk = Walk {
            path: vec![(entry, Arrival::Client)],
            end: End::Lost,
        };
        self.count("packets");
        loop {
            let here = walk.last();
            let node = &self.nodes[usize::from(here)];
            let verdict = steer(&mut packet, &node.tables);
            node.tables.cells.borrow_mut().clear();
            match verdict.action() {
                Action::Drop => walk.end = End::Dropped(verdict.counter()),
                Action::Pass if !node.configured() => {}
                Action::Pass => walk.end = End::Passed,
                Action::Transmit | Action::Redirect { .. } => {
                    self.count("packets: sent on");
                    let to = wire::deliver(&mut packet, MACHINES);
                    let to =
                        to.ok_or_else(|| format!("a frame for nobody after {:?}", walk.path))?;
                    let arrival = (to, Arrival::of(&packet));
                    let sends = walk.path.len();
                    if sends > usize::from(MAX_HOPS) {
                        return Err(format!(
                            "sent on {sends} times: {:?}, {arrival:?}",
                            walk.path
                        ));
                    }
                    if arrival.1 == Arrival::Rewritten {
                        self.count("packets: sent on by a MAC rewrite");
                        if !self.lists(to, here) {
                            self.count(
                                "packets: rewritten for a node that does not list the sender",
                            );
                        }
                    }
                    let left = wire::tunnel(&packet).map(|tunnel| usize::from(tunnel.hops));
                    if left.is_some_and(|left| left + sends != usize::from(MAX_HOPS)) {
                        return Err(format!("{left:?} hops left after {:?}", walk.path));
                    }
                    if walk.path.contains(&arrival) {
                        // One of UDP comes back to the owner, and lists may name two.
                        let owners_differ = protocol != TCP && !self.agree(&walk.path);
                        if self.script.skew == Skew::OneStep && !owners_differ {
                            return Err(format!("goes round: {:?}, {arrival:?}", walk.path));
                        }
                        self.count("packets: at a node twice");
                    }
                    if self.is_lost(here, to) {
                        return Ok(walk);
                    }
                    walk.path.push(arrival);
                    continue;
                }
            }
            return Ok(walk);
        }
    }

    /// Whether nothing comes from one machine to the other.
    fn is_lost(&self, from: u8, to: u8) -> bool {
        let (from, to) = (usize::from(from), usize::from(to));
        !self.nodes[to].up || self.cut[from][to]
    }

    /// Whether the tables of a machine name another one.
    fn lists(&self, machine: u8, other: u8) -> bool {
        let entries = &self.nodes[usize::from(machine)].tables.nodes[..MAX_NODES as usize];
        let address = mapped(wire::address(other));
        entries
            .iter()
            .any(|e| e.flags & node_flag::LISTED != 0 && e.address == address)
    }

    /// A client sends a SYN.
    fn open(&mut self, at: usize) -> Result<(), String> {
        let flow = self.clients[at].flow;
        self.count("SYNs");
        let Some(walk) = self.send(flow, true)? else {
            return Ok(());
        };
        match walk.end {
            End::Passed => {
                let here = walk.last();
                self.accept(at, &walk)?;
                // Else its answer is lost, and the client asks again.
                if self.below(20) > 0 {
                    self.clients[at].state = State::Open(here);
                    self.clients[at].since = self.now;
                    self.exchange(at)?;
                }
            }
            End::Dropped(counter) => {
                self.count("SYNs: dropped");
                self.judge_syn(flow, &walk, counter)?;
            }
            End::Lost => self.count("SYNs: lost with a machine or a link"),
        }
        Ok(())
    }

    /// A SYN came to a stack.
    fn accept(&mut self, at: usize, walk: &Walk) -> Result<(), String> {
        let (here, flow) = (walk.last(), self.clients[at].flow);
        if !self.nodes[usize::from(here)].listens() {
            return Err(format!("SYN of flow {flow} refused after {:?}", walk.path));
        }
        let elsewhere = |node: &Node| node.id != here && node.sockets.contains_key(&flow);
        if self.nodes.iter().any(elsewhere) {
            self.clients[at].twice = true;
        }
        if !self.nodes[usize::from(here)].sockets.contains_key(&flow) {
            self.node(here).open(flow, Socket::HalfOpen);
        }
        Ok(())
    }

    /// A SYN that was underway for long comes after all.
    fn old_syn(&mut self, at: usize) -> Result<(), String> {
        let flow = self
            .clients
            .get(at)
            .filter(|c| matches!(c.state, State::Open(_)));
        let Some(flow) = flow
            .map(|client| client.flow)
            .filter(|flow| FLOWS[*flow].protocol == TCP)
        else {
            return Ok(());
        };
        match self.send(flow, true)? {
            Some(walk) if walk.end == End::Passed => self.accept(at, &walk),
            _ => Ok(()),
        }
    }

    /// A packet of an open flow, or of a UDP flow.
    fn exchange(&mut self, at: usize) -> Result<(), String> {
        let Client { flow, state, .. } = self.clients[at];
        let Some(walk) = self.send(flow, false)? else {
            return Ok(());
        };
        if walk.end != End::Passed {
            let what = match walk.end {
                End::Lost => "packets: lost with a machine or a link",
                End::Dropped(counter) => counter.name(),
                End::Passed => "",
            };
            self.count(what);
            return Ok(());
        }
        self.arrive(at, state, &walk)
    }

    fn arrive(&mut self, at: usize, state: State, walk: &Walk) -> Result<(), String> {
        let (here, flow, now) = (walk.last(), self.clients[at].flow, self.now);
        let udp = FLOWS[flow].protocol != TCP;
        let node = &mut self.nodes[usize::from(here)];
        match state {
            State::Open(holder) if holder == here => node.open(flow, Socket::Open),
            // A dead proxy's machine refuses it, a hanging one's keeps it in a queue.
            _ if udp && (!node.listens() || node.running().is_none()) => {}
            State::Open(_) if udp => {
                self.lose(at, walk)?;
            }
            _ if udp => {
                node.open(flow, Socket::Open);
                self.clients[at].state = State::Open(here);
                self.clients[at].since = now;
            }
            _ => self.lose(at, walk)?,
        }
        Ok(())
    }

    /// A packet came to a machine that does not hold its flow, while another one does.
    fn lose(&mut self, at: usize, walk: &Walk) -> Result<(), String> {
        let Client {
            flow,
            state,
            since,
            twice,
            ..
        } = self.clients[at];
        let State::Open(holder) = state else {
            return Ok(());
        };
        if !self.nodes[usize::from(holder)].sockets.contains_key(&flow) {
            return Ok(());
        }
        let udp = FLOWS[flow].protocol != TCP;
        let reason = if twice {
            Some("broken: two machines answered its SYN")
        } else if self.now - since + 3 * AGAIN > Duration::from_millis(self.script.drain_timeout) {
            Some("broken: longer than the drain timeout")
        } else if walk
            .path
            .iter()
            .any(|(machine, _)| self.buries(*machine, holder))
        {
            Some("broken: owner taken for dead")
        } else if walk
            .path
            .iter()
            .any(|(machine, _)| self.crowds_out(*machine, holder, flow))
        {
            Some("broken: three others rank higher")
        } else if self.script.skew == Skew::Any {
            Some(if udp {
                "moved: lists further apart"
            } else {
                "broken: lists further apart"
            })
        } else if udp && !self.agree(&walk.path) {
            Some("moved: lists a step apart")
        } else if udp && walk.path.len() == usize::from(MAX_HOPS) + 1 {
            Some("moved: too far for the hops")
        } else {
            None
        };
        let Some(reason) = reason else {
            return Err(self.describe(flow, holder, walk));
        };
        self.count(match reason {
            reason if udp && reason.starts_with("broken") => {
                "moved: for one of the reasons of broken flows"
            }
            reason => reason,
        });
        for node in &mut self.nodes {
            node.close(flow);
        }
        self.clients[at].state = State::Orphan(self.now);
        Ok(())
    }

    /// Whether the machines on a way have the same list.
    fn agree(&self, path: &[(u8, Arrival)]) -> bool {
        let print = |machine: u8| self.nodes[usize::from(machine)].tables.config.fingerprint;
        path.iter()
            .all(|(machine, _)| print(*machine) == print(path[0].0))
    }

    fn describe(&self, flow: usize, holder: u8, walk: &Walk) -> String {
        let mut clients = self.clients.iter();
        let since = clients.find(|c| c.flow == flow).map(|c| c.since);
        let mut text = format!(
            "flow {flow} ({}) of row {}, open since {since:?}, held by {holder}, broken at {:?} after {:?}",
            FLOWS[flow].protocol, FLOWS[flow].row, self.now, walk.path
        );
        for node in self.nodes.iter().filter(|node| node.up) {
            let row = node.tables.rows[FLOWS[flow].row as usize];
            let machine = |index| node.machine(index, MACHINES);
            let seen = node.process.as_ref().map(|p| p.seen);
            text += &format!(
                "\n  {}: owner {:?} next {:?} transition {} list {seen:?} fingerprint {:08x}; ",
                node.id,
                machine(row.owner()),
                [0, 1, 2].map(|i| (machine(row.next(i)), row.outranks_owner(i))),
                row.in_transition(),
                node.tables.config.fingerprint,
            );
            for listed in &node.listed {
                let member = &listed.member;
                let doubts = [
                    member.holds_until.is_some(),
                    member.settles_at.is_some(),
                    member.episode.is_some(),
                ];
                text += &format!(
                    " {} {:?}{}{doubts:?}",
                    &member.name[member.name.len() - 1..],
                    member.state,
                    if member.dead { " dead" } else { "" }
                );
            }
        }
        text
    }

    fn buries(&self, machine: u8, holder: u8) -> bool {
        self.seen_by(machine, holder)
            .is_some_and(|node| node.member.dead)
    }

    fn seen_by(&self, machine: u8, other: u8) -> Option<&ListedNode> {
        let address = IpAddr::from(wire::address(other));
        let mut listed = self.nodes[usize::from(machine)].listed.iter();
        listed.find(|node| node.member.address == address)
    }

    /// Whether three nodes that are not the owner rank above the holder, so that the row of this machine has no room for it.
    fn crowds_out(&self, machine: u8, holder: u8, flow: usize) -> bool {
        let row = FLOWS[flow].row;
        let rank = |machine: u8| {
            let hash = self.hashes[usize::from(machine)];
            (score(hash, 1, row), hash)
        };
        let alive = |other: &u8| {
            self.seen_by(machine, *other)
                .is_some_and(|node| !node.member.dead)
        };
        let owner = self.nodes[usize::from(machine)].tables.rows[row as usize].owner();
        let owner = self.nodes[usize::from(machine)].machine(owner, MACHINES);
        let above = (0..MACHINES)
            .filter(|other| *other != holder && Some(*other) != owner)
            .filter(|other| alive(other) && rank(*other) > rank(holder));
        alive(&holder) && above.count() >= 3
    }

    /// A SYN that was dropped: among nodes that agree nobody in the row is ready, well, listening and not asked.
    fn judge_syn(&mut self, flow: usize, walk: &Walk, counter: Counter) -> Result<(), String> {
        let last = &self.nodes[usize::from(walk.last())];
        let suspects_none = |(machine, _): &(u8, Arrival)| {
            let node = &self.nodes[usize::from(*machine)];
            node.tables.alive.iter().all(|(_, bits)| bits & 1 == 0)
        };
        let agree = self.agree(&walk.path) && walk.path.iter().all(suspects_none);
        let row = last.tables.rows[FLOWS[flow].row as usize];
        let could = [row.owner(), row.next(0), row.next(1), row.next(2)]
            .into_iter()
            .find(|index| {
                last.machine(*index, MACHINES).is_some_and(|machine| {
                    let asked = walk.path.iter().any(|(there, _)| *there == machine);
                    let there = &self.nodes[usize::from(machine)];
                    !asked && last.trusts(*index) && there.listens()
                })
            });
        match could {
            Some(index) if agree && self.script.skew == Skew::OneStep => Err(format!(
                "SYN of flow {flow} dropped ({}) after {:?} though node {index} of {row:x?} is ready",
                counter.name(),
                walk.path
            )),
            Some(_) => {
                self.count("SYNs: dropped although another node was ready");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Everything is mended; the flows that there are go on for a while, new ones come at first.
    fn calm_down(&mut self) -> Result<(), String> {
        self.cut = Default::default();
        self.deaf = Default::default();
        for machine in 0..MACHINES {
            let now = self.now;
            self.node(machine).go_on(now);
            self.node(machine).start(now);
        }
        let settle = 60 + self.script.drain_timeout / 100;
        for round in 0..settle {
            if round % 10 == 0 && self.unsaid.is_empty() {
                self.mend_list();
            }
            if round < 20 && self.below(3) == 0 {
                self.add_client();
            }
            // Some flows last to the end.
            if round + 70 >= settle {
                for client in &mut self.clients {
                    client.until = client.until.max(self.now + STEP * 200);
                }
            }
            if round + 75 == settle {
                for _ in 0..20 {
                    self.add_client();
                }
            }
            self.step()?;
        }
        Ok(())
    }

    /// Whoever runs and does not leave is ready, whoever is gone is not listed.
    fn mend_list(&mut self) {
        let list = self
            .lists
            .last()
            .map(|(_, list)| list.clone())
            .unwrap_or_default();
        for machine in 0..MACHINES {
            let node = &self.nodes[usize::from(machine)];
            let wanted = match node.up {
                false => None,
                true if node.drains() => Some(ReplicaState::Draining),
                true => Some(ReplicaState::Ready),
            };
            if list.get(&machine).copied() != wanted {
                self.unsaid.push_back((machine, wanted));
            }
        }
    }

    /// Every flow is served from wherever its packets come in.
    fn check_service(&mut self) -> Result<(), String> {
        let entries: Vec<u8> = (0..MACHINES)
            .filter(|m| self.nodes[usize::from(*m)].configured())
            .collect();
        for client in self.clients.clone() {
            match client.state {
                State::Opening(_) if !entries.is_empty() && self.now - client.since > 6 * AGAIN => {
                    return Err(format!("flow {} found nobody in the quiet", client.flow));
                }
                State::Open(holder) => {
                    for entry in &entries {
                        let walk = self.walk(FLOWS[client.flow].frame(false, *entry), *entry)?;
                        if (walk.end, walk.last()) != (End::Passed, holder) {
                            return Err(format!(
                                "in the quiet ({:?}) {}",
                                walk.end,
                                self.describe(client.flow, holder, &walk)
                            ));
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// After the last flow no row stays in transition, and all agree.
    fn check_rows(&mut self) -> Result<(), String> {
        for client in std::mem::take(&mut self.clients) {
            for node in &mut self.nodes {
                node.close(client.flow);
            }
        }
        for _ in 0..60 {
            self.step()?;
        }
        let up: Vec<&Node> = self.nodes.iter().filter(|node| node.up).collect();
        for node in &up {
            if node.in_transition() > 0 {
                return Err(format!(
                    "{} rows of node {} stay in transition: {:?}",
                    node.in_transition(),
                    node.id,
                    node.listed
                ));
            }
            if node.tables.config.fingerprint != up[0].tables.config.fingerprint {
                return Err(format!("nodes {} and {} do not agree", node.id, up[0].id));
            }
        }
        let rounds = self.now.as_millis() as u64 / 100;
        *self.counts.entry("rounds of 100 ms").or_default() += rounds;
        Ok(())
    }
}
