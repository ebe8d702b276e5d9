//! Rows in transition, suspects and lists of sources, over IPv6 and UDP as over IPv4 and TCP.

use super::case::*;

pub(super) fn doubt(sockets: &Sockets) -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(sockets6(sockets));
    cases.extend(datagrams());
    cases.extend(suspects(sockets));
    cases.extend(sources());
    cases
}

/// An ICMP error about a flow.
fn about(frame: &Frame) -> Frame {
    let (ends, kind, length) = match frame.ends {
        Ends::V4(client, vip) => (Ends::V4(vip, client), [3, 4], 28),
        Ends::V6(client, vip) => (Ends::V6(vip, client), [2, 0], 48),
    };
    let load = match &frame.load {
        Load::Tcp {
            ports: [from, to], ..
        } => Load::Tcp {
            ports: [*to, *from],
            flags: ACK,
            numbers: [1, 1],
            options: Vec::new(),
            data: Vec::new(),
        },
        other => other.clone(),
    };
    let quoted = Frame::new([0; 6], [0; 6], ends, load).packet()[..length].to_vec();
    frame.with(Load::Icmp {
        kind,
        rest: [0, 0, 5, 0],
        data: quoted,
    })
}

fn sockets6(sockets: &Sockets) -> Vec<Case> {
    let flow4 = Frame::new(
        sockets.flow.to_mac,
        sockets.flow.from_mac,
        Ends::V4(sockets.flow.source, VIP),
        Load::Tcp {
            ports: [sockets.flow.source_port, LISTENING],
            flags: ACK,
            numbers: [1, 1],
            options: Vec::new(),
            data: Vec::new(),
        },
    );
    let [_, lost] = both(VIP, VIP6, &tcp(80, ACK));
    let [_, listened] = both(VIP, VIP6, &tcp(LISTENING, ACK));
    let [_, opens] = both(VIP, VIP6, &tcp(LISTENING, SYN));
    let [_, admitted] = both(VIP, VIP6, &tcp(80, SYN));
    let mut cases = vec![
        Case::pass(
            "IPv6, the proxy listens for the VIP's group",
            admitted.build(),
            Counter::OwnSyn,
        )
        .row(&admitted, Row::new(ME, false, [(0, false); 3]))
        .setup(served_by_group),
        Case::pass(
            "IPv6, the socket is here",
            sockets.flow6.build(),
            Counter::OwnSocket,
        )
        .row(&sockets.flow6, MOVING),
        Case::pass(
            "IPv6, a cookie of ours",
            sockets.cookie6.build(),
            Counter::OwnCookie,
        )
        .row(&sockets.cookie6, MOVING),
        Case::pass("IPv6, SYN with a listener", opens.build(), Counter::OwnSyn).row(&opens, MINE),
    ];
    for (name, frame) in [("a lost flow", &lost), ("only a listener", &listened)] {
        let hash = frame.hash();
        for (what, packet) in [("segment", frame.clone()), ("error", about(frame))] {
            cases.push(
                Case::send(
                    format!("IPv6, {name}, {what}"),
                    packet.build(),
                    Counter::SecondChance,
                    sent_for(hash, &packet, DRAINING, [0x13, 1], false).build(),
                )
                .hashed(hash, MOVING),
            );
            cases.push(
                Case::pass(
                    format!("IPv6, {name}, {what}, nobody else"),
                    packet.build(),
                    Counter::ExhaustedPass,
                )
                .hashed(hash, Row::new(ME, true, [(0, false); 3])),
            );
        }
    }
    for frame in [&flow4, &sockets.flow6] {
        let error = about(frame);
        let name = format!("error about a socket here, {}", version(frame));
        cases.push(
            Case::pass(name.clone(), error.build(), Counter::OwnSocket)
                .hashed(frame.hash(), MOVING),
        );
        let opened = error.between(OWN_MAC, mac(ON_LINK)).build();
        cases.push(
            Case::pass(
                format!("{name}, as second chance"),
                arrives(&error, [0x12, 1], false).build(),
                Counter::OwnSocket,
            )
            .also(Counter::Decapsulated)
            .leaves(opened)
            .hashed(frame.hash(), owned_by(ON_LINK)),
        );
    }
    // Whoever quotes a cookie does not hold one.
    let error = about(&sockets.cookie6);
    cases.push(
        Case::send(
            "error about a cookie",
            error.build(),
            Counter::SecondChance,
            sent_for(sockets.cookie6.hash(), &error, DRAINING, [0x13, 1], false).build(),
        )
        .row(&sockets.cookie6, MOVING),
    );
    cases
}

