//! What a `run` may ask for: every rule of the agent in one place, without I/O.
//!
//! The agent trusts the administrator's flags, the kernel and its own earlier checks, and nothing that comes over the
//! socket. A rule that refuses says which address, port or node it refuses and what would change that.

mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use gateway_common::abi::{
    ABI_VERSION, Config, GROUPS, MAX_NODES, NodeEntry, NodeIndex, SLOTS_PER_GROUP, SOURCE_DENIED,
    SourceKey, VIP_SLOTS, VipEntry, node_flag, vip_flag,
};

use super::message::{Claim, Refusal, listed};
use crate::allocate::PoolRange;
use crate::datapath::Attachment;
use crate::l4::address_of;
use crate::l4::diff::{Image, MapOp};
use crate::l4::tables::{Reach, VipHalf};
use crate::l4::vips::MAX_VIPS;
use crate::snapshot::Transport;

const TCP: u8 = Transport::Tcp.number();
const UDP: u8 = Transport::Udp.number();

/// Ports that a VIP on an address of the node itself never takes: they belong to the node, and `sk_lookup` would take
/// them away from whoever listens there.
const NODE_PORTS: [RangeInclusive<u16>; 8] = [
    // sshd
    22..=22,
    // BGP
    179..=179,
    // etcd
    2379..=2380,
    // API server
    6443..=6443,
    // kubelet, scheduler, controller manager, kube-proxy
    10_248..=10_259,
    // forebay's own endpoints
    15_000..=15_000,
    15_020..=15_021,
    // tunnel and probes, whatever --tunnel-port says
    17_410..=17_411,
];

/// Which addresses may be VIPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// `--vips`, and the pools of `--config`.
    pub ranges: Vec<PoolRange>,
    /// Static addresses of the Gateways of `--config`.
    pub addresses: BTreeSet<IpAddr>,
}

impl Allowed {
    /// Whether the address is among them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.ranges.iter().any(|range| range.contains(address))
    }
}

/// The rules.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Which addresses may be VIPs.
    pub allowed: Allowed,
    /// What to do that another one may be, as a part of a sentence.
    pub remedy: &'static str,
    /// `--reserved-port`: more ports that VIPs on the node's own addresses never take.
    pub reserved: BTreeSet<u16>,
    /// `--tunnel-port`.
    pub tunnel_port: u16,
    /// `--probe-port`.
    pub probe_port: u16,
    /// Ports that the kernel gives to sockets which ask for none.
    pub ephemeral: RangeInclusive<u16>,
}

/// What the agent knows of the node by itself.
#[derive(Debug, Default)]
pub struct Facts {
    /// Addresses on interfaces.
    pub configured: BTreeSet<IpAddr>,
    /// VLANs of the uplinks.
    pub vlans: BTreeSet<u16>,
    /// Uplinks.
    pub attachments: Vec<Attachment>,
    /// What it said last about how nodes are reached.
    pub reach: BTreeMap<IpAddr, Reach>,
    image: Image,
    others: BTreeSet<IpAddr>,
    vips: BTreeSet<IpAddr>,
}

impl Facts {
    /// Takes what the tables say; rows are not kept.
    pub fn adopt(&mut self, image: Image) {
        self.image = image;
        self.image.rows = Box::default();
        self.index();
    }

    /// What the tables say.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Takes note of an operation that was carried out.
    pub fn applied(&mut self, op: &MapOp) {
        self.image.apply(op);
        self.index();
    }

    fn index(&mut self) {
        self.others = self.image.others().collect();
        let vips = self.image.vips.keys();
        self.vips = vips.map(|key| address_of(key.address)).collect();
    }
}

/// A listening socket as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// What it is bound to.
    pub address: SocketAddr,
    /// Whether it belongs to the agent's network namespace.
    pub own_namespace: bool,
}

