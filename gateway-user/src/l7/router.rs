//! Picks the rule for a request among all routes of one listener, by Gateway API's precedence.
//!
//! Hostnames come first in the order of precedence, so that each has a table of its own; in it entries are sorted, best
//! first, and the first that matches wins. [`Router`] gives the same answer as a scan from the first entry to the last, but
//! looks only at those whose hostname and path can match: hosts and exact paths by one ordered lookup each, wildcards and
//! prefixes by one for each length that the routes use. What a client sends, however
//! long, never makes it look up more than that.
//!
//! Header and query values are compared as they stand on the wire: a query parameter's value is the text after the first
//! `=`, without percent-decoding, as Envoy does. Hosts must be in lower case; the caller sees to it.

mod hosts;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use self::hosts::Hosts;
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
    /// What must hold; shared with what the entry is made from.
    pub matching: Arc<RouteMatch>,
    /// Place of the rule in [`crate::snapshot::Snapshot::rules`].
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

/// The compiled routes of one listener: a table for each hostname.
///
/// A copy shares the tables, so that a change of one route makes one table anew, and most of the list of them.
#[derive(Clone, Debug, Default)]
pub struct Router {
    exact_hosts: Hosts<Arc<Table>>,
    /// By what follows the asterisk: `*.example.com` is `.example.com`.
    wildcard_hosts: Hosts<Arc<Table>>,
    /// Lengths of those suffixes, each once, the longest first.
    wildcard_lengths: Vec<usize>,
    any_host: Option<Arc<Table>>,
}

/// The entries of one hostname, best first, with their positions by path; each list of positions ascends, so that its
/// first match is its best.
#[derive(Clone, Debug, Default)]
struct Table {
    entries: Box<[Entry]>,
    exact: Paths,
    prefix: Paths,
    /// Lengths of the prefixes, each once: a request's path has many elements, the routes use few lengths.
    prefix_lengths: Vec<usize>,
    regex: Vec<usize>,
}

/// Positions of entries by path: sorted by both, so that one list holds what a map of lists would.
#[derive(Clone, Debug, Default)]
struct Paths(Box<[(Arc<str>, u32)]>);

impl Paths {
    fn new(mut paths: Vec<(Arc<str>, u32)>) -> Self {
        // Positions of one path ascend already.
        paths.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self(paths.into())
    }

    /// Positions of a path, ascending.
    fn get(&self, path: &str) -> impl Iterator<Item = usize> {
        let first = self.0.partition_point(|(known, _)| **known < *path);
        let own = self.0[first..].iter();
        own.take_while(move |(known, _)| **known == *path)
            .map(|(_, position)| *position as usize)
    }
}

impl Router {
    /// Takes entries that are in the order of precedence among those of their hostname, best first. Between hostnames the
    /// more specific one comes first, whatever their order is here.
    #[must_use]
    pub fn compile(entries: Vec<Entry>) -> Self {
        let mut by_host: BTreeMap<Option<Hostname>, Vec<Entry>> = BTreeMap::new();
        for entry in entries {
            let of_host = by_host.entry(entry.hostname.clone()).or_default();
            of_host.push(entry);
        }
        let mut router = Self::default();
        for (hostname, entries) in by_host {
            router.set(hostname.as_ref(), entries);
        }
        router
    }

    /// Replaces the entries of one hostname, best first; none: the router does not know it any more.
    pub fn set(&mut self, hostname: Option<&Hostname>, entries: Vec<Entry>) {
        let table = (!entries.is_empty()).then(|| Arc::new(Table::compile(entries)));
        let Some(name) = hostname.map(Hostname::as_str) else {
            self.any_host = table;
            return;
        };
        let Some(suffix) = name.strip_prefix('*') else {
            return self.exact_hosts.set(name, table);
        };
        self.wildcard_hosts.set(suffix, table);
        let lengths = self.wildcard_hosts.iter().map(|(suffix, _)| suffix.len());
        self.wildcard_lengths = lengths.collect();
        self.wildcard_lengths.sort_unstable_by(|a, b| b.cmp(a));
        self.wildcard_lengths.dedup();
    }

