//! Forebay's TrafficPolicy.

use serde::{Deserialize, Serialize};

use super::Unread;

/// `spec` of a TrafficPolicy.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L4PolicySpec {
    /// Gateways, or single listeners, of the policy's namespace.
    pub target_refs: Vec<PolicyTargetRef>,
    /// `Direct` (default) or `LocalOnly`.
    pub return_path: Option<String>,
    /// Whose packets are taken.
    pub sources: SourcesSpec,
    /// UDP only.
    pub udp: UdpSpec,
    /// Whom to believe about the client's address.
    pub client_address: ClientAddressSpec,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// One of `targetRefs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyTargetRef {
    /// Gateway API's group if none.
    pub group: Option<String>,
    /// `Gateway` if none.
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// One listener by name.
    pub section_name: Option<String>,
}

/// `sources`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourcesSpec {
    /// CIDRs; if given, only these.
    pub allow: Option<Vec<String>>,
    /// CIDRs; never these.
    pub deny: Vec<String>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `udp`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UdpSpec {
    /// `FiveTuple` (default) or `Addresses`.
    pub hash: Option<String>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `clientAddress`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientAddressSpec {
    /// Whether connections begin with a PROXY header.
    pub proxy_protocol: bool,
    /// Proxies before this one, 0 to 16.
    pub trusted_hops: u32,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}
