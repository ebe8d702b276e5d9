//! A packet as if an interface had received it, and what goes out because of it: for `forebay check`.
//!
//! A program that passes everything is run once by the kernel on a frame of ours (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux
//! 5.18): the frame goes on into the stack behind XDP, through netfilter and routing, as one from the wire does. Nothing
//! is attached to any interface.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use aya::Ebpf;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use super::attach::pass_program;
use super::netlink::{Body, Netlink, attributes, word};
use super::{Error, neighbours, sys};

/// Longest frame that is looked at.
const LONGEST: usize = 256;

/// An interface that packets can be tried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its index.
    pub ifindex: u32,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its MTU.
    pub mtu: u32,
    /// `up`, `down`, `unknown` or another word of RFC 2863; `no carrier` is down by what is beyond it and not by an administrator.
    pub state: &'static str,
    /// Queues for packets that come in, used or not.
    pub queues: u32,
}

/// The interface of this name in this thread's network namespace.
#[must_use]
pub fn port(name: &str) -> Option<Port> {
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    const IFLA_OPERSTATE: u16 = 16;
    const IFLA_NUM_RX_QUEUES: u16 = 32;
    const STATES: [&str; 7] = [
        "unknown",
        "not present",
        "down",
        "lower layer down",
        "testing",
        "dormant",
        "up",
    ];
    let mut netlink = Netlink::open().ok()?;
    let links = netlink.dump(libc::RTM_GETLINK, &Body::new(&[0; 16])).ok()?;
    links
        .iter()
        .filter(|link| link.len() >= 16)
        .find_map(|link| {
            let find = |wanted| {
                let value = attributes(&link[16..]).find(|(kind, _)| *kind == wanted);
                value.map(|(_, value)| value)
            };
            let named = find(IFLA_IFNAME)?.strip_suffix(&[0])?;
            if named != name.as_bytes() {
                return None;
            }
            let state = find(IFLA_OPERSTATE).and_then(|value| value.first().copied());
            let state = STATES.get(usize::from(state.unwrap_or(0)));
            let is_set_up = word(link, 8) & libc::IFF_UP.cast_unsigned() != 0;
            Some(Port {
                ifindex: word(link, 4),
                mac: find(IFLA_ADDRESS)
                    .and_then(|mac| mac.try_into().ok())
                    .unwrap_or_default(),
                mtu: find(IFLA_MTU).map_or(0, |value| word(value, 0)),
                state: match state.copied().unwrap_or("unknown") {
                    "down" if is_set_up => "no carrier",
                    state => state,
                },
                queues: find(IFLA_NUM_RX_QUEUES).map_or(1, |value| word(value, 0)),
            })
        })
}

/// Index of the interface by which packets to an address leave; none without a route.
#[must_use]
pub fn way_to(address: IpAddr) -> Option<u32> {
    neighbours::leaves_by(&mut Netlink::open().ok()?, address)
}

/// The program, loaded, and a tap on all interfaces.
#[derive(Debug)]
pub struct Trial {
    program: OwnedFd,
    tap: OwnedFd,
    _programs: Ebpf,
}

impl Trial {
    /// Loads the program and opens the tap in this thread's network namespace.
    ///
    /// # Errors
    /// No permission, or the kernel lacks something.
    pub fn open() -> Result<Self, Error> {
        let (programs, program) = pass_program()?;
        let tap = tap().map_err(Error::netlink("opening a packet socket"))?;
        Ok(Self {
            program,
            tap,
            _programs: programs,
        })
    }

    /// Lets the stack receive `frame`, on `ifindex`.
    ///
    /// # Errors
    /// What the kernel said: EINVAL from Linux before 5.18, or from an interface whose driver runs no XDP program.
    pub fn receive(&self, frame: &[u8], ifindex: u32) -> io::Result<()> {
        sys::receive_live(self.program.as_fd(), frame, ifindex)
    }

    /// The first packet, from its IP header on, that this machine sends out within `patience` and that `wanted` likes.
    pub fn sent(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let timeout = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut sockets = [PollFd::from_borrowed_fd(self.tap.as_fd(), PollFlags::IN)];
            // An interrupted wait is a short one.
            let _woken = poll(&mut sockets, Some(&timeout));
            let mut bytes = [0; LONGEST];
            let taken = recv(&self.tap, &mut bytes[..], RecvFlags::DONTWAIT);
            if let Ok((length, _)) = taken
                && wanted(&bytes[..length])
            {
                return Some(bytes[..length].to_vec());
            }
        }
    }
}

/// Gives the packets that all interfaces send and receive, from their IP headers on.
fn tap() -> io::Result<OwnedFd> {
    const ETH_P_ALL: u16 = 3;
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // SAFETY: plain integers and an array.
    let mut all: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    all.sll_family = libc::AF_PACKET as u16;
    all.sll_protocol = ETH_P_ALL.to_be();
    // SAFETY: `all` has the length that is given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&all).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}
