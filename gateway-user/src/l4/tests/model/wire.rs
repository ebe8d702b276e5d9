//! Packets as they are on the wire, and whom a frame is for.

use std::sync::LazyLock;

use gateway_common::checksum;
use gateway_common::encap::{Phase, Tunnel, TunnelHeader};
use gateway_common::hash::{Key, flow_v4, row_of};
use gateway_common::host::HostPacket;
use gateway_common::packet::{Ipv4, Packet, Tcp, mapped};
use gateway_common::steer::Tuple;

/// Rows that flows fall into.
pub(super) const ROWS: u32 = 256;
/// Key of the flow hash; what differs between histories are the names of the nodes.
pub(super) const KEY: Key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
pub(super) const PROBE_KEY: Key = [5, 6];
pub(super) const TUNNEL_PORT: u16 = 17410;
pub(super) const PROBE_PORT: u16 = 17411;
pub(super) const VIP: [u8; 4] = [203, 0, 113, 1];
pub(super) const PORT: [u8; 2] = [0, 80];
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const ROUTER: [u8; 6] = [2, 0, 0, 0, 1, 0];
const IP: usize = 14;

/// Addresses, ports and protocol of a flow, and where it belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) client: [u8; 4],
    pub(super) port: [u8; 2],
    pub(super) protocol: u8,
    pub(super) hash: u64,
    pub(super) row: u32,
}

/// Flows that fall into the first rows: four of TCP to one of UDP.
pub(super) static FLOWS: LazyLock<Vec<Ends>> = LazyLock::new(|| {
    let all = (0_u32..).map(|n| {
        let [_, a, b, c] = n.to_be_bytes();
        let protocol = if n % 5 == 0 { UDP } else { TCP };
        let (client, port) = ([198, 51, a, b], [0x80, c]);
        let hash = flow_v4(
            KEY,
            client,
            VIP,
            [port[0], port[1], PORT[0], PORT[1]],
            protocol,
        );
        Ends {
            client,
            port,
            protocol,
            hash,
            row: row_of(hash),
        }
    });
    all.filter(|flow| flow.row < ROWS).take(1_000).collect()
});

impl Ends {
    /// As sockets are looked up.
    pub(super) fn tuple(&self) -> Tuple {
        let [a, b] = self.port;
        Tuple::v4(
            u32::from_ne_bytes(self.client),
            u32::from_ne_bytes(VIP),
            u32::from_ne_bytes([a, b, PORT[0], PORT[1]]),
        )
    }

    /// A frame of the flow, from the router to a machine.
    pub(super) fn frame(&self, syn: bool, to: u8) -> HostPacket {
        let mut body = vec![self.port[0], self.port[1], PORT[0], PORT[1]];
        if self.protocol == TCP {
            let flags = if syn { Tcp::SYN } else { Tcp::ACK };
            body.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0, 9, 0, 0, 0, 0]);
        } else {
            body.extend([0, 12, 0, 0, 1, 2, 3, 4]);
        }
        frame(ROUTER, mac(to), self.client, VIP, self.protocol, &body)
    }
}

/// MAC of a machine.
pub(super) fn mac(machine: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, machine + 1]
}

/// The next hop toward a machine that is not on the link.
pub(super) fn router() -> [u8; 6] {
    ROUTER
}

/// Address of a machine.
pub(super) fn address(machine: u8) -> [u8; 4] {
    [192, 0, 2, machine + 1]
}

/// The VIP as listening sockets have it.
pub(super) fn listener() -> ([u8; 16], [u8; 2]) {
    (mapped(VIP), PORT)
}

fn frame(
    from_mac: [u8; 6],
    to_mac: [u8; 6],
    source: [u8; 4],
    destination: [u8; 4],
    protocol: u8,
    body: &[u8],
) -> HostPacket {
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        total_length: (20 + body.len() as u16).to_be_bytes(),
        ttl: 64,
        protocol,
        source,
        destination,
        ..bytemuck::Zeroable::zeroed()
    };
    ip.checksum = checksum::ipv4(&ip).to_be_bytes();
    let mut bytes = [to_mac, from_mac].concat();
    bytes.extend([8, 0]);
    bytes.extend(bytemuck::bytes_of(&ip));
    bytes.extend(body);
    HostPacket {
        bytes,
        ingress: 1,
        headroom: 256,
    }
}

/// A probe, from machine to machine.
pub(super) fn probe(from: u8, to: u8, message: &[u8]) -> HostPacket {
    let mut body = vec![0xc0, 0];
    body.extend(PROBE_PORT.to_be_bytes());
    body.extend((8 + message.len() as u16).to_be_bytes());
    body.extend([0, 0]);
    body.extend(message);
    frame(mac(from), mac(to), address(from), address(to), UDP, &body)
}

/// A question by way of a MAC rewrite: a probe for the VIP, from an address that is no node's.
pub(super) fn question(from: u8, to: u8, message: &[u8]) -> HostPacket {
    let mut packet = probe(from, to, message);
    let mut ip = packet.read::<Ipv4>(IP as u32).expect("it has a header");
    (ip.source, ip.destination) = ([198, 18, 0, 1], VIP);
    ip.checksum = [0; 2];
    ip.checksum = checksum::ipv4(&ip).to_be_bytes();
    packet.bytes[IP..IP + 20].copy_from_slice(bytemuck::bytes_of(&ip));
    packet
}

/// The probe in a frame.
pub(super) fn probe_in(packet: &HostPacket) -> &[u8] {
    &packet.bytes[IP + 20 + 8..]
}

/// The machine that gets a frame; one for the router is sent on by it.
pub(super) fn deliver(packet: &mut HostPacket, machines: u8) -> Option<u8> {
    let to = packet.bytes[..6].to_vec();
    if let Some(machine) = (0..machines).find(|m| mac(*m)[..] == to[..]) {
        return Some(machine);
    }
    if to[..] != ROUTER[..] {
        return None;
    }
    let ip = packet.read::<Ipv4>(IP as u32)?;
    let machine = (0..machines).find(|m| address(*m) == ip.destination)?;
    packet.bytes[..6].copy_from_slice(&mac(machine));
    packet.bytes[6..12].copy_from_slice(&ROUTER);
    Some(machine)
}

/// The tunnel header of a frame between machines; none if it was sent on by its MAC alone.
pub(super) fn tunnel(packet: &HostPacket) -> Option<Tunnel> {
    let ip = packet.read::<Ipv4>(IP as u32)?;
    let [port] = packet.words::<1>(IP as u32 + 20)?;
    let [_, _, a, b] = port.to_ne_bytes();
    let ours = ip.protocol == UDP && [a, b] == TUNNEL_PORT.to_be_bytes() && ip.destination != VIP;
    let header = packet.read::<TunnelHeader>(IP as u32 + 28);
    ours.then(|| header.and_then(Tunnel::parse)).flatten()
}

/// What a packet is at a machine: repeated, it goes round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    Client,
    Rewritten,
    Delivery,
    SecondChance,
    Detour,
}

impl Arrival {
    /// Of a frame between machines.
    pub(super) fn of(packet: &HostPacket) -> Self {
        match tunnel(packet).map(|tunnel| tunnel.phase) {
            None => Self::Rewritten,
            Some(Phase::Delivery) => Self::Delivery,
            Some(Phase::SecondChance) => Self::SecondChance,
            Some(Phase::Detour) => Self::Detour,
        }
    }
}
