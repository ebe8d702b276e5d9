//! The UDP form of a packet between nodes: outer IPv4, UDP without checksum, and eight bytes of our own.
//!
//! ```text
//! byte 0    version 1 (high four bits), hops left (low four bits)
//! byte 1    phase: 0 delivery, 1 second chance
//! byte 2-3  zero
//! byte 4-7  membership fingerprint of the node where this phase began, network order
//! ```

use bytemuck::{Pod, Zeroable};

use crate::checksum;
use crate::packet::{Ethernet, Header, Ipv4, Udp, ethertype, protocol};

/// Times that a packet may be sent from node to node, MAC rewrites included.
pub const MAX_HOPS: u8 = 4;

/// Version in the header.
pub const VERSION: u8 = 1;

/// What a packet's way through the nodes is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// On its way to the owner of its row.
    Delivery,
    /// On its way down the ranks, to whoever holds its socket.
    SecondChance,
}

/// The eight bytes, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Times that the packet may still be sent on.
    pub hops: u8,
    /// What its way is about.
    pub phase: Phase,
    /// Membership fingerprint of the node where the phase began.
    pub fingerprint: u32,
}

/// The eight bytes as they are on the wire.
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TunnelHeader {
    version_hops: u8,
    phase: u8,
    zero: [u8; 2],
    fingerprint: [u8; 4],
}

impl Header for TunnelHeader {}

impl Tunnel {
    /// The wire form.
    #[inline(always)]
    #[must_use]
    pub const fn header(self) -> TunnelHeader {
        TunnelHeader {
            version_hops: VERSION << 4 | self.hops & 0xf,
            phase: match self.phase {
                Phase::Delivery => 0,
                Phase::SecondChance => 1,
            },
            zero: [0; 2],
            fingerprint: self.fingerprint.to_be_bytes(),
        }
    }

    /// Reads the wire form; `None` if it is of another version or not ours.
    #[inline(always)]
    #[must_use]
    pub const fn parse(header: TunnelHeader) -> Option<Self> {
        let phase = match header.phase {
            0 => Phase::Delivery,
            1 => Phase::SecondChance,
            _ => return None,
        };
        if header.version_hops >> 4 != VERSION || header.zero[0] != 0 || header.zero[1] != 0 {
            return None;
        }
        Some(Self {
            hops: header.version_hops & 0xf,
            phase,
            fingerprint: u32::from_be_bytes(header.fingerprint),
        })
    }
}

/// Everything in front of the inner IPv4 header.
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Outer {
    /// Link layer.
    pub ethernet: Ethernet,
    /// From node to node.
    pub ip: Ipv4,
    /// Carries the flow's entropy in its source port.
    pub udp: Udp,
    /// Ours.
    pub tunnel: TunnelHeader,
}

impl Header for Outer {}

/// Bytes that the UDP form adds to a packet.
pub const OVERHEAD: u32 = (size_of::<Outer>() - size_of::<Ethernet>()) as u32;

const _: () = assert!(OVERHEAD == 36 && align_of::<Outer>() == 2);

/// Where an outer packet goes.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// MAC of the node or of the next hop toward it.
    pub destination_mac: [u8; 6],
    /// MAC of the interface that sends.
    pub source_mac: [u8; 6],
    /// Address of this node.
    pub source: [u8; 4],
    /// Address of the other node.
    pub destination: [u8; 4],
    /// Tunnel port in network order.
    pub port: [u8; 2],
}

/// The outer headers for a packet with this inner IPv4 header and flow hash.
///
/// DSCP and ECN are copied (RFC 6040), the checksum of UDP is zero (the inner checksums hold), DF is set with
/// identification 0 (RFC 6864), and the source port (49152 to 65535) comes from the flow hash.
#[inline(always)]
#[must_use]
pub fn outer(path: &Path, inner: &Ipv4, flow: u64, tunnel: Tunnel) -> Outer {
    let length = inner.length() + OVERHEAD;
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        tos: inner.tos,
        total_length: (length as u16).to_be_bytes(),
        identification: [0; 2],
        fragment: [0x40, 0],
        ttl: 64,
        protocol: protocol::UDP,
        checksum: [0; 2],
        source: path.source,
        destination: path.destination,
    };
    ip.checksum = checksum::ipv4(&ip).to_be_bytes();
    Outer {
        ethernet: Ethernet {
            destination: path.destination_mac,
            source: path.source_mac,
            kind: ethertype::IPV4,
        },
        ip,
        udp: Udp {
            source: (0xc000 | (flow >> 16) as u16 & 0x3fff).to_be_bytes(),
            destination: path.port,
            length: ((length - size_of::<Ipv4>() as u32) as u16).to_be_bytes(),
            checksum: [0; 2],
        },
        tunnel: tunnel.header(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_laid_out_as_documented() {
        let tunnel = Tunnel {
            hops: 3,
            phase: Phase::SecondChance,
            fingerprint: 0x0102_0304,
        };
        let bytes: [u8; 8] = bytemuck::cast(tunnel.header());
        assert_eq!(bytes, [0x13, 1, 0, 0, 1, 2, 3, 4]);
        assert_eq!(Tunnel::parse(tunnel.header()), Some(tunnel));
    }

    #[test]
    fn foreign_headers_are_refused() {
        for bytes in [
            [0x23u8, 0, 0, 0, 0, 0, 0, 0],
            [0x13, 2, 0, 0, 0, 0, 0, 0],
            [0x13, 0, 0, 1, 0, 0, 0, 0],
            [0; 8],
        ] {
            assert_eq!(Tunnel::parse(bytemuck::cast(bytes)), None, "{bytes:?}");
        }
    }
}
