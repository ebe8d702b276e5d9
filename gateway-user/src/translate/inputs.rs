//! What translate reads: objects by kind and key, and how one is taken from JSON.
//!
//! Invariant: every object in [`Inputs`] has a valid name, and a namespace exactly if its kind has one. Where an object
//! comes from (a file, a watch) is not known here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::objects::{
    AddressPool, DestinationRule, EndpointSlice, Gateway, GatewayClass, GrpcRoute, HttpRoute,
    Metadata, Namespace, Node, ReferenceGrant, Secret, Service, TrafficPolicy, UdpRoute,
};
use super::pack;
use crate::snapshot::ObjectKey;

macro_rules! kinds {
    ($($kind:ident, $type:ty, $field:ident, $text:literal, $doc:literal;)*) => {
        /// The kinds that Forebay reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $(#[doc = $doc] $kind,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// As `kind` spells it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $text,)* }
            }
        }

        /// One object of a kind that Forebay reads.
        #[derive(Clone, Debug)]
        pub enum Object { $(#[doc = $doc] $kind(Arc<$type>),)* }

        impl Object {
            /// Its kind and key.
            #[must_use]
            pub fn id(&self) -> ObjectId {
                match self {
                    $(Self::$kind(object) => ObjectId { kind: Kind::$kind, key: object.metadata.key() },)*
                }
            }

            /// As [`Self::parse`] reads it: another object that says the same, without what Forebay does not look at.
            #[must_use]
            pub fn to_value(&self) -> Value {
                let (kind, value) = match self {
                    $(Self::$kind(object) => (Kind::$kind, serde_json::to_value(object)),)*
                };
                // Strings, lists and maps by names of text: nothing that JSON cannot say.
                let mut value = without_nulls(&value.unwrap_or_default());
                value["kind"] = kind.as_str().into();
                value["apiVersion"] = kind.api_version().into();
                value
            }

            fn read(kind: Kind, value: Value) -> Result<Self, FieldError> {
                match kind {
                    $(Kind::$kind => {
                        let mut object: $type = from_value(value)?;
                        settle_metadata(kind, &mut object.metadata)?;
                        Ok(Self::$kind(Arc::new(object)))
                    })*
                }
            }
        }

        /// All objects that Forebay has been given, by kind, in the order of their keys.
        #[derive(Clone, Debug, Default)]
        pub struct Inputs { $(#[doc = $doc] pub $field: BTreeMap<ObjectKey, Arc<$type>>,)* }

        impl Inputs {
            /// Puts an object in, in place of an earlier one of that kind and key.
            pub fn insert(&mut self, object: Object) {
                match object {
                    $(Object::$kind(object) => { self.$field.insert(object.metadata.key(), object); })*
                }
            }

            /// Whether an object is in it that says the same.
            #[must_use]
            pub fn holds(&self, object: &Object) -> bool {
                match object {
                    $(Object::$kind(object) => {
                        let known = self.$field.get(&object.metadata.key());
                        known.is_some_and(|known| {
                            known.metadata == object.metadata && say_the_same(known, object)
                        })
                    })*
                }
            }

            /// All objects.
            pub fn iter(&self) -> impl Iterator<Item = Object> {
                let objects = std::iter::empty();
                $(let objects = objects.chain(self.$field.values().map(|o| Object::$kind(Arc::clone(o))));)*
                objects
            }

            /// Takes no more room than it needs: worth it when most of it has come since the last time.
            pub(crate) fn pack(&mut self) {
                $(pack(&mut self.$field);)*
            }

            /// Takes over what another one holds, and says which objects came, went or were replaced. One that is the
            /// same allocation is the same object and costs no more than the look at it.
            pub(super) fn follow(&mut self, next: &Self) -> Changes {
                Changes { $($field: follow(&mut self.$field, &next.$field),)* }
            }

            /// All objects of a kind.
            pub fn ids(&self, kind: Kind) -> impl Iterator<Item = ObjectId> + use<> {
                let keys: Vec<ObjectKey> = match kind {
                    $(Kind::$kind => self.$field.keys().cloned().collect(),)*
                };
                keys.into_iter().map(move |key| ObjectId { kind, key })
            }

            /// Takes an object out; says whether it was there.
            pub fn remove(&mut self, id: &ObjectId) -> bool {
                match id.kind { $(Kind::$kind => self.$field.remove(&id.key).is_some(),)* }
            }
        }

        /// What differs between two states, by kind.
        #[derive(Debug, Default)]
        pub(super) struct Changes { $(#[doc = $doc] pub(super) $field: Vec<Change<$type>>,)* }
    };
}

kinds! {
    GatewayClass, GatewayClass, gateway_classes, "GatewayClass", "GatewayClass.";
    Gateway, Gateway, gateways, "Gateway", "Gateway.";
    HttpRoute, HttpRoute, http_routes, "HTTPRoute", "HTTPRoute.";
    GrpcRoute, GrpcRoute, grpc_routes, "GRPCRoute", "GRPCRoute.";
    UdpRoute, UdpRoute, udp_routes, "UDPRoute", "UDPRoute.";
    Service, Service, services, "Service", "Service.";
    EndpointSlice, EndpointSlice, endpoint_slices, "EndpointSlice", "EndpointSlice.";
    Secret, Secret, secrets, "Secret", "Secret.";
    Namespace, Namespace, namespaces, "Namespace", "Namespace.";
    Node, Node, nodes, "Node", "Node.";
    ReferenceGrant, ReferenceGrant, reference_grants, "ReferenceGrant", "ReferenceGrant.";
    DestinationRule, DestinationRule, destination_rules, "DestinationRule", "Istio's DestinationRule.";
    AddressPool, AddressPool, address_pools, "AddressPool", "Forebay's AddressPool.";
    TrafficPolicy, TrafficPolicy, traffic_policies, "TrafficPolicy", "Forebay's TrafficPolicy.";
}

/// An object that came, went or was replaced: its key, and what was there before.
pub(super) type Change<T> = (ObjectKey, Option<Arc<T>>);

/// By what a cache would keep of them, as nothing else of them is read.
fn say_the_same<T: Serialize>(one: &T, other: &T) -> bool {
    match (serde_json::to_vec(one), serde_json::to_vec(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

fn follow<T>(
    own: &mut BTreeMap<ObjectKey, Arc<T>>,
    next: &BTreeMap<ObjectKey, Arc<T>>,
) -> Vec<Change<T>> {
    if own.is_empty() {
        // Made of what is in order already, a map has no room to spare.
        *own = next
            .iter()
            .map(|(k, v)| (k.clone(), Arc::clone(v)))
            .collect();
        return own.keys().map(|key| (key.clone(), None)).collect();
    }
    let mut changed = Vec::new();
    let mut old = own.iter().peekable();
    'objects: for (key, object) in next {
        // The key follows from the object and need not be looked at if that is the same.
        let up_to =
            |(known, before): &(&ObjectKey, &Arc<T>)| Arc::ptr_eq(before, object) || *known <= key;
        while let Some((known, before)) = old.next_if(up_to) {
            if Arc::ptr_eq(before, object) {
                continue 'objects;
            }
            changed.push(known.clone());
            if known == key {
                continue 'objects;
            }
        }
        changed.push(key.clone());
    }
    changed.extend(old.map(|(key, _)| key.clone()));
    let take_over = |key: ObjectKey| {
        let before = match next.get(&key) {
            Some(object) => own.insert(key.clone(), Arc::clone(object)),
            None => own.remove(&key),
        };
        (key, before)
    };
    changed.into_iter().map(take_over).collect()
}

/// Kind and key of an object: unique among all objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectId {
    /// Kind.
    pub kind: Kind,
    /// Namespace and name.
    pub key: ObjectKey,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

impl Kind {
    /// The newest apiVersion that Forebay reads, under which statuses are written.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::GatewayClass
            | Self::Gateway
            | Self::HttpRoute
            | Self::GrpcRoute
            | Self::UdpRoute
            | Self::ReferenceGrant => "gateway.networking.k8s.io/v1",
            Self::DestinationRule => "networking.istio.io/v1",
            Self::AddressPool | Self::TrafficPolicy => "forebay.dev/v1alpha1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::Service | Self::Secret | Self::Namespace | Self::Node => "v1",
        }
    }
}

impl Kind {
    /// Its API group; empty for the core group.
    #[must_use]
    pub fn group(self) -> &'static str {
        self.api_version().rsplit_once('/').map_or("", |(g, _)| g)
    }

    /// The versions that Forebay reads, newest first.
    #[must_use]
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::GatewayClass | Self::Gateway | Self::HttpRoute | Self::ReferenceGrant => {
                &["v1", "v1beta1"]
            }
            Self::GrpcRoute | Self::UdpRoute => &["v1", "v1alpha2"],
            Self::DestinationRule => &["v1", "v1beta1", "v1alpha3"],
            Self::AddressPool | Self::TrafficPolicy => &["v1alpha1"],
            Self::EndpointSlice | Self::Service | Self::Secret | Self::Namespace | Self::Node => {
                &["v1"]
            }
        }
    }

    /// Whether its objects are of the whole cluster.
    #[must_use]
    pub fn cluster_scoped(self) -> bool {
        matches!(
            self,
            Self::GatewayClass | Self::Namespace | Self::Node | Self::AddressPool
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Why an object could not be read: one sentence that names the object and the field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{object}: field {field}: {message}")]
pub struct ObjectError {
    /// Kind and name, as far as the object states them.
    pub object: String,
    /// Path of the field, for example `spec.listeners[0].port`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

struct FieldError {
    field: String,
    message: String,
}

impl FieldError {
    fn new(field: &str, message: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            message: message.into(),
        }
    }
}

impl Object {
    /// Reads an object. `Ok(None)`: a kind that Forebay does not read.
    ///
    /// A field that is null counts as missing; a namespaced object without a namespace is in `default`.
    ///
    /// # Errors
    /// If the kind or the name is missing, the apiVersion is one that Forebay cannot read, or a field has the wrong type.
    pub fn parse(value: &Value) -> Result<Option<Self>, ObjectError> {
        parse(value).map_err(|error| ObjectError {
            object: describe(value),
            field: error.field,
            message: error.message,
        })
    }
}

fn parse(value: &Value) -> Result<Option<Object>, FieldError> {
    if !value.is_object() {
        return Err(FieldError::new(
            ".",
            format!("expected an object, got {}", type_of(value)),
        ));
    }
    let text = |field: &str| match value.get(field) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.as_str()),
        None | Some(Value::Null | Value::String(_)) => Err(FieldError::new(field, "is missing")),
        Some(other) => Err(FieldError::new(
            field,
            format!("expected a string, got {}", type_of(other)),
        )),
    };
    let (kind, api_version) = (text("kind")?, text("apiVersion")?);
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if (group, kind) == ("", "List") {
        return Err(FieldError::new(
            "kind",
            "a List is not read, give its items as documents of their own",
        ));
    }
    let Some((kind, versions)) = known(group, kind) else {
        return Ok(None);
    };
    if !versions.contains(&version) {
        return Err(FieldError::new(
            "apiVersion",
            format!(
                "version {version} is not read, use {}",
                versions.join(" or ")
            ),
        ));
    }
    Object::read(kind, without_nulls(value)).map(Some)
}

fn known(group: &str, name: &str) -> Option<(Kind, &'static [&'static str])> {
    let mut kinds = Kind::ALL.iter();
    let kind = kinds.find(|kind| kind.as_str() == name && kind.group() == group)?;
    Some((*kind, kind.versions()))
}

fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        FieldError {
            field,
            message: in_plain_words(&error.into_inner().to_string()),
        }
    })
}

