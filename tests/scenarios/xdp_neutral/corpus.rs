//! Frames that are nobody's business but their owner's: not for a VIP, not our tunnel.

use gateway_tests::object::fixture::{
    DELETED, LISTENING, ME, SHARED, SHARED6, TUNNEL, VIP, VIP6, address, address6, mac, six,
};
use gateway_tests::packet::frame::{fragment, number, padding};
use gateway_tests::packet::{ACK, Ends, Frame, Load, SYN, arp, ethernet};

const ELSEWHERE: [u8; 4] = [203, 0, 113, 99];
const ELSEWHERE6: [u8; 16] = six(0x99);
const CLIENT: [u8; 4] = [198, 51, 100, 7];
const CLIENT6: [u8; 16] = six(0x77);

/// All of them, each with a name.
pub(super) fn corpus() -> Vec<(String, Vec<u8>)> {
    let mut frames = Vec::new();
    flows(&mut frames);
    protocols(&mut frames);
    messages(&mut frames);
    headers(&mut frames);
    links(&mut frames);
    tunnels(&mut frames);
    services(&mut frames);
    frames
}

type Frames = Vec<(String, Vec<u8>)>;

/// Group address of IPv6.
const fn group(scope: u8, last: u8) -> [u8; 16] {
    [0xff, scope, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// A frame to this host, or to the group that an address means.
fn frame(ends: Ends, load: Load) -> Frame {
    let to_mac = match ends {
        Ends::V4(_, [255, 255, 255, 255]) => [0xff; 6],
        Ends::V4(_, [224..=239, b, c, d]) => [1, 0, 0x5e, b & 0x7f, c, d],
        Ends::V6(_, [0xff, .., a, b, c, d]) => [0x33, 0x33, a, b, c, d],
        _ => mac(ME),
    };
    Frame::new(to_mac, mac(99), ends, load)
}

fn to(four: [u8; 4], six: [u8; 16], load: &Load) -> [Frame; 2] {
    [Ends::V4(CLIENT, four), Ends::V6(CLIENT6, six)].map(|ends| frame(ends, load.clone()))
}

fn tcp(port: u16, flags: u8, options: usize, length: usize) -> Load {
    Load::Tcp {
        ports: [40_000, port],
        flags,
        numbers: [1, 1],
        options: vec![1; options],
        data: vec![0x61; length],
    }
}

fn udp(ports: [u16; 2], data: Vec<u8>) -> Load {
    Load::Udp {
        ports,
        summed: true,
        data,
    }
}

/// TCP and UDP to other addresses, and to other ports of addresses that are VIPs.
fn flows(frames: &mut Frames) {
    let mut mapped = [0; 16];
    mapped[10..12].fill(0xff);
    mapped[12..].copy_from_slice(&VIP);
    for (name, four, six) in [
        ("elsewhere", ELSEWHERE, ELSEWHERE6),
        ("a neighbour", [192, 0, 2, 77], address6(77)),
        ("this host", address(ME), address6(ME)),
        ("a shared address", SHARED, SHARED6),
        ("a VIP", VIP, VIP6),
        ("a deleted VIP", DELETED, six(0x12)),
        ("a group", [224, 0, 0, 251], group(2, 0xfb)),
        ("everybody", [255; 4], group(2, 1)),
        ("loopback", [127, 0, 0, 1], mapped),
    ] {
        for (kind, load) in [
            ("SYN to ssh", tcp(22, SYN, 20, 0)),
            ("data to ssh", tcp(22, ACK, 12, 1_000)),
            ("RST", tcp(6_443, 4, 0, 0)),
            ("datagram", udp([40_000, 9_999], vec![1; 100])),
            (
                "datagram to the tunnel's port",
                udp([40_000, TUNNEL], vec![0x13; 60]),
            ),
            (
                "datagram from the tunnel's port",
                udp([TUNNEL, 9_999], vec![0x13; 60]),
            ),
        ] {
            let of_tunnel = kind.ends_with("to the tunnel's port");
            for frame in to(four, six, &load) {
                // The one own address, of IPv4 here, is the tunnel's.
                if !(of_tunnel && frame.ends == Ends::V4(CLIENT, address(ME))) {
                    frames.push((format!("{kind}, {name}, {:?}", frame.ends), frame.build()));
                }
            }
        }
    }
    for port in [0, 1, 79, 80, LISTENING, 443, 65_535] {
        for frame in to(ELSEWHERE, ELSEWHERE6, &tcp(port, SYN, 0, 0)) {
            frames.push((format!("port {port} {:?}", frame.ends), frame.build()));
        }
    }
    for length in [0, 1, 2, 3, 5, 9, 1_460, 2_900] {
        for frame in to(ELSEWHERE, ELSEWHERE6, &udp([1, 2], vec![3; length])) {
            frames.push((format!("{length} bytes {:?}", frame.ends), frame.build()));
            let bytes = [frame.build(), vec![0xa5; 7]].concat();
            frames.push((
                format!("{length} bytes and padding {:?}", frame.ends),
                bytes,
            ));
        }
    }
}

/// Every protocol of IP, to others and to a VIP.
fn protocols(frames: &mut Frames) {
    for protocol in 0..=145 {
        let load = Load::Raw(protocol, (0..64).map(|byte| byte ^ protocol).collect());
        for frame in to(ELSEWHERE, ELSEWHERE6, &load) {
            frames.push((
                format!("protocol {protocol} {:?}", frame.ends),
                frame.build(),
            ));
        }
        let [four, six] = to(VIP, VIP6, &load);
        if !matches!(protocol, 6 | 17) {
            frames.push((format!("protocol {protocol} to a VIP"), four.build()));
        }
        if !matches!(protocol, 0 | 6 | 17 | 43 | 44 | 60) {
            frames.push((format!("protocol {protocol} to a VIP of IPv6"), six.build()));
        }
    }
}

/// ICMP of every kind.
fn messages(frames: &mut Frames) {
    let icmp = |kind: u8, code: u8| Load::Icmp {
        kind: [kind, code],
        rest: [0, 1, 0, 2],
        data: (0..48).collect(),
    };
    for kind in (0..=45).chain(125..=162) {
        for (name, four, six) in [
            ("elsewhere", ELSEWHERE, ELSEWHERE6),
            ("this host", address(ME), address6(ME)),
            ("a shared address", SHARED, SHARED6),
        ] {
            for frame in to(four, six, &icmp(kind, kind % 3)) {
                frames.push((
                    format!("ICMP {kind}, {name}, {:?}", frame.ends),
                    frame.build(),
                ));
            }
        }
    }
    // Errors about flows of others.
    for (vip, vip6) in [
        (ELSEWHERE, ELSEWHERE6),
        (address(ME), address6(ME)),
        (SHARED, SHARED6),
    ] {
        for (kind, kind6) in [([3, 4], [2, 0]), ([11, 0], [3, 0]), ([3, 1], [1, 4])] {
            let load = tcp(40_000, ACK, 0, 40);
            let quoted = [Ends::V4(vip, CLIENT), Ends::V6(vip6, CLIENT6)]
                .map(|ends| frame(ends, load.clone()));
            for (frame, (quoted, kind)) in to(vip, vip6, &load)
                .into_iter()
                .zip(quoted.iter().zip([kind, kind6]))
            {
                let data = quoted.packet();
                let load = Load::Icmp {
                    kind,
                    rest: [0, 0, 5, 0],
                    data,
                };
                frames.push((
                    format!("error {kind:?} about {:?}", quoted.ends),
                    frame.with(load).build(),
                ));
            }
        }
    }
}

/// Options, extension headers, fragments, hop limits, classes.
fn headers(frames: &mut Frames) {
    let places = [
        ("elsewhere", ELSEWHERE, ELSEWHERE6),
        ("this host", address(ME), address6(ME)),
        ("a shared address", SHARED, SHARED6),
    ];
    for (name, four, six) in places {
        let [plain, plain6] = to(four, six, &tcp(22, ACK, 0, 30));
        for kind in [1, 7, 68, 130, 131, 133, 136, 137, 148, 222] {
            for words in [1, 3, 10] {
                let mut options = vec![kind, (4 * words) as u8, 4];
                options.resize(4 * words, 0);
                let frame = Frame {
                    options,
                    ..plain.clone()
                };
                frames.push((
                    format!("option {kind}, {words} words, {name}"),
                    frame.build(),
                ));
            }
        }
        for number in [
            number::HOP_BY_HOP,
            number::ROUTING,
            number::DESTINATION,
            51,
            135,
            139,
            140,
            253,
        ] {
            for (count, more) in [(1, 0), (2, 0), (8, 0), (9, 0), (10, 0), (1, 255), (3, 60)] {
                let frame = plain6.extended(&vec![padding(number, more); count]);
                frames.push((
                    format!("{count} of {number} with {more}, {name}"),
                    frame.build(),
                ));
            }
        }
        for (offset, more) in [
            (0, true),
            (1, true),
            (185, true),
            (185, false),
            (8_191, false),
            (0, false),
        ] {
            for protocol in [number::TCP, number::UDP, number::ICMP, number::ICMPV6, 50] {
                for frame in to(four, six, &Load::Raw(protocol, vec![0x16; 80])) {
                    let frame = Frame {
                        fragment: offset | if more { 0x2000 } else { 0 },
                        extensions: vec![fragment(offset, more)],
                        ..frame
                    };
                    frames.push((
                        format!(
                            "fragment {offset} {more} of {protocol}, {name}, {:?}",
                            frame.ends
                        ),
                        frame.build(),
                    ));
                }
            }
        }
        for hops in [0, 1, 255] {
            for class in [0, 1, 2, 3, 0xb8, 0xff] {
                for frame in [&plain, &plain6] {
                    let frame = Frame {
                        hops,
                        class,
                        ..frame.clone()
                    };
                    frames.push((
                        format!("{hops} hops, class {class}, {name}, {:?}", frame.ends),
                        frame.build(),
                    ));
                }
            }
        }
        for (tags, kind) in [
            (vec![[number::VLAN, 0]], "priority"),
            (vec![[number::VLAN, 0xefff]], "a tag"),
            (vec![[number::OUTER_VLAN, 5]], "an outer tag"),
            (vec![[number::OUTER_VLAN, 5], [number::VLAN, 6]], "two tags"),
            (
                vec![[number::VLAN, 5], [number::VLAN, 6], [number::VLAN, 7]],
                "three tags",
            ),
            (vec![[0x9100, 5], [number::VLAN, 6]], "old tags"),
        ] {
            for frame in [&plain, &plain6] {
                frames.push((
                    format!("{kind}, {name}, {:?}", frame.ends),
                    frame.tagged(&tags).build(),
                ));
            }
        }
    }
}

/// Frames without IP, or with what only looks like it.
fn links(frames: &mut Frames) {
    let asked =
        |operation, sender, target| arp([0xff; 6], operation, (mac(99), sender), ([0; 6], target));
    for (name, bytes) in [
        ("ARP for another", asked(1, CLIENT, ELSEWHERE)),
        ("ARP for this host", asked(1, CLIENT, address(ME))),
        ("ARP for a shared address", asked(1, CLIENT, SHARED)),
        (
            "ARP for a VIP announced elsewhere",
            asked(1, CLIENT, DELETED),
        ),
        ("ARP probe", asked(1, [0; 4], ELSEWHERE)),
        ("ARP announcement", asked(1, ELSEWHERE, ELSEWHERE)),
        ("ARP announcement of a VIP", asked(1, VIP, VIP)),
        ("ARP answer about a VIP", asked(2, VIP, CLIENT)),
        ("RARP", asked(3, CLIENT, VIP)),
        ("ARP cut", asked(1, CLIENT, VIP)[..30].to_vec()),
    ] {
        frames.push((name.to_owned(), bytes));
    }
    let body: Vec<u8> = (0..64).map(|byte| byte * 3).collect();
    for kind in [
        0x0000, 0x0026, 0x05dc, 0x05ff, 0x0600, 0x0842, 0x22f3, 0x4305, 0x6003, 0x6558, 0x8035,
        0x809b, 0x8137, 0x8808, 0x8809, 0x8847, 0x8848, 0x8863, 0x8864, 0x887b, 0x888e, 0x8892,
        0x889a, 0x88a2, 0x88a4, 0x88b5, 0x88cc, 0x88cd, 0x88e1, 0x88e5, 0x88e7, 0x88f7, 0x8902,
        0x8906, 0x8914, 0x8915, 0x891d, 0x892f, 0x894f, 0x9000, 0x9100, 0x9200, 0xffff_u16,
    ] {
        for tags in [
            &[][..],
            &[0x81, 0, 0, 9],
            &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 8],
        ] {
            let to = [1, 0x80, 0xc2, 0, 0, (kind & 15) as u8];
            let mut bytes = ethernet(to, mac(99), kind.to_be_bytes(), &body);
            bytes.splice(12..12, tags.iter().copied());
            frames.push((
                format!("EtherType {kind:#06x} behind {} bytes of tags", tags.len()),
                bytes,
            ));
        }
    }
    let bpdu = [&[0x42, 0x42, 3][..], &[0; 35]].concat();
    frames.push((
        "spanning tree".to_owned(),
        ethernet([1, 0x80, 0xc2, 0, 0, 0], mac(99), [0, 38], &bpdu),
    ));
    let snap = [&[0xaa, 0xaa, 3, 0, 0, 0xc, 0x20, 0][..], &body].concat();
    frames.push((
        "SNAP".to_owned(),
        ethernet([1, 0, 0xc, 0xcc, 0xcc, 0xcc], mac(99), [0, 72], &snap),
    ));
    let [four, six] = to(VIP, VIP6, &tcp(80, ACK, 0, 0));
    let ppp = |protocol: [u8; 2], packet: Vec<u8>| {
        [
            &[0x11, 0, 0, 1, 0, packet.len() as u8 + 2][..],
            &protocol,
            &packet,
        ]
        .concat()
    };
    let label = |packet: Vec<u8>| [&[0, 1, 0x41, 64][..], &packet].concat();
    // Packets for a VIP inside of what we do not open.
    for (name, kind, body) in [
        ("PPPoE", [0x88, 0x64], ppp([0, 0x21], four.packet())),
        (
            "PPPoE with IPv6",
            [0x88, 0x64],
            ppp([0, 0x57], six.packet()),
        ),
        ("MPLS", [0x88, 0x47], label(four.packet())),
        ("MPLS with IPv6", [0x88, 0x47], label(six.packet())),
        ("another version as IPv4", [8, 0], six.packet()),
        ("another version as IPv6", [0x86, 0xdd], four.packet()),
        ("version 0", [8, 0], vec![0; 60]),
        ("version 15", [0x86, 0xdd], vec![0xff; 60]),
        ("nothing as IPv4", [8, 0], Vec::new()),
        ("nothing as IPv6", [0x86, 0xdd], Vec::new()),
        ("half a tag", [0x81, 0], vec![0, 9]),
        ("half a second tag", [0x88, 0xa8], vec![0, 9, 0x81, 0, 0]),
    ] {
        frames.push((name.to_owned(), ethernet(mac(ME), mac(99), kind, &body)));
    }
    let [other, other6] = to(ELSEWHERE, ELSEWHERE6, &tcp(22, SYN, 20, 0));
    for length in 14..60 {
        for frame in [&other, &other6] {
            frames.push((
                format!("{length} bytes of {:?}", frame.ends),
                frame.build()[..length].to_vec(),
            ));
        }
    }
}

/// Packets for a VIP inside of others' tunnels.
fn tunnels(frames: &mut Frames) {
    let [four, six] = to(VIP, VIP6, &tcp(80, ACK, 0, 10));
    for (inner, protocol, kind) in [(&four, 4, [8, 0]), (&six, 41, [0x86, 0xdd])] {
        let packet = inner.packet();
        let with = |header: &[u8]| [header, &packet].concat();
        let framed = |header: &[u8]| [header, &inner.build()].concat();
        for (name, load) in [
            ("in IP", Load::Raw(protocol, packet.clone())),
            ("in GRE", Load::Raw(47, with(&[0, 0, kind[0], kind[1]]))),
            ("in ESP", Load::Raw(50, with(&[0, 0, 1, 0, 0, 0, 0, 1]))),
            (
                "behind AH",
                Load::Raw(
                    51,
                    with(&[
                        protocol, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                        0,
                    ]),
                ),
            ),
            (
                "in VXLAN",
                udp([50_000, 4_789], framed(&[8, 0, 0, 0, 0, 0, 1, 0])),
            ),
            (
                "in Geneve",
                udp([50_000, 6_081], framed(&[0, 0, 0x65, 0x58, 0, 0, 1, 0])),
            ),
            ("in GUE", udp([50_000, 6_080], packet.clone())),
            (
                "in ESP in UDP",
                udp([4_500, 4_500], with(&[0, 0, 1, 0, 0, 0, 0, 1])),
            ),
            ("in WireGuard", udp([51_820, 51_820], with(&[4, 0, 0, 0]))),
            (
                "in our form",
                udp([50_000, TUNNEL], with(&[0x13, 0, 0, 0, 0, 0, 0, 0])),
            ),
        ] {
            for outer in to(ELSEWHERE, ELSEWHERE6, &load) {
                frames.push((
                    format!("{:?} {name} {:?}", inner.ends, outer.ends),
                    outer.build(),
                ));
            }
        }
    }
}

/// What runs on every network.
fn services(frames: &mut Frames) {
    let zero = [0; 4];
    let link6 = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    let four = |from, to, load| frame(Ends::V4(from, to), load);
    let local = |to, load| frame(Ends::V6(link6, to), load);
    let icmp = |kind, data: Vec<u8>| Load::Icmp {
        kind: [kind, 0],
        rest: [0; 4],
        data,
    };
    let alert = vec![(number::HOP_BY_HOP, vec![0, 5, 2, 0, 0, 1, 0])];
    let solicit = |target: [u8; 16]| icmp(135, [&target[..], &[1, 1], &mac(99)].concat());
    let mut options = |name: &str, frame: Frame, options: &[u8], hops| {
        let frame = Frame {
            options: options.to_vec(),
            hops,
            ..frame
        };
        frames.push((name.to_owned(), frame.build()));
    };
    options(
        "DHCP discover",
        four(zero, [255; 4], udp([68, 67], vec![1; 300])),
        &[],
        64,
    );
    options(
        "DHCP offer",
        four(CLIENT, address(ME), udp([67, 68], vec![2; 300])),
        &[],
        64,
    );
    options(
        "IGMP report",
        four(CLIENT, [224, 0, 0, 22], Load::Raw(2, vec![0x22; 16])),
        &[148, 4, 0, 0],
        1,
    );
    options(
        "IGMP query",
        four(CLIENT, [224, 0, 0, 1], Load::Raw(2, vec![0x11; 8])),
        &[148, 4, 0, 0],
        1,
    );
    options(
        "VRRP",
        four(CLIENT, [224, 0, 0, 18], Load::Raw(112, vec![0x21; 20])),
        &[],
        255,
    );
    options(
        "OSPF",
        four(CLIENT, [224, 0, 0, 5], Load::Raw(89, vec![2; 44])),
        &[],
        1,
    );
    options(
        "PIM",
        four(CLIENT, [224, 0, 0, 13], Load::Raw(103, vec![0x20; 34])),
        &[],
        1,
    );
    options(
        "PTP",
        four(CLIENT, [224, 0, 1, 129], udp([319, 319], vec![0; 44])),
        &[],
        1,
    );
    options(
        "mDNS",
        four(CLIENT, [224, 0, 0, 251], udp([5_353, 5_353], vec![0; 30])),
        &[],
        255,
    );
    options(
        "SSDP",
        four(
            CLIENT,
            [239, 255, 255, 250],
            udp([1_900, 1_900], vec![b'M'; 90]),
        ),
        &[],
        4,
    );
    options(
        "NetBIOS",
        four(CLIENT, [192, 0, 2, 255], udp([137, 137], vec![0; 50])),
        &[],
        64,
    );
    options(
        "BFD",
        four(CLIENT, address(ME), udp([49_152, 3_784], vec![0x20; 24])),
        &[],
        255,
    );
    options(
        "NTP",
        four(CLIENT, address(ME), udp([123, 123], vec![0x23; 48])),
        &[],
        64,
    );
    options(
        "our probes' port elsewhere",
        four(CLIENT, ELSEWHERE, udp([17_411, 17_411], vec![0; 40])),
        &[],
        64,
    );
    for (name, frame, hops) in [
        (
            "router solicitation",
            local(group(2, 2), icmp(133, Vec::new())),
            255,
        ),
        (
            "router advertisement",
            local(group(2, 1), icmp(134, vec![0; 40])),
            255,
        ),
        (
            "solicitation for another",
            local(group(2, 0x99), solicit(ELSEWHERE6)),
            255,
        ),
        (
            "solicitation for this host",
            local(group(2, 1), solicit(address6(ME))),
            255,
        ),
        (
            "solicitation for a shared address",
            local(group(2, 0x11), solicit(SHARED6)),
            255,
        ),
        (
            "solicitation for a VIP announced elsewhere",
            local(group(2, 0x12), solicit(six(0x12))),
            255,
        ),
        (
            "advertisement of a VIP",
            local(
                group(2, 1),
                icmp(136, [&VIP6[..], &[2, 1], &mac(99)].concat()),
            ),
            255,
        ),
        ("redirect", local(address6(ME), icmp(137, vec![0; 32])), 255),
        (
            "MLD report",
            local(group(2, 22), icmp(143, vec![0; 20])).extended(&alert),
            1,
        ),
        (
            "MLD query",
            local(group(2, 1), icmp(130, vec![0; 16])).extended(&alert),
            1,
        ),
        (
            "DHCPv6",
            local(group(2, 2), udp([546, 547], vec![1; 60])),
            1,
        ),
        (
            "mDNS over IPv6",
            local(group(2, 0xfb), udp([5_353, 5_353], vec![0; 30])),
            255,
        ),
        ("OSPFv3", local(group(2, 5), Load::Raw(89, vec![3; 36])), 1),
        (
            "search for duplicates",
            Frame {
                ends: Ends::V6([0; 16], group(2, 0x12)),
                ..local(group(2, 0x12), icmp(135, six(0x12).to_vec()))
            },
            255,
        ),
    ] {
        frames.push((name.to_owned(), Frame { hops, ..frame }.build()));
    }
}
