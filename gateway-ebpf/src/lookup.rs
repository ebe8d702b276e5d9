//! The socket lookup program: which socket gets a new connection for a VIP.
//!
//! VIP:port goes to the listening sockets of its group, whatever they are bound to; every other port of a VIP is
//! refused, so that nothing of the host shows on a VIP; the proxy's own ports are refused everywhere else.

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use gateway_common::abi::{
    ABI_VERSION, Counter, GROUPS, LiveConfig, SLOTS_PER_GROUP, VipEntry, VipKey, vip_flag,
};
use gateway_common::packet::protocol;
use gateway_common::steer::{Tables, find_vip};

use crate::counters::count;
use crate::maps::{Maps, SOCKETS, is_proxy_port};

/// `AF_INET` of Linux.
const AF_INET: u32 = 2;

/// In the network namespace of the host: chooses the socket for a new connection.
#[sk_lookup]
pub fn forebay_lookup(context: SkLookupContext) -> u32 {
    match choose(&context) {
        Choice::Untouched => SK_PASS,
        Choice::Redirected => {
            count(Counter::LookupRedirected);
            SK_PASS
        }
        Choice::Refused(counter) => {
            count(counter);
            SK_DROP
        }
    }
}

enum Choice {
    Untouched,
    Redirected,
    Refused(Counter),
}

#[inline(always)]
fn choose(context: &SkLookupContext) -> Choice {
    // SAFETY: the context is valid while the program runs.
    let (family, protocol, address, port) = unsafe {
        let lookup = &raw const *context.lookup;
        (
            (*lookup).family,
            (*lookup).protocol,
            (*lookup).local_ip4,
            (*lookup).local_port,
        )
    };
    if family != AF_INET || protocol != u32::from(protocol::TCP) {
        return Choice::Untouched;
    }
    let Some(config) = Maps
        .config()
        .filter(|config| config.abi_version() == ABI_VERSION)
    else {
        return Choice::Untouched;
    };
    let port = port as u16;
    let address = address.to_ne_bytes();
    match find_vip(
        &Maps,
        config,
        VipKey::v4_words(address, port.to_be_bytes(), protocol::TCP),
    ) {
        Some(vip) => listener(context, &vip),
        None => other_port(config, address, port),
    }
}

/// The first live socket of the VIP's group.
#[inline(always)]
fn listener(context: &SkLookupContext, vip: &VipEntry) -> Choice {
    if vip.flags & vip_flag::DRAINING != 0 {
        return Choice::Refused(Counter::LookupRefused);
    }
    let group = u32::from(vip.group) % GROUPS;
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
fn other_port(config: LiveConfig<'_>, address: [u8; 4], port: u16) -> Choice {
    match find_vip(&Maps, config, VipKey::v4_words(address, [0; 2], 0)) {
        Some(vip) if vip.flags & vip_flag::SHARED == 0 => Choice::Refused(Counter::LookupRefused),
        _ if is_proxy_port(port) => Choice::Refused(Counter::LookupLoopback),
        _ => Choice::Untouched,
    }
}
