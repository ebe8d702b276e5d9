//! Session tickets: one key for each listener, derived from a secret that all nodes share or this process made.
//!
//! A ticket that another listener issued does not open here, so it never carries a client past what this one asks for.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;

/// Seconds for which clients are told to keep a ticket.
const LIFETIME: u32 = 12 * 3600;
const KEY: usize = 32;

/// The secrets from which ticket keys follow: the one in use, and the one before it.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKeys {
    current: Vec<u8>,
    previous: Option<Vec<u8>>,
}

impl TicketKeys {
    /// Secrets that all nodes share.
    #[must_use]
    pub fn new(current: &[u8], previous: Option<&[u8]>) -> Self {
        Self {
            current: current.to_vec(),
            previous: previous.map(<[u8]>::to_vec),
        }
    }

    /// A secret of this process: its tickets are good here and until it ends.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut current = vec![0; KEY];
        rand::fill(&mut current).map_err(|_| NoRandomness)?;
        Ok(Self {
            current,
            previous: None,
        })
    }

    /// The tickets of one listener; `purpose` names it and all that its clients must have shown.
    pub(super) fn tickets(&self, purpose: &str) -> Arc<dyn ProducesTickets> {
        let key = |secret: &[u8]| derive(secret, purpose);
        Arc::new(Tickets {
            current: key(&self.current),
            previous: self.previous.as_deref().and_then(key),
        })
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").finish_non_exhaustive()
    }
}

/// The system gives no random bytes.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system gives no random bytes for session tickets")]
pub struct NoRandomness;

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY
    }
}

fn derive(secret: &[u8], purpose: &str) -> Option<RandomizedNonceKey> {
    let extracted = Salt::new(HKDF_SHA256, b"forebay session tickets").extract(secret);
    let mut key = [0; KEY];
    let info = [purpose.as_bytes()];
    extracted.expand(&info, Length).ok()?.fill(&mut key).ok()?;
    RandomizedNonceKey::new(&AES_256_GCM, &key).ok()
}

/// Makes and opens the tickets of one listener.
struct Tickets {
    current: Option<RandomizedNonceKey>,
    previous: Option<RandomizedNonceKey>,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        self.current.is_some()
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = plain.to_vec();
        let key = self.current.as_ref()?;
        let nonce = key
            .seal_in_place_append_tag(Aad::empty(), &mut sealed)
            .ok()?;
        let mut ticket = nonce.as_ref().to_vec();
        ticket.append(&mut sealed);
        Some(ticket)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = cipher.split_at_checked(NONCE_LEN)?;
        let keys = [&self.current, &self.previous];
        keys.into_iter().flatten().find_map(|key| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut bytes = sealed.to_vec();
            let length = key
                .open_in_place(nonce, Aad::empty(), &mut bytes)
                .ok()?
                .len();
            bytes.truncate(length);
            Some(bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_open_where_they_were_made_and_nowhere_else() {
        let keys = TicketKeys::new(b"0123456789abcdef", None);
        let (a, b) = (keys.tickets("a"), keys.tickets("b"));
        let ticket = a.encrypt(b"state").unwrap();
        assert_ne!(a.encrypt(b"state").unwrap(), ticket, "a nonce of its own");
        assert_eq!(a.decrypt(&ticket).unwrap(), b"state");
        assert_eq!(keys.tickets("a").decrypt(&ticket).unwrap(), b"state");
        assert_eq!(b.decrypt(&ticket), None);
        let mut forged = ticket.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(a.decrypt(&forged), None);
        for length in 0..ticket.len() {
            assert_eq!(a.decrypt(&ticket[..length]), None, "{length}");
        }
    }

    #[test]
    fn the_key_before_is_still_opened() {
        let old = TicketKeys::new(b"old secret", None).tickets("a");
        let ticket = old.encrypt(b"state").unwrap();
        let rotated = TicketKeys::new(b"new secret", Some(b"old secret")).tickets("a");
        assert_eq!(rotated.decrypt(&ticket).unwrap(), b"state");
        let gone = TicketKeys::new(b"newest", Some(b"new secret")).tickets("a");
        assert_eq!(gone.decrypt(&ticket), None);
        let one = TicketKeys::random().unwrap();
        assert_ne!(one, TicketKeys::random().unwrap());
    }
}
