//! Programs of `cargo xtask bench l4` (cargo feature `bench`; never part of a shipped object).
//!
//! A test run repeats a program without restoring the packet, so the decision is called by [`measured`], which afterwards takes off what
//! was pushed and restores the Ethernet header and the TTL. The floors are the same wrapper around a function that decides
//! nothing. The live programs make, return and count frames.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::XdpContext;

/// Words of [`BENCH`]: length of the frame, action that each pass must have, passes with another one, flow counter, mask of
/// the flow counter (0: one flow), Ethernet bytes 0–7 and 8–13, IPv4 bytes 8–11.
#[map]
static BENCH: Array<[u64; 8]> = Array::with_max_entries(1, 0);

/// Words of [`FRAME`]: flow counter, its mask, the frame's first 56 bytes with a source address that ends in 0.0 and zero
/// checksums, the sums over the IPv4 header and over the TCP segment with its pseudo-header.
#[map]
static FRAME: Array<[u64; 11]> = Array::with_max_entries(1, 0);

/// IPv4 frames that came back to the sink.
#[map]
static SINK: Array<u64> = Array::with_max_entries(1, 0);

/// Bytes that our encapsulation adds: IPv4, UDP and the tunnel header.
const PUSHED: i32 = 20 + 8 + 8;

/// Stores an unaligned integer at `offset` of the frame; `None` if the frame is shorter.
#[inline(always)]
fn store<T>(ctx: *mut xdp_md, offset: usize, value: T) -> Option<()> {
    // SAFETY: the kernel gives a valid context to each program.
    let (data, end) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize) };
    if data + offset + size_of::<T>() > end {
        return None;
    }
    // SAFETY: the bytes were just checked to lie inside of the frame.
    unsafe { ((data + offset) as *mut T).write_unaligned(value) };
    Some(())
}

/// One pass of a test run around `decide`.
#[inline(always)]
fn measured(ctx: *mut xdp_md, decide: impl FnOnce(*mut xdp_md) -> u32) -> u32 {
    pass(ctx, decide).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn pass(ctx: *mut xdp_md, decide: impl FnOnce(*mut xdp_md) -> u32) -> Option<u32> {
    // SAFETY: an array's value lives as long as the program, and one thread alone runs the benchmark.
    let words = unsafe { &mut *BENCH.get_ptr_mut(0)? };
    if words[4] != 0 {
        words[3] += 1;
        let flow = (words[3] & words[4]) as u16;
        store(ctx, 28, flow.to_be())?;
    }
    let action = decide(ctx);
    if u64::from(action) != words[1] {
        words[2] += 1;
    }
    if action == xdp_action::XDP_TX {
        // SAFETY: as in `store`.
        let length = unsafe { (*ctx).data_end - (*ctx).data };
        let grown = length as i32 - words[0] as i32;
        // SAFETY: the helper checks the distance itself.
        if grown != 0 && unsafe { bpf_xdp_adjust_head(ctx, grown) } != 0 {
            return None;
        }
        store(ctx, 0, words[5])?;
        store(ctx, 8, words[6] as u32)?;
        store(ctx, 12, (words[6] >> 32) as u16)?;
        store(ctx, 22, words[7] as u32)?;
    }
    Some(action)
}

#[inline(never)]
fn decide_nothing(ctx: *mut xdp_md) -> u32 {
    // SAFETY: as in `store`; reading keeps the call from being removed.
    if unsafe { (*ctx).data == (*ctx).data_end } {
        xdp_action::XDP_ABORTED
    } else {
        xdp_action::XDP_PASS
    }
}

#[inline(never)]
fn push_only(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the helper checks the headroom itself.
    if unsafe { bpf_xdp_adjust_head(ctx, -PUSHED) } == 0 {
        xdp_action::XDP_TX
    } else {
        xdp_action::XDP_ABORTED
    }
}

/// Not inlined, as a balancer's decision is called once for each packet; the floors are not either.
#[inline(never)]
fn decide(ctx: *mut xdp_md) -> u32 {
    crate::programs::handle(XdpContext::new(ctx))
}

/// The floor of paths that pass.
#[xdp]
pub fn bench_stub(ctx: XdpContext) -> u32 {
    measured(ctx.ctx, decide_nothing)
}

/// The floor of paths that encapsulate.
#[xdp]
pub fn bench_push_pop(ctx: XdpContext) -> u32 {
    measured(ctx.ctx, push_only)
}

/// The decision itself.
#[xdp]
pub fn bench_decide(ctx: XdpContext) -> u32 {
    measured(ctx.ctx, decide)
}

/// Makes a frame of the next flow and sends it from the interface that the test run names.
#[xdp]
pub fn live_generate(ctx: XdpContext) -> u32 {
    generate(ctx.ctx).map_or(xdp_action::XDP_ABORTED, |()| xdp_action::XDP_TX)
}

#[inline(always)]
fn generate(ctx: *mut xdp_md) -> Option<()> {
    // SAFETY: as in `pass`.
    let words = unsafe { &mut *FRAME.get_ptr_mut(0)? };
    words[0] += 1;
    let flow = words[0] & words[1];
    for i in 0..7 {
        store(ctx, 8 * i, words[2 + i])?;
    }
    store(ctx, 24, checksum(words[9] + flow).to_be())?;
    store(ctx, 28, (flow as u16).to_be())?;
    store(ctx, 50, checksum(words[10] + flow).to_be())
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
    // SAFETY: as in `store`.
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
