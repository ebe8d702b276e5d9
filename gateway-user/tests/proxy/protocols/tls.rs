//! TLS on both sides: which certificate is shown to whom, what is negotiated, tickets, change under load, and endpoints.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gateway_user::proxy::stats::Event;
use gateway_user::proxy::{Proxy, ProxySettings, TicketKeys, Timers};
use gateway_user::snapshot::tls::{Certificate, ListenerTls, Trust, UpstreamTls};
use gateway_user::snapshot::{
    AppProtocol, BindKey, ClientAddress, Cluster, Hostname, L4Policy, Listener, ObjectKey,
    Protocol, Snapshot, TrafficPolicy,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore,
    SignatureScheme,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::frames::{HEADERS, Outcome, Raw, WHOLE, block, frame};
use crate::support::*;

pub(super) fn made(names: &[&str]) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let certificate = rcgen::CertificateParams::new(names)
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    (certificate.der().clone(), key)
}

fn certificate(
    secret: &str,
    names: &[&str],
    (der, key): (CertificateDer<'static>, PrivateKeyDer<'static>),
) -> Arc<Certificate> {
    let signer = aws_lc_rs::sign::any_supported_type(&key).unwrap();
    let mut digest = [0; 32];
    digest.copy_from_slice(&der[der.len() - 32..]);
    Arc::new(Certificate {
        secret: ObjectKey::new("default", secret),
        digest,
        names: names.iter().map(|n| (*n).into()).collect(),
        not_before: 0,
        not_after: i64::MAX,
        certified: Arc::new(CertifiedKey::new(vec![der], signer)),
    })
}

fn ecdsa(secret: &str, name: &str) -> Arc<Certificate> {
    certificate(secret, &[name], made(&[name]))
}

