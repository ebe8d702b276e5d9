//! Autobahn's suite for WebSockets against an endpoint alone and through the proxy: no case may come out otherwise.

use std::collections::BTreeMap;
use std::process::Command;

use gateway_tests::stage::{
    ENDPOINTS, Stage, VIP, WEBSOCKET,
    manifest::{Condition, certificate, gateway, route, service},
};
use serde_json::{Value, json};

/// Cases of the chapters 1 to 10, version 25.10.1. Those of compression (12 and 13) take more than an hour.
const CASES: usize = 301;

/// Case by case what the suite found: of the messages, and of the closing.
type Outcomes = BTreeMap<String, (String, String)>;

fn outcomes(cases: &Value) -> Outcomes {
    let cases = cases.as_object().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let outcome = |case: &Value| (text(&case["behavior"]), text(&case["behaviorClose"]));
    (cases.iter())
        .map(|(name, case)| (name.clone(), outcome(case)))
        .collect()
}

/// How often each behaviour was seen.
fn tally(found: &Outcomes) -> BTreeMap<&str, usize> {
    found
        .values()
        .fold(BTreeMap::new(), |mut tally, (what, _)| {
            *tally.entry(&**what).or_default() += 1;
            tally
        })
}

#[test]
#[ignore = "minutes, and Python 2.7: docs/decisions/0010 says how"]
fn every_case_comes_out_as_without_the_proxy() {
    let wstest =
        std::env::var_os("FOREBAY_WSTEST").expect("docs/decisions/0010 says what it names");
    let mut stage = Stage::new().unwrap();
    let endpoints = [(ENDPOINTS[0], Condition::Ready)];
    // The suite asks for the host of its URL, which is an address here.
    let rule = "[{backendRefs: [{name: sockets, port: 80}]}]";
    let route = route("HTTPRoute", "ws", "any", rule).replace("  hostnames: [any]\n", "");
    let texts = [
        gateway(&[("https", 443, None, "wild")]),
        certificate("wild", &stage.wild),
        service("sockets", "kubernetes.io/ws", WEBSOCKET, &endpoints),
        route,
    ];
    stage.write("all.yaml", &texts.join("---\n")).unwrap();
    stage.serve(2).unwrap();
    let agents = [
        ("alone", format!("ws://{}:{WEBSOCKET}", ENDPOINTS[0])),
        ("ws", format!("ws://{VIP}:80")),
        ("wss", format!("wss://{VIP}:443")),
    ];
    // All at once: most cases wait a second for what shall not come.
    let mut running = Vec::new();
    for (agent, url) in &agents {
        let reports = stage.path(agent);
        let asked = json!({
            "outdir": reports, "servers": [{"agent": agent, "url": url}], "cases": ["*"],
            "exclude-cases": ["12.*", "13.*"], "exclude-agent-cases": {},
        });
        let spec = stage.path(&format!("{agent}.json"));
        std::fs::write(&spec, asked.to_string()).unwrap();
        let mut suite = Command::new(&wstest);
        suite.args(["-m", "fuzzingclient", "-s", &spec]);
        running.push((*agent, reports, stage.begin(&mut suite).unwrap()));
    }
    let mut found: BTreeMap<&str, Outcomes> = BTreeMap::new();
    for (agent, reports, suite) in running {
        let said = suite.end().unwrap();
        let report = std::fs::read_to_string(format!("{reports}/index.json")).expect(&said);
        let report: Value = serde_json::from_str(&report).unwrap();
        found.insert(agent, outcomes(&report[agent]));
    }
    for (agent, outcomes) in &found {
        println!("{agent}: {:?}", tally(outcomes));
        for (case, (what, _)) in outcomes.iter().filter(|(_, (what, _))| what != "OK") {
            println!("  {case}: {what}");
        }
    }
    // "Non-strict" is as good as "OK": which of them, the endpoint decides by how the bytes come to it.
    let passed = |(what, close): &(String, String)| {
        let what = what.replace("NON-STRICT", "OK");
        (what, close.clone())
    };
    for agent in ["ws", "wss"] {
        for (case, outcome) in &found["alone"] {
            let through = found[agent].get(case).map(passed);
            assert_eq!(through, Some(passed(outcome)), "{agent}: case {case}");
        }
    }
    assert_eq!(found["alone"].len(), CASES);
}
