//! Tables and sockets that the packet tests share: VIPs of every kind, nodes of every kind.

mod connections;
mod cookies;
mod probes;

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gateway_common::abi::{
    ABI_VERSION, Config, MAX_NODES, NodeEntry, NodeIndex, Row, SLOTS_PER_GROUP, SOURCE_ALLOWED,
    SOURCE_DENIED, SourceKey, VipKey, mac_word, node_flag, vip_flag,
};
use gateway_common::hash::{flow_v4, flow_v6, row_of};
use gateway_common::host::HostTables;
use gateway_common::packet::mapped;
use gateway_common::steer::{Local, Tuple};

use self::connections::{connection, ended};
use self::cookies::{cookie, cookie6, tcp6};
use self::probes::say;
pub use self::probes::{FOREIGN, OWN_NAME, PROBE_KEY, PROBE_KEY_PREVIOUS, PROBES, ROUNDS};
use crate::netns::wait_local;
use crate::object::{INGRESS, Object};
use crate::packet::{ACK, Ends, Frame, TcpPacket};

/// A VIP with ports 80 (nobody listens) and [`LISTENING`].
pub const VIP: [u8; 4] = [203, 0, 113, 10];
/// An address of an interface that is a VIP on port 80 only.
pub const SHARED: [u8; 4] = [203, 0, 113, 11];
/// A deleted VIP, port 80.
pub const DELETED: [u8; 4] = [203, 0, 113, 12];
/// [`VIP`] of IPv6.
pub const VIP6: [u8; 16] = six(0x10);
/// [`SHARED`] of IPv6.
pub const SHARED6: [u8; 16] = six(0x11);
/// A VIP whose port 443 of UDP is hashed by addresses alone.
pub const FLAT: [u8; 4] = [203, 0, 113, 13];
/// [`FLAT`] of IPv6.
pub const FLAT6: [u8; 16] = six(0x13);
/// A VIP that each node serves by itself, port 80.
pub const HERE: [u8; 4] = [203, 0, 113, 14];
/// A VIP with lists of sources: ports 80 (some are refused), 53 and 443 of UDP (only some are not; 443 hashed by addresses).
pub const LISTED: [u8; 4] = [203, 0, 113, 15];
/// [`LISTED`] of IPv6.
pub const LISTED6: [u8; 16] = six(0x15);
/// The list of refused sources.
const REFUSED: u16 = 3;
/// The list of admitted sources.
const ADMITTED: u16 = 4;
/// A port of UDP of [`VIP`] and [`VIP6`].
pub const DNS: u16 = 53;
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
/// A ready node on our link, in [`VLAN`].
pub const TAGGED: u16 = 5;
/// A ready node on our link, whose packets have at most [`NARROW_MTU`] bytes.
pub const NARROW: u16 = 6;
/// VLAN of [`TAGGED`].
pub const VLAN: u16 = 7;
/// MTU toward [`NARROW`].
pub const NARROW_MTU: u16 = 1_400;
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

/// Address of a node where they have IPv6 ([`over_v6`]).
#[must_use]
pub const fn address6(node: u16) -> [u8; 16] {
    [
        0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, node as u8,
    ]
}

/// An address of the VIPs' prefix.
#[must_use]
pub const fn six(last: u8) -> [u8; 16] {
    [0x20, 1, 0xd, 0xb8, 1, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// MAC of a node, or of the router before it.
#[must_use]
pub const fn mac(node: u16) -> [u8; 6] {
    [2, 0, 0, 0, 1, node as u8]
}

/// MAC of another interface of this node on the same link.
pub const SECOND_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
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
        probe_port: PROBES.to_be_bytes(),
        probe_key: PROBE_KEY,
        probe_key_previous: PROBE_KEY_PREVIOUS,
        vip_seed: [11, 12],
        hash_key: KEY,
        tunnel_source: mapped(address(ME)),
        own_macs: [mac_word(OWN_MAC), 0, mac_word(SECOND_MAC), 0],
        vlans: [VLAN, 0, 9, 0],
        ..Config::default()
    };
    let mut tables = HostTables {
        config,
        ..HostTables::default()
    };
    say(&mut tables);
    put_vips(&mut tables);
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
        (TAGGED, INGRESS, near | node_flag::READY),
        (NARROW, INGRESS, near | node_flag::READY),
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
                vlan: if node == TAGGED { VLAN } else { 0 },
                mtu: if node == NARROW { NARROW_MTU } else { 0 },
                ..NodeEntry::default()
            },
        );
    }
    for vip in [mapped(VIP), VIP6] {
        tables.listeners.push((vip, LISTENING.to_be_bytes()));
    }
    tables
}

