//! The PROXY protocol: who is behind a connection that a load balancer opened.
//!
//! Source: haproxy.org, doc/proxy-protocol.txt, versions 1 and 2. Reading is total and strict: what the grammar does not have is
//! refused, since the header decides who a client is. Bytes are judged by themselves; who may send a header is not decided
//! here.

mod crc32c;
mod v1;
mod v2;

use std::net::{IpAddr, SocketAddr};

use crate::snapshot::ProxyVersion;

/// How far the bytes at the beginning of a connection go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// They may become a header.
    More,
    /// A header.
    Header {
        /// Its bytes; what follows belongs to the connection.
        length: usize,
        /// Who opened the connection. `None`: not told (health checks of the load balancer itself, `UNKNOWN`, families
        /// other than IP over streams); the peer's own address counts then.
        source: Option<SocketAddr>,
        /// What it was opened to.
        destination: Option<SocketAddr>,
    },
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Error {
    /// They begin with neither signature.
    #[error("the connection does not begin with a PROXY protocol header")]
    Signature,
    /// Version 1: the line is longer than 107 bytes.
    #[error("the PROXY protocol line is longer than 107 bytes")]
    LineLength,
    /// Version 1: not the words and line end of the grammar.
    #[error("the PROXY protocol line does not follow the grammar")]
    Line,
    /// Neither a version nor a command that is known.
    #[error("the PROXY protocol header has an unknown version or command")]
    Command,
    /// An address family or a transport that does not exist.
    #[error("the PROXY protocol header has an unknown address family")]
    Family,
    /// Not an address of the family.
    #[error("the PROXY protocol header has an address that is none of its family")]
    Address,
    /// Not a port.
    #[error("the PROXY protocol header has a port that is none")]
    Port,
    /// Version 2: too short for its addresses, or longer than 4,096 bytes.
    #[error("the PROXY protocol header is too short for its family or longer than 4096 bytes")]
    Length,
    /// Version 2: fields that run over the end of the header.
    #[error("the PROXY protocol header has a field that is cut off")]
    Field,
    /// Version 2: the checksum is another one.
    #[error("the PROXY protocol header has a wrong checksum")]
    Checksum,
}

impl Error {
    /// A label for counters.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::LineLength => "line_length",
            Self::Line => "line",
            Self::Command => "command",
            Self::Family => "family",
            Self::Address => "address",
            Self::Port => "port",
            Self::Length => "length",
            Self::Field => "field",
            Self::Checksum => "checksum",
        }
    }
}

/// Reads the header at the front of `bytes`: all that the connection has brought so far.
///
/// # Errors
/// If no more bytes can make it a header.
pub fn read(bytes: &[u8]) -> Result<Read, Error> {
    if let Some(rest) = bytes.strip_prefix(v1::SIGNATURE) {
        return v1::read(rest);
    }
    if let Some(rest) = bytes.strip_prefix(v2::SIGNATURE) {
        return v2::read(bytes, rest);
    }
    if v1::SIGNATURE.starts_with(bytes) || v2::SIGNATURE.starts_with(bytes) {
        return Ok(Read::More);
    }
    Err(Error::Signature)
}

/// The header that tells an endpoint who is behind a connection. If only one address is IPv4, it is written in its IPv6 form.
#[must_use]
pub fn write(version: ProxyVersion, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (source, destination) = match (source, destination) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) | (SocketAddr::V6(_), SocketAddr::V6(_)) => {
            (source, destination)
        }
        _ => (mapped(source), mapped(destination)),
    };
    match version {
        ProxyVersion::V1 => v1::write(source, destination),
        ProxyVersion::V2 => v2::write(source, destination),
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    SocketAddr::from((ip, address.port()))
}

#[cfg(test)]
mod tests;
