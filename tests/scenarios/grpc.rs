//! gRPC by grpcio on both sides, in clear and by TLS: all four shapes, metadata, trailers, statuses, deadlines.

use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use gateway_tests::{
    eventually::eventually,
    stage::{
        CLEAR, ENDPOINTS, GRPC, GRPC_TLS, Stage, VIP,
        manifest::{Condition, authority, certificate, gateway, policy, route, service},
    },
};
use serde_json::{Value, json};

const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// What is trusted towards endpoints that speak TLS.
const TRUST: &str = "{tls: {mode: SIMPLE, sni: endpoint.test, subjectAltNames: [endpoint.test], credentialName: roots}}";

fn has(fields: &Value, name: &str, value: &str) -> bool {
    let fields = fields.as_array().unwrap();
    fields.iter().any(|field| field == &json!([name, value]))
}

/// All calls of `grpc_calls.py` to a host, and what the endpoints have seen of them.
fn every_shape(stage: &Stage, host: &str, port: u16, roots: Option<&str>) {
    let target = format!("{VIP}:{port}");
    let words: Vec<&str> = [target.as_str(), host].into_iter().chain(roots).collect();
    let found = stage.ask("grpc_calls.py", &words).unwrap();
    let call = |name: &str| &found[name];
    for (name, key, value) in [
        ("unary", "reply", json!("hello")),
        ("empty", "reply", json!("")),
        ("large", "same", json!(true)),
        ("pull", "replies", json!(1000)),
        ("push", "reply", json!("100000")),
        ("both", "in_order", json!(true)),
    ] {
        let call = call(name);
        assert_eq!(call[key], value, "{name}: {call}");
        assert_eq!(call["code"], "OK", "{name}: {call}");
        assert!(has(&call["head"], "x-head", "begin"), "{name}: {call}");
        assert!(has(&call["trailers"], "x-trailer", "end"), "{name}: {call}");
        assert!(
            has(&call["trailers"], "x-bytes-bin", "00010203"),
            "{name}: {call}"
        );
    }
    for (number, code) in CODES.iter().enumerate().skip(1) {
        let call = call(&format!("fail {number}"));
        assert_eq!(call["code"], *code, "{call}");
        assert_eq!(call["details"], "as asked: ü%", "{call}");
        assert!(has(&call["trailers"], "x-trailer", "end"), "{call}");
    }
    let deadline = call("deadline");
    assert_eq!(deadline["code"], "DEADLINE_EXCEEDED");
    let seconds = deadline["seconds"].as_f64().unwrap();
    assert!((0.5..1.5).contains(&seconds), "{deadline}");
    assert_eq!(
        call("/test.Echo/Missing")["code"],
        "UNIMPLEMENTED",
        "{found}"
    );
    assert_eq!(
        call("/other.Service/Unary")["code"],
        "UNIMPLEMENTED",
        "{found}"
    );

    let seen = stage.seen().unwrap();
    // Six calls, sixteen failures, one deadline; what the server does not know it does not see.
    assert_eq!(seen.len(), 23, "{seen:?}");
    let first = &seen[0]["metadata"];
    assert!(has(first, "x-client", "grpcio"), "{first}");
    assert!(has(first, "x-raw-bin", "00ff07"), "{first}");
    let proto = if roots.is_some() { "https" } else { "http" };
    assert!(has(first, "x-forwarded-proto", proto), "{first}");
    assert!(has(first, "via", "2.0 forebay"), "{first}");
    let slow = seen.iter().find(|saw| saw["method"] == "Slow").unwrap();
    assert_eq!(slow["end"], "cancelled", "the server hears of the deadline");
    // The deadline goes on as it is: the endpoint counts it too, rounded up.
    let left = slow["deadline"].as_f64().unwrap();
    assert!((0.1..0.51).contains(&left), "{left}");
}

/// A stage with a host for each Service: `grpc` in clear, `grpcs` by TLS, and what else is asked for.
fn stage(more: &[String]) -> Stage {
    let mut stage = Stage::new().unwrap();
    let endpoints = ENDPOINTS.map(|address| (address, Condition::Ready));
    let rules = |name: &str| {
        format!(
            "[{{matches: [{{method: {{service: test.Echo}}}}], backendRefs: [{{name: {name}, port: 80}}]}}]"
        )
    };
    let root = std::fs::read_to_string(stage.authority.root()).unwrap();
    let mut texts = vec![
        gateway(&[("https", 443, Some("*.example.test"), "wild")]),
        certificate("wild", &stage.wild),
        authority("roots", &root),
        service("grpc", "", GRPC, &endpoints),
        service("grpcs", "https", GRPC_TLS, &endpoints),
        policy("grpcs", TRUST),
        service("web", "", CLEAR, &endpoints),
        route("GRPCRoute", "grpc", "grpc.example.test", &rules("grpc")),
        route("GRPCRoute", "grpcs", "grpcs.example.test", &rules("grpcs")),
    ];
    texts.extend(more.iter().cloned());
    stage.write("all.yaml", &texts.join("---\n")).unwrap();
    stage.serve(2).unwrap();
    stage
}

