//! Exact numbers of writes.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, advance, timeout};

use super::fake::Fake;
use crate::k8s::permissions::Permissions;
use crate::k8s::writer::{Desired, Identity, Writer};
use crate::k8s::{Outcome, What};
use crate::status::{ObjectStatus, Status};
use crate::translate::condition::{GatewayStatus, ListenerStatus, ParentStatus, RouteStatus};
use crate::translate::objects::ParentRef;
use crate::translate::{CONTROLLER, Condition, Kind};

const BASE: &str = "/apis/gateway.networking.k8s.io/v1";

pub(super) fn identity() -> Identity {
    Identity {
        node: "one".into(),
        namespace: "forebay-system".into(),
        permissions: Permissions::default(),
    }
}

fn route(name: &str, reason: &'static str) -> ObjectStatus {
    let parent = ParentStatus {
        parent_ref: ParentRef {
            name: "gw".into(),
            ..ParentRef::default()
        },
        controller_name: CONTROLLER,
        conditions: vec![Condition::yes("Accepted", reason, "")],
    };
    ObjectStatus {
        api_version: Kind::HttpRoute.api_version(),
        kind: Kind::HttpRoute,
        namespace: "a".into(),
        name: name.into(),
        status: Status::Route(Arc::new(RouteStatus {
            parents: vec![parent],
        })),
    }
}

fn gateway(attached_routes: usize) -> ObjectStatus {
    let listener = ListenerStatus {
        name: "http".into(),
        attached_routes,
        ..ListenerStatus::default()
    };
    ObjectStatus {
        api_version: Kind::Gateway.api_version(),
        kind: Kind::Gateway,
        namespace: "a".into(),
        name: "gw".into(),
        status: Status::Gateway(GatewayStatus {
            listeners: vec![listener],
            ..GatewayStatus::default()
        }),
    }
}

fn path(name: &str) -> String {
    format!("{BASE}/namespaces/a/httproutes/{name}")
}

const GATEWAY: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/a/gateways/gw";

fn say(writer: &Writer, statuses: Vec<ObjectStatus>) {
    writer.publish(Desired {
        statuses: Arc::new(statuses),
        ..Desired::default()
    });
}

