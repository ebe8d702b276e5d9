//! Packets that no well-meaning sender makes: to slip past a check, or to have somebody else answered.

use super::case::*;

pub(super) fn hostile() -> Vec<Case> {
    [hidden(), impostors(), unanswered(), marked(), outside()].concat()
}

/// Fragments whose protocol stands behind headers that only the first of them has.
fn hidden() -> Vec<Case> {
    let mut cases = Vec::new();
    for (at, more) in [(0, true), (3, true), (3, false)] {
        for (vip, counter) in [
            (VIP6, Some(Counter::Fragment)),
            (FLAT6, Some(Counter::Fragment)),
            (SHARED6, None),
            (six(0x99), None),
        ] {
            let whole = Frame::new(OWN_MAC, mac(99), Ends::V6(CLIENT6, vip), tcp(80, ACK));
            let headers = [fragment(at, more), padding(number::DESTINATION, 0)];
            let name = format!("fragment {at} {more} that begins with a header, to {vip:?}");
            let packet = whole.extended(&headers).build();
            cases.push(match counter {
                Some(counter) => Case::drop(name, packet, counter),
                None => Case::pass(name, packet, Counter::NotOurs),
            });
        }
    }
    cases
}

/// IPv6 packets from the mapped form of an IPv4 address that a list admits.
fn impostors() -> Vec<Case> {
    let mapped = |four: [u8; 4]| {
        let mut address = [0; 16];
        address[10..12].fill(0xff);
        address[12..].copy_from_slice(&four);
        address
    };
    let ends = Ends::V6(mapped([198, 51, 100, 200]), LISTED6);
    let load = udp(DNS, 4);
    let frame = Frame::new(OWN_MAC, mac(99), ends, load.clone());
    let admitted = Ends::V4([198, 51, 100, 200], LISTED);
    vec![
        Case::drop(
            "a mapped source that a list admits as IPv4",
            frame.build(),
            Counter::SourceDenied,
        )
        .hashed(frame.hash(), MINE),
        {
            let frame = Frame::new(OWN_MAC, mac(99), admitted, load);
            Case::pass("the IPv4 source", frame.build(), Counter::OwnPass)
                .hashed(frame.hash(), MINE)
        },
    ]
}

/// Packets whose answer would go to a group, to nobody, or to ourselves (RFC 1122, 3.2.2).
fn unanswered() -> Vec<Case> {
    let group6 = {
        let mut group = [0; 16];
        (group[0], group[1], group[15]) = (0xff, 2, 1);
        group
    };
    let mut sources = vec![Ends::V6([0; 16], VIP6), Ends::V6(group6, VIP6)];
    sources
        .extend([[0; 4], [224, 0, 0, 1], [255; 4], [127, 0, 0, 1]].map(|four| Ends::V4(four, VIP)));
    sources.extend([Ends::V4(VIP, VIP), Ends::V6(VIP6, VIP6)]);
    let mut cases = Vec::new();
    for ends in sources {
        let big = Load::Tcp {
            ports: [40_000, 80],
            flags: ACK,
            numbers: [3, 4],
            options: Vec::new(),
            data: vec![0; usize::from(NARROW_MTU)],
        };
        let frame = Frame::new(OWN_MAC, mac(99), ends, big);
        let name = format!("too big, {ends:?}");
        let silent = |name, frame: &Frame| {
            Case::drop(name, frame.build(), Counter::TooBig)
                .hashed(frame.hash(), owned_by(NARROW))
                .setup(|t| t.config.too_big_limit = 1)
        };
        cases.push(silent(name, &frame));
        let kind = if matches!(ends, Ends::V4(..)) { 8 } else { 128 };
        let echo = frame.with(Load::Icmp {
            kind: [kind, 0],
            rest: [1; 4],
            data: vec![7; 11],
        });
        let name = format!("echo, {ends:?}");
        cases.push(Case::pass(name, echo.build(), Counter::NotOurs));
    }
    for frame in both(VIP, VIP6, &udp(DNS, usize::from(NARROW_MTU))) {
        let group = frame.between(OWN_MAC, [1, 0, 0x5e, 0, 0, 9]);
        let name = format!("too big, from a group's MAC, {}", version(&frame));
        cases.push(
            Case::drop(name, group.build(), Counter::TooBig)
                .hashed(frame.hash(), owned_by(NARROW))
                .setup(|t| t.config.too_big_limit = 1),
        );
    }
    cases
}

/// Marks of congestion on outer headers (RFC 6040, 4.2).
fn marked() -> Vec<Case> {
    let mut cases = Vec::new();
    for over_v6 in [false, true] {
        for plain in both(VIP, VIP6, &tcp(80, ACK)) {
            for (inner, outer, marks) in [
                (0, 1, Some(0)),
                (0, 2, Some(0)),
                (0, 3, None),
                (1, 2, Some(1)),
                (1, 3, Some(3)),
                (2, 1, Some(1)),
                (2, 3, Some(3)),
                (3, 0, Some(3)),
            ] {
                let class = |marks: u8| 0xb8 | marks;
                let frame = Frame {
                    class: class(inner),
                    ..plain.clone()
                };
                let packet = Frame {
                    class: 0x28 | outer,
                    ..arrives(&frame, [0x13, 0], over_v6)
                };
                let name = format!(
                    "marked {outer} outside, {inner} inside, {}, over IPv6 {over_v6}",
                    version(&frame)
                );
                let Some(marks) = marks else {
                    let inside = frame.between(OWN_MAC, mac(ON_LINK));
                    let case = Case::drop(name, packet.build(), Counter::TunnelMalformed);
                    cases.push(case.leaves(inside.build()).setup_if(over_v6));
                    continue;
                };
                let inside = Frame {
                    class: class(marks),
                    ..frame.between(OWN_MAC, mac(ON_LINK))
                };
                cases.push(
                    Case::pass(name, packet.build(), Counter::OwnPass)
                        .also(Counter::Decapsulated)
                        .leaves(inside.build())
                        .hashed(frame.hash(), MINE)
                        .setup_if(over_v6),
                );
            }
        }
    }
    cases
}

/// Outer headers that lie, and those of frames for another machine.
fn outside() -> Vec<Case> {
    let mut cases = Vec::new();
    for over_v6 in [false, true] {
        for frame in both(VIP, VIP6, &tcp(80, ACK)) {
            let tunnel = arrives(&frame, [0x13, 0], over_v6);
            let at = if over_v6 { 58 } else { 38 };
            let name = |what| format!("{what} of {}, over IPv6 {over_v6}", version(&frame));
            for length in [0, 7, 15, 16, 55, 57, 200, 0xffff] {
                let mut packet = tunnel.build();
                packet[at..at + 2].copy_from_slice(&u16::to_be_bytes(length));
                // The true one of an inner IPv4 packet.
                if usize::from(length) + at - 4 == packet.len() {
                    continue;
                }
                let name = name(format!("outer UDP length {length}"));
                let case = Case::drop(name, packet, Counter::TunnelMalformed);
                cases.push(case.setup_if(over_v6));
            }
            for to in [mac(98), [0xff; 6]] {
                let packet = tunnel.between(to, mac(ON_LINK)).build();
                let name = name(format!("flooded tunnel packet to {to:?}"));
                cases.push(Case::pass(name, packet, Counter::OtherHost).setup_if(over_v6));
            }
        }
    }
    cases
}

trait OverV6 {
    /// With nodes that have IPv6 addresses, if so.
    fn setup_if(self, over_v6: bool) -> Self;
}

impl OverV6 for Case {
    fn setup_if(self, so: bool) -> Self {
        if so { self.setup(over_v6) } else { self }
    }
}