/// A wrong type in the words of whoever wrote the manifest, not in those of this program.
fn in_plain_words(message: &str) -> String {
    let kinds = ["invalid type: ", "invalid value: "];
    let mismatch = kinds.iter().find_map(|kind| message.strip_prefix(kind));
    let Some((got, expected)) = mismatch.and_then(|rest| rest.rsplit_once(", expected ")) else {
        return message.to_owned();
    };
    let expected = match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" => "a whole number of 0 or more",
        "i32" | "i64" => "a whole number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        other if other == "a map" || other.starts_with("struct ") => "an object",
        other => other,
    };
    let got = match got.split_once(' ') {
        Some(("string", text)) => format!("the string {text}"),
        Some(("integer" | "boolean", text)) => text.replace('`', ""),
        Some(("floating", text)) => text.replace("point ", "").replace('`', ""),
        _ if got == "map" => "an object".to_owned(),
        _ if got == "sequence" => "a list".to_owned(),
        _ => got.to_owned(),
    };
    format!("expected {expected}, got {got}")
}

fn settle_metadata(kind: Kind, metadata: &mut Metadata) -> Result<(), FieldError> {
    if metadata.name.is_empty() {
        return Err(FieldError::new("metadata.name", "is missing"));
    }
    if !is_dns_name(&metadata.name) {
        return Err(FieldError::new(
            "metadata.name",
            format!("{:?} is not a lower-case DNS name", metadata.name),
        ));
    }
    if kind.cluster_scoped() {
        metadata.namespace = Arc::from("");
    } else if metadata.namespace.is_empty() {
        metadata.namespace = Arc::from("default");
    } else if !is_dns_name(&metadata.namespace) || metadata.namespace.contains('.') {
        return Err(FieldError::new(
            "metadata.namespace",
            format!("{:?} is not a lower-case DNS label", metadata.namespace),
        ));
    }
    Ok(())
}

