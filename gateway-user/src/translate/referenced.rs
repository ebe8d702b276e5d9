//! What objects of ours refer to: which Secrets have to be read at all, and which routes and Gateways concern us.
//!
//! An API server is not asked for more than this: neither for all Secrets of a cluster nor for what other controllers serve.

use std::collections::BTreeSet;

use super::listener::GROUP;
use super::objects::{DestinationRule, ParentRef};
use super::{Inputs, gateway_class, reference_grant};
use crate::snapshot::ObjectKey;

/// Secrets that listeners of our Gateways may read by name, and those that DestinationRules name. A Secret of another
/// namespace is among them only with a ReferenceGrant.
#[must_use]
pub fn secrets(inputs: &Inputs) -> BTreeSet<ObjectKey> {
    let classes = gateway_class::ours(inputs);
    let mut secrets = BTreeSet::new();
    for (gateway, object) in &inputs.gateways {
        if !classes.contains(object.spec.gateway_class_name.as_str()) {
            continue;
        }
        let listeners = object.spec.listeners.iter();
        for reference in listeners
            .flat_map(|listener| &listener.tls)
            .flat_map(|tls| &tls.certificate_refs)
        {
            let group = reference.group.as_deref().unwrap_or("");
            let kind = reference.kind.as_deref().unwrap_or("Secret");
            let namespace = reference.namespace.as_deref();
            let key = ObjectKey::new(
                namespace.unwrap_or(&gateway.namespace),
                reference.name.as_str(),
            );
            let from = ("Gateway", &*gateway.namespace);
            if (group, kind) == ("", "Secret")
                && !key.name.is_empty()
                && reference_grant::permits(inputs, from, ("Secret", &key))
            {
                secrets.insert(key);
            }
        }
    }
    for (key, rule) in &inputs.destination_rules {
        let names = credentials(rule).map(|name| ObjectKey::new(key.namespace.clone(), name));
        secrets.extend(names);
    }
    secrets
}

fn credentials(rule: &DestinationRule) -> impl Iterator<Item = &str> {
    let policies = rule.spec.traffic_policy.iter();
    policies
        .flat_map(|policy| {
            let ports = policy.port_level_settings.iter();
            policy.tls.iter().chain(ports.flat_map(|port| &port.tls))
        })
        .filter_map(|tls| tls.credential_name.as_deref())
        .filter(|name| !name.is_empty())
}

/// The Gateways that a route in `namespace` names.
pub fn parents<'a>(
    parents: &'a [ParentRef],
    namespace: &'a str,
) -> impl Iterator<Item = ObjectKey> + 'a {
    parents
        .iter()
        .filter(|parent| {
            parent.group.as_deref().unwrap_or(GROUP) == GROUP
                && parent.kind.as_deref().unwrap_or("Gateway") == "Gateway"
        })
        .map(move |parent| {
            let namespace = parent.namespace.as_deref().unwrap_or(namespace);
            ObjectKey::new(namespace, &*parent.name)
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::translate::{CONTROLLER, Object};

    fn inputs(objects: &[Value]) -> Inputs {
        let mut inputs = Inputs::default();
        for object in objects {
            inputs.insert(Object::parse(object).expect("fine").expect("known"));
        }
        inputs
    }

    fn gateway(class: &str, references: &Value) -> Value {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": class, "namespace": "a"},
            "spec": {"gatewayClassName": class, "listeners": [{"name": "x", "port": 443, "protocol": "HTTPS",
                "tls": {"certificateRefs": references}}]}})
    }

    #[test]
    fn only_what_may_be_read_is_asked_for() {
        let references = json!([{"name": "own"}, {"name": "granted", "namespace": "b"}, {"name": "other", "namespace": "b"},
            {"name": "map", "kind": "ConfigMap"}]);
        let foreign = json!([{"name": "foreign"}]);
        let inputs = inputs(&[
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "ours"},
                "spec": {"controllerName": CONTROLLER}}),
            gateway("ours", &references),
            gateway("theirs", &foreign),
            json!({"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
                "metadata": {"name": "g", "namespace": "b"},
                "spec": {"from": [{"group": GROUP, "kind": "Gateway", "namespace": "a"}],
                    "to": [{"group": "", "kind": "Secret", "name": "granted"}]}}),
            json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
                "metadata": {"name": "d", "namespace": "c"},
                "spec": {"host": "x", "trafficPolicy": {"tls": {"mode": "SIMPLE", "credentialName": "all"},
                    "portLevelSettings": [{"port": {"number": 1}, "tls": {"credentialName": "port"}}]}}}),
        ]);
        let want = [("a", "own"), ("b", "granted"), ("c", "all"), ("c", "port")];
        let want = want.map(|(namespace, name)| ObjectKey::new(namespace, name));
        assert_eq!(secrets(&inputs), BTreeSet::from(want));
    }
}
