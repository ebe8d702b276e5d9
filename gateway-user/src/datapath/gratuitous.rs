//! Gratuitous ARP: telling a link that an address is at this node now.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// An ARP request of `address` for itself, from `mac` to everybody.
#[must_use]
pub fn frame(mac: [u8; 6], address: Ipv4Addr) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[0..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    // EtherType ARP, then Ethernet, IPv4, their lengths, request.
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&address.octets());
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

/// Sends [`frame`] out of interface `ifindex`.
///
/// # Errors
/// What the kernel said (EPERM without CAP_NET_RAW).
pub fn send(ifindex: u32, mac: [u8; 6], address: Ipv4Addr) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: plain integers and an array.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = ifindex.cast_signed();
    to.sll_halen = 6;
    to.sll_addr[..6].fill(0xff);
    let bytes = frame(mac, address);
    // SAFETY: `bytes` and `to` live across the call and have the lengths that are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            std::ptr::from_ref(&to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_asks_everybody_for_its_own_address() {
        let frame = frame([2, 0, 0, 0, 0, 9], Ipv4Addr::new(10, 9, 0, 1));
        let expected = [
            255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0,
            0, 0, 9, 10, 9, 0, 1, 0, 0, 0, 0, 0, 0, 10, 9, 0, 1,
        ];
        assert_eq!(frame, expected);
    }
}