    /// All entries, best first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let named = self.exact_hosts.iter().chain(self.wildcard_hosts.iter());
        let mut tables: Vec<&Arc<Table>> = named.map(|(_, table)| table).collect();
        tables.sort_by(|a, b| a.hostname().cmp(&b.hostname()));
        tables.extend(&self.any_host);
        tables.into_iter().flat_map(|table| &table.entries)
    }

    /// The same routes with other places of the rules.
    #[must_use]
    pub fn renumbered(&self, place: impl Fn(u32) -> u32) -> Self {
        let entries = self.entries().cloned().map(|entry| Entry {
            rule: place(entry.rule),
            ..entry
        });
        Self::compile(entries.collect())
    }

    /// The rule that the request belongs to.
    #[must_use]
    pub fn pick(&self, request: &RequestView<'_>) -> Option<u32> {
        let host = request.host;
        if let Some(table) = self.exact_hosts.get(host)
            && let Some(rule) = table.pick(request)
        {
            return Some(rule);
        }
        for &length in &self.wildcard_lengths {
            // A wildcard stands for at least one character.
            let start = host.len().checked_sub(length).filter(|start| *start > 0);
            if let Some(suffix) = start.and_then(|start| host.get(start..))
                && let Some(table) = self.wildcard_hosts.get(suffix)
                && let Some(rule) = table.pick(request)
            {
                return Some(rule);
            }
        }
        self.any_host.as_ref()?.pick(request)
    }
}

impl Serialize for Router {
    /// Only the entries: the tables follow from them.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.entries())
    }
}

impl Table {
    fn compile(entries: Vec<Entry>) -> Self {
        let mut table = Self::default();
        let (mut exact, mut prefixes) = (Vec::new(), Vec::new());
        for (position, entry) in (0u32..).zip(&entries) {
            match &entry.matching.path {
                PathMatch::Exact(path) => exact.push((Arc::clone(path), position)),
                PathMatch::Prefix(prefix) => {
                    insert_once(&mut table.prefix_lengths, prefix.len());
                    prefixes.push((Arc::clone(prefix), position));
                }
                PathMatch::Regex(_) => table.regex.push(position as usize),
            }
        }
        table.exact = Paths::new(exact);
        table.prefix = Paths::new(prefixes);
        table.entries = entries.into();
        table
    }

    /// What all its entries have.
    fn hostname(&self) -> Option<&Hostname> {
        self.entries.first()?.hostname.as_ref()
    }

    /// The rule of the best entry that takes the request; its host is right already.
    fn pick(&self, request: &RequestView<'_>) -> Option<u32> {
        let mut best = self.entries.len();
        let mut try_all = |paths: &Paths, path: &str| {
            let mut better = paths.get(path).take_while(|position| *position < best);
            let found = better.find(|position| {
                let entry = &self.entries[*position];
                entry.mismatch_beyond_path(request).is_none()
            });
            best = found.unwrap_or(best);
        };
        let path = request.path;
        try_all(&self.exact, path);
        for &length in &self.prefix_lengths {
            let ends_an_element = match path.as_bytes().get(length) {
                Some(byte) => *byte == b'/',
                None => length == path.len(),
            };
            if ends_an_element && let Some(prefix) = path.get(..length) {
                try_all(&self.prefix, prefix);
            }
        }
        for &position in self.regex.iter().take_while(|position| **position < best) {
            let entry = &self.entries[position];
            if path_matches(&entry.matching.path, path)
                && entry.mismatch_beyond_path(request).is_none()
            {
                return Some(entry.rule);
            }
        }
        self.entries.get(best).map(|entry| entry.rule)
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
            matching: Arc::new(RouteMatch {
                path,
                method: None,
                headers: Vec::new(),
                query: Vec::new(),
            }),
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
