//! Probes of peers, answered where the packets are: no answer means that this machine forwards nothing.
//!
//! What is not a well-formed question of our version on our own address and port is nobody's business here and passes
//! untouched. A well-formed one that no peer signed for this node is dropped and counted.

use bytemuck::{Pod, Zeroable};

use super::Tables;
use super::heartbeat::{self, Proxy};
use super::place::{Place, kind};
use super::tables::node;
use super::tunnel::sender;
use crate::abi::{
    Counter, Live, LiveConfig, NodeEntry, NodeIndex, config::flag as config_flag, fact, node_flag,
};
use crate::checksum;
use crate::hash::{Key, words};
use crate::packet::{Ethernet, Header, Ipv4, Packet, Udp, protocol};
use crate::probe::{
    ANSWER, Counts, Ends, First, REQUEST, SIZE, Subject, VERSION, Word, code, flag, offset, view,
    views,
};
use crate::verdict::Verdict;

/// The addresses of an IPv6 header, which lie at its end.
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct Addresses {
    pub(super) source: [u8; 16],
    pub(super) destination: [u8; 16],
}

impl Header for Addresses {}

/// Offset of [`Addresses`] in an IPv6 header.
const ADDRESSES: u32 = 8;
/// Length of the UDP header and a message.
pub(super) const LENGTH: [u8; 2] = ((size_of::<Udp>() + SIZE) as u16).to_be_bytes();

/// Answers a packet to the probe port of this node's own address; `None` for what is no probe, which is untouched then.
#[inline(always)]
pub(super) fn answer<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: Place,
) -> Option<Verdict> {
    let config = tables.config()?;
    let body = place.l4 + size_of::<Udp>() as u32;
    let udp = packet.read::<Udp>(place.l4)?;
    let first = packet.read::<First>(body + offset::FIRST)?;
    let code = packet.read::<Word>(body + offset::CODE)?.bytes;
    if udp.length != LENGTH || first.version != VERSION || first.kind != REQUEST {
        return None;
    }
    let refused = Verdict::drop(Counter::ProbeRefused);
    let asker = peer(tables, sender(packet, place)?);
    let own = tables.fact(fact::NAME_HASH);
    let ends = packet.read::<Ends>(body + offset::ENDS)?;
    if asker == 0 || own == 0 || u64::from_be_bytes(ends.addressee) != own {
        return Some(refused);
    }
    let Some(key) = key_of(packet, tables, config, body, code) else {
        return Some(refused);
    };
    let answered = answer_in_place(packet, tables, config, body, asker)
        .and_then(|()| {
            let bytes = tables
                .call_probe_code(packet, body.into(), key)
                .to_ne_bytes();
            packet.write(body + offset::CODE, Word { bytes })
        })
        .and_then(|()| turn(packet, place));
    Some(match answered {
        Some(()) => Verdict::transmit(Counter::ProbeAnswered),
        None => refused,
    })
}

/// The key under which a message has this code. Its answer is signed under the same one: whoever asks under an old key may
/// not know the new one yet.
#[inline(always)]
pub(super) fn key_of<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    body: u32,
    code: [u8; 8],
) -> Option<Key> {
    let code = u64::from_ne_bytes(code);
    let (current, previous) = (config.probe_key(), config.probe_key_previous());
    if tables.call_probe_code(packet, body.into(), current) == code {
        Some(current)
    } else if previous != [0, 0] && tables.call_probe_code(packet, body.into(), previous) == code {
        Some(previous)
    } else {
        None
    }
}

/// The code of the message at an offset, as its bytes lie; 0 if it cannot be read.
#[inline(always)]
pub(super) fn code_of<P: Packet>(packet: &P, at: u64, key: Key) -> u64 {
    let at = at as u32 & 0x7e;
    code(key, |i| packet.read(at + 8 * i)).map_or(0, |code| u64::from_ne_bytes(code.bytes))
}

