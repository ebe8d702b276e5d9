//! Finding the headers of a packet: VLAN tags, IPv4 options, IPv6 extension headers, fragments.
//!
//! Nothing here judges a packet. What stands in a [`Place`] is where to look; that the bytes are there is checked again at
//! each read, and offsets are masked, so that the kernel sees their bounds.

use crate::packet::{
    Ethernet, Extension, FragmentHeader, IP, Ipv4, Ipv6, Packet, TAG, Vlan, ethertype, protocol,
};

/// Where the headers of a packet lie, and what kind they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The packet's IP header: behind Ethernet and at most two tags.
    pub(super) l3: u32,
    /// The IP header of the flow: `l3`, or inside of an ICMP error.
    pub(super) flow: u32,
    /// The header behind the flow's IP header.
    pub(super) l4: u32,
    /// Protocol of that header.
    pub(super) protocol: u8,
    /// Bits of [`kind`].
    pub(super) kind: u8,
}

/// Bits of [`Place::kind`].
pub(super) mod kind {
    /// IPv6, else IPv4.
    pub(in crate::steer) const V6: u8 = 1 << 0;
    /// A fragment of a larger packet.
    pub(in crate::steer) const FRAGMENT: u8 = 1 << 1;
    /// Headers run past the packet's end or contradict each other.
    pub(in crate::steer) const BROKEN: u8 = 1 << 2;
    /// More headers than are walked.
    pub(in crate::steer) const TOO_MANY: u8 = 1 << 3;
    /// An ICMP error: the flow's packet went the other way.
    pub(in crate::steer) const REVERSED: u8 = 1 << 4;
    /// A SYN without ACK.
    pub(in crate::steer) const SYN: u8 = 1 << 5;
    /// A SYN that was beyond the budget, and for which the kernel makes no cookie.
    pub(in crate::steer) const NO_COOKIE: u8 = 1 << 6;
    /// No SYN, and no socket here holds its flow: that was looked up already.
    pub(in crate::steer) const NOT_HELD: u8 = NO_COOKIE;
    /// Set in every place, so that none is all zero.
    pub(in crate::steer) const FOUND: u8 = 1 << 7;
}

/// VLAN tags that are walked.
pub(super) const TAGS: u32 = 2;

/// IPv6 extension headers that are walked.
const EXTENSIONS: u32 = 8;

/// Headers end before this offset.
const REACH: u32 = 512;

impl Place {
    /// The IP header right behind Ethernet, nothing between it and the payload's header.
    #[inline(always)]
    pub(super) const fn plain(length: usize, protocol: u8, kind: u8) -> Self {
        Self {
            l3: IP,
            flow: IP,
            l4: IP + length as u32,
            protocol,
            kind: kind | kind::FOUND,
        }
    }

    /// With what is known of the flow's packet.
    #[inline(always)]
    pub(super) const fn of_flow(self, syn: bool) -> Self {
        let syn = if syn { kind::SYN } else { 0 };
        Self {
            kind: self.kind | syn,
            ..self
        }
    }

    /// Whether all bits of `kind` are set.
    #[inline(always)]
    pub(super) const fn is(self, kind: u8) -> bool {
        self.kind & kind == kind
    }

    /// Whether the payload's header cannot be used.
    #[inline(always)]
    pub(super) const fn unfit(self) -> bool {
        self.kind & (kind::FRAGMENT | kind::BROKEN | kind::TOO_MANY) != 0
    }

    /// One word, as functions of the kernel's target return it.
    #[inline(always)]
    pub(super) const fn pack(self) -> u64 {
        self.l3 as u64
            | (self.flow as u64) << 8
            | (self.l4 as u64) << 24
            | (self.protocol as u64) << 40
            | (self.kind as u64) << 48
    }

    /// The place in such a word, if there is one.
    #[inline(always)]
    pub(super) const fn unpack(word: u64) -> Option<Self> {
        if word == 0 {
            return None;
        }
        Some(Self {
            l3: word as u32 & 0x1f,
            // An ICMP header may stand between the last walked header and the quoted packet.
            flow: (word >> 8) as u32 & (2 * REACH - 1),
            l4: (word >> 24) as u32 & (2 * REACH - 1),
            protocol: (word >> 40) as u8,
            kind: (word >> 48) as u8,
        })
    }
}

