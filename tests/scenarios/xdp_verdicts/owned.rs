//! Rows of this node.

use super::case::*;

/// Rows of this node.
pub(super) fn owned(sockets: &Sockets) -> Vec<Case> {
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
        Case::pass(
            "SYN, the proxy listens for the VIP's group",
            syn().build(),
            Counter::OwnSyn,
        )
        .row(&syn(), MINE)
        .setup(served_by_group),
        heir("SYN, the proxy listens, draining by own decision", &syn())
            .setup(served_by_group)
            .setup(|t| t.config.flags |= flag::DRAINING),
        heir("SYN, the proxy listens and hangs", &syn())
            .setup(served_by_group)
            .setup(|t| {
                (t.config.beat_limit_jiffies, t.heartbeat) = (75, 5);
                t.state.borrow_mut()[state::BEAT_VALUE as usize] = 5;
            }),
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
