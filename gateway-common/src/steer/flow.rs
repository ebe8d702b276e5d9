//! A packet for a VIP as the decision sees it.

use super::place::{Place, kind};
use super::tables::{address_entry, find_vip, source_may_send};
use super::{Tables, Tuple};
use crate::abi::{Counter, LiveConfig, vip_flag};
use crate::hash::{flow_v4, flow_v6};
use crate::packet::{Ipv4, Ipv6, Packet, Tcp, Udp, protocol};
use crate::verdict::Verdict;

/// A packet for a VIP.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    /// Where its headers lie.
    pub(super) place: Place,
    /// Keyed hash of addresses and ports.
    pub(super) hash: u64,
    /// Bits of [`vip_flag`] of the VIP.
    pub(super) vip: u32,
}

/// Addresses and ports, from client to VIP; addresses IPv4-mapped for IPv4, words as they lie in memory.
#[derive(Clone, Copy)]
struct Ends {
    client: [u32; 4],
    vip: [u32; 4],
    ports: [u8; 4],
}

impl Flow {
    /// The packet's flow, if it is for a VIP and whole; `foreign` for one that is not for a VIP.
    #[inline(always)]
    pub(super) fn of<T: Tables>(
        packet: &T::Packet,
        tables: &T,
        config: LiveConfig<'_>,
        mut place: Place,
        foreign: Verdict,
    ) -> Result<Self, Verdict> {
        let (client, vip, length) = addresses(packet, place).ok_or(foreign)?;
        let ports = packet.words(place.l4).filter(|_| !place.unfit());
        let Some([ports]) = ports else {
            return without_ports(tables, config, place, client, vip, foreign);
        };
        let ports = ports.to_ne_bytes();
        let mut ends = Ends { client, vip, ports };
        if place.is(kind::REVERSED) {
            ends = ends.turned();
        }
        let [a, b, c, d] = ends.vip;
        // What an IPv6 packet has as an address must not be found under that of an IPv4 VIP.
        if place.is(kind::V6) && is_mapped(ends.vip) {
            return Err(foreign);
        }
        let [_, _, high, low] = ends.ports;
        let last = u32::from_le_bytes([high, low, place.protocol, 0]);
        let entry = find_vip(tables, config, [a, b, c, d, last]).ok_or(foreign)?;
        if !place.is(kind::REVERSED) && is_whole(packet, place, length)? {
            place.kind |= kind::SYN;
        }
        if entry.sources() != 0 {
            source_may_send(tables, entry, bytemuck::cast(ends.client))?;
        }
        let flags = entry.flags();
        if flags & vip_flag::DRAINING != 0 && place.is(kind::SYN) {
            // The VIP is deleted: refused by the stack of whichever node the SYN reaches.
            return Err(Verdict::pass(Counter::OwnPass));
        }
        if place.protocol == protocol::UDP && flags & vip_flag::BY_ADDRESSES != 0 {
            ends.ports = [0; 4];
        }
        Ok(Self {
            place,
            hash: ends.hash(config, place),
            vip: flags,
        })
    }
}

impl Ends {
    /// Of the packets of the other direction.
    #[inline(always)]
    const fn turned(self) -> Self {
        let [a, b, c, d] = self.ports;
        Self {
            client: self.vip,
            vip: self.client,
            ports: [c, d, a, b],
        }
    }

    #[inline(always)]
    fn hash(&self, config: LiveConfig<'_>, place: Place) -> u64 {
        let key = config.hash_key();
        if place.is(kind::V6) {
            let (client, vip) = (bytemuck::cast(self.client), bytemuck::cast(self.vip));
            flow_v6(key, client, vip, self.ports, place.protocol)
        } else {
            let (client, vip) = (self.client[3].to_ne_bytes(), self.vip[3].to_ne_bytes());
            flow_v4(key, client, vip, self.ports, place.protocol)
        }
    }
}

