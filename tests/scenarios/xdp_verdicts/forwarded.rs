//! Rows of other nodes.

use super::case::*;

/// Rows of other nodes.
pub(super) fn forwarded() -> Vec<Case> {
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
        Case::send(
            "owner on-link, its path not proven",
            marked.build(),
            Counter::ForwardUdp,
            sent(&marked, ON_LINK, [0x13, 0]),
        )
        .row(&marked, owned_by(ON_LINK))
        .setup(|t| change_node(t, ON_LINK, |entry| entry.flags |= node_flag::ENCAPSULATE)),
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
        astray(
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
