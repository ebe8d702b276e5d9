//! Tables and properties of what is written.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::snapshot::Transport;
use crate::translate::condition::{
    AddressStatus, AncestorRef, PolicyStatus, RouteStatus, SupportedKind,
};
use crate::translate::features::FEATURES;
use crate::translate::objects::ParentRef;

const NOW: &str = "2026-01-01T00:00:00Z";
const BEFORE: &str = "2025-05-05T05:05:05Z";

fn parent(name: &str, conditions: Vec<Condition>) -> ParentStatus {
    ParentStatus {
        parent_ref: ParentRef {
            name: name.into(),
            ..ParentRef::default()
        },
        controller_name: CONTROLLER,
        conditions,
    }
}

fn route(parents: Vec<ParentStatus>) -> Status {
    Status::Route(Arc::new(RouteStatus { parents }))
}

fn plain(conditions: Vec<Condition>) -> Status {
    Status::Plain(Arc::new(conditions.into()))
}

fn condition(kind: &str, status: &str, reason: &str, generation: i64, since: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": "", "observedGeneration": generation,
        "lastTransitionTime": since})
}

fn entry(controller: &str, name: &str, conditions: &[Value]) -> Value {
    json!({"controllerName": controller, "parentRef": {"name": name}, "conditions": conditions})
}

fn accepted(generation: i64) -> Condition {
    Condition::yes("Accepted", "Accepted", "").at(generation)
}

/// `current` after the write.
fn after(kind: Kind, desired: Option<&Status>, current: &Value) -> Option<Value> {
    let Outcome::Write(change) = patch(kind, desired, current, NOW) else {
        return None;
    };
    let mut next = current.clone();
    for (field, value) in change.fields {
        next[field] = value;
    }
    Some(next)
}

#[test]
fn the_time_changes_with_the_status_alone() {
    let was = |status: &str, reason: &str, generation| {
        let conditions = [condition("Accepted", status, reason, generation, BEFORE)];
        json!({"parents": [entry(CONTROLLER, "a", &conditions)]})
    };
    let desired = route(vec![parent("a", vec![accepted(2)])]);
    for (current, since) in [
        (json!({}), Some(NOW)),
        (json!({"parents": []}), Some(NOW)),
        (was("True", "Accepted", 2), None),
        (was("True", "Accepted", 1), Some(BEFORE)),
        (was("True", "Odd", 2), Some(BEFORE)),
        (was("False", "Accepted", 2), Some(NOW)),
    ] {
        let next = after(Kind::HttpRoute, Some(&desired), &current);
        let found = next.map(|next| {
            let parents = json!([entry(
                CONTROLLER,
                "a",
                &[condition("Accepted", "True", "Accepted", 2, since.unwrap())]
            )]);
            assert_eq!(next["parents"], parents, "{current}");
            since
        });
        assert_eq!(found.flatten(), since, "{current}");
    }
}

#[test]
fn who_is_behind_does_not_write() {
    let conditions = [condition("Accepted", "False", "Invalid", 3, BEFORE)];
    let current = json!({"parents": [entry(CONTROLLER, "a", &conditions)]});
    let desired = route(vec![parent("a", vec![accepted(2)])]);
    let outcome = patch(Kind::HttpRoute, Some(&desired), &current, NOW);
    assert!(matches!(outcome, Outcome::Behind(_)), "{outcome:?}");
}

