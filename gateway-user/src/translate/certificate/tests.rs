//! Forms of keys and certificates, what is refused and in which words, and that nothing of a key shows.

use rcgen::{CertificateParams, CustomExtension, KeyPair, SanType};
use serde_json::json;

use super::*;
use crate::snapshot::tls::hex;
use crate::translate::Object;

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/certificates/",
            $name
        ))
    };
}

const P256: &str = fixture!("p256.crt");
const P256_KEY: &str = fixture!("p256.sec1.key");

fn secret(kind: &str, part: &str, fields: &[(&str, &str)]) -> Secret {
    let fields: serde_json::Map<String, serde_json::Value> = fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"},
        "type": kind, part: fields});
    match Object::parse(&object).unwrap().unwrap() {
        Object::Secret(secret) => (*secret).clone(),
        other => panic!("{other:?}"),
    }
}

fn pair(certificate: &str, key: &str) -> Secret {
    let fields = [("tls.crt", certificate), ("tls.key", key)];
    secret("kubernetes.io/tls", "stringData", &fields)
}

fn made(names: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names
        .iter()
        .map(|name| SanType::DnsName((*name).try_into().unwrap()))
        .collect();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn all_forms_of_keys_are_read() {
    for (certificate, key, name) in [
        (fixture!("rsa.crt"), fixture!("rsa.pkcs1.key"), "rsa"),
        (fixture!("rsa.crt"), fixture!("rsa.pkcs8.key"), "rsa"),
        (P256, P256_KEY, "p256"),
        (P256, fixture!("p256.pkcs8.key"), "p256"),
        (fixture!("p384.crt"), fixture!("p384.sec1.key"), "p384"),
        (
            fixture!("ed25519.crt"),
            fixture!("ed25519.pkcs8.key"),
            "ed25519",
        ),
    ] {
        let secret = pair(certificate, key);
        let read = of(&secret).expect(name);
        assert_eq!(&*read.names[0], format!("{name}.example.com"));
        assert_eq!(read.secret.to_string(), "default/a");
    }
}

#[test]
fn names_dates_and_fingerprint_are_those_of_the_certificate() {
    let encoded = STANDARD.encode(P256);
    let wrapped: Vec<&str> = encoded
        .as_bytes()
        .chunks(60)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    let fields = [
        ("tls.crt", &*wrapped.join("\n")),
        ("tls.key", &*STANDARD.encode(P256_KEY)),
    ];
    let secret = secret("Opaque", "data", &fields);
    let read = of(&secret).expect("base64 in lines is fine");
    let names: Vec<&str> = read.names.iter().map(|name| &**name).collect();
    assert_eq!(names, ["p256.example.com", "*.p256.example.com"]);
    assert_eq!((read.not_before, read.not_after), (1795744567, 4949344567));
    assert_eq!(
        hex(&read.fingerprint()),
        "65080ada7cfeb35f83cb4b9562ee5e97a63afc807e00e41f9583d02e25264382"
    );
    assert!(Arc::ptr_eq(read, of(&secret).unwrap()), "it is read once");
    let json = serde_json::to_string(read).unwrap();
    assert!(json.contains("\"sha256\":\"65080ada"), "{json}");
}

#[test]
fn odd_names_refuse_nothing() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    for name in [
        "*",
        "a_b.example.com",
        "A.example.com",
        "a.example.com",
        "*.*.b",
    ] {
        let name = SanType::DnsName(name.try_into().unwrap());
        params.subject_alt_names.push(name);
    }
    let uri = SanType::URI("spiffe://a/b".try_into().unwrap());
    params.subject_alt_names.push(uri);
    let pem = params.self_signed(&key).unwrap().pem();
    let secret_a = pair(&pem, &key.serialize_pem());
    let names: Vec<&str> = of(&secret_a).unwrap().names.iter().map(|n| &**n).collect();
    assert_eq!(names, ["*", "a_b.example.com", "a.example.com", "*.*.b"]);

    let mut params = CertificateParams::default();
    let broken = CustomExtension::from_oid_content(&[2, 5, 29, 17], b"no DER".to_vec());
    params.custom_extensions.push(broken);
    let pem = params.self_signed(&key).unwrap().pem();
    assert!(
        of(&pair(&pem, &key.serialize_pem()))
            .unwrap()
            .names
            .is_empty()
    );
}

#[test]
fn identity_follows_chain_and_key() {
    let ((one, key), (other, _)) = (made(&["a"]), made(&["b"]));
    let alone = pair(&one, &key);
    let chained = pair(&format!("{one}{other}"), &key);
    let again = pair(&format!("some text\n{one}"), &key);
    let digest = |secret: &Secret| of(secret).unwrap().digest;
    assert_ne!(digest(&alone), digest(&chained));
    assert_eq!(digest(&alone), digest(&again));
    assert_eq!(of(&chained).unwrap().certified.cert.len(), 2);
}

fn armour(label: &str) -> String {
    format!("-----BEGIN {label}-----\nSECRETS=\n-----END {label}-----\n")
}

