//! The objects that Forebay reads, as lenient serde types.
//!
//! Every field may be missing and enumerations are plain strings, so that one odd value never costs the whole object.
//! Where a field that Forebay does not know could change what the user gets, it is kept by name in [`Unread`], so that
//! `translate` can say that it is not carried out. These types never travel into the snapshot.

mod core;
mod destination_rule;
mod filter;
mod gateway;
mod grpc_route;
mod http_route;
mod l4_policy;
mod l4_route;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) use self::core::Authorities;
pub use self::core::{
    AddressPoolSpec, Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice,
    ForZone, GrantFrom, GrantTo, Namespace, Node, ReferenceGrantSpec, Secret, ServicePort,
    ServiceSpec, TargetRef,
};
pub use destination_rule::{
    ConnectionPoolSpec, DestinationRuleSpec, HttpPoolSpec, LoadBalancerSpec, OutlierSpec,
    PortLevel, PortSelector, ProxyProtocolSpec, TcpPoolSpec, TlsSpec, TrafficPolicySpec,
};
pub use filter::{
    CorsSpec, Filter, FractionSpec, HeaderModifierSpec, HeaderSpec, MirrorSpec, PathEditSpec,
    RedirectSpec, RewriteSpec,
};
pub use gateway::{
    AllowedRoutes, GatewayAddress, GatewayClassSpec, GatewaySpec, GatewayTlsSpec, Infrastructure,
    ListenerSpec, ListenerTlsSpec, ParametersRef, RouteGroupKind, RouteNamespaces, SecretRef,
};
pub use grpc_route::{GrpcMatchSpec, GrpcRouteSpec, GrpcRuleSpec, MethodSpec};
pub use http_route::{
    BackendRef, HttpRouteSpec, MatchSpec, ParentRef, PathSpec, RetrySpec, RuleSpec, TimeoutsSpec,
    ValueSpec,
};
pub use l4_policy::{ClientAddressSpec, L4PolicySpec, PolicyTargetRef, SourcesSpec, UdpSpec};
pub use l4_route::{L4RouteSpec, L4RuleSpec};

use crate::snapshot::ObjectKey;

/// Names of the fields that Forebay does not know; hardly any object has one.
#[derive(Clone, Debug, Default)]
pub struct Unread(Box<[String]>);

impl Unread {
    /// The names in their order.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.iter()
    }
}

impl Serialize for Unread {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|name| (name, Present)))
    }
}

/// Something of which only matters that it is there.
#[derive(Clone, Copy, Debug)]
pub struct Present;

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl Serialize for Present {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(true)
    }
}

impl<'de> Deserialize<'de> for Unread {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = BTreeMap::<String, IgnoredAny>::deserialize(deserializer)?;
        Ok(Self(fields.into_keys().collect()))
    }
}

/// `metadata`, as far as Forebay uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Name; never empty after [`super::Object::parse`].
    pub name: Arc<str>,
    /// Namespace; empty for cluster-scoped kinds after [`super::Object::parse`].
    pub namespace: Arc<str>,
    /// Generation of the spec; 1 where none is given (files).
    pub generation: Option<i64>,
    /// RFC 3339 in UTC, whose text sorts by time; none in files.
    pub creation_timestamp: Option<Box<str>>,
    /// Labels.
    pub labels: Names,
    /// Annotations that are Forebay's own.
    #[serde(deserialize_with = "own_names")]
    pub annotations: Names,
}

/// Labels or annotations. Objects have few of them and there are many objects: a map with one has the size of eleven.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Names(Box<[(Box<str>, Box<str>)]>);

impl Names {
    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.binary_search_by(|(known, _)| (**known).cmp(name));
        found.ok().map(|at| &*self.0[at].1)
    }

    /// Names and values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = BTreeMap::<Box<str>, Box<str>>::deserialize(deserializer)?;
        Ok(Self(names.into_iter().collect()))
    }
}

/// Only Forebay's: those of others may be as large as the object itself, which `kubectl` keeps there.
fn own_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Names, D::Error> {
    let all = Names::deserialize(deserializer)?.0.into_iter();
    Ok(Names(
        all.filter(|(name, _)| name.starts_with("forebay.dev/"))
            .collect(),
    ))
}

impl Metadata {
    /// Namespace and name.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            namespace: Arc::clone(&self.namespace),
            name: Arc::clone(&self.name),
        }
    }

    /// `metadata.generation`, 1 where there is none.
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.generation.unwrap_or(1)
    }

    /// Sorts older objects first, ties by namespace and name.
    #[must_use]
    pub fn age(&self) -> (&str, &str, &str) {
        (
            self.creation_timestamp.as_deref().unwrap_or(""),
            &self.namespace,
            &self.name,
        )
    }
}

/// An object that has a `spec`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resource<S> {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec`.
    pub spec: S,
}

/// GatewayClass.
pub type GatewayClass = Resource<GatewayClassSpec>;
/// Gateway.
pub type Gateway = Resource<GatewaySpec>;
/// HTTPRoute.
pub type HttpRoute = Resource<HttpRouteSpec>;
/// GRPCRoute.
pub type GrpcRoute = Resource<GrpcRouteSpec>;
/// UDPRoute.
pub type UdpRoute = Resource<L4RouteSpec>;
/// Service.
pub type Service = Resource<ServiceSpec>;
/// ReferenceGrant.
pub type ReferenceGrant = Resource<ReferenceGrantSpec>;
/// DestinationRule.
pub type DestinationRule = Resource<DestinationRuleSpec>;
/// Forebay's TrafficPolicy.
pub type TrafficPolicy = Resource<L4PolicySpec>;
/// AddressPool.
pub type AddressPool = Resource<AddressPoolSpec>;

/// A label selector: all parts must hold.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels with exactly these values.
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    pub match_expressions: Vec<LabelRequirement>,
}

/// One of `matchExpressions`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct LabelRequirement {
    /// Label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// Values for `In` and `NotIn`.
    pub values: Vec<String>,
}

impl LabelSelector {
    /// Whether the labels satisfy every part. An unknown operator selects nothing.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|need| {
                let value = labels.get(&need.key);
                match need.operator.as_str() {
                    "In" => value.is_some_and(|v| need.values.contains(v)),
                    "NotIn" => value.is_none_or(|v| !need.values.contains(v)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }

    /// The first operator that does not exist, if any.
    #[must_use]
    pub fn bad_operator(&self) -> Option<&str> {
        self.match_expressions
            .iter()
            .map(|need| need.operator.as_str())
            .find(|op| !matches!(*op, "In" | "NotIn" | "Exists" | "DoesNotExist"))
    }
}
