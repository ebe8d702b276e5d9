//! The TLS configurations of a bind's listeners.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{TicketKeys, provider};
use crate::snapshot::{Bind, Certificate, Hostname, Listener, ObjectKey};

/// What configurations are made with.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct TlsBasis {
    /// Secrets of session tickets.
    pub(in crate::proxy) tickets: Arc<TicketKeys>,
}

/// TLS of one bind: its listeners in the order in which they are tried.
#[derive(Debug, Default)]
pub(in crate::proxy) struct BindTls {
    listeners: Vec<ListenerTls>,
}

#[derive(Debug)]
struct ListenerTls {
    gateway: ObjectKey,
    name: Arc<str>,
    hostname: Option<Hostname>,
    certificates: Vec<Arc<Certificate>>,
    tickets: Arc<TicketKeys>,
    /// None: there is no certificate to show.
    config: Option<Arc<ServerConfig>>,
}

impl BindTls {
    /// Makes the configurations of a bind; what did not change is taken over from `previous`, and so are certificates
    /// whose Secret has become bad.
    pub(in crate::proxy) fn build(bind: &Bind, previous: Option<&Self>, basis: &TlsBasis) -> Self {
        let known = |listener: &Listener| {
            let same = |l: &&ListenerTls| l.gateway == listener.gateway && l.name == listener.name;
            previous.and_then(|p| p.listeners.iter().find(same))
        };
        let listeners = bind
            .listeners
            .iter()
            .map(|listener| ListenerTls::build(listener, known(listener), basis));
        Self {
            listeners: listeners.collect(),
        }
    }

    /// The configuration for a server name (lower case); `None` as name: the client sent none.
    ///
    /// # Errors
    /// Why the handshake is to be refused.
    pub(in crate::proxy) fn find(&self, name: Option<&str>) -> Result<Arc<ServerConfig>, NoConfig> {
        let takes = |l: &&ListenerTls| match (&l.hostname, name) {
            (None, _) => true,
            (Some(hostname), Some(name)) => hostname.matches(name),
            (Some(_), None) => false,
        };
        let listener = self.listeners.iter().find(takes);
        let listener = listener.ok_or(NoConfig::UnknownName)?;
        listener.config.clone().ok_or(NoConfig::NoCertificate)
    }
}

/// Why there is no configuration for a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum NoConfig {
    /// No listener takes the name.
    UnknownName,
    /// The listener has no certificate.
    NoCertificate,
}

impl ListenerTls {
    fn build(listener: &Listener, known: Option<&Self>, basis: &TlsBasis) -> Self {
        let mut certificates = Vec::new();
        if let Some(tls) = &listener.tls {
            certificates.clone_from(&tls.certificates);
            let kept = known.into_iter().flat_map(|k| &k.certificates);
            certificates.extend(kept.filter(|c| tls.broken.contains(&c.secret)).cloned());
        }
        let unchanged = known
            .filter(|k| k.certificates == certificates && k.tickets == basis.tickets)
            .and_then(|k| k.config.clone());
        let config = unchanged.or_else(|| config(listener, &certificates, basis));
        Self {
            gateway: listener.gateway.clone(),
            name: Arc::clone(&listener.name),
            hostname: listener.hostname.clone(),
            certificates,
            tickets: Arc::clone(&basis.tickets),
            config,
        }
    }
}

fn config(
    listener: &Listener,
    certificates: &[Arc<Certificate>],
    basis: &TlsBasis,
) -> Option<Arc<ServerConfig>> {
    if certificates.is_empty() {
        return None;
    }
    let versions = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_safe_default_protocol_versions();
    let mut config = match versions {
        Ok(builder) => builder
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Choice(certificates.to_vec()))),
        Err(error) => {
            tracing::error!(%error, listener = %listener.name, "the TLS library refuses its own defaults");
            return None;
        }
    };
    // Clients that were told to speak HTTP/1.0 (curl) offer nothing else.
    config.alpn_protocols = ["h2", "http/1.1", "http/1.0"]
        .map(|name| name.as_bytes().to_vec())
        .into();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    let purpose = format!(
        "{}/{} client certificates: none",
        listener.gateway, listener.name
    );
    config.ticketer = basis.tickets.tickets(&purpose);
    Some(Arc::new(config))
}

/// Chooses among the certificates of a listener: one that is for the name and whose key the client can verify, else the
/// first that it can.
#[derive(Debug)]
struct Choice(Vec<Arc<Certificate>>);

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits = |certificate: &&Arc<Certificate>| {
            let key = &certificate.certified.key;
            key.choose_scheme(hello.signature_schemes()).is_some()
        };
        let named = |certificate: &&Arc<Certificate>| {
            hello
                .server_name()
                .is_some_and(|name| covers(certificate, name))
        };
        let certificates = || self.0.iter().filter(fits);
        certificates()
            .find(named)
            .or_else(|| certificates().next())
            .map(|certificate| Arc::clone(&certificate.certified))
    }
}

/// Whether a certificate is for a name: a wildcard stands for one label (RFC 6125, 6.4.3).
fn covers(certificate: &Certificate, name: &str) -> bool {
    let rest = name.split_once('.').map(|(_, rest)| rest);
    certificate
        .names
        .iter()
        .any(|own| match own.strip_prefix("*.") {
            Some(suffix) => rest.is_some_and(|rest| rest.eq_ignore_ascii_case(suffix)),
            None => own.eq_ignore_ascii_case(name),
        })
}