impl Policy {
    /// Whether an address may be a VIP.
    ///
    /// # Errors
    /// Why not.
    pub fn address(&self, address: IpAddr) -> Result<(), Refusal> {
        if let Some(kind) = special(address) {
            return Err(Refusal::denied(format!(
                "{address} cannot be a VIP: it is {kind}"
            )));
        }
        if self.allowed.contains(address) {
            return Ok(());
        }
        Err(Refusal::denied(format!(
            "{address} is not an address that the agent gives out: {}",
            self.remedy
        )))
    }

    /// Whether prefixes are of the trie's layout.
    ///
    /// # Errors
    /// Why not.
    pub fn sources(&self, prefixes: &[(u32, [u8; 20], Option<u32>)]) -> Result<(), Refusal> {
        let whole = 8 * size_of::<SourceKey>() as u32;
        let fits = |(bits, _, says): &(u32, [u8; 20], Option<u32>)| {
            (SourceKey::LIST_BITS..=whole).contains(bits)
                && says.is_none_or(|says| says <= SOURCE_DENIED)
        };
        if !prefixes.iter().all(fits) {
            return Err(Refusal::malformed(
                "a source prefix is none of this forebay's layout: run the agent and `forebay run` from the same version",
            ));
        }
        Ok(())
    }

    /// Whether a VIP may be served.
    ///
    /// # Errors
    /// Why not.
    pub fn claim(&self, claim: Claim, facts: &Facts) -> Result<(), Refusal> {
        let (address, port, protocol) = claim;
        self.address(address)?;
        if facts.others.contains(&address) {
            return Err(Refusal::denied(format!(
                "{address} cannot be a VIP here: it is the address of another node"
            )));
        }
        if protocol == UDP && (port == self.tunnel_port || port == self.probe_port) {
            return Err(Refusal::denied(format!(
                "UDP port {port} of {address} cannot be served: nodes talk to each other there (--tunnel-port, --probe-port)"
            )));
        }
        let taken =
            self.reserved.contains(&port) || NODE_PORTS.iter().any(|ports| ports.contains(&port));
        if taken && facts.configured.contains(&address) {
            return Err(Refusal::denied(format!(
                "port {port} of {address} cannot be served: the address is the node's own and the port belongs to the node; use another address or port"
            )));
        }
        Ok(())
    }

    /// A VIP table.
    ///
    /// # Errors
    /// The first entry that is not right.
    pub fn vips(&self, half: &VipHalf, facts: &Facts) -> Result<(), Refusal> {
        if half.slots.len() > MAX_VIPS {
            return Err(Refusal::malformed(format!(
                "a VIP table has at most {MAX_VIPS} entries"
            )));
        }
        let mut before = None;
        for (slot, entry) in &half.slots {
            if before.replace(*slot).is_some_and(|before| before >= *slot) || *slot >= VIP_SLOTS {
                return Err(Refusal::malformed(
                    "the slots of a VIP table do not rise, or lie beyond its end",
                ));
            }
            self.vip(entry, facts)?;
        }
        Ok(())
    }

    fn vip(&self, entry: &VipEntry, facts: &Facts) -> Result<(), Refusal> {
        let address = address_of(entry.key.address);
        let (port, protocol) = (u16::from_be_bytes(entry.key.port), entry.key.protocol);
        let whole = protocol == 0 && port == 0;
        let one_port = matches!(protocol, TCP | UDP) && port != 0;
        if entry.flags & vip_flag::USED == 0
            || entry.key.pad != 0
            || !(whole || one_port)
            || u32::from(entry.group) >= GROUPS
            || u32::from(entry.number) >= VIP_SLOTS
        {
            return Err(Refusal::malformed(format!(
                "the VIP entry of {address} is not well-formed"
            )));
        }
        self.claim((address, port, protocol), facts)?;
        if facts.configured.contains(&address)
            && (entry.flags & vip_flag::SHARED == 0 || entry.flags & vip_flag::ANNOUNCE != 0)
        {
            return Err(Refusal::denied(format!(
                "{address} is configured on an interface of this node: it can only be served as shared, without ARP answers"
            )));
        }
        Ok(())
    }

