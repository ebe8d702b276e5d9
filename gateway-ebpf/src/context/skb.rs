//! A socket buffer as traffic control gets it on the way in.
//!
//! Three things are not as in a frame. The outer VLAN tag lies beside the packet: it is put back while we look, and taken
//! out again before anybody else does. Only the first bytes can be accessed until they are asked for. And the packet may be
//! one that the stack put together from many, or that somebody on this machine never cut: it stays one, and whoever sends
//! it cuts it, behind our headers too.

use core::arch::asm;
use core::ffi::c_void;
use core::mem::size_of;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{
    bpf_csum_update, bpf_skb_adjust_room, bpf_skb_change_proto, bpf_skb_change_tail,
    bpf_skb_pull_data, bpf_skb_vlan_pop, bpf_skb_vlan_push,
};
use gateway_common::packet::{
    Ethernet, Header, IP, Ipv4, Ipv6, MACS, Outer, Packet, TAG, Tcp, Vlan, ethertype, protocol,
};

use super::{Frame, access};

/// Bytes that the headers of a packet without tags and extension headers have at most, our own around it included.
const USUAL: u32 = 192;

/// The same of any packet that the decision understands.
const MOST: u32 = 576;

/// What the kernel says to a packet that is somebody's tunnel already.
const EALREADY: i64 = -114;

/// What the kernel says to flags that it does not know.
const EINVAL: i64 = -22;

/// Bytes that the header of IPv6 is longer than that of IPv4.
const LONGER: i32 = 20;

/// A packet as a classifier gets it.
pub struct SkbPacket {
    /// The program's context.
    pub context: *mut __sk_buff,
}

impl SkbPacket {
    /// Makes the headers accessible, with the outer VLAN tag among them; `None` if the kernel has no memory for that.
    /// [`Self::close`] is to be called in any case, with whether the packet was tagged.
    #[inline(always)]
    pub fn open(&mut self) -> Option<()> {
        if self.is_tagged() {
            self.push_tag(ethertype::VLAN, 0)?;
        }
        self.pull()
    }

    /// Moves the outer VLAN tag back to where the stack and the drivers look for it.
    #[inline(always)]
    pub fn close(&mut self, was_tagged: bool) {
        if was_tagged {
            self.pop_tag();
        }
    }

    /// Whether the packet has a VLAN tag beside it.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.context).vlan_present != 0 }
    }

    /// Sets the tag beside the packet; one that was there moves into it.
    #[inline(always)]
    fn push_tag(&mut self, kind: [u8; 2], control: u16) -> Option<()> {
        // SAFETY: the context is the program's own; addresses into the packet are never kept across calls.
        let result = unsafe { bpf_skb_vlan_push(self.context, u16::from_ne_bytes(kind), control) };
        (result == 0).then_some(())
    }

    /// Drops the tag beside the packet, the first one in it takes its place.
    #[inline(always)]
    fn pop_tag(&mut self) {
        // SAFETY: as in `push_tag`. It fails only without memory; the packet goes on with a tag that is not its own then,
        // and nobody takes it.
        unsafe { bpf_skb_vlan_pop(self.context) };
    }

    /// Drops all tags before the IP header at `l3`, and the one beside the packet if there is one.
    #[inline(always)]
    fn pop_tags(&mut self, l3: u32, beside: bool) {
        let end = if beside { l3 + TAG } else { l3 };
        for tag in 0..3 {
            if IP + tag * TAG < end {
                self.pop_tag();
            }
        }
    }

    /// Makes the headers accessible.
    #[inline(always)]
    fn pull(&mut self) -> Option<()> {
        let wanted = self.headers().min(self.len());
        if (self.end() - self.start()) as u32 >= wanted {
            return Some(());
        }
        // SAFETY: as in `push_tag`.
        let result = unsafe { bpf_skb_pull_data(self.context, wanted) };
        (result == 0).then_some(())
    }

    /// How many bytes the decision may want to see.
    #[inline(always)]
    fn headers(&self) -> u32 {
        let Some(ethernet) = self.load::<Ethernet>(0) else {
            return USUAL;
        };
        let (next, at) = match ethernet.kind {
            ethertype::IPV4 => match self.load::<Ipv4>(IP) {
                Some(ip) if ip.version_ihl == 0x45 && !ip.is_fragment() => {
                    (ip.protocol, IP + size_of::<Ipv4>() as u32)
                }
                _ => return USUAL,
            },
            ethertype::IPV6 => match self.load::<Ipv6>(IP) {
                Some(ip) if ip.next_header == protocol::TCP || ip.next_header == protocol::UDP => {
                    (ip.next_header, IP + size_of::<Ipv6>() as u32)
                }
                _ => return MOST,
            },
            ethertype::VLAN | ethertype::OUTER_VLAN => return MOST,
            _ => return USUAL,
        };
        match self.load::<Tcp>(at) {
            Some(tcp) if next == protocol::TCP => at + tcp.header_length(),
            _ => USUAL,
        }
    }

    /// Makes room behind the link layer, or takes it away.
    #[inline(always)]
    fn adjust(&mut self, bytes: i32, flags: u32) -> i64 {
        // Sizes of the packets inside stay what they are: there is room for our headers on every way that is taken.
        let flags = u64::from(flags | BPF_F_ADJ_ROOM_FIXED_GSO);
        // SAFETY: as in `push_tag`.
        unsafe { bpf_skb_adjust_room(self.context, bytes, BPF_ADJ_ROOM_MAC, flags) }
    }
}

