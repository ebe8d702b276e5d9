//! Gateway API's order of precedence between matches of all routes of a listener, in one place.
//!
//! Source: HTTPRouteRule.matches, GRPCRouteRule.matches and their routes' spec.hostnames in Gateway API. Regular expressions
//! are left to the implementation there: they rank behind exact values and before prefixes, longer source text first.
//!
//! HTTPRoutes and GRPCRoutes that have a hostname in common never share a listener, so that matches of the two kinds need
//! an order, but none that means anything.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use crate::l7::router::Entry;
use crate::snapshot::{Hostname, PathMatch, RouteMatch, Rule};

/// How specific a match is in its two foremost parts, least first: of HTTPRoutes path and method, of GRPCRoutes service and
/// method. Each is its class and, inside the class, the longer text first.
pub(super) type Rank = [(u8, Reverse<u32>); 2];

/// The rank of a match of an HTTPRoute.
pub(super) fn http(matching: &RouteMatch) -> Rank {
    let path = match &matching.path {
        PathMatch::Exact(_) => (0, Reverse(0)),
        PathMatch::Regex(pattern) => (1, longer(pattern.0.as_str())),
        PathMatch::Prefix(prefix) => (2, longer(prefix)),
    };
    [path, (u8::from(matching.method.is_none()), Reverse(0))]
}

/// The rank of a match of a GRPCRoute by the texts of its service and method and whether they are regular expressions.
pub(super) fn grpc(service: Option<&str>, method: Option<&str>, regex: bool) -> Rank {
    [service, method].map(|part| match part {
        Some(text) => (u8::from(regex), longer(text)),
        None => (2, Reverse(0)),
    })
}

fn longer(text: &str) -> Reverse<u32> {
    Reverse(u32::try_from(text.len()).unwrap_or(u32::MAX))
}

/// One match of one rule on one listener for one hostname, with all that ranks it. There is one for each match of each
/// route, so it holds nothing that can be had elsewhere.
pub(super) struct Candidate {
    /// The route's own hostname: the tie-break between equal intersections.
    pub(super) own_hostname: Option<Hostname>,
    /// What must hold.
    pub(super) matching: Arc<RouteMatch>,
    /// How specific that is.
    pub(super) rank: Rank,
    /// `creationTimestamp` of the route, if it has one; older first.
    pub(super) created: Option<Arc<str>>,
    /// The rule, whose key names route and position.
    pub(super) rule: Arc<Rule>,
    /// Position of the match in the rule.
    pub(super) match_index: u32,
    /// Place in the snapshot's rules.
    pub(super) place: u32,
}

/// Sorts the matches of a hostname best first and makes the router's entries.
pub(super) fn entries(host: Option<&Hostname>, candidates: &mut [Candidate]) -> Vec<Entry> {
    candidates.sort_by(compare);
    let candidates = candidates.iter();
    let entries = candidates.map(|candidate| Entry {
        hostname: host.cloned(),
        matching: Arc::clone(&candidate.matching),
        rule: candidate.place,
    });
    entries.collect()
}

fn compare(a: &Candidate, b: &Candidate) -> Ordering {
    let (of_a, of_b) = (&a.rule.key, &b.rule.key);
    hostname(a.own_hostname.as_ref(), b.own_hostname.as_ref())
        .then_with(|| a.rank.cmp(&b.rank))
        .then_with(|| b.matching.headers.len().cmp(&a.matching.headers.len()))
        .then_with(|| b.matching.query.len().cmp(&a.matching.query.len()))
        .then_with(|| a.created.cmp(&b.created))
        .then_with(|| of_a.route.cmp(&of_b.route))
        .then_with(|| of_a.kind.cmp(of_b.kind))
        .then_with(|| of_a.index.cmp(&of_b.index))
        .then_with(|| a.match_index.cmp(&b.match_index))
}

/// More specific first, none last.
fn hostname(a: Option<&Hostname>, b: Option<&Hostname>) -> Ordering {
    a.is_none().cmp(&b.is_none()).then_with(|| a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_rank_before_methods_and_longer_ones_first() {
        let ordered = [
            grpc(Some("a.Long"), Some("M"), false),
            grpc(Some("a.Long"), None, false),
            grpc(Some("a.S"), Some("Method"), false),
            grpc(Some("a.S"), Some("M"), false),
            grpc(Some("a.S"), None, false),
            grpc(Some("a.Longer+"), None, true),
            grpc(None, Some("Method"), false),
            grpc(None, Some("M"), false),
            grpc(None, Some("Meth.*"), true),
            grpc(None, None, false),
        ];
        assert!(ordered.is_sorted(), "{ordered:?}");
    }
}
