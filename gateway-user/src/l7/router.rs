//! Picks the rule for a request among all routes of one listener, by Gateway API's precedence.
//!
//! Entries come sorted, best first; the first that matches wins. [`Router`] gives the same answer as a scan from the
//! first entry to the last, but looks only at those whose hostname and path can match: hosts and exact paths by one
//! ordered lookup each, wildcards and prefixes by one for each length that the routes use. What a client sends, however
//! long, never makes it look up more than that.
//!
//! Header and query values are compared as they stand on the wire: a query parameter's value is the text after the first
//! `=`, without percent-decoding, as Envoy does. Hosts must be in lower case; the caller sees to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};

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

/// Why an entry does not take a request: the first part that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Mismatch {
    /// Another host.
    Hostname,
    /// Another path.
    Path,
    /// Another method.
    Method,
    /// The header of this name is missing or has another value.
    Header(Arc<str>),
    /// The query parameter of this name is missing or has another value.
    Query(Arc<str>),
}

/// The compiled routes of one listener.
#[derive(Clone, Debug, Default)]
pub struct Router {
    entries: Vec<Entry>,
    exact_hosts: BTreeMap<Arc<str>, Paths>,
    /// By what follows the asterisk: `*.example.com` is `.example.com`.
    wildcard_hosts: BTreeMap<Arc<str>, Paths>,
    /// Lengths of those suffixes, each once.
    wildcard_lengths: Vec<usize>,
    any_host: Paths,
}

/// Positions of entries by path; each list ascends, so that its first match is its best.
#[derive(Clone, Debug, Default)]
struct Paths {
    exact: BTreeMap<Arc<str>, Vec<usize>>,
    prefix: BTreeMap<Arc<str>, Vec<usize>>,
    /// Lengths of the prefixes, each once: a request's path has many elements, the routes use few lengths.
    prefix_lengths: Vec<usize>,
    regex: Vec<usize>,
}

impl Router {
    /// Takes entries in the order of precedence, best first.
    #[must_use]
    pub fn compile(entries: Vec<Entry>) -> Self {
        let mut router = Self::default();
        for (position, entry) in entries.iter().enumerate() {
            let paths = match &entry.hostname {
                None => &mut router.any_host,
                Some(name) => match name.as_str().strip_prefix('*') {
                    Some(suffix) => {
                        insert_once(&mut router.wildcard_lengths, suffix.len());
                        router.wildcard_hosts.entry(suffix.into()).or_default()
                    }
                    None => router.exact_hosts.entry(name.as_str().into()).or_default(),
                },
            };
            paths.insert(position, &entry.matching.path);
        }
        router.entries = entries;
        router
    }

    /// All entries, best first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The rule that the request belongs to.
    #[must_use]
    pub fn pick(&self, request: &RequestView<'_>) -> Option<u32> {
        let host = request.host;
        let mut best = self.entries.len();
        if let Some(paths) = self.exact_hosts.get(host) {
            self.improve(&mut best, paths, request);
        }
        for &length in &self.wildcard_lengths {
            // A wildcard stands for at least one character.
            let start = host.len().checked_sub(length).filter(|start| *start > 0);
            if let Some(suffix) = start.and_then(|start| host.get(start..))
                && let Some(paths) = self.wildcard_hosts.get(suffix)
            {
                self.improve(&mut best, paths, request);
            }
        }
        self.improve(&mut best, &self.any_host, request);
        self.entries.get(best).map(|entry| entry.rule)
    }

    /// Moves `best` up to the best entry among `paths` that takes the request, if that is better.
    fn improve(&self, best: &mut usize, paths: &Paths, request: &RequestView<'_>) {
        let mut try_all = |positions: &[usize]| {
            let better = positions.iter().take_while(|position| **position < *best);
            let found = better.copied().find(|position| {
                let entry = &self.entries[*position];
                entry.mismatch_beyond_path(request).is_none()
            });
            *best = found.unwrap_or(*best);
        };
        let path = request.path;
        if let Some(positions) = paths.exact.get(path) {
            try_all(positions);
        }
        for &length in &paths.prefix_lengths {
            let ends_an_element = match path.as_bytes().get(length) {
                Some(byte) => *byte == b'/',
                None => length == path.len(),
            };
            if ends_an_element
                && let Some(prefix) = path.get(..length)
                && let Some(positions) = paths.prefix.get(prefix)
            {
                try_all(positions);
            }
        }
        for &position in &paths.regex {
            if position >= *best {
                break;
            }
            let entry = &self.entries[position];
            if path_matches(&entry.matching.path, path)
                && entry.mismatch_beyond_path(request).is_none()
            {
                *best = position;
            }
        }
    }
}

