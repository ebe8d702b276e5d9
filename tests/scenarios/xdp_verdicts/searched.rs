//! Rows in transition, and the second chance.

use gateway_common::encap::NOBODYS;

use super::case::*;

/// Rows in transition, and the second chance.
pub(super) fn searched(sockets: &Sockets) -> Vec<Case> {
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
    // Who has nothing either drops it: the fingerprint is nobody's.
    let mut unanswered = sent(&sockets.waiting, DRAINING, [0x13, 1]);
    let header = unanswered.len() - (sockets.waiting.build().len() - 14) - 8;
    unanswered[header + 4..header + 8].copy_from_slice(&NOBODYS.to_be_bytes());
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
            "moving, the end of a connection that waits here",
            TcpPacket {
                flags: ACK | gateway_common::packet::Tcp::FIN,
                ..sockets.waiting.clone()
            }
            .build(),
            Counter::OwnSocket,
        )
        .row(&sockets.waiting, MOVING),
        Case::send(
            "moving, an earlier connection waits here",
            sockets.waiting.build(),
            Counter::SecondChance,
            unanswered,
        )
        .row(&sockets.waiting, MOVING),
        Case::pass(
            "an earlier connection waits here, nobody else",
            sockets.waiting.build(),
            Counter::OwnSocket,
        )
        .row(&sockets.waiting, Row::new(ME, true, [(0, false); 3])),
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
