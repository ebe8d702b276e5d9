//! The packet as the decision gets at it: every access is checked against its end.

use bytemuck::Pod;

use super::{EtherType, IP, MACS, TAG, Vlan, ethertype};

/// Marks a plain header of alignment 2: any bytes are a valid value.
pub trait Header: Pod {}

/// A packet that begins with its Ethernet header.
pub trait Packet {
    /// Bytes in the packet.
    fn len(&self) -> u32;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Index of the interface on which it came in.
    fn ingress(&self) -> u32;

    /// The header at `offset`, an even number, if the packet holds all of it.
    fn read<H: Header>(&self, offset: u32) -> Option<H>;

    /// `N` words of four bytes at `offset`, an even number, as they lie in memory, if the packet holds all of them: cheaper
    /// than a header of which one wants a part.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;
    /// Writes a header at `offset`, an even number, if the packet holds room for all of it.
    fn write<H: Header>(&mut self, offset: u32, header: H) -> Option<()>;

    /// `N` words of eight bytes, likewise.
    fn longs<const N: usize>(&self, offset: u32) -> Option<[u64; N]>;
    /// Writes words of four bytes.
    fn write_words<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()>;

    /// Adds `bytes` bytes in front, an even number; the link layer is to be written anew, with what follows it.
    fn push(&mut self, bytes: u32) -> Option<()>;

    /// Takes `bytes` bytes, an even number, off the front; the link layer is to be written anew.
    fn pop(&mut self, bytes: u32) -> Option<()>;

    /// Makes room for outer headers in the place of all that lies before the IP header at `l3`: says where the outer IP
    /// header begins. The MACs and what begins there are to be written.
    #[inline(always)]
    fn wrap(&mut self, l3: u32, outer: Outer) -> Option<u32>
    where
        Self: Sized,
    {
        let link = if outer.vlan == 0 { IP } else { IP + TAG };
        self.push(link + outer.bytes - l3)?;
        outer.write_link(self, link)?;
        Some(link)
    }

    /// Takes the outer headers off that begin at `l3`, behind the link layer, which is to be written anew with its tags.
    #[inline(always)]
    fn peel(&mut self, l3: u32, outer: Outer) -> Option<()> {
        let _same_place = l3;
        self.pop(outer.bytes)
    }

    /// Payload bytes of each packet of which this one was put together by the stack; 0 if it is a single one.
    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }

    /// Whether whoever sends the packet may put a TCP checksum in that is not there yet.
    #[inline(always)]
    fn may_be_partial(&self) -> bool {
        false
    }

    /// Tells who sums the packet up that a word of it has changed.
    #[inline(always)]
    fn changed(&mut self, old: [u8; 4], new: [u8; 4]) {
        let _nobody_sums = (old, new);
    }

    /// Cuts or grows the end, so that the packet has `length` bytes; what is new is to be written.
    fn set_len(&mut self, length: u32) -> Option<()>;
}

/// Headers around a packet.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// Their bytes, without the link layer.
    pub bytes: u32,
    /// Whether the outer IP header is one of IPv6.
    pub v6: bool,
    /// Whether the packet inside is one of IPv6.
    pub inner_v6: bool,
    /// VLAN identifier to go out with; 0: none.
    pub vlan: u16,
}

impl Outer {
    /// Writes what follows the MACs up to the outer IP header at `link`.
    #[inline(always)]
    pub fn write_link<P: Packet>(self, packet: &mut P, link: u32) -> Option<()> {
        let kind = if self.v6 {
            ethertype::IPV6
        } else {
            ethertype::IPV4
        };
        if link == IP {
            return packet.write(MACS, EtherType { kind });
        }
        let tag = EtherType {
            kind: ethertype::VLAN,
        };
        packet.write(MACS, tag)?;
        let control = self.vlan.to_be_bytes();
        packet.write(IP, Vlan { control, kind })
    }
}
