//! Version 1: one line of text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Error, Read};

/// What a line begins with.
pub(super) const SIGNATURE: &[u8] = b"PROXY ";

/// Longest line with its end, in bytes.
const LONGEST: usize = 107;

/// Reads what follows the signature.
pub(super) fn read(rest: &[u8]) -> Result<Read, Error> {
    let window = &rest[..rest.len().min(LONGEST - SIGNATURE.len())];
    let Some(end) = window.iter().position(|b| *b == b'\r' || *b == b'\n') else {
        return if window.len() < rest.len() || SIGNATURE.len() + window.len() == LONGEST {
            Err(Error::LineLength)
        } else {
            Ok(Read::More)
        };
    };
    match (window[end], window.get(end + 1)) {
        (b'\r', Some(b'\n')) => {}
        (b'\r', None) if window.len() == rest.len() && end + 2 + SIGNATURE.len() <= LONGEST => {
            return Ok(Read::More);
        }
        (b'\r', None) => return Err(Error::LineLength),
        _ => return Err(Error::Line),
    }
    let line = std::str::from_utf8(&window[..end]).map_err(|_| Error::Line)?;
    let addresses = addresses(line)?;
    Ok(Read::Header {
        length: SIGNATURE.len() + end + 2,
        source: addresses.map(|(source, _)| source),
        destination: addresses.map(|(_, destination)| destination),
    })
}

fn addresses(line: &str) -> Result<Option<(SocketAddr, SocketAddr)>, Error> {
    let mut words = line.split(' ');
    let family = words.next().unwrap_or("");
    if family == "UNKNOWN" {
        // Whatever follows is to be ignored.
        return Ok(None);
    }
    let parse: fn(&str) -> Option<IpAddr> = match family {
        "TCP4" => |word| word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => |word| word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => return Err(Error::Family),
    };
    let mut next = || words.next().ok_or(Error::Line);
    let (source, destination) = (next()?, next()?);
    let (source_port, destination_port) = (next()?, next()?);
    if words.next().is_some() {
        return Err(Error::Line);
    }
    let address = |word: &str, port: &str| {
        let ip = parse(word).ok_or(Error::Address)?;
        Ok(SocketAddr::new(ip, port_of(port).ok_or(Error::Port)?))
    };
    Ok(Some((
        address(source, source_port)?,
        address(destination, destination_port)?,
    )))
}

/// Decimal, without sign and leading zeros.
fn port_of(word: &str) -> Option<u16> {
    let canonical =
        word.bytes().all(|b| b.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    canonical.then(|| word.parse().ok()).flatten()
}

/// Both addresses are of one family.
pub(super) fn write(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    format!(
        "PROXY {family} {} {} {} {}\r\n",
        text(source.ip()),
        text(destination.ip()),
        source.port(),
        destination.port()
    )
    .into_bytes()
}

/// IPv6 in hexadecimal throughout: the grammar has no dotted form.
fn text(ip: IpAddr) -> String {
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            let [.., high, low] = v6.segments();
            format!("::ffff:{high:x}:{low:x}")
        }
        _ => ip.to_string(),
    }
}
