//! Tables and sockets that the packet tests share: one VIP with and one without a listener, four nodes.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gateway_common::abi::{ABI_VERSION, Config, NodeEntry, Row, VipKey, node_flag, vip_flag};
use gateway_common::hash::{flow_v4, row_of};
use gateway_common::host::HostTables;
use gateway_common::packet::mapped;
use gateway_common::steer::{Local, Tuple};
use socket2::{Domain, Protocol, Socket, Type};

use crate::object::INGRESS;
use crate::packet::{ACK, SYN, TcpPacket};

/// A VIP with ports 80 (nobody listens) and [`LISTENING`].
pub const VIP: [u8; 4] = [203, 0, 113, 10];
/// An address of an interface that is a VIP on port 80 only.
pub const SHARED: [u8; 4] = [203, 0, 113, 11];
/// A deleted VIP, port 80.
pub const DELETED: [u8; 4] = [203, 0, 113, 12];
/// A port of [`VIP`] with a listening socket.
pub const LISTENING: u16 = 81;
/// This node.
pub const ME: u16 = 1;
/// A ready node on our link.
pub const ON_LINK: u16 = 2;
/// A ready node behind a router, out of another interface.
pub const ROUTED: u16 = 3;
/// A draining node on our link.
pub const DRAINING: u16 = 4;
/// Interface toward [`ROUTED`].
pub const FAR_INTERFACE: u32 = 9;
/// Key of the flow hash.
pub const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
/// Our membership fingerprint.
pub const FINGERPRINT: u32 = 0xf00d_cafe;
/// Tunnel port.
pub const TUNNEL: u16 = 17_410;

/// Address of a node.
#[must_use]
pub const fn address(node: u16) -> [u8; 4] {
    [192, 0, 2, node as u8]
}

/// MAC of a node, or of the router before it.
#[must_use]
pub const fn mac(node: u16) -> [u8; 6] {
    [2, 0, 0, 0, 1, node as u8]
}

/// MAC of this node's uplink.
pub const OWN_MAC: [u8; 6] = mac(ME);

/// The tables; rows are empty.
#[must_use]
pub fn tables() -> HostTables {
    let config = Config {
        abi_version: ABI_VERSION,
        self_index: u32::from(ME),
        vip_half: 1,
        node_half: 1,
        fingerprint: FINGERPRINT,
        tunnel_port: TUNNEL.to_be_bytes(),
        vip_seed: [11, 12],
        hash_key: KEY,
        tunnel_source: mapped(address(ME)),
        ..Config::default()
    };
    let mut tables = HostTables {
        config,
        ..HostTables::default()
    };
    for (vip, port, flags) in [
        (VIP, 80, 0),
        (VIP, LISTENING, 0),
        (VIP, 0, vip_flag::ANNOUNCE),
        (SHARED, 80, vip_flag::SHARED),
        (SHARED, 0, vip_flag::SHARED | vip_flag::ANNOUNCE),
        (DELETED, 80, vip_flag::DRAINING),
        (DELETED, 0, 0),
    ] {
        let protocol = if port == 0 { 0 } else { 6 };
        assert!(tables.put_vip(VipKey::v4(vip, port.to_be_bytes(), protocol), 0, flags));
    }
    let near = node_flag::LISTED | node_flag::RESOLVED | node_flag::ON_LINK;
    for (node, ifindex, flags) in [
        (ME, INGRESS, near | node_flag::READY | node_flag::SELF),
        (ON_LINK, INGRESS, near | node_flag::READY),
        (
            ROUTED,
            FAR_INTERFACE,
            node_flag::LISTED | node_flag::RESOLVED | node_flag::READY,
        ),
        (DRAINING, INGRESS, near | node_flag::DRAINING),
    ] {
        let (address, mac) = (mapped(address(node)), mac(node));
        tables.put_node(
            node,
            NodeEntry {
                address,
                mac,
                source_mac: OWN_MAC,
                ifindex,
                flags,
                ..NodeEntry::default()
            },
        );
    }
    tables
        .listeners
        .push((mapped(VIP), LISTENING.to_be_bytes()));
    tables
}

/// The flow hash of a packet.
#[must_use]
pub fn hash(packet: &TcpPacket) -> u64 {
    flow_v4(KEY, packet.source, packet.destination, ports(packet), 6)
}

