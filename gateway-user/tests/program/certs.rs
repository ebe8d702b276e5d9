//! `forebay certs` and what else tells of a certificate's end.

use rcgen::{CertificateParams, KeyPair};

use crate::support::*;

/// A certificate and its key as a manifest; it is valid for so many days from now, and a moment more.
fn secret(name: &str, days: u64) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([format!("{name}.example.com")]).unwrap();
    let now = std::time::SystemTime::now();
    let day = std::time::Duration::from_secs(86_400);
    params.not_before = (now - day).into();
    params.not_after = (now + day * u32::try_from(days).unwrap() + day / 2).into();
    let indented = |text: &str| text.trim().replace('\n', "\n    ");
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/tls\n\
         stringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n",
        indented(&params.self_signed(&key).unwrap().pem()),
        indented(&key.serialize_pem())
    )
}

fn gateway(port: u16, secrets: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: forebay}}\n\
         spec: {{controllerName: forebay.dev/gateway-controller}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g}}\nspec:\n  \
         gatewayClassName: forebay\n  addresses: [{{value: 127.0.0.1}}]\n  listeners:\n    \
         - {{name: https, protocol: HTTPS, port: {port}, tls: {{certificateRefs: [{secrets}]}}}}\n"
    )
}

#[tokio::test]
async fn a_certificate_that_expires_soon_is_told_everywhere() {
    let text = gateway(free_port(), "{name: long}") + &secret("long", 90);
    let config = manifests(&[("a.yaml", &text)]);
    let daemon = Daemon::start(config.path(), &[], &[]).await;
    let certs = daemon.ask(&["certs"]).await;
    let cells: Vec<&str> = certs.stdout.split_whitespace().collect();
    assert_eq!(
        cells[7..13],
        [
            "default/g",
            "https",
            "default/long",
            "long.example.com",
            "90",
            "valid"
        ],
        "{}",
        certs.stdout
    );
    assert_eq!((cells[13].len(), certs.code), (64, Some(0)));
    let status = daemon.ask(&["status"]).await.stdout;
    assert!(!status.contains("\nCertificates\n"), "{status}");
    drop(daemon);

    let both = gateway(free_port(), "{name: long}, {name: short}");
    let text = both + &secret("long", 90) + &secret("short", 6);
    let config = manifests(&[("a.yaml", &text)]);
    let daemon = Daemon::start(config.path(), &[], &[]).await;
    let certs = daemon.ask(&["certs", "--output", "json"]).await;
    let answer: serde_json::Value = serde_json::from_str(&certs.stdout).unwrap();
    let states = ["/certificates/0/state", "/certificates/1/state"];
    let states = states.map(|at| answer.pointer(at).unwrap().as_str().unwrap());
    assert_eq!((states, certs.code), (["valid", "expires_soon"], Some(1)));
    let status = daemon.ask(&["status"]).await.stdout;
    assert!(status.contains("\nCertificates\n"), "{status}");
    assert!(
        status.contains("default/short  6     expires soon"),
        "{status}"
    );
    let metrics = daemon.page("metrics", "/metrics").await;
    let series = "forebay_certificate_expiry_seconds{gateway=\"default/g\",listener=\"https\",secret=\"default/short\"} ";
    assert!(metrics.contains(series), "{metrics}");
}
