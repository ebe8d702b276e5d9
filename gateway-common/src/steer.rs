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
    let Some(config) = tables
        .config()
        .filter(|config| config.abi_version() == ABI_VERSION && config.self_index() != 0)
    else {
        return Verdict::pass(Counter::NotConfigured);
    };
    let Some(ethernet) = packet.read::<Ethernet>(0) else {
        return Verdict::pass(Counter::NotOurs);
    };
    let flow = match ethernet.kind {
        ethertype::IPV4 => ipv4(packet, tables, config, &ethernet),
        ethertype::ARP => return arp::answer(packet, tables, config, &ethernet),
        _ => return Verdict::pass(Counter::NotOurs),
    };
    match flow.map(|flow| (decide(packet, tables, config, &flow), flow)) {
        Ok((Next::Stay(verdict), _)) | Err(verdict) => verdict,
        Ok((Next::Send(errand), flow)) => send(packet, tables, &flow, errand),
    }
}

/// The VIP flow of an IPv4 packet, out of the tunnel if it came so; else the verdict about it.
#[inline(always)]
fn ipv4<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    config: LiveConfig<'_>,
    ethernet: &Ethernet,
) -> Result<Flow, Verdict> {
    let foreign = Verdict::pass(Counter::NotOurs);
    let ip = packet
        .read::<Ipv4>(IP)
        .filter(|ip| ip.version_ihl >> 4 == 4)
        .ok_or(foreign)?;
    let (ip, arrival, foreign) = match ip.protocol {
        protocol::TCP => (ip, Arrival::Direct, foreign),
        protocol::UDP => {
            let (tunnel, inner) = tunnel::open(packet, tables, ethernet, &ip)?;
            (
                inner,
                Arrival::Tunnel(tunnel),
                Verdict::drop(Counter::TunnelNotVip),
            )
        }
        _ => return Err(foreign),
    };
    let tcp = vip_segment(packet, tables, config, &ip, foreign)?;
    Ok(Flow::new(config, ethernet, &ip, &tcp, arrival))
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
    if ip.protocol != protocol::TCP {
        return Err(foreign);
    }
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
