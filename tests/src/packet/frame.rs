//! IP packets of every kind, header by header, with their checksums.

use super::checksum;

/// Destination options, and every other number that a test names.
pub mod number {
    /// IPv6 extension: hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 extension: routing.
    pub const ROUTING: u8 = 43;
    /// IPv6 extension: fragment.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 extension: destination options.
    pub const DESTINATION: u8 = 60;
    /// Protocol identifier of a VLAN tag.
    pub const VLAN: u16 = 0x8100;
    /// Protocol identifier of an outer VLAN tag.
    pub const OUTER_VLAN: u16 = 0x88a8;
}

/// Source and destination address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// IPv4.
    V4([u8; 4], [u8; 4]),
    /// IPv6.
    V6([u8; 16], [u8; 16]),
}

/// What IP carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Load {
    /// TCP.
    Tcp {
        /// Source and destination port.
        ports: [u16; 2],
        /// Flags.
        flags: u8,
        /// Sequence and acknowledgment number.
        numbers: [u32; 2],
        /// Options, a multiple of four bytes.
        options: Vec<u8>,
        /// Bytes behind the header.
        data: Vec<u8>,
    },
    /// UDP.
    Udp {
        /// Source and destination port.
        ports: [u16; 2],
        /// Whether it has a checksum.
        summed: bool,
        /// Bytes behind the header.
        data: Vec<u8>,
    },
    /// ICMP, or ICMPv6 over IPv6.
    Icmp {
        /// Type and code.
        kind: [u8; 2],
        /// The second word.
        rest: [u8; 4],
        /// Bytes behind the header.
        data: Vec<u8>,
    },
    /// Anything else, or a part of one of those.
    Raw(u8, Vec<u8>),
}

/// A frame with an IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Destination MAC.
    pub to_mac: [u8; 6],
    /// Source MAC.
    pub from_mac: [u8; 6],
    /// VLAN tags: protocol identifier and control word.
    pub tags: Vec<[u16; 2]>,
    /// Addresses.
    pub ends: Ends,
    /// TTL or hop limit.
    pub hops: u8,
    /// DSCP and ECN.
    pub class: u8,
    /// Flow label of IPv6.
    pub label: u32,
    /// Flags and fragment offset of IPv4.
    pub fragment: u16,
    /// Options of IPv4, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Extension headers of IPv6: number, and what follows the first byte.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// What it carries.
    pub load: Load,
}

impl Frame {
    /// A frame between two MACs, nothing special about it.
    #[must_use]
    pub const fn new(to_mac: [u8; 6], from_mac: [u8; 6], ends: Ends, load: Load) -> Self {
        Self {
            to_mac,
            from_mac,
            tags: Vec::new(),
            ends,
            hops: 64,
            class: 0,
            label: 0,
            fragment: 0x4000,
            options: Vec::new(),
            extensions: Vec::new(),
            load,
        }
    }

    /// The frame with another load.
    #[must_use]
    pub fn with(&self, load: Load) -> Self {
        Self {
            load,
            ..self.clone()
        }
    }

    /// The frame with these VLAN tags.
    #[must_use]
    pub fn tagged(&self, tags: &[[u16; 2]]) -> Self {
        Self {
            tags: tags.to_vec(),
            ..self.clone()
        }
    }

    /// The frame with these extension headers.
    #[must_use]
    pub fn extended(&self, extensions: &[(u8, Vec<u8>)]) -> Self {
        Self {
            extensions: extensions.to_vec(),
            ..self.clone()
        }
    }

    /// The frame a hop later.
    #[must_use]
    pub fn aged(&self) -> Self {
        Self {
            hops: self.hops - 1,
            ..self.clone()
        }
    }

    /// The frame between two other MACs.
    #[must_use]
    pub fn between(&self, to_mac: [u8; 6], from_mac: [u8; 6]) -> Self {
        Self {
            to_mac,
            from_mac,
            ..self.clone()
        }
    }

