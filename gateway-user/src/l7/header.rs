//! Edits that a proxy must make to header fields on their way through.
//!
//! Hop-by-hop fields end here (RFC 9110, 7.6.1), with those that `Connection` names; framing is made anew by the codec. All
//! edits happen in place: a message without such fields costs one walk over its names.
//!
//! What is said about earlier hops counts as far as trusted proxies stand before this one:
//!
//! - None (the default): all of it is removed, and `X-Forwarded-For` and `-Proto` say what is known here.
//! - N of them: `X-Forwarded-For` goes on with the peer (the nearest of them) appended. Its last N entries were written by them,
//!   so the Nth from the right is the client ([`client_address`]); what stands before may be forged and goes on as it came.
//!   `X-Forwarded-Proto`, `-Host` and `-Port` go on, and so does `Forwarded` (RFC 7239) with an element of ours. Other claims,
//!   such as `X-Forwarded-Client-Cert`, are removed all the same: proxies that do not know them pass on what clients wrote.

use std::net::{IpAddr, SocketAddr};

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};

use super::digits;

/// `X-Forwarded-For`.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// `X-Forwarded-Host`: the host that the client asked for, where a filter has replaced it.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What trusted proxies may say of earlier hops.
const TAKEN_ON: [HeaderName; 5] = [
    X_FORWARDED_FOR,
    X_FORWARDED_PROTO,
    X_FORWARDED_HOST,
    HeaderName::from_static("x-forwarded-port"),
    FORWARDED,
];

/// Fields that end at each hop whether or not `Connection` names them. `TE` is handled apart.
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Claims about earlier hops that an untrusted peer must not make, with all of `X-Forwarded-…`.
const CLAIMS: [HeaderName; 2] = [FORWARDED, HeaderName::from_static("x-real-ip")];

/// A field that `Connection` must not nominate: removing it would change framing, routing or identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Connection header field nominates a field that a proxy must not remove")]
pub struct ForbiddenNomination;

/// What is known of the hop that a request came over.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    /// Who opened the connection.
    pub peer: IpAddr,
    /// `http` or `https`.
    pub proto: &'static str,
    /// Proxies before this one whose claims count, the peer among them.
    pub trusted_hops: u8,
    /// What `Via` gets: the version that the request came in, and a name (RFC 9110, 7.6.3).
    pub via: &'static str,
    /// The request becomes a WebSocket (RFC 6455): `Connection: Upgrade` and `Upgrade: websocket` go on, exactly so.
    pub upgrade: bool,
}

/// Makes a client's request head fit to be sent upstream.
///
/// # Errors
/// If `Connection` nominates a field that it must not (the request is then refused with 400).
pub fn prepare_request(headers: &mut HeaderMap, hop: &Hop) -> Result<(), ForbiddenNomination> {
    let (mut hop_by_hop, mut claims, mut expect, mut te) = (false, false, false, false);
    for name in headers.keys() {
        hop_by_hop |= HOP_BY_HOP.contains(name);
        claims |= is_claim(name);
        expect |= name == EXPECT;
        te |= name == TE;
    }
    let keeps_trailers = te && accepts_trailers(headers);
    if hop_by_hop {
        remove_hop_by_hop(headers, true)?;
    }
    if te {
        headers.remove(TE);
    }
    if keeps_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if hop.upgrade {
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    // Whoever sends TE must name it (RFC 9110, 10.1.4): it is for the next hop only.
    let options = match (hop.upgrade, keeps_trailers) {
        (true, true) => Some("Upgrade, TE"),
        (true, false) => Some("Upgrade"),
        (false, true) => Some("TE"),
        (false, false) => None,
    };
    if let Some(options) = options {
        headers.insert(CONNECTION, HeaderValue::from_static(options));
    }
    if claims {
        remove_claims(headers, hop.trusted_hops > 0);
    }
    if expect {
        // The server side has answered it by reading the body.
        headers.remove(EXPECT);
    }
    say_where_from(headers, hop);
    let _ = headers.try_append(VIA, HeaderValue::from_static(hop.via));
    Ok(())
}

/// Writes what is known here of the hop; untrusted claims are gone.
fn say_where_from(headers: &mut HeaderMap, hop: &Hop) {
    let before: Vec<&[u8]> = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .map(|value| value.as_bytes().trim_ascii())
        .filter(|value| !value.is_empty())
        .collect();
    let peer = address_value(hop.peer);
    let chain = if before.is_empty() {
        peer
    } else {
        let chain = [&before.join(&b", "[..]), &b", "[..], peer.as_bytes()].concat();
        HeaderValue::from_maybe_shared(bytes::Bytes::from(chain)).unwrap_or(peer)
    };
    headers.insert(X_FORWARDED_FOR, chain);
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(hop.proto));
    }
    if headers.contains_key(FORWARDED)
        && let Ok(element) = HeaderValue::try_from(forwarded_element(hop))
    {
        let _ = headers.try_append(FORWARDED, element);
    }
}

