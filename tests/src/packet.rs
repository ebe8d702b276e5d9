//! Builds packets byte by byte, independently of the code under test.

pub mod frame;

pub use frame::{Ends, Frame, Load};

/// A TCP packet in Ethernet and IPv4.
#[derive(Clone, Debug)]
pub struct TcpPacket {
    /// Destination MAC.
    pub to_mac: [u8; 6],
    /// Source MAC.
    pub from_mac: [u8; 6],
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// TCP flags.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// TTL.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// IP options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// What TCP carries.
    pub payload: Vec<u8>,
}

/// TCP flag.
pub const SYN: u8 = 2;
/// TCP flag.
pub const RST: u8 = 4;
/// TCP flag.
pub const ACK: u8 = 16;

impl Default for TcpPacket {
    fn default() -> Self {
        Self {
            to_mac: [2, 0, 0, 0, 1, 1],
            from_mac: [2, 0, 0, 0, 0, 0xc],
            source: [198, 51, 100, 7],
            destination: [203, 0, 113, 10],
            source_port: 40_000,
            destination_port: 80,
            flags: ACK,
            sequence: 1,
            acknowledgment: 1,
            ttl: 64,
            tos: 0,
            fragment: 0x4000,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }
}

impl TcpPacket {
    /// The bytes, with right lengths and checksums.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.source_port.to_be_bytes());
        tcp.extend(self.destination_port.to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgment.to_be_bytes());
        tcp.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(&self.payload);
        let mut pseudo = [self.source, self.destination].concat();
        pseudo.extend([0, 6]);
        pseudo.extend((tcp.len() as u16).to_be_bytes());
        pseudo.extend(&tcp);
        let sum = checksum(&pseudo).to_be_bytes();
        tcp[16..18].copy_from_slice(&sum);
        let ip = Ip {
            protocol: 6,
            source: self.source,
            destination: self.destination,
            ttl: self.ttl,
            tos: self.tos,
            fragment: self.fragment,
        };
        ethernet(
            self.to_mac,
            self.from_mac,
            [8, 0],
            &ip.build(&self.options, &tcp),
        )
    }
}

/// What varies in an IPv4 header.
#[derive(Clone, Copy, Debug)]
pub struct Ip {
    /// Protocol.
    pub protocol: u8,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// TTL.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Flags and fragment offset.
    pub fragment: u16,
}

impl Ip {
    /// The header, its options and its payload.
    #[must_use]
    pub fn build(&self, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let header = 20 + options.len();
        let mut ip = vec![0x40 | (header / 4) as u8, self.tos];
        ip.extend(((header + payload.len()) as u16).to_be_bytes());
        ip.extend([0, 0]);
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ttl, self.protocol, 0, 0]);
        ip.extend(self.source);
        ip.extend(self.destination);
        ip.extend(options);
        let sum = checksum(&ip).to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
        ip.extend(payload);
        ip
    }
}

/// A frame.
#[must_use]
pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind, payload].concat()
}

/// The UDP form of a packet between nodes.
#[derive(Clone, Copy, Debug)]
pub struct Tunnelled {
    /// Destination MAC.
    pub to_mac: [u8; 6],
    /// Source MAC.
    pub from_mac: [u8; 6],
    /// Address of the node that sends.
    pub source: [u8; 4],
    /// Address of the node that receives.
    pub destination: [u8; 4],
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub port: u16,
    /// First two bytes of the header: version and hops, phase.
    pub first: [u8; 2],
    /// Membership fingerprint.
    pub fingerprint: u32,
    /// DSCP and ECN of the outer header.
    pub tos: u8,
}

impl Tunnelled {
    /// The bytes around a packet, whose own Ethernet header is left out.
    #[must_use]
    pub fn build(&self, packet: &[u8]) -> Vec<u8> {
        let mut udp = Vec::new();
        udp.extend(self.source_port.to_be_bytes());
        udp.extend(self.port.to_be_bytes());
        udp.extend(((16 + packet.len() - 14) as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(self.first);
        udp.extend([0, 0]);
        udp.extend(self.fingerprint.to_be_bytes());
        udp.extend(&packet[14..]);
        let ip = Ip {
            protocol: 17,
            source: self.source,
            destination: self.destination,
            ttl: 64,
            tos: self.tos,
            fragment: 0x4000,
        };
        ethernet(self.to_mac, self.from_mac, [8, 0], &ip.build(&[], &udp))
    }
}

/// A UDP packet in Ethernet and IPv4.
#[derive(Clone, Debug)]
pub struct UdpPacket {
    /// Destination MAC.
    pub to_mac: [u8; 6],
    /// Source MAC.
    pub from_mac: [u8; 6],
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// The checksum field; nothing here computes it.
    pub checksum: [u8; 2],
    /// TTL.
    pub ttl: u8,
    /// What UDP carries.
    pub payload: Vec<u8>,
}

impl UdpPacket {
    /// The bytes, with right lengths.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut udp = Vec::new();
        udp.extend(self.source_port.to_be_bytes());
        udp.extend(self.destination_port.to_be_bytes());
        udp.extend((8 + self.payload.len() as u16).to_be_bytes());
        udp.extend(self.checksum);
        udp.extend(&self.payload);
        let ip = Ip {
            protocol: 17,
            source: self.source,
            destination: self.destination,
            ttl: self.ttl,
            tos: 0,
            fragment: 0x4000,
        };
        ethernet(self.to_mac, self.from_mac, [8, 0], &ip.build(&[], &udp))
    }
}

/// An ARP packet for IPv4 over Ethernet: operation, sender and target as (MAC, address).
#[must_use]
pub fn arp(
    to: [u8; 6],
    operation: u8,
    sender: ([u8; 6], [u8; 4]),
    target: ([u8; 6], [u8; 4]),
) -> Vec<u8> {
    let body = [
        &[0, 1, 8, 0, 6, 4, 0, operation][..],
        &sender.0,
        &sender.1,
        &target.0,
        &target.1,
    ]
    .concat();
    ethernet(to, sender.0, [8, 6], &body)
}

/// The Internet checksum.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u64 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
