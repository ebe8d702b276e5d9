//! Hashing: SipHash-1-3 for everything that an outsider could aim at, and the slot hash of the VIP table.
//!
//! All hosts of a cluster must agree bit for bit: nothing here depends on the host's byte order or on `std`.
//! The slot hash is not keyed against attack: what is stored under it comes from the configuration.

use crate::abi::{ROWS, VIP_SLOTS, VipKey, VipWords};

/// A 128-bit key as two words.
pub type Key = [u64; 2];

/// SipHash-1-3 over a stream of bytes (Aumasson and Bernstein, with one compression and three final rounds).
#[derive(Clone, Copy, Debug)]
pub struct SipHasher {
    state: [u64; 4],
    /// Bytes not yet compressed, lowest first.
    tail: u64,
    length: u64,
}

impl SipHasher {
    /// A hasher under `key`.
    #[inline(always)]
    #[must_use]
    pub const fn new(key: Key) -> Self {
        let state = [
            key[0] ^ 0x736f_6d65_7073_6575,
            key[1] ^ 0x646f_7261_6e64_6f6d,
            key[0] ^ 0x6c79_6765_6e65_7261,
            key[1] ^ 0x7465_6462_7974_6573,
        ];
        Self {
            state,
            tail: 0,
            length: 0,
        }
    }

    /// Adds bytes; how a message is cut into calls does not matter.
    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.tail |= u64::from(byte) << (8 * (self.length % 8));
            self.length += 1;
            if self.length.is_multiple_of(8) {
                self.state = compress(self.state, self.tail);
                self.tail = 0;
            }
        }
    }

    /// Adds eight bytes, read as a little-endian word, to a message of whole words.
    #[inline(always)]
    #[must_use]
    pub const fn with_word(self, word: u64) -> Self {
        Self {
            state: compress(self.state, word),
            length: self.length + 8,
            ..self
        }
    }

    /// The hash of everything written.
    #[inline(always)]
    #[must_use]
    pub const fn finish(self) -> u64 {
        finalize(compress(self.state, self.tail | (self.length << 56)))
    }
}

/// SipHash-1-3 of `bytes`.
#[must_use]
pub fn sip13(key: Key, bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher::new(key);
    hasher.write(bytes);
    hasher.finish()
}

/// The flow hash of an IPv4 5-tuple: SipHash-1-3 over source, destination, source port, destination port and
/// protocol (13 bytes in network order).
#[inline(always)]
#[must_use]
pub const fn flow_v4(
    key: Key,
    source: [u8; 4],
    destination: [u8; 4],
    ports: [u8; 4],
    protocol: u8,
) -> u64 {
    let addresses =
        u32::from_le_bytes(source) as u64 | (u32::from_le_bytes(destination) as u64) << 32;
    let last = u32::from_le_bytes(ports) as u64 | (protocol as u64) << 32 | 13 << 56;
    finalize(compress(
        compress(SipHasher::new(key).state, addresses),
        last,
    ))
}

/// The flow hash of an IPv6 5-tuple: as [`flow_v4`], over 37 bytes.
#[inline(always)]
#[must_use]
pub const fn flow_v6(
    key: Key,
    source: [u8; 16],
    destination: [u8; 16],
    ports: [u8; 4],
    protocol: u8,
) -> u64 {
    let last = u32::from_le_bytes(ports) as u64 | (protocol as u64) << 32;
    flow_v6_of(key, words(source), words(destination), last)
}

/// [`flow_v6`] of the [`words`] of client and VIP, and of ports (low half) and protocol.
#[inline(always)]
#[must_use]
pub const fn flow_v6_of(key: Key, [a, b]: [u64; 2], [c, d]: [u64; 2], last: u64) -> u64 {
    let state = compress(compress(SipHasher::new(key).state, a), b);
    finalize(compress(compress(compress(state, c), d), last | 37 << 56))
}

/// An address as two little-endian numbers.
#[inline(always)]
#[must_use]
pub const fn words(address: [u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
    [
        u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        u64::from_le_bytes([i, j, k, l, m, n, o, p]),
    ]
}

/// The address that [`words`] made two numbers of.
#[inline(always)]
#[must_use]
pub const fn of_words([first, second]: [u64; 2]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h] = first.to_le_bytes();
    let [i, j, k, l, m, n, o, p] = second.to_le_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// The row of a flow hash.
#[inline(always)]
#[must_use]
pub const fn row_of(flow: u64) -> u32 {
    flow as u32 & (ROWS - 1)
}

/// First slot of a VIP within a half of the table, below [`VIP_SLOTS`]. A lookup goes on to the following
/// slots, wrapping inside the half, for [`crate::abi::VIP_PROBES`] slots or until one that is unused.
#[inline(always)]
#[must_use]
pub const fn vip_slot(key: &VipKey, seed: u32) -> u32 {
    vip_slot_of(key.words(), seed)
}

/// [`vip_slot`] of a key's words.
#[inline(always)]
#[must_use]
pub const fn vip_slot_of(([high, low], last): VipWords, seed: u32) -> u32 {
    let port = last as u64 | (seed as u64) << 32;
    let mut hash = (high.wrapping_mul(MIX_A) ^ low ^ port).wrapping_mul(MIX_A);
    hash ^= hash >> 32;
    (hash.wrapping_mul(MIX_B) >> 48) as u32 & (VIP_SLOTS - 1)
}

/// A bijection that spreads every input bit over the word.
#[inline(always)]
#[must_use]
pub const fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(MIX_A);
    word = (word ^ (word >> 27)).wrapping_mul(MIX_B);
    word ^ (word >> 31)
}

