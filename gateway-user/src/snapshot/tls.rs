//! Certificates of listeners, and TLS towards endpoints.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::name::ObjectKey;

/// TLS of one listener that terminates it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ListenerTls {
    /// Usable certificates, in the order of `certificateRefs`.
    pub certificates: Vec<Arc<Certificate>>,
    /// Secrets that are there and may be used but whose content is bad: what this node had of them stays in use.
    pub broken: Vec<ObjectKey>,
}

/// One certificate with its chain and key.
#[derive(Clone)]
pub struct Certificate {
    /// Secret that it comes from.
    pub secret: ObjectKey,
    /// SHA-256 of chain and key: its identity.
    pub digest: [u8; 32],
    /// DNS names that it is for, in lower case.
    pub names: Vec<Arc<str>>,
    /// First second in which it is valid (Unix time).
    pub not_before: i64,
    /// Last second in which it is valid (Unix time).
    pub not_after: i64,
    /// Chain and key, ready to sign.
    pub certified: Arc<CertifiedKey>,
}

impl Certificate {
    /// SHA-256 of the certificate itself, without chain and key, as tools show it.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        let own = self.certified.cert.first();
        Sha256::digest(own.map_or(&[][..], |der| der)).into()
    }
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
    digits.map(digit).collect()
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.secret == other.secret && self.digest == other.digest
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("secret", &self.secret)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Serialize for Certificate {
    /// What anybody may know of it; `sha256` is the [`Self::fingerprint`].
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            secret: &'a ObjectKey,
            sha256: String,
            names: &'a [Arc<str>],
            not_before: i64,
            not_after: i64,
        }
        Shape {
            secret: &self.secret,
            sha256: hex(&self.fingerprint()),
            names: &self.names,
            not_before: self.not_before,
            not_after: self.not_after,
        }
        .serialize(serializer)
    }
}

/// TLS towards the endpoints of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpstreamTls {
    /// Name that is sent as SNI, and that the certificate must be for unless [`Self::names`] are given.
    pub server_name: Arc<str>,
    /// Names of which the certificate must be for one.
    pub names: Vec<Arc<str>>,
    /// Who may have signed it.
    pub trust: Trust,
}

/// Whose signature on an endpoint's certificate is trusted.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The certificate authorities that the system trusts.
    System,
    /// These.
    Authorities {
        /// SHA-256 of them: their identity.
        digest: [u8; 32],
        /// They themselves.
        roots: Arc<RootCertStore>,
    },
    /// Anybody's: the certificate is not looked at.
    Anybody,
}

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::System, Self::System) | (Self::Anybody, Self::Anybody) => true,
            (Self::Authorities { digest: a, .. }, Self::Authorities { digest: b, .. }) => a == b,
            _ => false,
        }
    }
}

impl Eq for Trust {}

impl Serialize for Trust {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::System => "System",
            Self::Authorities { .. } => "Authorities",
            Self::Anybody => "Anybody",
        })
    }
}
