//! UDP sockets on a VIP itself: answers must come from it, which a loopback socket behind `sk_lookup` cannot do.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};

/// Room for datagrams that wait, if the system grants it: a burst must not be lost while the worker does other work.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// Opens one of the VIP's sockets, which need not be local yet; the kernel spreads clients over all of them.
///
/// # Errors
/// The port is taken by another process or user, or not permitted.
pub fn open_udp(vip: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(
        Domain::for_address(vip),
        Type::DGRAM.nonblocking(),
        Some(Protocol::UDP),
    )?;
    socket.set_reuse_port(true)?;
    if vip.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&vip.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_vip_that_is_not_local_can_be_bound_by_several_of_ours_and_by_nobody_else() {
        for vip in ["203.0.113.10:15353", "[2001:db8::35]:15353"] {
            let vip: SocketAddr = vip.parse().unwrap();
            let first = UdpSocket::from(open_udp(vip).unwrap());
            let second = UdpSocket::from(open_udp(vip).unwrap());
            assert_eq!(
                (first.local_addr().unwrap(), second.local_addr().unwrap()),
                (vip, vip)
            );
        }
        let foreign = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = open_udp(foreign.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
