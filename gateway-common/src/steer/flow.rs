//! A packet for a VIP as the decision sees it.

use super::place::{Place, kind};
use super::source::source_may_send;
use super::tables::{address_and_sources, find_vip};
use super::{Tables, Tuple, is_for_us};
use crate::abi::{Counter, LiveConfig, VipCell, vip_flag};
use crate::hash::flow_v4;
use crate::packet::{Ipv4, Ipv6, Packet, Tcp, Udp, protocol};
use crate::verdict::Verdict;

/// A packet for a VIP.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    /// Keyed hash of addresses and ports.
    pub(super) hash: u64,
    /// Bits of [`vip_flag`] of the VIP.
    pub(super) vip: u32,
    /// Whether it is a SYN without ACK.
    pub(super) syn: bool,
    /// The VIP's number, which counters know it by.
    pub(super) number: u16,
    /// The group of the VIP's listening sockets; read for a SYN only.
    pub(super) group: u16,
}

/// Addresses and ports, from client to VIP; addresses in [`words`](crate::hash::words), IPv4-mapped for IPv4, ports as a
/// little-endian number.
#[derive(Clone, Copy)]
struct Ends {
    client: [u64; 2],
    vip: [u64; 2],
    ports: u32,
}

impl Flow {
    /// The packet's flow, if it is for a VIP and whole; `foreign` for one that is not for a VIP.
    #[inline(always)]
    pub(super) fn of<T: Tables>(
        packet: &T::Packet,
        tables: &T,
        config: LiveConfig<'_>,
        place: Place,
        foreign: Verdict,
    ) -> Result<Self, Verdict> {
        let (client, vip, length) = addresses(packet, place).ok_or(foreign)?;
        let ports = packet.words(place.l4).filter(|_| !place.unfit());
        let Some([ports]) = ports else {
            // A fragment goes on as it is, and its length with it.
            let end = place.flow + length;
            let cut = place.is(kind::BROKEN) || end < place.l4 || packet.len() < end;
            return without_ports(packet, tables, config, place, [client, vip], cut, foreign);
        };
        let ports = u32::from_le(ports);
        let mut ends = Ends { client, vip, ports };
        if place.is(kind::REVERSED) {
            ends = ends.turned();
        }
        // What an IPv6 packet has as an address must not be found under that of an IPv4 VIP.
        if place.is(kind::V6) && is_mapped(ends.vip) {
            return Err(foreign);
        }
        let last = ends.ports >> 16 | (place.protocol as u32) << 16;
        let entry = find_vip(tables, config, (ends.vip, last)).ok_or(foreign)?;
        // Refused ones are the VIP's packets, too.
        let (flags, number) = (entry.flags(), entry.number());
        let refused = |verdict| refused(packet, tables, config, number, verdict);
        let syn = !place.is(kind::REVERSED) && is_whole(packet, place, length).map_err(refused)?;
        let source = (ends.client, place.is(kind::V6));
        source_may_send(tables, entry.sources(), flags, source).map_err(refused)?;
        if flags & vip_flag::DRAINING != 0 && syn {
            // The VIP is deleted: refused by the stack of whichever node the SYN reaches.
            return Err(refused(Verdict::pass(Counter::OwnPass)));
        }
        if place.protocol == protocol::UDP && flags & vip_flag::BY_ADDRESSES != 0 {
            ends.ports = 0;
        }
        Ok(Self {
            hash: ends.hash(tables, config, place),
            vip: flags,
            syn,
            number,
            group: if syn { entry.group() } else { 0 },
        })
    }
}

impl Ends {
    /// Of the packets of the other direction.
    #[inline(always)]
    const fn turned(self) -> Self {
        Self {
            client: self.vip,
            vip: self.client,
            ports: self.ports.rotate_left(16),
        }
    }

    #[inline(always)]
    fn hash<T: Tables>(&self, tables: &T, config: LiveConfig<'_>, place: Place) -> u64 {
        if place.is(kind::V6) {
            let last = self.ports as u64 | (place.protocol as u64) << 32;
            return tables.call_hash_v6(self.client, self.vip, last);
        }
        let address = |words: [u64; 2]| ((words[1] >> 32) as u32).to_le_bytes();
        let (client, vip) = (address(self.client), address(self.vip));
        flow_v4(
            config.hash_key(),
            client,
            vip,
            self.ports.to_le_bytes(),
            place.protocol,
        )
    }
}

/// Client, VIP and ports of a packet for a VIP; ports are 0 where they cannot be read.
#[inline(always)]
pub(super) fn ends<P: Packet>(packet: &P, place: Place) -> Option<([u64; 2], [u64; 2], u32)> {
    let (client, vip, _) = addresses(packet, place)?;
    let ports = match packet.words(place.l4) {
        Some([ports]) if !place.unfit() => u32::from_le(ports),
        _ => 0,
    };
    let mut ends = Ends { client, vip, ports };
    if place.is(kind::REVERSED) {
        ends = ends.turned();
    }
    Some((ends.client, ends.vip, ends.ports))
}

