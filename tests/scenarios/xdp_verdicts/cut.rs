//! Packets that end too early, at every offset; and headers that lie about lengths.

use super::case::*;

pub(super) fn cut() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, frame, from, counter) in kinds() {
        let whole = frame.build();
        for length in 14..whole.len() {
            let packet = whole[..length].to_vec();
            let name = format!("{name}, {length} bytes of {}", whole.len());
            cases.push(if length < from {
                Case::pass(name, packet, Counter::NotOurs)
            } else {
                Case::drop(name, packet, counter)
            });
        }
    }
    cases.extend(elsewhere());
    cases.extend(lies());
    cases
}

/// Frames, and from what length on a part of one is dropped, for what reason.
fn kinds() -> Vec<(&'static str, Frame, usize, Counter)> {
    const NEVER: usize = usize::MAX;
    let [four, six] = both(VIP, VIP6, &tcp(80, SYN));
    let [dns, dns6] = both(VIP, VIP6, &udp(DNS, 5));
    let [flat, flat6] = both(FLAT, FLAT6, &udp(443, 64));
    let part = |frame: &Frame, at: u16| {
        let (_, whole) = frame.payload();
        Frame {
            fragment: 0x2000 | at,
            extensions: vec![fragment(at, true)],
            ..frame.with(Load::Raw(
                number::UDP,
                whole[usize::from(at) * 8..64].to_vec(),
            ))
        }
    };
    let options = Frame {
        options: vec![1; 8],
        ..four.clone()
    };
    let chain = six.extended(&[
        padding(0, 1),
        padding(number::DESTINATION, 0),
        fragment(0, false),
    ]);
    let tags = [[number::OUTER_VLAN, 1], [number::VLAN, 2]];
    let echo = |kind| Load::Icmp {
        kind: [kind, 0],
        rest: [1; 4],
        data: vec![7; 11],
    };
    let [ping, _] = both(VIP, VIP6, &echo(8));
    let [_, ping6] = both(VIP, VIP6, &echo(128));
    let quote = |kind: u8, ends: Ends| Load::Icmp {
        kind: [kind, 0],
        rest: [0; 4],
        data: Frame::new([0; 6], [0; 6], ends, tcp(0, ACK).reversed()).packet(),
    };
    let error = four.with(quote(3, Ends::V4(VIP, CLIENT)));
    let error6 = six.with(quote(1, Ends::V6(VIP6, CLIENT6)));
    let tunnel = |over_v6| arrives(&four, [0x13, 0], over_v6);
    vec![
        ("TCP over IPv4", four.clone(), 34, Counter::Truncated),
        ("TCP over IPv6", six.clone(), 54, Counter::Truncated),
        ("UDP over IPv4", dns, 34, Counter::Truncated),
        ("UDP over IPv6", dns6, 54, Counter::Truncated),
        ("options", options, 34, Counter::Truncated),
        ("extension headers", chain, 54, Counter::Truncated),
        ("two tags", four.tagged(&tags), 42, Counter::Truncated),
        ("two tags, IPv6", six.tagged(&tags), 62, Counter::Truncated),
        ("first fragment", part(&flat, 0), 34, Counter::Truncated),
        ("later fragment", part(&flat, 3), 34, Counter::Truncated),
        (
            "first fragment over IPv6",
            part(&flat6, 0),
            54,
            Counter::Truncated,
        ),
        (
            "later fragment over IPv6",
            part(&flat6, 3),
            54,
            Counter::Truncated,
        ),
        ("echo over IPv4", ping, NEVER, Counter::NotOurs),
        ("echo over IPv6", ping6, NEVER, Counter::NotOurs),
        ("error over IPv4", error, NEVER, Counter::NotOurs),
        ("error over IPv6", error6, NEVER, Counter::NotOurs),
        ("tunnel", tunnel(false), 38, Counter::TunnelMalformed),
    ]
}

/// The other way.
trait Reversed {
    fn reversed(self) -> Self;
}

