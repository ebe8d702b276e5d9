//! A row whose owner does not answer probes: where its packets go, from node to node.

use super::*;
use crate::abi::node_flag;
use crate::abi::{ABI_VERSION, Config, NodeEntry, ROWS, VipKey};
use crate::encap::TunnelHeader;
use crate::host::{HostPacket, HostTables};
use crate::packet::{IP, Ipv4, Packet, Tcp, mapped};
use crate::steer::Local;
use crate::steer::{Tuple, steer};
use crate::verdict::Action;

/// Where the tunnel header begins.
const TUNNEL: u32 = IP + 20 + 8;
const VIP: [u8; 4] = [203, 0, 113, 1];
const CLIENT: [u8; 4] = [198, 51, 100, 7];
const PORTS: [u8; 4] = [0x9c, 0x40, 0, 80];
const SYN: u8 = Tcp::SYN;
const ACK: u8 = Tcp::ACK;

const fn address(node: NodeIndex) -> [u8; 4] {
    [192, 0, 2, node as u8]
}

/// A node with this index among three; every row belongs to node 3, then come 1 and 2.
fn node_of_three(me: NodeIndex, row: Row, suspects: &[NodeIndex]) -> HostTables {
    let mut tables = HostTables {
        config: Config {
            abi_version: ABI_VERSION,
            self_index: u32::from(me),
            flags: flag::ENCAP_ALWAYS,
            tunnel_port: [0x44, 0x02],
            tunnel_source: mapped(address(me)),
            ..Config::default()
        },
        rows: vec![row; ROWS as usize].into(),
        suspects: suspects.to_vec(),
        ..HostTables::default()
    };
    for index in 1..=3 {
        let own = if index == me { node_flag::SELF } else { 0 };
        tables.put_node(
            index,
            NodeEntry {
                address: mapped(address(index)),
                ifindex: 1,
                flags: node_flag::LISTED | node_flag::READY | node_flag::RESOLVED | own,
                ..NodeEntry::default()
            },
        );
    }
    assert!(tables.put_vip(VipKey::v4(VIP, [0, 80], 6), 0, 0));
    tables.listeners.push((mapped(VIP), [0, 80]));
    tables
}

const OWNED_BY_THREE: Row = Row::new(3, false, [(1, false), (2, false), (0, false)]);

fn packet(flags: u8) -> HostPacket {
    let mut bytes = vec![0; 12];
    bytes.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 60, 6, 0, 0]);
    bytes.extend(CLIENT.iter().chain(&VIP).chain(&PORTS));
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0, 9, 0, 0, 0, 0]);
    HostPacket {
        bytes,
        ingress: 1,
        headroom: 256,
    }
}

fn hold_flow(tables: &mut HostTables) {
    hold(tables, Local::Flow);
}

fn hold(tables: &mut HostTables, local: Local) {
    let tuple = Tuple::v4(
        u32::from_ne_bytes(CLIENT),
        u32::from_ne_bytes(VIP),
        u32::from_ne_bytes(PORTS),
    );
    tables.sockets.push((tuple, local));
}

/// What a node does: where it sends the packet and as what, or what it counts when it keeps or drops it.
#[derive(Debug, PartialEq)]
enum Does {
    Sends(NodeIndex, Phase, u8),
    Keeps(Counter),
    Drops(Counter),
}

fn does(tables: &HostTables, packet: &mut HostPacket) -> Does {
    let verdict = steer(packet, tables);
    match verdict.action() {
        Action::Pass => Does::Keeps(verdict.counter()),
        Action::Drop => Does::Drops(verdict.counter()),
        Action::Transmit | Action::Redirect { .. } => {
            let to = packet.read::<Ipv4>(IP).map(|ip| ip.destination);
            let [_, _, _, to] = to.expect("an outer header");
            let header = packet.read::<TunnelHeader>(TUNNEL).and_then(Tunnel::parse);
            let tunnel = header.expect("a tunnel header");
            Does::Sends(NodeIndex::from(to), tunnel.phase, tunnel.hops)
        }
    }
}

#[test]
fn a_syn_goes_to_the_heir_at_once() {
    let elsewhere = Row::new(3, false, [(2, false), (1, false), (0, false)]);
    let tables = node_of_three(1, elsewhere, &[3]);
    assert_eq!(
        does(&tables, &mut packet(SYN)),
        Does::Sends(2, Phase::SecondChance, 3)
    );
    let heir = node_of_three(1, OWNED_BY_THREE, &[3]);
    assert_eq!(does(&heir, &mut packet(SYN)), Does::Keeps(Counter::OwnSyn));
    let nobody = node_of_three(1, elsewhere, &[1, 2, 3]);
    assert_eq!(
        does(&nobody, &mut packet(SYN)),
        Does::Sends(3, Phase::Delivery, 3)
    );
}

