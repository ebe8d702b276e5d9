//! Checked access to a packet, and the headers that the decision reads and writes.
//!
//! Headers are byte arrays in network order; they are copied out and in whole, so no reference into a packet
//! outlives a change of its bounds. They have alignment 2: Ethernet frames begin at even addresses, and the
//! kernel's target would copy byte by byte at alignment 1. Every access is checked against the packet's end;
//! nothing here interprets a header.

use bytemuck::{Pod, Zeroable};

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

    /// Writes a header at `offset`, an even number, if the packet holds room for all of it.
    fn write<H: Header>(&mut self, offset: u32, header: H) -> Option<()>;

    /// Adds `bytes` bytes in front, an even number; what they hold is to be written.
    fn push(&mut self, bytes: u32) -> Option<()>;

    /// Takes `bytes` bytes, an even number, off the front.
    fn pop(&mut self, bytes: u32) -> Option<()>;
}

/// Where the IP header begins.
pub const IP: u32 = size_of::<Ethernet>() as u32;

/// Where the TCP or UDP header begins behind an IPv4 header without options.
pub const L4: u32 = IP + size_of::<Ipv4>() as u32;

/// EtherTypes in network order.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    /// ARP.
    pub const ARP: [u8; 2] = [0x08, 0x06];
}

/// IP protocol numbers.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
}

macro_rules! header {
    ($(#[$doc:meta])* $name:ident = $size:literal { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[repr(C, align(2))]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }

        impl Header for $name {}
        const _: () = assert!(size_of::<$name>() == $size && align_of::<$name>() == 2);
    };
}

header! {
    /// Ethernet II.
    Ethernet = 14 {
        /// Destination MAC.
        destination: [u8; 6],
        /// Source MAC.
        source: [u8; 6],
        /// EtherType.
        kind: [u8; 2],
    }
}

header! {
    /// IPv4 without options (RFC 791).
    Ipv4 = 20 {
        /// Version (high four bits) and header length in 32-bit words.
        version_ihl: u8,
        /// DSCP and ECN.
        tos: u8,
        /// Length of header and payload in bytes.
        total_length: [u8; 2],
        /// Identification.
        identification: [u8; 2],
        /// Flags (three bits) and fragment offset in units of 8 bytes.
        fragment: [u8; 2],
        /// Time to live.
        ttl: u8,
        /// Protocol of the payload.
        protocol: u8,
        /// Header checksum.
        checksum: [u8; 2],
        /// Source address.
        source: [u8; 4],
        /// Destination address.
        destination: [u8; 4],
    }
}

header! {
    /// TCP without options (RFC 9293).
    Tcp = 20 {
        /// Source port, then destination port.
        ports: [u8; 4],
        /// Sequence number.
        sequence: [u8; 4],
        /// Acknowledgment number.
        acknowledgment: [u8; 4],
        /// Header length in 32-bit words (high four bits).
        offset: u8,
        /// Flags, [`Tcp::SYN`] and so on.
        flags: u8,
        /// Window.
        window: [u8; 2],
        /// Checksum.
        checksum: [u8; 2],
        /// Urgent pointer.
        urgent: [u8; 2],
    }
}

header! {
    /// UDP (RFC 768).
    Udp = 8 {
        /// Source port.
        source: [u8; 2],
        /// Destination port.
        destination: [u8; 2],
        /// Length of header and payload in bytes.
        length: [u8; 2],
        /// Checksum; zero means none.
        checksum: [u8; 2],
    }
}

header! {
    /// ARP for IPv4 over Ethernet (RFC 826).
    Arp = 28 {
        /// Hardware type, protocol type and address lengths: [`Arp::ETHERNET_IPV4`].
        kind: [u8; 6],
        /// [`Arp::REQUEST`] or [`Arp::REPLY`].
        operation: [u8; 2],
        /// MAC of the sender.
        sender_mac: [u8; 6],
        /// Address of the sender.
        sender: [u8; 4],
        /// MAC of the target.
        target_mac: [u8; 6],
        /// Address of the target.
        target: [u8; 4],
    }
}

impl Ipv4 {
    /// Header length in bytes as the packet says.
    #[inline(always)]
    #[must_use]
    pub const fn header_length(&self) -> u32 {
        (self.version_ihl & 0xf) as u32 * 4
    }

    /// Whether the packet is a fragment: "more fragments" or an offset.
    #[inline(always)]
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x3fff != 0
    }

    /// Length of header and payload in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn length(&self) -> u32 {
        u16::from_be_bytes(self.total_length) as u32
    }
}

impl Tcp {
    /// Flag: close.
    pub const FIN: u8 = 1;
    /// Flag: open.
    pub const SYN: u8 = 1 << 1;
    /// Flag: reset.
    pub const RST: u8 = 1 << 2;
    /// Flag: the acknowledgment number counts.
    pub const ACK: u8 = 1 << 4;

    /// Header length in bytes as the packet says.
    #[inline(always)]
    #[must_use]
    pub const fn header_length(&self) -> u32 {
        (self.offset >> 4) as u32 * 4
    }

    /// Whether the segment opens a connection: SYN without ACK.
    #[inline(always)]
    #[must_use]
    pub const fn opens(&self) -> bool {
        self.flags & (Self::SYN | Self::ACK) == Self::SYN
    }
}

impl Arp {
    /// Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
    pub const ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
    /// Operation: who has the target address?
    pub const REQUEST: [u8; 2] = [0, 1];
    /// Operation: the sender has its address.
    pub const REPLY: [u8; 2] = [0, 2];
}

/// The last four bytes of an IPv4-mapped address.
#[inline(always)]
#[must_use]
pub const fn v4_of(address: &[u8; 16]) -> [u8; 4] {
    [address[12], address[13], address[14], address[15]]
}

/// The IPv4-mapped form of an address.
#[inline(always)]
#[must_use]
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
    ]
}