fn rsa(name: &str) -> Arc<Certificate> {
    let read = |file: &str| {
        std::fs::read(format!(
            "{}/tests/certificates/{file}",
            env!("CARGO_MANIFEST_DIR")
        ))
        .unwrap()
    };
    let der = CertificateDer::from_pem_slice(&read("rsa.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&read("rsa.pkcs8.key")).unwrap();
    certificate("rsa", &[name], (der, key))
}

/// One HTTPS bind; listeners in the order in which they are tried.
fn https(at: SocketAddr, server: SocketAddr, listeners: &[(&str, ListenerTls)]) -> Snapshot {
    let live = cluster("a", &TrafficPolicy::default(), &[server]);
    let mut made = snapshot(at, &[(1, live)], |_| {});
    let key = BindKey::from(at);
    let mut bind = (*made.binds[&key]).clone();
    let plain = Arc::clone(&bind.listeners[0]);
    bind.protocol = Protocol::Https;
    bind.listeners = listeners
        .iter()
        .map(|(name, tls)| {
            Arc::new(Listener {
                name: (*name).into(),
                hostname: Hostname::parse(name),
                tls: Some(Arc::new(tls.clone())),
                ..(*plain).clone()
            })
        })
        .collect();
    made.binds = [(key, Arc::new(bind))].into();
    made
}

fn shows(certificates: &[&Arc<Certificate>]) -> ListenerTls {
    ListenerTls {
        certificates: certificates.iter().map(|c| Arc::clone(c)).collect(),
        broken: Vec::new(),
    }
}

/// Takes any certificate, and offers these schemes.
#[derive(Debug)]
struct Anybody(Vec<SignatureScheme>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

const EC: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
const PSS: SignatureScheme = SignatureScheme::RSA_PSS_SHA256;

fn config_with(
    groups: Option<NamedGroup>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    schemes: &[SignatureScheme],
) -> ClientConfig {
    let mut provider = aws_lc_rs::default_provider();
    if let Some(group) = groups {
        provider.kx_groups = aws_lc_rs::ALL_KX_GROUPS
            .iter()
            .copied()
            .filter(|g| g.name() == group)
            .collect();
    }
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(schemes.to_vec())))
        .with_no_client_auth()
}

fn config() -> ClientConfig {
    config_with(None, rustls::ALL_VERSIONS, &[EC, PSS])
}

async fn shake(
    at: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(at).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let shaken = TlsConnector::from(Arc::clone(config)).connect(name, stream);
    tokio::time::timeout(BOUND, shaken).await.expect("in time")
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

fn is(certificate: &Certificate) -> CertificateDer<'static> {
    certificate.certified.cert[0].clone()
}

async fn ask(stream: &mut TlsStream<TcpStream>, host: &str) -> u16 {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    let whole = |got: &[u8]| {
        let text = String::from_utf8_lossy(got).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length: usize = header(head, "content-length")?.parse().unwrap();
        (body.len() >= length).then(|| head[9..12].parse().unwrap())
    };
    loop {
        if let Some(status) = whole(&got) {
            return status;
        }
        assert!(stream.read_buf(&mut got).await.unwrap() > 0);
    }
}

#[tokio::test]
async fn each_name_gets_its_own_certificate_and_others_none() {
    let server = backend(fixed(200, "ok")).await;
    let at = free_address();
    let (one, wild, old) = (
        ecdsa("one", "a.example"),
        ecdsa("wild", "*.b.example"),
        rsa("a.example"),
    );
    let listeners = [
        ("a.example", shows(&[&one, &old])),
        ("*.b.example", shows(&[&wild])),
        ("c.example", shows(&[])),
    ];
    let proxy = start(2, &https(at, server.address, &listeners));
    let all = Arc::new(config());
    for (name, want) in [
        ("a.example", &one),
        ("A.Example", &one),
        ("x.b.example", &wild),
        ("y.x.b.example", &wild),
    ] {
        let mut stream = shake(at, &all, name).await.unwrap();
        assert_eq!(shown(&stream), is(want), "{name}");
        assert_eq!(ask(&mut stream, name).await, 200, "{name}");
    }
    let only_rsa = Arc::new(config_with(None, rustls::ALL_VERSIONS, &[PSS]));
    assert_eq!(
        shown(&shake(at, &only_rsa, "a.example").await.unwrap()),
        is(&old)
    );
    let mut nameless = config();
    nameless.enable_sni = false;
    for (config, name) in [
        (&all, "b.example"),
        (&all, "other.example"),
        (&Arc::new(nameless), "a.example"),
    ] {
        let why = shake(at, config, name).await.unwrap_err().to_string();
        assert!(why.contains("Unrecogni"), "{name}: {why}");
    }
    let why = shake(at, &all, "c.example").await.unwrap_err().to_string();
    assert!(why.contains("HandshakeFailure"), "{why}");
    let why = shake(at, &only_rsa, "x.b.example").await;
    assert!(why.is_err(), "its key is of no use to the client");
    until(|| proxy.stats().open_connections() == 0).await;
    let event = |event| proxy.stats().event(event);
    assert_eq!(
        (
            event(Event::TlsHandshakes),
            event(Event::TlsUnknownNames),
            event(Event::TlsWithoutCertificate),
            event(Event::TlsFailures)
        ),
        (5, 3, 1, 1)
    );
    until(|| proxy.stats().open_connections() == 0).await;
    assert_eq!(server.count(), 4);
}

#[tokio::test]
async fn versions_groups_and_protocols_are_negotiated() {
    let server = backend(fixed(200, "ok")).await;
    let at = free_address();
    let one = ecdsa("one", "test.example");
    let _proxy = start(
        1,
        &https(at, server.address, &[("test.example", shows(&[&one]))]),
    );
    for (version, want) in [
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let config = Arc::new(config_with(None, &[version], &[EC]));
        let mut stream = shake(at, &config, "test.example").await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(want));
        assert_eq!(ask(&mut stream, "test.example").await, 200);
    }
    for group in [
        NamedGroup::X25519MLKEM768,
        NamedGroup::X25519,
        NamedGroup::secp256r1,
    ] {
        let config = Arc::new(config_with(Some(group), &[&rustls::version::TLS13], &[EC]));
        let stream = shake(at, &config, "test.example").await.unwrap();
        let got = stream.get_ref().1.negotiated_key_exchange_group().unwrap();
        assert_eq!(got.name(), group);
    }
    for (offer, want) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let mut config = config();
        config.alpn_protocols = offer.iter().map(|p| p.as_bytes().to_vec()).collect();
        let mut stream = shake(at, &Arc::new(config), "test.example").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), want.map(str::as_bytes));
        if want == Some("h2") {
            let mut raw = Raw::greet(stream, &[]).await;
            raw.send(&super::frames::get_frame(1, "/")).await;
            assert_eq!(raw.outcome(1).await, Outcome::Status(200));
        } else {
            assert_eq!(ask(&mut stream, "test.example").await, 200);
        }
    }
    let mut config = config();
    config.alpn_protocols = vec![b"h3".to_vec()];
    let why = shake(at, &Arc::new(config), "test.example")
        .await
        .unwrap_err()
        .to_string();
    assert!(why.contains("NoApplicationProtocol"), "{why}");
    assert!(
        server
            .seen
            .lock()
            .unwrap()
            .iter()
            .all(|s| s.header("x-forwarded-proto") == Some("https"))
    );
}

