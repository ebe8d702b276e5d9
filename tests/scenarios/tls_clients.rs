//! TLS as `openssl s_client` and curl see it: versions, names, ALPN, chains, tickets; once through the datapath.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::ensure;
use gateway_tests::{
    client::Outcome,
    eventually::eventually,
    leftovers::Ledger,
    rig::{CHANGE, Options, Rig, VIP as RIG_VIP},
    stage::{
        CLEAR, ENDPOINTS, Stage, VIP,
        certificates::Authority,
        manifest::{Condition, certificate, gateway, route, service},
    },
};

fn stage() -> Stage {
    let mut stage = Stage::new().unwrap();
    let shop = stage.authority.issue("shop", &["shop.test"], 300).unwrap();
    let any = stage.authority.issue("any", &["any.test"], 301).unwrap();
    let rule = "[{backendRefs: [{name: web, port: 80}]}]";
    let texts = [
        gateway(&[
            ("wild", 443, Some("*.example.test"), "wild"),
            ("shop", 443, Some("shop.test"), "shop"),
            ("all", 8443, None, "any"),
            ("bare", 443, Some("bare.test"), "missing"),
        ]),
        certificate("wild", &stage.wild),
        certificate("shop", &shop),
        certificate("any", &any),
        service("web", "", CLEAR, &[(ENDPOINTS[0], Condition::Ready)]),
        route("HTTPRoute", "a", "\"*.example.test\"", rule),
        route("HTTPRoute", "shop", "shop.test", rule),
    ];
    stage.write("all.yaml", &texts.join("---\n")).unwrap();
    stage.serve(2).unwrap();
    stage
}

struct Client<'a>(&'a Stage);

impl Client<'_> {
    /// What `openssl s_client` says with these words more, its standard input ended at once.
    fn says(&self, port: u16, words: &[&str]) -> String {
        let mut openssl = Command::new("openssl");
        openssl
            .args([
                "s_client",
                "-connect",
                &format!("{VIP}:{port}"),
                "-CAfile",
                &self.0.root(),
            ])
            .args(words);
        let (_, stdout, stderr) = self.0.result(&mut openssl).unwrap();
        stdout + &stderr
    }
}

#[test]
fn openssl_sees_names_versions_protocols_and_chains() {
    let stage = stage();
    let client = Client(&stage);
    // Name, port, flags, and what is said; `!`: is not said.
    let cases: &[(u16, &[&str], &[&str])] = &[
        (
            443,
            &["-servername", "a.example.test", "-tls1_3"],
            &[
                "subject=CN = wild",
                "New, TLSv1.3",
                "Verify return code: 0 (ok)",
            ],
        ),
        (
            443,
            &["-servername", "a.example.test", "-tls1_2"],
            &[
                "subject=CN = wild",
                "New, TLSv1.2",
                "Secure Renegotiation IS supported",
            ],
        ),
        (
            443,
            &["-servername", "SHOP.test"],
            &["subject=CN = shop", "Verify return code: 0 (ok)"],
        ),
        (
            443,
            &[
                "-servername",
                "a.example.test",
                "-tls1_1",
                "-cipher",
                "DEFAULT@SECLEVEL=0",
            ],
            &["!subject=", "alert number 40"],
        ),
        (
            443,
            &["-servername", "a.b.example.test"],
            &["subject=CN = wild"],
        ),
        (
            443,
            &["-servername", "other.test"],
            &["!subject=", "alert number 112"],
        ),
        (443, &["-noservername"], &["!subject=", "alert number 112"]),
        (
            8443,
            &["-noservername"],
            &["subject=CN = any", "Verify return code: 0 (ok)"],
        ),
        (
            8443,
            &["-servername", "whatever.test"],
            &["subject=CN = any"],
        ),
        (
            443,
            &["-servername", "bare.test"],
            &["!subject=", "alert number 112"],
        ),
        (
            443,
            &["-servername", "shop.test", "-alpn", "h2,http/1.1"],
            &["ALPN protocol: h2"],
        ),
        (
            443,
            &["-servername", "shop.test", "-alpn", "http/1.1,h2"],
            &["ALPN protocol: h2"],
        ),
        (
            443,
            &["-servername", "shop.test", "-alpn", "http/1.1"],
            &["ALPN protocol: http/1.1"],
        ),
        (
            443,
            &["-servername", "shop.test", "-alpn", "http/1.0"],
            &["ALPN protocol: http/1.0"],
        ),
        (443, &["-servername", "shop.test"], &["No ALPN negotiated"]),
        (
            443,
            &["-servername", "shop.test", "-alpn", "smtp"],
            &["!subject=CN", "alert number 120"],
        ),
        (
            443,
            &[
                "-servername",
                "shop.test",
                "-tls1_3",
                "-ciphersuites",
                "TLS_CHACHA20_POLY1305_SHA256",
            ],
            &["Cipher is TLS_CHACHA20_POLY1305_SHA256"],
        ),
        (
            443,
            &[
                "-servername",
                "shop.test",
                "-tls1_2",
                "-cipher",
                "ECDHE-ECDSA-AES128-GCM-SHA256",
            ],
            &["Cipher is ECDHE-ECDSA-AES128-GCM-SHA256"],
        ),
        (
            443,
            &[
                "-servername",
                "shop.test",
                "-tls1_2",
                "-cipher",
                "ECDHE-ECDSA-AES128-SHA",
            ],
            &["!subject=", "alert number 49"],
        ),
        (
            443,
            &["-servername", "shop.test", "-groups", "P-384"],
            &["Server Temp Key: ECDH, secp384r1"],
        ),
    ];
    for (port, words, told) in cases {
        let said = client.says(*port, words);
        for line in *told {
            match line.strip_prefix('!') {
                Some(absent) => assert!(!said.contains(absent), "{words:?}: {absent} in {said}"),
                None => assert!(said.contains(line), "{words:?}: no {line} in {said}"),
            }
        }
    }
    // The chain as the Secret has it: leaf and intermediate, the root is the client's.
    let said = client.says(443, &["-servername", "shop.test", "-showcerts"]);
    assert_eq!(
        said.matches("-----BEGIN CERTIFICATE-----").count(),
        2,
        "{said}"
    );
    assert!(said.contains(" 1 s:CN = intermediate"), "{said}");
}

