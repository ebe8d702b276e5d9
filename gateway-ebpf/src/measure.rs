//! Programs of `cargo xtask bench l4` (cargo feature `bench`; never part of a shipped object).
//!
//! A test run repeats a program without restoring the packet, so the decision is called by [`measured`], which afterwards brings the
//! packet back as it was, whatever became of it, with the next flow's address in it. The floors are the same wrapper around functions
//! that decide nothing. The live programs make, return and count frames.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::XdpContext;
use gateway_common::packet::Packet;

use crate::context::{Frame, XdpPacket};

/// What the wrapper works with, in words; see [`word`].
#[map]
static BENCH: Array<[u64; 8]> = Array::with_max_entries(1, 0);

/// The words of [`BENCH`].
mod word {
    /// Bytes of the frame.
    pub const LENGTH: usize = 0;
    /// Action that each pass must have.
    pub const ACTION: usize = 1;
    /// Passes with another one, or whose packet could not be brought back.
    pub const ODD: usize = 2;
    /// The flow of the packet.
    pub const FLOW: usize = 3;
    /// Flows, one after the other; 0 and 1: always the same.
    pub const FLOWS: usize = 4;
    /// Where in the packet the client's last four bytes stand.
    pub const AT: usize = 5;
    /// Those bytes of flow 0 as a number, whose low bits are the flow's.
    pub const CLIENT: usize = 6;
    /// Address of the packet before the decision.
    pub const START: usize = 7;
}

/// Words of eight bytes from the packet's start on that are brought back.
const KEPT: usize = 13;

/// How the packet begins.
#[map]
static TEMPLATE: Array<[u64; KEPT]> = Array::with_max_entries(1, 0);

/// Words of [`FRAME`]: flow, number of flows, the frame's first 56 bytes with zero checksums, the sums over the IPv4 header and
/// over the TCP segment with its pseudo-header, the source address of flow 0 as a number.
#[map]
static FRAME: Array<[u64; 12]> = Array::with_max_entries(1, 0);

/// IPv4 frames that came back to the sink.
#[map]
static SINK: Array<u64> = Array::with_max_entries(1, 0);

/// Bytes that our encapsulation adds: IPv4, UDP and the tunnel header.
const OUTER_V4: i32 = 20 + 8 + 8;

/// The same over IPv6.
const OUTER_V6: i32 = 40 + 8 + 8;

/// Words of a map of ours. One thread alone runs a benchmark.
#[derive(Clone, Copy)]
struct Words(*mut u64);

impl Words {
    #[inline(always)]
    fn of<const N: usize>(map: &Array<[u64; N]>) -> Option<Self> {
        map.get_ptr_mut(0).map(|words| Self(words.cast()))
    }

    #[inline(always)]
    fn get(self, word: usize) -> u64 {
        // SAFETY: an array's value lives as long as the program; callers name words that it has.
        unsafe { self.0.add(word).read_volatile() }
    }

    #[inline(always)]
    fn set(self, word: usize, value: u64) {
        // SAFETY: as in `get`.
        unsafe { self.0.add(word).write_volatile(value) };
    }

    /// The flow after the one in word `flow`, of as many as word `flows` says.
    #[inline(always)]
    fn next_flow(self, flow: usize, flows: usize) -> u64 {
        let next = self.get(flow) + 1;
        let next = if next < self.get(flows) { next } else { 0 };
        self.set(flow, next);
        next
    }
}

/// One pass of a test run around `decide`.
#[inline(always)]
fn measured(ctx: *mut xdp_md, decide: impl FnOnce(*mut xdp_md) -> u32) -> u32 {
    let Some(words) = Words::of(&BENCH) else {
        return xdp_action::XDP_ABORTED;
    };
    let mut packet = XdpPacket {
        context: XdpContext::new(ctx),
    };
    words.set(word::START, packet.start() as u64);
    let action = decide(ctx);
    if restore(&mut packet, words).is_none() || u64::from(action) != words.get(word::ACTION) {
        words.set(word::ODD, words.get(word::ODD) + 1);
    }
    action
}

/// Brings back where the packet starts, its length and its first bytes, and puts the next flow in. The next pass reads none of it
/// before all stores have long been done, as with a packet that a device brought.
#[inline(always)]
fn restore(packet: &mut XdpPacket, words: Words) -> Option<()> {
    let before = words.get(word::START);
    // Through the map, where an address becomes a plain number.
    words.set(word::START, packet.start() as u64);
    let moved = (before - words.get(word::START)) as i32;
    if moved != 0 {
        packet.adjust(moved)?;
    }
    packet.set_len(words.get(word::LENGTH) as u32)?;
    let template = Words::of(&TEMPLATE)?;
    packet.overwrite(KEPT, |i| template.get(i));
    if words.get(word::FLOWS) > 1 {
        let flow = words.next_flow(word::FLOW, word::FLOWS);
        let client = words.get(word::CLIENT) | flow;
        packet.write_words(words.get(word::AT) as u32, [(client as u32).to_be()])?;
    }
    Some(())
}

