//! VIP packets that are not steered, and packets that look like VIP packets and are not.

use super::case::*;

pub(super) fn odd() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(chains());
    cases.extend(fragments());
    cases.extend(addresses());
    cases.extend(groups());
    cases.extend(policies());
    cases.extend(tunnels());
    cases.extend(cramped());
    cases
}

/// Packets from a driver that leaves no room in front.
fn cramped() -> Vec<Case> {
    let mut cases = Vec::new();
    for frame in both(VIP, VIP6, &tcp(80, ACK)) {
        let name = format!("no headroom, {}", version(&frame));
        let rewritten = frame.aged().between(mac(ON_LINK), OWN_MAC).build();
        for case in [
            Case::drop(name.clone(), frame.build(), Counter::AdjustFailed)
                .leaves(frame.aged().build())
                .row(&frame, owned_by(ROUTED)),
            Case::send(name, frame.build(), Counter::ForwardL2, rewritten)
                .row(&frame, owned_by(ON_LINK)),
        ] {
            cases.push(Case {
                headroom: 0,
                ..case
            });
        }
    }
    cases
}

/// More extension headers than are walked.
fn chains() -> Vec<Case> {
    let mut cases = Vec::new();
    let [_, six] = both(VIP, VIP6, &tcp(80, ACK));
    let [_, shared] = both(SHARED, SHARED6, &tcp(80, ACK));
    let elsewhere = Frame {
        ends: Ends::V6(CLIENT6, gateway_tests::object::fixture::six(0x99)),
        ..six.clone()
    };
    let long = vec![padding(number::DESTINATION, 28); 2];
    let chains = [
        vec![padding(number::DESTINATION, 0); 9],
        vec![padding(number::DESTINATION, 0); 10],
        vec![padding(number::HOP_BY_HOP, 255)],
        long,
    ];
    for chain in chains {
        let name = |whose| {
            let bytes: usize = chain.iter().map(|(_, body)| 1 + body.len()).sum();
            format!("{} headers of {bytes} bytes, {whose}", chain.len())
        };
        for (whose, frame, counter) in [
            ("a VIP", &six, Counter::NotUnderstood),
            (
                "a VIP's UDP",
                &six.with(udp(DNS, 9)),
                Counter::NotUnderstood,
            ),
            ("a shared address", &shared, Counter::NotOurs),
            ("elsewhere", &elsewhere, Counter::NotOurs),
        ] {
            cases.push(Case::pass(
                name(whose),
                frame.extended(&chain).build(),
                counter,
            ));
        }
        let arrives = arrives(&six.extended(&chain), [0x13, 0], true).build();
        let opened = six.extended(&chain).between(OWN_MAC, mac(ON_LINK)).build();
        cases.push(
            Case::pass(name("out of the tunnel"), arrives, Counter::NotUnderstood)
                .also(Counter::Decapsulated)
                .leaves(opened)
                .setup(over_v6),
        );
    }
    for other in [50, 51, 59, 135, 139, 140, 132, 33] {
        for frame in both(VIP, VIP6, &Load::Raw(other, vec![6; 40])) {
            let name = format!("protocol {other} over {}", version(&frame));
            cases.push(Case::pass(name, frame.build(), Counter::NotOurs));
        }
    }
    cases
}

/// Fragments of flows that are hashed with their ports.
fn fragments() -> Vec<Case> {
    let mut cases = Vec::new();
    for (protocol, counter) in [
        (number::TCP, Counter::Fragment),
        (number::UDP, Counter::Fragment),
        (number::ICMP, Counter::NotOurs),
        (number::ICMPV6, Counter::NotOurs),
        (50, Counter::NotOurs),
    ] {
        for (offset, more) in [(0, true), (3, true), (3, false)] {
            for tags in [&[][..], &[[number::VLAN, 9]]] {
                let load = Load::Raw(protocol, vec![0; 64]);
                let part = |frame: Frame| Frame {
                    fragment: offset | if more { 0x2000 } else { 0 },
                    extensions: vec![fragment(offset, more)],
                    ..frame.tagged(tags)
                };
                for frame in both(VIP, VIP6, &load).map(part) {
                    let name = format!(
                        "fragment {offset} {more} of {protocol} over {}, {tags:?}",
                        version(&frame)
                    );
                    cases.push(if counter == Counter::Fragment {
                        Case::drop(name, frame.build(), counter)
                    } else {
                        Case::pass(name, frame.build(), counter)
                    });
                }
                for frame in both(SHARED, SHARED6, &load).map(part) {
                    let name =
                        format!("fragment {offset} {more} of {protocol} to a shared address");
                    cases.push(Case::pass(name, frame.build(), Counter::NotOurs));
                }
            }
        }
    }
    cases
}

/// Addresses of VIPs in the other version's packets.
fn addresses() -> Vec<Case> {
    let mut mapped = [0; 16];
    mapped[10..12].fill(0xff);
    mapped[12..].copy_from_slice(&VIP);
    let ends = Ends::V6(CLIENT6, mapped);
    let mut cases = Vec::new();
    for (name, load) in [
        ("TCP", tcp(80, ACK)),
        ("UDP", udp(DNS, 4)),
        ("no ports", Load::Raw(number::TCP, vec![0; 2])),
        (
            "echo",
            Load::Icmp {
                kind: [128, 0],
                rest: [0; 4],
                data: vec![0; 8],
            },
        ),
        ("fragment of", Load::Raw(number::TCP, vec![0; 32])),
    ] {
        let mut frame = Frame::new(OWN_MAC, mac(99), ends, load);
        if name == "fragment of" {
            frame.extensions = vec![fragment(0, true)];
        }
        cases.push(Case::pass(
            format!("{name} to a mapped address"),
            frame.build(),
            Counter::NotOurs,
        ));
    }
    // A node's address whose last word is that of an IPv4 destination.
    let [tunnel, _] = both(
        [192, 0, 2, 1],
        VIP6,
        &Load::Udp {
            ports: [1, TUNNEL],
            summed: true,
            data: vec![0x13; 60],
        },
    );
    cases.push(
        Case::pass(
            "tunnel port of the last word of an own address of IPv6",
            tunnel.build(),
            Counter::NotOurs,
        )
        .setup(|t| {
            over_v6(t);
            t.config.tunnel_source[12..].copy_from_slice(&[192, 0, 2, 1]);
        }),
    );
    cases
}

