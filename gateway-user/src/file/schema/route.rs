//! What all routes share, UDPRoute and ReferenceGrant: the CRDs of Gateway API 1.7.
//!
//! The rules between parentRefs are those of the experimental channel, which also tells them apart by port: Forebay does.

use serde_json::Value;

use super::core::METADATA;
use super::format::{DNS_NAME, GROUP_NAME, KIND_NAME, NAME, NAMESPACE, PORT};
use super::{List, Rule, Schema, entries, given, list, may, need, repeated, string};

/// Most matches of all rules together.
const MAX_MATCHES: usize = 128;

pub(super) const WEIGHT: Schema = Schema::Number(0, 1_000_000);

pub(super) const PARENT_REFS: Schema = Schema::List(List {
    least: 0,
    most: 32,
    of: &Schema::Object(
        &[
            may("group", &GROUP_NAME),
            may("kind", &KIND_NAME),
            may("namespace", &NAMESPACE),
            need("name", &NAME),
            may("sectionName", &DNS_NAME),
            may("port", &PORT),
        ],
        &[],
    ),
    by: &[],
    rules: &[parents_differ],
});

/// Two references to one parent must name different parts of it.
fn parents_differ(parents: &Value) -> Option<(String, String)> {
    let parents = parents.as_array()?;
    let whole = |parent: &Value| {
        let text = |field, default: &str| string(parent, field).unwrap_or(default).to_owned();
        (
            text("group", "gateway.networking.k8s.io"),
            text("kind", "Gateway"),
            text("namespace", ""),
            text("name", ""),
        )
    };
    let part = |parent: &Value| {
        let section = string(parent, "sectionName").unwrap_or("").to_owned();
        (section, given(parent, "port").and_then(Value::as_i64))
    };
    let none = (String::new(), None);
    (1..parents.len()).find_map(|at| {
        let own = part(&parents[at]);
        let clash = parents[..at].iter().position(|other| {
            let other_part = part(other);
            whole(other) == whole(&parents[at])
                && (other_part == own || other_part == none || own == none)
        })?;
        let message =
            format!("entry {clash} is the same parent: give each a sectionName or port of its own");
        Some((format!("[{at}]"), message))
    })
}

/// A backend without filters.
pub(super) const BACKEND_REF: Schema = Schema::Object(
    &[
        may("group", &GROUP_NAME),
        may("kind", &KIND_NAME),
        need("name", &NAME),
        may("namespace", &NAMESPACE),
        may("port", &PORT),
        may("weight", &WEIGHT),
    ],
    &[service_has_a_port],
);

pub(super) fn service_has_a_port(backend: &Value) -> Option<(String, String)> {
    let service = string(backend, "group").unwrap_or("").is_empty()
        && string(backend, "kind").unwrap_or("Service") == "Service";
    let message = "is missing: a Service needs one";
    (service && given(backend, "port").is_none()).then(|| (".port".to_owned(), message.to_owned()))
}

/// Rules with a name must not share it.
pub(super) const RULE_NAMES: Rule = |rules| {
    let name = |rule: &Value| string(rule, "name").map(str::to_owned);
    let (at, first, name) = repeated(rules.as_array()?, name)?;
    let message = format!("{name:?} is the name of rule {first} already and must be unique");
    Some((format!("[{at}].name"), message))
};

pub(super) static UDP_ROUTE: Schema = Schema::Object(
    &[
        need("metadata", &METADATA),
        need(
            "spec",
            &Schema::Object(
                &[
                    may("parentRefs", &PARENT_REFS),
                    need(
                        "rules",
                        &list(
                            1,
                            1,
                            &Schema::Object(
                                &[
                                    may("name", &DNS_NAME),
                                    need("backendRefs", &list(1, 16, &BACKEND_REF)),
                                ],
                                &[],
                            ),
                        ),
                    ),
                ],
                &[],
            ),
        ),
    ],
    &[],
);

pub(super) static REFERENCE_GRANT: Schema = Schema::Object(
    &[
        need("metadata", &METADATA),
        need(
            "spec",
            &Schema::Object(
                &[
                    need(
                        "from",
                        &list(
                            1,
                            16,
                            &Schema::Object(
                                &[
                                    need("group", &GROUP_NAME),
                                    need("kind", &KIND_NAME),
                                    need("namespace", &NAMESPACE),
                                ],
                                &[],
                            ),
                        ),
                    ),
                    need(
                        "to",
                        &list(
                            1,
                            16,
                            &Schema::Object(
                                &[
                                    need("group", &GROUP_NAME),
                                    need("kind", &KIND_NAME),
                                    may("name", &NAME),
                                ],
                                &[],
                            ),
                        ),
                    ),
                ],
                &[],
            ),
        ),
    ],
    &[],
);

/// `least` is how many a rule gets by default.
pub(super) fn matches_are_few(rules: &Value, least: usize) -> Option<(String, String)> {
    let rules = rules.as_array()?.iter();
    let got: usize = rules
        .map(|rule| entries(rule, "matches").len().max(least))
        .sum();
    let message =
        format!("expected at most {MAX_MATCHES} matches in all rules together, got {got}");
    (got > MAX_MATCHES).then_some((String::new(), message))
}
