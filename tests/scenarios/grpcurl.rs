//! gRPC by grpcurl, which is Go's implementation and knows the service only by reflection: shapes, metadata, statuses.

use std::time::Duration;

use anyhow::ensure;
use gateway_tests::{
    eventually::eventually,
    stage::{
        ENDPOINTS, GRPC, Stage, VIP,
        manifest::{Condition, certificate, gateway, route, service},
    },
};
use serde_json::{Value, json};

/// How grpcurl ends with a status: 64 and its code.
const FAILED: i32 = 64;
const DEADLINE_EXCEEDED: i32 = 4;
const FAILED_PRECONDITION: i32 = 9;
const UNIMPLEMENTED: i32 = 12;
const UNAVAILABLE: i32 = 14;

/// How the Gateway is reached.
#[derive(Clone, Copy)]
enum By {
    Clear,
    Tls,
}

/// A stage with two Services, one for a method of its own and one for everything else of the service.
fn stage() -> Stage {
    let mut stage = Stage::new().unwrap();
    let one = |at: usize| [(ENDPOINTS[at], Condition::Ready)];
    let rules = "
    - matches: [{method: {service: test.Lines, method: Pull}}]
      backendRefs: [{name: pulls, port: 80}]
    - matches: [{method: {service: test.Lines}}, {method: {service: grpc.reflection.v1alpha.ServerReflection}}]
      backendRefs: [{name: calls, port: 80}]
";
    let texts = [
        gateway(&[("https", 443, Some("*.example.test"), "wild")]),
        certificate("wild", &stage.wild),
        service("calls", "", GRPC, &one(0)),
        service("pulls", "kubernetes.io/h2c", GRPC, &one(1)),
        service("gone", "", GRPC, &[]),
        route("GRPCRoute", "calls", "grpc.example.test", rules),
        route(
            "GRPCRoute",
            "pulls",
            "pulls.example.test",
            "[{matches: [{method: {method: Pull}}], backendRefs: [{name: pulls, port: 80}]}]",
        ),
        route(
            "GRPCRoute",
            "gone",
            "gone.example.test",
            "[{backendRefs: [{name: gone, port: 80}]}]",
        ),
    ];
    stage.write("all.yaml", &texts.join("---\n")).unwrap();
    stage.serve(2).unwrap();
    stage
}

/// Calls as grpcurl does; exit code, what it says, and what it complains of.
fn ask(stage: &Stage, by: By, host: &str, words: &[&str], call: &[&str]) -> (i32, String, String) {
    let mut grpcurl = stage.grpcurl().unwrap();
    grpcurl.args(["-authority", host]).args(words);
    match by {
        By::Clear => grpcurl.arg("-plaintext").arg(format!("{VIP}:80")),
        By::Tls => (grpcurl.args(["-cacert", &stage.root()])).arg(format!("{VIP}:443")),
    };
    let (code, stdout, stderr) = stage.result(grpcurl.args(call)).unwrap();
    (code.unwrap(), stdout, stderr)
}

/// The lines that follow one of what grpcurl says with `-v`, up to an empty one.
fn block<'a>(said: &'a str, title: &str) -> Vec<&'a str> {
    let mut lines = said.lines().skip_while(|line| *line != title).skip(1);
    let block: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    // Trailers are followed by the counts without a line between.
    let counts = |line: &&&str| !line.starts_with("Sent ");
    block.iter().take_while(counts).copied().collect()
}

/// The texts of all messages that came back.
fn texts(said: &str) -> Vec<String> {
    let bodies = said.split("Response contents:\n").skip(1);
    let text = |body: &str| {
        let end = body.find("\n\n").unwrap();
        let message: Value = serde_json::from_str(&body[..end]).unwrap();
        message["text"].as_str().unwrap().to_owned()
    };
    bodies.map(text).collect()
}

/// Lines of the access log for a path, once there are as many as there should be.
fn logged(stage: &Stage, path: &str, count: usize) -> Vec<Value> {
    eventually(path, Duration::from_secs(5), || {
        let lines = stage.access_log()?;
        let lines: Vec<_> = lines
            .into_iter()
            .filter(|line| line["path"] == path)
            .collect();
        ensure!(lines.len() == count, "{count} expected: {lines:?}");
        Ok(lines)
    })
    .unwrap()
}

const HEAD: [&str; 4] = [
    "content-type: application/grpc",
    "grpc-accept-encoding: identity, deflate, gzip",
    "via: 2.0 forebay",
    "x-head: begin",
];
const TRAILERS: [&str; 2] = ["x-bytes-bin: AAECAw==", "x-trailer: end"];

