//! A packet in the kernel: the only place with pointers into it.
//!
//! It comes in two forms, a frame as XDP gets it ([`XdpPacket`]) and a socket buffer as traffic control gets it
//! ([`SkbPacket`]). What both have in common is here: every access loads the packet's bounds anew, so that no address
//! outlives a change of them.

mod skb;
mod xdp;

use core::arch::asm;
use core::ffi::c_void;
use core::intrinsics::is_val_statically_known;
use core::mem::size_of;

use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, bpf_fib_lookup as fib_lookup_params, bpf_sock_tuple,
};
use aya_ebpf::helpers::{
    bpf_fib_lookup, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
    bpf_tcp_gen_syncookie,
};
use gateway_common::packet::{Header, Ipv6, Packet, Tcp};
use gateway_common::steer::{Headers, Local, Tuple, Way};

pub use self::skb::SkbPacket;
pub use self::xdp::XdpPacket;

/// `TCP_LISTEN` of the kernel's `enum` of socket states.
const LISTEN: u32 = 10;
/// `TCP_TIME_WAIT` of the same.
const TIME_WAIT: u32 = 6;

/// Bytes of an IP header for the cookie helpers: those of IPv6, or of IPv4 and the TCP header behind it.
const IP_SIZE: usize = size_of::<Ipv6>();

/// Words of the longest TCP header.
const TCP_WORDS: usize = 15;

/// Offsets of headers lie below this: the verifier must see it.
const REACH: u32 = 1024;

/// Does something for each of a header's words, whose number must be a constant expression by the place where it stands: each time
/// the word's own number is a constant, as the displacement of an instruction has to be.
macro_rules! each_word {
    ($word:ident, $count:expr => $body:block) => {
        const { assert!($count <= 14, "more words than are counted") };
        each_word!(@ $word, $count => $body; 0 1 2 3 4 5 6 7 8 9 10 11 12 13);
    };
    (@ $word:ident, $count:expr => $body:block; $($number:literal)*) => {
        $(if $number < $count {
            const $word: usize = $number;
            $body
        })*
    };
}

/// A packet with its context.
pub trait Frame: Packet {
    /// The program's context.
    fn pointer(&self) -> *mut c_void;

    /// Where the packet begins.
    fn start(&self) -> usize;

    /// Where the bytes end that can be accessed.
    fn end(&self) -> usize;

    /// The address of `size` bytes at `offset`, if the packet holds them.
    #[inline(always)]
    fn at(&self, offset: u32, size: usize) -> Option<usize> {
        let start = self.start() + bounded(offset);
        if start + size <= self.end() {
            Some(start)
        } else {
            None
        }
    }

    /// See [`Packet::read`].
    #[inline(always)]
    fn load<H: Header>(&self, offset: u32) -> Option<H> {
        let start = self.at(offset, size_of::<H>())?;
        let mut header = H::zeroed();
        let to = (&raw mut header).cast::<u32>();
        each_word!(WORD, size_of::<H>() / 4 => {
            // SAFETY: `at` checked the bounds; any bytes are a valid header.
            unsafe { to.add(WORD).write_unaligned(load_u32::<{ 4 * WORD }>(start)) };
        });
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

    /// See [`Packet::words`].
    #[inline(always)]
    fn load_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = self.at(offset, 4 * N)?;
        let mut words = [0; N];
        each_word!(I, N => {
            // SAFETY: `at` checked the bounds.
            words[I] = unsafe { load_u32::<{ 4 * I }>(start) };
        });
        Some(words)
    }

