//! Events: each turn once, never a flood.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::fake::Fake;
use super::statuses::identity;
use crate::k8s::writer::{Desired, Writer};
use crate::k8s::{Outcome, Remark, What};
use crate::status::{ObjectStatus, Status};
use crate::translate::{Condition, Kind};

const CLASSES: &str = "/apis/gateway.networking.k8s.io/v1/gatewayclasses";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

fn class(name: &str, condition: Condition) -> ObjectStatus {
    ObjectStatus {
        api_version: Kind::GatewayClass.api_version(),
        kind: Kind::GatewayClass,
        namespace: "".into(),
        name: name.into(),
        status: Status::Plain(Arc::new(vec![condition].into())),
    }
}

fn good() -> Condition {
    Condition::yes("Accepted", "Accepted", "fine")
}

fn bad(message: &str) -> Condition {
    Condition::no("Accepted", "InvalidParameters", message)
}

async fn pass(seconds: u64) {
    tokio::time::sleep_until(Instant::now() + Duration::from_secs(seconds)).await;
}

/// Says it, and waits until an Event about it would be there.
async fn say(writer: &Writer, condition: Condition) {
    writer.publish(Desired {
        statuses: Arc::new(vec![class("c", condition)]),
        ..Desired::default()
    });
    pass(70).await;
}

fn events(fake: &Fake) -> Vec<Value> {
    let state = fake.state();
    let all = state.objects.iter();
    let all = all.filter(|(path, _)| path.starts_with("/apis/events.k8s.io/"));
    let mut all: Vec<Value> = all.map(|(_, event)| event.clone()).collect();
    all.sort_by_key(|event| event["metadata"]["resourceVersion"].to_string());
    all
}

fn notes(fake: &Fake) -> Vec<String> {
    let all = events(fake).into_iter();
    let mut notes: Vec<String> = all
        .map(|event| {
            let text = |field: &str| event[field].as_str().unwrap_or("").to_owned();
            let count = event["series"]["count"].as_u64().unwrap_or(1);
            format!(
                "{} {} {} x{count}",
                text("type"),
                text("reason"),
                text("note")
            )
        })
        .collect();
    notes.sort();
    notes
}

fn with_class() -> Fake {
    let fake = Fake::default();
    fake.state().put(&format!("{CLASSES}/c"), json!({}));
    fake
}

fn started(fake: &Fake) -> Writer {
    Writer::start(fake.client(), fake.seen(), &identity())
}

#[tokio::test(start_paused = true)]
async fn each_turn_is_told_once_and_not_again_by_another_process() {
    let fake = with_class();
    let writer = started(&fake);
    say(&writer, good()).await;
    assert_eq!(
        notes(&fake),
        [""; 0],
        "what is well from the start is no news"
    );
    say(&writer, bad("no")).await;
    let warning = "Warning InvalidParameters Accepted is False: no x1";
    assert_eq!(notes(&fake), [warning]);
    let event = events(&fake).remove(0);
    let uid = fake.state().objects[&format!("{CLASSES}/c")]["metadata"]["uid"].clone();
    assert_eq!(event["regarding"]["uid"], uid);
    assert_eq!(event["regarding"]["kind"], "GatewayClass");
    assert_eq!(event["reportingInstance"], "one");
    assert_eq!(event["action"], "Accepted");
    writer.stop().await;
    let calls = fake.count(&Method::POST, "/events");
    let writer = started(&fake);
    say(&writer, bad("no")).await;
    say(&writer, bad("no")).await;
    assert_eq!(fake.count(&Method::POST, "/events"), calls);
    say(&writer, good()).await;
    let over = "Normal Accepted Accepted is True again: fine x1";
    assert_eq!(notes(&fake), [over, warning]);
    // It happens again: the same Event counts it.
    say(&writer, bad("no")).await;
    let twice = "Warning InvalidParameters Accepted is False: no x2";
    assert_eq!(notes(&fake), [over, twice]);
    assert_eq!(fake.count(&Method::DELETE, ""), 0);
}

#[tokio::test(start_paused = true)]
async fn what_turns_back_at_once_or_again_and_again_is_no_flood() {
    let fake = with_class();
    let writer = started(&fake);
    say(&writer, good()).await;
    let publish = |condition| {
        writer.publish(Desired {
            statuses: Arc::new(vec![class("c", condition)]),
            ..Desired::default()
        });
    };
    publish(bad("no"));
    pass(1).await;
    publish(good());
    pass(10).await;
    assert_eq!(notes(&fake), [""; 0]);
    for _ in 0..600 {
        publish(bad("no"));
        pass(3).await;
        publish(good());
        pass(3).await;
    }
    pass(600).await;
    let writes = fake.count(&Method::POST, "/events") + fake.count(&Method::PATCH, "/events");
    assert!((2..90).contains(&writes), "{writes} writes in an hour");
    assert_eq!(events(&fake).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn many_at_once_are_written_slowly_and_no_more_than_there_is_room_for() {
    let fake = Fake::default();
    let names: Vec<String> = (0..3000).map(|number| format!("c{number:04}")).collect();
    for name in &names {
        fake.state().put(&format!("{CLASSES}/{name}"), json!({}));
    }
    let writer = started(&fake);
    let statuses = names.iter().map(|name| class(name, bad("no"))).collect();
    writer.publish(Desired {
        statuses: Arc::new(statuses),
        ..Desired::default()
    });
    pass(12).await;
    let some = events(&fake).len();
    assert!((50..=120).contains(&some), "{some}");
    pass(1000).await;
    let all = events(&fake).len();
    assert!((2000..3000).contains(&all), "{all}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_rule_or_server_is_waited_for() {
    let fake = with_class();
    fake.hook(|_, _, path| path.contains("/events").then_some(503));
    let writer = started(&fake);
    say(&writer, bad("no")).await;
    assert_eq!(events(&fake).len(), 0);
    fake.no_hook();
    pass(60).await;
    assert_eq!(events(&fake).len(), 1);
    fake.hook(|_, _, path| path.contains("/events").then_some(403));
    for number in 0..20 {
        say(&writer, bad(&number.to_string())).await;
    }
    let forbidden = writer.counters().get(What::Event, Outcome::Forbidden);
    assert!((1..=6).contains(&forbidden), "{forbidden}");
}

#[tokio::test(start_paused = true)]
async fn a_node_says_something_about_itself_once() {
    let fake = with_class();
    fake.state().put("/api/v1/nodes/one", json!({}));
    let remark = Remark {
        reason: "NoNativeXDP",
        note: "eth0 is not fast".into(),
    };
    for _ in 0..2 {
        let writer = started(&fake);
        writer.remark(remark.clone());
        pass(10).await;
        assert_eq!(notes(&fake), ["Warning NoNativeXDP eth0 is not fast x1"]);
        writer.stop().await;
    }
    let event = events(&fake).remove(0);
    let path = format!("{EVENTS}/{}", event["metadata"]["name"].as_str().unwrap());
    assert!(fake.state().objects.contains_key(&path), "{path}");
    let uid = &fake.state().objects["/api/v1/nodes/one"]["metadata"]["uid"];
    assert_eq!(&event["regarding"]["uid"], uid);
}
