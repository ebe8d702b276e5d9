//! TLS towards clients: which certificate for which name, tickets, and how many handshakes at once.
//!
//! Each listener has a configuration of its own, chosen by the name in the ClientHello before anything is answered: a
//! name that no listener takes is refused without showing anybody's certificate.

mod config;
mod handshake;
mod ticket;

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub(super) use config::{BindTls, TlsBasis};
pub(super) use handshake::{Handshakes, Refused, accept};
pub use ticket::TicketKeys;

/// The cryptography of every connection, towards clients and endpoints, made once.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider()))
}
