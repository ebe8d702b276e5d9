//! The VIP table: an array used as a small hash, in two halves.

use bytemuck::{Pod, Zeroable};

use crate::hash::words;

/// What a packet is looked up by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct VipKey {
    /// Address, IPv4-mapped for IPv4.
    pub address: [u8; 16],
    /// Port in network order; 0 for the entry of the address itself.
    pub port: [u8; 2],
    /// IP protocol; 0 for the entry of the address itself.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

impl VipKey {
    /// The key of an IPv4 address, port (network order) and protocol; port and protocol 0 for the address itself.
    #[inline(always)]
    #[must_use]
    pub const fn v4(address: [u8; 4], port: [u8; 2], protocol: u8) -> Self {
        let [a, b, c, d] = address;
        let address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d];
        Self {
            address,
            port,
            protocol,
            pad: 0,
        }
    }

    /// The key of the entry for the address of `self`.
    #[inline(always)]
    #[must_use]
    pub const fn of_address(&self) -> Self {
        Self {
            address: self.address,
            port: [0; 2],
            protocol: 0,
            pad: 0,
        }
    }

    /// The key in words, to hash and to compare.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> VipWords {
        let last = u32::from_le_bytes([self.port[0], self.port[1], self.protocol, self.pad]);
        (words(self.address), last)
    }
}

/// A [`VipKey`] in words: its address ([`words`]), then port and protocol as a little-endian number.
pub type VipWords = ([u64; 2], u32);

/// One slot of the VIP table. An unused slot is all zero ([`vip_flag::USED`] not set).
///
/// Every VIP address has, beside one entry for each of its ports, one entry with port 0 and protocol 0: it
/// tells `sk_lookup` that other ports of the address are refused, and XDP whether to answer ARP.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct VipEntry {
    /// The key.
    pub key: VipKey,
    /// Bits of [`vip_flag`].
    pub flags: u32,
    /// SO_REUSEPORT group of the listening sockets, below [`super::GROUPS`].
    pub group: u16,
    /// Number of this VIP for counters, below [`super::VIP_NUMBERS`].
    pub number: u16,
    /// Number of its list of source prefixes; 0: every source may send. That of an address, with
    /// [`vip_flag::ALLOW_LIST`], is for fragments, which have no port ([`vip_flag::BY_ADDRESSES`]).
    pub sources: u16,
    /// Room for later words; zero.
    pub reserved: u16,
}

/// What a source is looked up by: the longest prefix of `list` and address, as the kernel's LPM tries compare them.
///
/// A prefix of a list has `LIST_BITS` more bits than the same prefix of an address (96 more still for IPv4, which is
/// mapped).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct SourceKey {
    /// Number of the list ([`VipEntry::sources`]), big-endian.
    pub list: [u8; 4],
    /// Address, IPv4-mapped for IPv4.
    pub address: [u8; 16],
}

impl SourceKey {
    /// Bits of [`Self::list`].
    pub const LIST_BITS: u32 = 32;

    /// The key of an address in a list.
    #[inline(always)]
    #[must_use]
    pub const fn new(list: u16, address: [u8; 16]) -> Self {
        Self {
            list: (list as u32).to_be_bytes(),
            address,
        }
    }
}

/// Bits of [`VipEntry::flags`].
pub mod vip_flag {
    /// The slot is in use.
    pub const USED: u32 = 1 << 0;
    /// This node answers ARP and ND for the address (set on address entries only).
    pub const ANNOUNCE: u32 = 1 << 1;
    /// The address is configured on an interface of a node: served, never refused on other ports.
    pub const SHARED: u32 = 1 << 2;
    /// The VIP was deleted and drains: its sockets go on, new connections are refused.
    pub const DRAINING: u32 = 1 << 3;
    /// Whatever this node receives it serves: no packet goes to another node.
    pub const LOCAL_ONLY: u32 = 1 << 4;
    /// UDP is hashed by addresses alone, so that fragments and all ports of a client reach one node. Set on the port's
    /// entry and on that of its address.
    pub const BY_ADDRESSES: u32 = 1 << 5;
    /// Sources that no prefix of the list covers are refused (the list has entries that allow).
    pub const ALLOW_LIST: u32 = 1 << 6;
}

const _: () = assert!(size_of::<VipKey>() == 20 && align_of::<VipKey>() == 1);
const _: () = assert!(size_of::<VipEntry>() == 32 && align_of::<VipEntry>() == 8);
