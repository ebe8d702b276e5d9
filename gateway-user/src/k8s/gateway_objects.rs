//! The objects that each Gateway has on a cluster: a Service of type LoadBalancer and the EndpointSlices behind its ClusterIP.
//!
//! Computes and waits for nothing. The Service tells others (external-dns, `kubectl get svc`) the addresses; its ingress says
//! `ipMode: Proxy`, else kube-proxy would take the addresses for itself. Its endpoints are the addresses, so that the
//! ClusterIP leads to the Gateway too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gateway_common::hash::sip13;
use serde_json::{Map, Value, json};

use crate::snapshot::{ObjectKey, Transport};
use crate::status::{ObjectStatus, Status};
use crate::translate::objects::Gateway;
use crate::translate::{Inputs, READY_PORT, Truth};

/// Class of Services that Forebay carries out.
pub const LOAD_BALANCER_CLASS: &str = "forebay.dev/gateway";
/// Label and value of objects that Forebay makes.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "forebay");
/// Annotation that tells what was last applied.
pub(super) const APPLIED: &str = "forebay.dev/applied";
/// Most characters of a label's value and of a Service's name.
const LABEL: usize = 63;

/// What one Gateway needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayObjects {
    /// The Gateway.
    pub gateway: ObjectKey,
    /// Its class.
    pub class: String,
    /// Its addresses; none: it needs nothing, and what is there is emptied.
    pub addresses: Vec<IpAddr>,
    /// Ports of its listeners and the built-in one, each once.
    pub ports: Vec<Port>,
    /// `infrastructure.labels`.
    pub labels: BTreeMap<String, String>,
    /// `infrastructure.annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// A port of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name, unique in the Gateway.
    pub name: String,
    /// Number.
    pub port: u16,
    /// What carries it.
    pub transport: Transport,
}

/// What all Gateways need that have a status of ours.
#[must_use]
pub fn gateway_objects(inputs: &Inputs, statuses: &[ObjectStatus]) -> Vec<GatewayObjects> {
    let of = |status: &ObjectStatus| {
        let Status::Gateway(said) = &status.status else {
            return None;
        };
        let key = ObjectKey {
            namespace: status.namespace.clone(),
            name: status.name.clone(),
        };
        let object = inputs.gateways.get(&key)?;
        let accepted = said.listeners.iter().filter(|listener| {
            let accepted = |c: &crate::translate::Condition| c.kind == "Accepted";
            let condition = listener.conditions.iter().find(|c| accepted(c));
            condition.is_some_and(|condition| condition.status == Truth::True)
        });
        let accepted: BTreeSet<&str> = accepted.map(|listener| &*listener.name).collect();
        let ports = said
            .listeners
            .iter()
            .filter(|l| accepted.contains(&*l.name));
        let infrastructure = object.spec.infrastructure.clone().unwrap_or_default();
        let owned = |names: &crate::translate::objects::Names| {
            let names = names.iter();
            names
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        };
        Some(GatewayObjects {
            gateway: key,
            class: object.spec.gateway_class_name.clone(),
            addresses: said.addresses.iter().map(|address| address.0).collect(),
            ports: self::ports(object, ports.map(|l| (l.port, l.transport))),
            labels: owned(&infrastructure.labels),
            annotations: owned(&infrastructure.annotations),
        })
    };
    statuses.iter().filter_map(of).collect()
}

/// Ports of accepted listeners and the built-in one.
fn ports(object: &Gateway, accepted: impl Iterator<Item = (u16, Transport)>) -> Vec<Port> {
    let mut ports: BTreeMap<(u16, Transport), String> = BTreeMap::new();
    for (port, transport) in accepted {
        let udp = transport == Transport::Udp;
        let listeners = object.spec.listeners.iter();
        let mut here = listeners.filter(|l| l.port == port && (l.protocol == "UDP") == udp);
        let protocol = here.next().map_or("tcp", |listener| &listener.protocol);
        let name = format!("{}-{port}", protocol.to_ascii_lowercase());
        ports.entry((port, transport)).or_insert(name);
    }
    let ready = "status-port".to_owned();
    ports.entry((READY_PORT, Transport::Tcp)).or_insert(ready);
    let port = |((port, transport), name)| Port {
        name,
        port,
        transport,
    };
    ports.into_iter().map(port).collect()
}

/// Address families of EndpointSlices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

impl GatewayObjects {
    /// Name of the Service, which may not be as long as that of a Gateway.
    pub(super) fn service_name(&self) -> String {
        name(&self.gateway.name, "-forebay")
    }

    /// Name of an EndpointSlice.
    pub(super) fn slice_name(&self, family: Family) -> String {
        let family = match family {
            Family::V4 => "v4",
            Family::V6 => "v6",
        };
        format!("{}-{family}", self.service_name())
    }

    /// Whether it has addresses of this family.
    pub(super) fn has(&self, family: Family) -> bool {
        self.addresses.iter().any(|address| family.has(*address))
    }