/// Makes the answer out of the question.
#[inline(always)]
fn answer_in_place<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    body: u32,
    asker: NodeIndex,
) -> Option<()> {
    let own = node(tables, config, config.self_index() as NodeIndex);
    let own = own.map_or(0, Live::<NodeEntry>::flags);
    let counted = tables.fact(fact::COUNTED);
    let set = |is: bool, flag: u8| if is { flag } else { 0 };
    let subject = packet.read::<Subject>(body + offset::SUBJECT)?;
    let subject = view_of(tables, peer(tables, subject.address));
    let ends = packet.read::<Ends>(body + offset::ENDS)?;
    packet.write(
        body + offset::FIRST,
        First {
            version: VERSION,
            kind: ANSWER,
            flags: set(
                heartbeat::proxy(tables, config) != Proxy::Silent,
                flag::PROXY_ALIVE,
            ) | set(config.flags() & config_flag::DRAINING != 0, flag::DRAINING)
                | set(own & node_flag::READY != 0, flag::READY)
                | set(counted != 0, flag::COUNTED),
            views: views(view_of(tables, asker), subject),
            fingerprint: ((counted >> 32) as u32).to_be_bytes(),
        },
    )?;
    packet.write(
        body + offset::ENDS,
        Ends {
            sender: ends.addressee,
            addressee: ends.sender,
        },
    )?;
    packet.write(
        body + offset::COUNTS,
        Counts {
            foreign: (counted as u32).to_be_bytes(),
            rounds: (tables.fact(fact::ROUNDS) as u32).to_be_bytes(),
        },
    )
}

#[inline(always)]
fn view_of<T: Tables>(tables: &T, index: NodeIndex) -> u8 {
    if index == 0 {
        return 0;
    }
    view::LISTED | tables.alive(index) as u8 & (view::SUSPECT | view::SILENT | view::EPISODE)
}

#[inline(always)]
pub(super) fn peer<T: Tables>(tables: &T, address: [u8; 16]) -> NodeIndex {
    let [first, second] = words(address);
    tables.call_peer_address(first, second) as NodeIndex
}

/// Sends the packet back to where it came from.
#[inline(always)]
fn turn<P: Packet>(packet: &mut P, place: Place) -> Option<()> {
    if place.is(kind::V6) {
        turn_v6(packet, place)?;
    } else {
        turn_v4(packet, place)?;
    }
    turn_frame(packet)
}

/// UDP needs no checksum over IPv4: the message has a code of its own.
#[inline(always)]
fn turn_v4<P: Packet>(packet: &mut P, place: Place) -> Option<()> {
    let ip = packet.read::<Ipv4>(place.l3)?;
    let mut back = Ipv4 {
        ttl: 64,
        source: ip.destination,
        destination: ip.source,
        ..ip
    };
    back.checksum = checksum::ipv4(&back).to_be_bytes();
    packet.write(place.l3, back)?;
    let udp = packet.read::<Udp>(place.l4)?;
    packet.write(place.l4, turned(udp))
}

/// Over IPv6 the checksum is computed anew.
#[inline(always)]
fn turn_v6<P: Packet>(packet: &mut P, place: Place) -> Option<()> {
    let there = packet.read::<Addresses>(place.l3 + ADDRESSES)?;
    let back = Addresses {
        source: there.destination,
        destination: there.source,
    };
    packet.write(place.l3 + ADDRESSES, back)?;
    let udp = turned(packet.read::<Udp>(place.l4)?);
    sum_v6(packet, place.l4, back, udp)
}

/// Writes the UDP header in front of a message over IPv6, with its checksum.
#[inline(always)]
pub(super) fn sum_v6<P: Packet>(
    packet: &mut P,
    at: u32,
    addresses: Addresses,
    mut udp: Udp,
) -> Option<()> {
    let mut total = sum::<8, _>(addresses) + sum::<2, _>(udp);
    let mut word = 0;
    while word < SIZE as u32 / 8 {
        let at = at + size_of::<Udp>() as u32 + 8 * word;
        total += sum::<2, _>(packet.read::<Word>(at)?);
        word += 1;
    }
    total += u64::from(u16::from_ne_bytes(LENGTH));
    total += u64::from(u16::from_ne_bytes([0, protocol::UDP]));
    udp.checksum = complement(total);
    packet.write(at, udp)
}

