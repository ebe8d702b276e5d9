//! The packet table: named packets through the loaded object and through the host's decision, with the action,
//! the reason and the bytes that each must come to. Every reason that the decision knows is hit.

use std::collections::BTreeSet;

use gateway_common::abi::{Counter, Row, config::flag, node_flag, state};
use gateway_common::host::{HostPacket, HostTables};
use gateway_common::steer::steer;
use gateway_common::verdict::Action;
use gateway_tests::object::fixture::{
    DELETED, DRAINING, FAR_INTERFACE, FINGERPRINT, LISTENING, ME, ON_LINK, OWN_MAC, ROUTED, SHARED,
    Sockets, TUNNEL, VIP, address, hash, mac, set_row, tables,
};
use gateway_tests::object::{INGRESS, Object, Run, fresh_namespace};
use gateway_tests::packet::{ACK, Ip, RST, SYN, TcpPacket, Tunnelled, arp, ethernet};

#[test]
fn xdp_programs_are_accepted_by_the_kernel() {
    let [xdp, lookup] = Object::load().unwrap().verified_instructions().unwrap();
    println!("verified instructions: forebay_xdp {xdp}, forebay_lookup {lookup}");
    assert!(xdp < 100_000 && lookup < 10_000, "{xdp} {lookup}");
}