impl Frame for SkbPacket {
    #[inline(always)]
    fn pointer(&self) -> *mut c_void {
        self.context.cast()
    }

    /// As for a frame: by an instruction that the compiler does not see through.
    #[inline(always)]
    fn start(&self) -> usize {
        const {
            assert!(core::mem::offset_of!(__sk_buff, data) == 76);
        }
        let address: usize;
        // SAFETY: a word of the context; the instruction reads it and nothing else.
        unsafe {
            asm!("{} = *(u32 *)({} + 76)", out(reg) address, in(reg) self.context, options(pure, readonly, nostack))
        };
        address
    }

    /// As [`Self::start`].
    #[inline(always)]
    fn end(&self) -> usize {
        const {
            assert!(core::mem::offset_of!(__sk_buff, data_end) == 80);
        }
        let address: usize;
        // SAFETY: as in `start`.
        unsafe {
            asm!("{} = *(u32 *)({} + 80)", out(reg) address, in(reg) self.context, options(pure, readonly, nostack))
        };
        address
    }
}

impl Packet for SkbPacket {
    access!();

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.context).len }
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.context).ifindex }
    }

    #[inline(always)]
    fn push(&mut self, bytes: u32) -> Option<()> {
        (self.adjust(bytes as i32, 0) == 0).then_some(())
    }

    #[inline(always)]
    fn pop(&mut self, bytes: u32) -> Option<()> {
        (self.adjust(-(bytes as i32), 0) == 0).then_some(())
    }

    /// A tag to go out with is put beside the packet.
    #[inline(always)]
    fn wrap(&mut self, l3: u32, outer: Outer) -> Option<u32> {
        let (v6, inner_v6) = (u64::from(outer.v6), u64::from(outer.inner_v6));
        let bits = v6 << 33 | inner_v6 << 32 | u64::from(outer.vlan);
        match wrap(self.context, l3, outer.bytes, bits) {
            0 => None,
            at => Some(at as u32),
        }
    }

    #[inline(always)]
    fn peel(&mut self, l3: u32, outer: Outer) -> Option<()> {
        let beside = self.is_tagged();
        let tags = (l3 - IP) / TAG;
        let first = if tags > 0 {
            self.load::<Vlan>(MACS)?
        } else {
            Vlan::default()
        };
        let second = if tags > 1 {
            self.load::<Vlan>(IP + 2)?
        } else {
            Vlan::default()
        };
        self.pop_tags(l3, beside);
        self.take_off(outer)?;
        // Read one place early, so that the kind of the tag comes first and what it says second.
        if tags > 1 {
            self.push_tag(second.control, u16::from_be_bytes(second.kind))?;
        }
        if tags > 0 {
            self.push_tag(first.control, u16::from_be_bytes(first.kind))?;
            self.push_tag(ethertype::VLAN, 0)?;
        }
        self.pull()
    }

    #[inline(always)]
    fn set_len(&mut self, length: u32) -> Option<()> {
        if length == self.len() {
            return Some(());
        }
        // SAFETY: as in `push_tag`.
        let result = unsafe { bpf_skb_change_tail(self.context, length, 0) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.context).gso_size }
    }

    #[inline(always)]
    fn may_be_partial(&self) -> bool {
        true
    }

    #[inline(always)]
    fn changed(&mut self, old: [u8; 4], new: [u8; 4]) {
        let (old, new) = (u32::from_ne_bytes(old), u32::from_ne_bytes(new));
        let (sum, carry) = new.overflowing_add(!old);
        // SAFETY: as in `push_tag`. It does nothing unless the device summed the packet up.
        unsafe { bpf_csum_update(self.context, sum.wrapping_add(u32::from(carry))) };
    }
}