impl Serialize for Router {
    /// Only the entries: the tables follow from them.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.entries.serialize(serializer)
    }
}

impl Paths {
    fn insert(&mut self, position: usize, path: &PathMatch) {
        match path {
            PathMatch::Exact(path) => self.exact.entry(path.clone()).or_default().push(position),
            PathMatch::Prefix(prefix) => {
                insert_once(&mut self.prefix_lengths, prefix.len());
                self.prefix
                    .entry(prefix.clone())
                    .or_default()
                    .push(position);
            }
            PathMatch::Regex(_) => self.regex.push(position),
        }
    }
}

fn insert_once(sorted: &mut Vec<usize>, value: usize) {
    if let Err(at) = sorted.binary_search(&value) {
        sorted.insert(at, value);
    }
}

impl Entry {
    /// Why this entry does not take the request; `None` if it does.
    #[must_use]
    pub fn mismatch(&self, request: &RequestView<'_>) -> Option<Mismatch> {
        let host = |name: &Hostname| name.matches(request.host);
        if !self.hostname.as_ref().is_none_or(host) {
            return Some(Mismatch::Hostname);
        }
        if !path_matches(&self.matching.path, request.path) {
            return Some(Mismatch::Path);
        }
        self.mismatch_beyond_path(request)
    }

    fn mismatch_beyond_path(&self, request: &RequestView<'_>) -> Option<Mismatch> {
        let matching = &self.matching;
        let method = matching.method.as_deref();
        if method.is_some_and(|method| method != request.method) {
            return Some(Mismatch::Method);
        }
        for (name, want) in &matching.headers {
            let value = request.headers.get(&**name).and_then(|v| v.to_str().ok());
            if !value.is_some_and(|value| value_matches(want, value)) {
                return Some(Mismatch::Header(name.clone()));
            }
        }
        for (name, want) in &matching.query {
            let value = query_value(request.query.unwrap_or(""), name);
            if !value.is_some_and(|value| value_matches(want, value)) {
                return Some(Mismatch::Query(name.clone()));
            }
        }
        None
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

/// The value of the first parameter of that name.
fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(n, _)| *n == name)
        .map(|(_, v)| v)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(hostname: &str, path: PathMatch, rule: u32) -> Entry {
        Entry {
            hostname: Hostname::parse(hostname),
            matching: RouteMatch {
                path,
                method: None,
                headers: Vec::new(),
                query: Vec::new(),
            },
            rule,
        }
    }

    fn request<'a>(host: &'a str, path: &'a str, headers: &'a http::HeaderMap) -> RequestView<'a> {
        RequestView {
            host,
            path,
            query: None,
            method: "GET",
            headers,
        }
    }

    #[test]
    fn prefixes_match_by_element_and_the_rest_falls_through() {
        let headers = http::HeaderMap::new();
        let router = Router::compile(vec![
            entry("a.com", PathMatch::Prefix("/foo".into()), 0),
            entry("*.com", PathMatch::Prefix("".into()), 1),
        ]);
        let pick = |host, path| router.pick(&request(host, path, &headers));
        assert_eq!(pick("a.com", "/foo"), Some(0));
        assert_eq!(pick("a.com", "/foo/"), Some(0));
        assert_eq!(pick("a.com", "/foo/bar"), Some(0));
        // Not by element: the wildcard's rule, which covers this host too, is next in line.
        assert_eq!(pick("a.com", "/foobar"), Some(1));
        assert_eq!(pick("x.y.com", "/"), Some(1));
        assert_eq!(pick("com", "/"), None);
        assert_eq!(pick(".com", "/"), None);
    }

    #[test]
    fn a_long_path_of_slashes_costs_no_more_than_the_lengths_in_use() {
        let headers = http::HeaderMap::new();
        let router = Router::compile(vec![entry("a.com", PathMatch::Prefix("/x".into()), 0)]);
        let path = "/".repeat(60_000);
        for _ in 0..1_000 {
            assert_eq!(router.pick(&request("a.com", &path, &headers)), None);
        }
    }

    #[test]
    fn a_prefix_length_inside_a_character_is_no_match() {
        let headers = http::HeaderMap::new();
        let router = Router::compile(vec![entry("a.com", PathMatch::Prefix("/x".into()), 0)]);
        assert_eq!(router.pick(&request("a.com", "/é", &headers)), None);
    }
}