    /// The bytes, with right lengths and checksums.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = [self.to_mac, self.from_mac].concat();
        for [identifier, control] in &self.tags {
            bytes.extend(identifier.to_be_bytes());
            bytes.extend(control.to_be_bytes());
        }
        bytes.extend(match self.ends {
            Ends::V4(..) => [0x08, 0x00],
            Ends::V6(..) => [0x86, 0xdd],
        });
        bytes.extend(self.packet());
        bytes
    }

    /// The bytes from the IP header on.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let (protocol, payload) = self.payload();
        match self.ends {
            Ends::V4(source, destination) => {
                let header = 20 + self.options.len();
                let mut ip = vec![0x40 | (header / 4) as u8, self.class];
                ip.extend(((header + payload.len()) as u16).to_be_bytes());
                ip.extend([0, 0]);
                ip.extend(self.fragment.to_be_bytes());
                ip.extend([self.hops, protocol, 0, 0]);
                ip.extend([source, destination].concat());
                ip.extend(&self.options);
                let sum = checksum(&ip).to_be_bytes();
                ip[10..12].copy_from_slice(&sum);
                ip.extend(payload);
                ip
            }
            Ends::V6(source, destination) => {
                let mut chain = Vec::new();
                let numbers = self.extensions.iter().map(|(number, _)| *number);
                let mut numbers = numbers.chain([protocol]);
                let first = numbers.next().unwrap_or(protocol);
                for ((_, body), next) in self.extensions.iter().zip(numbers) {
                    chain.push(next);
                    chain.extend(body);
                }
                let word = 6 << 28 | u32::from(self.class) << 20 | self.label;
                let mut ip = word.to_be_bytes().to_vec();
                ip.extend(((chain.len() + payload.len()) as u16).to_be_bytes());
                ip.extend([first, self.hops]);
                ip.extend([source, destination].concat());
                ip.extend(chain);
                ip.extend(payload);
                ip
            }
        }
    }

    /// Number and bytes of what IP carries.
    #[must_use]
    pub fn payload(&self) -> (u8, Vec<u8>) {
        match &self.load {
            Load::Tcp {
                ports,
                flags,
                numbers,
                options,
                data,
            } => {
                let mut tcp = words(ports);
                tcp.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
                let offset = ((20 + options.len()) / 4) as u8;
                tcp.extend([offset << 4, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                tcp.extend(options);
                tcp.extend(data);
                let sum = self.sum(number::TCP, &tcp).to_be_bytes();
                tcp[16..18].copy_from_slice(&sum);
                (number::TCP, tcp)
            }
            Load::Udp {
                ports,
                summed,
                data,
            } => {
                let mut udp = words(ports);
                udp.extend(((8 + data.len()) as u16).to_be_bytes());
                udp.extend([0, 0]);
                udp.extend(data);
                if *summed {
                    // Zero means none: all ones stand for it.
                    let sum = match self.sum(number::UDP, &udp) {
                        0 => 0xffff,
                        sum => sum,
                    };
                    udp[6..8].copy_from_slice(&u16::to_be_bytes(sum));
                }
                (number::UDP, udp)
            }
            Load::Icmp { kind, rest, data } => {
                let mut icmp = [&kind[..], &[0, 0], rest, data].concat();
                let (protocol, sum) = match self.ends {
                    Ends::V4(..) => (number::ICMP, checksum(&icmp)),
                    Ends::V6(..) => (number::ICMPV6, self.sum(number::ICMPV6, &icmp)),
                };
                icmp[2..4].copy_from_slice(&sum.to_be_bytes());
                (protocol, icmp)
            }
            Load::Raw(protocol, bytes) => (*protocol, bytes.clone()),
        }
    }

    /// Checksum over pseudo-header and payload.
    fn sum(&self, protocol: u8, payload: &[u8]) -> u16 {
        let addresses = match self.ends {
            Ends::V4(source, destination) => [source, destination].concat(),
            Ends::V6(source, destination) => [source, destination].concat(),
        };
        checksum(&[&addresses[..], &pseudo(protocol, payload.len()), payload].concat())
    }
}

/// What stands behind the addresses in a pseudo-header; that of IPv4 has the same words, but for zeros.
fn pseudo(protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = (length as u32).to_be_bytes().to_vec();
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

fn words(ports: &[u16; 2]) -> Vec<u8> {
    ports.iter().flat_map(|port| port.to_be_bytes()).collect()
}

/// A fragment header behind its first byte: offset in units of 8 bytes, whether more follow.
#[must_use]
pub fn fragment(offset: u16, more: bool) -> (u8, Vec<u8>) {
    let word = offset << 3 | u16::from(more);
    let [high, low] = word.to_be_bytes();
    (number::FRAGMENT, vec![0, high, low, 0, 0, 0, 7])
}

/// An extension header of options, `8 + 8 × more` bytes of padding.
#[must_use]
pub fn padding(number: u8, more: u8) -> (u8, Vec<u8>) {
    let rest = 6 + 8 * usize::from(more);
    let mut body = vec![more, 1, (rest - 2) as u8];
    body.resize(rest + 1, 0);
    (number, body)
}

/// Says which checksum of a frame is wrong: those of IP, TCP, UDP (a zero one is none), ICMP and ICMPv6, and those of a
/// packet in our tunnel, whose port is given. Fragments have only that of IP.
///
/// # Errors
/// What is wrong, in one word.
pub fn verify(frame: &[u8], tunnel: u16) -> Result<(), &'static str> {
    let mut at = 12;
    while frame.len() > at + 4 && matches!(frame[at..at + 2], [0x81, 0] | [0x88, 0xa8]) {
        at += 4;
    }
    match frame.get(at..at + 2) {
        Some([8, 0] | [0x86, 0xdd]) => verify_packet(&frame[at + 2..], tunnel),
        _ => Ok(()),
    }
}

fn verify_packet(packet: &[u8], tunnel: u16) -> Result<(), &'static str> {
    let length = |at: usize| usize::from(packet[at]) << 8 | usize::from(packet[at + 1]);
    let (addresses, protocol, payload) = if packet[0] >> 4 == 4 {
        let header = usize::from(packet[0] & 15) * 4;
        if checksum(&packet[..header]) != 0 {
            return Err("ip");
        }
        if length(6) & 0x3fff != 0 {
            return Ok(());
        }
        let end = length(2);
        let payload = packet.get(header..end).ok_or("length")?;
        (packet[12..20].to_vec(), packet[9], payload)
    } else {
        let whole = packet.get(40..40 + length(4)).ok_or("length")?;
        let (mut protocol, mut at) = (packet[6], 0);
        while matches!(
            protocol,
            number::HOP_BY_HOP | number::ROUTING | number::DESTINATION | number::FRAGMENT
        ) {
            let (next, more) = (whole[at], usize::from(whole[at + 1]));
            let fragment = protocol == number::FRAGMENT;
            if fragment && (whole[at + 2] | whole[at + 3]) != 0 {
                return Ok(());
            }
            at += if fragment { 8 } else { 8 + 8 * more };
            protocol = next;
        }
        (packet[8..40].to_vec(), protocol, &whole[at..])
    };
    let over =
        |number| checksum(&[&addresses[..], &pseudo(number, payload.len()), payload].concat()) == 0;
    match protocol {
        number::TCP => over(number::TCP).then_some(()).ok_or("tcp"),
        number::UDP if payload[2..4] == tunnel.to_be_bytes() && payload[6..8] == [0, 0] => {
            verify_packet(&payload[16..], tunnel)
        }
        number::UDP if payload[6..8] == [0, 0] => Ok(()),
        number::UDP => over(number::UDP).then_some(()).ok_or("udp"),
        number::ICMP => (checksum(payload) == 0).then_some(()).ok_or("icmp"),
        number::ICMPV6 => over(number::ICMPV6).then_some(()).ok_or("icmpv6"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_is_found_wherever_a_checksum_covers_it() {
        let ends = [
            Ends::V4([192, 0, 2, 1], [192, 0, 2, 2]),
            Ends::V6([0x20; 16], [0x21; 16]),
        ];
        let udp = Load::Udp {
            ports: [1, 2],
            summed: true,
            data: vec![1, 2, 3],
        };
        let icmp = Load::Icmp {
            kind: [8, 0],
            rest: [1; 4],
            data: vec![9; 5],
        };
        for (ends, load) in ends
            .iter()
            .flat_map(|ends| [(*ends, udp.clone()), (*ends, icmp.clone())])
        {
            let bytes = Frame::new([2; 6], [4; 6], ends, load).build();
            assert_eq!(verify(&bytes, 17_410), Ok(()));
            for at in bytes.len() - 3..bytes.len() {
                let mut wrong = bytes.clone();
                wrong[at] ^= 0x10;
                assert!(verify(&wrong, 17_410).is_err(), "byte {at}");
            }
        }
    }
}