#[tokio::test]
async fn requests_for_another_listener_are_misdirected() {
    let server = backend(fixed(200, "ok")).await;
    let at = free_address();
    let both = certificate(
        "both",
        &["a.example", "b.example"],
        made(&["a.example", "b.example"]),
    );
    let _proxy = start(
        1,
        &https(
            at,
            server.address,
            &[
                ("a.example", shows(&[&both])),
                ("b.example", shows(&[&both])),
                ("*.w.example", shows(&[&both])),
            ],
        ),
    );
    let mut one = shake(at, &Arc::new(config()), "a.example").await.unwrap();
    for (host, status) in [
        ("a.example", 200),
        ("b.example", 421),
        ("A.example:443", 200),
        ("c.example", 404),
        ("a.example", 200),
    ] {
        assert_eq!(ask(&mut one, host).await, status, "{host}");
    }
    let mut wild = shake(at, &Arc::new(config()), "x.w.example").await.unwrap();
    assert_eq!(
        ask(&mut wild, "y.w.example").await,
        200,
        "of the same listener"
    );
    let mut h2 = config();
    h2.alpn_protocols = vec![b"h2".to_vec()];
    let mut raw = Raw::greet(shake(at, &Arc::new(h2), "a.example").await.unwrap(), &[]).await;
    for (stream, host, status) in [
        (1, "a.example", 200),
        (3, "b.example", 421),
        (5, "c.example", 404),
        (7, "a.example", 200),
    ] {
        let fields: [(&[u8], &[u8]); 4] = [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":authority", host.as_bytes()),
            (b":path", b"/"),
        ];
        raw.send(&frame(HEADERS, WHOLE, stream, &block(&fields)))
            .await;
        assert_eq!(raw.outcome(stream).await, Outcome::Status(status), "{host}");
    }
    assert_eq!(server.count(), 6);
}

/// Gives any ticket for any name.
#[derive(Debug, Default)]
struct AnyName(Mutex<Vec<Tls13ClientSessionValue>>);

impl ClientSessionStore for AnyName {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.lock().unwrap().push(value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.lock().unwrap().pop()
    }
}