/// UDP without sessions here.
fn datagrams() -> Vec<Case> {
    let mut cases = Vec::new();
    let dns = both(VIP, VIP6, &udp(DNS, 30));
    let flat = both(FLAT, FLAT6, &udp(443, 30));
    for frame in dns.iter().chain(&flat) {
        let hash = frame.hash();
        let name = |what| format!("{what}, {} {:?}", version(frame), frame.ends);
        let search = sent_for(hash, frame, DRAINING, [0x13, 1], false).build();
        let opened = frame.between(OWN_MAC, mac(ON_LINK)).build();
        let from_peer = |first| arrives(frame, first, false).build();
        let taken = |what, first| {
            Case::pass(name(what), from_peer(first), Counter::OwnPass)
                .also(Counter::Decapsulated)
                .leaves(opened.clone())
        };
        let on = |what, first, to, next| {
            let case = Case::send(
                name(what),
                from_peer(first),
                Counter::SecondChance,
                sent_for(hash, frame, to, next, false).build(),
            )
            .also(Counter::Decapsulated);
            if to == ROUTED { case.far() } else { case }
        };
        let below = Row::new(
            ON_LINK,
            true,
            [(DRAINING, true), (ME, false), (ROUTED, false)],
        );
        let end = Row::new(ON_LINK, true, [(DRAINING, true), (ME, false), (0, false)]);
        cases.extend([
            Case::send(
                name("datagram of no session here"),
                frame.build(),
                Counter::SecondChance,
                search,
            )
            .hashed(hash, MOVING),
            Case::pass(
                name("datagram, nobody else"),
                frame.build(),
                Counter::OwnPass,
            )
            .hashed(hash, Row::new(ME, true, [(0, false); 3])),
            taken("datagram that comes back to its owner", [0x12, 1]).hashed(hash, MOVING),
            on("datagram goes down", [0x12, 1], ROUTED, [0x11, 1]).hashed(hash, below),
            on(
                "datagram goes home with its last hop",
                [0x11, 1],
                ON_LINK,
                [0x10, 1],
            )
            .hashed(hash, below),
            on(
                "datagram goes home from the end",
                [0x12, 1],
                ON_LINK,
                [0x11, 1],
            )
            .hashed(hash, end),
            Case::drop(
                name("datagram without hops"),
                from_peer([0x10, 1]),
                Counter::HopsSpent,
            )
            .also(Counter::Decapsulated)
            .leaves(opened.clone())
            .hashed(hash, below),
            Case::pass(
                name("datagram of a session here"),
                frame.build(),
                Counter::OwnSession,
            )
            .session(hash)
            .hashed(hash, MOVING),
            Case::pass(
                name("datagram of a session here, second chance"),
                from_peer([0x12, 1]),
                Counter::OwnSession,
            )
            .also(Counter::Decapsulated)
            .leaves(opened.clone())
            .session(hash)
            .hashed(hash, below),
            taken("datagram, no owner", [0x12, 1]).hashed(
                hash,
                Row::new(0, true, [(ME, true), (0, false), (0, false)]),
            ),
        ]);
    }
    cases
}

fn suspects(sockets: &Sockets) -> Vec<Case> {
    let mut cases = Vec::new();
    let mine = Row::new(ON_LINK, false, [(ME, false), (ROUTED, false), (0, false)]);
    let others = Row::new(ON_LINK, false, [(ROUTED, false), (ME, false), (0, false)]);
    let lone = Row::new(ON_LINK, false, [(DRAINING, true), (0, false), (0, false)]);
    let doubt = |t: &mut HostTables| t.suspects.push(ON_LINK);
    for frame in both(VIP, VIP6, &tcp(80, ACK))
        .into_iter()
        .chain(both(VIP, VIP6, &udp(DNS, 9)))
    {
        let hash = frame.hash();
        let name = |what| format!("{what}, {} of {}", version(&frame), frame.payload().0);
        let l2 = frame.aged().between(mac(ON_LINK), OWN_MAC).build();
        let opened = frame.between(OWN_MAC, mac(ON_LINK)).build();
        cases.extend([
            Case::send(
                name("suspect owner, nothing here"),
                frame.build(),
                Counter::ForwardL2,
                l2.clone(),
            )
            .hashed(hash, mine)
            .setup(doubt),
            Case::send(
                name("suspect owner, to its heir"),
                frame.build(),
                Counter::SecondChance,
                sent_for(hash, &frame, ROUTED, [0x13, 2], false).build(),
            )
            .far()
            .hashed(hash, others)
            .setup(doubt),
            Case::send(
                name("suspect owner, no heir"),
                frame.build(),
                Counter::ForwardL2,
                l2,
            )
            .hashed(hash, lone)
            .setup(doubt),
            Case::send(
                name("suspect owner, detour by here"),
                arrives(&frame, [0x13, 2], false).build(),
                Counter::ForwardUdp,
                sent_for(hash, &frame, ON_LINK, [0x12, 0], false).build(),
            )
            .also(Counter::Decapsulated)
            .hashed(hash, mine)
            .setup(doubt),
            Case::send(
                name("owner not suspect here, detour by here"),
                arrives(&frame, [0x13, 2], false).build(),
                Counter::ForwardUdp,
                sent_for(hash, &frame, ON_LINK, [0x12, 0], false).build(),
            )
            .also(Counter::Decapsulated)
            .hashed(hash, mine),
            Case::drop(
                name("suspect owner, no hops"),
                arrives(&frame, [0x10, 2], false).build(),
                Counter::HopsSpent,
            )
            .also(Counter::Decapsulated)
            .leaves(opened)
            .hashed(hash, mine)
            .setup(doubt),
        ]);
    }
    for (heir, frame) in [
        (true, &both(VIP, VIP6, &tcp(LISTENING, SYN))),
        (false, &both(VIP, VIP6, &tcp(80, SYN))),
    ] {
        for frame in frame {
            let hash = frame.hash();
            let name = |what| format!("{what} {heir}, {}", version(frame));
            let on = Case::send(
                name("SYN of a suspect owner"),
                frame.build(),
                Counter::SynHeir,
                sent_for(hash, frame, ROUTED, [0x13, 1], false).build(),
            )
            .far();
            cases.push(
                if heir {
                    Case::pass(
                        name("SYN of a suspect owner, here"),
                        frame.build(),
                        Counter::OwnSyn,
                    )
                } else {
                    on.clone()
                }
                .hashed(hash, mine)
                .setup(doubt),
            );
            cases.push(on.hashed(hash, others).setup(doubt));
        }
    }
    cases.push(
        Case::pass(
            "suspect owner, the socket is here",
            sockets.flow6.build(),
            Counter::OwnSocket,
        )
        .row(&sockets.flow6, mine)
        .setup(doubt),
    );
    cases
}

