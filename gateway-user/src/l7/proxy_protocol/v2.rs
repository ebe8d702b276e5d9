//! Version 2: binary, with typed fields behind the addresses.

use std::net::{IpAddr, SocketAddr};

use super::crc32c::Crc32c;
use super::{Error, Read};

/// What a header begins with.
pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Longest rest after the length field, in bytes: addresses and fields. The protocol would allow 65,535.
const LONGEST: usize = 4096;

/// Bytes up to and with the length field.
const FIXED: usize = 16;

/// `PP2_TYPE_CRC32C`.
const TYPE_CRC32C: u8 = 0x03;

/// Bytes of the two addresses and ports: IPv4, IPv6, Unix.
const V4_LEN: usize = 12;
const V6_LEN: usize = 36;
const UNIX_LEN: usize = 216;

/// Reads the header; `rest` follows its signature.
pub(super) fn read(bytes: &[u8], rest: &[u8]) -> Result<Read, Error> {
    // Judged as early as can be: a peer that sends nonsense is not waited for.
    let local = match rest.first() {
        None => return Ok(Read::More),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(Error::Command),
    };
    let Some(&family) = rest.get(1) else {
        return Ok(Read::More);
    };
    if !local {
        address_bytes(family)?;
    }
    let Some(&[high, low]) = rest.get(2..4) else {
        return Ok(Read::More);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST {
        return Err(Error::Length);
    }
    if !local && length < address_bytes(family)? {
        return Err(Error::Length);
    }
    let Some(header) = bytes.get(..FIXED + length) else {
        return Ok(Read::More);
    };
    let addresses = if local || family == 0 {
        // The addresses, of whatever form they are, are to be ignored.
        None
    } else {
        let fields = FIXED + address_bytes(family)?;
        check_fields(header, fields)?;
        addresses(family, &header[FIXED..fields])
    };
    Ok(Read::Header {
        length: header.len(),
        source: addresses.map(|(source, _)| source),
        destination: addresses.map(|(_, destination)| destination),
    })
}

/// Bytes of the addresses of a family and transport.
fn address_bytes(family: u8) -> Result<usize, Error> {
    match family {
        0x00 => Ok(0),
        0x11 | 0x12 => Ok(V4_LEN),
        0x21 | 0x22 => Ok(V6_LEN),
        0x31 | 0x32 => Ok(UNIX_LEN),
        _ => Err(Error::Family),
    }
}

/// IP addresses of a stream; a connection over TCP has no other origin that could be used.
fn addresses(family: u8, block: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    fn pair<const N: usize>(block: &[u8]) -> Option<(SocketAddr, SocketAddr)>
    where
        IpAddr: From<[u8; N]>,
    {
        let (source, rest) = block.split_first_chunk::<N>()?;
        let (destination, rest) = rest.split_first_chunk::<N>()?;
        let (source_port, rest) = rest.split_first_chunk::<2>()?;
        let (destination_port, _) = rest.split_first_chunk::<2>()?;
        let address = |ip: [u8; N], port: [u8; 2]| {
            SocketAddr::new(IpAddr::from(ip), u16::from_be_bytes(port))
        };
        Some((
            address(*source, *source_port),
            address(*destination, *destination_port),
        ))
    }
    match family {
        0x11 => pair::<4>(block),
        0x21 => pair::<16>(block),
        _ => None,
    }
}

/// Fields (type, length, value) have to fill the rest of the header exactly; a checksum among them has to be right.
fn check_fields(header: &[u8], mut at: usize) -> Result<(), Error> {
    let mut checksum = None;
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else {
            return Err(Error::Field);
        };
        let value = at + 3;
        let end = value + usize::from(u16::from_be_bytes([high, low]));
        let bytes = header.get(value..end).ok_or(Error::Field)?;
        if kind == TYPE_CRC32C {
            let stored = <[u8; 4]>::try_from(bytes).map_err(|_| Error::Field)?;
            if checksum.replace((value, stored)).is_some() {
                return Err(Error::Field);
            }
        }
        at = end;
    }
    match checksum {
        Some((at, stored)) if sum(header, at) != u32::from_be_bytes(stored) => Err(Error::Checksum),
        _ => Ok(()),
    }
}

/// Over the whole header, with zeros in place of the checksum at `at`.
fn sum(header: &[u8], at: usize) -> u32 {
    Crc32c::default()
        .add(&header[..at])
        .add(&[0; 4])
        .add(&header[at + 4..])
        .value()
}

/// Both addresses are of one family. Without fields.
pub(super) fn write(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut out = Vec::with_capacity(FIXED + V6_LEN);
    out.extend_from_slice(SIGNATURE);
    // Version 2, PROXY.
    out.push(0x21);
    let (family, length): (u8, u8) = if source.is_ipv4() {
        (0x11, 12)
    } else {
        (0x21, 36)
    };
    out.extend_from_slice(&[family, 0, length]);
    for ip in [source.ip(), destination.ip()] {
        match ip {
            IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
            IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
        }
    }
    for port in [source.port(), destination.port()] {
        out.extend_from_slice(&port.to_be_bytes());
    }
    out
}
