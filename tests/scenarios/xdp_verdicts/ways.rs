//! Packets of every kind on every way: direct, from a peer's MAC, out of the tunnel; kept, rewritten, encapsulated.

use super::case::*;

pub(super) fn ways() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, frame) in flows() {
        cases.extend(each_way(&name, &frame, frame.hash()));
        cases.extend(hop_limits(&name, &frame, frame.hash()));
    }
    for (name, frame, hash) in errors() {
        cases.extend(each_way(&name, &frame, hash));
        cases.extend(hop_limits(&name, &frame, hash));
    }
    cases
}

/// Packets of flows.
fn flows() -> Vec<(String, Frame)> {
    let mut flows = Vec::new();
    let segment = Load::Tcp {
        ports: [40_000, 80],
        flags: ACK,
        numbers: [7, 9],
        options: vec![1; 12],
        data: b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    };
    for frame in both(VIP, VIP6, &segment) {
        let version = version(&frame);
        let marked = Frame {
            class: 0xb9,
            label: if version == "IPv6" { 0x1_2345 } else { 0 },
            ..frame.clone()
        };
        flows.push((format!("TCP over {version}"), frame.clone()));
        flows.push((format!("TCP over {version}, DSCP and ECN"), marked));
        for (kind, tags) in TAGS {
            flows.push((format!("TCP over {version}, {kind}"), frame.tagged(tags)));
        }
        let bare = frame.with(tcp(80, RST));
        flows.push((format!("RST over {version}"), bare));
    }
    for frame in both(VIP, VIP6, &udp(DNS, 40)) {
        let version = version(&frame);
        let unsummed = frame.with(Load::Udp {
            ports: [40_000, DNS],
            summed: false,
            data: vec![1; 9],
        });
        flows.push((format!("UDP over {version}"), frame));
        flows.push((format!("UDP over {version}, no checksum"), unsummed));
    }
    for frame in both(FLAT, FLAT6, &udp(443, 100)) {
        flows.push((
            format!("UDP by addresses over {}", version(&frame)),
            frame.clone(),
        ));
        flows.extend(fragments(&frame));
    }
    let [four, six] = both(VIP, VIP6, &segment);
    for words in [1, 2, 10] {
        let options = vec![1; 4 * words];
        let name = format!("TCP over IPv4, {words} words of options");
        flows.push((
            name,
            Frame {
                options,
                ..four.clone()
            },
        ));
    }
    for (name, chain) in chains() {
        flows.push((format!("TCP over IPv6, {name}"), six.extended(&chain)));
        let datagram = six.with(udp(DNS, 3)).extended(&chain);
        flows.push((format!("UDP over IPv6, {name}"), datagram));
    }
    flows
}

/// Tags of two networks; neither is that of a node that is an owner here.
const TAGS: [(&str, &[[u16; 2]]); 4] = [
    ("a tag", &[[number::VLAN, 9]]),
    ("a priority tag", &[[number::VLAN, 0xa000]]),
    ("an outer tag alone", &[[number::OUTER_VLAN, 9]]),
    (
        "two tags",
        &[[number::OUTER_VLAN, 0x2009], [number::VLAN, 5]],
    ),
];

/// Extension headers: number, and what follows the first byte.
type Chain = Vec<(u8, Vec<u8>)>;

/// Chains of extension headers that are walked.
fn chains() -> Vec<(String, Chain)> {
    let mut chains: Vec<_> = (1..=8)
        .map(|count| {
            let first = (number::HOP_BY_HOP, padding(0, 0).1);
            let mut chain = vec![first];
            chain.resize(count, padding(number::DESTINATION, 0));
            (format!("{count} extension headers"), chain)
        })
        .collect();
    chains.push((
        "a long one".to_owned(),
        vec![padding(number::DESTINATION, 40)],
    ));
    chains.push((
        "a routing header".to_owned(),
        vec![(number::ROUTING, vec![0, 4, 0, 0, 0, 0, 0])],
    ));
    chains.push(("an atomic fragment".to_owned(), vec![fragment(0, false)]));
    chains
}

