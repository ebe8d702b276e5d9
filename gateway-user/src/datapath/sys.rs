//! bpf(2) commands for links, as raw as the kernel has them: unlike the loader library's, creating a link here
//! never falls back to an attachment that cannot be pinned, and any link's program can be replaced.

pub(super) mod freplace;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info};

/// What a pinned link belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkTarget {
    /// An interface index; 0 if the interface is gone.
    Interface(u32),
    /// The inode of a network namespace; 0 if the namespace is gone.
    Namespace(u32),
    /// Another kind of link.
    Other,
}

/// Gives memory that this thread freed back to the system at once; an idle process would keep it.
pub fn return_freed_memory() {
    #[cfg(feature = "mimalloc")]
    // SAFETY: may be called at any time from any thread; touches free memory only.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

/// The start is over: gives back what only it needed. From now on freed memory is kept for reuse.
pub fn settle_memory() {
    return_freed_memory();
    return_program_pages();
    keep_freed_memory(KEPT_WHILE_SERVING);
}

/// Takes the program's own code and constants out of this process's memory: starting needs much that is never wanted again,
/// the kernel programs among it. What is wanted comes back from the page cache when it is touched.
fn return_program_pages() {
    unsafe extern "C" {
        // Set by the linker: the first byte of the program, and the first one behind its code.
        static __executable_start: u8;
        static etext: u8;
    }
    let page = rustix::param::page_size();
    let (start, end) = (&raw const __executable_start, &raw const etext);
    let length = (end.addr() & !(page - 1)).saturating_sub(start.addr());
    // SAFETY: nobody writes to these pages, not the loader either, so that each is as it is in the file.
    let _unneeded = unsafe {
        rustix::mm::madvise(
            start.cast_mut().cast(),
            length,
            rustix::mm::Advice::LinuxDontNeed,
        )
    };
}

/// For how long freed memory is kept for reuse before the system gets it back, in milliseconds; the allocator's own
/// choice is a second. Starting up frees much that is never wanted again, on threads that
/// [`return_freed_memory`] does not reach.
pub fn keep_freed_memory(milliseconds: u16) {
    #[cfg(feature = "mimalloc")]
    {
        /// Place of `purge_delay` among the options of mimalloc 2 and 3; the crate does not name it.
        const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
        // SAFETY: an option of the allocator, read at each use; may be set at any time.
        unsafe {
            libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds.into());
        }
    }
    #[cfg(not(feature = "mimalloc"))]
    let _ = milliseconds;
}

/// What mimalloc keeps freed memory for unless told otherwise, in milliseconds.
const KEPT_WHILE_SERVING: u16 = 1000;

fn zeroed() -> bpf_attr {
    // SAFETY: the union consists of plain integers and arrays of them; zero is a value of all.
    unsafe { std::mem::zeroed() }
}

fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attributes` is a whole bpf_attr; what it points to is kept alive by the callers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attributes),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just handed us this descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Opens a pinned object.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = zeroed();
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes).map(owned)
}

/// Pins an object.
pub(crate) fn pin(fd: impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = zeroed();
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attributes.__bindgen_anon_4.bpf_fd = raw(fd.as_fd());
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes).map(|_| ())
}

/// Attaches an XDP program; `flags` are `XDP_FLAGS_…`.
pub(crate) fn link_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    link(program, ifindex, bpf_attach_type::BPF_XDP, flags)
}

/// Attaches a program to traffic control's way in, before all that are there (Linux 6.6).
pub(crate) fn link_tcx(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    /// Without another program named: before all.
    const BPF_F_BEFORE: u32 = 1 << 3;
    link(
        program,
        ifindex,
        bpf_attach_type::BPF_TCX_INGRESS,
        BPF_F_BEFORE,
    )
}

/// Attaches an `sk_lookup` program to a network namespace.
pub(crate) fn link_lookup(
    program: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    link(program, raw(namespace), bpf_attach_type::BPF_SK_LOOKUP, 0)
}

fn link(
    program: BorrowedFd<'_>,
    target: u32,
    kind: bpf_attach_type,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attributes.link_create.__bindgen_anon_2.target_fd = target;
    attributes.link_create.attach_type = kind as u32;
    attributes.link_create.flags = flags;
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes).map(owned)
}

/// Replaces the program of a link; packets meet the old one or the new one, never none.
pub(crate) fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = zeroed();
    attributes.link_update.link_fd = raw(link);
    attributes.link_update.__bindgen_anon_1.new_prog_fd = raw(program);
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attributes).map(|_| ())
}

/// Whether this is Linux `major.minor` or newer.
#[must_use]
pub fn is_linux(major: u32, minor: u32) -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// Takes a link off what it is attached to, at once: a link that nobody holds any longer goes some time after.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = zeroed();
    attributes.link_detach.link_fd = raw(link);
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attributes).map(|_| ())
}

/// What a link is attached to.
pub(crate) fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    use aya_obj::generated::bpf_link_type::{
        BPF_LINK_TYPE_NETNS, BPF_LINK_TYPE_TCX, BPF_LINK_TYPE_XDP,
    };
    let info = link_info(link)?;
    // SAFETY: the kernel fills the member that belongs to `type_`; all are plain integers.
    Ok(unsafe {
        if info.type_ == BPF_LINK_TYPE_XDP as u32 {
            LinkTarget::Interface(info.__bindgen_anon_1.xdp.ifindex)
        } else if info.type_ == BPF_LINK_TYPE_TCX as u32 {
            LinkTarget::Interface(info.__bindgen_anon_1.tcx.ifindex)
        } else if info.type_ == BPF_LINK_TYPE_NETNS as u32 {
            LinkTarget::Namespace(info.__bindgen_anon_1.netns.netns_ino)
        } else {
            LinkTarget::Other
        }
    })
}

/// The number of the program in a link.
pub(crate) fn link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    link_info(link).map(|info| info.prog_id)
}

fn link_info(link: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    // SAFETY: plain integers and arrays of them.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    object_info(link, &mut info)?;
    Ok(info)
}

/// The number of a program.
pub(crate) fn program_number(program: BorrowedFd<'_>) -> io::Result<u32> {
    // The head of `struct bpf_prog_info`: kind and number.
    let mut head = [0_u32; 2];
    object_info(program, &mut head)?;
    Ok(head[1])
}

/// Has the kernel fill the head of what it tells of an object.
fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attributes = zeroed();
    attributes.info.bpf_fd = raw(object);
    attributes.info.info = std::ptr::from_mut(info) as u64;
    attributes.info.info_len = size_of::<T>() as u32;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes).map(drop)
}

/// A number that is the same for all sockets of one network namespace, and for no others.
pub(crate) fn namespace_cookie(socket: impl AsFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    socket_option(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE)
}

/// Who is at the other end of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// None for a process that cannot be seen from this PID namespace: another container of the same pod, for example.
    pub pid: Option<i32>,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Asks the kernel who has connected. Not by rustix, for which a process always has a number.
///
/// # Errors
/// What the kernel says of the socket.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<PeerCredentials> {
    // As `struct ucred` has them.
    let [pid, uid, gid] = socket_option::<[u32; 3]>(socket, libc::SOL_SOCKET, libc::SO_PEERCRED)?;
    Ok(PeerCredentials {
        pid: i32::try_from(pid).ok().filter(|pid| *pid != 0),
        uid,
        gid,
    })
}

/// What a TCP socket has sent and its client has not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    /// Whether there is something, the end of the stream included.
    pub any: bool,
    /// Bytes acknowledged so far.
    pub acknowledged: u64,
}

/// What a TCP socket has still to send or to hear of.
///
/// # Errors
/// What the kernel says of the socket.
pub fn owed(socket: impl AsFd) -> io::Result<Owed> {
    // Asked of every connection at its end, and little work for the kernel where the answer is no.
    if outgoing(&socket)? == 0 {
        return Ok(Owed {
            any: false,
            acknowledged: 0,
        });
    }
    // The head of `struct tcp_info`, which grows at its end only: bytes, then words of 32 bits from 8 on, `tcpi_bytes_acked`
    // at 120, words again from 136 on.
    let info = socket_option::<[u64; 19]>(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    let bytes: &[u8] = bytemuck::bytes_of(&info);
    let word = |at: usize| bytemuck::pod_read_unaligned::<u32>(&bytes[at..at + 4]);
    let (state, unacknowledged, unsent) = (bytes[0], word(24), word(144));
    // A socket that was reset still counts what nobody will ask for (`TCP_CLOSE`).
    const CLOSED: u8 = 7;
    Ok(Owed {
        any: state != CLOSED && (unacknowledged > 0 || unsent > 0),
        acknowledged: info[15],
    })
}

/// Bytes that a TCP socket has been given and its peer has not acknowledged, with one for the end of the stream; of one that was
/// reset as many as it ever had.
fn outgoing(socket: impl AsFd) -> io::Result<libc::c_int> {
    let mut bytes = 0;
    // SAFETY: SIOCOUTQ, which has this name of terminals, writes one `int`, ours.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes)
}

/// An option of a socket that is as long as `T`.
fn socket_option<T: bytemuck::Pod>(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<T> {
    let mut value = T::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: writes at most `length` bytes to `value`, both ours; every pattern of bytes is a `T`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(&mut value).cast(),
            &raw mut length,
        )
    };
    if result < 0 || length as usize != size_of::<T>() {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

/// Ticks of the kernel's jiffies per second, told by the resolution of the coarse clock.
pub(crate) fn ticks_per_second() -> u32 {
    let mut resolution = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec of ours.
    let result = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut resolution) };
    match u32::try_from(resolution.tv_nsec) {
        Ok(nanoseconds) if result == 0 && nanoseconds > 0 => 1_000_000_000 / nanoseconds,
        _ => 250,
    }
}

/// An ethtool request that reads one 32-bit value, for example `ETHTOOL_GTXCSUM`.
pub(crate) fn ethtool_value(interface: &str, command: u32) -> io::Result<u32> {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value { command, data: 0 };
    ethtool(interface, std::ptr::from_mut(&mut value).cast())?;
    Ok(value.data)
}

/// Name of the interface with this index in this network namespace.
#[must_use]
pub fn interface_name(index: u32) -> Option<String> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: writes a name with its end into a buffer of the size that it asks for.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    let end = name.iter().position(|byte| *byte == 0)?;
    String::from_utf8(name[..end].to_vec()).ok()
}

/// Queues of a network card that packets come in by, as they are set now.
pub(crate) fn ethtool_queues(interface: &str) -> io::Result<u32> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    // struct ethtool_channels: command, four maxima, then receive, send, other and combined counts.
    let mut channels = [0_u32; 9];
    channels[0] = ETHTOOL_GCHANNELS;
    ethtool(interface, channels.as_mut_ptr().cast())?;
    Ok(channels[5] + channels[8])
}

/// What the network card hashes packets of a kind by (`RXH_…`) to spread them over its queues.
pub(crate) fn ethtool_flow_hash(interface: &str, flow: u32) -> io::Result<u64> {
    const ETHTOOL_GRXFH: u32 = 0x29;
    /// The head of `struct ethtool_rxnfc`: the rest (another 176 bytes) is not read nor written by this command.
    #[repr(C)]
    struct FlowHash {
        command: u32,
        flow: u32,
        by: u64,
        rest: [u64; 22],
    }
    let mut request = FlowHash {
        command: ETHTOOL_GRXFH,
        flow,
        by: 0,
        rest: [0; 22],
    };
    ethtool(interface, std::ptr::from_mut(&mut request).cast())?;
    Ok(request.by)
}

/// Runs an XDP program once on a frame as if `ifindex` had received it, and does with the frame what the program says.
pub(crate) fn receive_live(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32) -> io::Result<()> {
    const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, length, 0, ifindex, 0, 0];
    let mut attributes = zeroed();
    attributes.test.prog_fd = raw(program);
    attributes.test.data_size_in = length;
    attributes.test.data_in = frame.as_ptr() as u64;
    attributes.test.ctx_size_in = size_of_val(&context) as u32;
    attributes.test.ctx_in = context.as_ptr() as u64;
    attributes.test.repeat = 1;
    attributes.test.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes).map(|_| ())
}

/// Name of the driver of an interface.
pub(crate) fn ethtool_driver(interface: &str) -> io::Result<String> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    // struct ethtool_drvinfo is 196 bytes: u32 command, then char driver[32], then what we do not read.
    let mut information = [0_u32; 49];
    information[0] = ETHTOOL_GDRVINFO;
    ethtool(interface, information.as_mut_ptr().cast())?;
    let bytes = bytemuck::cast_slice::<u32, u8>(&information[1..9]);
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

fn ethtool(interface: &str, data: *mut libc::c_char) -> io::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: plain integers, arrays and a pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::NotFound.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_data = data;
    // SAFETY: `request` names an interface and points to a structure of the size its command says.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
