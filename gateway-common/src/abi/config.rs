//! The one-entry configuration map.

#![allow(
    unsafe_code,
    reason = "words in shared memory are read one by one, by volatile reads"
)]

use core::marker::PhantomData;

use bytemuck::{Pod, Zeroable};

/// What the programs need to know about this node. Fields are single aligned words: each is read and written
/// on its own, no two need to change together (what must change together sits in a flipped table).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// [`super::ABI_VERSION`] of whoever wrote the maps.
    pub abi_version: u32,
    /// This node's own index in its node table; 0 until it is known, then everything passes.
    pub self_index: u32,
    /// Live half of the VIP table, 0 or 1.
    pub vip_half: u32,
    /// Live half of the node table, 0 or 1.
    pub node_half: u32,
    /// Low 32 bits of the membership fingerprint (header bytes 4–7).
    pub fingerprint: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Tunnel UDP port in network order, then the probe port.
    pub tunnel_port: [u8; 2],
    /// Probe UDP port in network order.
    pub probe_port: [u8; 2],
    /// Jiffies without a heartbeat after which the local proxy counts as hanging.
    pub beat_limit_jiffies: u32,
    /// Second-chance hops that this node may send in one window.
    pub hop_limit: u32,
    /// Length of that window in jiffies.
    pub hop_window_jiffies: u32,
    /// Seed of the VIP table's slot hash, one for each half.
    pub vip_seed: [u32; 2],
    /// Flow hash key (SipHash-1-3), the same on all nodes.
    pub hash_key: [u64; 2],
    /// Outer source address of encapsulated packets (IPv4-mapped for IPv4).
    pub tunnel_source: [u8; 16],
    /// Key of the probes between nodes (SipHash-1-3), the same on all nodes.
    pub probe_key: [u64; 2],
    /// The key before that one: accepted, never used to sign.
    pub probe_key_previous: [u64; 2],
    /// Room for later words; zero.
    pub reserved: [u64; 8],
}

/// The configuration where the programs find it: in memory that the daemon may write at any moment.
///
/// Each call reads its field once, as it stands then.
#[derive(Clone, Copy, Debug)]
pub struct LiveConfig<'a> {
    config: *const Config,
    lifetime: PhantomData<&'a Config>,
}

impl<'a> LiveConfig<'a> {
    /// A configuration that nobody writes.
    #[must_use]
    pub const fn of(config: &'a Config) -> Self {
        Self {
            config,
            lifetime: PhantomData,
        }
    }

    /// A configuration in shared memory.
    ///
    /// # Safety
    ///
    /// `config` must be aligned and readable for `'a`, and written by others in whole words only.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn at(config: *const Config) -> Self {
        Self {
            config,
            lifetime: PhantomData,
        }
    }

    /// The IPv4 address in [`Config::tunnel_source`].
    #[inline(always)]
    #[must_use]
    pub fn tunnel_source_v4(self) -> [u8; 4] {
        // SAFETY: readable, by the constructors; the last four bytes lie at a multiple of four.
        let word = unsafe {
            (&raw const (*self.config).tunnel_source)
                .cast::<u32>()
                .add(3)
                .read_volatile()
        };
        word.to_ne_bytes()
    }

    /// Seed of the VIP table's slot hash for a half.
    #[inline(always)]
    #[must_use]
    pub fn vip_seed(self, half: u32) -> u32 {
        let [first, second] = self.vip_seeds();
        if half & 1 == 0 { first } else { second }
    }
}

macro_rules! live {
    ($($(#[$doc:meta])* $method:ident = $field:ident: $kind:ty;)*) => {
        impl LiveConfig<'_> {
            $($(#[$doc])*
            #[inline(always)]
            #[must_use]
            pub fn $method(self) -> $kind {
                // SAFETY: readable and aligned, by the constructors.
                unsafe { (&raw const (*self.config).$field).read_volatile() }
            })*
        }
    };
}

live! {
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
    /// See [`Config::beat_limit_jiffies`].
    beat_limit_jiffies = beat_limit_jiffies: u32;
    /// See [`Config::hop_limit`].
    hop_limit = hop_limit: u32;
    /// See [`Config::hop_window_jiffies`].
    hop_window_jiffies = hop_window_jiffies: u32;
    /// See [`Config::vip_seed`].
    vip_seeds = vip_seed: [u32; 2];
    /// See [`Config::hash_key`].
    hash_key = hash_key: [u64; 2];
}

/// Bits of [`Config::flags`].
pub mod flag {
    /// Never rewrite MACs toward a node, always encapsulate (`--forward udp`).
    pub const ENCAP_ALWAYS: u32 = 1 << 0;
    /// This node is draining by its own decision: every row counts as in transition.
    pub const DRAINING: u32 = 1 << 1;
}

const _: () = assert!(size_of::<Config>() == 176 && align_of::<Config>() == 8);
const _: () = assert!(core::mem::offset_of!(Config, tunnel_source) % 4 == 0);
