//! The UDP form of a packet between nodes: outer IPv4 or IPv6, UDP without checksum, and eight bytes of our own.
//!
//! ```text
//! byte 0    version 1 (high four bits), hops left (low four bits)
//! byte 1    phase: 0 delivery, 1 second chance, 2 detour
//! byte 2-3  zero
//! byte 4-7  membership fingerprint of the nodes on the way so far, network order; zero if they do not agree
//! ```

use bytemuck::{Pod, Zeroable};

use crate::checksum;
use crate::packet::{Header, Ipv4, Ipv6, Udp, protocol};

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
    /// To the heir of a suspect owner: the heir keeps it if it holds the flow, else the owner gets it after all.
    Detour,
}

/// The eight bytes, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Times that the packet may still be sent on.
    pub hops: u8,
    /// What its way is about.
    pub phase: Phase,
    /// Membership fingerprint of the nodes on the way so far, [`NOBODYS`] if they do not agree.
    pub fingerprint: u32,
}

/// The fingerprint in the header of a packet that passed nodes with different memberships.
pub const NOBODYS: u32 = 0;

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
                Phase::Detour => 2,
            },
            zero: [0; 2],
            fingerprint: self.fingerprint.to_be_bytes(),
        }
    }

    /// One word, as functions of the kernel's target return it; never 0, its top bit clear.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        let phase = match self.phase {
            Phase::Delivery => 0,
            Phase::SecondChance => 1,
            Phase::Detour => 2,
        };
        1 << 62 | phase << 40 | (self.hops as u64) << 32 | self.fingerprint as u64
    }

    /// What [`Self::pack`] packed; `None` for 0.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Option<Self> {
        if word == 0 {
            return None;
        }
        Some(Self {
            hops: (word >> 32) as u8 & 0xf,
            phase: match word >> 40 & 3 {
                0 => Phase::Delivery,
                1 => Phase::SecondChance,
                _ => Phase::Detour,
            },
            fingerprint: word as u32,
        })
    }

    /// Reads the wire form; `None` if it is of another version or not ours.
    #[inline(always)]
    #[must_use]
    pub const fn parse(header: TunnelHeader) -> Option<Self> {
        let phase = match header.phase {
            0 => Phase::Delivery,
            1 => Phase::SecondChance,
            2 => Phase::Detour,
            _ => return None,
        };
        if header.version_hops >> 4 != VERSION || header.zero[0] != 0 || header.zero[1] != 0 {
            return None;
        }
        // No node sends more, and whatever comes in ends as soon as if it had just begun.
        let hops = header.version_hops & 0xf;
        let most = MAX_HOPS - 1;
        Some(Self {
            hops: if hops > most { most } else { hops },
            phase,
            fingerprint: u32::from_be_bytes(header.fingerprint),
        })
    }
}

macro_rules! outer {
    ($name:ident, $ip:ident, $doc:literal) => {
        #[doc = $doc]
        #[repr(C, align(2))]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
        pub struct $name {
            /// From node to node.
            pub ip: $ip,
            /// Carries the flow's entropy in its source port.
            pub udp: Udp,
            /// Ours.
            pub tunnel: TunnelHeader,
        }

        impl Header for $name {}
    };
}

outer!(
    OuterV4,
    Ipv4,
    "What stands between link layer and inner packet over IPv4."
);
outer!(
    OuterV6,
    Ipv6,
    "What stands between link layer and inner packet over IPv6."
);

/// Bytes that the UDP form adds to a packet over IPv4.
pub const OVERHEAD_V4: u32 = size_of::<OuterV4>() as u32;

/// Bytes that the UDP form adds to a packet over IPv6.
pub const OVERHEAD_V6: u32 = size_of::<OuterV6>() as u32;

const _: () = assert!(OVERHEAD_V4 == 36 && OVERHEAD_V6 == 56 && align_of::<OuterV6>() == 2);

