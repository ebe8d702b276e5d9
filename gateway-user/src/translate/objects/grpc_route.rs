//! GRPCRoute.

use serde::{Deserialize, Serialize};

use super::{BackendRef, Filter, ParentRef, Unread, ValueSpec};

/// `spec` of a GRPCRoute.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRouteSpec {
    /// What it wants to attach to.
    pub parent_refs: Vec<ParentRef>,
    /// Hostnames; empty: those of the listener.
    pub hostnames: Vec<String>,
    /// Rules; none at all means one that matches everything.
    pub rules: Option<Vec<GrpcRuleSpec>>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// One rule.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRuleSpec {
    /// Name.
    pub name: Option<String>,
    /// Any of these; none: every call.
    pub matches: Vec<GrpcMatchSpec>,
    /// Filters.
    pub filters: Vec<Filter>,
    /// Where calls go.
    pub backend_refs: Vec<BackendRef>,
    /// Fields that Forebay does not know, `sessionPersistence` among them.
    #[serde(flatten)]
    pub unread: Unread,
}

/// One match.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcMatchSpec {
    /// Service and method.
    pub method: Option<MethodSpec>,
    /// Headers.
    pub headers: Vec<ValueSpec>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `method`: at least one of service and method.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct MethodSpec {
    /// `Exact` (default) or `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Service, with its package; any if none.
    pub service: Option<String>,
    /// Method; any if none.
    pub method: Option<String>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}
