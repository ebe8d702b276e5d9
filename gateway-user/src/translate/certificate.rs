//! Certificates and certificate authorities of Secrets: read once in the life of the object, checked, and never shown.
//!
//! A Secret holds `tls.crt` (the certificate first, then its chain, in PEM: RFC 7468) and `tls.key` (PKCS#8, PKCS#1 or SEC1
//! in PEM). Errors name the Secret and the field and hold nothing of what the field holds. Whether a certificate is valid
//! today is not judged: there is no clock here.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{Error, InconsistentKeys, RootCertStore};
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::objects::{Authorities, Secret};
use crate::snapshot::Certificate;

/// Longest PEM text of a field in bytes: as much as an API server lets a Secret hold.
const MAX_PEM: usize = 1 << 20;

/// Most certificates of a chain: each handshake sends all of them.
const MAX_CHAIN: usize = 32;

/// Most names of a certificate that are carried on.
const MAX_NAMES: usize = 1000;

/// The certificate of a Secret.
///
/// # Errors
/// One sentence that names the Secret and the field.
pub(super) fn of(secret: &Secret) -> Result<&Arc<Certificate>, &str> {
    let read = secret.certificate_by(|secret| {
        read(secret).map_err(|why| format!("Secret {}: {why}", secret.metadata.key()))
    });
    read.as_ref().map_err(String::as_str)
}

/// The certificate authorities of a Secret: `ca.crt`, or `cacert` as Istio names it too.
///
/// # Errors
/// One sentence that names the Secret and the field.
pub(super) fn authorities(secret: &Secret) -> Result<&Authorities, &str> {
    let read = secret.authorities_by(|secret| {
        read_authorities(secret).map_err(|why| format!("Secret {}: {why}", secret.metadata.key()))
    });
    read.as_ref().map_err(String::as_str)
}

fn read(secret: &Secret) -> Result<Arc<Certificate>, String> {
    if !matches!(secret.kind.as_str(), "" | "Opaque" | "kubernetes.io/tls") {
        return Err(format!(
            "type {} holds no certificate, use kubernetes.io/tls",
            secret.kind
        ));
    }
    let chain = chain(&needed(secret, "tls.crt")?, "tls.crt")?;
    let key = key(&needed(secret, "tls.key")?)?;
    let digest = digest(chain.iter().map(|der| &**der), key.secret_der());
    let signing = any_supported_type(&key).map_err(|_| {
        "tls.key is not a key that can be used, give RSA from 2048 to 8192 bits, ECDSA P-256, P-384 or P-521, or Ed25519"
    })?;
    let (names, not_before, not_after) = {
        let leaf = parsed(&chain[0], "the first certificate of tls.crt")?;
        let validity = leaf.validity();
        let (from, to) = (validity.not_before, validity.not_after);
        (names(&leaf), from.timestamp(), to.timestamp())
    };
    let certified = CertifiedKey::new(chain, signing);
    belongs(&certified)?;
    Ok(Arc::new(Certificate {
        secret: secret.metadata.key(),
        digest,
        names,
        not_before,
        not_after,
        certified: Arc::new(certified),
    }))
}

fn read_authorities(secret: &Secret) -> Result<Authorities, String> {
    let (field, pem) = match field(secret, "ca.crt")? {
        Some(pem) => ("ca.crt", pem),
        None => match field(secret, "cacert")? {
            Some(pem) => ("cacert", pem),
            None => return Err("ca.crt is missing".to_owned()),
        },
    };
    let certificates = sections(&pem, field)?;
    let digest = digest(certificates.iter().map(|der| &**der), &[]);
    let mut roots = RootCertStore::empty();
    // One odd authority among many does not take away the trust in the others.
    let (good, _) = roots.add_parsable_certificates(certificates);
    if good == 0 {
        return Err(format!("{field} holds no certificate that can be read"));
    }
    Ok(Authorities {
        digest,
        roots: Arc::new(roots),
    })
}

fn needed<'a>(secret: &'a Secret, name: &str) -> Result<Cow<'a, [u8]>, String> {
    field(secret, name)?.ok_or_else(|| format!("{name} is missing"))
}

