//! Objects in, configuration and conditions out: the pure control plane.
//!
//! [`translate`] is total: a bad object becomes a condition and the good ones still work. The same inputs give the same
//! bytes. [`Translator`] gives the same and remembers: a change costs what it touches. It knows no clock, no socket and no client; what the nodes report about the result is merged in
//! [`crate::status`] and never comes back here.

mod address_pool;
mod backend_ref;
mod certificate;
mod cluster;
pub mod condition;
mod destination_rule;
pub(crate) mod duration;
pub mod features;
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
mod listener_routes;
mod memo;
pub mod namespace;
pub mod objects;
mod precedence;
mod reference_grant;
pub mod referenced;
mod replica;
mod retry;
mod route;
mod route_match;
pub(crate) mod shared;
mod tls;
mod traffic_policy;
mod udp_route;
mod upstream_tls;

pub use condition::{Condition, Conditions, Truth};
pub use gateway::READY_PORT;
pub use gateway_class::CONTROLLER;
pub use inputs::{Inputs, Kind, Object, ObjectError, ObjectId};

use std::collections::BTreeMap;

use crate::allocate::Allocations;
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

/// Has a map take no more room than it needs: one that was filled in the order of its keys is half empty.
pub(crate) fn pack<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
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

/// Translates again and again, and makes only that anew which a change touches.
///
/// The result says the same as that of [`translate`]: places of rules and clusters may differ, their
/// [canonical](Snapshot::canonical) form does not. An object that is the same allocation as the last time has not changed;
/// parts of the snapshot and statuses that a change does not touch are the same allocations in the next result.
#[derive(Default)]
pub struct Translator {
    memo: memo::Memo,
}

impl Translator {
    /// Translates all objects as they are now.
    #[must_use]
    pub fn translate(&mut self, inputs: &Inputs, context: &Context<'_>) -> Translation {
        self.memo.translate(inputs, context)
    }
}

impl std::fmt::Debug for Translator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Translator").finish_non_exhaustive()
    }
}

/// Translates all objects, from scratch.
#[must_use]
pub fn translate(inputs: &Inputs, context: &Context<'_>) -> Translation {
    Translator::default().translate(inputs, context)
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
