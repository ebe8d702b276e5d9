//! Answering SYNs beyond the budget by cookies that this node's kernel makes and later accepts (RFC 4987, 3.6).
//!
//! Only the owner of a row does so: the secret of the cookies is its kernel's. While the listener's queue has room the
//! kernel makes no cookie, and the SYN is passed to it.

use super::Tables;
use super::flow::tuple;
use super::icmp::answerable;
use super::place::{Place, kind};
use super::tables::{Cookie, Headers, Way, is_from_peer};
use super::too_big::pseudo;
use crate::checksum::{add, ipv4, of_sum};
use crate::packet::{Ethernet, IP, Ipv4, Ipv6, Packet, SynAck, Tcp, protocol};

/// Window that is offered: without a scale, which a cookie does not remember.
const WINDOW: u16 = 65_535;

/// Makes the answer out of a SYN, if the kernel makes a cookie and the way back is known: the interface it leaves by.
#[inline(always)]
pub(super) fn reply<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    place: Place,
    direct: bool,
) -> Option<u32> {
    let tuple = tuple(packet, place)?;
    let headers = Headers {
        ip: place.flow,
        tcp: place.l4,
        own: true,
    };
    let plain = place.l3 == IP && place.l4 == IP + header_length(place.is(kind::V6));
    // What cannot be answered is the stack's to drop.
    let ethernet = answerable(packet, place.l3, place.is(kind::V6)).filter(|_| plain)?;
    // A frame that no peer sent goes back where it came from; the kernel's routes are asked only where they must be (and
    // answer only on a machine that forwards).
    let way = if direct && !is_from_peer(packet, tables, tables.config()?) {
        Way {
            destination_mac: ethernet.source,
            source_mac: ethernet.destination,
            ifindex: packet.ingress(),
        }
    } else {
        tables.way_back(packet, &tuple)?
    };
    let cookie = tables.cookie(packet, &tuple, headers)?;
    // A driver that gives no room at the end leaves the SYN as it is: then it is the stack's.
    if tables.call_syn_ack(packet, place.is(kind::V6), cookie.pack()) == 0 {
        return None;
    }
    packet.write(
        0,
        Ethernet {
            destination: way.destination_mac,
            source: way.source_mac,
            ..ethernet
        },
    )?;
    Some(way.ifindex)
}

const fn header_length(v6: bool) -> u32 {
    if v6 {
        size_of::<Ipv6>() as u32
    } else {
        size_of::<Ipv4>() as u32
    }
}

/// See [`super::outline::syn_ack`].
#[inline(always)]
pub(super) fn syn_ack<P: Packet>(packet: &mut P, v6: bool, cookie: u64) -> Option<()> {
    let syn = packet.read::<Tcp>(IP + header_length(v6))?;
    let cookie = Cookie::unpack(cookie)?;
    if v6 {
        write_v6(packet, &syn, cookie)
    } else {
        write_v4(packet, &syn, cookie)
    }
}

#[inline(always)]
fn write_v4<P: Packet>(packet: &mut P, syn: &Tcp, cookie: Cookie) -> Option<()> {
    const LENGTH: u32 = (size_of::<Ipv4>() + size_of::<SynAck>()) as u32;
    let old = packet.read::<Ipv4>(IP)?;
    packet.set_len(IP + LENGTH)?;
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: (LENGTH as u16).to_be_bytes(),
        identification: [0; 2],
        fragment: [0x40, 0],
        ttl: 64,
        protocol: protocol::TCP,
        checksum: [0; 2],
        source: old.destination,
        destination: old.source,
    };
    ip.checksum = ipv4(&ip).to_be_bytes();
    packet.write(IP, ip)?;
    let pseudo = |length: [u8; 2]| {
        let last = [0, protocol::TCP, length[0], length[1]];
        let words = [ip.source, ip.destination, last].map(u32::from_ne_bytes);
        add(0, words)
    };
    let segment = u16::from_be_bytes(old.total_length).wrapping_sub(size_of::<Ipv4>() as u16);
    let partial = packet.may_be_partial() && is_partial(syn, pseudo(segment.to_be_bytes()));
    let answer = answer(syn, cookie, pseudo([0, size_of::<SynAck>() as u8]), partial);
    packet.write(IP + size_of::<Ipv4>() as u32, answer)
}

#[inline(always)]
fn write_v6<P: Packet>(packet: &mut P, syn: &Tcp, cookie: Cookie) -> Option<()> {
    const PAYLOAD: u32 = size_of::<SynAck>() as u32;
    let old = packet.read::<Ipv6>(IP)?;
    packet.set_len(IP + size_of::<Ipv6>() as u32 + PAYLOAD)?;
    let ip = Ipv6 {
        version_class_label: [0x60, 0, 0, 0],
        payload_length: (PAYLOAD as u16).to_be_bytes(),
        next_header: protocol::TCP,
        hop_limit: 64,
        source: old.destination,
        destination: old.source,
    };
    packet.write(IP, ip)?;
    let segment = u16::from_be_bytes(old.payload_length) as u32;
    let partial = packet.may_be_partial() && is_partial(syn, pseudo(&ip, segment));
    let answer = answer(syn, cookie, pseudo(&ip, PAYLOAD), partial);
    packet.write(IP + size_of::<Ipv6>() as u32, answer)
}

/// Whether the checksum of a SYN is only the sum over its pseudo-header (`pseudo`), as a sender on this machine leaves it
/// for the device: then the answer, which goes out in the same buffer, is summed up by the device too. A whole checksum
/// looks like that once in 65,536 times; that answer is lost, and the one to the client's next SYN is not.
#[inline(always)]
fn is_partial(syn: &Tcp, pseudo: u64) -> bool {
    let [a, b] = of_sum(pseudo);
    syn.checksum == [!a, !b]
}

/// The SYN-ACK to a SYN; `pseudo` is the sum over its pseudo-header. If `partial` its checksum is left to the device.
#[inline(always)]
fn answer(syn: &Tcp, cookie: Cookie, pseudo: u64, partial: bool) -> SynAck {
    let [a, b, c, d] = syn.ports;
    let [high, low] = cookie.segment.to_be_bytes();
    let mut answer = SynAck {
        tcp: Tcp {
            ports: [c, d, a, b],
            sequence: cookie.sequence.to_be_bytes(),
            acknowledgment: u32::from_be_bytes(syn.sequence)
                .wrapping_add(1)
                .to_be_bytes(),
            offset: (size_of::<SynAck>() as u8 / 4) << 4,
            flags: Tcp::SYN | Tcp::ACK,
            window: WINDOW.to_be_bytes(),
            checksum: [0; 2],
            urgent: [0; 2],
        },
        segment: [2, 4, high, low],
    };
    let [a, b] = of_sum(pseudo);
    answer.tcp.checksum = if partial {
        [!a, !b]
    } else {
        of_sum(add(pseudo, bytemuck::cast::<_, [u32; 6]>(answer)))
    };
    answer
}