#[test]
fn calls_of_every_shape_in_clear_and_by_tls() {
    let stage = stage(&[]);
    let root = stage.root();
    for (port, roots) in [(80, None), (443, Some(root.as_str()))] {
        for host in ["grpc.example.test", "grpcs.example.test"] {
            every_shape(&stage, host, port, roots);
        }
    }
    // A browser's or curl's request for the same host and a service that no rule takes is answered as gRPC has it.
    let mut curl = stage.curl();
    curl.args(["--http2-prior-knowledge", "-i", "-X", "POST"])
        .args(["-H", "content-type: application/grpc"])
        .arg("http://grpc.example.test/other.Service/Call");
    let said = stage.run(&mut curl).unwrap();
    assert!(said.starts_with("HTTP/2 200"), "{said}");
    assert!(said.contains("grpc-status: 12"), "{said}");
    assert_eq!(stage.seen().unwrap().len(), 0);
}

#[test]
fn endpoints_whose_tls_has_no_http2() {
    // By the handshake: one has HTTP/1.1 alone, one does not negotiate at all, and one has a name that is not expected.
    let servers: [(&str, u16, &[&str]); 2] =
        [("old", 9101, &["-alpn", "http/1.1"]), ("silent", 9102, &[])];
    let one = [(ENDPOINTS[0], Condition::Ready)];
    let rule = |name: &str| format!("[{{backendRefs: [{{name: {name}, port: 80}}]}}]");
    let more = |name: &str, port: u16, policy_of: &str| {
        [
            service(name, "https", port, &one),
            policy(name, policy_of),
            route(
                "GRPCRoute",
                name,
                &format!("{name}.example.test"),
                &rule(name),
            ),
        ]
    };
    let stranger = TRUST.replace("endpoint.test]", "other.test]");
    let mut texts = more("stranger", GRPC_TLS, &stranger).to_vec();
    for (name, port, _) in servers {
        texts.extend(more(name, port, TRUST));
    }
    let mut stage = stage(&texts);
    let leaf = (stage.authority)
        .issue("old", &["endpoint.test"], 103)
        .unwrap();
    for (_, port, words) in servers {
        let mut server = Command::new("openssl");
        let listens = format!("{}:{port}", ENDPOINTS[0]);
        server.args(["s_server", "-quiet", "-www", "-accept", &listens]);
        server.arg("-cert_chain").arg(&leaf.chain_file);
        server
            .arg("-cert")
            .arg(&leaf.chain_file)
            .arg("-key")
            .arg(&leaf.key_file);
        stage.keep(server.args(words), &listens).unwrap();
    }
    for name in ["old", "silent", "stranger"] {
        let mut curl = stage.curl();
        curl.args(["--http2-prior-knowledge", "-i", "-X", "POST"])
            .args(["-H", "content-type: application/grpc"]);
        let said = stage
            .run(curl.arg(format!("http://{name}.example.test/test.Echo/Unary")))
            .unwrap();
        assert!(said.starts_with("HTTP/2 200"), "{name}: {said}");
        assert!(said.contains("grpc-status: 14"), "{name}: {said}");
        assert!(
            said.contains("grpc-message: upstream connect failure"),
            "{name}: {said}"
        );
    }
    let told = eventually("the log", Duration::from_secs(5), || {
        let lines = stage.access_log()?;
        ensure!(lines.len() == 3, "{lines:?}");
        let told = |line: &Value| {
            (
                line["response_flags"].clone(),
                line["upstream_host"].clone(),
            )
        };
        Ok(lines.iter().map(told).collect::<Vec<_>>())
    });
    let failed = |port: u16| (json!("UF"), json!(format!("{}:{port}", ENDPOINTS[0])));
    assert_eq!(
        told.unwrap(),
        [failed(9101), failed(9102), failed(GRPC_TLS)]
    );
    assert_eq!(stage.seen().unwrap().len(), 0);
}