    /// See [`Packet::longs`].
    #[inline(always)]
    fn load_longs<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        let start = self.at(offset, 8 * N)?;
        let mut longs = [0; N];
        each_word!(I, N => {
            // SAFETY: `at` checked the bounds.
            longs[I] = unsafe { load_u64::<{ 8 * I }>(start) };
        });
        Some(longs)
    }

    /// See [`Packet::write`].
    #[inline(always)]
    fn store<H: Header>(&mut self, offset: u32, header: H) -> Option<()> {
        let start = self.at(offset, size_of::<H>())?;
        let from = &raw const header;
        each_word!(WORD, size_of::<H>() / 4 => {
            // SAFETY: `at` checked the bounds; nobody else has the packet while the program runs.
            unsafe {
                let word = from.cast::<u32>().add(WORD).read_unaligned();
                store_u32::<{ 4 * WORD }>(start, word);
            };
        });
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

    /// See [`Packet::write_words`].
    #[inline(always)]
    fn store_words<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
        let start = self.at(offset, 4 * N)?;
        each_word!(I, N => {
            // SAFETY: `at` checked the bounds.
            unsafe { store_u32::<{ 4 * I }>(start, words[I]) };
        });
        Some(())
    }

    /// What this node's sockets say about the packet.
    #[inline(always)]
    fn local(&self, tuple: &Tuple, headers: Headers) -> Local {
        let context = self.pointer();
        let key = (&raw const tuple.words).cast_mut().cast::<bpf_sock_tuple>();
        // SAFETY: the key lives until the call returns and holds as many bytes as the size says.
        let socket = unsafe {
            if tuple.v6 {
                bpf_skc_lookup_tcp(context, key, 36, BPF_F_CURRENT_NETNS as u64, 0)
            } else {
                bpf_skc_lookup_tcp(context, key, 12, BPF_F_CURRENT_NETNS as u64, 0)
            }
        };
        if socket.is_null() {
            return Local::None;
        }
        // SAFETY: not null, and ours until it is released.
        let state = unsafe { (*socket).state };
        let local = if state == TIME_WAIT {
            Local::TimeWait
        } else if state != LISTEN {
            Local::Flow
        } else if headers.own && self.carries_cookie(socket.cast(), headers) {
            Local::Cookie
        } else {
            Local::Listener
        };
        // SAFETY: the reference from the lookup, given back once and not used after.
        unsafe { bpf_sk_release(socket.cast()) };
        local
    }

    /// Whether an ACK carries a SYN cookie of the listening socket's kernel.
    #[inline(always)]
    fn carries_cookie(&self, listener: *mut c_void, headers: Headers) -> bool {
        let Some(tcp) = self.at(headers.tcp, size_of::<Tcp>()) else {
            return false;
        };
        let Some(ip) = self.at(headers.ip, IP_SIZE) else {
            return false;
        };
        let (tcp, size) = (tcp as *mut _, size_of::<Tcp>() as u32);
        // SAFETY: `at` checked that both headers lie within the packet; the socket is the caller's.
        let result =
            unsafe { bpf_tcp_check_syncookie(listener, ip as *mut _, IP_SIZE as u32, tcp, size) };
        result == 0
    }

    /// A cookie for a SYN, if there is a listening socket whose kernel makes one.
    #[inline(never)]
    fn syn_cookie(&self, tuple: &Tuple, headers: Headers) -> u64 {
        // The header is copied: its length is known only here, and the helper wants all of it.
        let mut header = [0_u32; TCP_WORDS];
        let at = headers.tcp;
        let Some(fixed) = self.read::<Tcp>(at) else {
            return 0;
        };
        // Through the mask, so that the verifier sees the length between 20 and 60 where the helper takes it.
        let length = bounded(fixed.header_length()) as u32;
        if length < size_of::<Tcp>() as u32 || length > 4 * TCP_WORDS as u32 {
            return 0;
        }
        for (word, place) in header.iter_mut().enumerate() {
            if (word as u32) < length / 4 {
                let Some(from) = self.at(at + 4 * word as u32, 4) else {
                    return 0;
                };
                // SAFETY: `at` checked the four bytes.
                *place = unsafe { load_u32::<0>(from) };
            }
        }
        let context = self.pointer();
        let key = (&raw const tuple.words).cast_mut().cast::<bpf_sock_tuple>();
        // SAFETY: as in `local`.
        let socket = unsafe {
            if tuple.v6 {
                bpf_skc_lookup_tcp(context, key, 36, BPF_F_CURRENT_NETNS as u64, 0)
            } else {
                bpf_skc_lookup_tcp(context, key, 12, BPF_F_CURRENT_NETNS as u64, 0)
            }
        };
        if socket.is_null() {
            return 0;
        }
        let mut cookie = -1;
        // SAFETY: not null, and ours until it is released.
        if unsafe { (*socket).state } == LISTEN
            && let Some(ip) = self.at(headers.ip, IP_SIZE)
        {
            let tcp = header.as_mut_ptr().cast();
            // SAFETY: `at` checked the IP header; the TCP header is on the stack, `length` is at most its size.
            cookie = unsafe {
                bpf_tcp_gen_syncookie(socket.cast(), ip as *mut _, IP_SIZE as u32, tcp, length)
            };
        }
        // SAFETY: the reference from the lookup, given back once and not used after.
        unsafe { bpf_sk_release(socket.cast()) };
        if cookie > 0 { cookie as u64 } else { 0 }
    }

    /// The way from VIP to client.
    #[inline(never)]
    fn way_back(&self, tuple: &Tuple, way: &mut Way) -> bool {
        const AF_INET: u8 = 2;
        const AF_INET6: u8 = 10;
        // SAFETY: plain integers and arrays of them.
        let mut query: fib_lookup_params = unsafe { core::mem::zeroed() };
        let w = &tuple.words;
        query.l4_protocol = gateway_common::packet::protocol::TCP;
        query.ifindex = self.ingress();
        if tuple.v6 {
            query.family = AF_INET6;
            query.__bindgen_anon_3.ipv6_src = [w[4], w[5], w[6], w[7]];
            query.__bindgen_anon_4.ipv6_dst = [w[0], w[1], w[2], w[3]];
        } else {
            query.family = AF_INET;
            query.__bindgen_anon_3.ipv4_src = w[1];
            query.__bindgen_anon_4.ipv4_dst = w[0];
        }
        let size = size_of::<fib_lookup_params>() as i32;
        // SAFETY: the query lives until the call returns and has the size that is given.
        let found = unsafe { bpf_fib_lookup(self.pointer(), &raw mut query, size, 0) } == 0;
        // SAFETY: the helper has filled these in.
        unsafe {
            way.destination_mac = query.dmac;
            way.source_mac = query.smac;
        }
        way.ifindex = query.ifindex;
        found
    }
}

