//! Picks the rule for a request among all routes of one listener, by Gateway API's precedence.
//!
//! Entries come sorted, best first; the first that matches wins.

use serde::Serialize;

use crate::snapshot::Hostname;
use crate::snapshot::route::{PathMatch, RouteMatch, ValueMatch};

/// What of a request head the router looks at.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// Authority without port, lower case.
    pub host: &'a str,
    /// Path as it will be forwarded, without the query.
    pub path: &'a str,
    /// Query without the question mark.
    pub query: Option<&'a str>,
    /// Method.
    pub method: &'a str,
    /// Header fields.
    pub headers: &'a http::HeaderMap,
}

/// One match of one rule of one route, as it is effective on this listener.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Intersection of the listener's and the route's hostnames; `None` = any host.
    pub hostname: Option<Hostname>,
    /// What must hold.
    pub matching: RouteMatch,
    /// Position of the rule in [`crate::snapshot::Snapshot::rules`].
    pub rule: u32,
}

/// The compiled routes of one listener.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Router {
    entries: Vec<Entry>,
}

impl Router {
    /// Takes entries in the order of precedence, best first.
    #[must_use]
    pub fn compile(entries: Vec<Entry>) -> Self {
        Self { entries }
    }

    /// All entries, best first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The rule that the request belongs to.
    #[must_use]
    pub fn pick(&self, request: &RequestView<'_>) -> Option<u32> {
        self.entries
            .iter()
            .find(|entry| entry.matches(request))
            .map(|entry| entry.rule)
    }
}

impl Entry {
    /// Whether the request satisfies every part of this entry.
    #[must_use]
    pub fn matches(&self, request: &RequestView<'_>) -> bool {
        self.hostname
            .as_ref()
            .is_none_or(|name| name.matches(request.host))
            && path_matches(&self.matching.path, request.path)
            && self
                .matching
                .method
                .as_deref()
                .is_none_or(|method| method == request.method)
            && self.matching.headers.iter().all(|(name, want)| {
                request
                    .headers
                    .get(&**name)
                    .and_then(|v| v.to_str().ok())
                    .is_some_and(|v| value_matches(want, v))
            })
            && self.matching.query.iter().all(|(name, want)| {
                query_value(request.query.unwrap_or(""), name)
                    .is_some_and(|v| value_matches(want, v))
            })
    }
}

fn path_matches(want: &PathMatch, path: &str) -> bool {
    match want {
        PathMatch::Exact(exact) => **exact == *path,
        PathMatch::Prefix(prefix) => path
            .strip_prefix(&**prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        PathMatch::Regex(pattern) => pattern.0.is_match(path),
    }
}

fn value_matches(want: &ValueMatch, value: &str) -> bool {
    match want {
        ValueMatch::Exact(exact) => **exact == *value,
        ValueMatch::Regex(pattern) => pattern.0.is_match(value),
    }
}

fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(n, _)| *n == name)
        .map(|(_, v)| v)
}
