//! The frames of the benchmark: 60 bytes of Ethernet, IPv4 and TCP with right checksums, and the template from which the live
//! generator makes one flow after another. Pure.

/// Address of the VIP that the tables know.
pub(super) const VIP: [u8; 4] = [192, 0, 2, 80];
/// Port of the VIP.
pub(super) const PORT: u16 = 80;
/// An address that is no VIP.
pub(super) const STRANGER: [u8; 4] = [192, 0, 2, 99];
/// Clients: the last two bytes are the flow's number.
pub(super) const CLIENT: [u8; 4] = [198, 18, 0, 0];
/// Port of the clients.
pub(super) const CLIENT_PORT: u16 = 40_000;
/// MAC of the router that delivers the clients' frames; it is no peer.
pub(super) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Bytes of a frame.
pub(super) const LENGTH: usize = 60;

/// Flag bits of a TCP header.
pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;

/// Who sends to whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) source: [u8; 4],
    pub(super) source_port: u16,
    pub(super) destination: [u8; 4],
}

/// A frame of a client for the VIP.
pub(super) const TO_VIP: Flow = Flow {
    source: CLIENT,
    source_port: CLIENT_PORT,
    destination: VIP,
};

/// A whole frame to `mac`.
pub(super) fn frame(mac: [u8; 6], flow: Flow, flags: u8) -> [u8; LENGTH] {
    let mut bytes = unsummed(mac, flow, flags);
    let (ip, tcp) = sums(&bytes);
    bytes[24..26].copy_from_slice(&fold(ip).to_be_bytes());
    bytes[50..52].copy_from_slice(&fold(tcp).to_be_bytes());
    bytes
}

/// The words of the generator's `FRAME` map: flows as a mask, frame without checksums, sums to start from.
pub(super) fn template(mac: [u8; 6], flags: u8, mask: u64) -> [u64; 11] {
    let bytes = unsummed(mac, TO_VIP, flags);
    let (ip, tcp) = sums(&bytes);
    let mut words = [0; 11];
    words[1] = mask;
    for (word, chunk) in words[2..9].iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*chunk);
    }
    words[9] = ip;
    words[10] = tcp;
    words
}

fn unsummed(mac: [u8; 6], flow: Flow, flags: u8) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..6].copy_from_slice(&mac);
    bytes[6..12].copy_from_slice(&ROUTER_MAC);
    // IPv4, 40 bytes, do not fragment, TTL 64, TCP.
    bytes[12..24].copy_from_slice(&[0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
    bytes[26..30].copy_from_slice(&flow.source);
    bytes[30..34].copy_from_slice(&flow.destination);
    bytes[34..36].copy_from_slice(&flow.source_port.to_be_bytes());
    bytes[36..38].copy_from_slice(&PORT.to_be_bytes());
    // Sequence and acknowledgement 1, header of 20 bytes, full window.
    bytes[38..50].copy_from_slice(&[
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        u8::from(flags & ACK != 0),
        0x50,
        flags,
        0xff,
        0xff,
    ]);
    bytes
}

/// Sums of 16-bit words: the IPv4 header, and the TCP header with its pseudo-header.
fn sums(bytes: &[u8; LENGTH]) -> (u64, u64) {
    let sum = |range: &[u8]| {
        range
            .as_chunks::<2>()
            .0
            .iter()
            .map(|&w| u64::from(u16::from_be_bytes(w)))
            .sum::<u64>()
    };
    (sum(&bytes[14..34]), sum(&bytes[26..54]) + 6 + 20)
}

/// The Internet checksum of a sum (RFC 1071).
fn fold(sum: u64) -> u16 {
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_cancel_out() {
        let bytes = frame([2, 0, 0, 0, 0, 1], TO_VIP, ACK);
        let (ip, tcp) = sums(&bytes);
        assert_eq!((fold(ip), fold(tcp)), (0, 0));
        assert_eq!(bytes[47], 0x10);
    }

    #[test]
    fn the_template_is_the_frame_without_its_sums() {
        let (words, mut bytes) = (
            template([2, 0, 0, 0, 0, 1], ACK, 7),
            frame([2, 0, 0, 0, 0, 1], TO_VIP, ACK),
        );
        bytes[24..26].fill(0);
        bytes[50..52].fill(0);
        assert_eq!(words[1], 7);
        assert_eq!(
            words[2..9]
                .iter()
                .flat_map(|w| w.to_ne_bytes())
                .collect::<Vec<_>>(),
            bytes[..56]
        );
    }
}