fn refused(rows: &[(&str, &str, &str)]) {
    for (crt, key, want) in rows {
        let secret = pair(crt, key);
        let got = of(&secret).expect_err(want);
        assert_eq!(got, format!("Secret default/a: {want}"));
        assert!(!format!("{got} {secret:?}").contains("SECRETS"));
    }
}

#[test]
fn bad_chains_are_told_and_nothing_of_them_shown() {
    let (certificate, key) = made(&["a.example.com"]);
    let (other, other_key) = made(&["b.example.com"]);
    let section = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}");
    let none = "tls.crt holds no certificate in PEM";
    refused(&[
        (
            &certificate,
            &other_key,
            "tls.key does not belong to the first certificate of tls.crt",
        ),
        (
            &format!("{other}{certificate}"),
            &key,
            "tls.key belongs to certificate 2 of tls.crt, which must stand first",
        ),
        ("", &key, none),
        ("SECRETS", &key, none),
        (&section("SECRETS"), &key, "tls.crt is not PEM"),
        (
            &section("SE*\n-----END CERTIFICATE-----\n"),
            &key,
            "tls.crt is not PEM",
        ),
        (
            &armour("CERTIFICATE"),
            &key,
            "the first certificate of tls.crt is not an X.509 certificate",
        ),
        (
            &certificate.repeat(33),
            &key,
            "tls.crt holds 33 certificates, at most 32 can be sent",
        ),
        (
            &"SECRETS\n".repeat(MAX_PEM / 8 + 1),
            &key,
            "tls.crt is longer than 1048576 bytes",
        ),
    ]);
}

#[test]
fn bad_keys_are_told_and_nothing_of_them_shown() {
    let (crt, _) = made(&["a.example.com"]);
    let unusable = "tls.key is not a key that can be used, give RSA from 2048 to 8192 bits, ECDSA P-256, P-384 or P-521, or Ed25519";
    let none =
        "tls.key holds no private key in PEM, give PKCS#8, PKCS#1 or SEC1 without a password";
    refused(&[
        (&crt, "", none),
        (&crt, &crt, none),
        (&crt, &armour("ENCRYPTED PRIVATE KEY"), none),
        (
            &crt,
            "-----BEGIN PRIVATE KEY-----\nSECRETS",
            "tls.key is not PEM",
        ),
        (&crt, &armour("PRIVATE KEY"), unusable),
        (&crt, &armour("EC PRIVATE KEY"), unusable),
        (&crt, &armour("RSA PRIVATE KEY"), unusable),
        (&crt, fixture!("rsa1024.pkcs8.key"), unusable),
        (
            &crt,
            &"SECRETS\n".repeat(MAX_PEM / 8 + 1),
            "tls.key is longer than 1048576 bytes",
        ),
    ]);
}

#[test]
fn missing_and_misplaced_fields_are_told() {
    for (kind, part, fields, want) in [
        ("", "data", &[][..], "tls.crt is missing"),
        ("", "stringData", &[("tls.crt", P256)], "tls.key is missing"),
        ("", "data", &[("tls.crt", "?")], "tls.crt is not base64"),
        (
            "helm.sh/release.v1",
            "data",
            &[],
            "type helm.sh/release.v1 holds no certificate, use kubernetes.io/tls",
        ),
    ] {
        let secret = secret(kind, part, fields);
        let got = of(&secret).map(drop);
        let got = got.map_err(ToOwned::to_owned);
        assert_eq!(got, Err(format!("Secret default/a: {want}")));
    }
}

#[test]
fn authorities_are_read_from_either_field() {
    let (one, key) = made(&["a"]);
    let both = format!("{one}{P256}");
    for (fields, want) in [
        (&[("ca.crt", &*one)][..], Ok(1)),
        (&[("cacert", &*both)], Ok(2)),
        (&[("ca.crt", P256), ("cacert", &*both)], Ok(1)),
        (&[("tls.crt", P256)], Err("ca.crt is missing")),
        (&[("ca.crt", "")], Err("ca.crt holds no certificate in PEM")),
        (
            &[("cacert", &*key)],
            Err("cacert holds no certificate in PEM"),
        ),
        (
            &[(
                "ca.crt",
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            )],
            Err("ca.crt holds no certificate that can be read"),
        ),
    ] {
        let secret = secret("Opaque", "stringData", fields);
        let got = authorities(&secret).map(|read| read.roots.len());
        let want = want.map_err(|why| format!("Secret default/a: {why}"));
        assert_eq!(got.map_err(ToOwned::to_owned), want);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever is cut out of a field or changed in it, an answer comes.
    #[test]
    fn no_damage_breaks_it(at in 0usize..500, byte in 32u8..127, cut in proptest::bool::ANY) {
        let damage = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            let at = at % bytes.len();
            if cut { drop(bytes.split_off(at)) } else { bytes[at] = byte }
            String::from_utf8(bytes).unwrap()
        };
        std::hint::black_box(of(&pair(&damage(P256), P256_KEY)).is_ok());
        std::hint::black_box(of(&pair(P256, &damage(P256_KEY))).is_ok());
        std::hint::black_box(authorities(&secret("", "stringData", &[("ca.crt", &damage(P256))])).is_ok());
    }
}
