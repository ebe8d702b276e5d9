//! What this node answers by itself: echo, neighbour solicitations, packets that are too big. And what it does not.

use super::case::*;

/// All nodes' MAC of the group that a solicitation for a VIP goes to.
const SOLICITED_MAC: [u8; 6] = [0x33, 0x33, 0xff, 0, 0, 0x10];

/// A VLAN of this node.
const OWN_VLAN: u16 = 9;

pub(super) fn answers() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(echoes());
    cases.extend(neighbours());
    cases.extend(requests());
    cases.extend(too_big());
    cases.extend(bad_errors());
    cases
}

fn echo(kind: [u8; 2], length: usize) -> Load {
    Load::Icmp {
        kind,
        rest: [1, 2, 0, 3],
        data: (0..length).map(|byte| (3 * byte) as u8).collect(),
    }
}

fn echoes() -> Vec<Case> {
    let mut cases = Vec::new();
    let asked = |length| {
        let [four, _] = both(VIP, VIP6, &echo([8, 0], length));
        let [_, six] = both(VIP, VIP6, &echo([128, 0], length));
        [(four, [0, 0]), (six, [129, 0])]
    };
    let answer = |frame: &Frame, kind: [u8; 2], length| {
        let ends = match frame.ends {
            Ends::V4(from, to) => Ends::V4(to, from),
            Ends::V6(from, to) => Ends::V6(to, from),
        };
        let back = Frame {
            ends,
            hops: 64,
            ..frame.between(frame.from_mac, frame.to_mac)
        };
        back.with(echo(kind, length)).build()
    };
    for length in [0, 1, 8, 56, 57, 1_400] {
        for hops in [1, 64, 255] {
            for tags in [
                &[][..],
                &[[number::VLAN, 9]],
                &[[number::OUTER_VLAN, 2], [number::VLAN, 9]],
            ] {
                for (frame, kind) in asked(length) {
                    let frame = Frame {
                        hops,
                        class: 0x2e,
                        ..frame.tagged(tags)
                    };
                    let name = format!(
                        "{length} bytes over {} {tags:?}, {hops} hops",
                        version(&frame)
                    );
                    let bytes = answer(&frame, kind, length);
                    cases.push(Case::send(name, frame.build(), Counter::EchoReply, bytes));
                }
            }
        }
    }
    for (frame, kind) in asked(9) {
        let name = |what| format!("{what} over {}", version(&frame));
        let untouched =
            |what, frame: &Frame| Case::pass(name(what), frame.build(), Counter::NotOurs);
        cases.push(
            untouched("echo, the proxy is dead", &frame)
                .setup(|t| t.config.beat_limit_jiffies = 75),
        );
        let to = |vip, vip6| Frame {
            ends: match frame.ends {
                Ends::V4(client, _) => Ends::V4(client, vip),
                Ends::V6(client, _) => Ends::V6(client, vip6),
            },
            ..frame.clone()
        };
        let from = |four, six| Frame {
            ends: match frame.ends {
                Ends::V4(_, vip) => Ends::V4(four, vip),
                Ends::V6(_, vip) => Ends::V6(six, vip),
            },
            ..frame.clone()
        };
        cases.extend([
            untouched("echo elsewhere", &to([203, 0, 113, 99], six(0x99))),
            untouched("echo to a shared address", &to(SHARED, SHARED6)),
            untouched("echo reply", &frame.with(echo(kind, 9))),
            untouched(
                "echo of another code",
                &frame.with(echo([if kind[0] == 0 { 8 } else { 128 }, 1], 9)),
            ),
            untouched("echo from nowhere", &from([0; 4], [0; 16])),
            untouched(
                "echo from loopback",
                &from([127, 0, 0, 1], {
                    let mut one = [0; 16];
                    one[15] = 1;
                    one
                }),
            ),
            untouched(
                "echo from a group",
                &from([224, 0, 0, 1], {
                    let mut group = [0; 16];
                    (group[0], group[1], group[15]) = (0xff, 2, 1);
                    group
                }),
            ),
            untouched(
                "echo to another machine's MAC",
                &frame.between(mac(98), mac(99)),
            ),
            untouched("echo to a group's MAC", &frame.between([0xff; 6], mac(99))),
            untouched("echo from a group's MAC", &frame.between(OWN_MAC, [1; 6])),
            untouched(
                "echo in a fragment",
                &Frame {
                    fragment: 0x2000,
                    extensions: vec![fragment(0, true)],
                    ..frame.clone()
                },
            ),
            untouched(
                "echo behind more headers",
                &Frame {
                    options: vec![1; 4],
                    extensions: vec![padding(number::DESTINATION, 0)],
                    ..frame.clone()
                },
            ),
            untouched(
                "echo behind a routing header",
                &Frame {
                    options: vec![131, 3, 4, 0],
                    extensions: vec![(number::ROUTING, vec![0, 4, 1, 0, 0, 0, 0])],
                    ..frame.clone()
                },
            ),
        ]);
    }
    cases
}

