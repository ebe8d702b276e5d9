//! TLS towards clients: which certificate for which name, tickets, and how many handshakes at once.
//!
//! Each listener has a configuration of its own, chosen by the name in the ClientHello before anything is answered: a
//! name that no listener takes is refused without showing anybody's certificate.

mod config;
mod handshake;
mod ticket;

pub(super) use config::{BindTls, TlsBasis};
pub(super) use handshake::{Handshakes, Refused, accept};
pub use ticket::TicketKeys;
