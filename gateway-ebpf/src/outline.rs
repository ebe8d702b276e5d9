//! The functions that the kernel verifies on their own: entry points without a section, known by their names.
//!
//! Their arguments may be anything as far as the kernel knows, and what they hand back is a word.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use gateway_common::steer::outline;

use crate::context::XdpPacket;
use crate::maps::Maps;

/// Functions of the packet and words, and functions of words alone.
macro_rules! outline {
    ($($name:ident(packet $(, $word:ident)*) = $body:expr;)*) => {
        $(
            /// See the function of this name in `gateway_common::steer::outline`.
            #[unsafe(no_mangle)]
            #[inline(never)]
            pub extern "C" fn $name(ctx: *mut xdp_md $(, $word: u64)*) -> u64 {
                let body: fn(&mut XdpPacket $(, outline!(@word $word))*) -> u64 = $body;
                body(&mut XdpPacket { context: XdpContext::new(ctx) } $(, $word)*)
            }
        )*
    };
    (@word $word:ident) => { u64 };
}

outline! {
    forebay_walk(packet) = |packet| outline::walk(packet);
    forebay_arp(packet) = |packet| outline::arp(packet, &Maps);
    forebay_icmp(packet, place, direct) = |packet, place, direct| outline::icmp(packet, &Maps, place, direct != 0);
    forebay_tunnel(packet, place) = |packet, place| outline::tunnel(packet, &Maps, place);
    forebay_decide(packet, place, hash, arrival) = |packet, place, hash, arrival| outline::decide(packet, &Maps, place, hash, arrival);
    forebay_send(packet, place, hash, errand, arrival) = |packet, place, hash, errand, arrival| outline::send(packet, &Maps, place, hash, errand, arrival);
    forebay_held(packet, place) = |packet, place| outline::held(packet, &Maps, place);
    forebay_cookie(packet, place, direct) = |packet, place, direct| outline::cookie(packet, &Maps, place, direct != 0);
    forebay_syn_ack(packet, v6, cookie) = |packet, v6, cookie| outline::syn_ack(packet, v6 != 0, cookie);
    forebay_too_big(packet, v6, fits) = |packet, v6, fits| outline::too_big(packet, v6 != 0, fits as u32);
}

/// See `gateway_common::steer::outline::first`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_first(row: u64, from: u64, or_me: u64, ready: u64) -> u64 {
    outline::first(&Maps, row, from, or_me != 0, ready != 0)
}

/// See `gateway_common::steer::outline::address`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_address(first: u64, second: u64) -> u64 {
    outline::address(&Maps, first, second)
}

/// See `gateway_common::steer::outline::vip_beyond`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_vip_beyond(low: u64, high: u64, last_half: u64, first: u64) -> u64 {
    outline::vip_beyond(&Maps, low, high, last_half, first as u32)
}

/// See `gateway_common::steer::outline::hash_v6`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_hash_v6(a: u64, b: u64, c: u64, d: u64, last: u64) -> u64 {
    outline::hash_v6(&Maps, [a, b], [c, d], last)
}

/// See `gateway_common::steer::outline::peer_address`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_peer_address(first: u64, second: u64) -> u64 {
    outline::peer_address(&Maps, first, second)
}

/// See `gateway_common::steer::outline::peer_mac`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_peer_mac(mac: u64) -> u64 {
    outline::peer_mac(&Maps, mac)
}

/// See `gateway_common::steer::outline::source`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_source(list: u64, first: u64, second: u64) -> u64 {
    outline::source(&Maps, list as u16, first, second)
}
