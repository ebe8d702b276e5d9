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

const NAMESPACE: &str = "forebay-system";
const NAME: &str = "forebay";

/// Forebay's own Service.
pub(super) fn service() -> ObjectKey {
    ObjectKey::new(NAMESPACE, NAME)
}

/// Whether the slice lists Forebay's replicas.
pub(super) fn is_ours(slice: &EndpointSlice) -> bool {
    let metadata = &slice.metadata;
    *metadata.namespace == *NAMESPACE && metadata.labels.get(SERVICE_NAME) == Some(NAME)
}

/// All replicas by name. If two entries have one name the first by slice name and position counts.
///
/// Nodes reach each other by one IP version: that of most of them, by IPv4 if as many have either. So all nodes decide
/// alike, and a Service of both versions, which lists every node twice, is read as if it had one. Nodes that have no
/// address of that version are left out, and so is the second of two nodes with one address.
pub(super) fn read(inputs: &Inputs, conditions: &mut Conditions) -> Vec<Replica> {
    let (mut v4, mut v6) = (Listed::new(), Listed::new());
    for (key, slice) in inputs.endpoint_slices.iter().filter(|(_, s)| is_ours(s)) {
        for endpoint in &slice.endpoints {
            match read_one(inputs, endpoint, conditions) {
                Ok(replica) => {
                    let of_version = if replica.address.is_ipv4() {
                        &mut v4
                    } else {
                        &mut v6
                    };
                    let entry = of_version.entry(replica.name.clone());
                    entry.or_insert((key, replica));
                }
                Err(message) => conditions.warn(Kind::EndpointSlice, key, message),
            }
        }
    }
    let (listed, others, version) = if v6.len() > v4.len() {
        (v6, v4, "IPv6")
    } else {
        (v4, v6, "IPv4")
    };
    for (name, (key, replica)) in &others {
        if !listed.contains_key(name) {
            let address = replica.address;
            let message = format!(
                "replica {name} ({address}) is left out: it has no {version} address, by which most replicas are reached; give all of them addresses of one IP version"
            );
            conditions.warn(Kind::EndpointSlice, key, message);
        }
    }
    without_doubles(listed, conditions)
}

/// Replicas by name, with their slices.
type Listed<'a> = BTreeMap<String, (&'a ObjectKey, Replica)>;

/// Each address once: as that of the first replica by name of those that are ready, else of all.
fn without_doubles(listed: Listed<'_>, conditions: &mut Conditions) -> Vec<Replica> {
    let mut owners: BTreeMap<IpAddr, (bool, String)> = BTreeMap::new();
    for replica in listed.values().map(|(_, replica)| replica) {
        let claim = (replica.state != ReplicaState::Ready, replica.name.clone());
        let owner = owners.entry(replica.address).or_insert(claim.clone());
        if claim < *owner {
            *owner = claim;
        }
    }
    let mut replicas = Vec::new();
    for (name, (key, replica)) in listed {
        let owner = &owners[&replica.address].1;
        if *owner == name {
            replicas.push(replica);
        } else {
            let address = replica.address;
            let message = format!(
                "replica {name} is left out: its address {address} is that of replica {owner}"
            );
            conditions.warn(Kind::EndpointSlice, key, message);
        }
    }
    replicas
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
        name: name.into(),
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