fn ports(packet: &TcpPacket) -> [u8; 4] {
    let [a, b] = packet.source_port.to_be_bytes();
    let [c, d] = packet.destination_port.to_be_bytes();
    [a, b, c, d]
}

/// Sets the row of a packet.
pub fn set_row(tables: &mut HostTables, packet: &TcpPacket, row: Row) {
    tables.rows[row_of(hash(packet)) as usize] = row;
}

/// Addresses and ports of a packet.
#[must_use]
pub fn tuple(packet: &TcpPacket) -> Tuple {
    let word = u32::from_ne_bytes;
    Tuple::v4(
        word(packet.source),
        word(packet.destination),
        word(ports(packet)),
    )
}

/// Real sockets in this thread's network namespace, as [`tables`] describes them.
pub struct Sockets {
    /// A packet of a flow that has a socket.
    pub flow: TcpPacket,
    /// A packet that ends the handshake of a flow by a SYN cookie.
    pub cookie: TcpPacket,
    _listener: TcpListener,
    _ends: [TcpStream; 2],
}

impl Sockets {
    /// Opens them, and describes them in `tables`.
    pub fn open(tables: &mut HostTables) -> Result<Self> {
        let (near, far) = (
            Ipv4Addr::new(203, 0, 113, 200),
            Ipv4Addr::new(203, 0, 113, 201),
        );
        let vip = Ipv4Addr::from(VIP);
        set_up_loopback(&[VIP, near.octets(), far.octets()])?;
        let listener =
            TcpListener::bind(SocketAddrV4::new(vip, LISTENING)).context("listen on the VIP")?;
        let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        client.bind(&SocketAddrV4::new(near, 0).into())?;
        client
            .connect(&SocketAddrV4::new(vip, LISTENING).into())
            .context("connect to the VIP")?;
        let client = TcpStream::from(client);
        let (accepted, peer) = listener.accept()?;
        let to_vip = TcpPacket {
            destination: VIP,
            destination_port: LISTENING,
            ..TcpPacket::default()
        };
        let flow = TcpPacket {
            source: near.octets(),
            source_port: peer.port(),
            ..to_vip.clone()
        };
        let cookie = cookie(&TcpPacket {
            source: far.octets(),
            source_port: 5_555,
            ..to_vip
        })?;
        tables.sockets = vec![(tuple(&flow), Local::Flow), (tuple(&cookie), Local::Cookie)];
        Ok(Self {
            flow,
            cookie,
            _listener: listener,
            _ends: [client, accepted],
        })
    }
}

/// Has the kernel answer a SYN by a cookie, and returns the ACK that brings it back.
fn cookie(of: &TcpPacket) -> Result<TcpPacket> {
    fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2").context("turn SYN cookies on")?;
    let syn = TcpPacket {
        flags: SYN,
        sequence: 1_000,
        acknowledgment: 0,
        ..of.clone()
    };
    let mut raw =
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).context("raw socket")?;
    raw.set_header_included_v4(true)?;
    raw.set_read_timeout(Some(Duration::from_secs(5)))?;
    let to = SocketAddrV4::new(Ipv4Addr::from(of.destination), 0);
    raw.send_to(&syn.build()[14..], &to.into())
        .context("send a SYN")?;
    let mut bytes = [0; 128];
    for _ in 0..16 {
        let length = raw.read(&mut bytes).context("no SYN-ACK")?;
        let to_us = bytes[22..24] == of.source_port.to_be_bytes();
        if length >= 40 && to_us && bytes[33] == SYN | ACK {
            let sequence = u32::from_be_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
            let acknowledgment = sequence.wrapping_add(1);
            return Ok(TcpPacket {
                flags: ACK,
                sequence: 1_001,
                acknowledgment,
                ..of.clone()
            });
        }
    }
    anyhow::bail!("no SYN-ACK among the first 16 packets")
}

/// Brings this namespace's loopback up with these addresses beside its own.
pub fn set_up_loopback(addresses: &[[u8; 4]]) -> Result<()> {
    ip(&["link", "set", "lo", "up"])?;
    addresses.iter().try_for_each(|address| {
        ip(&[
            "addr",
            "add",
            &format!("{}/32", Ipv4Addr::from(*address)),
            "dev",
            "lo",
        ])
    })
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip")
        .args(arguments)
        .status()
        .context("cannot run ip: install iproute2")?;
    ensure!(status.success(), "ip {} failed", arguments.join(" "));
    Ok(())
}
