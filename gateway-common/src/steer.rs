//! The forwarding decision: what becomes of a packet that arrives on an uplink.
//!
//! One function, generic over the packet and the tables, compiled for the kernel and for the host. What is
//! not for a VIP and not our tunnel leaves it untouched and before any check that could drop it. No state is
//! kept for a flow. Here a packet is only told apart; deciding and sending are in the submodules.

mod arp;
mod decide;
mod flow;
mod forward;
mod heartbeat;
mod tables;
mod tunnel;

pub use flow::{Arrival, Flow};
pub use tables::{Local, Tables, Tuple, find_vip};

use self::decide::{Next, decide};
use self::forward::send;
use self::tables::address_flags;
use crate::abi::{ABI_VERSION, Counter, LiveConfig, VipKey, vip_flag};
use crate::packet::{Ethernet, IP, Ipv4, L4, Packet, Tcp, ethertype, protocol};
use crate::verdict::Verdict;

/// Decides about a packet, and changes it as the verdict needs.
///
/// The caller counts the verdict's counter; [`Counter::Decapsulated`] alone is counted here, beside it.
#[inline(always)]
pub fn steer<T: Tables>(packet: &mut T::Packet, tables: &T) -> Verdict {
    match consider(packet, tables) {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

/// The decision; an early verdict comes as an error.
///
/// Headers are read again where they are needed, rather than kept: that is cheaper than the stack.
#[inline(always)]
fn consider<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Verdict, Verdict> {
    let config = tables
        .config()
        .filter(|config| config.abi_version() == ABI_VERSION && config.self_index() != 0);
    let config = config.ok_or(Verdict::pass(Counter::NotConfigured))?;
    let foreign = Verdict::pass(Counter::NotOurs);
    match packet.read::<Ethernet>(0).ok_or(foreign)?.kind {
        ethertype::IPV4 => {}
        ethertype::ARP => return Ok(arp::answer(packet, tables, config)),
        _ => return Err(foreign),
    }
    let ip = packet
        .read::<Ipv4>(IP)
        .filter(|ip| ip.version_ihl >> 4 == 4)
        .ok_or(foreign)?;
    let (arrival, foreign) = match ip.protocol {
        protocol::TCP => (Arrival::Direct, foreign),
        protocol::UDP => (
            Arrival::Tunnel(tunnel::open(packet, tables, config, &ip)?),
            Verdict::drop(Counter::TunnelNotVip),
        ),
        _ => return Err(foreign),
    };
    let ip = packet
        .read::<Ipv4>(IP)
        .filter(|ip| ip.protocol == protocol::TCP)
        .ok_or(foreign)?;
    let tcp = vip_segment(packet, tables, config, &ip, foreign)?;
    let flow = Flow::new(config, &ip, &tcp, arrival);
    match decide(packet, tables, config, &flow) {
        Next::Stay(verdict) => Ok(verdict),
        Next::Send(errand) => Ok(send(packet, tables, config, &flow, errand)),
    }
}

/// The TCP header of a packet that is for a VIP and whole; `foreign` for one that is not for a VIP.
#[inline(always)]
fn vip_segment<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    ip: &Ipv4,
    foreign: Verdict,
) -> Result<Tcp, Verdict> {
    let plain = ip.version_ihl == 0x45 && !ip.is_fragment();
    let Some(tcp) = packet.read::<Tcp>(L4).filter(|_| plain) else {
        return Err(unreadable(tables, config, ip).unwrap_or(foreign));
    };
    let key = VipKey::v4_words(ip.destination, [tcp.ports[2], tcp.ports[3]], protocol::TCP);
    let vip = find_vip(tables, config, key).ok_or(foreign)?;
    let headers = size_of::<Ipv4>() as u32 + tcp.header_length();
    if tcp.header_length() < size_of::<Tcp>() as u32
        || ip.length() < headers
        || packet.len() < IP + ip.length()
    {
        return Err(Verdict::drop(Counter::Truncated));
    }
    if vip.flags & vip_flag::DRAINING != 0 && tcp.opens() {
        // The VIP is deleted: refused by the stack of whichever node the SYN reaches.
        return Err(Verdict::pass(Counter::OwnPass));
    }
    Ok(tcp)
}

/// The verdict about a TCP packet whose ports cannot be read: it belongs to a VIP if its address is one and
/// nobody else's.
#[inline(always)]
fn unreadable<T: Tables>(tables: &T, config: LiveConfig<'_>, ip: &Ipv4) -> Option<Verdict> {
    let flags = address_flags(tables, config, ip.destination);
    if flags & (vip_flag::USED | vip_flag::SHARED) != vip_flag::USED {
        return None;
    }
    Some(if ip.header_length() < size_of::<Ipv4>() as u32 {
        Verdict::drop(Counter::Truncated)
    } else if ip.is_fragment() {
        Verdict::drop(Counter::Fragment)
    } else if ip.version_ihl != 0x45 {
        Verdict::pass(Counter::NotUnderstood)
    } else {
        Verdict::drop(Counter::Truncated)
    })
}