/// A solicitation for a VIP, and its answer.
fn solicitation(target: [u8; 16], option: Option<[u8; 8]>) -> Frame {
    let load = Load::Icmp {
        kind: [135, 0],
        rest: [0; 4],
        data: [
            &target[..],
            option.as_ref().map_or(&[], |option| &option[..]),
        ]
        .concat(),
    };
    let mut group = [0; 16];
    group[..2].copy_from_slice(&[0xff, 2]);
    group[11..13].copy_from_slice(&[1, 0xff]);
    group[13..].copy_from_slice(&target[13..]);
    Frame {
        hops: 255,
        ..Frame::new(SOLICITED_MAC, mac(99), Ends::V6(CLIENT6, group), load)
    }
}

fn neighbours() -> Vec<Case> {
    let own = |mac: [u8; 6]| {
        let mut option = [1, 1, 0, 0, 0, 0, 0, 0];
        option[2..].copy_from_slice(&mac);
        option
    };
    let asked = solicitation(VIP6, Some(own(mac(99))));
    let told = |with_option: bool| {
        let mut data = VIP6.to_vec();
        if with_option {
            data.extend([2, 1]);
            data.extend(OWN_MAC);
        }
        let load = Load::Icmp {
            kind: [136, 0],
            rest: [0x60, 0, 0, 0],
            data,
        };
        Frame {
            hops: 255,
            ..Frame::new(mac(99), OWN_MAC, Ends::V6(VIP6, CLIENT6), load)
        }
    };
    let (answer, told) = (told(true), |with_option| told(with_option).build());
    let all_nodes = {
        let mut group = [0; 16];
        (group[0], group[1], group[15]) = (0xff, 2, 1);
        group
    };
    let taken = Frame {
        to_mac: [0x33, 0x33, 0, 0, 0, 1],
        ends: Ends::V6(VIP6, all_nodes),
        load: match &answer.load {
            Load::Icmp { data, .. } => Load::Icmp {
                kind: [136, 0],
                rest: [0x20, 0, 0, 0],
                data: data.clone(),
            },
            other => other.clone(),
        },
        ..answer.clone()
    };
    let unicast = Frame {
        to_mac: OWN_MAC,
        ends: Ends::V6(CLIENT6, VIP6),
        ..solicitation(VIP6, None)
    };
    let data = |load: &Load| match load {
        Load::Icmp { data, .. } => data.clone(),
        _ => Vec::new(),
    };
    let two_options = {
        let mut data = data(&asked.load);
        data.extend([14, 1, 1, 2, 3, 4, 5, 6]);
        asked.with(Load::Icmp {
            kind: [135, 0],
            rest: [0; 4],
            data,
        })
    };
    let of_kind = |kind| {
        asked.with(Load::Icmp {
            kind,
            rest: [0; 4],
            data: data(&asked.load),
        })
    };
    let short = |length: usize| {
        asked.with(Load::Icmp {
            kind: [135, 0],
            rest: [0; 4],
            data: VIP6[..length].to_vec(),
        })
    };
    let mut lies = asked.build();
    // 23 bytes behind the header.
    lies[18..20].copy_from_slice(&[0, 23]);
    let untouched = |name, frame: &Frame| Case::pass(name, frame.build(), Counter::NotOurs);
    let search = Frame {
        ends: Ends::V6(
            [0; 16],
            match asked.ends {
                Ends::V6(_, to) => to,
                Ends::V4(..) => [0; 16],
            },
        ),
        ..solicitation(VIP6, None)
    };
    let with_nonce = Frame {
        ends: search.ends,
        ..solicitation(VIP6, Some([14, 1, 1, 2, 3, 4, 5, 6]))
    };
    let away = |t: &mut HostTables| change_node(t, ME, |own| own.ifindex = FAR_INTERFACE);
    vec![
        Case::send(
            "who has the VIP of IPv6",
            asked.build(),
            Counter::NeighbourReply,
            told(true),
        ),
        Case::send(
            "is the VIP of IPv6 still there",
            unicast.build(),
            Counter::NeighbourReply,
            told(false),
        ),
        Case::send(
            "who has the VIP, two options",
            two_options.build(),
            Counter::NeighbourReply,
            told(true),
        ),
        Case::send(
            "who has the VIP, a padded frame",
            [unicast.build(), vec![0; 4]].concat(),
            Counter::NeighbourReply,
            told(false),
        ),
        untouched(
            "who has the VIP, not from the link",
            &Frame {
                hops: 254,
                ..asked.clone()
            },
        ),
        Case::send(
            "who has the VIP, a search for duplicates",
            search.build(),
            Counter::NeighbourReply,
            taken.build(),
        ),
        Case::send(
            "who has the VIP, a search for duplicates with a nonce",
            with_nonce.build(),
            Counter::NeighbourReply,
            taken.build(),
        ),
        untouched(
            "a search for duplicates of another address",
            &Frame {
                ends: search.ends,
                ..solicitation(six(0x99), None)
            },
        ),
        untouched(
            "who has a VIP announced elsewhere",
            &solicitation(six(0x12), Some(own(mac(99)))),
        ),
        untouched(
            "who has a shared address of IPv6",
            &solicitation(SHARED6, Some(own(mac(99)))),
        ),
        untouched(
            "who has another address of IPv6",
            &solicitation(six(0x99), Some(own(mac(99)))),
        ),
        Case::send(
            "who has the VIP, tagged",
            asked.tagged(&[[number::VLAN, OWN_VLAN]]).build(),
            Counter::NeighbourReply,
            answer.tagged(&[[number::VLAN, OWN_VLAN]]).build(),
        ),
        Case::send(
            "who has the VIP, tagged twice",
            asked
                .tagged(&[[number::OUTER_VLAN, OWN_VLAN], [number::VLAN, 3]])
                .build(),
            Counter::NeighbourReply,
            answer
                .tagged(&[[number::OUTER_VLAN, OWN_VLAN], [number::VLAN, 3]])
                .build(),
        ),
        untouched(
            "who has the VIP, in a VLAN of others",
            &asked.tagged(&[[number::VLAN, 8]]),
        ),
        untouched(
            "who has the VIP, behind a header",
            &asked.extended(&[padding(0, 0)]),
        ),
        untouched("who has the VIP, another code", &of_kind([135, 1])),
        untouched("advertisement of the VIP", &of_kind([136, 0])),
        untouched("router solicitation", &of_kind([133, 0])),
        untouched("no target", &short(0)),
        untouched("half a target", &short(14)),
        Case::pass("who has the VIP, a wrong length", lies, Counter::NotOurs),
        Case::pass(
            "who has the VIP, on another interface",
            asked.build(),
            Counter::NotOurs,
        )
        .setup(away),
        Case::pass(
            "who has the VIP, own MAC unknown",
            asked.build(),
            Counter::NotOurs,
        )
        .setup(|t| change_node(t, ME, |own| own.flags &= !node_flag::RESOLVED)),
    ]
}

