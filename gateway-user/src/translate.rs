//! Objects in, configuration and conditions out: the pure control plane.
//!
//! [`translate`] is total: a bad object becomes a condition and the good ones still work. The same inputs give the same
//! bytes. It knows no clock, no socket and no client; what the nodes report about the result is merged in
//! [`crate::status`] and never comes back here.

mod address_pool;
mod backend_ref;
mod certificate;
mod cluster;
pub mod condition;
mod destination_rule;
pub(crate) mod duration;
mod filter;
mod gateway;
pub mod gateway_class;
mod gathered;
pub(crate) mod grpc_route;
mod hosts;
mod http_route;
pub mod inputs;
mod l4_policy;
mod listener;
pub mod namespace;
pub mod objects;
mod precedence;
mod reference_grant;
mod replica;
mod retry;
mod route;
mod route_match;
mod tls;
mod traffic_policy;
mod udp_route;
mod upstream_tls;

use std::sync::Arc;

pub use condition::{Condition, Conditions, Truth};
pub use gateway::READY_PORT;
pub use gateway_class::CONTROLLER;
pub use inputs::{Inputs, Kind, Object, ObjectError, ObjectId};

use self::gathered::Gathered;
use self::route::Route;

use crate::allocate::{Allocations, Unannounced};
use crate::snapshot::{ObjectKey, Snapshot};

/// Label by which an EndpointSlice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Label by which a Node names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What besides the objects decides the result.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Whether the objects come from Kubernetes; else from files, where some rules are more lenient.
    pub on_cluster: bool,
    /// Which Gateway has which addresses.
    pub allocations: &'a Allocations,
    /// Zone of this node; none: endpoints of all zones are alike.
    pub zone: Option<&'a str>,
}

/// The zone of a node, by the label of its object.
#[must_use]
pub fn zone<'a>(inputs: &'a Inputs, node: &str) -> Option<&'a str> {
    let node = inputs.nodes.get(&ObjectKey::new("", node))?;
    let zone = node.metadata.labels.get(ZONE)?;
    (!zone.is_empty()).then_some(zone)
}

/// The result.
#[derive(Clone, Debug, Default)]
pub struct Translation {
    /// What shall be served; its generation is set by whoever publishes it.
    pub snapshot: Snapshot,
    /// What became of each object.
    pub conditions: Conditions,
}

/// Translates all objects.
#[must_use]
pub fn translate(inputs: &Inputs, context: &Context<'_>) -> Translation {
    let mut conditions = Conditions {
        gateway_classes: gateway_class::judge(inputs),
        address_pools: address_pool::judge(inputs),
        ..Conditions::default()
    };
    let mut gateways = gateway::read(inputs, context);
    let mut gathered = Gathered {
        clusters: cluster::Clusters::new(inputs),
        rules: Vec::new(),
    };
    for route in by_age(inputs) {
        if let Some(status) = route.attach(inputs, context, &mut gateways, &mut gathered) {
            let (kind, key) = route.id();
            let statuses = match kind {
                listener::GRPC_ROUTE => &mut conditions.grpc_routes,
                _ => &mut conditions.http_routes,
            };
            statuses.insert(key.clone(), status);
        }
    }
    for (key, object) in &inputs.udp_routes {
        let route = (key, object.as_ref());
        let status = udp_route::attach(inputs, context, route, &mut gateways, &mut gathered);
        if let Some(status) = status {
            conditions.udp_routes.insert(key.clone(), status);
        }
    }
    let policies = l4_policy::read(inputs, &gateways, &mut conditions);
    conditions.gateways = gateways
        .iter()
        .map(|(key, gateway)| (key.clone(), gateway.status()))
        .collect();
    gateway::add_orphans(inputs, context, &mut conditions.gateways);

    let mut snapshot = Snapshot::default();
    let unannounced = Unannounced::new(inputs);
    for (key, gateway) in &mut gateways {
        for &address in gateway.addresses() {
            snapshot.addresses.insert(address, key.clone());
            if unannounced.holds(&key.namespace, address) {
                snapshot.routed.insert(address);
            }
        }
        let binds = gateway.binds(&policies).into_iter();
        snapshot
            .binds
            .extend(binds.map(|bind| (bind.key, Arc::new(bind))));
    }
    let Gathered { clusters, rules } = gathered;
    let moved;
    (snapshot.clusters, moved) = clusters.finish(context, &snapshot.binds, &mut conditions);
    conditions.destination_rules = clusters.rules.statuses(inputs, &snapshot.clusters);
    snapshot.rules = rules
        .into_iter()
        .map(|rule| Arc::new(gathered::settle(rule, &moved)))
        .collect();
    snapshot.replicas = replica::read(inputs, &mut conditions);
    Translation {
        snapshot,
        conditions,
    }
}

/// All routes with hostnames, the older first: where an HTTPRoute and a GRPCRoute exclude each other that one is served.
fn by_age(inputs: &Inputs) -> Vec<Route<'_>> {
    let http = inputs.http_routes.iter();
    let grpc = inputs.grpc_routes.iter();
    let mut routes: Vec<Route<'_>> = http
        .map(|(key, object)| http_route::compile(key, object))
        .chain(grpc.map(|(key, object)| grpc_route::compile(key, object)))
        .collect();
    routes.sort_by(|a, b| a.age().cmp(&b.age()));
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_zone_is_its_label() {
        let mut inputs = Inputs::default();
        for (name, labels) in [
            ("a", serde_json::json!({ZONE: "west"})),
            ("b", serde_json::json!({ZONE: ""})),
            ("c", serde_json::json!({})),
        ] {
            let node = serde_json::json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": labels}});
            inputs.insert(Object::parse(&node).expect("fine").expect("known"));
        }
        let zones = ["a", "b", "c", "none"].map(|node| zone(&inputs, node));
        assert_eq!(zones, [Some("west"), None, None, None]);
    }
}
