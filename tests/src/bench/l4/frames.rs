//! The frames of the benchmark, with right lengths and checksums, and the template from which the live generator makes one flow after
//! another. Pure.

use crate::packet::{Ip, Tunnelled, checksum, ethernet};

/// Address of the VIPs that the cases use.
pub(super) const VIP: [u8; 4] = [192, 0, 2, 80];
/// The same for IPv6 (2001:db8:80::80).
pub(super) const VIP6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80];
/// TCP port of the VIP whose listener has room.
pub(super) const WEB: u16 = 80;
/// TCP port of the VIP whose listener's queue is full.
pub(super) const FLOODED: u16 = 81;
/// TCP port of the VIP that nobody listens on.
pub(super) const SILENT: u16 = 82;
/// UDP port of a VIP.
pub(super) const DNS: u16 = 53;

/// An address that is no VIP.
pub(super) const STRANGER: [u8; 4] = [192, 0, 2, 99];
/// The first client; the last 20 bits are the flow's number.
pub(super) const CLIENT: [u8; 4] = [100, 64, 0, 0];
/// The same for IPv6 (2001:db8:c::).
pub(super) const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0xc, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Port of the clients that have sockets.
pub(super) const CLIENT_PORT: u16 = 40_000;
/// Port of clients that have none.
pub(super) const OTHER_PORT: u16 = 40_001;

/// MAC of this node.
pub(super) const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// MAC of the router that delivers the clients' frames; it is no peer.
pub(super) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// UDP port of the tunnel between nodes.
pub(super) const TUNNEL: u16 = 17_410;

/// Bytes of a live frame.
pub(super) const LENGTH: usize = 60;

/// Flag bits of a TCP header.
pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ESP: u8 = 50;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// IEEE 802.1Q.
const TAG: [u8; 2] = [0x81, 0x00];
/// LLDP, of which the program knows nothing.
const LLDP: [u8; 2] = [0x88, 0xcc];

/// Options of an ordinary SYN: segment size 1,460, SACK, time stamps, window scale 7.
const OPTIONS: [u8; 20] = [
    2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
];

/// A frame for a test run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// A multiple of eight bytes, so that the wrapper brings back all that it brings back in whole words.
    pub(super) bytes: Vec<u8>,
    /// Where the last four bytes of the client's address stand.
    pub(super) at: usize,
}

impl Frame {
    /// `packet` behind a link layer; `client` is the place of the client's address in it.
    fn of(kind: [u8; 2], packet: &[u8], client: usize) -> Self {
        let mut bytes = ethernet(OWN_MAC, ROUTER_MAC, kind, packet);
        bytes.resize(bytes.len().next_multiple_of(8).max(64), 0);
        Self {
            bytes,
            at: 14 + client,
        }
    }

    /// A TCP packet of a client, with the usual options if it is a SYN.
    pub(super) fn tcp(to: [u8; 4], source_port: u16, port: u16, flags: u8) -> Self {
        Self::tcp_from(CLIENT, to, source_port, port, flags)
    }

    /// The same of any source.
    pub(super) fn tcp_from(
        from: [u8; 4],
        to: [u8; 4],
        source_port: u16,
        port: u16,
        flags: u8,
    ) -> Self {
        let segment = tcp(&[from, to].concat(), source_port, port, flags);
        Self::of(IPV4, &ip(from, to, TCP).build(&[], &segment), 12)
    }

    /// The same for IPv6.
    pub(super) fn tcp_v6(to: [u8; 16], port: u16, flags: u8) -> Self {
        let segment = tcp(&[CLIENT6, to].concat(), OTHER_PORT, port, flags);
        Self::of(IPV6, &ipv6(CLIENT6, to, TCP, &segment), 8 + 12)
    }

    /// A UDP packet of a client.
    pub(super) fn udp(to: [u8; 4], port: u16) -> Self {
        Self::v4(to, UDP, &udp(OTHER_PORT, port, &[0; 24]))
    }

    /// A packet of a protocol that has no ports.
    pub(super) fn esp(to: [u8; 4]) -> Self {
        Self::v4(to, ESP, &[0; 24])
    }

    /// An echo request.
    pub(super) fn echo(to: [u8; 4]) -> Self {
        Self::v4(to, ICMP, &icmp([8, 0], [0; 4], &[0; 24]))
    }

    /// A frame of no IP packet.
    pub(super) fn lldp() -> Self {
        Self::of(LLDP, &[0; 46], 12)
    }

