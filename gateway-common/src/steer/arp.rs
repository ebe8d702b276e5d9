//! ARP: the announcing node answers for a VIP, nobody else's request is touched.

use super::Tables;
use super::tables::{address_flags, node};
use crate::abi::{Counter, LiveConfig, node_flag, vip_flag};
use crate::packet::{Arp, Ethernet, IP, Packet};
use crate::verdict::{Action, Verdict};

/// Answers a request for a VIP that this node announces, with the MAC of its own node entry.
///
/// An announcement (sender and target the same) asks nothing and is left alone, as is a request on an interface
/// other than the own entry's, whose MAC would be a wrong answer.
#[inline(always)]
pub(super) fn answer<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
) -> Verdict {
    reply(packet, tables, config).unwrap_or(Verdict::pass(Counter::NotOurs))
}

#[inline(always)]
fn reply<T: Tables>(packet: &mut T::Packet, tables: &T, config: LiveConfig<'_>) -> Option<Verdict> {
    let request = packet.read::<Arp>(IP)?;
    let asks = request.kind == Arp::ETHERNET_IPV4 && request.operation == Arp::REQUEST;
    if !asks || request.sender == request.target {
        return None;
    }
    if address_flags(tables, config, request.target) & (vip_flag::ANNOUNCE | vip_flag::SHARED)
        != vip_flag::ANNOUNCE
    {
        return None;
    }
    let own = node(tables, config, config.self_index() as u16)?;
    if own.flags & node_flag::RESOLVED == 0 || own.ifindex != packet.ingress() {
        return None;
    }
    let reply = Arp {
        operation: Arp::REPLY,
        sender_mac: own.source_mac,
        sender: request.target,
        target_mac: request.sender_mac,
        target: request.sender,
        ..request
    };
    packet.write(
        0,
        Ethernet {
            destination: request.sender_mac,
            source: own.source_mac,
            ..packet.read(0)?
        },
    )?;
    packet.write(IP, reply)?;
    Some(Verdict {
        action: Action::Transmit,
        counter: Counter::ArpReply,
    })
}
