//! CRC-32C (RFC 4960, appendix B), bit by bit: it is needed once for a connection, over some 100 bytes.

/// A checksum that is being computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc32c {
    /// Takes more bytes.
    pub(super) fn add(self, bytes: &[u8]) -> Self {
        /// Castagnoli's polynomial, bits reversed.
        const POLYNOMIAL: u32 = 0x82f6_3b78;
        let mut crc = self.0;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (POLYNOMIAL * (crc & 1));
            }
        }
        Self(crc)
    }

    /// The checksum of what was taken.
    pub(super) fn value(self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_checksums() {
        // The check value of the algorithm, and RFC 3720, B.4.
        assert_eq!(Crc32c::default().add(b"123456789").value(), 0xe306_9283);
        assert_eq!(Crc32c::default().add(&[0; 32]).value(), 0x8a91_36aa);
        let halves = Crc32c::default().add(b"1234").add(b"56789");
        assert_eq!(halves.value(), 0xe306_9283);
    }
}
