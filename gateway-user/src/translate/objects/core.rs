//! Kubernetes' own kinds and the small ones: Service, EndpointSlice, Secret, Namespace, Node, ReferenceGrant,
//! AddressPool.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use rustls::RootCertStore;
use serde::{Deserialize, Serialize};

use super::{LabelSelector, Metadata, Unread};
use crate::snapshot::Certificate;

/// `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP` and so on; `ExternalName` is refused as a backend.
    #[serde(rename = "type")]
    pub kind: Box<str>,
    /// Ports.
    pub ports: Vec<ServicePort>,
}

/// One port of a Service. `targetPort` is not read: the EndpointSlices carry the resolved number.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name; empty if there is only one.
    pub name: Box<str>,
    /// Number that backendRefs use.
    pub port: u16,
    /// `TCP` if empty.
    pub protocol: Box<str>,
    /// What is spoken on it.
    pub app_protocol: Option<Box<str>>,
}

/// EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// `metadata`.
    pub metadata: Metadata,
    /// `IPv4`, `IPv6` or `FQDN`; the last is not used.
    pub address_type: Box<str>,
    /// Ports of every endpoint.
    pub ports: Vec<EndpointPort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct EndpointPort {
    /// Name of the Service port.
    pub name: Box<str>,
    /// Number on the pod.
    pub port: Option<u16>,
    /// `TCP` if empty.
    pub protocol: Box<str>,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Addresses; only the first is used, as Kubernetes asks of readers.
    pub addresses: Vec<String>,
    /// State.
    pub conditions: EndpointConditions,
    /// Node that it runs on.
    pub node_name: Option<Box<str>>,
    /// The pod.
    pub target_ref: Option<TargetRef>,
    /// Which zones shall use it.
    pub hints: Option<EndpointHints>,
}

/// `hints` of an endpoint.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    /// Zones by name.
    pub for_zones: Vec<ForZone>,
}

/// One of `forZones`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ForZone {
    /// The zone.
    pub name: String,
}

/// `conditions` of an endpoint; a missing `ready` counts as true.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct EndpointConditions {
    /// May take new requests.
    pub ready: Option<bool>,
    /// Would be ready if it were not terminating.
    pub serving: Option<bool>,
    /// Is going away.
    pub terminating: Option<bool>,
}

/// `targetRef` of an endpoint.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct TargetRef {
    /// Uid of the pod.
    pub uid: Option<Box<str>>,
}

/// Secret. `data` values are base64, `stringData` values are not.
#[derive(Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Secret {
    /// `metadata`.
    pub metadata: Metadata,
    /// `kubernetes.io/tls` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// Values in base64.
    pub data: BTreeMap<String, String>,
    /// Values in clear.
    pub string_data: BTreeMap<String, String>,
    /// What was read from the values.
    #[serde(skip)]
    memo: Memo,
}

/// What was read from a Secret. Checking a key takes milliseconds, so it is done once in the life of the object; equal
/// contents give an equal memo, so that it decides nothing.
#[derive(Clone, Default)]
struct Memo {
    certificate: OnceLock<Result<Arc<Certificate>, String>>,
    authorities: OnceLock<Result<Authorities, String>>,
}

/// Certificate authorities of a Secret.
#[derive(Clone)]
pub(in crate::translate) struct Authorities {
    /// SHA-256 of them.
    pub(in crate::translate) digest: [u8; 32],
    /// They themselves.
    pub(in crate::translate) roots: Arc<RootCertStore>,
}

impl Secret {
    /// Whether the other one holds exactly the same.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        (&self.metadata, &self.kind, &self.data, &self.string_data)
            == (
                &other.metadata,
                &other.kind,
                &other.data,
                &other.string_data,
            )
    }

    /// Its certificate, read by `read` the first time.
    pub(in crate::translate) fn certificate_by(
        &self,
        read: impl FnOnce(&Self) -> Result<Arc<Certificate>, String>,
    ) -> &Result<Arc<Certificate>, String> {
        self.memo.certificate.get_or_init(|| read(self))
    }

    /// Its certificate authorities, read by `read` the first time.
    pub(in crate::translate) fn authorities_by(
        &self,
        read: impl FnOnce(&Self) -> Result<Authorities, String>,
    ) -> &Result<Authorities, String> {
        self.memo.authorities.get_or_init(|| read(self))
    }
}

impl std::fmt::Debug for Secret {
    /// Names the keys, never the values.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("metadata", &self.metadata)
            .field("data", &self.data.keys())
            .field("string_data", &self.string_data.keys())
            .finish_non_exhaustive()
    }
}

/// Namespace: only its labels matter.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Namespace {
    /// `metadata`.
    pub metadata: Metadata,
}

/// Node: only its labels and annotations matter.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Node {
    /// `metadata`.
    pub metadata: Metadata,
}

/// `spec` of a ReferenceGrant.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ReferenceGrantSpec {
    /// Who may refer.
    pub from: Vec<GrantFrom>,
    /// To what.
    pub to: Vec<GrantTo>,
}

/// One `from`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct GrantFrom {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
}

/// One `to`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct GrantTo {
    /// API group; empty for the core group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// One object; all of the kind if none.
    pub name: Option<String>,
}

/// `spec` of an AddressPool.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressPoolSpec {
    /// CIDRs or `FIRST-LAST`.
    pub ranges: Vec<String>,
    /// Namespaces whose Gateways may use it; all if none is given.
    pub namespace_selector: Option<LabelSelector>,
    /// `L2` (default) or `None`.
    pub announce: Option<String>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}