/// Source and destination of the flow's IP header, and bytes from that header on.
#[inline(always)]
fn addresses<P: Packet>(packet: &P, place: Place) -> Option<([u32; 4], [u32; 4], u32)> {
    const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
    if place.is(kind::V6) {
        let [a, b, c, d, e, f, g, h] = packet.words(place.flow + Ipv6::ADDRESSES)?;
        let [_, second] = packet.words(place.flow)?;
        let [high, low, ..] = second.to_ne_bytes();
        let length = u16::from_be_bytes([high, low]) as u32 + size_of::<Ipv6>() as u32;
        Some(([a, b, c, d], [e, f, g, h], length))
    } else {
        let [first, _, _, source, destination] = packet.words(place.flow)?;
        let [_, _, high, low] = first.to_ne_bytes();
        let length = u16::from_be_bytes([high, low]) as u32;
        Some(([0, 0, MAPPED, source], [0, 0, MAPPED, destination], length))
    }
}

/// Whether an address is IPv4-mapped: how the tables hold IPv4, and never the address of an IPv6 packet.
#[inline(always)]
pub(super) const fn is_mapped([a, b, c, _]: [u32; 4]) -> bool {
    a | b | (c ^ u32::from_ne_bytes([0, 0, 0xff, 0xff])) == 0
}

/// A packet whose ports cannot be read: it belongs to a VIP if its address is one and nobody else's. UDP fragments have a
/// flow where the VIP is hashed by addresses alone.
#[inline(always)]
fn without_ports<T: Tables>(
    tables: &T,
    config: LiveConfig<'_>,
    place: Place,
    client: [u32; 4],
    vip: [u32; 4],
    foreign: Verdict,
) -> Result<Flow, Verdict> {
    if place.is(kind::REVERSED) || place.is(kind::V6) && is_mapped(vip) {
        return Err(foreign);
    }
    let flags = address_entry(tables, vip);
    if flags & (vip_flag::USED | vip_flag::SHARED) != vip_flag::USED {
        return Err(foreign);
    }
    let fragment = place.is(kind::FRAGMENT);
    if fragment && place.protocol == protocol::UDP && flags & vip_flag::BY_ADDRESSES != 0 {
        let ends = Ends {
            client,
            vip,
            ports: [0; 4],
        };
        return Ok(Flow {
            place,
            hash: ends.hash(config, place),
            vip: flags,
        });
    }
    Err(if place.is(kind::TOO_MANY) {
        Verdict::pass(Counter::NotUnderstood)
    } else if fragment && matches!(place.protocol, protocol::TCP | protocol::UDP) {
        Verdict::drop(Counter::Fragment)
    } else if fragment {
        foreign
    } else {
        Verdict::drop(Counter::Truncated)
    })
}

/// Checks lengths of IP (`length`, from the IP header on) and TCP or UDP against each other and the packet; says whether
/// it is a SYN.
#[inline(always)]
fn is_whole<P: Packet>(packet: &P, place: Place, length: u32) -> Result<bool, Verdict> {
    let cut = Verdict::drop(Counter::Truncated);
    let before = place.l4 - place.flow;
    if packet.len() < place.flow + length {
        return Err(cut);
    }
    let (rest, syn) = if place.protocol == protocol::TCP {
        let tcp = packet.read::<Tcp>(place.l4).ok_or(cut)?;
        let header = tcp.header_length();
        if header < size_of::<Tcp>() as u32 {
            return Err(cut);
        }
        (header, tcp.opens())
    } else {
        let udp = packet.read::<Udp>(place.l4).ok_or(cut)?;
        if udp.length() < size_of::<Udp>() as u32 {
            return Err(cut);
        }
        (udp.length(), false)
    };
    if length < before + rest {
        return Err(cut);
    }
    Ok(syn)
}

/// Addresses and ports of a flow, from client to VIP, for a socket lookup.
#[inline(always)]
pub(super) fn tuple<P: Packet>(packet: &P, place: Place) -> Option<Tuple> {
    let reversed = place.is(kind::REVERSED);
    let [mut ports] = packet.words(place.l4)?;
    if reversed {
        ports = ports.rotate_left(16);
    }
    Some(if place.is(kind::V6) {
        let [a, b, c, d, e, f, g, h] = packet.words(place.flow + Ipv6::ADDRESSES)?;
        if reversed {
            Tuple::v6([e, f, g, h], [a, b, c, d], ports)
        } else {
            Tuple::v6([a, b, c, d], [e, f, g, h], ports)
        }
    } else {
        let [source, destination] = packet.words(place.flow + Ipv4::ADDRESSES)?;
        if reversed {
            Tuple::v4(destination, source, ports)
        } else {
            Tuple::v4(source, destination, ports)
        }
    })
}