/// An element of `Forwarded` (RFC 7239, 4 and 6): IPv6 addresses in brackets, and therefore in quotes.
fn forwarded_element(hop: &Hop) -> String {
    match hop.peer.to_canonical() {
        IpAddr::V4(v4) => format!("for={v4};proto={}", hop.proto),
        IpAddr::V6(v6) => format!("for=\"[{v6}]\";proto={}", hop.proto),
    }
}

/// The client as trusted proxies name it; to be asked before [`prepare_request`] adds the peer.
///
/// Each of them has appended the address that it was spoken to from, so with N of them it is the Nth entry of
/// `X-Forwarded-For` from the right. Where that is no address, or the list is shorter, it is the last that is one on the way
/// there from the right, and the peer at worst. Ports behind addresses are ignored.
#[must_use]
pub fn client_address(headers: &HeaderMap, peer: IpAddr, trusted_hops: u8) -> IpAddr {
    headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .rev()
        .flat_map(|value| value.as_bytes().rsplit(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|entry| !entry.is_empty())
        .take(usize::from(trusted_hops))
        .filter_map(address_of)
        .last()
        .unwrap_or(peer)
        .to_canonical()
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address_of(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?;
    let bare = entry.strip_prefix('[').and_then(|e| e.strip_suffix(']'));
    let bare = bare.filter(|bare| bare.contains(':')).unwrap_or(entry);
    let with_port = || entry.parse::<SocketAddr>().map(|socket| socket.ip());
    bare.parse::<IpAddr>().or_else(|_| with_port()).ok()
}

fn remove_claims(headers: &mut HeaderMap, trusted: bool) {
    let stays = |name: &HeaderName| trusted && TAKEN_ON.contains(name);
    let claimed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_claim(name) && !stays(name))
        .cloned()
        .collect();
    for name in claimed {
        headers.remove(name);
    }
}

fn is_claim(name: &HeaderName) -> bool {
    CLAIMS.contains(name) || name.as_str().starts_with("x-forwarded-")
}

/// How this hop names itself in `Via` (RFC 9110, 7.6.3): the version that the message came by.
pub fn via(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2.0 forebay",
        Version::HTTP_10 => "1.0 forebay",
        _ => "1.1 forebay",
    }
}

/// Makes an upstream's response head fit to be sent to the client. `via` is the version that it came in, and a name.
///
/// A 101 that names an upgrade keeps what makes it one: `Connection: Upgrade` and `Upgrade`.
pub fn prepare_response(status: StatusCode, headers: &mut HeaderMap, via: &'static str) {
    if status == StatusCode::NO_CONTENT {
        // It never has one (RFC 9110, 8.6), not even in an answer to HEAD.
        headers.remove(CONTENT_LENGTH);
    }
    if headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        let upgrade = headers.get(UPGRADE).cloned();
        // A backend's nominations are not refused: its response is all that there is.
        let _ = remove_hop_by_hop(headers, false);
        if status == StatusCode::SWITCHING_PROTOCOLS
            && let Some(upgrade) = upgrade
        {
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, upgrade);
        }
    }
    let _ = headers.try_append(VIA, HeaderValue::from_static(via));
}

fn remove_hop_by_hop(headers: &mut HeaderMap, strict: bool) -> Result<(), ForbiddenNomination> {
    let nominated: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty() && !is_option(token))
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .collect();
    for name in nominated {
        if !is_protected(&name) {
            headers.remove(name);
        } else if strict {
            return Err(ForbiddenNomination);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    Ok(())
}

/// Connection options that are no field names, or whose fields are removed anyway.
fn is_option(token: &str) -> bool {
    ["close", "keep-alive", "upgrade", "te"]
        .iter()
        .any(|option| token.eq_ignore_ascii_case(option))
}

fn is_protected(name: &HeaderName) -> bool {
    const FIXED: [HeaderName; 9] = [
        HOST,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        TRAILER,
        FORWARDED,
        http::header::AUTHORIZATION,
        PROXY_AUTHORIZATION,
        PROXY_AUTHENTICATE,
        http::header::COOKIE,
    ];
    FIXED.contains(name) || is_claim(name)
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

fn address_value(address: IpAddr) -> HeaderValue {
    let mut text = Vec::with_capacity(16);
    digits::address(&mut text, address.to_canonical());
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text))
        .expect("an address is a valid field value")
}

#[cfg(test)]
mod tests;