/// ARP that the plain cases do not have.
fn requests() -> Vec<Case> {
    let client = (mac(99), [203, 0, 113, 1]);
    let ask = |to, sender| arp(to, 1, sender, ([0; 6], VIP));
    let reply = |to: ([u8; 6], [u8; 4])| arp(to.0, 2, (OWN_MAC, VIP), to);
    let probe = (mac(99), [0; 4]);
    let padded = [ask([0xff; 6], client), vec![0; 18]].concat();
    let tags = |bytes: Vec<u8>, vlan: u16| {
        let [high, low] = vlan.to_be_bytes();
        let mut bytes = bytes;
        bytes.splice(12..12, [0x81, 0, 0x60 | high, low]);
        bytes
    };
    let tagged = |vlan| tags(ask([0xff; 6], client), vlan);
    let mut other_kind = ask([0xff; 6], client);
    other_kind[15] = 6;
    vec![
        Case::send(
            "who has the VIP, asked of us alone",
            ask(OWN_MAC, client),
            Counter::ArpReply,
            reply(client),
        ),
        Case::send(
            "a probe for the VIP",
            ask([0xff; 6], probe),
            Counter::ArpReply,
            reply(probe),
        ),
        Case::send(
            "who has the VIP, padded",
            padded,
            Counter::ArpReply,
            [reply(client), vec![0; 18]].concat(),
        ),
        Case::send(
            "who has the VIP of IPv4, tagged",
            tagged(OWN_VLAN),
            Counter::ArpReply,
            tags(reply(client), OWN_VLAN),
        ),
        Case::send(
            "who has the VIP of IPv4, tagged twice",
            tags(tagged(3), VLAN),
            Counter::ArpReply,
            tags(tags(reply(client), 3), VLAN),
        ),
        Case::send(
            "who has the VIP of IPv4, with a priority",
            tagged(0),
            Counter::ArpReply,
            tags(reply(client), 0),
        ),
        Case::pass(
            "who has the VIP of IPv4, in a VLAN of others",
            tagged(8),
            Counter::NotOurs,
        ),
        Case::pass(
            "who has the VIP of IPv4, tagged three times",
            tags(tags(tagged(3), 3), VLAN),
            Counter::NotOurs,
        ),
        Case::pass("ARP of another kind of link", other_kind, Counter::NotOurs),
        Case::pass(
            "who has the VIP of IPv4, on another interface",
            ask([0xff; 6], client),
            Counter::NotOurs,
        )
        .setup(|t| change_node(t, ME, |own| own.ifindex = FAR_INTERFACE)),
    ]
}