/// [`Packet::wrap`], with 0 for none; not inlined for the sake of the caller's stack. `bits` are the tag, bit 32 for IPv6
/// inside, bit 33 for IPv6 outside.
#[inline(never)]
fn wrap(context: *mut __sk_buff, l3: u32, bytes: u32, bits: u64) -> u64 {
    let outer = Outer {
        bytes,
        v6: bits >> 33 & 1 != 0,
        inner_v6: bits >> 32 & 1 != 0,
        vlan: bits as u16,
    };
    SkbPacket { context }
        .wrapped(l3, outer)
        .map_or(0, u64::from)
}

impl SkbPacket {
    /// Takes outer headers off. Before Linux 6.3 the kernel is not told which version is inside: where it is the other one, the
    /// outer header first becomes one of it, by as many bytes as the two differ.
    #[inline(always)]
    fn take_off(&mut self, outer: Outer) -> Option<()> {
        let mut bytes = outer.bytes as i32;
        let version = if outer.inner_v6 {
            BPF_F_ADJ_ROOM_DECAP_L3_IPV6
        } else {
            BPF_F_ADJ_ROOM_DECAP_L3_IPV4
        };
        let mut result = self.adjust(-bytes, version);
        if result == EINVAL {
            if outer.v6 != outer.inner_v6 {
                let (kind, more) = if outer.inner_v6 {
                    (ethertype::IPV6, LONGER)
                } else {
                    (ethertype::IPV4, -LONGER)
                };
                // SAFETY: as in `push_tag`.
                let changed =
                    unsafe { bpf_skb_change_proto(self.context, u16::from_ne_bytes(kind), 0) };
                if changed != 0 {
                    return None;
                }
                bytes += more;
            }
            result = self.adjust(-bytes, 0);
        }
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn wrapped(&mut self, l3: u32, outer: Outer) -> Option<u32> {
        let beside = self.is_tagged();
        self.pop_tags(l3, beside);
        let version = if outer.v6 {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
        } else {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        };
        let bytes = outer.bytes as i32;
        let mut result = self.adjust(bytes, version | BPF_F_ADJ_ROOM_ENCAP_L4_UDP);
        // It came out of such headers before, and all that the kernel knows of the packet inside holds again; but not of
        // which version the outer header is, and that counts where the packet is cut.
        if result == EALREADY && (outer.v6 == outer.inner_v6 || self.segment() == 0) {
            result = self.adjust(bytes, 0);
        }
        if result != 0 {
            return None;
        }
        outer.write_link(self, IP)?;
        if outer.vlan != 0 {
            self.push_tag(ethertype::VLAN, outer.vlan)?;
        }
        // For `close`, which takes one off.
        if beside {
            self.push_tag(ethertype::VLAN, 0)?;
        }
        Some(if beside && outer.vlan != 0 {
            IP + TAG
        } else {
            IP
        })
    }
}
