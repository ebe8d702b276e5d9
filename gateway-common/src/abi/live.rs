//! Values of maps where the programs find them: in memory that the daemon may write at any moment.
//!
//! Each call reads its field once, as it stands then, and nothing else of the value.
#![allow(
    unsafe_code,
    reason = "words in shared memory are read one by one, by volatile reads"
)]

use core::marker::PhantomData;

#[cfg(doc)]
use crate::hash::words;

use super::{Config, NodeEntry, TraceFilter, VipEntry, VipWords};

/// A value of a map.
#[derive(Debug)]
pub struct Live<'a, T> {
    value: *const T,
    lifetime: PhantomData<&'a T>,
}

impl<T> Clone for Live<'_, T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Live<'_, T> {}

/// The configuration.
pub type LiveConfig<'a> = Live<'a, Config>;

impl<'a, T> Live<'a, T> {
    /// A value that nobody writes.
    #[must_use]
    pub const fn of(value: &'a T) -> Self {
        Self {
            value,
            lifetime: PhantomData,
        }
    }

    /// A value in shared memory.
    ///
    /// # Safety
    ///
    /// `value` must be aligned and readable for `'a`, and written by others in whole words only.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn at(value: *const T) -> Self {
        Self {
            value,
            lifetime: PhantomData,
        }
    }

    /// `N` words of 32 bits, from the byte `offset` on, as they lie in memory.
    #[inline(always)]
    fn words<const N: usize, const OFFSET: usize>(self) -> [u32; N] {
        const { assert!(OFFSET.is_multiple_of(4) && OFFSET + 4 * N <= size_of::<T>()) };
        // SAFETY: readable and aligned, by the constructors; the words lie within the value.
        core::array::from_fn(|i| unsafe {
            self.value.cast::<u32>().add(OFFSET / 4 + i).read_volatile()
        })
    }
}

/// [`words`] of an address from its four words in memory.
#[inline(always)]
const fn address([a, b, c, d]: [u32; 4]) -> [u64; 2] {
    [
        u32::from_le(a) as u64 | (u32::from_le(b) as u64) << 32,
        u32::from_le(c) as u64 | (u32::from_le(d) as u64) << 32,
    ]
}

