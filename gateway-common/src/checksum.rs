//! The Internet checksum: of an IPv4 header, and its change when one word changes.
//!
//! Words are in host order; the stored form is `to_be_bytes`. Payload checksums are never computed here.

use crate::packet::Ipv4;

/// Checksum of an IPv4 header, whatever its checksum field holds (RFC 1071).
///
/// Words are added as they lie in memory: the sum does not depend on the byte order, but for one swap at the end.
#[inline(always)]
#[must_use]
pub fn ipv4(header: &Ipv4) -> u16 {
    let words: [u32; 5] = bytemuck::cast(Ipv4 {
        checksum: [0; 2],
        ..*header
    });
    u16::from_be_bytes(of_sum(add(0, words)))
}

/// The checksum after the word `old` became `new` (RFC 1624, equation 3).
#[inline(always)]
#[must_use]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(!checksum as u32 + !old as u32 + new as u32)
}

/// Checksum of bytes whose words were added up as they lie in memory.
#[inline(always)]
#[must_use]
pub const fn of_sum(sum: u64) -> [u8; 2] {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (!fold((sum & 0xffff) as u32 + (sum >> 16) as u32)).to_ne_bytes()
}

/// Adds 32-bit words as they lie in memory.
#[inline(always)]
#[must_use]
pub const fn add<const N: usize>(mut sum: u64, words: [u32; N]) -> u64 {
    let mut i = 0;
    while i < N {
        sum += words[i] as u64;
        i += 1;
    }
    sum
}

/// Ones' complement sum of at most 2^16 words into one word.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The header that RFC 1071 users quote: checksum 0xb861.
    #[test]
    fn golden_vector() {
        let bytes: [u8; 20] = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0,
            0xc7,
        ];
        assert_eq!(ipv4(&bytemuck::cast(bytes)), 0xb861);
    }

    proptest! {
        #[test]
        fn incremental_equals_full(bytes: [u8; 20], word in prop::sample::select(vec![0usize, 2, 4, 6, 8, 12, 14, 16, 18]), new: u16) {
            // A real header is never all zero, the one case in which the two forms of zero differ.
            prop_assume!(bytes[0] != 0 && word != 0);
            let before = ipv4(&bytemuck::cast(bytes));
            let old = u16::from_be_bytes([bytes[word], bytes[word + 1]]);
            let mut changed = bytes;
            changed[word..word + 2].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), ipv4(&bytemuck::cast(changed)));
        }
    }
}
