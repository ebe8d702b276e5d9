//! Forebay's own replicas, from the EndpointSlices of its own Service.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::condition::Conditions;
use super::inputs::Kind;
use super::objects::{Endpoint, EndpointSlice};
use super::{Inputs, SERVICE_NAME};
use crate::snapshot::{ObjectKey, Replica, ReplicaState};

/// Capacity weight of a node, 1 to 255.
const CAPACITY: &str = "forebay.dev/capacity";

/// Forebay's own Service.
pub(super) fn service() -> ObjectKey {
    ObjectKey::new("forebay-system", "forebay")
}

/// Whether the slice lists Forebay's replicas.
pub(super) fn is_ours(slice: &EndpointSlice) -> bool {
    let service = service();
    slice.metadata.namespace == *service.namespace
        && slice.metadata.labels.get(SERVICE_NAME).map(String::as_str) == Some(&*service.name)
}

/// All replicas by name. If two entries have one name the first by slice name and position counts.
pub(super) fn read(inputs: &Inputs, conditions: &mut Conditions) -> Vec<Replica> {
    let mut replicas: BTreeMap<String, Replica> = BTreeMap::new();
    for (key, slice) in inputs.endpoint_slices.iter().filter(|(_, s)| is_ours(s)) {
        for endpoint in &slice.endpoints {
            match read_one(inputs, endpoint, conditions) {
                Ok(replica) => {
                    replicas.entry(replica.name.clone()).or_insert(replica);
                }
                Err(message) => conditions.warn(Kind::EndpointSlice, key, message),
            }
        }
    }
    replicas.into_values().collect()
}

fn read_one(
    inputs: &Inputs,
    endpoint: &Endpoint,
    conditions: &mut Conditions,
) -> Result<Replica, String> {
    let text = endpoint.addresses.first().map_or("", String::as_str);
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("replica address {text:?} is not an IP address"))?;
    let name = endpoint
        .node_name
        .clone()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| format!("replica {address} has no nodeName"))?;
    let state = if endpoint.conditions.terminating == Some(true) {
        ReplicaState::Draining
    } else if endpoint.conditions.ready.unwrap_or(true) {
        ReplicaState::Ready
    } else {
        ReplicaState::Joining
    };
    Ok(Replica {
        weight: weight(inputs, &name, conditions),
        name,
        address: address.to_canonical(),
        state,
    })
}

fn weight(inputs: &Inputs, node: &str, conditions: &mut Conditions) -> u8 {
    let key = ObjectKey::new("", node);
    let annotation = inputs
        .nodes
        .get(&key)
        .and_then(|object| object.metadata.annotations.get(CAPACITY));
    match annotation.map(|text| (text, text.parse::<u8>())) {
        None => 1,
        Some((_, Ok(weight @ 1..))) => weight,
        Some((text, _)) => {
            let message = format!("annotation {CAPACITY} {text:?} is not 1 to 255, 1 is used");
            conditions.warn(Kind::Node, &key, message);
            1
        }
    }
}
