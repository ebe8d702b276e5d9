//! Packets out of the tunnel.

use super::case::*;

/// Packets out of the tunnel.
pub(super) fn tunnelled(sockets: &Sockets) -> Vec<Case> {
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
        astray(
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
        ),
        astray(
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
        ),
        astray(
            send(
                "SYN, the owner ranks lower, draining by own decision with a listener",
                &listened,
                [0x13, 0],
                Counter::SynHeir,
                ON_LINK,
                [0x12, 1],
            )
            .row(
                &listened,
                Row::new(ON_LINK, false, [(ME, true), (0, false), (0, false)]),
            ),
        )
        .setup(|t| t.config.flags |= flag::DRAINING),
        pass(
            "SYN, the owner ranks lower and is silent, draining by own decision with a listener",
            &listened,
            [0x13, 0],
            1,
            Counter::OwnSyn,
        )
        .row(
            &listened,
            Row::new(ON_LINK, false, [(ME, true), (0, false), (0, false)]),
        )
        .setup(|t| {
            t.config.flags |= flag::DRAINING;
            t.suspects.push(ON_LINK);
        }),
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
        Case::drop("another phase", edited(43, 3), Counter::TunnelMalformed),
        Case::drop(
            "no inner header",
            good()[..60].to_vec(),
            Counter::TunnelMalformed,
        ),
        Case::drop("no IP inside", edited(50, 0x70), Counter::TunnelMalformed),
    ]
}
