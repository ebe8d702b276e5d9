//! The functions that the kernel verifies on their own: entry points without a section, known by their names.
//!
//! Their arguments may be anything as far as the kernel knows, and what they hand back is a word.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::XdpContext;
use gateway_common::steer::outline;

use crate::context::{Frame, SkbPacket, XdpPacket};
use crate::maps::{MAPS, Maps};

/// Functions of the packet and words, for each form of a packet.
///
/// The kernel tells the form by the type of the first argument, so each has its own set.
macro_rules! outline {
    ($frame:ty, $context:ty, $new:expr, $maps:expr; $($outer:ident = $name:ident($($word:ident),*) = $body:expr;)*) => {
        $(
            /// See the function of this name in `gateway_common::steer::outline`.
            #[unsafe(no_mangle)]
            #[inline(never)]
            pub extern "C" fn $outer(ctx: *mut $context $(, $word: u64)*) -> u64 {
                let body: fn(&mut $frame, &Maps<$frame> $(, outline!(@word $word))*) -> u64 = $body;
                body(&mut $new(ctx), &$maps $(, $word)*)
            }
        )*

        impl Outlined for $frame {
            $(
                #[inline(always)]
                fn $name(&mut self $(, $word: u64)*) -> u64 {
                    $outer(self.pointer().cast() $(, $word)*)
                }
            )*
        }
    };
    (@word $word:ident) => { u64 };
}

/// The work that is done out of line for a packet: each function calls the one of its own form.
pub trait Outlined: Frame {
    /// See `outline::walk`.
    fn walk(&mut self) -> u64;
    /// See `outline::arp`.
    fn arp(&mut self) -> u64;
    /// See `outline::icmp`.
    fn icmp(&mut self, place: u64, direct: u64) -> u64;
    /// See `outline::tunnel`.
    fn tunnel(&mut self, place: u64) -> u64;
    /// See `outline::probe`.
    fn probe(&mut self, place: u64) -> u64;
    /// See `outline::path`.
    fn path(&mut self, place: u64) -> u64;
    /// See `outline::probe_code`.
    fn probe_code(&mut self, at: u64, low: u64, high: u64) -> u64;
    /// See `outline::decide`.
    fn decide(&mut self, place: u64, hash: u64, arrival: u64) -> u64;
    /// See `outline::send`.
    fn send(&mut self, place: u64, hash: u64, errand: u64, arrival: u64) -> u64;
    /// See `outline::traced`.
    fn traced(&mut self, place: u64, hash: u64, vip: u64, arrival: u64) -> u64;
    /// See `outline::wanted`.
    fn wanted(&mut self, place: u64, hash: u64, arrival: u64, row: u64) -> u64;
    /// See `outline::refused`.
    fn refused(&mut self, place: u64, verdict: u64) -> u64;
    /// See `outline::held`.
    fn held(&mut self, place: u64) -> u64;
    /// See `outline::cookie`.
    fn cookie(&mut self, place: u64, direct: u64) -> u64;
    /// See `outline::syn_ack`.
    fn syn_ack(&mut self, v6: u64, cookie: u64) -> u64;
    /// See `outline::too_big`.
    fn too_big(&mut self, v6: u64, fits: u64) -> u64;
}

/// Both sets, from one list.
macro_rules! both {
    ($($xdp:ident, $tc:ident = $name:ident($($word:ident),*) = $body:expr;)*) => {
        outline! {
            XdpPacket, xdp_md, (|ctx| XdpPacket { context: XdpContext::new(ctx) }), Maps::frames();
            $($xdp = $name($($word),*) = $body;)*
        }
        outline! {
            SkbPacket, __sk_buff, (|context| SkbPacket { context }), Maps::buffers();
            $($tc = $name($($word),*) = $body;)*
        }
    };
}

both! {
    forebay_walk, forebay_tc_walk = walk() = |packet, _| outline::walk(packet);
    forebay_arp, forebay_tc_arp = arp() = |packet, maps| outline::arp(packet, maps);
    forebay_icmp, forebay_tc_icmp = icmp(place, direct) = |packet, maps, place, direct| outline::icmp(packet, maps, place, direct != 0);
    forebay_tunnel, forebay_tc_tunnel = tunnel(place) = |packet, maps, place| outline::tunnel(packet, maps, place);
    forebay_probe, forebay_tc_probe = probe(place) = |packet, maps, place| outline::probe(packet, maps, place);
    forebay_path, forebay_tc_path = path(place) = |packet, maps, place| outline::path(packet, maps, place);
    forebay_probe_code, forebay_tc_probe_code = probe_code(at, low, high) = |packet, _, at, low, high| outline::probe_code(packet, at, [low, high]);
    forebay_decide, forebay_tc_decide = decide(place, hash, arrival) = |packet, maps, place, hash, arrival| outline::decide(packet, maps, place, hash, arrival);
    forebay_send, forebay_tc_send = send(place, hash, errand, arrival) = |packet, maps, place, hash, errand, arrival| outline::send(packet, maps, place, hash, errand, arrival);
    forebay_traced, forebay_tc_traced = traced(place, hash, vip, arrival) = |packet, maps, place, hash, vip, arrival| outline::traced(packet, maps, place, hash, vip, arrival);
    forebay_wanted, forebay_tc_wanted = wanted(place, hash, arrival, row) = |packet, maps, place, hash, arrival, row| outline::wanted(packet, maps, place, hash, arrival, row);
    forebay_refused, forebay_tc_refused = refused(place, verdict) = |packet, maps, place, verdict| outline::refused(packet, maps, place, verdict);
    forebay_held, forebay_tc_held = held(place) = |packet, maps, place| outline::held(packet, maps, place);
    forebay_cookie, forebay_tc_cookie = cookie(place, direct) = |packet, maps, place, direct| outline::cookie(packet, maps, place, direct != 0);
    forebay_syn_ack, forebay_tc_syn_ack = syn_ack(v6, cookie) = |packet, _, v6, cookie| outline::syn_ack(packet, v6 != 0, cookie);
    forebay_too_big, forebay_tc_too_big = too_big(v6, fits) = |packet, _, v6, fits| outline::too_big(packet, v6 != 0, fits as u32);
}

/// See `gateway_common::steer::outline::told`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_told(verdict: u64, why: u64) -> u64 {
    outline::told(&MAPS, verdict, why)
}

/// See `gateway_common::steer::outline::first`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_first(row: u64, from: u64, or_me: u64, ready: u64) -> u64 {
    outline::first(&MAPS, row, from, or_me != 0, ready != 0)
}

/// See `gateway_common::steer::outline::address`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_address(first: u64, second: u64) -> u64 {
    outline::address(&MAPS, first, second)
}

/// See `gateway_common::steer::outline::vip_beyond`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_vip_beyond(low: u64, high: u64, last_half: u64, first: u64) -> u64 {
    outline::vip_beyond(&MAPS, low, high, last_half, first as u32)
}

/// See `gateway_common::steer::outline::hash_v6`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_hash_v6(a: u64, b: u64, c: u64, d: u64, last: u64) -> u64 {
    outline::hash_v6(&MAPS, [a, b], [c, d], last)
}

/// See `gateway_common::steer::outline::peer_address`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_peer_address(first: u64, second: u64) -> u64 {
    outline::peer_address(&MAPS, first, second)
}

/// See `gateway_common::steer::outline::peer_mac`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_peer_mac(mac: u64) -> u64 {
    outline::peer_mac(&MAPS, mac)
}

/// See `gateway_common::steer::outline::source`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forebay_source(list: u64, first: u64, second: u64) -> u64 {
    outline::source(&MAPS, list as u16, first, second)
}
