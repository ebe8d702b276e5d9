//! Every protocol at once while routes, weights, filters, certificates, endpoints and protocols change five times a second:
//! no request fails, no handshake, no stream.

use std::collections::VecDeque;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use gateway_tests::{
    eventually::throughout,
    stage::{
        CLEAR, ENDPOINTS, GRPC, Stage, VIP, WEBSOCKET,
        certificates::Leaf,
        manifest::{self, Condition, Endpoint, certificate, gateway, route, service},
    },
};
use serde_json::Value;

/// Time between two changes.
const PACE: Duration = Duration::from_millis(200);
/// Longest time from a change of the Secret to the first handshake with the new certificate.
const SEEN_WITHIN: f64 = 1.0;
/// Certificates that take turns.
const CHAINS: u32 = 4;

/// What changes, one thing each time.
struct Changes<'a> {
    stage: &'a Stage,
    chains: Vec<Leaf>,
    number: usize,
    /// When each certificate was put in, in seconds since 1970, and its serial number.
    issued: Vec<(f64, u64)>,
}

impl Changes<'_> {
    fn endpoints(&self, name: &str, protocol: &str, port: u16, turn: usize) -> Result<()> {
        let [a, b, c] = ENDPOINTS;
        let (ready, leaving) = (Condition::Ready, Condition::Terminating);
        let lists: [&[Endpoint<'_>]; 4] = [
            &[(a, ready), (b, ready), (c, ready)],
            &[(a, ready), (b, leaving), (c, ready)],
            &[(a, ready), (c, ready)],
            &[(c, ready), (b, ready)],
        ];
        let text = service(name, protocol, port, lists[turn % lists.len()]);
        self.stage.write(&format!("{name}.yaml"), &text)
    }

    fn routes(&self, turn: usize) -> Result<()> {
        let (weight, filter) = (turn % 5 * 25, turn % 3);
        let filter = match filter {
            0 => String::new(),
            1 => "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-churn, value: a}]}}], ".into(),
            _ => "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: second, port: 80}, percent: 10}}, \
                  {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-churn, value: b}]}}], "
                .into(),
        };
        let rules = format!(
            "[{{{filter}backendRefs: [{{name: first, port: 80, weight: {weight}}}, {{name: second, port: 80, weight: {}}}]}}]",
            101 - weight
        );
        self.stage.write(
            "route.yaml",
            &route("HTTPRoute", "h1", "h1.example.test", &rules),
        )
    }

    fn certificate(&mut self, turn: usize) -> Result<()> {
        let which = turn % (self.chains.len() + 1);
        let Some(leaf) = self.chains.get(which) else {
            // A certificate with another's key: the last good one stays in use.
            let mut broken = self.chains[0].clone();
            broken.key = self.chains[1].key.clone();
            return self.stage.write("wild.yaml", &certificate("wild", &broken));
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        self.issued.push((now, 200 + which as u64));
        self.stage.write("wild.yaml", &certificate("wild", leaf))
    }

    fn next(&mut self) -> Result<()> {
        let turn = self.number / 8;
        self.number += 1;
        match self.number % 8 {
            0 => self.routes(turn),
            1 => self.endpoints("first", ["", "kubernetes.io/h2c"][turn % 2], CLEAR, turn),
            2 => self.certificate(turn),
            3 => self.endpoints(
                "second",
                ["kubernetes.io/h2c", "", "http"][turn % 3],
                CLEAR,
                turn,
            ),
            4 => self.endpoints("calls", "", GRPC, turn),
            5 => self.endpoints("sockets", "", WEBSOCKET, turn),
            6 => self.stage.write(
                "more.yaml",
                &route(
                    "HTTPRoute",
                    "more",
                    &format!("more{turn}.example.test"),
                    "[{backendRefs: [{name: first, port: 80}]}]",
                ),
            ),
            _ => self.stage.write(
                "policy.yaml",
                &manifest::policy(
                    "first",
                    [
                        "{loadBalancer: {simple: RANDOM}}",
                        "{loadBalancer: {simple: LEAST_REQUEST}}",
                    ][turn % 2],
                ),
            ),
        }
    }
}

fn prepare(stage: &Stage) -> Changes<'_> {
    let issue = |number: u32| {
        let name = format!("chain{number}");
        stage
            .authority
            .issue(&name, &["*.example.test"], 200 + number)
            .unwrap()
    };
    let changes = Changes {
        stage,
        chains: (0..CHAINS).map(issue).collect(),
        number: 0,
        issued: Vec::new(),
    };
    let listeners = [("https", 443, Some("*.example.test"), "wild")];
    stage.write("gateway.yaml", &gateway(&listeners)).unwrap();
    stage
        .write("wild.yaml", &certificate("wild", &stage.wild))
        .unwrap();
    changes.endpoints("first", "", CLEAR, 0).unwrap();
    changes
        .endpoints("second", "kubernetes.io/h2c", CLEAR, 0)
        .unwrap();
    changes.endpoints("calls", "", GRPC, 0).unwrap();
    changes.endpoints("sockets", "", WEBSOCKET, 0).unwrap();
    changes.routes(0).unwrap();
    let rule = |name: &str| format!("[{{backendRefs: [{{name: {name}, port: 80}}]}}]");
    let fixed = [
        route("GRPCRoute", "calls", "grpc.example.test", &rule("calls")),
        route("HTTPRoute", "sockets", "ws.example.test", &rule("sockets")),
    ];
    stage.write("fixed.yaml", &fixed.join("---\n")).unwrap();
    changes
}