/// What the outer headers say of the packet inside.
#[derive(Clone, Copy, Debug)]
pub struct Inner {
    /// Bytes from its IP header on.
    pub length: u32,
    /// Whether that is too long for a header's field, with ours: the field is 0 then, and whoever cuts the packet into
    /// pieces writes the true ones.
    pub long: bool,
    /// DSCP and ECN (RFC 6040).
    pub class: u8,
    /// Flow hash: source port and flow label come from it.
    pub flow: u64,
}

/// Time to live of outer packets.
const TTL: u8 = 64;

/// Outer headers over IPv4, addresses and port in network order.
///
/// DSCP and ECN are copied (RFC 6040), the checksum of UDP is zero (the inner checksums hold), DF is set with
/// identification 0 (RFC 6864), and the source port (49152 to 65535) comes from the flow hash.
#[inline(always)]
#[must_use]
pub fn outer_v4(
    source: [u8; 4],
    destination: [u8; 4],
    port: [u8; 2],
    inner: &Inner,
    tunnel: Tunnel,
) -> OuterV4 {
    let length = inner.length + OVERHEAD_V4;
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        tos: inner.class,
        total_length: inner.field(length),
        identification: [0; 2],
        fragment: [0x40, 0],
        ttl: TTL,
        protocol: protocol::UDP,
        checksum: [0; 2],
        source,
        destination,
    };
    ip.checksum = checksum::ipv4(&ip).to_be_bytes();
    OuterV4 {
        ip,
        udp: udp(port, inner),
        tunnel: tunnel.header(),
    }
}

/// Outer headers over IPv6: as [`outer_v4`]. The zero UDP checksum is that of RFC 6935 and 6936, the flow label comes
/// from the flow hash (RFC 6438).
#[inline(always)]
#[must_use]
pub fn outer_v6(
    source: [u8; 16],
    destination: [u8; 16],
    port: [u8; 2],
    inner: &Inner,
    tunnel: Tunnel,
) -> OuterV6 {
    let [_, label @ ..] = (inner.flow as u32).to_be_bytes();
    let ip = Ipv6 {
        version_class_label: [0x60, label[0] & 0x0f, label[1], label[2]],
        payload_length: inner.field(inner.length + OVERHEAD_V6 - size_of::<Ipv6>() as u32),
        next_header: protocol::UDP,
        hop_limit: TTL,
        source,
        destination,
    };
    OuterV6 {
        ip: ip.with_traffic_class(inner.class),
        udp: udp(port, inner),
        tunnel: tunnel.header(),
    }
}

impl Inner {
    /// A length as it stands in an outer header.
    #[inline(always)]
    const fn field(&self, length: u32) -> [u8; 2] {
        let length = if self.long { 0 } else { length };
        (length as u16).to_be_bytes()
    }
}

#[inline(always)]
fn udp(port: [u8; 2], inner: &Inner) -> Udp {
    let length = inner.length + (size_of::<Udp>() + size_of::<TunnelHeader>()) as u32;
    Udp {
        source: (0xc000 | (inner.flow >> 16) as u16 & 0x3fff).to_be_bytes(),
        destination: port,
        length: inner.field(length),
        checksum: [0; 2],
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
        assert_eq!(Tunnel::unpack(tunnel.pack()), Some(tunnel));
    }

    #[test]
    fn nobody_gives_a_packet_more_hops_than_a_node_does() {
        for hops in 0..16 {
            let header = bytemuck::cast([0x10 | hops, 0, 0, 0, 0, 0, 0, 0]);
            let tunnel = Tunnel::parse(header).unwrap();
            assert_eq!(tunnel.hops, hops.min(MAX_HOPS - 1));
        }
    }

    #[test]
    fn foreign_headers_are_refused() {
        for bytes in [
            [0x23u8, 0, 0, 0, 0, 0, 0, 0],
            [0x13, 3, 0, 0, 0, 0, 0, 0],
            [0x13, 0, 0, 1, 0, 0, 0, 0],
            [0; 8],
        ] {
            assert_eq!(Tunnel::parse(bytemuck::cast(bytes)), None, "{bytes:?}");
        }
    }
}