/// Ports changed over, without a checksum.
#[inline(always)]
pub(super) fn turned(udp: Udp) -> Udp {
    Udp {
        source: udp.destination,
        destination: udp.source,
        checksum: [0; 2],
        ..udp
    }
}

#[inline(always)]
pub(super) fn turn_frame<P: Packet>(packet: &mut P) -> Option<()> {
    let ethernet = packet.read::<Ethernet>(0)?;
    packet.write(
        0,
        Ethernet {
            destination: ethernet.source,
            source: ethernet.destination,
            ..ethernet
        },
    )
}

/// Sum of a header's words as they lie in memory.
#[inline(always)]
fn sum<const WORDS: usize, H: Header>(header: H) -> u64
where
    [u32; WORDS]: Pod,
{
    let words: [u32; WORDS] = bytemuck::cast(header);
    let mut sum = 0;
    let mut i = 0;
    while i < WORDS {
        sum += u64::from(words[i]);
        i += 1;
    }
    sum
}

/// The checksum of UDP for a sum of words as they lie in memory: its complement, never zero (RFC 8200).
#[inline(always)]
fn complement(sum: u64) -> [u8; 2] {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    match !(sum as u16) {
        0 => [0xff; 2],
        sum => sum.to_ne_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{ABI_VERSION, Config, NodeEntry};
    use crate::host::{HostPacket, HostTables};
    use crate::probe::Probe;
    use crate::steer::steer;

    const KEY: [u64; 2] = [5, 6];
    const OWN: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const PEER: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

    fn tables() -> HostTables {
        let mut tables = HostTables {
            config: Config {
                abi_version: ABI_VERSION,
                self_index: 1,
                probe_port: 17_411u16.to_be_bytes(),
                probe_key: KEY,
                tunnel_source: OWN,
                ..Config::default()
            },
            ..HostTables::default()
        };
        tables.facts[fact::NAME_HASH as usize] = 11;
        let listed = |address, flags| NodeEntry {
            address,
            flags: flags | node_flag::LISTED,
            ..NodeEntry::default()
        };
        tables.put_node(1, listed(OWN, node_flag::SELF));
        tables.put_node(2, listed(PEER, 0));
        tables
    }

    /// Checked as a receiver does: the sum over pseudo header, header and payload is all ones.
    fn holds(source: [u8; 16], destination: [u8; 16], udp: &[u8]) -> bool {
        let mut bytes = [&source[..], &destination].concat();
        bytes.extend((udp.len() as u32).to_be_bytes());
        bytes.extend([0, 0, 0, 17]);
        bytes.extend(udp);
        let mut sum: u32 = bytes
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum == 0xffff
    }

    #[test]
    fn a_probe_over_ipv6_is_answered_with_a_right_checksum() {
        let tables = tables();
        for sequence in 0..2_000 {
            let question = Probe {
                kind: REQUEST,
                sequence,
                sender: 12,
                addressee: 11,
                ..Probe::default()
            };
            let message = question.sign(KEY);
            let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
            bytes.extend([0x60, 0, 0, 0, 0, 72, 17, 61]);
            bytes.extend(PEER);
            bytes.extend(OWN);
            bytes.extend([0x9c, 0x40, 0x44, 0x03, 0, 72, 0x12, 0x34]);
            bytes.extend(bytemuck::bytes_of(&message));
            let mut packet = HostPacket {
                bytes,
                ingress: 1,
                headroom: 0,
            };
            let verdict = steer(&mut packet, &tables);
            assert_eq!(verdict.counter(), Counter::ProbeAnswered);
            let bytes = packet.bytes;
            assert_eq!(bytes[..12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
            assert_eq!((&bytes[22..38], &bytes[38..54]), (&OWN[..], &PEER[..]));
            assert_eq!(bytes[54..58], [0x44, 0x03, 0x9c, 0x40]);
            assert_ne!(bytes[60..62], [0, 0], "IPv6 wants a checksum");
            assert!(holds(OWN, PEER, &bytes[54..]), "sequence {sequence}");
            let answer = Probe::open(&bytes[62..62 + SIZE], KEY, [0, 0]).unwrap();
            assert_eq!((answer.sequence, answer.sender), (sequence, 11));
        }
    }
}