#[inline(never)]
fn decide_nothing(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the kernel gives a valid context to each program; reading keeps the call from being removed.
    if unsafe { (*ctx).data == (*ctx).data_end } {
        xdp_action::XDP_ABORTED
    } else {
        xdp_action::XDP_PASS
    }
}

/// Moves the start of the packet, and says `action` if that went well.
#[inline(always)]
fn moved(ctx: *mut xdp_md, by: i32, action: u32) -> u32 {
    // SAFETY: the helper checks the distance itself.
    if unsafe { bpf_xdp_adjust_head(ctx, by) } == 0 {
        action
    } else {
        xdp_action::XDP_ABORTED
    }
}

#[inline(never)]
fn push_v4(ctx: *mut xdp_md) -> u32 {
    moved(ctx, -OUTER_V4, xdp_action::XDP_TX)
}

#[inline(never)]
fn push_v6(ctx: *mut xdp_md) -> u32 {
    moved(ctx, -OUTER_V6, xdp_action::XDP_TX)
}

#[inline(never)]
fn pop_v4(ctx: *mut xdp_md) -> u32 {
    moved(ctx, OUTER_V4, xdp_action::XDP_PASS)
}

/// Not inlined, as a balancer's decision is called once for each packet; the floors are not either.
#[inline(never)]
fn decide(ctx: *mut xdp_md) -> u32 {
    crate::programs::handle(XdpContext::new(ctx))
}

/// The floor of paths that pass a packet or rewrite it.
#[xdp]
pub fn bench_stub(ctx: XdpContext) -> u32 {
    measured(ctx.ctx, decide_nothing)
}

/// The floor of paths that encapsulate over IPv4.
#[xdp]
pub fn bench_push_v4(ctx: XdpContext) -> u32 {
    measured(ctx.ctx, push_v4)
}

/// The floor of paths that encapsulate over IPv6.
#[xdp]
pub fn bench_push_v6(ctx: XdpContext) -> u32 {
    measured(ctx.ctx, push_v6)
}

/// The floor of paths that decapsulate.
#[xdp]
pub fn bench_pop(ctx: XdpContext) -> u32 {
    measured(ctx.ctx, pop_v4)
}

/// The decision itself.
#[xdp]
pub fn bench_decide(ctx: XdpContext) -> u32 {
    measured(ctx.ctx, decide)
}

/// Makes a frame of the next flow and sends it from the interface that the test run names.
#[xdp]
pub fn live_generate(ctx: XdpContext) -> u32 {
    generate(&mut XdpPacket { context: ctx })
        .map_or(xdp_action::XDP_ABORTED, |()| xdp_action::XDP_TX)
}

#[inline(always)]
fn generate(packet: &mut XdpPacket) -> Option<()> {
    const SOURCE: u32 = 26;
    let words = Words::of(&FRAME)?;
    let flow = words.next_flow(0, 1);
    packet.overwrite(7, |i| words.get(2 + i));
    let source = words.get(11) | flow;
    packet.write_words(SOURCE, [(source as u32).to_be()])?;
    let added = (flow >> 16) + (flow & 0xffff);
    packet.put_half(24, checksum(words.get(9) + added).to_be())?;
    packet.put_half(50, checksum(words.get(10) + added).to_be())
}

/// The Internet checksum of a sum of 16-bit words (RFC 1071).
#[inline(always)]
fn checksum(sum: u64) -> u16 {
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// The least that a load balancer on a stick does: swaps the MAC addresses and returns the frame.
#[xdp]
pub fn live_return(ctx: XdpContext) -> u32 {
    swap_addresses(ctx.ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn swap_addresses(ctx: *mut xdp_md) -> Option<u32> {
    // SAFETY: the kernel gives a valid context to each program.
    let (data, end) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize) };
    if data + 14 > end {
        return None;
    }
    // SAFETY: the 14 bytes were just checked to lie inside of the frame.
    unsafe {
        let words = data as *mut u16;
        for i in 0..3 {
            let (to, from) = (words.add(i).read(), words.add(i + 3).read());
            words.add(i).write(from);
            words.add(i + 3).write(to);
        }
        Some(if words.add(6).read() == 0x0800u16.to_be() {
            xdp_action::XDP_TX
        } else {
            xdp_action::XDP_PASS
        })
    }
}

/// Counts the IPv4 frames that come back and drops everything.
#[xdp]
pub fn live_sink(ctx: XdpContext) -> u32 {
    let (data, end) = (ctx.data(), ctx.data_end());
    // SAFETY: the 14 bytes are checked to lie inside of the frame before they are read.
    if data + 14 <= end && unsafe { ((data + 12) as *const u16).read() } == 0x0800u16.to_be() {
        if let Some(count) = SINK.get_ptr_mut(0) {
            // SAFETY: the value lives as long as the program; one NAPI thread alone counts.
            unsafe { *count += 1 };
        }
    }
    xdp_action::XDP_DROP
}
