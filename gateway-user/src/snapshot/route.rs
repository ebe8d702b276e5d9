//! Route rules: what a request must look like and where it then goes.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::filter::Filters;
use super::name::RuleKey;

/// One rule of one route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Identity of the rule.
    pub key: RuleKey,
    /// `name`, if the rule has one.
    pub name: Option<Arc<str>>,
    /// What is done to its requests and responses; `None` = nothing, which is the common case.
    pub filters: Option<Arc<Filters>>,
    /// Where requests go, by weight. Empty: every request answers 500, unless the filters answer it (a redirect).
    pub backends: Vec<Backend>,
    /// `timeouts.request`: the whole exchange, retries included. `None` = no limit.
    pub request_timeout: Option<Duration>,
    /// `timeouts.backendRequest`: one try. `None` = no limit.
    pub backend_timeout: Option<Duration>,
    /// `retry`. `None` = only what was never received by an endpoint is tried once more.
    pub retry: Option<Box<Retry>>,
}

/// `retry` of a rule (GEP-1731). Connection errors and passed `backendRequest` timeouts are tried again too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// Response codes that are tried again. Sorted.
    pub codes: Vec<u16>,
    /// Tries beyond the first.
    pub attempts: u32,
    /// Least wait before a further try; it doubles with each. `None` = Envoy's 25 ms.
    pub backoff: Option<Duration>,
}

/// One weighted backendRef.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Share of the rule's requests; 0 gets none.
    pub weight: u32,
    /// Where its share goes.
    pub target: BackendTarget,
    /// Filters of the backendRef.
    pub filters: Option<Arc<Filters>>,
    /// Where the Service's port says nothing else, its endpoints speak HTTP/2 (a GRPCRoute's do).
    pub http2: bool,
}

/// What a backendRef resolved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum BackendTarget {
    /// A cluster, by position in [`super::Snapshot::clusters`].
    Cluster(u32),
    /// The reference is bad; its share answers 500.
    Invalid(Arc<str>),
}

/// One match of a rule: all its parts must hold.
#[derive(Clone, Debug, Serialize)]
pub struct RouteMatch {
    /// Path; the default is the prefix `/`.
    pub path: PathMatch,
    /// Method, upper case.
    pub method: Option<Arc<str>>,
    /// Headers by lower-case name; of several with one name only the first counts.
    pub headers: Vec<(Arc<str>, ValueMatch)>,
    /// Query parameters by name; of several with one name only the first counts.
    pub query: Vec<(Arc<str>, ValueMatch)>,
}

/// How a path matches.
#[derive(Clone, Debug, Serialize)]
pub enum PathMatch {
    /// The whole path.
    Exact(Arc<str>),
    /// By path element, without a trailing slash (`/` is kept as the empty string).
    Prefix(Arc<str>),
    /// Whole path, `regex` crate syntax with size limits.
    Regex(Pattern),
}

/// How a header's or a query parameter's value matches.
#[derive(Clone, Debug, Serialize)]
pub enum ValueMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Whole value, `regex` crate syntax with size limits.
    Regex(Pattern),
}

/// A compiled regular expression, anchored at both ends; compared and shown by its source text.
#[derive(Clone, Debug)]
pub struct Pattern(pub regex::Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Serialize for Pattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}
