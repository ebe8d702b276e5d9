//! A frame as an XDP program gets it.

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use gateway_common::packet::{Header, Packet};

use super::{Frame, access};

/// A frame as an XDP program gets it.
pub struct XdpPacket {
    /// The program's context.
    pub context: XdpContext,
}

impl XdpPacket {
    /// Moves the packet's start by `delta` bytes.
    #[inline(always)]
    pub(crate) fn adjust(&mut self, delta: i32) -> Option<()> {
        // SAFETY: the context is the program's own; addresses into the packet are never kept across calls.
        let result = unsafe { bpf_xdp_adjust_head(self.context.ctx, delta) };
        (result == 0).then_some(())
    }

    /// Stores half a word at `offset`, an even number, as it is in memory.
    #[cfg(feature = "bench")]
    #[inline(always)]
    pub(crate) fn put_half(&mut self, offset: u32, half: u16) -> Option<()> {
        let start = self.at(offset, 2)?;
        // SAFETY: `at` checked the bounds.
        unsafe { super::store_u16(start, half) };
        Some(())
    }

    /// Stores `count` words of eight bytes, as they are in memory, from the packet's start on, as far as it reaches.
    #[cfg(feature = "bench")]
    #[inline(always)]
    pub(crate) fn overwrite(&mut self, count: usize, word: impl Fn(usize) -> u64) {
        let (start, end) = (self.start(), self.end());
        for i in 0..count {
            if start + 8 * i + 8 > end {
                break;
            }
            // SAFETY: the bounds were just checked; nobody else has the packet while the program runs.
            unsafe { super::store_u64(start + 8 * i, word(i)) };
        }
    }
}

impl Frame for XdpPacket {
    #[inline(always)]
    fn pointer(&self) -> *mut c_void {
        self.context.as_ptr()
    }

    /// Loaded by an instruction that the compiler does not see through: it would hand the word to functions that are not
    /// inlined in half a register, and the verifier would not know it for an address any more.
    #[inline(always)]
    fn start(&self) -> usize {
        let address: usize;
        // SAFETY: the context's first word; the instruction reads it and nothing else.
        unsafe {
            asm!("{} = *(u32 *)({} + 0)", out(reg) address, in(reg) self.context.ctx, options(pure, readonly, nostack))
        };
        address
    }

    /// As [`Self::start`].
    #[inline(always)]
    fn end(&self) -> usize {
        let address: usize;
        // SAFETY: the context's second word; the instruction reads it and nothing else.
        unsafe {
            asm!("{} = *(u32 *)({} + 4)", out(reg) address, in(reg) self.context.ctx, options(pure, readonly, nostack))
        };
        address
    }
}

impl Packet for XdpPacket {
    access!();

    #[inline(always)]
    fn len(&self) -> u32 {
        (self.end() - self.start()) as u32
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.context.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn push(&mut self, bytes: u32) -> Option<()> {
        self.adjust(-(bytes as i32))
    }

    #[inline(always)]
    fn pop(&mut self, bytes: u32) -> Option<()> {
        self.adjust(bytes as i32)
    }

    #[inline(always)]
    fn set_len(&mut self, length: u32) -> Option<()> {
        let delta = length as i32 - self.len() as i32;
        if delta == 0 {
            return Some(());
        }
        // SAFETY: the context is the program's own; addresses into the packet are never kept across calls.
        let result = unsafe { bpf_xdp_adjust_tail(self.context.ctx, delta) };
        (result == 0).then_some(())
    }
}