/// What an instance of [`Packet`] takes from its [`Frame`].
macro_rules! access {
    () => {
        #[inline(always)]
        fn read<H: Header>(&self, offset: u32) -> Option<H> {
            self.load(offset)
        }

        #[inline(always)]
        fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
            self.load_words(offset)
        }

        #[inline(always)]
        fn longs<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
            self.load_longs(offset)
        }

        #[inline(always)]
        fn write<H: Header>(&mut self, offset: u32, header: H) -> Option<()> {
            self.store(offset, header)
        }

        #[inline(always)]
        fn write_words<const N: usize>(&mut self, offset: u32, words: [u32; N]) -> Option<()> {
            self.store_words(offset, words)
        }
    };
}
use access;

/// An offset below [`REACH`], as the decision's all are, in a form in which the verifier sees it: the compiler would drop
/// a plain mask whose need it does not see.
#[inline(always)]
fn bounded(offset: u32) -> usize {
    let offset = offset as usize;
    if is_val_statically_known(offset) {
        return offset;
    }
    let bounded: usize;
    // SAFETY: a mask.
    unsafe {
        asm!("{0} &= {1}", inlateout(reg) offset => bounded, const REACH - 1, options(pure, nomem, nostack))
    };
    bounded
}

// Words in a packet lie at any even address. The machines that run this load and store them there in one go, but the
// compiler, which is told of one BPF machine for all, would put a word together from pieces.

/// Loads a word of eight bytes from a packet.
///
/// # Safety
///
/// Eight bytes `AT` bytes behind `address` must lie within the packet.
#[inline(always)]
unsafe fn load_u64<const AT: usize>(address: usize) -> u64 {
    let word: u64;
    // SAFETY: the caller's; the instruction reads those bytes and nothing else.
    unsafe {
        asm!("{} = *(u64 *)({} + {})", out(reg) word, in(reg) address, const AT, options(pure, readonly, nostack))
    };
    word
}

/// Loads a word from a packet.
///
/// # Safety
///
/// Four bytes `AT` bytes behind `address` must lie within the packet.
#[inline(always)]
unsafe fn load_u32<const AT: usize>(address: usize) -> u32 {
    let word: u32;
    // SAFETY: the caller's; the instruction reads those bytes and nothing else.
    unsafe {
        asm!("{} = *(u32 *)({} + {})", out(wreg) word, in(reg) address, const AT, options(pure, readonly, nostack))
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

/// Stores a word of eight bytes into a packet.
///
/// # Safety
///
/// Eight bytes at `address` must lie within the packet.
#[cfg(feature = "bench")]
#[inline(always)]
unsafe fn store_u64(address: usize, word: u64) {
    // SAFETY: the caller's; the instruction writes those bytes and nothing else.
    unsafe { asm!("*(u64 *)({} + 0) = {}", in(reg) address, in(reg) word, options(nostack)) };
}

/// Stores a word into a packet.
///
/// # Safety
///
/// Four bytes `AT` bytes behind `address` must lie within the packet.
#[inline(always)]
unsafe fn store_u32<const AT: usize>(address: usize, word: u32) {
    // SAFETY: the caller's; the instruction writes those bytes and nothing else.
    unsafe {
        asm!("*(u32 *)({} + {}) = {}", in(reg) address, const AT, in(wreg) word, options(nostack))
    };
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