#[tokio::test]
async fn tickets_are_good_on_all_nodes_and_for_their_listener_only() {
    let server = backend(fixed(200, "ok")).await;
    let both = certificate(
        "both",
        &["a.example", "b.example"],
        made(&["a.example", "b.example"]),
    );
    let listeners = [
        ("a.example", shows(&[&both])),
        ("b.example", shows(&[&both])),
    ];
    let (first, second) = (free_address(), free_address());
    let run = |at: SocketAddr, keys: TicketKeys| {
        let snapshot = https(at, server.address, &listeners);
        let proxy = start(2, &Snapshot::default());
        proxy.set_ticket_keys(keys);
        assert_eq!(proxy.publish(&snapshot).failed, []);
        (proxy, snapshot)
    };
    let (_one, _) = run(first, TicketKeys::new(b"secret of the cluster", None));
    let (two, snapshot) = run(second, TicketKeys::new(b"secret of the cluster", None));
    let store = Arc::new(AnyName::default());
    let mut client = config_with(None, &[&rustls::version::TLS13], &[EC]);
    client.resumption = Resumption::store(Arc::clone(&store) as Arc<dyn ClientSessionStore>);
    let client = Arc::new(client);
    let visit = async |at: SocketAddr, name: &str| {
        let mut stream = shake(at, &client, name).await.unwrap();
        assert_eq!(ask(&mut stream, name).await, 200);
        stream.get_ref().1.handshake_kind().unwrap()
    };
    assert_eq!(visit(first, "a.example").await, HandshakeKind::Full);
    for at in [first, second, second, first, second] {
        assert_eq!(visit(at, "a.example").await, HandshakeKind::Resumed);
    }
    assert_eq!(
        visit(first, "b.example").await,
        HandshakeKind::Full,
        "another listener"
    );
    assert_eq!(visit(first, "b.example").await, HandshakeKind::Resumed);
    store.0.lock().unwrap().clear();
    assert_eq!(visit(first, "a.example").await, HandshakeKind::Full);
    two.set_ticket_keys(TicketKeys::new(
        b"the next one",
        Some(b"secret of the cluster"),
    ));
    two.publish(&snapshot);
    assert_eq!(
        visit(second, "a.example").await,
        HandshakeKind::Resumed,
        "by the previous key"
    );
    two.set_ticket_keys(TicketKeys::new(b"the last one", None));
    two.publish(&snapshot);
    assert_eq!(
        visit(second, "a.example").await,
        HandshakeKind::Full,
        "by a key that is gone"
    );
}