    /// "Fragmentation needed" from a router, about a packet from a VIP to a client; the inner TCP header is cut after eight bytes.
    pub(super) fn too_big(vip: [u8; 4], port: u16) -> Self {
        let segment = tcp(&[vip, CLIENT].concat(), port, OTHER_PORT, ACK);
        let inner = ip(vip, CLIENT, TCP).build(&[], &segment);
        let error = icmp([3, 4], [0, 0, 0x05, 0x14], &inner[..28]);
        Self::of(
            IPV4,
            &ip([198, 51, 100, 1], vip, ICMP).build(&[], &error),
            20 + 8 + 16,
        )
    }

    fn v4(to: [u8; 4], protocol: u8, payload: &[u8]) -> Self {
        Self::of(IPV4, &ip(CLIENT, to, protocol).build(&[], payload), 12)
    }

    /// The same frame with a VLAN tag.
    pub(super) fn tagged(self, vlan: u16) -> Self {
        let mut bytes = self.bytes;
        let [high, low] = vlan.to_be_bytes();
        bytes.splice(12..12, [TAG[0], TAG[1], high, low]);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        Self {
            bytes,
            at: self.at + 4,
        }
    }

    /// The same packet in the UDP form, from one node to another.
    pub(super) fn tunnelled(self, from: [u8; 4], to: [u8; 4]) -> Self {
        let outer = Tunnelled {
            to_mac: OWN_MAC,
            from_mac: ROUTER_MAC,
            source: from,
            destination: to,
            source_port: 50_000,
            port: TUNNEL,
            first: [0x13, 0],
            fingerprint: 0,
            tos: 0,
        };
        let packet = outer.build(&self.bytes[..14 + self.total()]);
        Self::of(IPV4, &packet[14..], self.at - 14 + 36)
    }

    /// Bytes that the IPv4 header speaks of.
    fn total(&self) -> usize {
        usize::from(u16::from_be_bytes([self.bytes[16], self.bytes[17]]))
    }

    /// The IPv4 packet in it.
    pub(super) fn ip_packet(&self) -> &[u8] {
        &self.bytes[14..14 + self.total()]
    }

    /// The words that the wrapper brings back.
    pub(super) fn words<const N: usize>(&self) -> [u64; N] {
        let words = self.bytes.as_chunks::<8>().0;
        std::array::from_fn(|i| words.get(i).map_or(0, |w| u64::from_ne_bytes(*w)))
    }

    /// The client's last four bytes as a number.
    pub(super) fn client(&self) -> u32 {
        self.bytes[self.at..]
            .first_chunk()
            .map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }
}

fn ip(source: [u8; 4], destination: [u8; 4], protocol: u8) -> Ip {
    Ip {
        protocol,
        source,
        destination,
        ttl: 64,
        tos: 0,
        fragment: 0x4000,
    }
}

fn ipv6(source: [u8; 16], destination: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next, 64]);
    bytes.extend(source);
    bytes.extend(destination);
    bytes.extend(payload);
    bytes
}

/// A TCP segment between the two addresses in `ends`.
fn tcp(ends: &[u8], source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let (syn, options) = (flags & SYN != 0, &OPTIONS[..]);
    let options = if syn { options } else { &[] };
    let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, u8::from(!syn)]);
    let words = (20 + options.len()) / 4;
    bytes.extend([(words << 4) as u8, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(options);
    let mut summed = ends.to_vec();
    summed.extend([0, TCP]);
    summed.extend((bytes.len() as u16).to_be_bytes());
    summed.extend(&bytes);
    bytes[16..18].copy_from_slice(&checksum(&summed).to_be_bytes());
    bytes
}

/// A UDP packet without a checksum.
fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    bytes.extend((8 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

fn icmp(kind: [u8; 2], rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = [&kind[..], &[0, 0], &rest, payload].concat();
    let sum = checksum(&bytes).to_be_bytes();
    bytes[2..4].copy_from_slice(&sum);
    bytes
}

/// A live frame of the first client for the VIP, to `mac`.
pub(super) fn live(mac: [u8; 6]) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    let frame = Frame::tcp(VIP, CLIENT_PORT, WEB, ACK).bytes;
    bytes.copy_from_slice(&frame[..LENGTH]);
    bytes[..6].copy_from_slice(&mac);
    bytes
}

/// The words of the generator's `FRAME` map: flow, number of flows, frame without checksums, sums to start from, first client.
pub(super) fn template(mac: [u8; 6], flows: u64) -> [u64; 12] {
    let mut bytes = live(mac);
    bytes[24..26].fill(0);
    bytes[50..52].fill(0);
    let mut words = [0; 12];
    words[1] = flows;
    for (word, chunk) in words[2..9].iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*chunk);
    }
    (words[9], words[10]) = sums(&bytes);
    words[11] = u64::from(u32::from_be_bytes(CLIENT));
    words
}