    /// The set of addresses that are to be local.
    ///
    /// # Errors
    /// The first address that must not be.
    pub fn routes(
        &self,
        addresses: &BTreeSet<IpAddr>,
        configured: &BTreeSet<IpAddr>,
    ) -> Result<(), Refusal> {
        if addresses.len() > MAX_VIPS {
            return Err(Refusal::malformed(format!(
                "there are at most {MAX_VIPS} local routes"
            )));
        }
        for address in addresses {
            self.address(*address)?;
            if configured.contains(address) {
                return Err(Refusal::denied(format!(
                    "{address} is configured on an interface of this node: it needs no route"
                )));
            }
        }
        Ok(())
    }

    /// An announcement: only of an address that the VIP table says this node speaks for.
    ///
    /// # Errors
    /// Why not.
    pub fn announce(&self, address: IpAddr, facts: &Facts) -> Result<(), Refusal> {
        self.address(address)?;
        let entry = facts.image.vips.get(&crate::l4::vips::address_key(address));
        let speaks = entry.is_some_and(|entry| entry.flags & vip_flag::ANNOUNCE != 0);
        if speaks && !facts.configured.contains(&address) {
            return Ok(());
        }
        Err(Refusal::denied(format!(
            "{address} is not announced: the VIP table does not say that this node answers for it"
        )))
    }

    /// A node table.
    ///
    /// # Errors
    /// The first node that is not right.
    pub fn nodes(&self, nodes: &[NodeEntry], facts: &Facts) -> Result<(), Refusal> {
        for (index, entry) in listed(nodes) {
            let was = facts.image.nodes.get(index);
            if index == 0 {
                return Err(Refusal::malformed("node index 0 means no node"));
            }
            // What was right once may stay: a node that leaves is not asked about any more.
            let same = was.is_some_and(|was| {
                NodeEntry {
                    by_address: was.by_address,
                    by_mac: was.by_mac,
                    ..*entry
                } == *was
            });
            if same {
                continue;
            }
            if entry.flags & node_flag::SELF != 0 {
                own_node(entry, facts)?;
            } else {
                other_node(entry, facts)?;
            }
        }
        Ok(())
    }

    /// Nodes that leave.
    ///
    /// # Errors
    /// An index that does not exist.
    pub fn unlist(&self, nodes: &[NodeIndex]) -> Result<(), Refusal> {
        if nodes.len() > MAX_NODES as usize
            || nodes.iter().any(|index| u32::from(*index) >= MAX_NODES)
        {
            return Err(Refusal::malformed("a node index is beyond the node table"));
        }
        Ok(())
    }

    /// The configuration. Halves and seeds in it are the agent's own and are not taken over.
    ///
    /// # Errors
    /// The word that is not right.
    pub fn config(&self, config: &Config, facts: &Facts) -> Result<(), Refusal> {
        if config.abi_version != ABI_VERSION || config.self_index >= MAX_NODES {
            return Err(Refusal::malformed(format!(
                "the configuration is not one of ABI version {ABI_VERSION}"
            )));
        }
        for (flag, ours, theirs) in [
            ("--tunnel-port", self.tunnel_port, config.tunnel_port),
            ("--probe-port", self.probe_port, config.probe_port),
        ] {
            let theirs = u16::from_be_bytes(theirs);
            if ours != theirs {
                return Err(Refusal::denied(format!(
                    "{flag} is {theirs} in `forebay run` and {ours} in the agent: give both the same"
                )));
            }
        }
        let vlans = config.vlans.iter().filter(|vlan| **vlan != 0);
        if let Some(stranger) = vlans.copied().find(|vlan| !facts.vlans.contains(vlan)) {
            return Err(Refusal::denied(format!(
                "ARP is not answered in VLAN {stranger}: no interface on an uplink is in it"
            )));
        }
        let source = address_of(config.tunnel_source);
        let unset = config.tunnel_source == [0; 16] || source.is_unspecified();
        if !unset && !facts.configured.contains(&source) {
            return Err(Refusal::denied(format!(
                "{source} is no address of this node: its replica in the EndpointSlice must have an address of an interface here"
            )));
        }
        Ok(())
    }

