//! TLS towards endpoints: whose certificates are taken, and which protocols are offered.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::connect::Way;
use crate::proxy::tls::provider;
use crate::snapshot::{Trust, UpstreamTls};

/// What connections to the endpoints of a cluster begin with.
#[derive(Debug)]
pub(in crate::proxy) struct TlsClient {
    policy: Arc<UpstreamTls>,
    /// For HTTP/1.1, HTTP/2 and either; or why there is none.
    configs: Result<[Arc<ClientConfig>; 3], String>,
}

impl TlsClient {
    /// Makes the configurations of a policy.
    pub(super) fn new(policy: &Arc<UpstreamTls>) -> Self {
        let configs = base(policy).map(|base| {
            let with = |protocols: &[&[u8]]| {
                let mut config = base.clone();
                config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
                Arc::new(config)
            };
            [
                with(&[b"http/1.1"]),
                with(&[b"h2"]),
                with(&[b"h2", b"http/1.1"]),
            ]
        });
        if let Err(why) = &configs {
            tracing::error!(server_name = %policy.server_name, "no TLS to endpoints: {why}");
        }
        Self {
            policy: Arc::clone(policy),
            configs,
        }
    }

    /// What it was made from.
    pub(super) fn policy(&self) -> &Arc<UpstreamTls> {
        &self.policy
    }

    /// Configuration and server name of a new connection.
    ///
    /// # Errors
    /// If the policy cannot be carried out.
    pub(super) fn for_way(&self, way: Way) -> io::Result<(Arc<ClientConfig>, ServerName<'static>)> {
        let configs = self
            .configs
            .as_ref()
            .map_err(|why| io::Error::other(why.clone()))?;
        let config = &configs[match way {
            Way::Http1 => 0,
            Way::Http2 => 1,
            Way::Either => 2,
        }];
        let name = ServerName::try_from(self.policy.server_name.to_string());
        Ok((Arc::clone(config), name.map_err(io::Error::other)?))
    }
}

fn base(policy: &UpstreamTls) -> Result<ClientConfig, String> {
    let provider = provider();
    let verifier: Arc<dyn ServerCertVerifier> = match &policy.trust {
        Trust::Anybody => Arc::new(Unchecked(Arc::clone(provider))),
        Trust::System => chain(policy, system_roots()?)?,
        Trust::Authorities { roots, .. } => chain(policy, Arc::clone(roots))?,
    };
    ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())
        .map(|builder| {
            builder
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth()
        })
}

/// The certificate authorities that the system trusts, read once.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        Arc::new(roots)
    });
    if roots.is_empty() {
        return Err("the system trusts no certificate authority; install ca-certificates or name one in a DestinationRule".to_owned());
    }
    Ok(Arc::clone(roots))
}

fn chain(
    policy: &UpstreamTls,
    roots: Arc<RootCertStore>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider()));
    let verifier = verifier.build().map_err(|error| error.to_string())?;
    let names = policy.names.iter().map(|name| {
        ServerName::try_from(name.to_string()).map_err(|_| format!("{name:?} is no server name"))
    });
    let names: Vec<ServerName<'static>> = names.collect::<Result<_, _>>()?;
    if names.is_empty() {
        return Ok(verifier);
    }
    Ok(Arc::new(AnyOf { verifier, names }))
}

/// Takes certificates that are for one of several names, whatever name was sent.
#[derive(Debug)]
struct AnyOf {
    verifier: Arc<WebPkiServerVerifier>,
    names: Vec<ServerName<'static>>,
}

impl ServerCertVerifier for AnyOf {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut last = Err(Error::General("no name is expected".to_owned()));
        for name in &self.names {
            last = self
                .verifier
                .verify_server_cert(end_entity, intermediates, name, ocsp, now);
            if last.is_ok() {
                break;
            }
        }
        last
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Takes any certificate (`insecureSkipVerify`); the endpoint must still hold its key.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