#[test]
fn entries_of_others_stay_and_ours_follow_what_is_wanted() {
    let foreign = json!({"controllerName": "other.example/x", "parentRef": {"name": "a", "odd": [1, {"b": null}]},
        "conditions": [{"type": "Accepted", "lastTransitionTime": "yesterday"}], "more": 1.5});
    let mine = [condition("Accepted", "True", "Accepted", 1, BEFORE)];
    let unknown = condition("example.com/Seen", "Unknown", "X", 9, BEFORE);
    let current = json!({"other": true, "parents": [
        entry(CONTROLLER, "gone", &mine),
        foreign,
        entry(CONTROLLER, "kept", &[unknown.clone(), mine[0].clone(), condition("ResolvedRefs", "True", "X", 1, BEFORE)]),
    ]});
    let desired = route(vec![
        parent("new", vec![accepted(1)]),
        parent("kept", vec![accepted(1)]),
    ]);
    let next = after(Kind::HttpRoute, Some(&desired), &current).unwrap();
    assert_eq!(
        next,
        json!({"other": true, "parents": [
            foreign,
            entry(CONTROLLER, "kept", &[unknown, mine[0].clone()]),
            entry(CONTROLLER, "new", &[condition("Accepted", "True", "Accepted", 1, NOW)]),
        ]})
    );
    // Nothing of it is ours any more.
    let bare = after(Kind::HttpRoute, None, &next).unwrap();
    assert_eq!(bare, json!({"other": true, "parents": [foreign]}));
    assert_eq!(patch(Kind::HttpRoute, None, &bare, NOW), Outcome::Nothing);
    assert!(may_be_ours(Kind::HttpRoute, &next.to_string()));
    assert!(!may_be_ours(Kind::HttpRoute, &bare.to_string()));
}

#[test]
fn what_was_never_ours_or_has_no_entries_is_left_alone() {
    for (kind, current) in [
        (Kind::HttpRoute, json!({})),
        (Kind::HttpRoute, json!(null)),
        (Kind::HttpRoute, json!({"parents": []})),
        (Kind::HttpRoute, json!({"parents": "odd"})),
        (
            Kind::Gateway,
            json!({"conditions": [condition("Accepted", "True", "Accepted", 1, BEFORE)]}),
        ),
        (
            Kind::GatewayClass,
            json!({"conditions": [condition("Accepted", "True", "Accepted", 1, BEFORE)]}),
        ),
    ] {
        assert_eq!(
            patch(kind, None, &current, NOW),
            Outcome::Nothing,
            "{kind} {current}"
        );
    }
}

#[test]
fn lists_have_limits_and_others_come_first() {
    let mine = [condition("Accepted", "True", "Accepted", 1, BEFORE)];
    let others: Vec<Value> = (0..31)
        .map(|n| entry("other.example/x", &format!("o{n}"), &[]))
        .collect();
    let mut parents = others.clone();
    parents.push(entry(CONTROLLER, "b", &mine));
    let current = json!({ "parents": parents });
    let desired = route(vec![
        parent("a", vec![accepted(1)]),
        parent("b", vec![accepted(1)]),
        parent("a", vec![]),
    ]);
    let Outcome::Write(change) = patch(Kind::HttpRoute, Some(&desired), &current, NOW) else {
        panic!("a is not there yet");
    };
    let mut want = others;
    want.push(entry(
        CONTROLLER,
        "a",
        &[condition("Accepted", "True", "Accepted", 1, NOW)],
    ));
    assert_eq!(change.fields["parents"], json!(want));
    assert_eq!(change.left_out, 1);

    let foreign: Vec<Value> = (0..7)
        .map(|n| condition(&format!("x.example/{n}"), "True", "X", 1, BEFORE))
        .collect();
    let current = json!({ "conditions": foreign });
    let desired = plain(vec![
        accepted(1),
        Condition::yes("SupportedVersion", "SupportedVersion", ""),
    ]);
    let Outcome::Write(change) = patch(Kind::GatewayClass, Some(&desired), &current, NOW) else {
        panic!("Accepted is not there yet");
    };
    assert_eq!(change.left_out, 1);
    let written = change.fields["conditions"].as_array().unwrap();
    assert_eq!(
        (written.len(), &written[7]["type"]),
        (8, &json!("Accepted"))
    );
}