/// Until this is so; the clock goes on by itself when there is nothing else to do.
async fn until(what: impl Fn() -> bool) {
    let poll = async {
        while !what() {
            tokio::time::sleep_until(Instant::now() + Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(300), poll)
        .await
        .expect("it becomes so");
}

async fn pass(seconds: u64) {
    let end = Instant::now() + Duration::from_secs(seconds);
    tokio::time::sleep_until(end).await;
}

fn started(fake: &Fake) -> Writer {
    Writer::start(fake.client(), fake.seen(), &identity())
}

#[tokio::test(start_paused = true)]
async fn what_differs_is_written_once() {
    let fake = Fake::default();
    for name in ["x", "y"] {
        fake.state().put(&path(name), json!({}));
    }
    let writer = started(&fake);
    until(|| writer.leads()).await;
    pass(5).await;
    assert_eq!(
        fake.count(&Method::PATCH, ""),
        0,
        "nothing is published yet"
    );
    say(&writer, vec![route("x", "A"), route("y", "A")]);
    pass(5).await;
    assert_eq!(fake.count(&Method::PATCH, ""), 2);
    // The same again, in other allocations.
    say(&writer, vec![route("x", "A"), route("y", "A")]);
    pass(200).await;
    assert_eq!(fake.count(&Method::PATCH, ""), 2);
    say(&writer, vec![route("x", "A"), route("y", "B")]);
    pass(5).await;
    assert_eq!(fake.count(&Method::PATCH, "/y/status"), 2);
    assert_eq!(fake.count(&Method::PATCH, ""), 3);
    // An object that is not there is not asked for.
    say(
        &writer,
        vec![route("x", "A"), route("y", "B"), route("z", "A")],
    );
    pass(200).await;
    assert_eq!(fake.count(&Method::PATCH, ""), 3);
    fake.state().put(&path("z"), json!({}));
    pass(1).await;
    assert_eq!(fake.count(&Method::PATCH, "/z/status"), 1);
    assert_eq!(writer.counters().get(What::HttpRoute, Outcome::Written), 4);
    assert_eq!(fake.count(&Method::GET, "httproutes"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_has_changed_meanwhile_is_read_and_merged_anew() {
    let fake = Fake::default();
    fake.state().put(&path("x"), json!({}));
    let writer = started(&fake);
    until(|| writer.leads()).await;
    let foreign =
        json!({"controllerName": "other.example/x", "parentRef": {"name": "b"}, "conditions": []});
    let entry = foreign.clone();
    let mut first = true;
    fake.hook(move |state, method, called| {
        if *method == Method::PATCH && called.contains("httproutes") && std::mem::take(&mut first) {
            state.put(&path("x"), json!({"status": {"parents": [entry]}}));
        }
        None
    });
    say(&writer, vec![route("x", "A")]);
    pass(5).await;
    let parents = fake.state().status(&path("x"))["parents"].clone();
    assert_eq!(parents[0], foreign);
    assert_eq!(parents[1]["conditions"][0]["reason"], "A");
    assert_eq!(fake.count(&Method::PATCH, "/x/status"), 2);
    let counters = writer.counters();
    let count = |outcome| counters.get(What::HttpRoute, outcome);
    assert_eq!((count(Outcome::Conflict), count(Outcome::Written)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_change_by_somebody_else_is_put_right_but_never_in_a_hot_loop() {
    let fake = Fake::default();
    fake.state().put(&path("x"), json!({}));
    let writer = started(&fake);
    say(&writer, vec![route("x", "A")]);
    until(|| fake.count(&Method::PATCH, "/x/status") == 1).await;
    let spoil = || {
        let mut state = fake.state();
        let mut object = state.objects[&path("x")].clone();
        object["status"]["parents"][0]["conditions"][0]["reason"] = "Spoilt".into();
        state.put(&path("x"), object);
    };
    let spoilt =
        || fake.state().status(&path("x"))["parents"][0]["conditions"][0]["reason"] == "Spoilt";
    spoil();
    pass(1).await;
    assert_eq!(
        (fake.count(&Method::PATCH, "/x/status"), spoilt()),
        (2, false)
    );
    // Another controller that does not give up.
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        spoil();
        until(|| !spoilt()).await;
    }
    let fights = fake.count(&Method::PATCH, "/x/status");
    assert!((8..=12).contains(&fights), "{fights} writes");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_routes_cost_little_more_than_a_thousand_writes() {
    let fake = Fake::default();
    fake.state().put(GATEWAY, json!({}));
    let writer = started(&fake);
    until(|| writer.leads()).await;
    let mut routes = Vec::new();
    for n in 0..1000 {
        let name = format!("r{n:04}");
        fake.state().put(&path(&name), json!({}));
        routes.push(route(&name, "A"));
        let statuses = std::iter::once(gateway(n + 1)).chain(routes.iter().cloned());
        say(&writer, statuses.collect());
        advance(Duration::from_millis(10)).await;
        tokio::task::yield_now().await;
    }
    let last = Instant::now();
    let attached = || fake.state().status(GATEWAY)["listeners"][0]["attachedRoutes"].clone();
    until(|| attached() == 1000).await;
    assert!(
        last.elapsed() < Duration::from_secs(1),
        "{:?}",
        last.elapsed()
    );
    pass(100).await;
    assert_eq!(fake.count(&Method::PATCH, "httproutes"), 1000);
    let gateways = fake.count(&Method::PATCH, "gateways");
    assert!((10..40).contains(&gateways), "{gateways}");
    assert_eq!(
        fake.count(&Method::GET, "namespaces/a"),
        0,
        "no conflict with the own writes"
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_rule_holds_up_its_kind_and_no_other() {
    let fake = Fake::default();
    fake.state().put(GATEWAY, json!({}));
    let names: Vec<String> = (0..200).map(|n| format!("r{n}")).collect();
    for name in &names {
        fake.state().put(&path(name), json!({}));
    }
    let writer = started(&fake);
    fake.hook(|_, method, path| {
        (*method == Method::PATCH && path.contains("httproutes")).then_some(403)
    });
    let mut statuses: Vec<ObjectStatus> = names.iter().map(|name| route(name, "A")).collect();
    statuses.push(gateway(1));
    statuses.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    say(&writer, statuses);
    pass(25).await;
    assert_eq!(fake.count(&Method::PATCH, "gateways"), 1);
    let refused = fake.count(&Method::PATCH, "httproutes");
    assert!(refused <= 16, "{refused}");
    assert_eq!(
        writer.counters().get(What::HttpRoute, Outcome::Forbidden),
        refused as u64
    );
    fake.no_hook();
    pass(35).await;
    assert_eq!(fake.count(&Method::PATCH, "httproutes"), refused + 200);
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_gone_one_call_at_a_time_looks_for_it() {
    let fake = Fake::default();
    for n in 0..100 {
        fake.state().put(&path(&format!("r{n:02}")), json!({}));
    }
    let writer = started(&fake);
    until(|| writer.leads()).await;
    fake.hook(|_, method, path| {
        (*method == Method::PATCH && path.contains("httproutes")).then_some(503)
    });
    let all = |reason| {
        (0..100)
            .map(|n| route(&format!("r{n:02}"), reason))
            .collect()
    };
    say(&writer, all("A"));
    pass(120).await;
    let tried = fake.count(&Method::PATCH, "httproutes");
    assert!(tried <= 16 + 16, "{tried}");
    say(&writer, all("B"));
    fake.no_hook();
    pass(20).await;
    assert_eq!(fake.count(&Method::PATCH, "httproutes"), tried + 100);
    for n in 0..100 {
        let status = fake.state().status(&path(&format!("r{n:02}")));
        assert_eq!(status["parents"][0]["conditions"][0]["reason"], "B");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_ends_all_writes_and_a_new_one_begins_with_everything() {
    let fake = Fake::default();
    fake.state().put(&path("x"), json!({}));
    let writer = started(&fake);
    say(&writer, vec![route("x", "A")]);
    until(|| fake.count(&Method::PATCH, "/x/status") == 1).await;
    fake.hook(|_, _, path| path.contains("leases").then_some(500));
    until(|| !writer.leads()).await;
    say(&writer, vec![route("x", "B")]);
    pass(30).await;
    assert_eq!(fake.count(&Method::PATCH, "/x/status"), 1);
    fake.no_hook();
    until(|| fake.count(&Method::PATCH, "/x/status") == 2).await;
    let status = fake.state().status(&path("x"));
    assert_eq!(status["parents"][0]["conditions"][0]["reason"], "B");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ours_any_more_loses_our_entries_and_nothing_else() {
    let fake = Fake::default();
    let ours = json!({"controllerName": CONTROLLER, "parentRef": {"name": "gw"}, "conditions": []});
    let foreign =
        json!({"controllerName": "other.example/x", "parentRef": {"name": "b"}, "conditions": []});
    let status = json!({"status": {"parents": [ours, foreign]}});
    let class = format!("{BASE}/gatewayclasses/c");
    let accepted = json!({"status": {"conditions": [{"type": "Accepted", "status": "True"}]}});
    for name in ["left-by-an-earlier-leader", "x"] {
        fake.state().put(&path(name), status.clone());
    }
    fake.state()
        .put(&path("foreign"), json!({"status": {"parents": [foreign]}}));
    fake.state().put(&class, accepted);
    let writer = started(&fake);
    say(&writer, vec![route("x", "A")]);
    pass(5).await;
    let parents = |name: &str| fake.state().status(&path(name))["parents"].clone();
    assert_eq!(parents("left-by-an-earlier-leader"), json!([foreign]));
    assert_eq!(parents("x").as_array().unwrap().len(), 2);
    say(&writer, vec![]);
    pass(5).await;
    assert_eq!(parents("x"), json!([foreign]));
    assert_eq!(fake.count(&Method::PATCH, ""), 3);
}

#[tokio::test(start_paused = true)]
async fn a_field_that_the_schema_drops_is_written_once() {
    let fake = Fake::default();
    let class = format!("{BASE}/gatewayclasses/c");
    fake.state().put(&class, json!({}));
    fake.state().pruned.push("supportedFeatures");
    let writer = started(&fake);
    let status = crate::translate::condition::ClassStatus {
        conditions: vec![Condition::yes("Accepted", "Accepted", "")],
        supported_features: crate::translate::features::FEATURES,
    };
    let mut wanted = route("c", "A");
    (wanted.kind, wanted.namespace) = (Kind::GatewayClass, "".into());
    wanted.status = Status::Plain(Arc::new(status));
    say(&writer, vec![wanted]);
    pass(300).await;
    assert_eq!(fake.count(&Method::PATCH, "gatewayclasses"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_is_forgotten_and_a_kind_without_status_is_left_alone() {
    let fake = Fake::default();
    let rule = "/apis/networking.istio.io/v1/namespaces/a/destinationrules/d";
    fake.state().put(rule, json!({}));
    fake.state().put(&path("x"), json!({}));
    let writer = started(&fake);
    fake.hook(move |_, method, path| {
        (*method == Method::PATCH && path.contains("destinationrules")).then_some(404)
    });
    // Gone, but the watch has not seen it yet.
    fake.state().objects.remove(&path("x"));
    let mut wanted = route("d", "A");
    wanted.kind = Kind::DestinationRule;
    wanted.status = Status::Plain(Arc::new(
        vec![Condition::yes("forebay.dev/Applied", "Applied", "")].into(),
    ));
    say(&writer, vec![route("x", "A"), wanted]);
    pass(20).await;
    assert_eq!(fake.count(&Method::PATCH, "destinationrules"), 1);
    assert_eq!(fake.count(&Method::PATCH, "/x/status"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_status_that_is_refused_waits_until_there_is_something_else_to_say() {
    let fake = Fake::default();
    fake.state().put(&path("x"), json!({}));
    let writer = started(&fake);
    fake.hook(|_, method, path| {
        (*method == Method::PATCH && path.contains("httproutes")).then_some(422)
    });
    say(&writer, vec![route("x", "A")]);
    pass(50).await;
    assert_eq!(fake.count(&Method::PATCH, "/x/status"), 1);
    say(&writer, vec![route("x", "B")]);
    pass(5).await;
    assert_eq!(fake.count(&Method::PATCH, "/x/status"), 2);
    let _: Value = fake.state().status(&path("x"));
}
