//! Many small datagrams by one system call, in both directions.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use socket2::SockAddr;

/// Most datagrams of one call.
pub(super) const MOST: usize = 64;

/// Two sockets at one address: what waits for the neighbour entry of a node that is gone fills the buffer of a socket for
/// seconds, and must not keep questions to the others back.
#[derive(Debug)]
pub(super) struct Sockets {
    /// The address of both.
    pub(super) address: IpAddr,
    well: UdpSocket,
    doubtful: UdpSocket,
}

impl Sockets {
    /// # Errors
    /// The address is not on this machine, or no socket is to be had.
    pub(super) fn bind(address: IpAddr) -> io::Result<Self> {
        let bind = || {
            let socket = UdpSocket::bind((address, 0))?;
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>(socket)
        };
        Ok(Self {
            address,
            well: bind()?,
            doubtful: bind()?,
        })
    }

    /// Port of the socket that well nodes are asked by; 0 if it is not known.
    pub(super) fn port(&self) -> u16 {
        self.well.local_addr().map_or(0, |bound| bound.port())
    }

    /// Both, to wait for answers.
    pub(super) const fn both(&self) -> [&UdpSocket; 2] {
        [&self.well, &self.doubtful]
    }

    /// Sends each datagram by the socket for nodes that are well or that are not; tells which could be sent.
    pub(super) fn send(&self, datagrams: &[(SocketAddr, Vec<u8>)], well: &[bool]) -> Vec<bool> {
        let mut sent = vec![false; datagrams.len()];
        for (socket, of) in [(&self.well, true), (&self.doubtful, false)] {
            let places = (0..datagrams.len()).filter(|at| well.get(*at) == Some(&of));
            let places: Vec<usize> = places.collect();
            let some: Vec<_> = places.iter().map(|at| datagrams[*at].clone()).collect();
            for (at, done) in places.iter().zip(send(socket, &some)) {
                sent[*at] = done;
            }
        }
        sent
    }
}

/// Sends datagrams, at most [`MOST`] by one call; tells which of them could be sent.
pub(super) fn send(socket: &UdpSocket, datagrams: &[(SocketAddr, Vec<u8>)]) -> Vec<bool> {
    let mut sent = Vec::with_capacity(datagrams.len());
    while sent.len() < datagrams.len() {
        let rest = &datagrams[sent.len()..];
        match send_some(socket, &rest[..rest.len().min(MOST)]) {
            Ok(count) if count > 0 => sent.extend(std::iter::repeat_n(true, count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The first one cannot be sent; those behind it perhaps can.
            _ => sent.push(false),
        }
    }
    sent
}

fn send_some(socket: &UdpSocket, datagrams: &[(SocketAddr, Vec<u8>)]) -> io::Result<usize> {
    let addresses: Vec<SockAddr> = (datagrams.iter())
        .map(|(to, _)| SockAddr::from(*to))
        .collect();
    let mut parts: Vec<libc::iovec> = (datagrams.iter())
        .map(|(_, bytes)| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = (addresses.iter().zip(&mut parts))
        .map(|(address, part)| {
            let mut message = empty();
            message.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
            message.msg_hdr.msg_namelen = address.len();
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let count = libc::c_uint::try_from(messages.len()).unwrap_or(0);
    // SAFETY: each message points to an address and one part, which live until the call returns and are only read.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Datagrams that wait, at most [`MOST`], each cut to `SIZE` bytes; none if there are none.
pub(super) fn receive<const SIZE: usize>(socket: &UdpSocket) -> Vec<([u8; SIZE], usize)> {
    let mut buffers = vec![[0_u8; SIZE]; MOST];
    let mut parts: Vec<libc::iovec> = (buffers.iter_mut())
        .map(|buffer| libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: SIZE,
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = (parts.iter_mut())
        .map(|part| {
            let mut message = empty();
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let count = libc::c_uint::try_from(messages.len()).unwrap_or(0);
    // SAFETY: each message points to one part, which points to a buffer of `SIZE` bytes; all live until the call
    // returns, and nobody else looks at them.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    // An error is "nothing waits", or one that a probe left behind: either way there is nothing to read.
    let received = usize::try_from(received).unwrap_or(0);
    let lengths = messages.iter().map(|message| message.msg_len as usize);
    (buffers.into_iter().zip(lengths)).take(received).collect()
}

fn empty() -> libc::mmsghdr {
    // SAFETY: plain integers and pointers; zero is "none" for all of them.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_come_whole_and_one_that_cannot_be_sent_stops_no_other() {
        let (a, b) = (
            UdpSocket::bind("127.0.0.1:0").unwrap(),
            UdpSocket::bind("127.0.0.1:0").unwrap(),
        );
        let to = b.local_addr().unwrap();
        let good = |n: u8| (to, vec![n; 3 + usize::from(n)]);
        // Port 0 is no destination.
        let bad = (SocketAddr::from(([127, 0, 0, 1], 0)), vec![9]);
        let mut datagrams: Vec<_> = (0..100).map(good).collect();
        datagrams.insert(70, bad);
        let sent = send(&a, &datagrams);
        let failed: Vec<usize> = (0..sent.len()).filter(|i| !sent[*i]).collect();
        assert_eq!((sent.len(), failed), (101, vec![70]));
        let (first, second) = (receive::<8>(&b), receive::<8>(&b));
        assert_eq!((first.len(), second.len()), (64, 36));
        for (n, (bytes, length)) in (0..).zip(first.iter().chain(&second)) {
            assert_eq!(*length, (3 + usize::from(n)).min(8));
            assert!(bytes[..*length].iter().all(|byte| *byte == n));
        }
        assert!(receive::<8>(&b).is_empty());
    }
}