/// Frames to groups carry nobody's flows.
fn groups() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, load) in [("TCP", tcp(80, ACK)), ("UDP", udp(DNS, 4))] {
        for frame in both(VIP, VIP6, &load) {
            for to in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
                let packet = frame.between(to, mac(99)).build();
                let name = format!("{name} over {} to a group's MAC", version(&frame));
                cases.push(
                    Case::pass(name, packet, Counter::NotOurs)
                        .hashed(frame.hash(), owned_by(ON_LINK)),
                );
            }
        }
    }
    cases
}

/// VIPs that are not steered.
fn policies() -> Vec<Case> {
    let mut cases = Vec::new();
    for (vip, vip6, counter, flags) in [
        (HERE, six(0x14), Counter::LocalOnly, ACK),
        (HERE, six(0x14), Counter::LocalOnly, SYN),
        (SHARED, SHARED6, Counter::LocalOnly, ACK),
        (SHARED, SHARED6, Counter::LocalOnly, SYN),
        (DELETED, six(0x12), Counter::OwnPass, SYN),
    ] {
        for frame in both(vip, vip6, &tcp(80, flags)) {
            let name = format!("{vip:?} over {}", version(&frame));
            cases.push(
                Case::pass(name.clone(), frame.build(), counter)
                    .hashed(frame.hash(), owned_by(ON_LINK)),
            );
            let opened = frame.between(OWN_MAC, mac(ON_LINK)).build();
            cases.push(
                Case::pass(name, arrives(&frame, [0x13, 0], false).build(), counter)
                    .also(Counter::Decapsulated)
                    .leaves(opened)
                    .hashed(frame.hash(), owned_by(ON_LINK)),
            );
        }
    }
    cases
}

/// What our tunnel does not carry.
fn tunnels() -> Vec<Case> {
    let mut cases = Vec::new();
    let ping = Load::Icmp {
        kind: [8, 0],
        rest: [0; 4],
        data: vec![0; 8],
    };
    let ping6 = Load::Icmp {
        kind: [128, 0],
        rest: [0; 4],
        data: vec![0; 8],
    };
    let [four, _] = both(VIP, VIP6, &ping);
    let [_, six] = both(VIP, VIP6, &ping6);
    let [inside, inside6] =
        both(VIP, VIP6, &tcp(80, ACK)).map(|frame| arrives(&frame, [0x13, 0], false));
    let [esp, esp6] = both(VIP, VIP6, &Load::Raw(50, vec![1; 30]));
    for (name, frame) in [
        ("echo", four),
        ("echo of IPv6", six),
        ("tunnel", inside),
        ("tunnel with IPv6", inside6),
        ("ESP", esp),
        ("ESP over IPv6", esp6),
    ] {
        for nodes6 in [false, true] {
            let case = Case::drop(
                format!("{name} inside of the tunnel, nodes over IPv6: {nodes6}"),
                arrives(&frame, [0x13, 0], nodes6).build(),
                Counter::TunnelNotVip,
            )
            .also(Counter::Decapsulated)
            .leaves(frame.between(OWN_MAC, mac(ON_LINK)).build());
            cases.push(if nodes6 { case.setup(over_v6) } else { case });
        }
    }
    // Nodes with addresses of the other version are strangers.
    let [frame, _] = both(VIP, VIP6, &tcp(80, ACK));
    cases.push(Case::pass(
        "tunnel over IPv6, nodes over IPv4",
        arrives(&frame, [0x13, 0], true).build(),
        Counter::NotOurs,
    ));
    cases.push(
        Case::pass(
            "tunnel over IPv4, nodes over IPv6",
            arrives(&frame, [0x13, 0], false).build(),
            Counter::NotOurs,
        )
        .setup(over_v6),
    );
    let stranger = Frame {
        ends: Ends::V6(address6(99), address6(ME)),
        ..arrives(&frame, [0x13, 0], true)
    };
    cases.push(
        Case::drop(
            "a stranger's tunnel over IPv6",
            stranger.build(),
            Counter::PeerUnknown,
        )
        .setup(over_v6),
    );
    for (inner, outer, left) in [
        (0, 0, 0),
        (1, 3, 3),
        (2, 3, 3),
        (3, 3, 3),
        (2, 0, 2),
        (2, 2, 2),
        (1, 0xb8, 1),
    ] {
        for nodes6 in [false, true] {
            for frame in both(VIP, VIP6, &tcp(80, ACK)) {
                let class = |class| Frame {
                    class,
                    ..frame.clone()
                };
                let packet = Frame {
                    class: outer,
                    ..arrives(&class(inner), [0x13, 0], nodes6)
                };
                let name = format!(
                    "class {inner} in {outer} over {}, nodes over IPv6: {nodes6}",
                    version(&frame)
                );
                let case = Case::pass(name, packet.build(), Counter::OwnPass)
                    .also(Counter::Decapsulated)
                    .leaves(class(left).between(OWN_MAC, mac(ON_LINK)).build())
                    .hashed(frame.hash(), MINE);
                cases.push(if nodes6 { case.setup(over_v6) } else { case });
            }
        }
    }
    cases
}
