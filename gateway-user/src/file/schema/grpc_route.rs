//! GRPCRoute: the CRD of Gateway API 1.7, experimental fields included.

use serde_json::Value;

use super::core::METADATA;
use super::format::{DNS_NAME, FREE, GROUP_NAME, HOST, KIND_NAME, NAME, NAMESPACE, PORT};
use super::http_filter::GRPC_FILTERS;
use super::http_route::{HEADER, SESSION_PERSISTENCE, VALUE_TYPE};
use super::route::{PARENT_REFS, RULE_NAMES, WEIGHT, matches_are_few, service_has_a_port};
use super::{List, Schema, given, list, may, need, set, shown, string};
use crate::translate::grpc_route;

pub(super) static GRPC_ROUTE: Schema = Schema::Object(
    &[
        need("metadata", &METADATA),
        need(
            "spec",
            &Schema::Object(
                &[
                    may("parentRefs", &PARENT_REFS),
                    may("hostnames", &list(0, 16, &HOST)),
                    may("rules", &RULES),
                ],
                &[],
            ),
        ),
    ],
    &[],
);

const RULES: Schema = Schema::List(List {
    least: 0,
    most: 16,
    of: &Schema::Object(
        &[
            may("name", &DNS_NAME),
            may("matches", &list(0, 64, &MATCH)),
            may("filters", &GRPC_FILTERS),
            may("backendRefs", &list(0, 16, &BACKEND)),
            may("sessionPersistence", &SESSION_PERSISTENCE),
        ],
        &[],
    ),
    by: &[],
    rules: &[|rules| matches_are_few(rules, 0), RULE_NAMES],
});

const BACKEND: Schema = Schema::Object(
    &[
        may("group", &GROUP_NAME),
        may("kind", &KIND_NAME),
        need("name", &NAME),
        may("namespace", &NAMESPACE),
        may("port", &PORT),
        may("weight", &WEIGHT),
        may("filters", &GRPC_FILTERS),
    ],
    &[service_has_a_port],
);

const MATCH: Schema = Schema::Object(
    &[
        may("method", &METHOD),
        may("headers", &set(0, 16, &HEADER, &["name"])),
    ],
    &[],
);

const METHOD: Schema = Schema::Object(
    &[
        may("type", &VALUE_TYPE),
        may("service", &Schema::Text(0, 1024, FREE)),
        may("method", &Schema::Text(0, 1024, FREE)),
    ],
    &[something_is_named, service_is_plain, method_is_plain],
);

fn something_is_named(method: &Value) -> Option<(String, String)> {
    let none = given(method, "service").is_none() && given(method, "method").is_none();
    let message = "expected a service, a method or both";
    none.then(|| (String::new(), message.to_owned()))
}

fn service_is_plain(method: &Value) -> Option<(String, String)> {
    let fits = grpc_route::is_service;
    is_plain(method, "service", fits, "a service such as package.Service")
}

fn method_is_plain(method: &Value) -> Option<(String, String)> {
    let fits = grpc_route::is_method;
    is_plain(method, "method", fits, "a method such as SayHello")
}

/// What is no pattern must be a name.
fn is_plain(
    method: &Value,
    field: &str,
    fits: fn(&str) -> bool,
    expected: &str,
) -> Option<(String, String)> {
    let text = string(method, field)?;
    let exact = string(method, "type").unwrap_or("Exact") == "Exact";
    let message = || format!("expected {expected}, got {}", shown(&text.into()));
    (exact && !fits(text)).then(|| (format!(".{field}"), message()))
}
