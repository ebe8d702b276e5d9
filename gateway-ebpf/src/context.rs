//! A packet in the kernel: the only place with pointers into it.

use core::arch::asm;
use core::mem::size_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
};
use aya_ebpf::helpers::{
    bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie, bpf_xdp_adjust_head,
};
use aya_ebpf::programs::XdpContext;
use gateway_common::packet::{Header, IP, Ipv4, L4, Packet, Tcp};
use gateway_common::steer::{Local, Tuple};

/// `TCP_LISTEN` of the kernel's `enum` of socket states.
const LISTEN: u32 = 10;

/// A packet as an XDP program gets it.
pub struct XdpPacket {
    /// The program's context.
    pub context: XdpContext,
}

impl XdpPacket {
    /// The address of `size` bytes at `offset`, if the packet holds them.
    #[inline(always)]
    fn at(&self, offset: u32, size: usize) -> Option<usize> {
        let start = self.context.data() + offset as usize;
        if start + size <= self.context.data_end() {
            Some(start)
        } else {
            None
        }
    }

    /// What this node's sockets say about the packet, whose TCP header lies at [`L4`].
    #[inline(never)]
    pub fn local(&self, tuple: &Tuple) -> Local {
        let [a, b, c, d] = tuple.ports;
        let mut key = bpf_sock_tuple {
            __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 {
                ipv4: bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                    saddr: u32::from_ne_bytes(tuple.source),
                    daddr: u32::from_ne_bytes(tuple.destination),
                    sport: u16::from_ne_bytes([a, b]),
                    dport: u16::from_ne_bytes([c, d]),
                },
            },
        };
        let size = size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>() as u32;
        let context = self.context.as_ptr();
        // SAFETY: the key lives until the call returns and holds `size` bytes of the IPv4 form.
        let socket = unsafe {
            bpf_skc_lookup_tcp(context, &raw mut key, size, BPF_F_CURRENT_NETNS as u64, 0)
        };
        if socket.is_null() {
            return Local::None;
        }
        // SAFETY: not null, and ours until it is released.
        let listens = unsafe { (*socket).state } == LISTEN;
        let local = match (listens, self.at(IP, size_of::<Ipv4>() + size_of::<Tcp>())) {
            (false, _) => Local::Flow,
            (true, None) => Local::Listener,
            (true, Some(ip)) => {
                let tcp = ip + (L4 - IP) as usize;
                let (ip_size, tcp_size) = (size_of::<Ipv4>() as u32, size_of::<Tcp>() as u32);
                // SAFETY: `at` checked that both headers lie within the packet; the socket is ours.
                let cookie = unsafe {
                    bpf_tcp_check_syncookie(
                        socket.cast(),
                        ip as *mut _,
                        ip_size,
                        tcp as *mut _,
                        tcp_size,
                    )
                };
                if cookie == 0 {
                    Local::Cookie
                } else {
                    Local::Listener
                }
            }
        };
        // SAFETY: the reference from the lookup, given back once and not used after.
        unsafe { bpf_sk_release(socket.cast()) };
        local
    }

    /// Moves the packet's start by `delta` bytes.
    #[inline(always)]
    fn adjust(&mut self, delta: i32) -> Option<()> {
        // SAFETY: the context is the program's own; addresses into the packet are never kept across calls.
        let result = unsafe { bpf_xdp_adjust_head(self.context.ctx, delta) };
        (result == 0).then_some(())
    }
}

impl Packet for XdpPacket {
    #[inline(always)]
    fn len(&self) -> u32 {
        (self.context.data_end() - self.context.data()) as u32
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.context.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn read<H: Header>(&self, offset: u32) -> Option<H> {
        let start = self.at(offset, size_of::<H>())?;
        let mut header = H::zeroed();
        let to = &raw mut header;
        for word in 0..size_of::<H>() / 4 {
            // SAFETY: `at` checked the bounds; any bytes are a valid header.
            unsafe {
                to.cast::<u32>()
                    .add(word)
                    .write_unaligned(load_u32(start + 4 * word))
            };
        }
        if size_of::<H>() % 4 == 2 {
            let rest = size_of::<H>() - 2;
            // SAFETY: as above; the last two bytes.
            unsafe {
                to.cast::<u8>()
                    .add(rest)
                    .cast::<u16>()
                    .write_unaligned(load_u16(start + rest))
            };
        }
        Some(header)
    }

    #[inline(always)]
    fn write<H: Header>(&mut self, offset: u32, header: H) -> Option<()> {
        let start = self.at(offset, size_of::<H>())?;
        let from = &raw const header;
        for word in 0..size_of::<H>() / 4 {
            // SAFETY: `at` checked the bounds; nobody else has the packet while the program runs.
            unsafe {
                store_u32(
                    start + 4 * word,
                    from.cast::<u32>().add(word).read_unaligned(),
                )
            };
        }
        if size_of::<H>() % 4 == 2 {
            let rest = size_of::<H>() - 2;
            // SAFETY: as above; the last two bytes.
            unsafe {
                store_u16(
                    start + rest,
                    from.cast::<u8>().add(rest).cast::<u16>().read_unaligned(),
                )
            };
        }
        Some(())
    }

    #[inline(always)]
    fn push(&mut self, bytes: u32) -> Option<()> {
        self.adjust(-(bytes as i32))
    }

    #[inline(always)]
    fn pop(&mut self, bytes: u32) -> Option<()> {
        self.adjust(bytes as i32)
    }
}

// Words in a packet lie at any even address. The machines that run this load and store them there in one go, but the
// compiler, which is told of one BPF machine for all, would put a word together from pieces.

/// Loads a word from a packet.
///
/// # Safety
///
/// Four bytes at `address` must lie within the packet.
#[inline(always)]
unsafe fn load_u32(address: usize) -> u32 {
    let word: u32;
    // SAFETY: the caller's; the instruction reads those bytes and nothing else.
    unsafe {
        asm!("{} = *(u32 *)({} + 0)", out(wreg) word, in(reg) address, options(pure, readonly, nostack))
    };
    word
}

/// Loads half a word from a packet.
///
/// # Safety
///
/// Two bytes at `address` must lie within the packet.
#[inline(always)]
unsafe fn load_u16(address: usize) -> u16 {
    let word: u32;
    // SAFETY: the caller's; the instruction reads those bytes and nothing else.
    unsafe {
        asm!("{} = *(u16 *)({} + 0)", out(wreg) word, in(reg) address, options(pure, readonly, nostack))
    };
    word as u16
}

/// Stores a word into a packet.
///
/// # Safety
///
/// Four bytes at `address` must lie within the packet.
#[inline(always)]
unsafe fn store_u32(address: usize, word: u32) {
    // SAFETY: the caller's; the instruction writes those bytes and nothing else.
    unsafe { asm!("*(u32 *)({} + 0) = {}", in(reg) address, in(wreg) word, options(nostack)) };
}

/// Stores half a word into a packet.
///
/// # Safety
///
/// Two bytes at `address` must lie within the packet.
#[inline(always)]
unsafe fn store_u16(address: usize, word: u16) {
    // SAFETY: the caller's; the instruction writes those bytes and nothing else.
    unsafe {
        asm!("*(u16 *)({} + 0) = {}", in(reg) address, in(wreg) u32::from(word), options(nostack))
    };
}
