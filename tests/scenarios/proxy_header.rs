//! PROXY headers to endpoints, as nginx reads them.

use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use gateway_tests::{
    eventually::eventually,
    stage::{
        ENDPOINTS, Stage, VIP,
        manifest::{Condition, authority, certificate, gateway, policy, route, service},
    },
};

/// Ports of nginx, which takes no connection there without a header: in clear, and by TLS.
const CLEAR: u16 = 9200;
const TLS: u16 = 9201;

/// What the endpoints are told of, in words of nginx: client, and what it connected to.
const TOLD: &str = "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port";

fn nginx(stage: &mut Stage) {
    let leaf = (stage.authority)
        .issue("nginx", &["endpoint.test"], 104)
        .unwrap();
    let (at, here) = (ENDPOINTS[0], stage.path("nginx"));
    std::fs::create_dir(&here).unwrap();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = temporary.map(|name| format!("{name}_temp_path {here}/{name};"));
    let configuration = format!(
        "daemon off; user root; pid {here}/pid; error_log {here}/error.log; worker_processes 1;
         events {{}}
         http {{
           access_log off; {}
           server {{
             listen {at}:{CLEAR} proxy_protocol;
             listen {at}:{TLS} ssl proxy_protocol;
             ssl_certificate {}; ssl_certificate_key {};
             location / {{ return 200 \"{TOLD} $request_uri $connection_requests\"; }}
           }}
         }}",
        temporary.join(" "),
        leaf.chain_file.display(),
        leaf.key_file.display()
    );
    let file = format!("{here}/nginx.conf");
    std::fs::write(&file, configuration).unwrap();
    let mut nginx = Command::new("/usr/sbin/nginx");
    nginx.args(["-e", &format!("{here}/error.log"), "-c", &file]);
    stage.keep(&mut nginx, &format!("{at}:{CLEAR}")).unwrap();
}

#[test]
fn nginx_is_told_of_every_client() {
    let mut stage = Stage::new().unwrap();
    nginx(&mut stage);
    let root = std::fs::read_to_string(stage.authority.root()).unwrap();
    let one = [(ENDPOINTS[0], Condition::Ready)];
    let tls = "tls: {mode: SIMPLE, sni: endpoint.test, subjectAltNames: [endpoint.test], credentialName: roots}";
    let mut texts = vec![
        gateway(&[("https", 443, Some("*.example.test"), "wild")]),
        certificate("wild", &stage.wild),
        authority("roots", &root),
    ];
    for (name, port, policy_of) in [
        ("v1", CLEAR, "{proxyProtocol: {version: V1}}".to_owned()),
        ("v2", CLEAR, "{proxyProtocol: {version: V2}}".to_owned()),
        (
            "v1s",
            TLS,
            format!("{{proxyProtocol: {{version: V1}}, {tls}}}"),
        ),
        (
            "v2s",
            TLS,
            format!("{{proxyProtocol: {{version: V2}}, {tls}}}"),
        ),
        ("none", CLEAR, "{loadBalancer: {simple: RANDOM}}".to_owned()),
    ] {
        let rule = format!("[{{backendRefs: [{{name: {name}, port: 80}}]}}]");
        texts.push(service(name, "", port, &one));
        texts.push(policy(name, &policy_of));
        texts.push(route(
            "HTTPRoute",
            name,
            &format!("{name}.example.test"),
            &rule,
        ));
    }
    stage.write("all.yaml", &texts.join("---\n")).unwrap();
    stage.serve(2).unwrap();
    // Each client has a port of its own: that of a closed connection is not free at once.
    let mut from = 20_000;
    for (flag, scheme, port) in [("--http1.1", "http", 80), ("--http2", "https", 443)] {
        for name in ["v1", "v2", "v1s", "v2s"] {
            for client in [ENDPOINTS[1], ENDPOINTS[2], ENDPOINTS[1]] {
                from += 1;
                let url = format!("{scheme}://{name}.example.test");
                let mut curl = stage.curl();
                curl.args([
                    flag,
                    "--interface",
                    client,
                    "--local-port",
                    &from.to_string(),
                ]);
                curl.args(["-H", "x-forwarded-for: 10.9.9.9"]);
                curl.args([format!("{url}/a"), format!("{url}/b")]);
                let said = stage.run(&mut curl).unwrap();
                // Both on the client's one connection; the first of their own on nginx's two.
                let told = |path: &str| format!("{client} {from} {VIP} {port} {path} 1");
                assert_eq!(said, told("/a") + &told("/b"), "{flag} {name}");
            }
        }
    }
    // Without the header nginx ends the connection.
    let mut curl = stage.curl();
    curl.args([
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "http://none.example.test/",
    ]);
    assert_eq!(stage.run(&mut curl).unwrap(), "503");
    let line = eventually("the log", Duration::from_secs(5), || {
        let mut lines = stage.access_log()?;
        ensure!(lines.len() == 2 * 4 * 3 * 2 + 1, "{} lines", lines.len());
        Ok(lines.pop())
    });
    let line = line.unwrap().unwrap();
    assert_eq!(line["response_flags"], "UC", "{line}");
}
