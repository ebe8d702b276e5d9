//! What this node's sockets say of a packet, as one word.

use crate::steer::flow::{is_last, tuple};
use crate::steer::place::{Place, kind};
use crate::steer::tables::Headers;
use crate::steer::{Local, Tables};

pub(super) const NOTHING: u64 = 0;
pub(super) const LISTENER: u64 = 1;
pub(super) const COOKIE: u64 = 2;
pub(super) const SOCKET: u64 = 3;
pub(super) const WAITED: u64 = 4;

/// What this node's sockets say about a TCP packet, or the packet that an ICMP error quotes. A FIN belongs to a connection
/// that waits for its end: it is by far more often that than the end of a later one from the same port.
#[inline(always)]
pub(in crate::steer) fn held<T: Tables>(packet: &T::Packet, tables: &T, place: Place) -> u64 {
    let Some(tuple) = tuple(packet, place) else {
        return NOTHING;
    };
    let headers = Headers {
        ip: place.flow,
        tcp: place.l4,
        own: !place.is(kind::REVERSED),
    };
    match tables.local(packet, &tuple, headers) {
        Local::None => NOTHING,
        Local::Listener => LISTENER,
        Local::Cookie => COOKIE,
        Local::Flow => SOCKET,
        Local::TimeWait if headers.own && is_last(packet, place) => SOCKET,
        Local::TimeWait => WAITED,
    }
}
