//! Checked access to a packet, and the headers that the decision reads and writes.
//!
//! Headers are byte arrays in network order; they are copied out and in whole, so no reference into a packet
//! outlives a change of its bounds. They have alignment 2: Ethernet frames begin at even addresses, and the
//! kernel's target would copy byte by byte at alignment 1. Every access is checked against the packet's end;
//! nothing here interprets a header.

mod access;
pub mod ethertype;

use bytemuck::{Pod, Zeroable};

pub use self::access::{Header, Outer, Packet};

/// Where the IP header begins.
pub const IP: u32 = size_of::<Ethernet>() as u32;

/// Bytes of the two MACs in front of the EtherType.
pub const MACS: u32 = 12;

/// Bytes of one VLAN tag.
pub const TAG: u32 = size_of::<Vlan>() as u32;

/// IP protocol numbers.
pub mod protocol {
    /// IPv6 extension: hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 extension: routing.
    pub const ROUTING: u8 = 43;
    /// IPv6 extension: fragment.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 extension: destination options.
    pub const DESTINATION: u8 = 60;
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
    /// The end of an Ethernet header.
    EtherType = 2 {
        /// EtherType.
        kind: [u8; 2],
    }
}

header! {
    /// A VLAN tag and the EtherType behind it (IEEE 802.1Q).
    Vlan = 4 {
        /// Priority (three bits), drop eligible (one bit), VLAN identifier.
        control: [u8; 2],
        /// EtherType of what follows.
        kind: [u8; 2],
    }
}

header! {
    /// The part of an IPv4 header that a hop changes.
    TimeToLive = 4 {
        /// Time to live.
        ttl: u8,
        /// Protocol of the payload.
        protocol: u8,
        /// Header checksum.
        checksum: [u8; 2],
    }
}

header! {
    /// The part of an IPv6 header that a hop changes.
    HopLimit = 2 {
        /// Protocol of the payload, or the first extension header.
        next_header: u8,
        /// Hop limit.
        hop_limit: u8,
    }
}

header! {
    /// IPv6 (RFC 8200).
    Ipv6 = 40 {
        /// Version (four bits), traffic class (eight bits), flow label.
        version_class_label: [u8; 4],
        /// Bytes behind this header.
        payload_length: [u8; 2],
        /// Protocol of the payload, or the first extension header.
        next_header: u8,
        /// Hop limit.
        hop_limit: u8,
        /// Source address.
        source: [u8; 16],
        /// Destination address.
        destination: [u8; 16],
    }
}

header! {
    /// The beginning of an IPv6 extension header (RFC 8200, section 4).
    Extension = 2 {
        /// What follows.
        next_header: u8,
        /// Length in units of 8 bytes, without the first 8.
        length: u8,
    }
}

header! {
    /// The IPv6 fragment header (RFC 8200, section 4.5).
    FragmentHeader = 8 {
        /// What follows in the whole packet.
        next_header: u8,
        /// Reserved.
        reserved: u8,
        /// Offset in units of 8 bytes (13 bits), two reserved bits, "more fragments".
        offset: [u8; 2],
        /// Identification.
        identification: [u8; 4],
    }
}

header! {
    /// ICMP (RFC 792) and ICMPv6 (RFC 4443).
    Icmp = 8 {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Checksum.
        checksum: [u8; 2],
        /// Depends on the type.
        rest: [u8; 4],
    }
}

header! {
    /// Neighbour solicitation and advertisement behind their ICMPv6 header (RFC 4861, 4.3 and 4.4).
    Neighbour = 16 {
        /// Who is asked for, or who answers.
        target: [u8; 16],
    }
}

header! {
    /// An option of neighbour discovery that holds a MAC (RFC 4861, 4.6.1).
    LinkAddress = 8 {
        /// 1: of the source, 2: of the target.
        kind: u8,
        /// Length in units of 8 bytes.
        length: u8,
        /// The MAC.
        mac: [u8; 6],
    }
}

header! {
    /// What a "too big" message quotes of an IPv4 packet: its header and eight bytes (RFC 792).
    QuotedV4 = 28 {
        /// Header.
        ip: Ipv4,
        /// The beginning of its payload.
        payload: [u8; 8],
    }
}