/// Packets that do not go through to [`NARROW`].
fn too_big() -> Vec<Case> {
    let mut cases = Vec::new();
    let load = |version: &str, whole: usize| Load::Tcp {
        ports: [40_000, 80],
        flags: ACK,
        numbers: [3, 4],
        options: Vec::new(),
        data: vec![0x5a; whole - if version == "IPv4" { 40 } else { 60 }],
    };
    for plain in both(VIP, VIP6, &tcp(80, ACK)) {
        let kind = version(&plain);
        for (fits, overhead) in [
            (NARROW_MTU, 0),
            (NARROW_MTU - 36, 36),
            (NARROW_MTU - 56, 56),
        ] {
            let fits = usize::from(fits);
            let frame = |length| plain.with(load(kind, length));
            let hash = plain.hash();
            let setup = |case: Case| {
                let case = case
                    .hashed(hash, owned_by(NARROW))
                    .setup(|t| t.config.too_big_limit = 1);
                let case = if overhead == 0 {
                    case
                } else {
                    case.setup(|t| t.config.flags |= flag::ENCAP_ALWAYS)
                };
                if overhead == 56 {
                    case.setup(over_v6)
                } else {
                    case
                }
            };
            let whole = frame(fits);
            let sent = if overhead == 0 {
                whole.aged().between(mac(NARROW), OWN_MAC)
            } else {
                sent_for(hash, &whole, NARROW, [0x13, 0], overhead == 56)
            };
            let counter = if overhead == 0 {
                Counter::ForwardL2
            } else {
                Counter::ForwardUdp
            };
            let name = |what| format!("{what} of {kind} with {overhead} more bytes");
            cases.push(setup(Case::send(
                name("what fits"),
                whole.build(),
                counter,
                sent.build(),
            )));
            let big = frame(fits + 1);
            cases.push(setup(Case::send(
                name("a byte more"),
                big.build(),
                Counter::TooBigReply,
                told(&big, fits as u32),
            )));
            let spent = Case::drop(name("nobody told"), big.build(), Counter::TooBig);
            cases.push(setup(spent).setup(|t| t.config.too_big_limit = 0));
            let twice = Case::drop(name("the budget is spent"), big.build(), Counter::TooBig);
            cases.push(setup(twice).setup(|t| {
                t.config.window_jiffies = 1_000_000;
                let slot = cpu_state::TOO_BIG as usize;
                let mut words = t.cpu_state.borrow_mut();
                (words[slot], words[slot + 1]) = (t.jiffies, 1);
            }));
        }
        let fits = usize::from(NARROW_MTU);
        let big = plain.with(load(kind, fits + 1));
        let silent = |what, frame: &Frame| {
            Case::drop(
                format!("too big, {what}, {kind}"),
                frame.build(),
                Counter::TooBig,
            )
            .hashed(plain.hash(), owned_by(NARROW))
            .setup(|t| t.config.too_big_limit = 1)
        };
        cases.push(silent(
            "from a peer's MAC",
            &big.between(OWN_MAC, mac(ON_LINK)),
        ));
        cases.push(silent("tagged", &big.tagged(&[[number::VLAN, 9]])));
        let inner = plain.with(load(kind, fits - 35));
        cases.push(
            silent("out of the tunnel", &arrives(&inner, [0x13, 0], false))
                .also(Counter::Decapsulated)
                .leaves(inner.between(OWN_MAC, mac(ON_LINK)).build()),
        );
        if kind == "IPv4" {
            cases.push(silent(
                "may be fragmented",
                &Frame {
                    fragment: 0,
                    ..big.clone()
                },
            ));
            cases.push(silent(
                "options",
                &Frame {
                    options: vec![1; 4],
                    ..big.clone()
                },
            ));
        }
    }
    cases
}

