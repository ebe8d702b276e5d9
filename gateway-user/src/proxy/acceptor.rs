//! Listening sockets and what is accepted on them.
//!
//! Every worker has a socket of its own in each SO_REUSEPORT group; the kernel spreads connections over them. Direct
//! mode: one group for each bind, on the Gateway's own address. Steered mode: one group for each Gateway on a loopback
//! port; the kernel program hands it connections to any of the Gateway's VIPs, and their local address tells which.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::stats::Event;
use super::worker::{self, Worker};
use crate::datapath;
use crate::file::read::phrase;
use crate::snapshot::{BindKey, Transport};

/// Connections that may wait to be accepted on one socket.
const BACKLOG: i32 = 4096;
/// Pause after a failed `accept` (out of file descriptors: trying again at once would spin), and while there is no room.
const PAUSE: Duration = Duration::from_millis(20);

/// One socket for each worker on the address of a bind.
///
/// # Errors
/// One sentence with the remedy.
pub(super) fn listen_on(
    bind: BindKey,
    workers: usize,
    max_segment: Option<u32>,
) -> Result<Vec<TcpListener>, String> {
    let address = SocketAddr::from(bind);
    (0..workers)
        .map(|_| open(address, max_segment).map_err(|error| remedy(bind, &error)))
        .collect()
}

/// One socket for each worker on one loopback port that the kernel chooses.
///
/// # Errors
/// One sentence with the remedy.
pub(super) fn listen_on_loopback(
    workers: usize,
    max_segment: Option<u32>,
) -> Result<Vec<TcpListener>, String> {
    // IPv4 in IPv6 form: the kernel program hands such a socket connections of both families, and it needs no IPv6 address.
    let mut address = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0));
    (0..workers)
        .map(|_| {
            let socket = open(address, max_segment).or_else(|error| {
                if error.raw_os_error() != Some(libc::EAFNOSUPPORT) {
                    return Err(error);
                }
                // A kernel without IPv6.
                let v4 = SocketAddr::new(address.ip().to_canonical(), address.port());
                open(v4, max_segment)
            })?;
            address = socket.local_addr()?;
            Ok(socket)
        })
        .collect::<io::Result<_>>()
        .map_err(|error| remedy(address.into(), &error))
}

/// Adds sockets to a group that an earlier process opened until each worker has one. A group that cannot grow (another
/// user opened it) serves with what it has.
pub(super) fn fill_up(
    mut sockets: Vec<TcpListener>,
    workers: usize,
    max_segment: Option<u32>,
) -> Vec<TcpListener> {
    while sockets.len() < workers {
        let more = sockets
            .first()
            .map_or_else(
                || Err(io::ErrorKind::NotFound.into()),
                TcpListener::local_addr,
            )
            .and_then(|address| open(address, max_segment));
        match more {
            Ok(socket) => sockets.push(socket),
            Err(error) => {
                tracing::warn!(%error, have = sockets.len(), workers, "not every worker has a listening socket of its own");
                break;
            }
        }
    }
    sockets
}

fn open(address: SocketAddr, max_segment: Option<u32>) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(v6) => {
            socket.set_only_v6(v6.ip().to_ipv4_mapped().is_none())?;
            socket.set_freebind_v6(true)?;
        }
    }
    // Accepted sockets inherit it: no system call for each connection.
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = max_segment {
        socket.set_tcp_mss(bytes)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// One UDP socket on a VIP, by this process itself.
///
/// # Errors
/// One sentence with the remedy.
pub(super) fn open_udp(vip: SocketAddr) -> Result<OwnedFd, String> {
    datapath::open_udp(vip).map_err(|error| remedy(BindKey::new(vip, Transport::Udp), &error))
}

fn remedy(address: BindKey, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "cannot listen on {address}: the port is in use by another process; stop that process or change the listener's port"
        ),
        io::ErrorKind::PermissionDenied if address.port < 1024 => format!(
            "cannot listen on {address}: ports below 1024 need CAP_NET_BIND_SERVICE; grant it to forebay (setcap cap_net_bind_service=+ep), use --datapath auto, or change the listener's port"
        ),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput => format!(
            "cannot listen on {address}: this machine cannot use the address; give the Gateway another one"
        ),
        _ => format!(
            "cannot listen on {address}: {}; check the limits on open files and memory",
            phrase(error)
        ),
    }
}

