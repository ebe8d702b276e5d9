//! gRPC by grpcio on both sides: all four shapes, metadata, trailers, statuses, deadlines.

use gateway_tests::stage::{
    CLEAR, ENDPOINTS, GRPC, Stage, VIP,
    manifest::{Condition, certificate, gateway, route, service},
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

fn has(fields: &Value, name: &str, value: &str) -> bool {
    let fields = fields.as_array().unwrap();
    fields.iter().any(|field| field == &json!([name, value]))
}

#[test]
fn calls_of_every_shape_in_clear_and_by_tls() {
    let mut stage = Stage::new().unwrap();
    let endpoints = ENDPOINTS.map(|address| (address, Condition::Ready));
    let rules =
        "[{matches: [{method: {service: test.Echo}}], backendRefs: [{name: calls, port: 80}]}]";
    let texts = [
        gateway(&[("https", 443, Some("*.example.test"), "wild")]),
        certificate("wild", &stage.wild),
        service("calls", "", GRPC, &endpoints),
        service("web", "", CLEAR, &endpoints),
        route("GRPCRoute", "calls", "grpc.example.test", rules),
    ];
    stage.write("all.yaml", &texts.join("---\n")).unwrap();
    stage.serve(2).unwrap();
    let root = stage.root();
    for (port, roots) in [(80, None), (443, Some(root.as_str()))] {
        let target = format!("{VIP}:{port}");
        let words: Vec<&str> = [target.as_str(), "grpc.example.test"]
            .into_iter()
            .chain(roots)
            .collect();
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