/// The message that a packet is too big.
fn told(frame: &Frame, fits: u32) -> Vec<u8> {
    let (ends, kind, quote) = match frame.ends {
        Ends::V4(client, vip) => (Ends::V4(vip, client), [3, 4], 28),
        Ends::V6(client, vip) => (Ends::V6(vip, client), [2, 0], 48),
    };
    let load = Load::Icmp {
        kind,
        rest: fits.to_be_bytes(),
        data: frame.packet()[..quote].to_vec(),
    };
    Frame::new(frame.from_mac, frame.to_mac, ends, load).build()
}

/// ICMP errors that are about no flow of a VIP.
fn bad_errors() -> Vec<Case> {
    let mut cases = Vec::new();
    for toward in both(VIP, VIP6, &tcp(80, ACK)) {
        let (ends, kind, header) = match toward.ends {
            Ends::V4(client, vip) => (Ends::V4(vip, client), [3, 4], 20),
            Ends::V6(client, vip) => (Ends::V6(vip, client), [2, 0], 40),
        };
        let back = Frame::new([0; 6], [0; 6], ends, tcp(0, ACK));
        let from = |ports: [u16; 2]| Load::Tcp {
            ports,
            flags: ACK,
            numbers: [1, 1],
            options: Vec::new(),
            data: vec![0; 20],
        };
        let good = back.with(from([80, 40_000]));
        let error = |kind: [u8; 2], data: Vec<u8>| {
            toward.with(Load::Icmp {
                kind,
                rest: [0, 0, 5, 0],
                data,
            })
        };
        let about = |quoted: &Frame| error(kind, quoted.packet()[..header + 8].to_vec());
        let elsewhere = match ends {
            Ends::V4(_, client) => Ends::V4([203, 0, 113, 99], client),
            Ends::V6(_, client) => Ends::V6(six(0x99), client),
        };
        let other_vip = match ends {
            Ends::V4(_, client) => Ends::V4(FLAT, client),
            Ends::V6(_, client) => Ends::V6(FLAT6, client),
        };
        let quoted_error = back.with(Load::Icmp {
            kind,
            rest: [0; 4],
            data: good.packet(),
        });
        let fragment = Frame {
            fragment: 0x2000,
            extensions: vec![fragment(0, true)],
            ..good.clone()
        };
        let wrong_version = match ends {
            Ends::V4(..) => both(VIP, VIP6, &tcp(80, ACK))[1].packet(),
            Ends::V6(..) => both(VIP, VIP6, &tcp(80, ACK))[0].packet(),
        };
        let not_error: &[[u8; 2]] = if header == 20 {
            &[
                [0, 0],
                [4, 0],
                [5, 1],
                [9, 0],
                [10, 0],
                [13, 0],
                [17, 0],
                [8, 1],
            ]
        } else {
            &[
                [0, 0],
                [5, 0],
                [127, 0],
                [129, 0],
                [130, 0],
                [133, 0],
                [134, 0],
                [136, 0],
                [137, 0],
                [143, 0],
            ]
        };
        let name = |what: &str| format!("error of {}: {what}", version(&toward));
        let mut untouched = |what: &str, frame: &Frame| {
            cases.push(
                Case::pass(name(what), frame.build(), Counter::NotOurs)
                    .hashed(toward.hash(), owned_by(ON_LINK)),
            );
        };
        untouched(
            "quoting another destination",
            &about(&Frame {
                ends: elsewhere,
                ..good.clone()
            }),
        );
        untouched(
            "quoting another VIP",
            &about(&Frame {
                ends: other_vip,
                ..good.clone()
            }),
        );
        untouched(
            "quoting another port",
            &about(&back.with(from([22, 40_000]))),
        );
        untouched("quoting an error", &about(&quoted_error));
        untouched("quoting a fragment", &about(&fragment));
        untouched("quoting the other version", &error(kind, wrong_version));
        untouched("quoting nothing", &error(kind, Vec::new()));
        untouched(
            "quoting half a header",
            &error(kind, good.packet()[..header - 2].to_vec()),
        );
        untouched(
            "quoting no ports",
            &error(kind, good.packet()[..header + 2].to_vec()),
        );
        untouched(
            "in a fragment",
            &Frame {
                fragment: 0x2000,
                extensions: vec![gateway_tests::packet::frame::fragment(0, true)],
                ..about(&good)
            },
        );
        untouched(
            "to a group's MAC",
            &about(&good).between([0xff; 6], mac(99)),
        );
        for kind in not_error {
            untouched(&format!("no error, {kind:?}"), &error(*kind, good.packet()));
        }
    }
    cases
}