#[test]
fn without_suspicion_nothing_changes() {
    let tables = node_of_three(1, OWNED_BY_THREE, &[]);
    for flags in [SYN, ACK] {
        assert_eq!(
            does(&tables, &mut packet(flags)),
            Does::Sends(3, Phase::Delivery, 3)
        );
    }
}

/// Node 2 gets the packet, node 1 is the heir; the flow lives where `holder` says.
fn way(holder: Option<NodeIndex>, heir_suspects: bool) -> Vec<Does> {
    let mut packet = packet(ACK);
    let mut at = 2;
    let mut way = Vec::new();
    loop {
        let suspects: &[NodeIndex] = match at {
            2 => &[3],
            1 if heir_suspects => &[3],
            _ => &[],
        };
        let mut tables = node_of_three(at, OWNED_BY_THREE, suspects);
        if holder == Some(at) {
            hold_flow(&mut tables);
        }
        // Those that hold it for alive have an episode about it, so it knows of its own.
        tables.rows.fill(Row(OWNED_BY_THREE.0 | IN_TRANSITION.0));
        let next = does(&tables, &mut packet);
        let to = match next {
            Does::Sends(to, ..) => Some(to),
            _ => None,
        };
        way.push(next);
        match to {
            Some(to) => at = to,
            None => return way,
        }
    }
}

const IN_TRANSITION: Row = Row::new(0, true, [(0, false), (0, false), (0, false)]);

#[test]
fn a_flow_is_found_at_the_heir_and_at_the_suspect() {
    for heir_suspects in [true, false] {
        assert_eq!(
            way(Some(1), heir_suspects),
            [
                Does::Sends(1, Phase::Detour, 3),
                Does::Keeps(Counter::OwnSocket)
            ]
        );
        assert_eq!(
            way(Some(3), heir_suspects),
            [
                Does::Sends(1, Phase::Detour, 3),
                Does::Sends(3, Phase::Delivery, 2),
                Does::Keeps(Counter::OwnSocket)
            ]
        );
    }
}

#[test]
fn a_flow_that_nobody_holds_ends_after_everybody_was_asked_once_more() {
    for heir_suspects in [true, false] {
        assert_eq!(
            way(None, heir_suspects),
            [
                Does::Sends(1, Phase::Detour, 3),
                Does::Sends(3, Phase::Delivery, 2),
                Does::Sends(1, Phase::SecondChance, 1),
                Does::Sends(2, Phase::SecondChance, 0),
                Does::Keeps(Counter::ExhaustedPass)
            ]
        );
    }
}

#[test]
fn an_heir_that_took_the_rows_over_meanwhile_decides_as_their_owner() {
    let mut packet = packet(ACK);
    let ingress = node_of_three(2, OWNED_BY_THREE, &[3]);
    assert_eq!(
        does(&ingress, &mut packet),
        Does::Sends(1, Phase::Detour, 3)
    );
    let mine = Row::new(1, false, [(2, false), (0, false), (0, false)]);
    let heir = node_of_three(1, mine, &[]);
    assert_eq!(does(&heir, &mut packet), Does::Keeps(Counter::OwnPass));
}

/// `tables` under another membership.
fn under(fingerprint: u32, mut tables: HostTables) -> HostTables {
    tables.config.fingerprint = fingerprint;
    tables
}

/// 1 and 2 have lost their readiness, and 3 has seen the news of 1 alone.
#[test]
fn nobody_is_reset_who_passed_a_node_that_does_not_agree() {
    let (old, new) = (7, 8);
    let behind = Row::new(2, true, [(1, true), (3, false), (4, false)]);
    let ahead = Row::new(3, true, [(1, true), (2, true), (4, false)]);
    let four = |me, row| {
        let mut tables = node_of_three(me, row, &[]);
        let mut entry = tables.nodes[1];
        entry.address = mapped(address(4));
        entry.flags = node_flag::LISTED | node_flag::READY | node_flag::RESOLVED;
        tables.put_node(4, entry);
        tables
    };
    let mut packet = packet(ACK);
    let mut step = |tables: &HostTables| does(tables, &mut packet);
    let [two, four_, three] = [
        under(new, four(2, ahead)),
        under(new, four(4, ahead)),
        under(old, four(3, behind)),
    ];
    assert_eq!(step(&three), Does::Sends(2, Phase::Delivery, 3));
    assert_eq!(step(&two), Does::Sends(3, Phase::SecondChance, 2));
    assert_eq!(step(&three), Does::Sends(4, Phase::SecondChance, 1));
    // 4 agrees with 2, where the second chance began; 1, which may hold the flow, was not asked.
    assert_eq!(step(&four_), Does::Drops(Counter::ExhaustedDrop));
}

