//! What the kernel says of a listening socket that somebody hands over.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};

use super::sys;
use crate::agent::policy::Socket;

/// Describes a listening TCP socket.
///
/// # Errors
/// It is something else; one sentence part.
pub fn describe(socket: BorrowedFd<'_>) -> Result<Socket, String> {
    let refused = |error: rustix::io::Errno| match error {
        rustix::io::Errno::NOTSOCK => "one of them is no socket".to_owned(),
        error => format!("one of them cannot be looked at ({error})"),
    };
    let kind = sockopt::socket_type(socket).map_err(refused)?;
    let domain = sockopt::socket_domain(socket).map_err(refused)?;
    let protocol = sockopt::socket_protocol(socket).map_err(refused)?;
    if kind != SocketType::STREAM
        || !matches!(domain, AddressFamily::INET | AddressFamily::INET6)
        || protocol != Some(ipproto::TCP)
    {
        return Err("one of them is no TCP socket".to_owned());
    }
    if !sockopt::socket_acceptconn(socket).map_err(refused)? {
        return Err("one of them is not listening".to_owned());
    }
    let name = rustix::net::getsockname(socket).map_err(refused)?;
    let address = SocketAddr::try_from(name)
        .map_err(|_| "one of them is not bound to an IP address".to_owned())?;
    let own = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
        .map_err(refused)
        .and_then(|own| sys::namespace_cookie(&own).map_err(|error| error.to_string()))?;
    let theirs = sys::namespace_cookie(socket).map_err(|error| error.to_string())?;
    Ok(Socket {
        // One that takes both families has IPv4 in IPv6 form.
        address: SocketAddr::new(address.ip().to_canonical(), address.port()),
        own_namespace: own == theirs,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_listening_tcp_sockets_are_described() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let described = describe(listening.as_fd()).unwrap();
        assert_eq!(described.address, listening.local_addr().unwrap());
        assert!(described.own_namespace);
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let connected = TcpStream::connect(listening.local_addr().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(directory.path().join("s")).unwrap();
        let file = tempfile::tempfile().unwrap();
        for (fd, why) in [
            (udp.as_fd(), "one of them is no TCP socket"),
            (connected.as_fd(), "one of them is not listening"),
            (unix.as_fd(), "one of them is no TCP socket"),
            (file.as_fd(), "one of them is no socket"),
        ] {
            assert_eq!(describe(fd), Err(why.to_owned()));
        }
    }
}
