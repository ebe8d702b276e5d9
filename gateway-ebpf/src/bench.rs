//! Measuring the decision: programs for test runs that restore the packet after each pass.
//!
//! `repeat` of BPF_PROG_TEST_RUN does not restore the packet, so after one pass a forwarding program would see
//! its own output. Both programs save the headers and put them back; the floor does so without deciding, but
//! with a push and a pop if the packet's first byte says so, as a forward in the UDP form does.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use gateway_common::encap::OVERHEAD;
use gateway_common::packet::{Ethernet, IP, Ipv4, Packet};
use gateway_common::steer::steer;

use crate::context::XdpPacket;
use crate::maps::Maps;
use crate::programs::act;

/// First byte of the destination MAC of a packet that the floor pushes and pops.
const PUSHED: u8 = 6;

/// One pass of the decision.
#[xdp]
pub fn forebay_bench(context: XdpContext) -> u32 {
    restoring(context, |packet| act(steer(packet, &Maps)))
}

/// One pass without a decision.
#[xdp]
pub fn forebay_bench_floor(context: XdpContext) -> u32 {
    restoring(context, |packet| {
        match packet.read::<Ethernet>(0) {
            Some(ethernet) if ethernet.destination[0] == PUSHED => packet.push(OVERHEAD),
            _ => Some(()),
        }
        .map_or(XDP_DROP, |()| XDP_PASS)
    })
}

#[inline(always)]
fn restoring(context: XdpContext, pass: impl FnOnce(&mut XdpPacket) -> u32) -> u32 {
    let mut packet = XdpPacket { context };
    let before = packet.len();
    let (Some(ethernet), Some(ip)) = (packet.read::<Ethernet>(0), packet.read::<Ipv4>(IP)) else {
        return XDP_DROP;
    };
    let action = pass(&mut packet);
    if packet.len() != before && packet.pop(OVERHEAD).is_none() {
        return XDP_DROP;
    }
    match packet
        .write(0, ethernet)
        .and_then(|()| packet.write(IP, ip))
    {
        Some(()) => action,
        None => XDP_DROP,
    }
}
