//! The socket lookup program: which socket gets a new connection for a VIP.
//!
//! VIP:port goes to the listening sockets of its group, whatever they are bound to; every other port of a VIP is
//! refused, so that nothing of the host shows on a VIP; the proxy's own ports are refused everywhere else.

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use gateway_common::abi::{
    ABI_VERSION, Counter, GROUPS, Live, LiveConfig, SLOTS_PER_GROUP, VipEntry, VipKey, vip_flag,
};
use gateway_common::hash::words;
use gateway_common::packet::{mapped, protocol};
use gateway_common::steer::{Tables, find_vip};

use crate::counters::count;
use crate::maps::{MAPS, SOCKETS, is_proxy_port};

/// `AF_INET` of Linux.
const AF_INET: u32 = 2;

/// `AF_INET6` of Linux.
const AF_INET6: u32 = 10;

/// In the network namespace of the host: chooses the socket for a new connection.
#[sk_lookup]
pub fn forebay_lookup(context: SkLookupContext) -> u32 {
    match choose(&context) {
        Choice::Untouched => SK_PASS,
        Choice::Redirected => {
            count(Counter::LookupRedirected.slot());
            SK_PASS
        }
        Choice::Refused(counter) => {
            count(counter.slot());
            SK_DROP
        }
    }
}

enum Choice {
    Untouched,
    Redirected,
    Refused(Counter),
}

/// Address, port and protocol that somebody sends to.
struct Target {
    /// IPv4-mapped for IPv4.
    address: [u8; 16],
    port: u16,
    protocol: u8,
}

#[inline(always)]
fn choose(context: &SkLookupContext) -> Choice {
    let Some(target) = target(context) else {
        return Choice::Untouched;
    };
    let Some(config) = MAPS
        .config()
        .filter(|config| config.abi_version() == ABI_VERSION)
    else {
        return Choice::Untouched;
    };
    let key = VipKey {
        address: target.address,
        port: target.port.to_be_bytes(),
        protocol: target.protocol,
        pad: 0,
    };
    match find_vip(&MAPS, config, key.words()) {
        // The relay's sockets are bound to the VIP itself: answers must come from there.
        Some(_) if target.protocol == protocol::UDP => Choice::Untouched,
        Some(vip) => listener(context, vip),
        None => other_port(config, &target),
    }
}

#[inline(always)]
fn target(context: &SkLookupContext) -> Option<Target> {
    // SAFETY: the context is valid while the program runs.
    let (family, protocol, port) = unsafe {
        let lookup = &raw const *context.lookup;
        ((*lookup).family, (*lookup).protocol, (*lookup).local_port)
    };
    if protocol != u32::from(protocol::TCP) && protocol != u32::from(protocol::UDP) {
        return None;
    }
    // SAFETY: as above; addresses are in network order.
    let address = unsafe {
        let lookup = &raw const *context.lookup;
        match family {
            AF_INET => mapped((*lookup).local_ip4.to_ne_bytes()),
            AF_INET6 => {
                let words = &raw const (*lookup).local_ip6;
                let word = |i| words.cast::<u32>().add(i).read_volatile();
                bytemuck::cast([word(0), word(1), word(2), word(3)])
            }
            _ => return None,
        }
    };
    Some(Target {
        address,
        port: port as u16,
        protocol: protocol as u8,
    })
}

/// The first live socket of the VIP's group.
#[inline(always)]
fn listener(context: &SkLookupContext, vip: Live<'_, VipEntry>) -> Choice {
    if vip.flags() & vip_flag::DRAINING != 0 {
        return Choice::Refused(Counter::LookupRefused);
    }
    let group = u32::from(vip.group()) % GROUPS;
    for slot in 0..SLOTS_PER_GROUP {
        if SOCKETS
            .redirect_sk_lookup(context, group * SLOTS_PER_GROUP + slot, 0)
            .is_ok()
        {
            return Choice::Redirected;
        }
    }
    Choice::Refused(Counter::LookupNoSocket)
}

/// A port that no VIP has: refused if the address is one, or if it is the proxy's own.
#[inline(always)]
fn other_port(config: LiveConfig<'_>, target: &Target) -> Choice {
    let own = target.protocol == protocol::TCP && is_proxy_port(target.port);
    match find_vip(&MAPS, config, (words(target.address), 0)) {
        Some(vip) if vip.flags() & vip_flag::SHARED == 0 => Choice::Refused(Counter::LookupRefused),
        _ if own => Choice::Refused(Counter::LookupLoopback),
        _ => Choice::Untouched,
    }
}