#[tokio::test]
async fn certificates_change_under_load_without_a_failed_handshake() {
    let server = backend(fixed(200, "ok")).await;
    let at = free_address();
    let mut now = ecdsa("one", "a.example");
    let with = |tls: ListenerTls| https(at, server.address, &[("a.example", tls)]);
    let proxy: Proxy = start(2, &with(shows(&[&now])));
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                let mut config = config();
                config.resumption = Resumption::disabled();
                let config = Arc::new(config);
                let mut count = 0_u64;
                while !stop.load(SeqCst) {
                    let mut stream = shake(at, &config, "a.example").await.unwrap();
                    assert_eq!(ask(&mut stream, "a.example").await, 200);
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut fresh = config();
    fresh.resumption = Resumption::disabled();
    let fresh = Arc::new(fresh);
    let mut kept = shake(at, &fresh, "a.example").await.unwrap();
    for _ in 0..8 {
        now = ecdsa("one", "a.example");
        proxy.publish(&with(shows(&[&now])));
        assert_eq!(
            shown(&shake(at, &fresh, "a.example").await.unwrap()),
            is(&now),
            "served at once"
        );
    }
    let broken = ListenerTls {
        certificates: Vec::new(),
        broken: vec![ObjectKey::new("default", "one")],
    };
    for _ in 0..2 {
        proxy.publish(&with(broken.clone()));
        assert_eq!(
            shown(&shake(at, &fresh, "a.example").await.unwrap()),
            is(&now),
            "the last good one"
        );
    }
    stop.store(true, SeqCst);
    for task in tasks {
        assert!(task.await.unwrap() > 0);
    }
    assert_eq!(ask(&mut kept, "a.example").await, 200, "connections stay");
    proxy.publish(&with(shows(&[])));
    assert!(
        shake(at, &fresh, "a.example").await.is_err(),
        "gone for good"
    );
    assert_eq!(proxy.stats().event(Event::TlsFailures), 0);
}

/// What a client says first.
fn hello() -> Vec<u8> {
    let name = ServerName::try_from("a.example").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config()), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn odd_and_endless_handshakes_are_bounded() {
    let server = backend(fixed(200, "ok")).await;
    let at = free_address();
    let one = ecdsa("one", "a.example");
    let settings = ProxySettings {
        timers: Timers {
            header: Duration::from_millis(300),
            ..Timers::default()
        },
        ..ProxySettings::default()
    };
    let proxy = start_with(
        settings,
        &https(at, server.address, &[("a.example", shows(&[&one]))]),
    );
    // In records of one byte each.
    let whole = hello();
    let records: Vec<u8> = whole[5..]
        .iter()
        .flat_map(|byte| [22, 3, 1, 0, 1, *byte])
        .collect();
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(&records).await.unwrap();
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(
        answer[0] == 22 && answer[5] == 2 || answer[0] == 21,
        "a ServerHello or an alert: {answer:?}"
    );
    drop(stream);
    until(|| proxy.stats().open_connections() == 0).await;
    let before = proxy.stats().event(Event::TlsFailures);
    for (bytes, alert) in [
        (&b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n"[..], true),
        (&[22, 3, 1, 0xff, 0xff, 0][..], true),
        (&[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff], true),
    ] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut got = Vec::new();
        let read = tokio::time::timeout(BOUND, stream.read_to_end(&mut got))
            .await
            .expect("it closes");
        assert!(
            read.is_err() || got.is_empty() || (alert && got[0] == 21),
            "{got:?}"
        );
    }
    until(|| proxy.stats().event(Event::TlsFailures) == before + 3).await;
    // Silent, half a hello, a hello and no more.
    for bytes in [&[][..], &whole[..20], &whole] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut got = Vec::new();
        let _ended = tokio::time::timeout(BOUND, stream.read_to_end(&mut got))
            .await
            .expect("it closes");
    }
    until(|| proxy.stats().event(Event::TlsTimeouts) == 3).await;
    let mut good = shake(at, &Arc::new(config()), "a.example").await.unwrap();
    assert_eq!(ask(&mut good, "a.example").await, 200);
    drop(good);
    until(|| proxy.stats().open_connections() == 0).await;
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn a_proxy_header_comes_before_tls() {
    let server = backend(fixed(200, "ok")).await;
    let at = free_address();
    let one = ecdsa("one", "a.example");
    let mut snapshot = https(at, server.address, &[("a.example", shows(&[&one]))]);
    let key = BindKey::from(at);
    let mut bind = (*snapshot.binds[&key]).clone();
    bind.policy = Arc::new(L4Policy {
        client: ClientAddress {
            proxy_protocol: true,
            trusted_hops: 0,
        },
        ..L4Policy::default()
    });
    snapshot.binds = [(key, Arc::new(bind))].into();
    let proxy = start(1, &snapshot);
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream
        .write_all(b"PROXY TCP4 192.0.2.7 203.0.113.1 4711 443\r\n")
        .await
        .unwrap();
    let name = ServerName::try_from("a.example").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config()))
        .connect(name, stream)
        .await
        .unwrap();
    assert_eq!(ask(&mut stream, "a.example").await, 200);
    assert_eq!(
        server.seen.lock().unwrap()[0].header("x-forwarded-for"),
        Some("192.0.2.7")
    );
    assert!(shake(at, &Arc::new(config()), "a.example").await.is_err());
    until(|| proxy.stats().event(Event::ProxyHeaderErrors) == 1).await;
}