fn sources() -> Vec<Case> {
    let mut cases = Vec::new();
    let from = |four: u8, last: u8, load: &Load| {
        [
            Ends::V4([198, 51, 100, four], LISTED),
            Ends::V6(six(last), LISTED6),
        ]
        .map(|ends| Frame::new(OWN_MAC, mac(99), ends, load.clone()))
    };
    let strangers = |load: &Load| {
        let mut far = six(1);
        far[5] = 0x14;
        [Ends::V4([192, 0, 2, 200], LISTED), Ends::V6(far, LISTED6)]
            .map(|ends| Frame::new(OWN_MAC, mac(99), ends, load.clone()))
    };
    let flat = udp(443, 40);
    for (name, frames, admitted) in [
        ("refused by a prefix", from(8, 0x10, &tcp(80, ACK)), false),
        (
            "admitted by a longer one",
            from(7, 0x77, &tcp(80, ACK)),
            true,
        ),
        ("not mentioned", strangers(&tcp(80, ACK)), true),
        (
            "SYN refused by a prefix",
            from(8, 0x10, &tcp(80, SYN)),
            false,
        ),
        ("admitted by a list", from(8, 0x10, &udp(DNS, 4)), true),
        (
            "refused by a longer prefix",
            from(199, 0x8f, &udp(DNS, 4)),
            false,
        ),
        (
            "admitted by the longest prefix",
            from(200, 0x90, &udp(DNS, 4)),
            true,
        ),
        ("not in the list", strangers(&udp(DNS, 4)), false),
        ("by addresses, admitted", from(8, 0x10, &flat), true),
        ("by addresses, not in the list", strangers(&flat), false),
    ] {
        for frame in frames {
            let hash = frame.hash();
            let name = format!("source {name}, {}", version(&frame));
            let mut packets = vec![(name.clone(), frame.clone())];
            if frame.payload().0 == number::TCP {
                packets.push((format!("{name}, error about it"), about(&frame)));
            } else if frame.payload().1[2..4] == 443u16.to_be_bytes() {
                let load = Load::Raw(number::UDP, frame.payload().1[8..].to_vec());
                let part = Frame {
                    fragment: 1,
                    extensions: vec![fragment(1, false)],
                    ..frame.with(load)
                };
                packets.push((format!("{name}, a fragment"), part));
            }
            for (name, packet) in packets {
                let inside = arrives(&packet, [0x13, 0], false).build();
                let opened = packet.between(OWN_MAC, mac(ON_LINK)).build();
                let cases_of = if admitted {
                    [
                        Case::pass(name.clone(), packet.build(), Counter::OwnPass),
                        Case::pass(name, inside, Counter::OwnPass),
                    ]
                } else {
                    [
                        Case::drop(name.clone(), packet.build(), Counter::SourceDenied),
                        Case::drop(name, inside, Counter::SourceDenied),
                    ]
                };
                let [direct, inside] = cases_of;
                cases.push(direct.hashed(hash, MINE));
                cases.push(
                    inside
                        .also(Counter::Decapsulated)
                        .leaves(opened)
                        .hashed(hash, MINE),
                );
            }
        }
    }
    cases
}
