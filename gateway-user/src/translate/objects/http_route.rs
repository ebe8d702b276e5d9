//! HTTPRoute.

use serde::{Deserialize, Serialize};

use super::{Filter, Unread};

/// `spec` of an HTTPRoute.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteSpec {
    /// What it wants to attach to.
    pub parent_refs: Vec<ParentRef>,
    /// Hostnames; empty: those of the listener.
    pub hostnames: Vec<String>,
    /// Rules; none at all means one that matches everything.
    pub rules: Option<Vec<RuleSpec>>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// One of `parentRefs`, given back verbatim in the status.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentRef {
    /// Gateway API's group if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Box<str>>,
    /// `Gateway` if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Box<str>>,
    /// The route's namespace if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Box<str>>,
    /// Name.
    pub name: Box<str>,
    /// One listener by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<Box<str>>,
    /// Listeners by port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// One rule.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleSpec {
    /// Name.
    pub name: Option<Box<str>>,
    /// Any of these; none: the prefix `/`.
    pub matches: Vec<MatchSpec>,
    /// Filters.
    pub filters: Vec<Filter>,
    /// Where requests go.
    pub backend_refs: Vec<BackendRef>,
    /// Timeouts.
    pub timeouts: Option<Box<TimeoutsSpec>>,
    /// Further tries.
    pub retry: Option<Box<RetrySpec>>,
    /// Fields that Forebay does not know, `sessionPersistence` among them.
    #[serde(flatten)]
    pub unread: Unread,
}

/// One match.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MatchSpec {
    /// Path.
    pub path: Option<PathSpec>,
    /// Method.
    pub method: Option<Box<str>>,
    /// Headers.
    pub headers: Vec<ValueSpec>,
    /// Query parameters.
    pub query_params: Vec<ValueSpec>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `path`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct PathSpec {
    /// `PathPrefix` (default), `Exact` or `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Option<Box<str>>,
    /// Value; `/` if none.
    pub value: Option<Box<str>>,
}

/// One header or query parameter.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ValueSpec {
    /// `Exact` (default) or `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Option<Box<str>>,
    /// Name.
    pub name: Box<str>,
    /// Value.
    pub value: Box<str>,
}

/// One of `backendRefs`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendRef {
    /// Core group if none.
    pub group: Option<Box<str>>,
    /// `Service` if none.
    pub kind: Option<Box<str>>,
    /// Name.
    pub name: Box<str>,
    /// The route's namespace if none.
    pub namespace: Option<Box<str>>,
    /// Service port.
    pub port: Option<u16>,
    /// Share; 1 if none.
    pub weight: Option<u32>,
    /// Filters.
    pub filters: Vec<Filter>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `timeouts`, GEP-2257 durations.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TimeoutsSpec {
    /// The whole exchange.
    pub request: Option<String>,
    /// One try.
    pub backend_request: Option<String>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `retry` (GEP-1731).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetrySpec {
    /// Response codes that are tried again, 400 to 599.
    pub codes: Vec<u16>,
    /// Tries beyond the first.
    pub attempts: Option<u32>,
    /// Least wait before a further try, a GEP-2257 duration.
    pub backoff: Option<String>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}