macro_rules! live {
    ($value:ident { $($(#[$doc:meta])* $method:ident = $field:ident: $kind:ty;)* }) => {
        impl Live<'_, $value> {
            $($(#[$doc])*
            #[inline(always)]
            #[must_use]
            pub fn $method(self) -> $kind {
                // SAFETY: readable and aligned, by the constructors.
                unsafe { (&raw const (*self.value).$field).read_volatile() }
            })*
        }
    };
}

live! {
    Config {
        /// See [`Config::abi_version`].
        abi_version = abi_version: u32;
        /// See [`Config::self_index`].
        self_index = self_index: u32;
        /// See [`Config::vip_half`].
        vip_half = vip_half: u32;
        /// See [`Config::node_half`].
        node_half = node_half: u32;
        /// See [`Config::fingerprint`].
        fingerprint = fingerprint: u32;
        /// See [`Config::flags`].
        flags = flags: u32;
        /// See [`Config::tunnel_port`].
        tunnel_port = tunnel_port: [u8; 2];
        /// See [`Config::probe_port`].
        probe_port = probe_port: [u8; 2];
        /// See [`Config::probe_key`].
        probe_key = probe_key: [u64; 2];
        /// See [`Config::probe_key_previous`].
        probe_key_previous = probe_key_previous: [u64; 2];
        /// See [`Config::beat_limit_jiffies`].
        beat_limit_jiffies = beat_limit_jiffies: u32;
        /// See [`Config::trace`].
        trace = trace: u32;
        /// See [`Config::hop_limit`].
        hop_limit = hop_limit: u32;
        /// See [`Config::window_jiffies`].
        window_jiffies = window_jiffies: u32;
        /// See [`Config::syn_limit`].
        syn_limit = syn_limit: u32;
        /// See [`Config::too_big_limit`].
        too_big_limit = too_big_limit: u32;
        /// See [`Config::own_macs`].
        own_macs = own_macs: [u64; 4];
        /// See [`Config::vlans`].
        vlans = vlans: [u16; 4];
        /// See [`Config::vip_seed`].
        vip_seeds = vip_seed: [u32; 2];
        /// See [`Config::hash_key`].
        hash_key = hash_key: [u64; 2];
    }
}

impl Live<'_, Config> {
    /// [`words`] of [`Config::tunnel_source`].
    #[inline(always)]
    #[must_use]
    pub fn tunnel_source(self) -> [u64; 2] {
        address(self.words::<4, { core::mem::offset_of!(Config, tunnel_source) }>())
    }

    /// The last word of [`Self::tunnel_source`]: the IPv4 address, if it is one.
    #[inline(always)]
    #[must_use]
    pub fn tunnel_source_v4(self) -> u32 {
        let [word] = self.words::<1, { core::mem::offset_of!(Config, tunnel_source) + 12 }>();
        word
    }

    /// The first of [`Config::own_macs`], and the only one on most machines.
    #[inline(always)]
    #[must_use]
    pub fn own_mac(self) -> u64 {
        let [low, high] = self.words::<2, { core::mem::offset_of!(Config, own_macs) }>();
        low as u64 | (high as u64) << 32
    }

    /// Seed of the VIP table's slot hash for a half.
    #[inline(always)]
    #[must_use]
    pub fn vip_seed(self, half: u32) -> u32 {
        let [first, second] = self.vip_seeds();
        if half & 1 == 0 { first } else { second }
    }
}

live! {
    VipEntry {
        /// See [`VipEntry::flags`].
        flags = flags: u32;
        /// See [`VipEntry::group`].
        group = group: u16;
        /// See [`VipEntry::number`].
        number = number: u16;
        /// See [`VipEntry::sources`].
        sources = sources: u16;
    }
}

impl Live<'_, VipEntry> {
    /// [`super::VipKey::words`] of the key.
    #[inline(always)]
    #[must_use]
    pub fn key(self) -> VipWords {
        let long = self.value.cast::<u64>();
        // SAFETY: readable and aligned to eight bytes, by the constructors and the map's stride; the key is 20 bytes.
        let (first, second, last) = unsafe {
            (
                long.read_volatile(),
                long.add(1).read_volatile(),
                long.add(2).cast::<u32>().read_volatile(),
            )
        };
        (
            [u64::from_le(first), u64::from_le(second)],
            u32::from_le(last),
        )
    }
}

live! {
    NodeEntry {
        /// See [`NodeEntry::ifindex`].
        ifindex = ifindex: u32;
        /// See [`NodeEntry::flags`].
        flags = flags: u32;
        /// See [`NodeEntry::by_address`].
        by_address = by_address: u16;
        /// See [`NodeEntry::by_mac`].
        by_mac = by_mac: u16;
        /// See [`NodeEntry::mtu`].
        mtu = mtu: u16;
        /// See [`NodeEntry::vlan`].
        vlan = vlan: u16;
        /// See [`NodeEntry::source_mac`].
        source_mac = source_mac: [u8; 6];
    }
}

impl Live<'_, NodeEntry> {
    /// [`words`] of [`NodeEntry::address`].
    #[inline(always)]
    #[must_use]
    pub fn address(self) -> [u64; 2] {
        address(self.words::<4, { core::mem::offset_of!(NodeEntry, address) }>())
    }

    /// [`NodeEntry::mac`] and [`NodeEntry::source_mac`]: the beginning of a frame to the node.
    #[inline(always)]
    #[must_use]
    pub fn macs(self) -> [u32; 3] {
        self.words::<3, { core::mem::offset_of!(NodeEntry, mac) }>()
    }
}

live! {
    TraceFilter {
        /// See [`TraceFilter::until`].
        until = until: u64;
        /// See [`TraceFilter::port`].
        port = port: [u8; 2];
        /// See [`TraceFilter::vip_port`].
        vip_port = vip_port: [u8; 2];
        /// See [`TraceFilter::protocol`].
        protocol = protocol: u32;
        /// See [`TraceFilter::wants`].
        wants = wants: u32;
        /// See [`TraceFilter::most`].
        most = most: u32;
        /// See [`TraceFilter::session`].
        session = session: u32;
    }
}

impl Live<'_, TraceFilter> {
    /// [`words`] of [`TraceFilter::address`].
    #[inline(always)]
    #[must_use]
    pub fn address(self) -> [u64; 2] {
        address(self.words::<4, { core::mem::offset_of!(TraceFilter, address) }>())
    }

    /// [`words`] of [`TraceFilter::vip`].
    #[inline(always)]
    #[must_use]
    pub fn vip(self) -> [u64; 2] {
        address(self.words::<4, { core::mem::offset_of!(TraceFilter, vip) }>())
    }
}

const _: () = assert!(
    core::mem::offset_of!(NodeEntry, source_mac) == core::mem::offset_of!(NodeEntry, mac) + 6
);
const _: () = assert!(core::mem::offset_of!(Config, tunnel_source) % 4 == 0);
