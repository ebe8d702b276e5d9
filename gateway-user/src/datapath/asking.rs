//! Frames that ask whether a MAC rewrite reaches a node: as a forwarded packet for a VIP would look, with the node's MAC.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use gateway_common::checksum;
use gateway_common::packet::{Ipv4, protocol};
use gateway_common::probe::SIZE;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::l4::tables::Reach;

/// Where they come from: a client that nobody is, so that what a network lets through for this node's own addresses
/// alone does not count. Of the ranges for benchmarks (RFC 2544, RFC 5180), which are not routed.
const FROM_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const FROM_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1);

/// A router must not carry them further.
const TTL: u8 = 1;

/// Bytes behind the packet, by which an answer over IPv6 to a question over IPv4 is longer.
const PADDING: usize = 20;

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathQuestion {
    /// The node, which must be on our link.
    pub node: IpAddr,
    /// The VIP.
    pub vip: IpAddr,
    /// UDP port that the answer comes to.
    pub reply_port: u16,
    /// The signed message.
    pub message: [u8; SIZE],
}

/// The frame of a question to a node that is reached so.
#[must_use]
pub fn frame(question: &PathQuestion, reach: &Reach, probe_port: u16) -> Vec<u8> {
    let mut bytes = [reach.mac, reach.source_mac].concat();
    if reach.vlan != 0 {
        bytes.extend([0x81, 0]);
        bytes.extend(reach.vlan.to_be_bytes());
    }
    let length = (8 + SIZE) as u16;
    let mut udp = question.reply_port.to_be_bytes().to_vec();
    udp.extend(probe_port.to_be_bytes());
    udp.extend(length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(question.message);
    match question.vip {
        IpAddr::V4(vip) => {
            let mut ip = Ipv4 {
                version_ihl: 0x45,
                total_length: (20 + length).to_be_bytes(),
                fragment: [0x40, 0],
                ttl: TTL,
                protocol: protocol::UDP,
                source: FROM_V4.octets(),
                destination: vip.octets(),
                ..Ipv4::default()
            };
            ip.checksum = checksum::ipv4(&ip).to_be_bytes();
            bytes.extend([0x08, 0x00]);
            bytes.extend(bytemuck::bytes_of(&ip));
            bytes.extend(udp);
            bytes.resize(bytes.len() + PADDING, 0);
        }
        IpAddr::V6(vip) => {
            let ends = [FROM_V6.octets(), vip.octets()].concat();
            let [high, low] = length.to_be_bytes();
            let pseudo = [0, 0, high, low, 0, 0, 0, protocol::UDP];
            let sum = match super::gratuitous::checksum(&[&ends[..], &pseudo, &udp].concat()) {
                // Zero means none, which IPv6 does not have.
                0 => 0xffff,
                sum => sum,
            };
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, protocol::UDP, TTL]);
            bytes.extend(ends);
            bytes.extend(udp);
        }
    }
    bytes
}

/// A socket that sends frames and receives none.
#[derive(Debug)]
pub struct FrameSocket(OwnedFd);