/// Protocol of an IPv4 packet without tag, options and fragments; [`NOT_PLAIN`] for another, `None` if its header is cut.
#[inline(always)]
pub(super) fn plain_v4<P: Packet>(packet: &P) -> Option<u8> {
    let [first, second, third] = packet.words(IP)?;
    let ([version_ihl, ..], [_, protocol, ..]) = (first.to_ne_bytes(), third.to_ne_bytes());
    let [_, _, high, low] = second.to_ne_bytes();
    let fragment = u16::from_be_bytes([high, low]) & Ipv4::PIECE != 0;
    Some(if version_ihl == 0x45 && !fragment {
        protocol
    } else {
        NOT_PLAIN
    })
}

/// Protocol of an IPv6 packet without tag whose next header is no extension; [`NOT_PLAIN`] for another, `None` if its header is
/// cut.
#[inline(always)]
pub(super) fn plain_v6<P: Packet>(packet: &P) -> Option<u8> {
    let [first, second] = packet.words(IP)?;
    let ([version_class, ..], [_, _, next, _]) = (first.to_ne_bytes(), second.to_ne_bytes());
    Some(if version_class >> 4 == 6 {
        next
    } else {
        NOT_PLAIN
    })
}

/// No protocol that is steered: for packets that need a closer look (reserved by IANA).
pub(super) const NOT_PLAIN: u8 = 255;

/// The place of any IP packet, found one header after the other; `None` if it is none.
#[inline(always)]
pub(super) fn walk<P: Packet>(packet: &P) -> Option<Place> {
    let (mut next, mut l3) = (packet.read::<Ethernet>(0)?.kind, IP);
    for _ in 0..TAGS {
        if next == ethertype::VLAN || next == ethertype::OUTER_VLAN {
            next = packet.read::<Vlan>(l3)?.kind;
            l3 += TAG;
        }
    }
    match next {
        ethertype::IPV4 => v4(packet, l3),
        ethertype::IPV6 => v6(packet, l3),
        _ => None,
    }
}

/// The place of an IPv4 packet, or of the one inside of an ICMP error.
#[inline(always)]
pub(super) fn v4<P: Packet>(packet: &P, l3: u32) -> Option<Place> {
    let ip = packet
        .read::<Ipv4>(l3)
        .filter(|ip| ip.version_ihl >> 4 == 4)?;
    let mut kind = kind::FOUND;
    if ip.header_length() < size_of::<Ipv4>() as u32 {
        kind |= kind::BROKEN;
    }
    if ip.is_fragment() {
        kind |= kind::FRAGMENT;
    }
    Some(Place {
        l3,
        flow: l3,
        l4: l3 + ip.header_length(),
        protocol: ip.protocol,
        kind,
    })
}

/// The place of an IPv6 packet.
#[inline(always)]
fn v6<P: Packet>(packet: &P, l3: u32) -> Option<Place> {
    let ip = packet.read::<Ipv6>(l3).filter(|ip| ip.version() == 6)?;
    let mut place = Place {
        l3,
        flow: l3,
        l4: l3 + size_of::<Ipv6>() as u32,
        protocol: ip.next_header,
        kind: kind::FOUND | kind::V6,
    };
    for _ in 0..EXTENSIONS {
        if place.l4 >= REACH {
            break;
        }
        if !extends(place.protocol) {
            return Some(place);
        }
        if place.protocol == protocol::FRAGMENT {
            let Some(fragment) = packet.read::<FragmentHeader>(place.l4) else {
                place.kind |= kind::BROKEN;
                return Some(place);
            };
            place.protocol = fragment.next_header;
            place.l4 += size_of::<FragmentHeader>() as u32;
            // Offset or "more fragments": without both it is a whole packet (RFC 6946).
            if u16::from_be_bytes(fragment.offset) & 0xfff9 != 0 {
                place.kind |= kind::FRAGMENT;
                // The other fragments do not have the headers that this one goes on with.
                if extends(place.protocol) {
                    place.kind |= kind::TOO_MANY;
                }
                return Some(place);
            }
        } else {
            let Some(extension) = packet.read::<Extension>(place.l4) else {
                place.kind |= kind::BROKEN;
                return Some(place);
            };
            place.protocol = extension.next_header;
            place.l4 += 8 + 8 * extension.length as u32;
        }
    }
    if place.l4 >= REACH || extends(place.protocol) {
        place.l4 = 0;
        place.kind |= kind::TOO_MANY;
    }
    Some(place)
}

#[inline(always)]
const fn extends(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::DESTINATION
    )
}
