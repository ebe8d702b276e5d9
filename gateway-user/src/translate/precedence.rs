//! Gateway API's order of precedence between matches of all routes of a listener, in one place.
//!
//! Source: HTTPRouteRule.matches and HTTPRoute.spec.hostnames in Gateway API. Regular expressions are left to the
//! implementation there: they rank behind exact paths and before prefixes, longer source text first.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use crate::l7::router::Entry;
use crate::snapshot::{Hostname, ObjectKey, PathMatch, RouteMatch};

/// One match of one rule on one listener, with all that ranks it.
pub(super) struct Candidate {
    /// Intersection of the listener's and the route's hostname.
    pub(super) hostname: Option<Hostname>,
    /// The route's own hostname: the tie-break between equal intersections.
    pub(super) own_hostname: Option<Hostname>,
    /// What must hold.
    pub(super) matching: Arc<RouteMatch>,
    /// `creationTimestamp` of the route; older first.
    pub(super) created: Arc<str>,
    /// The route.
    pub(super) route: ObjectKey,
    /// Position of the rule in the route.
    pub(super) rule_index: u16,
    /// Position of the match in the rule.
    pub(super) match_index: usize,
    /// Position in the snapshot's rules.
    pub(super) rule: u32,
}

/// Sorts best first and makes the router's entries.
pub(super) fn entries(mut candidates: Vec<Candidate>) -> Vec<Entry> {
    candidates.sort_by(compare);
    candidates
        .into_iter()
        .map(|candidate| Entry {
            hostname: candidate.hostname,
            matching: Arc::unwrap_or_clone(candidate.matching),
            rule: candidate.rule,
        })
        .collect()
}

fn compare(a: &Candidate, b: &Candidate) -> Ordering {
    hostname(a.hostname.as_ref(), b.hostname.as_ref())
        .then_with(|| hostname(a.own_hostname.as_ref(), b.own_hostname.as_ref()))
        .then_with(|| path(&a.matching.path).cmp(&path(&b.matching.path)))
        .then_with(|| {
            a.matching
                .method
                .is_none()
                .cmp(&b.matching.method.is_none())
        })
        .then_with(|| b.matching.headers.len().cmp(&a.matching.headers.len()))
        .then_with(|| b.matching.query.len().cmp(&a.matching.query.len()))
        .then_with(|| a.created.cmp(&b.created))
        .then_with(|| a.route.cmp(&b.route))
        .then_with(|| a.rule_index.cmp(&b.rule_index))
        .then_with(|| a.match_index.cmp(&b.match_index))
}

/// More specific first, none last.
fn hostname(a: Option<&Hostname>, b: Option<&Hostname>) -> Ordering {
    a.is_none().cmp(&b.is_none()).then_with(|| a.cmp(&b))
}

fn path(path: &PathMatch) -> (u8, Reverse<usize>) {
    match path {
        PathMatch::Exact(_) => (0, Reverse(0)),
        PathMatch::Regex(pattern) => (1, Reverse(pattern.0.as_str().len())),
        PathMatch::Prefix(prefix) => (2, Reverse(prefix.len())),
    }
}
