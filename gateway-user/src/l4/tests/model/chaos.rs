//! Tables that no history makes: any rows, any suspicion, any sockets, different at every node.

use gateway_common::abi::{Config, NodeIndex, Row, config::flag, state};
use gateway_common::probe::view;

use super::node::{Node, Socket};
use super::script::{MACHINES, Script, Skew, draw};
use super::wire::{self, FLOWS, TCP};
use super::world::World;

/// Numbers one after the other.
struct Draws(u64, u64);

impl Draws {
    fn below(&mut self, limit: u64) -> u64 {
        self.1 += 1;
        draw(self.0, 9, self.1, 0) % limit
    }

    fn one_in(&mut self, limit: u64) -> bool {
        self.below(limit) == 0
    }
}

/// A cluster in which everybody knows everybody.
fn whole_cluster(seed: u64, routed: u8) -> World {
    let script = Script {
        seed,
        ready: MACHINES,
        skew: Skew::Any,
        routed,
        drain_timeout: 10_000,
        length: 0,
        events: Vec::new(),
    };
    let mut world = World::new(script);
    world.settle(40).expect("nothing happens yet");
    assert!(world.nodes.iter().all(Node::configured));
    world
}

/// Gives a node any row for a flow, any opinion of the others, and any sockets.
fn disturb(node: &mut Node, flow: usize, draws: &mut Draws) {
    let index = |draws: &mut Draws| match draws.one_in(8) {
        true => 0,
        false => 1 + draws.below(MACHINES.into()) as NodeIndex,
    };
    let next = [0; 3].map(|_| (index(draws), draws.one_in(2)));
    let row = Row::new(index(draws), draws.one_in(2), next);
    node.tables.rows[FLOWS[flow].row as usize] = row;
    for (_, bits) in &mut node.tables.alive {
        *bits = u64::from(view::SUSPECT) * u64::from(draws.one_in(2));
    }
    let config: &mut Config = &mut node.tables.config;
    config.fingerprint = 1 + draws.below(2) as u32;
    config.flags = if draws.one_in(4) { flag::DRAINING } else { 0 };
    node.tables.heartbeat = draws.below(3);
    node.tables.state.borrow_mut()[state::NO_LISTENER as usize] = draws.below(3);
    node.tables.listeners.clear();
    if draws.one_in(2) {
        node.tables.listeners.push(wire::listener());
    }
    node.close(flow);
    if draws.one_in(6) {
        node.open(flow, Socket::Open);
    }
}

/// Sends packets through clusters in disorder; gives how many.
pub(super) fn packets_end(rounds: u64) -> Result<u64, String> {
    let mut packets = 0;
    for (seed, routed) in [(1, 0), (2, 0xff), (3, 0x5a)] {
        let mut world = whole_cluster(seed, routed);
        let mut draws = Draws(seed, 0);
        for round in 0..rounds {
            let flow = draws.below(FLOWS.len() as u64) as usize;
            for node in &mut world.nodes {
                disturb(node, flow, &mut draws);
            }
            for entry in 0..MACHINES {
                for syn in [true, false] {
                    if syn && FLOWS[flow].protocol != TCP {
                        continue;
                    }
                    world
                        .walk(FLOWS[flow].frame(syn, entry), entry)
                        .map_err(|why| format!("seed {seed}, round {round}: {why}"))?;
                    packets += 1;
                }
            }
        }
    }
    Ok(packets)
}
