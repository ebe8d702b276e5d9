//! A VIP packet as the decision sees it.

use super::Tuple;
use crate::abi::LiveConfig;
use crate::encap::Tunnel;
use crate::hash::flow_v4;
use crate::packet::{Ipv4, Tcp};

/// How a packet came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// From the wire as it was sent (or by a peer's MAC rewrite, which shows in its source MAC).
    Direct,
    /// Out of the tunnel.
    Tunnel(Tunnel),
}

/// A whole TCP packet for a VIP.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Its addresses and ports.
    pub tuple: Tuple,
    /// Keyed hash of the tuple.
    pub hash: u64,
    /// Whether it opens a connection: SYN without ACK.
    pub syn: bool,
    /// How it came here.
    pub arrival: Arrival,
}

impl Flow {
    #[inline(always)]
    pub(super) fn new(config: LiveConfig<'_>, ip: &Ipv4, tcp: &Tcp, arrival: Arrival) -> Self {
        Self {
            tuple: Tuple {
                source: ip.source,
                destination: ip.destination,
                ports: tcp.ports,
            },
            hash: flow_v4(
                config.hash_key(),
                ip.source,
                ip.destination,
                tcp.ports,
                ip.protocol,
            ),
            syn: tcp.opens(),
            arrival,
        }
    }
}