header! {
    /// What a "too big" message quotes of an IPv6 packet here.
    QuotedV6 = 48 {
        /// Header.
        ip: Ipv6,
        /// The beginning of its payload.
        payload: [u8; 8],
    }
}

header! {
    /// A TCP header with its one option, the maximum segment size.
    SynAck = 24 {
        /// Header.
        tcp: Tcp,
        /// Kind 2, length 4, bytes (RFC 9293, 3.2).
        segment: [u8; 4],
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
    /// "More fragments" and the offset, in the field of flags and offset.
    pub const PIECE: u16 = 0x3fff;

    /// Where source and destination lie in the header.
    pub const ADDRESSES: u32 = 12;

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
        u16::from_be_bytes(self.fragment) & Self::PIECE != 0
    }

    /// Length of header and payload in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn length(&self) -> u32 {
        u16::from_be_bytes(self.total_length) as u32
    }
}

impl Vlan {
    /// Bits of the control word that are the VLAN identifier.
    pub const IDENTIFIER: u16 = 0xfff;

    /// The VLAN identifier; 0 for none.
    #[inline(always)]
    #[must_use]
    pub const fn identifier(&self) -> u16 {
        u16::from_be_bytes(self.control) & Self::IDENTIFIER
    }
}

impl TimeToLive {
    /// Where it lies in the IPv4 header.
    pub const OFFSET: u32 = 8;
}

impl HopLimit {
    /// Where it lies in the IPv6 header.
    pub const OFFSET: u32 = 6;
}

impl Ipv6 {
    /// Where source and destination lie in the header.
    pub const ADDRESSES: u32 = 8;

    /// Version (should be 6).
    #[inline(always)]
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.version_class_label[0] >> 4
    }

    /// Traffic class: DSCP and ECN.
    #[inline(always)]
    #[must_use]
    pub const fn traffic_class(&self) -> u8 {
        self.version_class_label[0] << 4 | self.version_class_label[1] >> 4
    }

    /// Length of header and payload in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn length(&self) -> u32 {
        u16::from_be_bytes(self.payload_length) as u32 + size_of::<Self>() as u32
    }

    /// The header with another traffic class.
    #[inline(always)]
    #[must_use]
    pub const fn with_traffic_class(mut self, class: u8) -> Self {
        let [first, second, ..] = self.version_class_label;
        self.version_class_label[0] = first & 0xf0 | class >> 4;
        self.version_class_label[1] = second & 0x0f | class << 4;
        self
    }
}

impl Icmp {
    /// IPv4: somebody answers an echo request.
    pub const ECHO_REPLY: u8 = 0;
    /// IPv4: a packet cannot be delivered; code 4: it is too big.
    pub const UNREACHABLE: u8 = 3;
    /// IPv4: echo request.
    pub const ECHO: u8 = 8;
    /// IPv4: TTL or reassembly time spent.
    pub const TIME_EXCEEDED: u8 = 11;
    /// IPv4: a header field that cannot be.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Code of [`Self::UNREACHABLE`]: fragmentation needed and DF set.
    pub const TOO_BIG: u8 = 4;
    /// IPv6: first of the four errors.
    pub const V6_UNREACHABLE: u8 = 1;
    /// IPv6: packet too big.
    pub const V6_TOO_BIG: u8 = 2;
    /// IPv6: last of the four errors.
    pub const V6_PARAMETER_PROBLEM: u8 = 4;
    /// IPv6: echo request.
    pub const V6_ECHO: u8 = 128;
    /// IPv6: echo reply.
    pub const V6_ECHO_REPLY: u8 = 129;
    /// IPv6: neighbour solicitation.
    pub const SOLICITATION: u8 = 135;
    /// IPv6: neighbour advertisement.
    pub const ADVERTISEMENT: u8 = 136;
}

impl Udp {
    /// Where the word with length and checksum begins.
    pub const LENGTH: u32 = 4;
}

impl Tcp {
    /// Where the word with offset, flags and window begins.
    pub const OFFSET: u32 = 12;

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

    /// Whether a segment with these flags opens a connection: SYN without ACK.
    #[inline(always)]
    #[must_use]
    pub const fn opens(flags: u8) -> bool {
        flags & (Self::SYN | Self::ACK) == Self::SYN
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
