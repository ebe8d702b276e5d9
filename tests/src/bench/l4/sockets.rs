//! Real sockets for the paths that look sockets up: 10,000 connections to a VIP, and a listener whose SYN queue is full.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use gateway_common::abi::SLOTS_PER_GROUP;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use super::frames::{CLIENT, CLIENT_PORT, FLOODED, Frame, SYN, VIP, WEB};
use super::kernel::Kernel;
use super::tables::{FLOODED_GROUP, WEB_GROUP};
use crate::bench::sandbox;

/// Connections to the VIP.
pub(super) const CONNECTIONS: u32 = 10_000;

/// Room in the queue of the other listener. Its connections stay there: they are established, and take no descriptor.
const QUEUE: i32 = 16_384;

/// Room in the queue of the listener that is flooded.
const BACKLOG: i32 = 128;

/// Clients that never answer: 198.18.0.0/15 leads nowhere.
const FLOODERS: u32 = 0xc612_0000;

/// The sockets; they live as long as the test runs.
pub(super) struct Sockets {
    _connections: Vec<Socket>,
    _listeners: [Socket; 2],
    raw: Socket,
}

impl Sockets {
    /// Opens them in this thread's network namespace, through the socket lookup program, which it attaches.
    pub(super) fn open(kernel: &mut Kernel) -> Result<Self> {
        let vip = Ipv4Addr::from(VIP);
        let clients = Ipv4Addr::from(CLIENT);
        sandbox::ip(&format!("address add {vip}/32 dev lo"))?;
        sandbox::ip(&format!("route add local {clients}/12 dev lo"))?;
        sandbox::ip("route add 198.18.0.0/15 dev lo")?;
        allow_descriptors(u64::from(CONNECTIONS) + 512)?;
        fs::write("/proc/sys/net/core/somaxconn", QUEUE.to_string())
            .context("cannot allow long queues of connections")?;
        let web = listener(QUEUE)?;
        let flooded = listener(BACKLOG)?;
        kernel.set_socket(u32::from(WEB_GROUP) * SLOTS_PER_GROUP, &web)?;
        kernel.set_socket(u32::from(FLOODED_GROUP) * SLOTS_PER_GROUP, &flooded)?;
        kernel.attach_lookup()?;
        let connections = (0..CONNECTIONS).map(|flow| connect(u32::from(clients) | flow));
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))
            .context("cannot open a raw socket")?;
        raw.set_header_included_v4(true)?;
        Ok(Self {
            _connections: connections.collect::<Result<_>>()?,
            _listeners: [web, flooded],
            raw,
        })
    }

    /// Sends SYNs that nobody follows up, more than the queue holds.
    pub(super) fn fill_queue(&self) -> Result<()> {
        let to = SocketAddrV4::new(Ipv4Addr::from(VIP), 0).into();
        for client in 0..2 * BACKLOG as u32 {
            let source = (FLOODERS + client).to_be_bytes();
            let frame = Frame::tcp_from(source, VIP, CLIENT_PORT, FLOODED, SYN);
            self.raw
                .send_to(frame.ip_packet(), &to)
                .context("cannot send a SYN")?;
        }
        Ok(())
    }

    /// Closes them; addresses and routes go too, since the live runs want neither.
    pub(super) fn close(self) -> Result<()> {
        drop(self);
        let (vip, clients) = (Ipv4Addr::from(VIP), Ipv4Addr::from(CLIENT));
        sandbox::ip(&format!("address del {vip}/32 dev lo"))?;
        sandbox::ip(&format!("route del local {clients}/12 dev lo"))?;
        sandbox::ip("route del 198.18.0.0/15 dev lo")
    }
}

/// As the proxy listens: on loopback, at a port of no meaning.
fn listener(backlog: i32) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into())?;
    socket.listen(backlog).context("cannot listen")?;
    Ok(socket)
}

fn connect(client: u32) -> Result<Socket> {
    let (from, vip) = (Ipv4Addr::from(client), Ipv4Addr::from(VIP));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket
        .bind(&SocketAddrV4::new(from, CLIENT_PORT).into())
        .with_context(|| format!("cannot bind to {from}"))?;
    socket
        .connect(&SocketAddrV4::new(vip, WEB).into())
        .with_context(|| format!("cannot connect from {from} to the VIP"))?;
    Ok(socket)
}

fn allow_descriptors(wanted: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum.map(|maximum| maximum.max(wanted)),
    };
    setrlimit(Resource::Nofile, raised)
        .with_context(|| format!("cannot open {wanted} descriptors: raise `ulimit -n`"))
}
