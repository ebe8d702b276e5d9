//! Configuration changes under load: no request fails.

use std::time::Duration;

use anyhow::{Result, ensure};
use gateway_tests::{
    client::{Load, Outcome, Running, Tally},
    eventually::eventually,
    fixture::{HOST, HOST_V1},
    leftovers::Ledger,
    rig::{Options, Rig, VIP},
    topology::BACKENDS_V1,
};

/// Requests that must be answered between two changes.
const BETWEEN: usize = 50;

fn wait_for_more(running: &Running) {
    let before = running.finished();
    eventually(
        "more requests",
        Duration::from_secs(10),
        || -> Result<()> {
            let more = running.finished() - before;
            ensure!(more >= BETWEEN, "{more} of {BETWEEN}");
            Ok(())
        },
    )
    .unwrap();
}

#[test]
fn no_request_fails_while_manifests_change() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    rig.deliver_to(0).unwrap();
    let load = Load {
        count: None,
        overlap: 8,
        ..Load::new(VIP, HOST, 0)
    };
    let running = rig.client.start(load).unwrap();

    rig.fixture
        .replace("route.yaml", "weight: 50", "weight: 90")
        .unwrap();
    wait_for_more(&running);
    rig.fixture.route_to_v1().unwrap();
    rig.wait_served(0, HOST_V1).unwrap();
    let v1 = BACKENDS_V1[1].to_string();
    let terminating =
        format!("[{v1}]\n    conditions: {{ready: false, serving: true, terminating: true}}");
    let ready =
        format!("[{v1}]\n    conditions: {{ready: true, serving: true, terminating: false}}");
    rig.fixture
        .replace("backends.yaml", &ready, &terminating)
        .unwrap();
    wait_for_more(&running);
    rig.fixture
        .replace("backends.yaml", &terminating, &ready)
        .unwrap();
    rig.fixture
        .replace("destination-rules.yaml", "ROUND_ROBIN", "LEAST_REQUEST")
        .unwrap();
    wait_for_more(&running);
    rig.fixture.write("broken.yaml", "kind: [\n").unwrap();
    wait_for_more(&running);
    rig.fixture.write("route-v1.yaml", "kind: [\n").unwrap();
    wait_for_more(&running);
    rig.wait_served(0, HOST_V1).unwrap();
    rig.fixture.remove("broken.yaml").unwrap();
    rig.fixture.remove("route-v1.yaml").unwrap();
    wait_for_more(&running);

    let finished = running.stop().unwrap();
    let tally = Tally::of(&finished);
    assert_eq!(
        (tally.status(200), tally.broken()),
        (finished.len(), 0),
        "{tally}"
    );
}

#[test]
fn a_removed_route_answers_404_and_the_other_goes_on() {
    let options = Options {
        nodes: 1,
        ..Options::default()
    };
    let mut rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    rig.fixture.route_to_v1().unwrap();
    rig.wait_served(0, HOST_V1).unwrap();
    rig.fixture.remove("route-v1.yaml").unwrap();
    eventually("404", Duration::from_secs(10), || {
        let load = rig.load_through(0, HOST_V1, 1)?;
        let outcome = &rig.client.send(load)?[0].outcome;
        ensure!(
            matches!(outcome, Outcome::Answer(answer) if answer.status == 404),
            "{outcome:?}"
        );
        Ok(())
    })
    .unwrap();
    rig.wait_served(0, HOST).unwrap();
}