impl Reversed for Load {
    fn reversed(mut self) -> Self {
        if let Self::Tcp { ports, .. } = &mut self {
            *ports = [80, 40_000];
        }
        self
    }
}

/// Of somebody else's packets every part passes.
fn elsewhere() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, frame, ..) in kinds() {
        let ends = match frame.ends {
            Ends::V4(source, _) => Ends::V4(source, [203, 0, 113, 99]),
            Ends::V6(source, _) => Ends::V6(source, six(0x99)),
        };
        let whole = Frame { ends, ..frame }.build();
        for length in 14..=whole.len() {
            let name = format!("{name}, elsewhere, {length} bytes");
            cases.push(Case::pass(name, whole[..length].to_vec(), Counter::NotOurs));
        }
    }
    cases
}

/// Headers that lie about lengths, in whole frames.
fn lies() -> Vec<Case> {
    let [four, six] = both(VIP, VIP6, &tcp(80, ACK));
    let [dns, dns6] = both(VIP, VIP6, &udp(DNS, 20));
    let [flat, flat6] = both(FLAT, FLAT6, &udp(443, 20));
    let part = |frame: &Frame| Frame {
        fragment: 0x2000,
        extensions: vec![fragment(0, true)],
        ..frame.clone()
    };
    let set = |frame: &Frame, at: usize, word: u16| {
        let mut bytes = frame.build();
        bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
        bytes
    };
    let mut cases = Vec::new();
    for length in [0, 19, 20, 39, 41, 1_000, 0xffff] {
        let name = format!("IPv4 length {length}");
        cases.push(Case::drop(name, set(&four, 16, length), Counter::Truncated));
    }
    for length in [0, 19, 21, 1_000, 0xffff] {
        let name = format!("IPv6 length {length}");
        cases.push(Case::drop(name, set(&six, 18, length), Counter::Truncated));
    }
    for length in [0, 7, 29, 0xffff] {
        let name = format!("UDP length {length}");
        cases.push(Case::drop(
            format!("{name} over IPv4"),
            set(&dns, 38, length),
            Counter::Truncated,
        ));
        cases.push(Case::drop(
            format!("{name} over IPv6"),
            set(&dns6, 58, length),
            Counter::Truncated,
        ));
    }
    for length in [1_000, 0xffff] {
        let name = format!("IP length {length} of a fragment");
        cases.push(Case::drop(
            name.clone(),
            set(&part(&flat), 16, length),
            Counter::Truncated,
        ));
        cases.push(Case::drop(
            name,
            set(&part(&flat6), 18, length),
            Counter::Truncated,
        ));
    }
    for offset in [0u16, 4, 6, 15] {
        let name = format!("TCP header of {offset} words");
        cases.push(Case::drop(
            format!("{name}, IPv4"),
            set(&four, 46, offset << 12 | 16),
            Counter::Truncated,
        ));
        cases.push(Case::drop(
            format!("{name}, IPv6"),
            set(&six, 66, offset << 12 | 16),
            Counter::Truncated,
        ));
    }
    for words in [0u16, 4, 15] {
        let packet = set(&four, 14, (0x40 | words) << 8);
        cases.push(Case::drop(
            format!("IPv4 header of {words} words"),
            packet,
            Counter::Truncated,
        ));
    }
    for words in [0u16, 4] {
        let packet = set(&part(&flat), 14, (0x40 | words) << 8);
        let name = format!("IPv4 header of {words} words, of a fragment");
        cases.push(Case::drop(name, packet, Counter::Truncated));
    }
    for length in [20, 27, 1_000, 0xffff] {
        let ping = four.with(Load::Icmp {
            kind: [8, 0],
            rest: [1; 4],
            data: Vec::new(),
        });
        let name = format!("IPv4 length {length} of an echo");
        cases.push(Case::pass(name, set(&ping, 16, length), Counter::NotOurs));
    }
    cases
}