/// An endpoint that speaks TLS and answers with what was negotiated.
async fn secure_endpoint(
    der: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    protocols: &[&str],
) -> SocketAddr {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let session = stream.get_ref().1;
                let name = session.server_name().unwrap_or("-").to_owned();
                let h2 = session.alpn_protocol() == Some(b"h2");
                let service = hyper::service::service_fn(
                    move |request: http::Request<hyper::body::Incoming>| {
                        let text = format!(
                            "{name} {:?} {}",
                            request.version(),
                            request.uri().scheme_str().unwrap_or("-")
                        );
                        async move {
                            Ok::<_, std::convert::Infallible>(http::Response::new(
                                super::honest::full(text),
                            ))
                        }
                    },
                );
                let io = hyper_util::rt::TokioIo::new(stream);
                if h2 {
                    let _ended = hyper::server::conn::http2::Builder::new(
                        hyper_util::rt::TokioExecutor::new(),
                    )
                    .serve_connection(io, service)
                    .await;
                } else {
                    let _ended = hyper::server::conn::http1::Builder::new()
                        .serve_connection(io, service)
                        .await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn endpoints_are_spoken_to_by_tls_as_the_policy_says() {
    let (der, key) = made(&["pod.example", "alt.example"]);
    let mut roots = RootCertStore::empty();
    roots.add(der.clone()).unwrap();
    let authorities = || Trust::Authorities {
        digest: [1; 32],
        roots: Arc::new(roots.clone()),
    };
    let (other, _) = made(&["other.example"]);
    let mut strangers = RootCertStore::empty();
    strangers.add(other).unwrap();
    let strangers = Trust::Authorities {
        digest: [2; 32],
        roots: Arc::new(strangers),
    };
    let both = secure_endpoint(der.clone(), key.clone_key(), &["h2", "http/1.1"]).await;
    let old = secure_endpoint(der.clone(), key.clone_key(), &["http/1.1"]).await;
    let silent = secure_endpoint(der, key, &[]).await;
    let table = [
        (
            both,
            AppProtocol::Https,
            "pod.example",
            &[][..],
            authorities(),
            "pod.example HTTP/2.0 https",
        ),
        (
            old,
            AppProtocol::Https,
            "pod.example",
            &[],
            authorities(),
            "pod.example HTTP/1.1 -",
        ),
        (
            silent,
            AppProtocol::Https,
            "pod.example",
            &[],
            authorities(),
            "pod.example HTTP/1.1 -",
        ),
        (
            both,
            AppProtocol::Http1,
            "pod.example",
            &[],
            authorities(),
            "pod.example HTTP/1.1 -",
        ),
        (
            both,
            AppProtocol::Wss,
            "pod.example",
            &[],
            authorities(),
            "pod.example HTTP/1.1 -",
        ),
        (
            both,
            AppProtocol::Http2,
            "pod.example",
            &[],
            authorities(),
            "pod.example HTTP/2.0 https",
        ),
        (
            old,
            AppProtocol::Http2,
            "pod.example",
            &[],
            authorities(),
            "",
        ),
        (
            both,
            AppProtocol::Https,
            "wrong.example",
            &[],
            authorities(),
            "",
        ),
        (
            both,
            AppProtocol::Https,
            "wrong.example",
            &["x.example", "alt.example"],
            authorities(),
            "wrong.example HTTP/2.0 https",
        ),
        (
            both,
            AppProtocol::Https,
            "pod.example",
            &["x.example"],
            authorities(),
            "",
        ),
        (
            both,
            AppProtocol::Https,
            "pod.example",
            &[],
            strangers.clone(),
            "",
        ),
        (
            both,
            AppProtocol::Https,
            "wrong.example",
            &[],
            Trust::Anybody,
            "wrong.example HTTP/2.0 https",
        ),
    ];
    for (endpoint, protocol, server_name, names, trust, want) in table {
        let policy = TrafficPolicy {
            tls: Some(Arc::new(UpstreamTls {
                server_name: server_name.into(),
                names: names.iter().map(|n| (*n).into()).collect(),
                trust,
            })),
            ..TrafficPolicy::default()
        };
        let live = Arc::new(Cluster {
            protocol,
            ..(*cluster("a", &policy, &[endpoint])).clone()
        });
        let at = free_address();
        let proxy = start(1, &snapshot(at, &[(1, live)], |_| {}));
        for round in 0..2 {
            let answer = get(at, "/").await;
            let what = format!("{protocol:?} {server_name} {names:?} {round}");
            if want.is_empty() {
                assert_eq!(
                    (answer.status, &*answer.body),
                    (503, "upstream connect failure\n"),
                    "{what}"
                );
            } else {
                assert_eq!((answer.status, &*answer.body), (200, want), "{what}");
            }
        }
        let flags = proxy.stats().read().flags;
        assert_eq!(flags.contains(&("UF", 2)), want.is_empty(), "{flags:?}");
        assert!(proxy.endpoints()[0].in_use.connections <= 1);
        assert_eq!(proxy.endpoints()[0].in_use.requests, 0);
    }
}
