//! Netlink, one blocking request or batch at a time: what the agent needs and no more.
//!
//! The socket belongs to the network namespace of the thread that opened it. Replies are handed out as raw
//! bodies; [`attributes`] walks them and stops at anything malformed.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
    socket_with, sockopt,
};

/// Request is to be acknowledged.
const REQUEST_ACK: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A message under construction: a fixed part, then attributes.
#[derive(Debug, Default)]
pub struct Body(Vec<u8>);

impl Body {
    /// Starts with the fixed part (`struct rtmsg`, `ndmsg` and the like).
    #[must_use]
    pub fn new(fixed: &[u8]) -> Self {
        let mut body = Self(fixed.to_vec());
        body.pad();
        body
    }

    /// Adds one attribute.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).expect("attributes here are short");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.pad();
        self
    }

    /// Adds one attribute that holds attributes.
    #[must_use]
    pub fn nested(self, kind: u16, inner: &Self) -> Self {
        self.attribute(kind, &inner.0)
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// The attributes of a message after its fixed part: kind (without flags) and value.
pub fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (number(rest, 0)?, number(rest, 2)?);
        let value = rest.get(4..usize::from(length))?;
        rest = rest
            .get(usize::from(length).next_multiple_of(4)..)
            .unwrap_or_default();
        Some((kind & 0x3fff, value))
    })
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A 32-bit number of the host's order at `at`; 0 beyond the end.
#[must_use]
pub fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

/// One message of a batch: its kind, flags beside those of every request, and its body.
pub type Message = (u16, i32, Body);

/// A batch of netfilter as the kernel takes it, all or nothing: its messages have the numbers after `sequence`, its
/// begin has `sequence` itself. Each message asks for an acknowledgement.
#[must_use]
pub fn batch(subsystem: u8, sequence: u32, messages: &[Message]) -> Vec<u8> {
    const NFNL_MSG_BATCH_BEGIN: u16 = 16;
    const NFNL_MSG_BATCH_END: u16 = 17;
    let border = Body::new(&[0, 0, 0, subsystem]);
    let request = libc::NLM_F_REQUEST as u16;
    let mut bytes = Vec::new();
    let mut number = sequence;
    put(&mut bytes, NFNL_MSG_BATCH_BEGIN, request, number, &border);
    for (kind, flags, body) in messages {
        number = number.wrapping_add(1);
        put(&mut bytes, *kind, REQUEST_ACK | *flags as u16, number, body);
    }
    number = number.wrapping_add(1);
    put(&mut bytes, NFNL_MSG_BATCH_END, request, number, &border);
    bytes
}

/// Appends a whole message.
fn put(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, body: &Body) {
    let length = u32::try_from(HEADER + body.0.len()).expect("bodies have short attributes");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(&body.0);
}

/// A socket to tables of the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    torn: bool,
}

impl Netlink {
    /// Opens a socket to the routing tables in this thread's network namespace.
    ///
    /// # Errors
    /// The kernel has no netlink, or no descriptor is left.
    pub fn open() -> io::Result<Self> {
        Self::to(None)
    }

    /// Opens a socket to netfilter in this thread's network namespace.
    ///
    /// # Errors
    /// The kernel has no netfilter, or no descriptor is left.
    pub fn netfilter() -> io::Result<Self> {
        Self::to(Some(netlink::NETFILTER))
    }

    fn to(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        sockopt::set_socket_timeout(
            &socket,
            sockopt::Timeout::Recv,
            Some(std::time::Duration::from_secs(2)),
        )?;
        Ok(Self {
            socket,
            sequence: 0,
            torn: false,
        })
    }