/// A datagram in three fragments, two of which overlap.
fn fragments(frame: &Frame) -> Vec<(String, Frame)> {
    let (_, whole) = frame.payload();
    let part = |from: usize, to: usize, more: bool| {
        let load = Load::Raw(number::UDP, whole[from..to].to_vec());
        let offset = from as u16 / 8;
        Frame {
            fragment: offset | if more { 0x2000 } else { 0 },
            extensions: vec![fragment(offset, more)],
            ..frame.with(load)
        }
    };
    let name = |kind| format!("{kind} fragment by addresses over {}", version(frame));
    vec![
        (name("first"), part(0, 48, true)),
        (name("middle"), part(48, 80, true)),
        (name("overlapping"), part(40, 72, true)),
        (name("last"), part(80, whole.len(), false)),
    ]
}

/// ICMP errors about flows, and the hash of each flow.
fn errors() -> Vec<(String, Frame, u64)> {
    const ROUTER: [u8; 4] = [198, 18, 0, 1];
    const ROUTER6: [u8; 16] = six(0xfe);
    let mut errors = Vec::new();
    for (vip, vip6, port, load) in [
        (VIP, VIP6, 80, tcp(80, ACK)),
        (VIP, VIP6, DNS, udp(DNS, 9)),
        (FLAT, FLAT6, 443, udp(443, 9)),
    ] {
        let back = match &load {
            Load::Tcp { .. } => Load::Tcp {
                ports: [port, 40_000],
                flags: ACK,
                numbers: [5, 6],
                options: Vec::new(),
                data: vec![1; 300],
            },
            _ => Load::Udp {
                ports: [port, 40_000],
                summed: true,
                data: vec![2; 300],
            },
        };
        for toward in both(vip, vip6, &load) {
            let (ends, outer, header, kinds): (_, _, _, &[[u8; 2]]) = match toward.ends {
                Ends::V4(client, vip) => (
                    Ends::V4(vip, client),
                    Ends::V4(ROUTER, vip),
                    20,
                    &[[3, 1], [3, 4], [11, 0], [12, 0]],
                ),
                Ends::V6(client, vip) => (
                    Ends::V6(vip, client),
                    Ends::V6(ROUTER6, vip),
                    40,
                    &[[1, 0], [2, 0], [3, 0], [4, 1]],
                ),
            };
            let quoted = Frame::new([0; 6], [0; 6], ends, back.clone()).packet();
            for kind in kinds {
                for (length, size) in [(header + 8, "8 bytes"), (200, "a part")] {
                    let load = Load::Icmp {
                        kind: *kind,
                        rest: [0, 0, 5, 0],
                        data: quoted[..length].to_vec(),
                    };
                    let frame = Frame::new(OWN_MAC, mac(99), outer, load);
                    let name = format!(
                        "{kind:?} about port {port} over {} with {size}",
                        version(&frame)
                    );
                    let tagged = frame.tagged(&[[number::VLAN, 9]]);
                    errors.push((format!("{name}, a tag"), tagged, toward.hash()));
                    errors.push((name, frame, toward.hash()));
                }
            }
        }
    }
    let (name, frame, hash) = errors[1].clone();
    let options = vec![1; 8];
    errors.push((format!("{name}, options"), Frame { options, ..frame }, hash));
    let six = errors
        .iter()
        .find(|(name, ..)| name.contains("IPv6") && !name.contains("tag"));
    let (name, frame, hash) = six.unwrap().clone();
    for more in [0, 40, 54, 55] {
        let frame = frame.extended(&[padding(number::DESTINATION, more)]);
        let name = format!(
            "{name}, an extension header of {} bytes",
            8 + 8 * u32::from(more)
        );
        errors.push((name, frame, hash));
    }
    errors
}