#[test]
fn a_packet_of_a_peer_that_took_this_node_for_the_owner_makes_no_detour() {
    let mut packet = packet(ACK);
    // 1 is the heir of 3, and takes 2 for the owner.
    let elsewhere = Row::new(2, false, [(1, true), (3, false), (0, false)]);
    let peer = node_of_three(1, elsewhere, &[]);
    assert_eq!(does(&peer, &mut packet), Does::Sends(2, Phase::Delivery, 3));
    let here = node_of_three(2, OWNED_BY_THREE, &[3]);
    assert_eq!(
        does(&here, &mut packet),
        Does::Sends(3, Phase::SecondChance, 2)
    );
}

#[test]
fn a_draining_node_takes_no_syn_of_a_peer_that_does_not_know_it() {
    let row = Row::new(3, false, [(1, true), (2, false), (0, false)]);
    let peer = node_of_three(
        2,
        Row::new(1, false, [(3, false), (2, false), (0, false)]),
        &[],
    );
    let at = |flags, suspects: &[NodeIndex]| {
        let mut packet = packet(SYN);
        assert_eq!(does(&peer, &mut packet), Does::Sends(1, Phase::Delivery, 3));
        let mut here = node_of_three(1, row, suspects);
        here.config.flags |= flags;
        (does(&here, &mut packet), packet)
    };
    let (done, mut packet) = at(flag::DRAINING, &[]);
    assert_eq!(done, Does::Sends(3, Phase::SecondChance, 2));
    // Whoever else has not heard of it takes the SYN all the same.
    let behind = Row::new(1, false, [(3, false), (2, false), (0, false)]);
    let owner = node_of_three(3, behind, &[]);
    assert_eq!(does(&owner, &mut packet), Does::Keeps(Counter::OwnSyn));
    // One that leaves by the list alone, and one whose heir is silent, serve what still reaches them.
    for (flags, suspects) in [(0, &[][..]), (flag::DRAINING, &[3])] {
        let (done, _) = at(flags, suspects);
        assert_eq!(done, Does::Keeps(Counter::OwnSyn));
    }
}

#[test]
fn a_packet_of_a_peer_is_not_delivered_on_by_a_node_that_its_row_has_no_room_for() {
    let mut packet = packet(ACK);
    let peer = node_of_three(
        2,
        Row::new(1, false, [(2, false), (3, false), (0, false)]),
        &[],
    );
    assert_eq!(does(&peer, &mut packet), Does::Sends(1, Phase::Delivery, 3));
    let crowded = Row::new(2, false, [(7, true), (8, true), (9, true)]);
    let here = node_of_three(1, crowded, &[]);
    assert_eq!(
        does(&here, &mut packet),
        Does::Sends(2, Phase::SecondChance, 2)
    );
}

#[test]
fn what_waits_for_its_end_takes_only_what_nobody_else_has() {
    const FIN: u8 = 1;
    let row = Row::new(1, true, [(2, false), (3, false), (0, false)]);
    let mut first = under(7, node_of_three(1, row, &[]));
    hold(&mut first, Local::TimeWait);
    // A later connection of the same port may be elsewhere; the end of the earlier one is awaited here.
    let mut moved = packet(ACK);
    assert_eq!(
        does(&first, &mut moved),
        Does::Sends(2, Phase::SecondChance, 3)
    );
    assert_eq!(
        does(&first, &mut packet(ACK | FIN)),
        Does::Keeps(Counter::OwnSocket)
    );
    let mut second = under(7, node_of_three(2, row, &[]));
    hold(&mut second, Local::TimeWait);
    let mut on = moved.clone();
    assert_eq!(
        does(&second, &mut on),
        Does::Sends(3, Phase::SecondChance, 2)
    );
    // Nobody has it: no reset, for the client may still read what the first node has sent.
    let third = under(7, node_of_three(3, row, &[]));
    assert_eq!(does(&third, &mut on), Does::Drops(Counter::ExhaustedDrop));
    let mut third = under(7, node_of_three(3, row, &[]));
    hold(&mut third, Local::TimeWait);
    let mut last = moved.clone();
    assert!(matches!(
        does(&under(7, node_of_three(2, row, &[])), &mut last),
        Does::Sends(3, ..)
    ));
    assert_eq!(does(&third, &mut last), Does::Keeps(Counter::OwnSocket));
    hold_flow(&mut second);
    second.sockets.reverse();
    assert_eq!(does(&second, &mut moved), Does::Keeps(Counter::OwnSocket));
}