#[test]
fn xdp_verdicts_are_as_the_table_says() {
    fresh_namespace().unwrap();
    let mut base = tables();
    let sockets = Sockets::open(&mut base).unwrap();
    let mut object = Object::load().unwrap();
    object.add_device(FAR_INTERFACE).unwrap();
    base.jiffies = jiffies(&mut object, &base);
    let cases = [
        foreign(),
        owned(&sockets),
        forwarded(),
        searched(&sockets),
        tunnelled(&sockets),
        unfit(),
        announced(),
    ]
    .concat();
    let mut hit = BTreeSet::new();
    let mut failures = Vec::new();
    for case in &cases {
        let tables = case.tables(&base);
        object.write(&tables).unwrap();
        let kernel = object.run(&case.packet).unwrap();
        let mut counted = case.counted.clone();
        counted.sort_by_key(|counter| counter.slot());
        let expected = Run {
            action: case.action,
            bytes: case.bytes.clone(),
            counted,
        };
        for (side, run) in [
            ("kernel", &kernel),
            ("host", &on_host(&tables, &case.packet)),
        ] {
            if *run != expected {
                failures.push(format!(
                    "{} ({side}):\n  expected {expected:02x?}\n  got      {run:02x?}",
                    case.name
                ));
            }
        }
        hit.extend(kernel.counted.iter().map(|counter| counter.slot()));
    }
    assert!(
        failures.is_empty(),
        "{} of {} cases:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    let missed: Vec<_> = Counter::ALL
        .iter()
        .filter(|counter| !hit.contains(&counter.slot()))
        .collect();
    // A test run always has headroom, and socket lookups count for themselves.
    let beyond = [
        Counter::OwnSession,
        Counter::LocalOnly,
        Counter::NeighbourReply,
        Counter::EchoReply,
        Counter::SynCookie,
        Counter::TooBigReply,
        Counter::TooBig,
        Counter::SourceDenied,
        Counter::AdjustFailed,
        Counter::NotUnderstood,
        Counter::LookupRedirected,
        Counter::LookupRefused,
        Counter::LookupLoopback,
        Counter::LookupNoSocket,
    ];
    assert_eq!(
        missed,
        beyond.iter().collect::<Vec<_>>(),
        "reasons that no case hits"
    );
}

/// What the host's decision makes of a packet, in the form of a kernel run.
pub(crate) fn on_host(tables: &HostTables, packet: &[u8]) -> Run {
    let mut packet = HostPacket {
        bytes: packet.to_vec(),
        ingress: INGRESS,
        headroom: 256,
    };
    let verdict = steer(&mut packet, tables);
    let mut counted = tables.counted.borrow().clone();
    counted.push(verdict.counter());
    counted.sort_by_key(|counter| counter.slot());
    Run {
        action: verdict.action(),
        bytes: packet.bytes,
        counted,
    }
}

/// The kernel's tick counter, as a second chance writes it down.
fn jiffies(object: &mut Object, base: &HostTables) -> u64 {
    let packet = TcpPacket::default();
    let mut tables = base.clone();
    tables.config.hop_limit = 1;
    set_row(
        &mut tables,
        &packet,
        Row::new(ME, true, [(ON_LINK, false), (0, false), (0, false)]),
    );
    object.write(&tables).unwrap();
    assert_eq!(
        object.run(&packet.build()).unwrap().counted,
        [Counter::SecondChance]
    );
    object.state(state::HOP_WINDOW).unwrap()
}

#[derive(Clone)]
struct Case {
    name: &'static str,
    packet: Vec<u8>,
    rows: Vec<(TcpPacket, Row)>,
    setup: fn(&mut HostTables),
    action: Action,
    counted: Vec<Counter>,
    bytes: Vec<u8>,
}

impl Case {
    /// A packet that is passed as it is.
    fn pass(name: &'static str, packet: Vec<u8>, counter: Counter) -> Self {
        let bytes = packet.clone();
        Self {
            name,
            packet,
            rows: Vec::new(),
            setup: |_| {},
            action: Action::Pass,
            counted: vec![counter],
            bytes,
        }
    }

    /// A packet that is dropped as it is.
    fn drop(name: &'static str, packet: Vec<u8>, counter: Counter) -> Self {
        Self {
            action: Action::Drop,
            ..Self::pass(name, packet, counter)
        }
    }

    /// A packet that is sent out as `bytes`.
    fn send(name: &'static str, packet: Vec<u8>, counter: Counter, bytes: Vec<u8>) -> Self {
        Self {
            action: Action::Transmit,
            bytes,
            ..Self::pass(name, packet, counter)
        }
    }

    /// With this row for the flow of `packet`.
    fn row(mut self, packet: &TcpPacket, row: Row) -> Self {
        self.rows.push((packet.clone(), row));
        self
    }

    fn setup(self, setup: fn(&mut HostTables)) -> Self {
        Self { setup, ..self }
    }

    fn also(mut self, counter: Counter) -> Self {
        self.counted.push(counter);
        self
    }

    /// The packet as it leaves although nothing else is expected of it.
    fn leaves(self, bytes: Vec<u8>) -> Self {
        Self { bytes, ..self }
    }

    fn tables(&self, base: &HostTables) -> HostTables {
        let mut tables = base.clone();
        for (packet, row) in &self.rows {
            set_row(&mut tables, packet, *row);
        }
        (self.setup)(&mut tables);
        tables
    }
}

/// A stable row that this node owns, alone.
const MINE: Row = Row::new(ME, false, [(0, false), (0, false), (0, false)]);
/// A row in transition that this node owns, with a draining node above and a ready one below.
const MOVING: Row = Row::new(ME, true, [(DRAINING, true), (ON_LINK, false), (0, false)]);

fn owned_by(owner: u16) -> Row {
    Row::new(owner, false, [(ME, false), (0, false), (0, false)])
}

fn ack() -> TcpPacket {
    TcpPacket::default()
}

fn syn() -> TcpPacket {
    TcpPacket {
        flags: SYN,
        ..ack()
    }
}

/// The packet a hop later.
fn aged(packet: &TcpPacket) -> TcpPacket {
    TcpPacket {
        ttl: packet.ttl - 1,
        ..packet.clone()
    }
}

/// The UDP form of a packet that this node sends, a hop later.
fn sent(packet: &TcpPacket, to: u16, first: [u8; 2]) -> Vec<u8> {
    let source_port = 0xc000 | (hash(packet) >> 16) as u16 & 0x3fff;
    let (source, destination) = (address(ME), address(to));
    let form = Tunnelled {
        to_mac: mac(to),
        from_mac: OWN_MAC,
        source,
        destination,
        source_port,
        port: TUNNEL,
        first,
        fingerprint: FINGERPRINT,
        tos: packet.tos,
    };
    form.build(&aged(packet).build())
}

/// The UDP form of a packet that a peer sends here.
fn from_peer(packet: &TcpPacket, first: [u8; 2], fingerprint: u32) -> Vec<u8> {
    let form = Tunnelled {
        to_mac: OWN_MAC,
        from_mac: mac(ON_LINK),
        source: address(ON_LINK),
        destination: address(ME),
        source_port: 50_000,
        port: TUNNEL,
        first,
        fingerprint,
        tos: 0,
    };
    form.build(&packet.build())
}

/// A packet out of [`from_peer`].
fn opened(packet: &TcpPacket) -> TcpPacket {
    TcpPacket {
        to_mac: OWN_MAC,
        from_mac: mac(ON_LINK),
        ..packet.clone()
    }
}

/// Somebody else's packets: whatever they are, they pass as they are.
fn foreign() -> Vec<Case> {
    let elsewhere = TcpPacket {
        destination: [203, 0, 113, 99],
        ..ack()
    };
    let ip = |protocol, payload: &[u8]| {
        let ip = Ip {
            protocol,
            source: [198, 51, 100, 7],
            destination: VIP,
            ttl: 1,
            tos: 0,
            fragment: 0,
        };
        ethernet(OWN_MAC, mac(99), [8, 0], &ip.build(&[], payload))
    };
    let plain = elsewhere.build();
    let tagged = [&plain[..12], &[0x81, 0, 0, 5], &plain[12..]].concat();
    let six = ethernet(OWN_MAC, mac(99), [0x86, 0xdd], &[0x60; 60]);
    let other_tunnel = Tunnelled {
        to_mac: OWN_MAC,
        from_mac: mac(99),
        source: address(99),
        destination: [192, 0, 2, 77],
        source_port: 1,
        port: TUNNEL,
        first: [0x13, 0],
        fingerprint: 0,
        tos: 0,
    };
    let mut fragmented_tunnel = from_peer(&ack(), [0x13, 0], FINGERPRINT);
    fragmented_tunnel[20] = 0x20;
    [
        ("another address", elsewhere.build()),
        (
            "another address, first fragment",
            TcpPacket {
                fragment: 0x2000,
                ..elsewhere.clone()
            }
            .build(),
        ),
        (
            "another address, later fragment",
            TcpPacket {
                fragment: 0x0003,
                ..elsewhere.clone()
            }
            .build(),
        ),
        (
            "another address, options",
            TcpPacket {
                options: vec![1; 8],
                ..elsewhere.clone()
            }
            .build(),
        ),
        (
            "another address, TTL 1",
            TcpPacket {
                ttl: 1,
                ..elsewhere.clone()
            }
            .build(),
        ),
        (
            "another address, truncated",
            elsewhere.build()[..40].to_vec(),
        ),
        (
            "another port of a VIP",
            TcpPacket {
                destination_port: 22,
                ..ack()
            }
            .build(),
        ),
        (
            "another port of a shared address",
            TcpPacket {
                destination: SHARED,
                destination_port: 22,
                ..ack()
            }
            .build(),
        ),
        (
            "fragment for a shared address",
            TcpPacket {
                destination: SHARED,
                fragment: 0x2000,
                ..ack()
            }
            .build(),
        ),
        (
            "options for a shared address",
            TcpPacket {
                destination: SHARED,
                destination_port: 22,
                options: vec![1; 4],
                ..ack()
            }
            .build(),
        ),
        ("UDP for a VIP", ip(17, &[0, 80, 0, 80, 0, 8, 0, 0])),
        ("echo reply to a VIP", ip(1, &[0, 0, 0, 0, 0, 0, 0, 0])),
        ("nothing but Ethernet", ack().build()[..14].to_vec()),
        ("half an IPv4 header", ack().build()[..30].to_vec()),
        ("IPv4 of version 5", {
            let mut bytes = ack().build();
            bytes[14] = 0x55;
            bytes
        }),
        ("VLAN, another address", tagged),
        ("IPv6", six),
        (
            "tunnel of somebody else",
            other_tunnel.build(&ack().build()),
        ),
        ("tunnel fragment", fragmented_tunnel),
        (
            "UDP for this node, other port",
            Tunnelled {
                destination: address(ME),
                port: 53,
                ..other_tunnel
            }
            .build(&ack().build()),
        ),
    ]
    .map(|(name, packet)| Case::pass(name, packet, Counter::NotOurs))
    .into_iter()
    .chain([
        Case::pass("no own index yet", ack().build(), Counter::NotConfigured)
            .setup(|t| t.config.self_index = 0),
        Case::pass(
            "maps of another version",
            ack().build(),
            Counter::NotConfigured,
        )
        .setup(|t| t.config.abi_version += 1),
    ])
    .collect()
}

/// Rows of this node.
fn owned(sockets: &Sockets) -> Vec<Case> {
    let listened = TcpPacket {
        flags: SYN,
        destination_port: LISTENING,
        ..ack()
    };
    let heirs = Row::new(
        ME,
        false,
        [(DRAINING, true), (ROUTED, false), (ON_LINK, false)],
    );
    let redirect = |case: Case| Case {
        action: Action::Redirect {
            ifindex: FAR_INTERFACE,
        },
        ..case
    };
    let heir = |name, packet: &TcpPacket| {
        redirect(Case::send(
            name,
            packet.build(),
            Counter::SynHeir,
            sent(packet, ROUTED, [0x13, 1]),
        ))
        .row(packet, heirs)
    };
    vec![
        Case::pass("ACK at the owner", ack().build(), Counter::OwnPass).row(&ack(), MINE),
        Case::pass(
            "RST at the owner",
            TcpPacket {
                flags: RST,
                ..ack()
            }
            .build(),
            Counter::OwnPass,
        )
        .row(&ack(), MINE),
        Case::pass(
            "TTL 1 at the owner",
            TcpPacket { ttl: 1, ..ack() }.build(),
            Counter::OwnPass,
        )
        .row(&ack(), MINE),
        Case::pass(
            "SYN-ACK at the owner",
            TcpPacket {
                flags: SYN | ACK,
                ..ack()
            }
            .build(),
            Counter::OwnPass,
        )
        .row(&ack(), MINE),
        Case::pass(
            "padded frame",
            [ack().build(), vec![0; 6]].concat(),
            Counter::OwnPass,
        )
        .row(&ack(), MINE),
        Case::pass("SYN with a listener", listened.build(), Counter::OwnSyn).row(&listened, MINE),
        Case::drop(
            "SYN that nobody takes",
            syn().build(),
            Counter::SynNoListener,
        )
        .row(&syn(), MINE),
        Case::drop(
            "SYN, the others not ready",
            syn().build(),
            Counter::SynNoListener,
        )
        .row(
            &syn(),
            Row::new(ME, false, [(DRAINING, true), (0, false), (0, false)]),
        ),
        heir("SYN without a listener", &syn()),
        heir("SYN, draining by own decision", &listened)
            .setup(|t| t.config.flags |= flag::DRAINING),
        heir("SYN, the proxy never beat", &listened)
            .setup(|t| t.config.beat_limit_jiffies = 1_000_000),
        heir("SYN, the proxy hangs", &listened).setup(|t| {
            (t.config.beat_limit_jiffies, t.heartbeat) = (75, 5);
            t.state.borrow_mut()[state::BEAT_VALUE as usize] = 5;
        }),
        Case::pass(
            "SYN, the proxy beat since",
            listened.build(),
            Counter::OwnSyn,
        )
        .row(&listened, heirs)
        .setup(|t| {
            (t.config.beat_limit_jiffies, t.heartbeat) = (75, 6);
            t.state.borrow_mut()[state::BEAT_VALUE as usize] = 5;
        }),
        Case::send(
            "SYN, the first heir suspected",
            syn().build(),
            Counter::SynHeir,
            sent(&syn(), ON_LINK, [0x13, 1]),
        )
        .row(&syn(), heirs)
        .setup(|t| t.suspects.push(ROUTED)),
        Case::pass("SYN, draining alone", listened.build(), Counter::OwnSyn)
            .row(&listened, MINE)
            .setup(|t| t.config.flags |= flag::DRAINING),
        Case::pass(
            "own draining counts as transition",
            sockets.flow.build(),
            Counter::OwnSocket,
        )
        .row(&sockets.flow, MINE)
        .setup(|t| t.config.flags |= flag::DRAINING),
        Case::pass(
            "deleted VIP, SYN",
            TcpPacket {
                destination: DELETED,
                ..syn()
            }
            .build(),
            Counter::OwnPass,
        ),
        Case::pass(
            "deleted VIP, ACK",
            TcpPacket {
                destination: DELETED,
                ..ack()
            }
            .build(),
            Counter::OwnPass,
        )
        .row(
            &TcpPacket {
                destination: DELETED,
                ..ack()
            },
            MINE,
        ),
        Case::drop("rows not written", ack().build(), Counter::NoOwner),
        Case::drop("SYN, no node ready", syn().build(), Counter::NoOwner).row(
            &syn(),
            Row::new(0, false, [(ME, true), (DRAINING, true), (0, false)]),
        ),
        Case::pass(
            "SYN, no node ready but a listener",
            listened.build(),
            Counter::OwnSyn,
        )
        .row(
            &listened,
            Row::new(0, false, [(ME, true), (0, false), (0, false)]),
        ),
    ]
}

/// Rows of other nodes.
fn forwarded() -> Vec<Case> {
    let rewritten = |packet: &TcpPacket| {
        TcpPacket {
            to_mac: mac(ON_LINK),
            from_mac: OWN_MAC,
            ..aged(packet)
        }
        .build()
    };
    let from_node = TcpPacket {
        from_mac: mac(DRAINING),
        ..ack()
    };
    let marked = TcpPacket {
        tos: 0xb9,
        payload: b"GET / HTTP/1.1\r\n".to_vec(),
        ..ack()
    };
    vec![
        Case::send(
            "owner on-link",
            ack().build(),
            Counter::ForwardL2,
            rewritten(&ack()),
        )
        .row(&ack(), owned_by(ON_LINK)),
        Case::send(
            "SYN, owner on-link",
            syn().build(),
            Counter::ForwardL2,
            rewritten(&syn()),
        )
        .row(&syn(), owned_by(ON_LINK)),
        Case::send(
            "owner on-link, UDP asked for",
            marked.build(),
            Counter::ForwardUdp,
            sent(&marked, ON_LINK, [0x13, 0]),
        )
        .row(&marked, owned_by(ON_LINK))
        .setup(|t| t.config.flags |= flag::ENCAP_ALWAYS),
        Case {
            action: Action::Redirect {
                ifindex: FAR_INTERFACE,
            },
            ..Case::send(
                "owner behind a router",
                ack().build(),
                Counter::ForwardUdp,
                sent(&ack(), ROUTED, [0x13, 0]),
            )
        }
        .row(&ack(), owned_by(ROUTED)),
        Case::send(
            "from a peer's MAC",
            from_node.build(),
            Counter::ForwardUdp,
            sent(&from_node, ON_LINK, [0x12, 0]),
        )
        .row(
            &from_node,
            Row::new(ON_LINK, false, [(ME, false), (0, false), (0, false)]),
        ),
        Case::send(
            "from a peer's MAC, outranked here",
            from_node.build(),
            Counter::SecondChance,
            sent(&from_node, ON_LINK, [0x12, 1]),
        )
        .row(
            &from_node,
            Row::new(ON_LINK, false, [(ME, true), (0, false), (0, false)]),
        ),
        Case::drop(
            "TTL 1",
            TcpPacket { ttl: 1, ..ack() }.build(),
            Counter::TtlSpent,
        )
        .row(&ack(), owned_by(ON_LINK)),
        Case::drop(
            "neighbour not resolved",
            ack().build(),
            Counter::NeighbourUnresolved,
        )
        .row(&ack(), owned_by(ON_LINK))
        .setup(|t| unresolve(t, ON_LINK)),
        Case::drop(
            "node not listed",
            ack().build(),
            Counter::NeighbourUnresolved,
        )
        .row(&ack(), owned_by(77)),
    ]
}

fn unresolve(tables: &mut HostTables, node: u16) {
    let mut entry = tables.nodes[1_024 + usize::from(node)];
    entry.flags &= !node_flag::RESOLVED;
    tables.put_node(node, entry);
}

/// Rows in transition, and the second chance.
fn searched(sockets: &Sockets) -> Vec<Case> {
    let listened = TcpPacket {
        destination_port: LISTENING,
        ..ack()
    };
    let last = Row::new(ME, true, [(0, false), (0, false), (0, false)]);
    let search = |name, packet: &TcpPacket| {
        Case::send(
            name,
            packet.build(),
            Counter::SecondChance,
            sent(packet, DRAINING, [0x13, 1]),
        )
        .row(packet, MOVING)
    };
    let mut wrong = sockets.cookie.clone();
    wrong.acknowledgment = wrong.acknowledgment.wrapping_add(1);
    vec![
        Case::pass(
            "moving, the socket is here",
            sockets.flow.build(),
            Counter::OwnSocket,
        )
        .row(&sockets.flow, MOVING),
        Case::pass(
            "moving, a cookie of ours",
            sockets.cookie.build(),
            Counter::OwnCookie,
        )
        .row(&sockets.cookie, MOVING),
        search("moving, no socket", &ack()),
        search("moving, only a listener", &listened),
        search("moving, the proxy is dead", &listened)
            .setup(|t| t.config.beat_limit_jiffies = 1_000_000),
        Case::pass(
            "nobody else holds it",
            ack().build(),
            Counter::ExhaustedPass,
        )
        .row(&ack(), last),
        Case::drop("hop budget spent", ack().build(), Counter::HopBudget)
            .row(&ack(), MOVING)
            .setup(|t| {
                (t.config.hop_limit, t.config.window_jiffies) = (3, 1_000_000);
                let mut state = t.state.borrow_mut();
                (
                    state[state::HOP_WINDOW as usize],
                    state[state::HOP_COUNT as usize],
                ) = (t.jiffies, 3);
            }),
        search("hop budget, one left", &ack()).setup(|t| {
            (t.config.hop_limit, t.config.window_jiffies) = (3, 1_000_000);
            let mut state = t.state.borrow_mut();
            (
                state[state::HOP_WINDOW as usize],
                state[state::HOP_COUNT as usize],
            ) = (t.jiffies, 2);
        }),
        search("no node ready", &ack()).row(
            &ack(),
            Row::new(0, false, [(DRAINING, true), (ME, true), (0, false)]),
        ),
    ]
}

/// Packets out of the tunnel.
fn tunnelled(sockets: &Sockets) -> Vec<Case> {
    let good = || from_peer(&ack(), [0x13, 0], FINGERPRINT);
    let out = |case: Case, packet: &TcpPacket| {
        case.leaves(opened(packet).build())
            .also(Counter::Decapsulated)
    };
    let pass = |name, packet: &TcpPacket, first, fingerprint, counter| {
        out(
            Case::pass(name, from_peer(packet, first, fingerprint), counter),
            packet,
        )
    };
    let drop = |name, packet: &TcpPacket, first, fingerprint, counter| Case {
        action: Action::Drop,
        ..pass(name, packet, first, fingerprint, counter)
    };
    let send = |name, packet: &TcpPacket, first, counter, to, next| {
        Case::send(
            name,
            from_peer(packet, first, FINGERPRINT),
            counter,
            sent(packet, to, next),
        )
        .also(Counter::Decapsulated)
    };
    let below = Row::new(
        ON_LINK,
        true,
        [(DRAINING, true), (ME, false), (ROUTED, false)],
    );
    let listened = TcpPacket {
        flags: SYN,
        destination_port: LISTENING,
        ..ack()
    };
    let end = Row::new(ON_LINK, true, [(DRAINING, true), (ME, false), (0, false)]);
    let not_vip = TcpPacket {
        destination: [203, 0, 113, 99],
        ..ack()
    };
    let far = |case: Case| Case {
        action: Action::Redirect {
            ifindex: FAR_INTERFACE,
        },
        ..case
    };
    let edited = |at: usize, byte| {
        let mut bytes = good();
        bytes[at] = byte;
        bytes
    };
    let stranger = {
        let mut bytes = good();
        bytes[29] = 99;
        bytes
    };
    vec![
        pass(
            "delivery to the owner",
            &ack(),
            [0x13, 0],
            1,
            Counter::OwnPass,
        )
        .row(&ack(), MINE),
        pass(
            "congestion mark carried over",
            &TcpPacket { tos: 2, ..ack() },
            [0x13, 0],
            1,
            Counter::OwnPass,
        )
        .row(&ack(), MINE),
        {
            let mut case = pass(
                "outer congestion mark",
                &TcpPacket { tos: 2, ..ack() },
                [0x13, 0],
                1,
                Counter::OwnPass,
            )
            .row(&ack(), MINE);
            case.packet[15] = 3;
            case.leaves(opened(&TcpPacket { tos: 3, ..ack() }).build())
        },
        send(
            "delivery, the owner ranks higher",
            &ack(),
            [0x13, 0],
            Counter::ForwardUdp,
            ON_LINK,
            [0x12, 0],
        )
        .row(&ack(), below),
        send(
            "delivery, the owner ranks lower",
            &ack(),
            [0x13, 0],
            Counter::SecondChance,
            ON_LINK,
            [0x12, 1],
        )
        .row(
            &ack(),
            Row::new(ON_LINK, false, [(ME, true), (0, false), (0, false)]),
        ),
        send(
            "SYN, the owner ranks lower",
            &syn(),
            [0x13, 0],
            Counter::SynHeir,
            ON_LINK,
            [0x12, 1],
        )
        .row(
            &syn(),
            Row::new(ON_LINK, false, [(ME, true), (0, false), (0, false)]),
        ),
        pass(
            "SYN, the owner ranks lower, a listener here",
            &listened,
            [0x13, 0],
            1,
            Counter::OwnSyn,
        )
        .row(
            &listened,
            Row::new(ON_LINK, false, [(ME, true), (0, false), (0, false)]),
        ),
        pass(
            "second chance, the socket is here",
            &sockets.flow,
            [0x12, 1],
            1,
            Counter::OwnSocket,
        )
        .row(&sockets.flow, below),
        pass(
            "second chance, SYN with a listener",
            &listened,
            [0x12, 1],
            1,
            Counter::OwnSyn,
        )
        .row(&listened, below),
        far(send(
            "second chance, on to the next",
            &ack(),
            [0x12, 1],
            Counter::SecondChance,
            ROUTED,
            [0x11, 1],
        ))
        .row(&ack(), below),
        far(send(
            "second chance, SYN on to the next",
            &syn(),
            [0x12, 1],
            Counter::SynHeir,
            ROUTED,
            [0x11, 1],
        ))
        .row(&syn(), below),
        send(
            "second chance at the owner goes down",
            &ack(),
            [0x12, 1],
            Counter::SecondChance,
            ON_LINK,
            [0x11, 1],
        )
        .row(&ack(), MOVING),
        pass(
            "second chance ends, all agree",
            &ack(),
            [0x12, 1],
            FINGERPRINT,
            Counter::ExhaustedPass,
        )
        .row(&ack(), end),
        drop(
            "second chance ends, memberships differ",
            &ack(),
            [0x12, 1],
            7,
            Counter::ExhaustedDrop,
        )
        .row(&ack(), end),
        drop(
            "second chance ends for a SYN",
            &syn(),
            [0x12, 1],
            7,
            Counter::SynNoListener,
        )
        .row(&syn(), end),
        drop("no hops left", &ack(), [0x10, 1], 7, Counter::HopsSpent).row(&ack(), below),
        drop(
            "not a VIP inside",
            &not_vip,
            [0x13, 0],
            7,
            Counter::TunnelNotVip,
        ),
        Case::drop("a stranger's tunnel", stranger, Counter::PeerUnknown),
        Case::drop(
            "another version",
            edited(42, 0x23),
            Counter::TunnelMalformed,
        ),
        Case::drop("another phase", edited(43, 2), Counter::TunnelMalformed),
        Case::drop(
            "no inner header",
            good()[..60].to_vec(),
            Counter::TunnelMalformed,
        ),
        Case::drop("no IP inside", edited(50, 0x70), Counter::TunnelMalformed),
    ]
}

/// VIP packets that cannot be steered.
fn unfit() -> Vec<Case> {
    let edited = |at: usize, byte| {
        let mut bytes = ack().build();
        bytes[at] = byte;
        bytes
    };
    vec![
        Case::drop(
            "first fragment",
            TcpPacket {
                fragment: 0x2000,
                ..ack()
            }
            .build(),
            Counter::Fragment,
        ),
        Case::drop(
            "later fragment",
            TcpPacket {
                fragment: 0x0003,
                ..ack()
            }
            .build(),
            Counter::Fragment,
        ),
        Case::pass(
            "options",
            TcpPacket {
                options: vec![1; 4],
                ..ack()
            }
            .build(),
            Counter::OwnPass,
        )
        .row(&ack(), MINE),
        Case::drop(
            "no TCP header",
            ack().build()[..40].to_vec(),
            Counter::Truncated,
        ),
        Case::drop(
            "IPv4 header of 16 bytes",
            edited(14, 0x44),
            Counter::Truncated,
        ),
        Case::drop("longer than the frame", edited(17, 41), Counter::Truncated),
        Case::drop(
            "shorter than its headers",
            edited(17, 39),
            Counter::Truncated,
        ),
        Case::drop(
            "TCP header of 16 bytes",
            edited(46, 0x40),
            Counter::Truncated,
        ),
        Case::drop(
            "TCP header past the end",
            edited(46, 0x60),
            Counter::Truncated,
        ),
    ]
}

/// ARP.
fn announced() -> Vec<Case> {
    const ALL: [u8; 6] = [0xff; 6];
    let client = (mac(99), [203, 0, 113, 1]);
    let ask = |target| arp(ALL, 1, client, ([0; 6], target));
    vec![
        Case::send("who has the VIP", ask(VIP), Counter::ArpReply, {
            arp(mac(99), 2, (OWN_MAC, VIP), client)
        }),
        Case::pass(
            "who has another address",
            ask([203, 0, 113, 99]),
            Counter::NotOurs,
        ),
        Case::pass("who has a shared address", ask(SHARED), Counter::NotOurs),
        Case::pass(
            "who has a VIP announced elsewhere",
            ask(DELETED),
            Counter::NotOurs,
        ),
        Case::pass(
            "announcement of the VIP",
            arp(ALL, 1, (mac(99), VIP), ([0; 6], VIP)),
            Counter::NotOurs,
        ),
        Case::pass(
            "answer about the VIP",
            arp(OWN_MAC, 2, client, (OWN_MAC, VIP)),
            Counter::NotOurs,
        ),
        Case::pass("half a request", ask(VIP)[..40].to_vec(), Counter::NotOurs),
    ]
}
