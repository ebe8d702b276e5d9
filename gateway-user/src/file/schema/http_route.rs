//! HTTPRoute: the CRD of Gateway API 1.7, experimental fields included.

use serde_json::Value;

use super::core::METADATA;
use super::format::{
    DNS_NAME, DURATION, FREE, GROUP_NAME, HOST, KIND_NAME, NAME, NAMESPACE, PORT, TOKEN,
};
use super::http_filter::{FILTERS, needs_one_prefix};
use super::route::{PARENT_REFS, RULE_NAMES, WEIGHT, matches_are_few, service_has_a_port};
use super::{List, Schema, entries, given, list, may, need, set, string};
use crate::translate::duration;

pub(super) static HTTP_ROUTE: Schema = Schema::Object(
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
    least: 1,
    most: 16,
    of: &Schema::Object(
        &[
            may("name", &DNS_NAME),
            may("matches", &list(0, 64, &MATCH)),
            may("filters", &FILTERS),
            may("backendRefs", &list(0, 16, &BACKEND)),
            may("timeouts", &TIMEOUTS),
            may("retry", &RETRY),
            may("sessionPersistence", &SESSION_PERSISTENCE),
        ],
        &[redirect_or_backends, needs_one_prefix],
    ),
    by: &[],
    rules: &[|rules| matches_are_few(rules, 1), RULE_NAMES],
});

fn redirect_or_backends(rule: &Value) -> Option<(String, String)> {
    let redirect = |filter: &Value| given(filter, "requestRedirect").is_some();
    let both =
        !entries(rule, "backendRefs").is_empty() && entries(rule, "filters").iter().any(redirect);
    let message = "must not be given beside a RequestRedirect filter";
    both.then(|| (".backendRefs".to_owned(), message.to_owned()))
}

const BACKEND: Schema = Schema::Object(
    &[
        may("group", &GROUP_NAME),
        may("kind", &KIND_NAME),
        need("name", &NAME),
        may("namespace", &NAMESPACE),
        may("port", &PORT),
        may("weight", &WEIGHT),
        may("filters", &FILTERS),
    ],
    &[service_has_a_port],
);

const TIMEOUTS: Schema = Schema::Object(
    &[may("request", &TIME), may("backendRequest", &TIME)],
    &[backend_is_not_longer],
);

fn backend_is_not_longer(timeouts: &Value) -> Option<(String, String)> {
    let read = |field| string(timeouts, field).and_then(duration::gateway_api);
    let (request, backend) = (read("request")?, read("backendRequest")?);
    let message = "must not be longer than request";
    (!request.is_zero() && backend > request)
        .then(|| (".backendRequest".to_owned(), message.to_owned()))
}

const TIME: Schema = Schema::Text(0, usize::MAX, DURATION);

const RETRY: Schema = Schema::Object(
    &[
        may("attempts", &Schema::Number(0, i32::MAX as i64)),
        may("backoff", &TIME),
        may("codes", &set(0, 200, &Schema::Number(400, 599), &[""])),
    ],
    &[],
);

pub(super) const SESSION_PERSISTENCE: Schema = Schema::Object(
    &[
        may("type", &Schema::Choice(&["Cookie", "Header"])),
        may("absoluteTimeout", &TIME),
        may(
            "cookie",
            &Schema::Object(
                &[
                    may("name", &Schema::Text(1, 256, TOKEN)),
                    may("path", &Schema::Text(0, 1024, FREE)),
                    may("lifetimeType", &Schema::Choice(&["Permanent", "Session"])),
                ],
                &[],
            ),
        ),
        may(
            "header",
            &Schema::Object(&[need("name", &Schema::Text(1, 256, TOKEN))], &[]),
        ),
    ],
    &[],
);

const MATCH: Schema = Schema::Object(
    &[
        may("path", &PATH),
        may(
            "method",
            &Schema::Choice(&[
                "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
            ]),
        ),
        may("headers", &set(0, 16, &HEADER, &["name"])),
        may("queryParams", &set(0, 16, &QUERY, &["name"])),
    ],
    &[],
);

pub(super) const VALUE_TYPE: Schema = Schema::Choice(&["Exact", "RegularExpression"]);
pub(super) const HEADER: Schema = Schema::Object(
    &[
        may("type", &VALUE_TYPE),
        need("name", &Schema::Text(1, 256, TOKEN)),
        need("value", &Schema::Text(1, 4096, FREE)),
    ],
    &[],
);
const QUERY: Schema = Schema::Object(
    &[
        may("type", &VALUE_TYPE),
        need("name", &Schema::Text(1, 256, TOKEN)),
        need("value", &Schema::Text(1, 1024, FREE)),
    ],
    &[],
);

const PATH: Schema = Schema::Object(
    &[
        may(
            "type",
            &Schema::Choice(&["Exact", "PathPrefix", "RegularExpression"]),
        ),
        may("value", &Schema::Text(0, 1024, FREE)),
    ],
    &[path_is_normal],
);

/// Paths that are no patterns: absolute, in plain characters, and without what a normaliser would change.
fn path_is_normal(path: &Value) -> Option<(String, String)> {
    let value = string(path, "value")?;
    if !matches!(
        string(path, "type").unwrap_or("PathPrefix"),
        "Exact" | "PathPrefix"
    ) {
        return None;
    }
    let expected = if !value.starts_with('/') {
        "a path that begins with /".to_owned()
    } else if let Some(part) = ["//", "/./", "/../", "%2f", "%2F"]
        .iter()
        .find(|part| value.contains(**part))
    {
        format!("a path without {part}")
    } else if let Some(end) = ["/.", "/.."].iter().find(|end| value.ends_with(**end)) {
        format!("a path that does not end with {end}")
    } else if !is_path_text(value) {
        "a path of the characters that RFC 3986 allows in one, others in the form %41".to_owned()
    } else {
        return None;
    };
    Some((
        ".value".to_owned(),
        format!("expected {expected}, got {}", super::shown(&value.into())),
    ))
}

fn is_path_text(value: &str) -> bool {
    let bytes = value.as_bytes();
    bytes.iter().enumerate().all(|(at, &byte)| match byte {
        b'%' => bytes
            .get(at + 1..at + 3)
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)),
        _ => byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte),
    })
}