    /// Nodes that are asked about: the kernel will send neighbour requests for them.
    ///
    /// # Errors
    /// Too many, or an address that no node has.
    pub fn reach(&self, nodes: &BTreeSet<IpAddr>) -> Result<(), Refusal> {
        if nodes.len() > MAX_NODES as usize {
            return Err(Refusal::malformed(format!(
                "there are at most {MAX_NODES} nodes"
            )));
        }
        nodes.iter().try_for_each(|node| plausible(*node))
    }

    /// The listening sockets of one group.
    ///
    /// # Errors
    /// The first one that is not right.
    pub fn listeners(&self, group: u16, sockets: &[Socket]) -> Result<(), Refusal> {
        if u32::from(group) >= GROUPS || sockets.len() > SLOTS_PER_GROUP as usize {
            return Err(Refusal::malformed(format!(
                "there are {GROUPS} groups of at most {SLOTS_PER_GROUP} sockets"
            )));
        }
        for socket in sockets {
            let (address, port) = (socket.address.ip(), socket.address.port());
            if !socket.own_namespace {
                return Err(Refusal::denied(format!(
                    "a listening socket of group {group} belongs to another network namespace: run the agent and `forebay run` in the same one"
                )));
            }
            if !address.is_loopback() {
                return Err(Refusal::denied(format!(
                    "a listening socket of group {group} is bound to {address}: it must be bound to loopback"
                )));
            }
            if !self.ephemeral.contains(&port) {
                return Err(Refusal::denied(format!(
                    "a listening socket of group {group} is bound to port {port}: it must have a port that the kernel chose ({} to {})",
                    self.ephemeral.start(),
                    self.ephemeral.end()
                )));
            }
        }
        Ok(())
    }
}

/// What an address is, if it can be neither a VIP nor a node.
fn special(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if broadcast {
        Some("the broadcast address")
    } else if link_local {
        Some("a link-local address")
    } else {
        None
    }
}

fn plausible(node: IpAddr) -> Result<(), Refusal> {
    special(node).map_or(Ok(()), |kind| {
        Err(Refusal::denied(format!(
            "{node} cannot be a node: it is {kind}"
        )))
    })
}

/// The own entry carries the MAC that ARP answers will carry.
fn own_node(entry: &NodeEntry, facts: &Facts) -> Result<(), Refusal> {
    let address = address_of(entry.address);
    if !address.is_unspecified() && !facts.configured.contains(&address) {
        return Err(Refusal::denied(format!(
            "{address} is no address of this node: its replica in the EndpointSlice must have an address of an interface here"
        )));
    }
    let resolved = entry.flags & node_flag::RESOLVED != 0;
    let uplink = facts
        .attachments
        .iter()
        .any(|uplink| uplink.mac == entry.source_mac && uplink.ifindex == entry.ifindex);
    if resolved && !uplink {
        return Err(Refusal::denied(
            "the own entry of the node table has not the MAC of an uplink",
        ));
    }
    Ok(())
}

/// Another node is reached as the agent itself found out, or not at all.
fn other_node(entry: &NodeEntry, facts: &Facts) -> Result<(), Refusal> {
    let address = address_of(entry.address);
    plausible(address)?;
    if facts.vips.contains(&address) {
        return Err(Refusal::denied(format!(
            "{address} cannot be another node: it is a VIP"
        )));
    }
    if facts.configured.contains(&address) {
        return Err(Refusal::denied(format!(
            "{address} cannot be another node: it is an address of this one"
        )));
    }
    if entry.flags & node_flag::RESOLVED == 0 {
        return Ok(());
    }
    let as_found = facts.reach.get(&address).is_some_and(|reach| {
        reach.resolved
            && (entry.mac, entry.source_mac, entry.ifindex)
                == (reach.mac, reach.source_mac, reach.ifindex)
            && (entry.flags & node_flag::ON_LINK == 0 || reach.on_link)
    });
    if as_found {
        return Ok(());
    }
    Err(Refusal::denied(format!(
        "node {address} is not reached the way that the table says: ask the agent again"
    )))
}

#[cfg(test)]
mod tests;
