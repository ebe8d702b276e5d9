//! Telling a link that an address is at this node now: gratuitous ARP, unsolicited neighbour advertisement.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::asking::FrameSocket;

/// All nodes of a link (RFC 4291, 2.7.1), and the MAC of that group (RFC 2464, 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// An ARP request of `address` for itself, from `mac` to everybody.
#[must_use]
pub fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    // EtherType ARP, then Ethernet, IPv4, their lengths, request.
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// A neighbour advertisement of `address` to all nodes, unsolicited, overriding what they knew (RFC 4861, 7.2.6).
#[must_use]
pub fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    const ICMPV6: u8 = 58;
    const OVERRIDE: u8 = 0x20;
    let mut message = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    // The link-layer address of the target.
    message.extend([2, 1]);
    message.extend(mac);
    let length = message.len() as u8;
    let pseudo = [
        &address.octets()[..],
        &ALL_NODES.octets(),
        &[0, 0, 0, length, 0, 0, 0, ICMPV6],
        &message,
    ];
    let sum = checksum(&pseudo.concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ALL_NODES_MAC.to_vec();
    frame.extend(mac);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, length, ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks::<2>().0.iter();
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends what tells the link of interface `ifindex` about `address`.
///
/// # Errors
/// What the kernel said (EPERM without CAP_NET_RAW).
pub fn send(ifindex: u32, mac: [u8; 6], address: IpAddr) -> io::Result<()> {
    transmit(
        ifindex,
        &match address {
            IpAddr::V4(v4) => arp(mac, v4),
            IpAddr::V6(v6) => advertisement(mac, v6),
        },
    )
}

/// Sends a frame of at least 6 bytes, as it is, out of interface `ifindex`.
///
/// # Errors
/// What the kernel said (EPERM without CAP_NET_RAW).
pub fn transmit(ifindex: u32, bytes: &[u8]) -> io::Result<()> {
    FrameSocket::open()?.send(ifindex, bytes)
}

/// The group of those who are asked for an address (RFC 4291, 2.7.1).
#[must_use]
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let low = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_asks_everybody_for_its_own_address() {
        let frame = arp([2, 0, 0, 0, 0, 9], Ipv4Addr::new(10, 9, 0, 1));
        let expected = [
            255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0,
            0, 0, 9, 10, 9, 0, 1, 0, 0, 0, 0, 0, 0, 10, 9, 0, 1,
        ];
        assert_eq!(frame, expected);
    }

    #[test]
    fn the_advertisement_is_whole_and_its_checksum_right() {
        let address: Ipv6Addr = "2001:db8::9".parse().unwrap();
        let frame = advertisement([2, 0, 0, 0, 0, 9], address);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(frame[..6], ALL_NODES_MAC);
        assert_eq!(frame[22..38], address.octets());
        let mut covered = frame[22..54].to_vec();
        covered.extend([0, 0, 0, 32, 0, 0, 0, 58]);
        covered.extend(&frame[54..]);
        assert_eq!(checksum(&covered), 0, "with its checksum the sum is zero");
    }

    #[test]
    fn the_group_has_the_last_three_bytes() {
        let address: Ipv6Addr = "2001:db8::12:3456".parse().unwrap();
        let group: Ipv6Addr = "ff02::1:ff12:3456".parse().unwrap();
        assert_eq!(solicited_node(address), group);
    }
}
