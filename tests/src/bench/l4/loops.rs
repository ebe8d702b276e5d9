//! Packets through native XDP on veths, in a virtual machine whose clock counts instructions: with the driver's and the stack's
//! share, which test runs leave out.
//!
//! The machine has one processor, so that whatever a packet causes falls into the time until the last one has arrived.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use aya::maps::DevMapHash;
use gateway_common::abi::{Row, SLOTS_PER_GROUP, map};

use super::frames::{VIP, WEB, live, template};
use super::kernel::Kernel;
use super::live::{mac, number};
use super::tables::{OTHER, SELF, Setting, Tables, WEB_GROUP};
use crate::bench::{sandbox, stack};
use crate::leftovers::Ledger;
use crate::netns::Netns;

/// Flows of forwarded packets.
const FLOWS: u64 = 10_000;

/// Packets of the short and of the long run: what both do but once goes with the difference. A live test run ends at a tick of
/// the clock, four million instructions, so the long one is a hundred of them.
const PACKETS: (u32, u32) = (2_000, 202_000);

/// The same of questions over a connection.
const QUESTIONS: (u32, u32) = (200, 2_200);

/// Addresses of the pair whose node has the socket.
const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const NODE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Runs all and tells their instructions.
pub(in crate::bench) fn run(object: &Path, work: &Path) -> Result<()> {
    let mut kernel = Kernel::load(object, work, 1)?;
    let mut tables = Tables::new(&kernel)?;
    forwarded(&mut kernel, &mut tables)?;
    delivered(&mut kernel, &mut tables)
}

/// Sender, veth, node, another veth, owner.
fn forwarded(kernel: &mut Kernel, tables: &mut Tables) -> Result<()> {
    pair("send0", "in0")?;
    pair("out0", "owner0")?;
    kernel.attach("forebay_xdp", "in0")?;
    kernel.attach("live_sink", "owner0")?;
    let (send, out) = (index_of("send0")?, index_of("out0")?);
    let mut devices: DevMapHash<_> = kernel.map_mut(map::DEVICES)?.try_into()?;
    devices.insert(out, out, None, 0)?;
    tables.set_nodes(out)?;
    tables.steer_all(Row::new(
        OTHER,
        false,
        [(SELF, false), (0, false), (0, false)],
    ));
    let to = mac(Path::new("/sys/class/net/in0/address"))?;
    for (name, encapsulate) in [("MAC rewrite", false), ("UDP", true)] {
        tables.set(Setting {
            encapsulate,
            ..Setting::default()
        });
        let mut take = |packets: u32| {
            kernel.set("FRAME", 0, template(to, FLOWS))?;
            let before = kernel.get::<u64>("SINK", 0)?;
            let start = Instant::now();
            kernel.live_run("live_generate", &live(to), send, packets)?;
            let took = start.elapsed();
            let came = kernel.get::<u64>("SINK", 0)? - before;
            ensure!(
                came == u64::from(packets),
                "the run is void: {came} of {packets} packets reached the owner"
            );
            Ok(took)
        };
        let cost = stack::cost(PACKETS, &mut take)?;
        stack::tell(
            &format!("loop: veth to another node over a veth, {name}"),
            cost,
        );
    }
    Ok(())
}

/// Client's socket, veth, node, the node's own socket, and back.
fn delivered(kernel: &mut Kernel, tables: &mut Tables) -> Result<()> {
    let ledger = Ledger::open()?;
    let client = Netns::new(&ledger, "client")?;
    pair("in1", "cl1")?;
    sandbox::ip(&format!("link set cl1 netns {}", client.name()))?;
    client.ip("link set cl1 up")?;
    client.address("cl1", CLIENT, 24)?;
    sandbox::ip(&format!("address add {NODE}/24 dev in1"))?;
    let vip = Ipv4Addr::from(VIP);
    sandbox::ip(&format!("address add {vip}/32 dev lo"))?;
    let near = fs::read_to_string("/sys/class/net/in1/address")?;
    client.ip(&format!("route add {vip} dev cl1"))?;
    client.ip(&format!(
        "neigh replace {vip} lladdr {} dev cl1 nud permanent",
        near.trim()
    ))?;
    client.checksums_in_software("cl1")?;
    kernel.attach("forebay_xdp", "in1")?;
    kernel.attach_lookup()?;
    tables.set(Setting::default());
    tables.steer_all(Row::new(
        SELF,
        false,
        [(OTHER, false), (0, false), (0, false)],
    ));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    kernel.set_socket(u32::from(WEB_GROUP) * SLOTS_PER_GROUP, &listener)?;
    std::thread::spawn(move || answer(&listener));
    let cost = client.run(|| {
        let mut stream =
            TcpStream::connect(SocketAddrV4::new(vip, WEB)).context("cannot connect to the VIP")?;
        stream.set_nodelay(true)?;
        stack::cost(QUESTIONS, &mut |questions| {
            let start = Instant::now();
            for _ in 0..questions {
                ask(&mut stream).context("a connection to the VIP broke")?;
            }
            Ok(start.elapsed())
        })
    })?;
    stack::tell("loop: question to the own socket and answer, TCP", cost);
    Ok(())
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut byte = [7];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)
}

/// Sends each byte back, until the connection ends.
fn answer(listener: &TcpListener) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
    }
}

/// A pair of veths, both up.
fn pair(one: &str, other: &str) -> Result<()> {
    sandbox::ip(&format!(
        "link add {one} numrxqueues 1 numtxqueues 1 type veth peer name {other} numrxqueues 1 numtxqueues 1"
    ))?;
    for name in [one, other] {
        sandbox::ip(&format!("link set {name} up"))?;
    }
    Ok(())
}

fn index_of(interface: &str) -> Result<u32> {
    number(Path::new(&format!("/sys/class/net/{interface}/ifindex")))
}
