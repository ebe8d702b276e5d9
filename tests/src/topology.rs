//! The layout of the demo and of the scenarios.
//!
//! ```text
//! client ── switch ──┬── node1 ──┐
//!  192.0.2.1         ├── node2 ──┼── backends
//!                    └── node3 ──┘    198.51.100.11 to .13 and .21 to .22
//!   front 192.0.2.0/24        back 198.51.100.0/24
//! ```
//!
//! Each box is a namespace; the switch and the back network are bridges. The VIP belongs to no interface: the
//! client's static neighbour entry says which node the switch delivers to.
//!
//! In a virtual machine the first node may have a card of virtio for its uplink, and the switch another one on the same hub.

use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::{Context, Result};
use aya::{
    EbpfLoader,
    programs::{Xdp, XdpMode},
};

use crate::{
    leftovers::Ledger,
    machine,
    netns::{self, Netns},
};

/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Interface of a node toward the switch: the uplink.
pub const UPLINK: &str = "eth0";

/// Addresses of backend-v1, then those of backend-v2.
pub const BACKENDS_V1: [Ipv4Addr; 3] = [back(11), back(12), back(13)];
/// Addresses of backend-v2.
pub const BACKENDS_V2: [Ipv4Addr; 2] = [back(21), back(22)];

const fn back(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, last)
}

/// Cards of the machine: the first node's, and the switch's.
const CARDS: [u8; 2] = [1, 2];

/// A node's place.
#[derive(Clone, Debug)]
pub struct Site {
    /// `node1`, `node2`, …
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its address toward the switch.
    pub address: Ipv4Addr,
    /// Its address toward the backends.
    pub back: Ipv4Addr,
    /// MAC of its uplink.
    pub mac: String,
}

/// All namespaces, connected.
#[derive(Debug)]
pub struct Topology {
    /// The client's namespace.
    pub client: Netns,
    /// The switch: bridge `br0` with a port for each node, named as the node.
    pub switch: Netns,
    /// The backends' namespace.
    pub backends: Netns,
    /// The nodes.
    pub nodes: Vec<Site>,
    /// What the first node's card is to the bus, if it has one.
    pub card: Option<String>,
    /// Keeps the pass programs on the switch's ports.
    _ports: aya::Ebpf,
}

impl Topology {
    /// Makes the namespaces and links of `count` nodes (1 to 9).
    ///
    /// # Errors
    /// The first step that failed.
    pub fn new(ledger: &Ledger, count: u8) -> Result<Self> {
        Self::laid_out(ledger, count, false)
    }

    /// The same where the first node's uplink is a card of this machine.
    ///
    /// # Errors
    /// The first step that failed, and if this is no virtual machine of `cargo xtask vm`.
    pub fn with_card(ledger: &Ledger, count: u8) -> Result<Self> {
        Self::laid_out(ledger, count, true)
    }

    fn laid_out(ledger: &Ledger, count: u8, has_card: bool) -> Result<Self> {
        let client = Netns::new(ledger, "client")?;
        let switch = Netns::new(ledger, "switch")?;
        let backends = Netns::new(ledger, "backends")?;
        switch.bridge("br0")?;
        backends.bridge("br0")?;
        for address in BACKENDS_V1.iter().chain(&BACKENDS_V2) {
            backends.address("br0", *address, 24)?;
        }
        client.veth(UPLINK, "02:00:00:00:00:01", &switch, "client")?;
        switch.ip("link set client master br0")?;
        client.address(UPLINK, CLIENT, 24)?;
        client.checksums_in_software(UPLINK)?;
        let card = has_card.then(|| machine::device_of(&machine::card(CARDS[0])?));
        let card = card.transpose()?;
        let nodes = (1..=count)
            .map(|number| {
                let uplink = has_card && number == 1;
                node(ledger, (&switch, &backends), number, uplink)
            })
            .collect::<Result<Vec<_>>>()?;
        let ports = switch.run(|| pass_everything(&nodes))?;
        Ok(Self {
            client,
            switch,
            backends,
            nodes,
            card,
            _ports: ports,
        })
    }

    /// Makes the switch deliver packets for `vip` to the node with this index, from the client's next packet on.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn deliver_to(&self, index: usize, vip: Ipv4Addr) -> Result<()> {
        let site = self
            .nodes
            .get(index)
            .with_context(|| format!("there is no node {}", index + 1))?;
        self.client.ip(&format!(
            "neigh replace {vip} lladdr {} dev {UPLINK} nud permanent",
            site.mac
        ))
    }
}

impl Site {
    /// Takes the machine's card for the uplink: at the begin, and each time its driver is there again.
    ///
    /// # Errors
    /// If it is not there, or what `ip` said.
    pub fn take_card(&self) -> Result<()> {
        take(CARDS[0], &self.netns, UPLINK)?;
        self.netns.address(UPLINK, self.address, 24)
    }
}

fn take(card: u8, netns: &Netns, name: &str) -> Result<()> {
    let card = machine::card(card)?;
    netns::ip(&format!("link set {card} down"))?;
    let there = netns.name();
    netns::ip(&format!("link set {card} netns {there} name {name}"))?;
    netns.ip(&format!("link set {name} up"))
}

fn node(
    ledger: &Ledger,
    (switch, backends): (&Netns, &Netns),
    number: u8,
    has_card: bool,
) -> Result<Site> {
    let name = format!("node{number}");
    let netns = Netns::new(ledger, &name)?;
    let site = Site {
        address: Ipv4Addr::new(192, 0, 2, 10 + number),
        back: back(100 + number),
        mac: if has_card {
            machine::mac(CARDS[0])
        } else {
            format!("02:00:00:00:01:0{number}")
        },
        name,
        netns,
    };
    let netns = &site.netns;
    if has_card {
        take(CARDS[1], switch, &site.name)?;
        site.take_card()?;
    } else {
        netns.veth(UPLINK, &site.mac, switch, &site.name)?;
        netns.address(UPLINK, site.address, 24)?;
        netns.checksums_in_software(UPLINK)?;
    }
    switch.ip(&format!("link set {} master br0", site.name))?;
    netns.veth(
        "eth1",
        &format!("02:00:00:00:02:0{number}"),
        backends,
        &site.name,
    )?;
    backends.ip(&format!("link set {} master br0", site.name))?;
    netns.address("eth1", site.back, 24)?;
    Ok(site)
}

/// A packet that XDP sends out of a veth arrives only if the peer has an XDP program too.
fn pass_everything(nodes: &[Site]) -> Result<aya::Ebpf> {
    let object = object();
    let mut loaded = EbpfLoader::new().load_file(&object).with_context(|| {
        format!(
            "cannot load {}: run `cargo xtask build-ebpf`",
            object.display()
        )
    })?;
    let program = loaded
        .program_mut("forebay_pass")
        .context("the object has no program forebay_pass")?;
    let program: &mut Xdp = program
        .try_into()
        .context("forebay_pass is no XDP program")?;
    program.load().context("the kernel refuses forebay_pass")?;
    for node in nodes {
        program
            .attach(&node.name, XdpMode::Driver)
            .with_context(|| {
                format!(
                    "cannot attach forebay_pass to the switch's port {}",
                    node.name
                )
            })?;
    }
    Ok(loaded)
}

/// The kernel object: `FOREBAY_EBPF_OBJECT`, else where `cargo xtask build-ebpf` puts it.
#[must_use]
pub fn object() -> PathBuf {
    std::env::var_os("FOREBAY_EBPF_OBJECT").map_or_else(
        || crate::checkout().join("target/ebpf/forebay.o"),
        PathBuf::from,
    )
}