fn each_way(name: &str, frame: &Frame, hash: u64) -> Vec<Case> {
    let case = |way: &str| format!("{name}: {way}");
    let packet = frame.build();
    let rewritten = frame.aged().between(mac(ON_LINK), OWN_MAC).build();
    let l2 = frame.tags.is_empty();
    let mut cases = vec![
        Case::pass(case("kept"), packet.clone(), Counter::OwnPass).hashed(hash, MINE),
        if l2 {
            Case::send(
                case("rewritten"),
                packet.clone(),
                Counter::ForwardL2,
                rewritten,
            )
        } else {
            let sent = sent_for(hash, frame, ON_LINK, [0x13, 0], false);
            Case::send(
                case("no rewrite"),
                packet.clone(),
                Counter::ForwardUdp,
                sent.build(),
            )
        }
        .hashed(hash, owned_by(ON_LINK)),
    ];
    for over_v6 in [false, true] {
        let underlay = |case: Case| {
            if over_v6 {
                case.setup(over_v6_tables)
            } else {
                case
            }
        };
        let way = |way: &str| {
            case(&format!(
                "{way}, nodes over IPv{}",
                if over_v6 { 6 } else { 4 }
            ))
        };
        let sent = |to, first| sent_for(hash, frame, to, first, over_v6).build();
        let from_peer = frame.between(OWN_MAC, mac(DRAINING));
        let arrives = arrives(frame, [0x13, 0], over_v6)
            .tagged(&frame.tags)
            .build();
        let opened = frame.between(OWN_MAC, mac(ON_LINK)).build();
        cases.extend([
            underlay(
                Case::send(
                    way("routed"),
                    packet.clone(),
                    Counter::ForwardUdp,
                    sent(ROUTED, [0x13, 0]),
                )
                .far()
                .hashed(hash, owned_by(ROUTED)),
            ),
            underlay(
                Case::send(
                    way("from a peer's MAC"),
                    from_peer.build(),
                    Counter::ForwardUdp,
                    sent(ON_LINK, [0x12, 0]),
                )
                .hashed(hash, owned_by(ON_LINK)),
            ),
            underlay(
                Case::pass(
                    way("out of the tunnel, kept"),
                    arrives.clone(),
                    Counter::OwnPass,
                )
                .also(Counter::Decapsulated)
                .leaves(opened)
                .hashed(hash, MINE),
            ),
            underlay(
                Case::send(
                    way("out of the tunnel, on"),
                    arrives,
                    Counter::ForwardUdp,
                    sent(ROUTED, [0x12, 0]),
                )
                .also(Counter::Decapsulated)
                .far()
                .hashed(hash, owned_by(ROUTED)),
            ),
        ]);
    }
    let tag = [number::VLAN, 0x6000 | VLAN];
    let through = form_in_vlan(hash, frame);
    cases.push(
        Case::send(
            case("to a node in a VLAN"),
            packet,
            Counter::ForwardUdp,
            through,
        )
        .hashed(hash, owned_by(TAGGED)),
    );
    let of_its_vlan = frame.tagged(&[tag]);
    let rewritten = of_its_vlan.aged().between(mac(TAGGED), OWN_MAC).build();
    cases.push(
        Case::send(
            case("to a node in its VLAN"),
            of_its_vlan.build(),
            Counter::ForwardL2,
            rewritten,
        )
        .hashed(hash, owned_by(TAGGED)),
    );
    let outer = frame.tagged(&[[number::OUTER_VLAN, VLAN]]);
    cases.push(
        Case::send(
            case("to a node in a VLAN of the same number"),
            outer.build(),
            Counter::ForwardUdp,
            form_in_vlan(hash, frame),
        )
        .hashed(hash, owned_by(TAGGED)),
    );
    cases
}

fn over_v6_tables(tables: &mut HostTables) {
    over_v6(tables);
}

/// The UDP form of a frame to [`TAGGED`].
fn form_in_vlan(hash: u64, frame: &Frame) -> Vec<u8> {
    let form = sent_for(hash, frame, TAGGED, [0x13, 0], false);
    form.tagged(&[[number::VLAN, VLAN]]).build()
}

fn hop_limits(name: &str, frame: &Frame, hash: u64) -> Vec<Case> {
    let with = |hops| Frame {
        hops,
        ..frame.tagged(&[])
    };
    let last = with(2);
    let rewritten = last.aged().between(mac(ON_LINK), OWN_MAC).build();
    let spent = |way: &str, hops, node| {
        Case::drop(
            format!("{name}: {hops} hops left, {way}"),
            with(hops).build(),
            Counter::TtlSpent,
        )
        .hashed(hash, owned_by(node))
    };
    vec![
        Case::send(
            format!("{name}: two hops left"),
            last.build(),
            Counter::ForwardL2,
            rewritten,
        )
        .hashed(hash, owned_by(ON_LINK)),
        spent("rewritten", 1, ON_LINK),
        spent("rewritten", 0, ON_LINK),
        spent("encapsulated", 1, ROUTED),
        Case::pass(
            format!("{name}: one hop left, kept"),
            with(1).build(),
            Counter::OwnPass,
        )
        .hashed(hash, MINE),
    ]
}