fn put_vips(tables: &mut HostTables) {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let flat = vip_flag::BY_ADDRESSES;
    let announced = vip_flag::ANNOUNCE;
    let shared = vip_flag::SHARED;
    for (vips, port, protocol, flags, sources) in [
        ([mapped(VIP), VIP6], 80, TCP, 0, 0),
        ([mapped(VIP), VIP6], LISTENING, TCP, 0, 0),
        ([mapped(VIP), VIP6], DNS, UDP, 0, 0),
        ([mapped(VIP), VIP6], 0, 0, announced, 0),
        ([mapped(SHARED), SHARED6], 80, TCP, shared, 0),
        ([mapped(SHARED), SHARED6], 0, 0, shared | announced, 0),
        ([mapped(DELETED), six(0x12)], 80, TCP, vip_flag::DRAINING, 0),
        ([mapped(DELETED), six(0x12)], 0, 0, 0, 0),
        ([mapped(FLAT), FLAT6], 443, UDP, flat, 0),
        ([mapped(FLAT), FLAT6], 0, 0, flat, 0),
        ([mapped(HERE), six(0x14)], 80, TCP, vip_flag::LOCAL_ONLY, 0),
        ([mapped(HERE), six(0x14)], 0, 0, 0, 0),
        ([mapped(LISTED), LISTED6], 80, TCP, 0, REFUSED),
        (
            [mapped(LISTED), LISTED6],
            DNS,
            UDP,
            vip_flag::ALLOW_LIST,
            ADMITTED,
        ),
        (
            [mapped(LISTED), LISTED6],
            443,
            UDP,
            vip_flag::ALLOW_LIST | flat,
            ADMITTED,
        ),
        (
            [mapped(LISTED), LISTED6],
            0,
            0,
            vip_flag::ALLOW_LIST | flat,
            ADMITTED,
        ),
    ] {
        for address in vips {
            let key = VipKey {
                address,
                port: u16::to_be_bytes(port),
                protocol,
                pad: 0,
            };
            assert!(tables.put_vip(key, 0, flags));
            for vip in tables.vips.iter_mut().filter(|vip| vip.key == key) {
                vip.sources = sources;
            }
        }
    }
    tables.sources = sources();
}

/// The two lists: prefixes of both versions within each other.
fn sources() -> Vec<(u32, SourceKey, u32)> {
    let four = |a, b, c, d| mapped([a, b, c, d]);
    [
        (REFUSED, 96 + 24, four(198, 51, 100, 0), SOURCE_DENIED),
        (REFUSED, 96 + 32, four(198, 51, 100, 7), SOURCE_ALLOWED),
        (REFUSED, 48, six(0), SOURCE_DENIED),
        (REFUSED, 128, six(0x77), SOURCE_ALLOWED),
        (ADMITTED, 96 + 24, four(198, 51, 100, 0), SOURCE_ALLOWED),
        (ADMITTED, 96 + 25, four(198, 51, 100, 128), SOURCE_DENIED),
        (ADMITTED, 96 + 32, four(198, 51, 100, 200), SOURCE_ALLOWED),
        (ADMITTED, 48, six(0), SOURCE_ALLOWED),
        (ADMITTED, 124, six(0x80), SOURCE_DENIED),
    ]
    .map(|(list, length, prefix, value)| {
        let bits = (1u128 << (128 - length)) - 1;
        let prefix = (u128::from_be_bytes(prefix) & !bits).to_be_bytes();
        (
            SourceKey::LIST_BITS + length,
            SourceKey::new(list, prefix),
            value,
        )
    })
    .to_vec()
}

/// Changes a node of the live half.
pub fn change_node(tables: &mut HostTables, node: NodeIndex, change: impl FnOnce(&mut NodeEntry)) {
    let half = tables.config.node_half & 1;
    let mut entry = tables.nodes[(half * MAX_NODES) as usize + usize::from(node)];
    change(&mut entry);
    tables.put_node(node, entry);
}

/// Gives all nodes addresses of IPv6 instead of IPv4.
pub fn over_v6(tables: &mut HostTables) {
    for node in [ME, ON_LINK, ROUTED, DRAINING, TAGGED, NARROW] {
        change_node(tables, node, |entry| entry.address = address6(node));
    }
    tables.config.tunnel_source = address6(ME);
}

/// A packet whose flow has a row.
pub trait Steered {
    /// Its flow hash.
    fn hash(&self) -> u64;
}

impl Steered for TcpPacket {
    fn hash(&self) -> u64 {
        hash(self)
    }
}