#[test]
fn every_shape_by_reflection() {
    let stage = stage();
    for (by, proto) in [(By::Clear, "http"), (By::Tls, "https")] {
        let ask = |words: &[&str], call: &str| {
            let (code, said, error) = ask(&stage, by, "grpc.example.test", words, &[call]);
            assert_eq!(code, 0, "{call}: {error}");
            said
        };
        let listed = ask(&[], "list");
        let services = "grpc.reflection.v1alpha.ServerReflection\ntest.Lines\n";
        assert_eq!(listed, services, "{proto}");
        assert_eq!(stage.seen().unwrap().len(), 0, "reflection alone");
        let two = "{\"text\":\"ä\"}{\"text\":\"bc\"}";
        let metadata = [
            "-rpc-header",
            "x-client: grpcurl",
            "-rpc-header",
            "x-raw-bin: AP8H",
        ];
        for (method, sent, counts, got) in [
            (
                "Unary",
                "{\"text\":\"hello\"}",
                "1 request and received 1 response",
                &["hello"][..],
            ),
            (
                "Pull",
                "{\"text\":\"3\"}",
                "1 request and received 3 responses",
                &["0", "1", "2"],
            ),
            ("Push", two, "2 requests and received 1 response", &["4"]),
            (
                "Both",
                two,
                "2 requests and received 2 responses",
                &["ä", "bc"],
            ),
        ] {
            let mut words = vec!["-v", "-d", sent];
            words.extend(metadata);
            let said = ask(&words, &format!("test.Lines/{method}"));
            assert_eq!(texts(&said), got, "{proto} {method}");
            assert!(said.contains(&format!("Sent {counts}\n")), "{said}");
            let head = block(&said, "Response headers received:");
            let (date, head): (Vec<_>, Vec<_>) = head
                .into_iter()
                .partition(|line| line.starts_with("date: "));
            assert_eq!((date.len(), &*head), (1, &HEAD[..]), "{proto} {method}");
            let trailers = block(&said, "Response trailers received:");
            assert_eq!(trailers, TRAILERS, "{proto} {method}");
            let seen = stage.seen().unwrap();
            assert_eq!(seen.len(), 1, "{seen:?}");
            assert_eq!(
                (&seen[0]["method"], &seen[0]["end"]),
                (&json!(method), &json!("done"))
            );
            let saw = seen[0]["metadata"].as_array().unwrap();
            for (name, value) in [
                ("x-client", "grpcurl"),
                ("x-raw-bin", "00ff07"),
                ("x-forwarded-for", VIP),
                ("x-forwarded-proto", proto),
                ("via", "2.0 forebay"),
            ] {
                let values: Vec<_> = saw.iter().filter(|field| field[0] == name).collect();
                assert_eq!(values, [&json!([name, value])], "{proto} {method}");
            }
        }
    }
    // The rule for a method alone leads elsewhere than that of its service.
    for (method, rule, at) in [
        ("Unary", 1, 0),
        ("Pull", 0, 1),
        ("Push", 1, 0),
        ("Both", 1, 0),
    ] {
        for line in logged(&stage, &format!("/test.Lines/{method}"), 2) {
            let host = format!("{}:{GRPC}", ENDPOINTS[at]);
            assert_eq!(line["upstream_host"], host, "{line}");
            assert_eq!(
                line["route_name"],
                format!("default/calls/rule/{rule}"),
                "{line}"
            );
        }
    }
    // grpcurl asks by the newer reflection first and goes on by the older only where that is UNIMPLEMENTED: each time here.
    for (version, flag) in [("v1", "NR"), ("v1alpha", "-")] {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        for line in logged(&stage, &path, 10) {
            assert_eq!(line["response_flags"], flag, "{line}");
        }
    }
}

#[test]
fn statuses_of_the_endpoint_and_of_our_own() {
    let stage = stage();
    let set = stage.path("lines.protoset");
    let (code, _, error) = ask(
        &stage,
        By::Tls,
        "grpc.example.test",
        &["-protoset-out", &set],
        &["describe", "test.Lines"],
    );
    assert_eq!(code, 0, "{error}");
    for by in [By::Clear, By::Tls] {
        // No reflection: the only call is the one that is asked about.
        let ask = |host: &str, words: &[&str], call: &str| {
            let mut all = vec!["-v", "-protoset", &set];
            all.extend(words);
            ask(&stage, by, host, &all, &[call])
        };
        let fail = ["-rpc-header", "x-fail: 9"];
        let (code, said, error) = ask("grpc.example.test", &fail, "test.Lines/Unary");
        assert_eq!(code, FAILED + FAILED_PRECONDITION);
        assert_eq!(
            error,
            "ERROR:\n  Code: FailedPrecondition\n  Message: as asked: ü%\n"
        );
        assert_eq!(block(&said, "Response trailers received:"), TRAILERS);
        let seen = stage.seen().unwrap();
        assert_eq!(seen.len(), 1, "{seen:?}");

        let (code, _, error) = ask(
            "grpc.example.test",
            &["-max-time", "0.5"],
            "test.Lines/Slow",
        );
        assert_eq!(code, FAILED + DEADLINE_EXCEEDED, "{error}");
        eventually("the end of the call", Duration::from_secs(5), || {
            let seen = stage.look()?;
            ensure!(seen.len() == 1 && seen[0]["end"] == "cancelled", "{seen:?}");
            Ok(())
        })
        .unwrap();
        stage.seen().unwrap();

        // Ours: no rule takes the method, no route the host; no endpoint.
        for (host, status, name, message) in [
            (
                "other.example.test",
                UNIMPLEMENTED,
                "Unimplemented",
                "no route",
            ),
            (
                "pulls.example.test",
                UNIMPLEMENTED,
                "Unimplemented",
                "no route",
            ),
            (
                "gone.example.test",
                UNAVAILABLE,
                "Unavailable",
                "no healthy upstream",
            ),
        ] {
            let (code, said, error) = ask(host, &[], "test.Lines/Unary");
            assert_eq!(code, FAILED + status, "{host}: {error}");
            let told = format!("ERROR:\n  Code: {name}\n  Message: {message}\n");
            assert_eq!(error, told, "{host}");
            // A response of trailers alone, as grpcurl calls it.
            let fields = block(&said, "Response trailers received:");
            assert!(fields.contains(&"server: forebay"), "{host}: {said}");
        }
        assert_eq!(stage.seen().unwrap().len(), 0);
    }
    let lines = logged(&stage, "/test.Lines/Unary", 8);
    let flags: Vec<_> = lines.iter().map(|line| &line["response_flags"]).collect();
    assert_eq!(flags, ["-", "NR", "NR", "UH", "-", "NR", "NR", "UH"]);
}