    /// One request; returns what came before the acknowledgement.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn request(&mut self, kind: u16, flags: i32, body: &Body) -> io::Result<Vec<Vec<u8>>> {
        self.send(kind, REQUEST_ACK | flags as u16, body)?;
        self.receive()
    }

    /// All entries of a table.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn dump(&mut self, kind: u16, body: &Body) -> io::Result<Vec<Vec<u8>>> {
        self.send(kind, (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16, body)?;
        self.receive()
    }

    /// All entries that fit the fixed part. Before Linux 4.20 all entries of the table: the caller looks at each.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn dump_fitting(&mut self, kind: u16, body: &Body) -> io::Result<Vec<Vec<u8>>> {
        self.set_strict(true);
        let entries = self.dump(kind, body);
        self.set_strict(false);
        entries
    }

    fn set_strict(&self, strict: bool) {
        const NETLINK_GET_STRICT_CHK: libc::c_int = 12;
        let strict = libc::c_int::from(strict);
        // SAFETY: the option is an integer that lives across the call, which only reads it. Kernels that do not know it
        // say so, and show all entries.
        unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_NETLINK,
                NETLINK_GET_STRICT_CHK,
                (&raw const strict).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
    }

    /// A batch of netfilter, see [`batch`].
    ///
    /// # Errors
    /// What the kernel answered to the first message that it refused; then none of them counts.
    pub fn batch(&mut self, subsystem: u8, messages: &[Message]) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let last = first.wrapping_add(messages.len() as u32);
        send(
            &self.socket,
            &batch(subsystem, first, messages),
            SendFlags::empty(),
        )?;
        // The end has a number too, which is not answered.
        self.sequence = last.wrapping_add(1);
        let mut said = Ok(());
        self.receive_until(|number, message| {
            let of_batch = number.wrapping_sub(first) <= last.wrapping_sub(first);
            if !of_batch || message.kind != libc::NLMSG_ERROR {
                return false;
            }
            let errno = word(message.body, 0).cast_signed();
            if errno != 0 && said.is_ok() {
                said = Err(io::Error::from_raw_os_error(-errno));
            }
            // A refusal of the whole batch is that of its begin, and the only one.
            number == last || number == first
        })?;
        said
    }

    fn send(&mut self, kind: u16, flags: u16, body: &Body) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + body.0.len());
        put(&mut message, kind, flags, self.sequence, body);
        send(&self.socket, &message, SendFlags::empty())?;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut bodies = Vec::new();
        let mut said = Ok(());
        let own = self.sequence;
        let mut torn = false;
        self.receive_until(|number, message| {
            if number != own {
                return false;
            }
            torn |= message.torn;
            match message.kind {
                libc::NLMSG_DONE => return true,
                libc::NLMSG_ERROR => {
                    let errno = word(message.body, 0).cast_signed();
                    if errno != 0 {
                        said = Err(io::Error::from_raw_os_error(-errno));
                    }
                    return true;
                }
                _ => bodies.push(message.body.to_vec()),
            }
            false
        })?;
        self.torn = torn;
        said.map(|()| bodies)
    }

    /// Whether the last answer is of a table that changed meanwhile: it may be of neither.
    #[must_use]
    pub const fn is_torn(&self) -> bool {
        self.torn
    }

    /// Hands out messages with their numbers until `done` says so.
    fn receive_until(&self, mut done: impl FnMut(u32, &Received<'_>) -> bool) -> io::Result<()> {
        let mut buffer = vec![0; 65_536];
        loop {
            let (received, _) = recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty())?;
            let mut rest = &buffer[..received];
            let mut ended = false;
            while rest.len() >= HEADER {
                let length = word(rest, 0) as usize;
                let Some(message) = rest.get(..length).filter(|m| m.len() >= HEADER) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                let flags = i32::from(number(message, 6).unwrap_or_default());
                let message_of = Received {
                    kind: i32::from(number(message, 4).unwrap_or_default()),
                    torn: flags & libc::NLM_F_DUMP_INTR != 0,
                    body: &message[HEADER..],
                };
                ended |= done(word(message, 8), &message_of);
            }
            if ended {
                return Ok(());
            }
        }
    }
}

/// A message of the kernel.
struct Received<'a> {
    kind: i32,
    /// Of a table that changed while it was read.
    torn: bool,
    body: &'a [u8],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_and_malformed_ones_end_the_walk() {
        let inner = Body::default().attribute(7, &[9]);
        let body = Body::new(&[1, 2, 3])
            .attribute(1, &[4, 5])
            .nested(2, &inner);
        assert_eq!(body.0.len() % 4, 0);
        let walked: Vec<(u16, &[u8])> = attributes(&body.0[4..]).collect();
        assert_eq!(walked[0], (1, [4, 5].as_slice()));
        assert_eq!(walked[1].0, 2);
        assert_eq!(attributes(walked[1].1).next(), Some((7, [9].as_slice())));
        for malformed in [&[3_u8, 0, 1, 0][..], &[200, 0, 1, 0], &[8, 0], &[]] {
            assert_eq!(attributes(malformed).count(), 0);
        }
    }

    #[test]
    fn the_kernel_lists_the_loopback_interface() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink
            .dump(libc::RTM_GETLINK, &Body::new(&[0; 16]))
            .unwrap();
        let named_lo = links.iter().any(|link| {
            attributes(&link[16..])
                .any(|(kind, value)| kind == libc::IFLA_IFNAME && value == b"lo\0")
        });
        assert!(named_lo);
    }
}