#[test]
fn ancestors_are_entries_too() {
    let ancestor_ref = AncestorRef {
        group: "gateway.networking.k8s.io".into(),
        kind: "Gateway".into(),
        namespace: "a".into(),
        name: "b".into(),
        section_name: None,
    };
    let desired = Status::Policy(PolicyStatus {
        ancestors: vec![AncestorStatus {
            ancestor_ref,
            controller_name: CONTROLLER,
            conditions: vec![accepted(1)],
        }],
    });
    let next = after(Kind::TrafficPolicy, Some(&desired), &json!({})).unwrap();
    assert_eq!(
        next,
        json!({"ancestors": [{"controllerName": CONTROLLER,
            "ancestorRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "a", "name": "b"},
            "conditions": [condition("Accepted", "True", "Accepted", 1, NOW)]}]})
    );
    assert_eq!(
        after(Kind::TrafficPolicy, None, &next),
        Some(json!({"ancestors": []}))
    );
}

#[test]
fn a_class_loses_its_defaults_and_tells_its_features() {
    let desired = crate::translate::condition::ClassStatus {
        conditions: vec![accepted(1)],
        supported_features: &FEATURES[..1],
    };
    let desired = Status::Plain(Arc::new(desired));
    let current = json!({"conditions": [
        {"type": "Accepted", "status": "Unknown", "reason": "Pending", "message": "Waiting for controller",
            "lastTransitionTime": "1970-01-01T00:00:00Z"}]});
    let next = after(Kind::GatewayClass, Some(&desired), &current).unwrap();
    assert_eq!(
        next,
        json!({"conditions": [condition("Accepted", "True", "Accepted", 1, NOW)],
            "supportedFeatures": [{"name": "GRPCRoute"}]})
    );
}

#[test]
fn conditions_of_a_destination_rule_that_are_not_forebays_are_others() {
    let theirs = condition("Accepted", "False", "Istio", 1, BEFORE);
    let current = json!({ "conditions": [theirs] });
    let desired = plain(vec![Condition::yes("forebay.dev/Applied", "Applied", "")]);
    let next = after(Kind::DestinationRule, Some(&desired), &current).unwrap();
    assert_eq!(
        next["conditions"],
        json!([
            theirs,
            condition("forebay.dev/Applied", "True", "Applied", 1, NOW)
        ])
    );
}

fn gateway(listeners: &[(&str, usize)], addresses: &[&str]) -> Status {
    let listener = |(name, attached_routes): &(&str, usize)| ListenerStatus {
        name: (*name).to_owned(),
        supported_kinds: vec![SupportedKind {
            group: "g",
            kind: "HTTPRoute",
        }],
        attached_routes: *attached_routes,
        conditions: vec![accepted(1)],
        port: 80,
        transport: Transport::Tcp,
    };
    Status::Gateway(GatewayStatus {
        addresses: addresses
            .iter()
            .map(|a| AddressStatus(a.parse().unwrap()))
            .collect(),
        conditions: vec![accepted(1)],
        listeners: listeners.iter().map(listener).collect(),
    })
}

#[test]
fn a_gateway_says_what_its_listeners_and_addresses_are() {
    let listener = |name: &str, routes: usize, conditions: &[Value]| {
        json!({"name": name, "attachedRoutes": routes,
        "supportedKinds": [{"group": "g", "kind": "HTTPRoute"}], "conditions": conditions})
    };
    let ours = |since| condition("Accepted", "True", "Accepted", 1, since);
    let foreign = condition("x.example/Y", "True", "X", 1, BEFORE);
    let current = json!({"attachedListenerSets": 3, "addresses": [{"type": "IPAddress", "value": "192.0.2.1"}],
        "conditions": [ours(BEFORE), foreign],
        "listeners": [listener("gone", 1, &[]), listener("b", 1, &[foreign.clone(), ours(BEFORE)])]});
    let desired = gateway(&[("a", 2), ("b", 3)], &["192.0.2.1"]);
    let Outcome::Write(change) = patch(Kind::Gateway, Some(&desired), &current, NOW) else {
        panic!("listeners differ");
    };
    let want = json!({"listeners": [listener("a", 2, &[ours(NOW)]), listener("b", 3, &[foreign, ours(BEFORE)])]});
    assert_eq!(Value::from(change.fields), want);
    // A Gateway without any has no empty lists for the sake of it.
    let next = after(Kind::Gateway, Some(&gateway(&[], &[])), &json!({})).unwrap();
    assert_eq!(next, json!({"conditions": [ours(NOW)]}));
    let next = after(Kind::Gateway, Some(&gateway(&[], &[])), &current).unwrap();
    assert_eq!(
        (&next["addresses"], &next["listeners"]),
        (&json!([]), &json!([]))
    );
}