/// Odd multipliers of Stafford's variant 13 of the 64-bit finalizer.
const MIX_A: u64 = 0xbf58_476d_1ce4_e5b9;
const MIX_B: u64 = 0x94d0_49bb_1331_11eb;

#[inline(always)]
const fn round(state: [u64; 4]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = state;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[inline(always)]
const fn compress(state: [u64; 4], word: u64) -> [u64; 4] {
    let [a, b, c, d] = state;
    let [a, b, c, d] = round([a, b, c, d ^ word]);
    [a ^ word, b, c, d]
}

#[inline(always)]
const fn finalize(state: [u64; 4]) -> u64 {
    let [a, b, c, d] = state;
    let [a, b, c, d] = round(round(round([a, b, c ^ 0xff, d])));
    a ^ b ^ c ^ d
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: Key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    /// The reference vectors of SipHash-1-3 (message 00, 01, 02, … under the key 00 … 0f).
    #[test]
    fn siphash_1_3_golden_vectors() {
        let message: Vec<u8> = (0..64).collect();
        let golden = [
            (0, 0xabac_0158_050f_c4dc),
            (1, 0xc9f4_9bf3_7d57_ca93),
            (2, 0x82cb_9b02_4dc7_d44d),
            (3, 0x8bf8_0ab8_e7dd_f7fb),
        ];
        for (length, hash) in golden {
            assert_eq!(sip13(KEY, &message[..length]), hash, "length {length}");
        }
    }

    #[test]
    fn flow_golden_vectors() {
        let ports = [0xc0, 0x01, 0x00, 0x50];
        let hash = flow_v4(KEY, [192, 0, 2, 1], [203, 0, 113, 10], ports, 6);
        assert_eq!(
            hash,
            sip13(
                KEY,
                &[192, 0, 2, 1, 203, 0, 113, 10, 0xc0, 0x01, 0x00, 0x50, 6]
            )
        );
        assert_eq!((hash, row_of(hash)), (11_037_798_681_681_890_731, 36_267));
        let (source, destination) = (core::array::from_fn(|i| i as u8), [0xfd; 16]);
        let message = [&source[..], &destination, &ports, &[17]].concat();
        assert_eq!(
            flow_v6(KEY, source, destination, ports, 17),
            sip13(KEY, &message)
        );
    }

    #[test]
    fn flow_v6_golden_vector() {
        let address = |last| {
            let mut address = [0_u8; 16];
            address[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            address[15] = last;
            address
        };
        let (source, destination) = (address(1), address(0x35));
        let ports = [0xc0, 0x01, 0x00, 0x35];
        let hash = flow_v6(KEY, source, destination, ports, 17);
        let message = [&source[..], &destination[..], &ports[..], &[17]].concat();
        assert_eq!(message.len(), 37);
        assert_eq!(hash, sip13(KEY, &message));
        assert_eq!((hash, row_of(hash)), (14_301_970_424_383_680_262, 12_038));
    }

    #[test]
    fn slot_golden_vectors() {
        let key = VipKey::v4([203, 0, 113, 10], [0, 80], 6);
        assert_eq!(
            [
                vip_slot(&key, 0),
                vip_slot(&key, 1),
                vip_slot(&key.of_address(), 0)
            ],
            [5_115, 7_520, 3_476]
        );
        let v6 = VipKey {
            address: [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            ..key
        };
        assert_eq!(vip_slot(&v6, 7), 3_865);
    }

    proptest! {
        #[test]
        fn cutting_a_message_does_not_matter(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0usize..64) {
            let cut = cut.min(bytes.len());
            let mut hasher = SipHasher::new(KEY);
            hasher.write(&bytes[..cut]);
            hasher.write(&bytes[cut..]);
            prop_assert_eq!(hasher.finish(), sip13(KEY, &bytes));
            let whole = &bytes[..bytes.len() / 8 * 8];
            let words = whole.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
            let by_words = words.fold(SipHasher::new(KEY), SipHasher::with_word);
            prop_assert_eq!(by_words.finish(), sip13(KEY, whole));
            // std's default hasher is SipHash-1-3 under the zero key.
            let mut std = std::hash::DefaultHasher::new();
            std::hash::Hasher::write(&mut std, &bytes);
            prop_assert_eq!(sip13([0, 0], &bytes), std::hash::Hasher::finish(&std));
        }
    }
}