#[test]
fn tickets_resume_sessions_of_their_listener_alone() {
    let stage = stage();
    for version in ["-tls1_3", "-tls1_2"] {
        let session = stage.path(&format!("session{version}"));
        let shop = ["-servername", "shop.test", version];
        // TLS 1.3 sends tickets after the handshake: they are there when the answer is.
        let request = "printf 'GET / HTTP/1.1\\r\\nhost: shop.test\\r\\nconnection: close\\r\\n\\r\\n' | openssl \"$@\"";
        let with = |words: &[&str], session: &[&str]| {
            let mut sh = Command::new("sh");
            sh.args(["-c", request, "sh", "s_client", "-ign_eof", "-connect"])
                .args([&format!("{VIP}:443"), "-CAfile", &stage.root()])
                .args(words)
                .args(session);
            let (_, stdout, stderr) = stage.result(&mut sh).unwrap();
            stdout + &stderr
        };
        let said = with(&shop, &["-sess_out", &session]);
        assert!(said.contains("\nNew, "), "{said}");
        assert!(said.contains("HTTP/1.1 200"), "{said}");
        let said = with(&shop, &["-sess_in", &session]);
        assert!(said.contains("\nReused, "), "{version}: {said}");
        assert!(said.contains("HTTP/1.1 200"), "{version}: {said}");
        // Another listener does not take it.
        let other = ["-servername", "a.example.test", version];
        let said = with(&other, &["-sess_in", &session]);
        assert!(said.contains("\nNew, "), "{version}: {said}");
    }
    // Three requests with each version; the third was for a host of another listener.
    let seen = stage.seen().unwrap();
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn a_host_of_another_listener_is_misdirected() {
    let stage = stage();
    let connect = format!("a.example.test:443:{VIP}:443");
    for (flag, host, status) in [
        ("--http1.1", "shop.test", "421"),
        ("--http2", "shop.test", "421"),
        ("--http1.1", "b.example.test", "200"),
        ("--http2", "b.example.test", "200"),
        ("--http2", "A.example.test", "200"),
    ] {
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            flag,
            "--cacert",
            &stage.root(),
        ])
        .args(["--connect-to", &connect, "-H", &format!("host: {host}")]);
        let said = stage.run(curl.arg("https://a.example.test/")).unwrap();
        assert_eq!(said, status, "{flag} {host}");
    }
    assert_eq!(stage.seen().unwrap().len(), 3);
}