#[test]
fn a_message_without_end_is_cut() {
    let long = "\u{e4}".repeat(MAX_MESSAGE + 5);
    let desired = plain(vec![Condition::yes("Accepted", "Accepted", long)]);
    let next = after(Kind::AddressPool, Some(&desired), &json!({})).unwrap();
    let message = next["conditions"][0]["message"].as_str().unwrap();
    assert_eq!(message.chars().count(), MAX_MESSAGE);
    assert_eq!(
        patch(Kind::AddressPool, Some(&desired), &next, "later"),
        Outcome::Nothing
    );
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let kinds = one_of(&[
        "Accepted",
        "ResolvedRefs",
        "PartiallyInvalid",
        "forebay.dev/X",
    ]);
    (kinds, 0..3, 0..3_i64).prop_map(|(kind, truth, generation)| {
        let condition = match truth {
            0 => Condition::yes(kind, "A", "x"),
            1 => Condition::no(kind, "B", "y"),
            _ => Condition::unknown(kind, "C", "z"),
        };
        condition.at(generation)
    })
}

fn one_of(words: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    proptest::sample::select(words)
}

fn any_desired() -> impl Strategy<Value = Vec<ParentStatus>> {
    let conditions = proptest::collection::vec(any_condition(), 0..4);
    let distinct = conditions.prop_map(|all| {
        let mut seen = std::collections::BTreeSet::new();
        all.into_iter().filter(|c| seen.insert(c.kind)).collect()
    });
    let names = one_of(&["a", "b", "c", "d"]);
    let parent = (names, distinct).prop_map(|(name, conditions)| parent(name, conditions));
    proptest::collection::vec(parent, 0..5)
}

/// Whatever a status may hold: entries of ours, of others, and things that no schema admits.
fn any_current() -> impl Strategy<Value = Value> {
    let kinds = one_of(&["Accepted", "ResolvedRefs", "forebay.dev/X", "Foreign"]);
    let condition = (kinds, one_of(&["True", "False"]), 0..2_i64)
        .prop_map(|(kind, status, generation)| condition(kind, status, "A", generation, BEFORE));
    let odd = prop_oneof![Just(json!(null)), Just(json!(7)), Just(json!({"a": []}))];
    let controllers = one_of(&[CONTROLLER, "other.example/x"]);
    let names = one_of(&["a", "b", "c", "d", "e"]);
    let conditions = proptest::collection::vec(condition, 0..4);
    let entry = (controllers, names, conditions)
        .prop_map(|(controller, name, conditions)| entry(controller, name, &conditions));
    let parents = proptest::collection::vec(prop_oneof![9 => entry, 1 => odd], 0..40);
    prop_oneof![
        9 => parents.prop_map(|parents| json!({"parents": parents, "more": 1})),
        1 => Just(json!({})),
    ]
}

proptest! {
    #[test]
    fn a_second_write_has_nothing_to_do_and_others_stay_bit_identical(
        desired in proptest::option::of(any_desired()),
        current in any_current(),
    ) {
        let desired = desired.map(route);
        let Some(next) = after(Kind::HttpRoute, desired.as_ref(), &current) else {
            return Ok(());
        };
        prop_assert_eq!(patch(Kind::HttpRoute, desired.as_ref(), &next, "later"), Outcome::Nothing);
        let others = |status: &Value| -> Vec<Value> {
            list(status, "parents").iter().filter(|p| p["controllerName"] != CONTROLLER).cloned().collect()
        };
        prop_assert_eq!(others(&current), others(&next));
        let (ours, all) = (list(&next, "parents").len() - others(&next).len(), others(&next).len());
        prop_assert!(ours + all <= MAX_PARENTS.max(all));
        prop_assert_eq!(&next["more"], &current["more"]);
    }
}