/// The bytes of a field; `stringData` counts before `data`, as where Kubernetes merges them.
fn field<'a>(secret: &'a Secret, name: &str) -> Result<Option<Cow<'a, [u8]>>, String> {
    let bytes = if let Some(text) = secret.string_data.get(name) {
        Cow::Borrowed(text.as_bytes())
    } else if let Some(text) = secret.data.get(name) {
        let text: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        let decoded = STANDARD.decode(text);
        Cow::Owned(decoded.map_err(|_| format!("{name} is not base64"))?)
    } else {
        return Ok(None);
    };
    if bytes.len() > MAX_PEM {
        return Err(format!("{name} is longer than {MAX_PEM} bytes"));
    }
    Ok(Some(bytes))
}

/// All certificates of a PEM text; other sections are passed over.
fn sections(pem: &[u8], field: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|_| format!("{field} is not PEM"))?;
    if certificates.is_empty() {
        return Err(format!("{field} holds no certificate in PEM"));
    }
    Ok(certificates)
}

fn chain(pem: &[u8], field: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = sections(pem, field)?;
    if chain.len() > MAX_CHAIN {
        let got = chain.len();
        return Err(format!(
            "{field} holds {got} certificates, at most {MAX_CHAIN} can be sent"
        ));
    }
    Ok(chain)
}

fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    match PrivateKeyDer::pem_slice_iter(pem).next() {
        Some(Ok(key)) => Ok(key),
        Some(Err(_)) => Err("tls.key is not PEM".to_owned()),
        None => Err(
            "tls.key holds no private key in PEM, give PKCS#8, PKCS#1 or SEC1 without a password"
                .to_owned(),
        ),
    }
}

fn parsed<'a>(der: &'a CertificateDer<'_>, what: &str) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(_) => Err(format!("{what} is not an X.509 certificate")),
    }
}

/// DNS names of a certificate, once each. Others (URIs, addresses, names in no encoding) are none of the listener's.
fn names(leaf: &X509Certificate<'_>) -> Vec<Arc<str>> {
    let mut names: Vec<Arc<str>> = Vec::new();
    for extension in leaf.extensions() {
        let ParsedExtension::SubjectAlternativeName(alternatives) = extension.parsed_extension()
        else {
            continue;
        };
        for name in &alternatives.general_names {
            if let GeneralName::DNSName(name) = name
                && names.len() < MAX_NAMES
            {
                names.push(name.to_ascii_lowercase().into());
            }
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(Arc::clone(name)));
    names
}

/// Whether the key is that of the first certificate.
fn belongs(certified: &CertifiedKey) -> Result<(), String> {
    match certified.keys_match() {
        // Where a key cannot tell its public half, nothing speaks against it.
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => return Ok(()),
        // Also if rustls cannot read all of the certificate: that is for clients to do.
        Err(_) => {}
    }
    match owner(&certified.cert, &*certified.key) {
        Some(0) => Ok(()),
        Some(at) => Err(format!(
            "tls.key belongs to certificate {} of tls.crt, which must stand first",
            at + 1
        )),
        None => Err("tls.key does not belong to the first certificate of tls.crt".to_owned()),
    }
}

/// Position of the certificate that a key belongs to.
fn owner(chain: &[CertificateDer<'_>], key: &dyn SigningKey) -> Option<usize> {
    let own = key.public_key()?;
    chain.iter().position(|der| {
        let certificate = parsed(der, "");
        certificate.is_ok_and(|certificate| certificate.public_key().raw == own.as_ref())
    })
}

/// SHA-256 of several texts: each with its length, so that moving a border changes it.
fn digest<'a>(certificates: impl Iterator<Item = &'a [u8]>, key: &'a [u8]) -> [u8; 32] {
    let mut sum = Sha256::new();
    for part in certificates.chain([key]) {
        sum.update((part.len() as u64).to_be_bytes());
        sum.update(part);
    }
    sum.finalize().into()
}

#[cfg(test)]
mod tests;