#[test]
fn handshakes_through_native_xdp_on_every_node() {
    let ledger = Ledger::open().unwrap();
    let mut rig = Rig::start(
        ledger,
        &Options {
            nodes: 2,
            ..Options::default()
        },
    )
    .unwrap();
    let directory = rig.settings.directory.join("certificates");
    std::fs::create_dir(&directory).unwrap();
    let authority = Authority::new(&directory).unwrap();
    let leaf = authority
        .issue("leaf", &["test.devopscube.com"], 400)
        .unwrap();
    let secret = certificate("edge", &leaf).replace("namespace: default", "namespace: istio-test");
    rig.fixture.write("secret.yaml", &secret).unwrap();
    // 16 bytes of zero: which key it is does not matter here.
    let key = "data:\n  ticket-key: AAAAAAAAAAAAAAAAAAAAAA==\n";
    rig.fixture.replace("keys.yaml", "data:\n", key).unwrap();
    let http = "      port: 80\n";
    let both = format!(
        "{http}    - name: https\n      protocol: HTTPS\n      port: 443\n      tls: {{certificateRefs: [{{name: edge}}]}}\n"
    );
    // `allowedRoutes` of the first listener stays with the second: both take routes of their namespace by default.
    rig.fixture.replace("gateway.yaml", http, &both).unwrap();
    let client = rig.topology.client.clone();
    let ask = |flag: &str, words: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "--max-time",
            "5",
            flag,
            "--resolve",
            &format!("test.devopscube.com:443:{}", RIG_VIP.ip()),
        ])
        .arg("--cacert")
        .arg(authority.root())
        .args(words)
        .arg("https://test.devopscube.com/");
        let done = client.output(&mut curl)?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(text)
    };
    for index in 0..2 {
        rig.deliver_to(index).unwrap();
        eventually("HTTPS", CHANGE, || ask("--http2", &[])).unwrap();
    }
    rig.backends.forget_all();
    // Each handshake reaches the owner of its 5-tuple, whichever node the switch delivers to.
    for (index, flag) in [
        (0, "--http1.1"),
        (0, "--http2"),
        (1, "--http1.1"),
        (1, "--http2"),
    ] {
        rig.deliver_to(index).unwrap();
        for _ in 0..20 {
            let said = ask(flag, &["-w", " %{http_code}"]).unwrap();
            assert!(
                said.starts_with("hello from backend") && said.ends_with("200"),
                "{said}"
            );
        }
    }
    assert_eq!(rig.backends.count(), 80);
    let from: BTreeSet<_> = rig.backends.seen().iter().map(|seen| seen.peer).collect();
    assert_eq!(from.len(), 2, "both nodes have served: {from:?}");
    // A ticket of one node is good on the other: of twelve connections each node owns some.
    let session = directory.join("session").display().to_string();
    let request = "printf 'GET / HTTP/1.1\\r\\nhost: test.devopscube.com\\r\\nconnection: close\\r\\n\\r\\n' | openssl \"$@\"";
    let shake = |words: [&str; 2]| {
        let mut sh = Command::new("timeout");
        sh.args(["5", "sh", "-c", request, "sh", "s_client", "-ign_eof"])
            .args(["-connect", &format!("{}:443", RIG_VIP.ip())])
            .args(["-servername", "test.devopscube.com"])
            .args(words);
        let done = client.output(&mut sh).unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let said = shake(["-sess_out", &session]);
    assert!(said.contains("\nNew, TLSv1.3"), "{said}");
    rig.backends.forget_all();
    for _ in 0..12 {
        let said = shake(["-sess_in", &session]);
        assert!(said.contains("\nReused, TLSv1.3"), "{said}");
        assert!(said.contains("HTTP/1.1 200"), "{said}");
    }
    let nodes: BTreeSet<_> = rig.backends.seen().iter().map(|seen| seen.peer).collect();
    assert_eq!(nodes.len(), 2, "both nodes have resumed: {nodes:?}");
    // Clear text goes on beside it.
    let load = rig
        .load_through(0, gateway_tests::fixture::HOST, 1)
        .unwrap();
    let finished = rig.client.send(load).unwrap();
    assert!(
        matches!(&finished[0].outcome, Outcome::Answer(answer) if answer.status == 200),
        "{finished:?}"
    );
}
