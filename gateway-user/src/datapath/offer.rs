//! What an interface offers to the datapath, read without changing anything: for `forebay check`.

use std::path::Path;

use serde::Serialize;

use super::attach::{self, AttachMode};
use super::{pins, sys, trial};

/// MTU above which most drivers refuse native XDP: a packet must fit one page beside the headroom and the kernel's own
/// words (veth: 3,506 bytes on x86-64).
pub const SINGLE_BUFFER: u32 = 3_500;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Offer {
    /// Kernel driver.
    pub driver: Option<String>,
    /// Queues that packets come in by.
    pub queues: Option<u32>,
    /// Which of addresses and ports spread UDP over IPv4 and IPv6 over the queues, if the driver says so.
    pub udp_hash: [Option<UdpHash>; 2],
    /// The way in that is in use now.
    pub in_use: Option<AttachMode>,
    /// The ways that `--datapath auto` would try, in order.
    pub ways: Vec<AttachMode>,
    /// Why native XDP is not among them, or probably refused.
    pub why_not_native: Option<String>,
}

/// What spreads UDP packets over the queues of a network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct UdpHash {
    /// Addresses.
    pub addresses: bool,
    /// Ports: without them all packets between two addresses come in by one queue.
    pub ports: bool,
}

/// What `interface`, whose MTU is `mtu`, offers; `bpffs` is where our pins lie.
#[must_use]
pub fn offer(interface: &str, mtu: u32, bpffs: &Path) -> Offer {
    let directory = pins::directory(bpffs);
    let (ways, why_not_native) = attach::prospects(interface, mtu, &directory);
    Offer {
        driver: sys::ethtool_driver(interface).ok(),
        // A driver that does not say has as many as the interface was made with.
        queues: sys::ethtool_queues(interface)
            .ok()
            .or_else(|| trial::port(interface).map(|port| port.queues)),
        udp_hash: [UDP_V4_FLOW, UDP_V6_FLOW].map(|flow| udp_hash(interface, flow)),
        in_use: attach::pinned_mode(interface, &directory),
        ways,
        why_not_native,
    }
}

const UDP_V4_FLOW: u32 = 2;
const UDP_V6_FLOW: u32 = 6;

fn udp_hash(interface: &str, flow: u32) -> Option<UdpHash> {
    const ADDRESSES: u64 = 1 << 4 | 1 << 5;
    const PORTS: u64 = 1 << 6 | 1 << 7;
    let by = sys::ethtool_flow_hash(interface, flow).ok()?;
    Some(UdpHash {
        addresses: by & ADDRESSES == ADDRESSES,
        ports: by & PORTS == PORTS,
    })
}