impl Steered for Frame {
    /// Without ports where the VIP is hashed so.
    fn hash(&self) -> u64 {
        let (protocol, payload) = self.payload();
        let mut ports = [payload[0], payload[1], payload[2], payload[3]];
        if protocol == 17 && ports[2..] != DNS.to_be_bytes() {
            ports = [0; 4];
        }
        match self.ends {
            Ends::V4(source, destination) => flow_v4(KEY, source, destination, ports, protocol),
            Ends::V6(source, destination) => flow_v6(KEY, source, destination, ports, protocol),
        }
    }
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
pub fn set_row(tables: &mut HostTables, packet: &impl Steered, row: Row) {
    tables.rows[row_of(packet.hash()) as usize] = row;
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

/// Group of VIPs for which the proxy listens after [`listen_for_group`].
pub const TAKEN: u16 = 5;

/// Gives [`TAKEN`] a listening socket, on an address and a port that no packet is for: nobody finds it by looking up
/// packets. It listens as long as it lives.
pub fn listen_for_group(tables: &mut HostTables, object: &mut Object) -> Result<TcpListener> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("the proxy's socket")?;
    // Not the first slot: an empty one is skipped.
    let slot = (u32::from(TAKEN) + 1) * SLOTS_PER_GROUP - 1;
    object.set_socket(slot, &listener)?;
    tables.groups.push(TAKEN);
    Ok(listener)
}

/// Lets the VIPs' port 80 be served by [`TAKEN`].
pub fn served_by_group(tables: &mut HostTables) {
    for vip in tables.vips.iter_mut() {
        if vip.key.port == 80_u16.to_be_bytes() {
            vip.group = TAKEN;
        }
    }
}

/// Real sockets in this thread's network namespace, as [`tables`] describes them.
pub struct Sockets {
    /// A packet of a flow that has a socket.
    pub flow: TcpPacket,
    /// A packet that ends the handshake of a flow by a SYN cookie.
    pub cookie: TcpPacket,
    /// [`Self::flow`] over IPv6.
    pub flow6: Frame,
    /// [`Self::cookie`] over IPv6.
    pub cookie6: Frame,
    /// A segment of a connection over IPv4 that was ended here and waits for its last packets.
    pub waiting: TcpPacket,
    made: Instant,
    _listeners: [TcpListener; 2],
    _ends: [TcpStream; 4],
}

/// Where the flow that ends its handshake by a cookie comes from, over IPv6.
const FAR6: [u8; 16] = six(201);
/// Its port.
const BY_COOKIE: u16 = 5_555;
/// Age of a cookie that is not made anew: the kernel takes one for one to two minutes, as its clock stands.
const FRESH: Duration = Duration::from_secs(20);

impl Sockets {
    /// Opens them, and describes them in `tables`.
    pub fn open(tables: &mut HostTables) -> Result<Self> {
        let (near, far) = ([203, 0, 113, 200], [203, 0, 113, 201]);
        let (near6, far6) = (six(200), FAR6);
        set_up_loopback(&[VIP, near, far])?;
        for address in [VIP6, near6, far6] {
            let address = format!("{}/128", Ipv6Addr::from(address));
            ip(&["addr", "add", &address, "dev", "lo", "nodad"])?;
        }
        wait_local([VIP6, near6, far6].map(Ipv6Addr::from))?;
        let (listener, [client, accepted], port) = connection(VIP.into(), near.into())?;
        let (listener6, [client6, accepted6], port6) = connection(VIP6.into(), near6.into())?;
        let to_vip = TcpPacket {
            destination: VIP,
            destination_port: LISTENING,
            ..TcpPacket::default()
        };
        let flow = TcpPacket {
            source: near,
            source_port: port,
            ..to_vip.clone()
        };
        let waiting = TcpPacket {
            source_port: ended(&listener, near.into())?,
            ..flow.clone()
        };
        cookies::always()?;
        let cookie = cookie(&TcpPacket {
            source: far,
            source_port: BY_COOKIE,
            ..to_vip
        })?;
        let flow6 = tcp6(near6, port6, ACK, [1, 1]);
        let cookie6 = cookie6(far6, BY_COOKIE)?;
        tables.sockets = vec![
            (tuple(&flow), Local::Flow),
            (tuple(&waiting), Local::TimeWait),
            (tuple(&cookie), Local::Cookie),
            (tuple6(near6, port6), Local::Flow),
            (tuple6(far6, BY_COOKIE), Local::Cookie),
        ];
        Ok(Self {
            flow,
            cookie,
            flow6,
            cookie6,
            waiting,
            made: Instant::now(),
            _listeners: [listener, listener6],
            _ends: [client, accepted, client6, accepted6],
        })
    }

    /// Has the kernel make the cookies anew if it may soon take the old ones no more.
    pub fn refresh(&mut self) -> Result<()> {
        if self.made.elapsed() < FRESH {
            return Ok(());
        }
        self.made = Instant::now();
        (self.cookie, self.cookie6) = cookies::meanwhile(|| {
            let cookie6 = cookie6(FAR6, BY_COOKIE)?;
            Ok((cookie(&self.cookie)?, cookie6))
        })?;
        Ok(())
    }
}

fn tuple6(source: [u8; 16], port: u16) -> Tuple {
    let ([a, b], [c, d]) = (port.to_be_bytes(), LISTENING.to_be_bytes());
    let (source, vip) = (bytemuck::cast(source), bytemuck::cast(VIP6));
    Tuple::v6(source, vip, u32::from_ne_bytes([a, b, c, d]))
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