fn is_dns_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

/// Null means "not given" everywhere in Kubernetes.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, field)| !field.is_null())
            .map(|(name, field)| (name.clone(), without_nulls(field)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn describe(value: &Value) -> String {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("").to_owned();
    let metadata = value.get("metadata");
    let (namespace, name) = (
        text(metadata.and_then(|m| m.get("namespace"))),
        text(metadata.and_then(|m| m.get("name"))),
    );
    let kind = match text(value.get("kind")) {
        kind if kind.is_empty() => "object".to_owned(),
        kind => kind,
    };
    if name.is_empty() {
        format!("{kind} without a name")
    } else {
        format!("{kind} {}", ObjectKey::new(namespace, name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(value: &Value) -> String {
        Object::parse(value)
            .expect_err("must be refused")
            .to_string()
    }

    #[test]
    fn reads_a_gateway_and_gives_its_id() {
        let value = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "a", "namespace": null},
            "spec": {"gatewayClassName": "x", "addresses": null, "listeners": [
                {"name": "http", "port": 80, "protocol": "HTTP", "tls": {"mode": "Terminate"}}]},
        });
        let object = Object::parse(&value).expect("fine").expect("known");
        assert_eq!(object.id().to_string(), "Gateway default/a");
        let Object::Gateway(gateway) = &object else {
            panic!("{object:?}")
        };
        assert_eq!(gateway.spec.listeners[0].port, 80);
        assert!(gateway.spec.listeners[0].tls.is_some());
        let mut inputs = Inputs::default();
        inputs.insert(object.clone());
        assert!(inputs.remove(&object.id()) && !inputs.remove(&object.id()));
    }

    #[test]
    fn other_kinds_are_none_and_cluster_scope_has_no_namespace() {
        let other =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}});
        assert!(Object::parse(&other).expect("fine").is_none());
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "namespace": "b"}});
        let id = Object::parse(&node).expect("fine").expect("known").id();
        assert_eq!(id.to_string(), "Node a");
    }

    #[test]
    fn every_error_is_one_sentence_with_object_and_field() {
        let gateway = "gateway.networking.k8s.io/v1";
        for (value, want) in [
            (
                json!([1]),
                "object without a name: field .: expected an object, got a list",
            ),
            (
                json!({"apiVersion": "v1"}),
                "object without a name: field kind: is missing",
            ),
            (
                json!({"kind": "Service"}),
                "Service without a name: field apiVersion: is missing",
            ),
            (
                json!({"apiVersion": "v1", "kind": 3}),
                "object without a name: field kind: expected a string, got a number",
            ),
            (
                json!({"apiVersion": "v1", "kind": "Service"}),
                "Service without a name: field metadata.name: is missing",
            ),
            (
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "A b"}}),
                "Service A b: field metadata.name: \"A b\" is not a lower-case DNS name",
            ),
            (
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "b.c"}}),
                "Service b.c/a: field metadata.namespace: \"b.c\" is not a lower-case DNS label",
            ),
            (
                json!({"apiVersion": "v1", "kind": "List", "items": []}),
                "List without a name: field kind: a List is not read, give its items as documents of their own",
            ),
            (
                json!({"apiVersion": "gateway.networking.k8s.io/v1alpha2", "kind": "Gateway", "metadata": {"name": "a"}}),
                "Gateway a: field apiVersion: version v1alpha2 is not read, use v1 or v1beta1",
            ),
            (
                json!({"apiVersion": gateway, "kind": "Gateway", "metadata": {"name": "a"},
                    "spec": {"listeners": [{"name": "x", "port": "80"}]}}),
                "Gateway a: field spec.listeners[0].port: expected a whole number from 0 to 65535, got the string \"80\"",
            ),
            (
                json!({"apiVersion": gateway, "kind": "HTTPRoute", "metadata": {"name": "a"},
                    "spec": {"rules": [{}, {"backendRefs": [{"name": "x", "weight": -1}]}]}}),
                "HTTPRoute a: field spec.rules[1].backendRefs[0].weight: expected a whole number of 0 or more, got -1",
            ),
            (
                json!({"apiVersion": gateway, "kind": "HTTPRoute", "metadata": {"name": "a"}, "spec": {"rules": {}}}),
                "HTTPRoute a: field spec.rules: expected a list, got an object",
            ),
            (
                json!({"apiVersion": gateway, "kind": "HTTPRoute", "metadata": {"name": "a"}, "spec": 1.5}),
                "HTTPRoute a: field spec: expected an object, got 1.5",
            ),
        ] {
            assert_eq!(error(&value), want);
        }
    }
}