/// How the fresh handshakes saw the certificates: each is seen in time, or was replaced before that.
fn certificates_seen(issued: &[(f64, u64)], notes: &Value) -> f64 {
    let notes = notes.as_array().unwrap().iter();
    let mut notes: VecDeque<(f64, u64)> = notes
        .map(|note| (note[0].as_f64().unwrap(), note[1].as_u64().unwrap()))
        .collect();
    assert_eq!(notes.pop_front().unwrap().1, 100, "the first certificate");
    let mut slowest: f64 = 0.0;
    for (when, serial) in issued {
        let (seen, found) = notes
            .pop_front()
            .unwrap_or_else(|| panic!("{serial} was never seen"));
        assert_eq!(found, *serial, "certificates in the order of their changes");
        slowest = slowest.max(seen - when);
    }
    assert_eq!(notes.len(), 0, "{notes:?}");
    slowest
}

fn churn(workers: usize, span: Duration) {
    let mut stage = Stage::new().unwrap();
    drop(prepare(&stage));
    stage.serve(workers).unwrap();
    let mut changes = prepare(&stage);
    let mut python = stage.python("churn.py").unwrap();
    let clients = stage.start(python.arg(VIP).arg(stage.root())).unwrap();
    let mut h2load = Command::new("h2load");
    h2load.args([
        "-D",
        &span.as_secs().to_string(),
        "-c",
        "4",
        "-m",
        "4",
        "-t",
        "1",
        "--rps=40",
    ]);
    h2load.args([
        "--connect-to",
        &format!("{VIP}:443"),
        "https://h1.example.test/",
    ]);
    let h2load = stage.begin(&mut h2load).unwrap();
    let begun = Instant::now();
    let mut due = begun;
    throughout("changes", span, || {
        if Instant::now() >= due {
            due += PACE;
            changes.next()?;
        }
        Ok(())
    })
    .unwrap();
    // The last certificate has its second too.
    throughout("the last change", Duration::from_secs(1), || Ok(())).unwrap();
    let said = h2load.end().unwrap();
    let found: Value = serde_json::from_str(&clients.end().unwrap()).unwrap();
    let enough = |name: &str, least: u64| -> Result<()> {
        let done = found[name]["done"].as_u64().unwrap_or(0);
        ensure!(done >= least, "{name}: {done} of {least}");
        Ok(())
    };
    let each = found.as_object().unwrap();
    let summary: Vec<String> = (each.iter())
        .map(|(name, tally)| format!("{name} {} ({} s)", tally["done"], tally["slowest"]))
        .collect();
    println!(
        "{workers} workers, {} changes: {}\n{said}",
        changes.number,
        summary.join(", ")
    );
    for (name, tally) in each {
        assert_eq!(
            tally["failed"],
            serde_json::json!([]),
            "{name}\n{}",
            stage.log()
        );
    }
    let seconds = span.as_secs();
    for (name, least) in [
        ("kept", 20 * seconds),
        ("kept with bodies", 20 * seconds),
        ("fresh handshakes", 10 * seconds),
        ("unary calls", 10 * seconds),
        ("bidi stream", 10 * seconds),
        ("ws", 20 * seconds),
        ("wss", 20 * seconds),
    ] {
        enough(name, least).unwrap();
    }
    for none in [" failed", " errored", " timeout"] {
        assert!(said.contains(&format!(", 0{none}")), "{said}");
    }
    let slowest = certificates_seen(&changes.issued, &found["fresh handshakes"]["notes"]);
    println!("certificates seen within {slowest:.3} s");
    assert!(slowest <= SEEN_WITHIN, "{slowest}");
    assert!(
        changes.number as u64 >= 4 * seconds,
        "{} changes",
        changes.number
    );
}

#[test]
fn nothing_breaks_while_everything_changes_with_two_workers() {
    churn(2, Duration::from_secs(20));
}

#[test]
fn nor_with_one_worker() {
    churn(1, Duration::from_secs(10));
}

#[test]
fn nor_with_four() {
    churn(4, Duration::from_secs(10));
}