/// What stands before an IPv4 address in its mapped form, in [`words`](crate::hash::words).
const MAPPED: u64 = 0xffff_0000;

/// Source and destination of the flow's IP header, and bytes from that header on.
#[inline(always)]
fn addresses<P: Packet>(packet: &P, place: Place) -> Option<([u64; 2], [u64; 2], u32)> {
    if place.is(kind::V6) {
        let [a, b, c, d] = packet.longs(place.flow + Ipv6::ADDRESSES)?;
        let [_, second] = packet.words(place.flow)?;
        let [high, low, ..] = second.to_ne_bytes();
        let length = length(packet, place.flow, [high, low], size_of::<Ipv6>());
        let address = |first, second| [u64::from_le(first), u64::from_le(second)];
        Some((address(a, b), address(c, d), length))
    } else {
        let [first, _, _, source, destination] = packet.words(place.flow)?;
        let [_, _, high, low] = first.to_ne_bytes();
        let length = length(packet, place.flow, [high, low], 0);
        let address = |word| [0, MAPPED | (u32::from_le(word) as u64) << 32];
        Some((address(source), address(destination), length))
    }
}

/// Bytes from the IP header at `at` on: what its field says and `more`. Packets that the stack put together may be too long
/// for the field, which is zero then.
#[inline(always)]
pub(super) fn length<P: Packet>(packet: &P, at: u32, field: [u8; 2], more: usize) -> u32 {
    let says = u16::from_be_bytes(field) as u32;
    if says == 0 && packet.segment() != 0 {
        packet.len().saturating_sub(at)
    } else {
        says + more as u32
    }
}

/// Whether an address is IPv4-mapped: how the tables hold IPv4, and never the address of an IPv6 packet.
#[inline(always)]
pub(super) const fn is_mapped([first, second]: [u64; 2]) -> bool {
    first | ((second as u32) as u64 ^ MAPPED) == 0
}

/// A packet whose ports cannot be read: it belongs to a VIP if its address is one and nobody else's. UDP fragments have a
/// flow where the VIP is hashed by addresses alone; the list of sources is then that of the address.
#[inline(always)]
fn without_ports<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    place: Place,
    [client, vip]: [[u64; 2]; 2],
    cut: bool,
    foreign: Verdict,
) -> Result<Flow, Verdict> {
    if place.is(kind::REVERSED) || place.is(kind::V6) && is_mapped(vip) {
        return Err(foreign);
    }
    let (flags, sources, number) = address_and_sources(tables, vip);
    if flags & (vip_flag::USED | vip_flag::SHARED) != vip_flag::USED {
        return Err(foreign);
    }
    let fragment = place.is(kind::FRAGMENT);
    let verdict =
        if fragment && place.protocol == protocol::UDP && flags & vip_flag::BY_ADDRESSES != 0 {
            match source_may_send(tables, sources, flags, (client, place.is(kind::V6))) {
                Ok(()) if !cut => {
                    let ends = Ends {
                        client,
                        vip,
                        ports: 0,
                    };
                    return Ok(Flow {
                        hash: ends.hash(tables, config, place),
                        vip: flags,
                        syn: false,
                        number,
                        group: 0,
                    });
                }
                Err(denied) if !cut => denied,
                _ => Verdict::drop(Counter::Truncated),
            }
        } else if place.is(kind::TOO_MANY) && !fragment {
            Verdict::pass(Counter::NotUnderstood)
        } else if fragment
            && (place.is(kind::TOO_MANY) || matches!(place.protocol, protocol::TCP | protocol::UDP))
        {
            Verdict::drop(Counter::Fragment)
        } else if fragment {
            return Err(foreign);
        } else {
            Verdict::drop(Counter::Truncated)
        };
    Err(refused(packet, tables, config, number, verdict))
}

/// A verdict about a VIP's packet that is no further considered, counted for the VIP. A flooded frame is another machine's
/// to refuse, and is not ours to count.
#[inline(always)]
fn refused<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    number: u16,
    verdict: Verdict,
) -> Verdict {
    if !is_for_us(packet, config) {
        return Verdict::pass(Counter::OtherHost);
    }
    tables.count(VipCell::Other.cell(number));
    verdict
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
        let [word] = packet.words(place.l4 + Tcp::OFFSET).ok_or(cut)?;
        let [offset, flags, ..] = word.to_ne_bytes();
        let header = (offset >> 4) as u32 * 4;
        if header < size_of::<Tcp>() as u32 {
            return Err(cut);
        }
        (header, Tcp::opens(flags))
    } else {
        let [word] = packet.words(place.l4 + Udp::LENGTH).ok_or(cut)?;
        let [high, low, ..] = word.to_ne_bytes();
        let length = u16::from_be_bytes([high, low]) as u32;
        if length < size_of::<Udp>() as u32 {
            return Err(cut);
        }
        (length, false)
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

/// Whether a TCP segment is its sender's last.
#[inline(always)]
pub(super) fn is_last<P: Packet>(packet: &P, place: Place) -> bool {
    packet
        .read::<Tcp>(place.l4)
        .is_some_and(|tcp| tcp.flags & Tcp::FIN != 0)
}
