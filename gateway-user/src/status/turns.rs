//! What of a status is bad, part by part, so that two of them can be compared: the matter of Events.

use std::collections::BTreeMap;

use serde_json::Value;

use super::is_good;
use super::patch::is_ours;
use crate::translate::{CONTROLLER, Kind};

/// What a condition says of its part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing, or not yet.
    #[default]
    Open,
    /// It is as it should be.
    Good(Said),
    /// It is not.
    Bad(Said),
}

/// A condition in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    /// `status`.
    pub status: String,
    /// `reason`.
    pub reason: String,
    /// `message`.
    pub message: String,
}

impl State {
    /// Whether two say the same; two that are good do, whatever their words.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Good(_), Self::Good(_))) || self == other
    }
}

/// States by the type of the condition.
pub type Part = BTreeMap<String, State>;

/// The parts of an object's status that are ours, by how they are named behind a condition: ` of listener http`; the
/// object itself by nothing.
#[must_use]
pub fn parts(kind: Kind, status: &Value) -> BTreeMap<String, Part> {
    let mut parts = BTreeMap::new();
    let mut add = |name: String, conditions: &Value| {
        let states = list(conditions).iter().filter_map(|c| state(kind, c));
        parts.insert(name, states.collect());
    };
    for (field, reference) in [("parents", "parentRef"), ("ancestors", "ancestorRef")] {
        for entry in list(&status[field]) {
            if entry["controllerName"] == CONTROLLER {
                add(target(&entry[reference]), &entry["conditions"]);
            }
        }
    }
    if status["conditions"].is_array() {
        add(String::new(), &status["conditions"]);
    }
    for listener in list(&status["listeners"]) {
        let name = listener["name"].as_str().unwrap_or("");
        add(format!(" of listener {name}"), &listener["conditions"]);
    }
    parts
}

/// What has changed between two versions of an object's parts: name of the part, type of the condition, what it was and is.
pub fn changes<'a>(
    before: &'a BTreeMap<String, Part>,
    after: &'a BTreeMap<String, Part>,
) -> impl Iterator<Item = (&'a str, &'a str, State, State)> {
    after.iter().flat_map(move |(name, part)| {
        let was = before.get(name);
        let kept = part.iter().map(move |(kind, is)| {
            let was = was.and_then(|was| was.get(kind)).cloned();
            (kind, was.unwrap_or_default(), is.clone())
        });
        // A fault that is not mentioned any more is over.
        let old = was.into_iter().flatten();
        let gone =
            old.filter(|(kind, was)| matches!(was, State::Bad(_)) && !part.contains_key(*kind));
        let gone = gone.map(|(kind, was)| (kind, was.clone(), State::Good(Said::default())));
        kept.chain(gone)
            .filter(|(_, was, is)| !was.same(is))
            .map(|(kind, was, is)| (name.as_str(), kind.as_str(), was, is))
    })
}

fn state(of: Kind, condition: &Value) -> Option<(String, State)> {
    let text = |field: &str| condition[field].as_str().unwrap_or("").to_owned();
    let kind = text("type");
    if !is_ours(of, &kind) {
        return None;
    }
    let said = Said {
        status: text("status"),
        reason: text("reason"),
        message: text("message"),
    };
    let state = if said.status == "Unknown" || said.reason == "Pending" {
        State::Open
    } else if kind == "OverlappingTLSConfig" {
        // A remark: everything is served.
        return None;
    } else if kind == "forebay.dev/EjectionPossible" && said.status == "False" {
        // All is served, but whoever set a threshold counts on what will never happen.
        State::Bad(said)
    } else if is_good(&kind, said.status == "True", &said.reason) {
        State::Good(said)
    } else {
        State::Bad(said)
    };
    Some((kind, state))
}

