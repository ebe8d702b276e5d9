//! Full TLS 1.3 handshakes, one after another on a few connections at once; nothing is ever resumed.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, ensure};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

/// Does `count` handshakes; each must end in TLS 1.3 with the whole chain shown.
pub(super) fn run(address: SocketAddr, host: &'static str, count: u64) -> Result<()> {
    for _ in 0..count {
        drop(open(address, host)?);
    }
    Ok(())
}

/// A connection whose handshake is done.
pub(super) fn open(
    address: SocketAddr,
    host: &'static str,
) -> Result<(TcpStream, ClientConnection)> {
    let name = ServerName::try_from(host).context("the host is no server name")?;
    let mut tls = ClientConnection::new(config()?, name)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    ensure!(
        tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3),
        "not TLS 1.3 but {:?}",
        tls.protocol_version()
    );
    stream.flush()?;
    Ok((stream, tls))
}

fn config() -> Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    // The key exchange that every peer has.
    let mut classical = CryptoProvider::clone(&provider);
    classical.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    let mut config = ClientConfig::builder_with_provider(Arc::new(classical))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unchecked(provider)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

/// The certificates are made for the run: what is measured is the other side.
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