impl FrameSocket {
    /// Opens it.
    ///
    /// # Errors
    /// What the kernel said (EPERM without CAP_NET_RAW).
    pub fn open() -> io::Result<Self> {
        // Without a protocol nothing is received.
        let socket = socket_with(
            AddressFamily::PACKET,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        Ok(Self(socket))
    }

    /// Sends a frame of at least 6 bytes, as it is, out of interface `ifindex`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn send(&self, ifindex: u32, bytes: &[u8]) -> io::Result<()> {
        let to_mac = bytes
            .first_chunk::<6>()
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: plain integers and an array.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = ifindex.cast_signed();
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(to_mac);
        // SAFETY: `bytes` and `to` live across the call and have the lengths that are given.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                std::ptr::from_ref(&to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use gateway_common::abi::{ABI_VERSION, Config, Counter, NodeEntry, fact, node_flag};
    use gateway_common::host::{HostPacket, HostTables};
    use gateway_common::packet::mapped;
    use gateway_common::probe::{PATH, PATH_ANSWER, Probe};
    use gateway_common::steer::steer;
    use gateway_common::verdict::Action;

    use super::*;
    use crate::l4::abi_address;

    const KEY: [u64; 2] = [5, 6];

    const NEAR: u32 = node_flag::ON_LINK | node_flag::RESOLVED;

    /// Of the asked node, which knows the asking one by this MAC.
    fn tables(own: IpAddr, peer: IpAddr, mac: [u8; 6]) -> HostTables {
        let mut tables = HostTables {
            config: Config {
                abi_version: ABI_VERSION,
                self_index: 1,
                probe_port: 17_411u16.to_be_bytes(),
                probe_key: KEY,
                tunnel_source: abi_address(own),
                ..Config::default()
            },
            ..HostTables::default()
        };
        tables.facts[fact::NAME_HASH as usize] = 11;
        for (index, address, flags) in [(1, own, node_flag::SELF), (2, peer, NEAR)] {
            let entry = NodeEntry {
                address: abi_address(address),
                mac,
                flags: flags | node_flag::LISTED,
                ..NodeEntry::default()
            };
            tables.put_node(index, entry);
        }
        tables
    }

    /// What the asked node makes of the frame, at addresses of this family.
    fn asked(vip: &str, own: &str, peer: &str, vlan: u16) -> Vec<u8> {
        let (own, peer): (IpAddr, IpAddr) = (own.parse().unwrap(), peer.parse().unwrap());
        let question = PathQuestion {
            node: own,
            vip: vip.parse().unwrap(),
            reply_port: 40_000,
            message: bytemuck::cast(
                Probe {
                    kind: PATH,
                    sequence: 9,
                    sender: 12,
                    addressee: 11,
                    subject: abi_address(peer),
                    ..Probe::default()
                }
                .sign(KEY),
            ),
        };
        let reach = Reach {
            mac: [2, 0, 0, 0, 0, 1],
            source_mac: [2, 0, 0, 0, 0, 2],
            vlan,
            ..Reach::default()
        };
        let tables = tables(own, peer, reach.source_mac);
        let mut packet = HostPacket {
            bytes: frame(&question, &reach, 17_411),
            ingress: 1,
            headroom: 0,
        };
        // From a MAC that is no node's: what came so would be taken for a router's.
        let mut strange = packet.clone();
        strange.bytes[11] ^= 1;
        assert_eq!(
            steer(&mut strange, &tables).counter(),
            Counter::ProbeRefused
        );
        assert!(
            packet.bytes.len() >= 60,
            "no shorter than Ethernet wants it"
        );
        let verdict = steer(&mut packet, &tables);
        assert_eq!(verdict.counter(), Counter::PathAnswered, "{vip} {own}");
        assert_eq!(verdict.action(), Action::Transmit);
        packet.bytes
    }

    #[test]
    fn every_frame_is_answered_over_the_version_of_the_nodes() {
        for vip in ["192.0.2.9", "2001:db8::9"] {
            for vlan in [0, 7] {
                let behind = if vlan == 0 { 14 } else { 18 };
                let v4 = asked(vip, "10.0.0.1", "10.0.0.2", vlan);
                assert_eq!(v4[behind - 2..behind], [8, 0]);
                assert_eq!(v4[behind + 16..behind + 20], [10, 0, 0, 2]);
                let v6 = asked(vip, "2001:db8::1", "2001:db8::2", vlan);
                assert_eq!(v6[behind - 2..behind], [0x86, 0xdd]);
                for (bytes, header) in [(v4, 20), (v6, 40)] {
                    let udp = &bytes[behind + header..];
                    assert_eq!(udp[..4], [0x44, 0x03, 0x9c, 0x40]);
                    let answer = Probe::open(&udp[8..], KEY, [0, 0]).unwrap();
                    assert_eq!((answer.kind, answer.sequence), (PATH_ANSWER, 9));
                    assert_eq!((answer.sender, answer.addressee), (11, 12));
                }
            }
        }
        assert_eq!(mapped(FROM_V4.octets()), abi_address(IpAddr::V4(FROM_V4)));
    }
}