/// Accepts until it is aborted.
pub(super) async fn accept(worker: Rc<Worker>, listener: TcpListener, bind: Option<BindKey>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot watch a listening socket; its connections are not accepted");
            return;
        }
    };
    loop {
        if !worker.has_room() {
            worker.count(Event::AcceptPauses);
            while !worker.has_room() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                worker.count(Event::AcceptErrors);
                tracing::warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        worker.accepts();
        match bind.or_else(|| steered_to(&worker, &stream)) {
            Some(bind) if !admits(&worker, bind, peer) => worker.count(Event::SourcesDenied),
            Some(bind) => worker::spawn(&worker, stream, bind),
            None => worker.count(Event::DownstreamUnknownAddress),
        }
    }
}

/// Whether the VIP's TrafficPolicy takes this client. Where the kernel steers it refuses such packets before.
fn admits(worker: &Worker, bind: BindKey, peer: SocketAddr) -> bool {
    let live = worker.live();
    let policy = live.binds.get(&bind).map(|bind| &bind.policy);
    policy.is_none_or(|policy| policy.sources.admits(peer.ip()))
}

/// The bind that a steered connection was made to. An unknown port of a VIP is served (and answered with 404): its
/// listener may have been removed a moment ago.
fn steered_to(worker: &Worker, stream: &tokio::net::TcpStream) -> Option<BindKey> {
    let bind = BindKey::from(stream.local_addr().ok()?);
    worker
        .live()
        .addresses
        .contains(&bind.address)
        .then_some(bind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_name_the_address_and_what_to_do() {
        let of = |kind, port| {
            remedy(
                SocketAddr::from(([192, 0, 2, 1], port)).into(),
                &io::Error::from(kind),
            )
        };
        assert_eq!(
            of(io::ErrorKind::AddrInUse, 80),
            "cannot listen on 192.0.2.1:80: the port is in use by another process; stop that process or change the listener's port"
        );
        assert_eq!(
            of(io::ErrorKind::PermissionDenied, 80),
            "cannot listen on 192.0.2.1:80: ports below 1024 need CAP_NET_BIND_SERVICE; grant it to forebay (setcap cap_net_bind_service=+ep), use --datapath auto, or change the listener's port"
        );
        assert_eq!(
            of(io::ErrorKind::AddrNotAvailable, 80),
            "cannot listen on 192.0.2.1:80: this machine cannot use the address; give the Gateway another one"
        );
    }

    #[test]
    fn other_failures_are_put_down_to_limits() {
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        assert_eq!(
            remedy(SocketAddr::from(([192, 0, 2, 1], 80)).into(), &error),
            "cannot listen on 192.0.2.1:80: too many open files; check the limits on open files and memory"
        );
    }

    #[test]
    fn a_group_shares_one_port() {
        let group = listen_on_loopback(3, Some(1400)).unwrap();
        let ports: Vec<_> = group
            .iter()
            .map(|s| s.local_addr().unwrap().port())
            .collect();
        assert!(ports[0] != 0 && ports.iter().all(|p| *p == ports[0]));
    }

    #[test]
    fn an_inherited_group_grows_to_one_socket_for_each_worker() {
        let group = listen_on_loopback(2, None).unwrap();
        let port = group[0].local_addr().unwrap().port();
        let group = fill_up(group, 4, None);
        let ports: Vec<_> = group
            .iter()
            .map(|s| s.local_addr().unwrap().port())
            .collect();
        assert_eq!(ports, [port; 4]);
        assert_eq!(fill_up(group, 3, None).len(), 4, "none is closed");
    }

    #[test]
    fn a_port_in_use_is_told() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        let error = listen_on(address.into(), 1, None).unwrap_err();
        assert!(
            error.contains("the port is in use by another process"),
            "{error}"
        );
    }
}
