//! The programs on interfaces.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use gateway_common::abi::Counter;
use gateway_common::packet::Packet;
use gateway_common::steer::steer;
use gateway_common::verdict::{Action, Verdict};

use crate::context::{SkbPacket, XdpPacket};
use crate::counters::count;
use crate::maps::{DEVICES, Maps};

// Inlined into what the attribute makes of them: a function of its own takes at least 32 of the 512 bytes of stack.

/// On every uplink: decides about each packet that arrives.
#[xdp]
#[inline(always)]
pub fn forebay_xdp(context: XdpContext) -> u32 {
    handle(context)
}

/// All that the program does; a function of its own since one program must not call another.
#[inline(always)]
pub fn handle(context: XdpContext) -> u32 {
    let mut packet = XdpPacket { context };
    act(steer(&mut packet, &Maps::frames()))
}

/// The same for traffic control, where XDP cannot be had.
#[classifier]
#[inline(always)]
pub fn forebay_tc(context: TcContext) -> i32 {
    handle_skb(context)
}

/// All that it does.
#[inline(always)]
pub fn handle_skb(context: TcContext) -> i32 {
    let mut packet = SkbPacket {
        context: context.skb.skb,
    };
    let was_tagged = packet.is_tagged();
    let verdict = match packet.open() {
        Some(()) => steer(&mut packet, &Maps::buffers()),
        None => Verdict::pass(Counter::NotOurs),
    };
    packet.close(was_tagged);
    count(verdict.cell());
    let ifindex = match verdict.action() {
        // On to the programs behind this one, then to the stack.
        Action::Pass => return TC_ACT_UNSPEC,
        Action::Drop => return TC_ACT_SHOT as i32,
        Action::Transmit => packet.ingress(),
        Action::Redirect { ifindex } => ifindex,
    };
    // SAFETY: the helper takes numbers only.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Passes everything: for the far end of a veth pair, which takes transmitted frames only if it runs a program.
#[xdp]
#[inline(always)]
pub fn forebay_pass(_: XdpContext) -> u32 {
    XDP_PASS
}

#[inline(always)]
pub(crate) fn act(verdict: Verdict) -> u32 {
    let (action, cell) = match verdict.action() {
        Action::Pass => (XDP_PASS, verdict.cell()),
        Action::Drop => (XDP_DROP, verdict.cell()),
        Action::Transmit => (XDP_TX, verdict.cell()),
        // The flags are what the kernel returns if the device is not in the map.
        Action::Redirect { ifindex } => match DEVICES.redirect(ifindex, u64::from(XDP_DROP)) {
            Ok(action) => (action, verdict.cell()),
            Err(_) => (XDP_DROP, Counter::NeighbourUnresolved.slot()),
        },
    };
    count(cell);
    action
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are open to programs under a GPL-compatible licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