    /// The Service.
    pub(super) fn service(&self, uid: &str) -> Value {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|port| {
                json!({"name": port.name, "port": port.port, "targetPort": port.port,
                    "protocol": protocol(port.transport)})
            })
            .collect();
        sealed(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self.metadata(&self.service_name(), uid, &self.labels()),
            "spec": {
                "type": "LoadBalancer",
                "loadBalancerClass": LOAD_BALANCER_CLASS,
                "allocateLoadBalancerNodePorts": false,
                "externalTrafficPolicy": "Cluster",
                "ipFamilyPolicy": "PreferDualStack",
                "ports": ports,
            },
        }))
    }

    /// The EndpointSlice of one family; empty if it has no address of it.
    pub(super) fn slice(&self, family: Family, uid: &str) -> Value {
        let mut labels = self.labels();
        // A label's value has no slash, so the controller's name cannot be it.
        let manager = "gateway-controller.forebay.dev";
        labels.insert(
            "endpointslice.kubernetes.io/managed-by".into(),
            manager.into(),
        );
        labels.insert(
            "kubernetes.io/service-name".into(),
            self.service_name().into(),
        );
        let addresses = self
            .addresses
            .iter()
            .filter(|address| family.has(**address));
        let endpoints: Vec<Value> = addresses
            .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
            .collect();
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|port| json!({"name": port.name, "port": port.port, "protocol": protocol(port.transport)}))
            .collect();
        sealed(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": self.metadata(&self.slice_name(family), uid, &labels),
            "addressType": match family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            },
            "endpoints": endpoints,
            "ports": ports,
        }))
    }

    /// `status.loadBalancer.ingress` of the Service.
    pub(super) fn ingress(&self) -> Vec<Value> {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|port| json!({"port": port.port, "protocol": protocol(port.transport)}))
            .collect();
        let addresses = self.addresses.iter();
        addresses
            .map(|address| json!({"ip": address, "ipMode": "Proxy", "ports": ports}))
            .collect()
    }

    /// Those that the user wishes; where they clash with ours, ours count.
    fn labels(&self) -> Map<String, Value> {
        let mut labels: Map<String, Value> = owned(&self.labels);
        let ours = [
            (MANAGED_BY.0, MANAGED_BY.1.to_owned()),
            (
                "gateway.networking.k8s.io/gateway-name",
                name(&self.gateway.name, ""),
            ),
            (
                "gateway.networking.k8s.io/gateway-class-name",
                name(&self.class, ""),
            ),
        ];
        labels.extend(ours.map(|(label, value)| (label.to_owned(), value.into())));
        labels
    }

    fn metadata(&self, name: &str, uid: &str, labels: &Map<String, Value>) -> Value {
        json!({
            "name": name,
            "namespace": self.gateway.namespace,
            "labels": labels,
            "annotations": owned(&self.annotations),
            "ownerReferences": [{
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "name": self.gateway.name,
                "uid": uid,
                "controller": true,
                "blockOwnerDeletion": false,
            }],
        })
    }
}

fn owned(names: &BTreeMap<String, String>) -> Map<String, Value> {
    let names = names.iter();
    names
        .map(|(name, value)| (name.clone(), value.as_str().into()))
        .collect()
}

fn protocol(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
    }
}

/// A name of at most 63 characters; a longer one keeps its begin and ends in a hash of the whole. Dots, which neither a
/// Service's name nor the end of a cut label may have, become dashes.
fn name(of: &str, end: &str) -> String {
    let plain = format!("{of}{end}");
    let dots = !end.is_empty() && of.contains('.');
    if plain.len() <= LABEL
        && !dots
        && !of.starts_with(|c: char| c.is_ascii_digit() && !end.is_empty())
    {
        return plain;
    }
    let tail = format!("-{:016x}{end}", sip13([0, 0], of.as_bytes()));
    let head: String = of.replace('.', "-");
    let head = match head.starts_with(|c: char| c.is_ascii_digit()) && !end.is_empty() {
        true => format!("g{head}"),
        false => head,
    };
    let room = LABEL - tail.len();
    format!(
        "{}{tail}",
        head[..head.len().min(room)].trim_end_matches('-')
    )
}

/// With an annotation that tells what was applied.
fn sealed(mut object: Value) -> Value {
    let seal = format!("{:016x}", sip13([0, 0], object.to_string().as_bytes()));
    object["metadata"]["annotations"][APPLIED] = seal.into();
    object
}

/// Whether an object has all that it should. Lists of an EndpointSlice are whole; a Service may have more ports.
pub(super) fn has_all(actual: &Value, wanted: &Value, whole_lists: bool) -> bool {
    match (actual, wanted) {
        (Value::Object(actual), Value::Object(wanted)) => wanted.iter().all(|(field, wanted)| {
            let skip = field == "apiVersion" || field == "kind";
            skip && !actual.contains_key(field)
                || actual
                    .get(field)
                    .is_some_and(|actual| has_all(actual, wanted, whole_lists))
        }),
        (Value::Array(actual), Value::Array(wanted)) => {
            (actual.len() == wanted.len() || !whole_lists)
                && wanted
                    .iter()
                    .all(|w| actual.iter().any(|a| has_all(a, w, whole_lists)))
        }
        (actual, wanted) => actual == wanted,
    }
}
