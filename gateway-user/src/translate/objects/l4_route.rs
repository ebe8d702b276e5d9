//! Routes without matches: UDPRoute.

use serde::{Deserialize, Serialize};

use super::{BackendRef, ParentRef, Unread};

/// `spec` of a UDPRoute.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L4RouteSpec {
    /// What it wants to attach to.
    pub parent_refs: Vec<ParentRef>,
    /// Rules; as they have no matches, only the first can be used.
    pub rules: Vec<L4RuleSpec>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// One rule.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L4RuleSpec {
    /// Name.
    pub name: Option<String>,
    /// Where traffic goes.
    pub backend_refs: Vec<BackendRef>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}