/// A parentRef or ancestorRef in words.
fn target(reference: &Value) -> String {
    let kind = reference["kind"].as_str().unwrap_or("Gateway");
    let name = reference["name"].as_str().unwrap_or("");
    let mut text = match reference["namespace"].as_str() {
        Some(namespace) => format!(" at {kind} {namespace}/{name}"),
        None => format!(" at {kind} {name}"),
    };
    if let Some(section) = reference["sectionName"].as_str() {
        text += &format!(" {section}");
    }
    if let Some(port) = reference["port"].as_u64() {
        text += &format!(" port {port}");
    }
    text
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::translate::condition::UNSUPPORTED_FIELDS;

    fn said(status: &str, reason: &str) -> Value {
        json!({"status": status, "reason": reason, "message": "why"})
    }

    fn condition(kind: &str, status: &str, reason: &str) -> Value {
        let mut condition = said(status, reason);
        condition["type"] = kind.into();
        condition
    }

    /// How the changes read: type and part, `+` good, `-` bad.
    fn read(kind: Kind, before: &Value, after: &Value) -> Vec<String> {
        let (before, after) = (parts(kind, before), parts(kind, after));
        let changes = changes(&before, &after).map(|(part, kind, _, is)| match is {
            State::Open => format!("?{kind}{part}"),
            State::Good(_) => format!("+{kind}{part}"),
            State::Bad(said) => format!("-{kind}{part} {}", said.reason),
        });
        changes.collect()
    }

    #[test]
    fn what_is_bad_depends_on_the_condition() {
        let table = [
            ("Accepted", "False", "Invalid", "-Accepted Invalid"),
            ("Accepted", "True", "Accepted", "+Accepted"),
            ("Accepted", "Unknown", "Pending", ""),
            ("Programmed", "False", "Pending", ""),
            (
                "Conflicted",
                "True",
                "HostnameConflict",
                "-Conflicted HostnameConflict",
            ),
            ("Conflicted", "False", "NoConflicts", "+Conflicted"),
            ("OverlappingTLSConfig", "True", "OverlappingHostnames", ""),
            ("example.com/Theirs", "False", "Bad", ""),
            (
                UNSUPPORTED_FIELDS,
                "True",
                "UnsupportedValue",
                "-forebay.dev/UnsupportedFields UnsupportedValue",
            ),
        ];
        for (kind, status, reason, want) in table {
            let after = json!({"conditions": [condition(kind, status, reason)]});
            let got = read(Kind::Gateway, &json!({}), &after).join(",");
            assert_eq!(got, want, "{kind} {status}");
        }
        for (kind, reason, want) in [
            ("Applied", "NotReferenced", "+"),
            ("Applied", "HostNotFound", "-"),
            ("EjectionPossible", "MaxEjectionPercentTooLow", "-"),
        ] {
            let kind = format!("forebay.dev/{kind}");
            let after = json!({"conditions": [condition(&kind, "False", reason)]});
            let got = read(Kind::DestinationRule, &json!({}), &after);
            assert!(got[0].starts_with(want), "{got:?}");
        }
    }

    #[test]
    fn each_part_is_compared_for_itself() {
        let entry = |controller: &str, conditions: Value| {
            json!({"parentRef": {"namespace": "a", "name": "gw", "sectionName": "http"},
                "controllerName": controller, "conditions": conditions})
        };
        let before = json!({"parents": [
            entry("example.com/other", json!([condition("Accepted", "True", "Accepted")])),
            entry(CONTROLLER, json!([condition("Accepted", "True", "Accepted"),
                condition("PartiallyInvalid", "True", "UnsupportedValue")])),
        ]});
        let after = json!({"parents": [
            entry("example.com/other", json!([condition("Accepted", "False", "Theirs")])),
            entry(CONTROLLER, json!([condition("Accepted", "False", "NoMatchingParent")])),
        ]});
        let want = [
            "-Accepted at Gateway a/gw http NoMatchingParent",
            "+PartiallyInvalid at Gateway a/gw http",
        ];
        assert_eq!(read(Kind::HttpRoute, &before, &after), want);
        assert_eq!(read(Kind::HttpRoute, &after, &after), [""; 0]);
        // What is not said to be a Gateway's any more is no news.
        assert_eq!(
            read(Kind::HttpRoute, &after, &json!({"parents": []})),
            [""; 0]
        );
        let listener = |status: &str| {
            json!({"conditions": [], "listeners": [{"name": "https",
                "conditions": [condition("ResolvedRefs", status, "InvalidCertificateRef")]}]})
        };
        let got = read(Kind::Gateway, &listener("True"), &listener("False"));
        assert_eq!(
            got,
            ["-ResolvedRefs of listener https InvalidCertificateRef"]
        );
    }
}