/// Sums of 16-bit words: the IPv4 header, and the TCP header with its pseudo-header.
fn sums(bytes: &[u8; LENGTH]) -> (u64, u64) {
    let sum = |range: &[u8]| {
        let halves = range.as_chunks::<2>().0.iter();
        halves
            .map(|&w| u64::from(u16::from_be_bytes(w)))
            .sum::<u64>()
    };
    let (ip, tcp) = (sum(&bytes[14..34]), sum(&bytes[26..54]));
    (ip, tcp + u64::from(TCP) + 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Internet checksum of a sum (RFC 1071), as the generator makes it.
    fn fold(sum: u64) -> u16 {
        let folded = (sum & 0xffff) + (sum >> 16);
        !(((folded & 0xffff) + (folded >> 16)) as u16)
    }

    #[test]
    fn live_checksums_cancel_out() {
        let bytes = live([2, 0, 0, 0, 0, 1]);
        let (ip, tcp) = sums(&bytes);
        assert_eq!((fold(ip), fold(tcp)), (0, 0));
        assert_eq!(bytes[47], ACK);
    }

    /// As the generator does it: the flow's number in the last 20 bits of the source, added to both sums.
    #[test]
    fn the_template_makes_the_frame_of_every_flow() {
        for flow in [0u64, 1, 9_999, 999_999] {
            let words = template([2, 0, 0, 0, 0, 1], 1_000_000);
            let frame: Vec<u8> = words[2..9].iter().flat_map(|w| w.to_ne_bytes()).collect();
            let mut bytes = [0; LENGTH];
            bytes[..56].copy_from_slice(&frame);
            bytes[26..30].copy_from_slice(&((words[11] | flow) as u32).to_be_bytes());
            let added = (flow >> 16) + (flow & 0xffff);
            bytes[24..26].copy_from_slice(&fold(words[9] + added).to_be_bytes());
            bytes[50..52].copy_from_slice(&fold(words[10] + added).to_be_bytes());
            let (ip, tcp) = sums(&bytes);
            assert_eq!((fold(ip), fold(tcp)), (0, 0), "flow {flow}");
        }
    }

    #[test]
    fn the_client_stands_where_the_wrapper_rewrites_it() {
        let inner = Frame::tcp(VIP, OTHER_PORT, WEB, ACK);
        let v4 = [
            inner.clone(),
            inner.clone().tagged(100),
            inner.tunnelled([203, 0, 113, 2], [203, 0, 113, 1]),
            Frame::too_big(VIP, WEB),
            Frame::udp(VIP, DNS),
            Frame::tcp(VIP, OTHER_PORT, WEB, SYN),
        ];
        for frame in &v4 {
            assert_eq!(frame.client().to_be_bytes(), CLIENT, "{frame:?}");
            // Only 13 words are brought back; what lies behind them is not written by any decision.
            assert!(frame.bytes.len().is_multiple_of(8) && frame.at + 4 <= 104);
        }
        let v6 = Frame::tcp_v6(VIP6, WEB, ACK);
        assert_eq!(v6.bytes[v6.at - 12..v6.at + 4], CLIENT6);
        let words: [u64; 13] = v4[0].words();
        assert_eq!(words[0].to_ne_bytes(), v4[0].bytes[..8]);
        assert_eq!(
            (words[7].to_ne_bytes().as_slice(), words[8]),
            (&v4[0].bytes[56..64], 0)
        );
    }

    #[test]
    fn a_quoted_packet_went_from_the_vip_to_the_client() {
        let frame = Frame::too_big(VIP, WEB);
        assert_eq!(frame.bytes[34..36], [3, 4]);
        assert_eq!(frame.bytes[54..58], VIP);
        assert_eq!(
            frame.bytes[62..66],
            [[0, 80], OTHER_PORT.to_be_bytes()].concat()
        );
        assert_eq!(frame.bytes[18..20], [0, 0]);
    }
}
