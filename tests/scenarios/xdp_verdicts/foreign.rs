//! Somebody else's packets: whatever they are, they pass as they are.

use super::case::*;

/// Somebody else's packets: whatever they are, they pass as they are.
pub(super) fn foreign() -> Vec<Case> {
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
