//! Numbers and addresses as text, appended to bytes.
//!
//! Every request has a dozen of them in its log line and head; the formatting machinery of the standard library took as
//! long for them as routing takes.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Appends a number in decimal.
pub fn number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends an IP address.
pub fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            let mut text = Short::default();
            text.address(v4);
            out.extend_from_slice(text.bytes());
        }
        // Shortened by rules of its own (RFC 5952). Writing to memory does not fail.
        IpAddr::V6(v6) => drop(write!(out, "{v6}")),
    }
}

/// Appends an address and a port, an IPv6 address in brackets.
pub fn socket(out: &mut Vec<u8>, socket: SocketAddr) {
    match socket {
        SocketAddr::V4(v4) => {
            let mut text = Short::default();
            text.address(*v4.ip());
            text.push(b':');
            for digit in itoa::Buffer::new().format(v4.port()).bytes() {
                text.push(digit);
            }
            out.extend_from_slice(text.bytes());
        }
        // With its scope, if it has one.
        SocketAddr::V6(v6) => drop(write!(out, "{v6}")),
    }
}

/// Room for `255.255.255.255:65535`: appended in one piece, as each piece costs a call.
#[derive(Default)]
struct Short {
    bytes: [u8; 24],
    len: usize,
}

impl Short {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    fn address(&mut self, address: Ipv4Addr) {
        for (at, octet) in address.octets().into_iter().enumerate() {
            if at > 0 {
                self.push(b'.');
            }
            if octet >= 100 {
                self.push(b'0' + octet / 100);
            }
            if octet >= 10 {
                self.push(b'0' + octet / 10 % 10);
            }
            self.push(b'0' + octet % 10);
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_read_as_the_standard_library_writes_them() {
        for text in [
            "0.0.0.0:0",
            "192.0.2.1:80",
            "255.255.255.255:65535",
            "[2001:db8::1]:443",
            "[::ffff:192.0.2.1]:8080",
            "[fe80::1%3]:80",
        ] {
            let given: SocketAddr = text.parse().expect("an address");
            let (mut ip, mut whole) = (Vec::new(), Vec::new());
            address(&mut ip, given.ip());
            socket(&mut whole, given);
            assert_eq!(String::from_utf8_lossy(&ip), given.ip().to_string());
            assert_eq!(String::from_utf8_lossy(&whole), text);
        }
        let mut out = Vec::new();
        number(&mut out, u64::MAX);
        number(&mut out, 0u8);
        assert_eq!(out, b"184467440737095516150");
    }
}
