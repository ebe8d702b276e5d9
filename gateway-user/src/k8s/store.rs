//! The objects as last seen, apart into those that concern us and those that do not.
//!
//! Gateways of other classes and routes of other Gateways are kept beside, so that they cost nothing until they become ours:
//! a class, a Gateway and a route may come in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::watcher::Change;
use crate::file::merge::Problem;
use crate::snapshot::ObjectKey;
use crate::translate::{Inputs, Kind, Object, ObjectId, gateway_class, referenced};

/// What is wrong with an object is told as of this file.
const SOURCE: &str = "kubernetes";

/// All that is known.
#[derive(Debug, Default)]
pub struct Store {
    /// What concerns us.
    inputs: Inputs,
    /// Gateways and routes that do not.
    beside: Inputs,
    problems: BTreeMap<ObjectId, String>,
    addresses: BTreeMap<ObjectKey, Vec<IpAddr>>,
}

impl Store {
    /// What concerns us.
    #[must_use]
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Addresses by the status of Gateways.
    #[must_use]
    pub fn addresses(&self) -> &BTreeMap<ObjectKey, Vec<IpAddr>> {
        &self.addresses
    }

    /// Objects that cannot be read.
    #[must_use]
    pub fn problems(&self) -> BTreeSet<Problem> {
        let problems = self.problems.iter();
        problems
            .map(|(id, message)| Problem {
                file: SOURCE.to_owned(),
                object: Some(id.to_string()),
                field: None,
                message: message.clone(),
            })
            .collect()
    }

    /// Takes changes over; true if one concerns us.
    pub fn apply(&mut self, changes: Vec<Change>) -> bool {
        let mut relevant = false;
        let mut classes = false;
        let mut gateways = false;
        for change in changes {
            let id = match &change {
                Change::Is(object) => Some(object.id()),
                Change::Gone(id) => Some(id.clone()),
                Change::Bad(..) | Change::Addresses(..) => None,
            };
            let gateway = id.as_ref().filter(|id| id.kind == Kind::Gateway);
            let was_ours = gateway.map(|id| self.inputs.gateways.contains_key(&id.key));
            relevant |= self.take(change);
            classes |= id.as_ref().is_some_and(|id| id.kind == Kind::GatewayClass);
            // Others' Gateways, and ours that are edited, change nothing in whose the routes are.
            let is_ours = gateway.map(|id| self.inputs.gateways.contains_key(&id.key));
            gateways |= was_ours != is_ours;
        }
        if classes {
            gateways |= self.sort_gateways();
        }
        if gateways {
            relevant |= self.sort_routes();
        }
        relevant
    }

    /// Removes all objects of which this is not true: nobody follows them any more. True if one concerned us.
    pub fn retain(&mut self, keep: impl Fn(&ObjectId) -> bool) -> bool {
        let kinds = Kind::ALL.iter();
        let ids = kinds.flat_map(|&kind| self.inputs.ids(kind).chain(self.beside.ids(kind)));
        let ids = ids.chain(self.problems.keys().cloned());
        let gone = ids.filter(|id| !keep(id)).map(Change::Gone).collect();
        self.apply(gone)
    }

    fn take(&mut self, change: Change) -> bool {
        match change {
            Change::Is(object) => {
                let solved = self.problems.remove(&object.id()).is_some();
                // Statuses are written into objects all the time, by us too: what is read of them stays the same.
                let known = self.inputs.holds(&object) || self.beside.holds(&object);
                (!known && self.put(*object)) || solved
            }
            Change::Gone(id) => {
                self.beside.remove(&id);
                if id.kind == Kind::Gateway {
                    self.addresses.remove(&id.key);
                }
                let solved = self.problems.remove(&id).is_some();
                self.inputs.remove(&id) || solved
            }
            Change::Bad(id, message) => {
                let before = self.problems.insert(id, message.clone());
                before.as_ref() != Some(&message)
            }
            Change::Addresses(key, addresses) => {
                let before = if addresses.is_empty() {
                    self.addresses.remove(&key)
                } else {
                    self.addresses.insert(key.clone(), addresses.clone())
                };
                before.unwrap_or_default() != addresses && self.inputs.gateways.contains_key(&key)
            }
        }
    }

    /// Puts an object where it belongs; true if it concerns us, or did.
    fn put(&mut self, object: Object) -> bool {
        let id = object.id();
        if self.concerns(&object) {
            self.beside.remove(&id);
            self.inputs.insert(object);
            return true;
        }
        self.beside.insert(object);
        self.inputs.remove(&id)
    }

    fn concerns(&self, object: &Object) -> bool {
        let (parents, namespace) = match object {
            Object::Gateway(gateway) => {
                let class = gateway.spec.gateway_class_name.as_str();
                return gateway_class::ours(&self.inputs).contains(class);
            }
            Object::HttpRoute(route) => (&route.spec.parent_refs, &route.metadata.namespace),
            Object::GrpcRoute(route) => (&route.spec.parent_refs, &route.metadata.namespace),
            Object::UdpRoute(route) => (&route.spec.parent_refs, &route.metadata.namespace),
            _ => return true,
        };
        referenced::parents(parents, namespace).any(|key| self.inputs.gateways.contains_key(&key))
    }

    /// Sorts the Gateways anew: classes have come or gone.
    fn sort_gateways(&mut self) -> bool {
        let ours = gateway_class::ours(&self.inputs);
        let is_ours = |gateway: &Arc<crate::translate::objects::Gateway>| {
            ours.contains(gateway.spec.gateway_class_name.as_str())
        };
        let come = self.beside.gateways.values().filter(|g| is_ours(g));
        let gone = self.inputs.gateways.values().filter(|g| !is_ours(g));
        let moved: Vec<Object> = come.chain(gone).cloned().map(Object::Gateway).collect();
        let any = !moved.is_empty();
        for object in moved {
            self.put(object);
        }
        any
    }

    /// Sorts the routes anew: Gateways have come or gone.
    fn sort_routes(&mut self) -> bool {
        let mut moved = Vec::new();
        for (side, here) in [(&self.beside, false), (&self.inputs, true)] {
            let http = side.http_routes.values().cloned().map(Object::HttpRoute);
            let grpc = side.grpc_routes.values().cloned().map(Object::GrpcRoute);
            let udp = side.udp_routes.values().cloned().map(Object::UdpRoute);
            let all = http.chain(grpc).chain(udp);
            moved.extend(all.filter(|route| self.concerns(route) != here));
        }
        let any = !moved.is_empty();
        for object in moved {
            self.put(object);
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::translate::CONTROLLER;

    const GROUP: &str = "gateway.networking.k8s.io/v1";

    fn is(value: &Value) -> Change {
        Change::Is(Box::new(
            Object::parse(value).expect("fine").expect("known"),
        ))
    }

    fn class(name: &str, controller: &str) -> Change {
        is(
            &json!({"apiVersion": GROUP, "kind": "GatewayClass", "metadata": {"name": name},
            "spec": {"controllerName": controller}}),
        )
    }

    fn gateway(class: &str) -> Change {
        is(
            &json!({"apiVersion": GROUP, "kind": "Gateway", "metadata": {"name": "g", "namespace": "a"},
            "spec": {"gatewayClassName": class}}),
        )
    }

    fn route(name: &str, gateway: &str) -> Change {
        is(
            &json!({"apiVersion": GROUP, "kind": "HTTPRoute", "metadata": {"name": name, "namespace": "a"},
            "spec": {"parentRefs": [{"name": gateway}]}}),
        )
    }

    fn gone(kind: Kind, namespace: &str, name: &str) -> Change {
        let key = ObjectKey::new(namespace, name);
        Change::Gone(ObjectId { kind, key })
    }

    fn counts(store: &Store) -> (usize, usize) {
        let inputs = store.inputs();
        (inputs.gateways.len(), inputs.http_routes.len())
    }

    #[test]
    fn objects_may_come_in_any_order() {
        let mut store = Store::default();
        assert!(!store.apply(vec![route("r", "g")]));
        assert!(!store.apply(vec![gateway("c")]));
        assert_eq!(counts(&store), (0, 0));
        assert!(store.apply(vec![class("c", CONTROLLER)]));
        assert_eq!(counts(&store), (1, 1));
        assert!(store.apply(vec![gone(Kind::GatewayClass, "", "c")]));
        assert_eq!(counts(&store), (0, 0));
        assert!(store.apply(vec![class("c", CONTROLLER)]));
        assert!(store.apply(vec![gone(Kind::Gateway, "a", "g")]));
        assert_eq!(counts(&store), (0, 0));
        assert!(store.apply(vec![gateway("c")]));
        assert_eq!(counts(&store), (1, 1));
    }

    #[test]
    fn what_is_others_concerns_nobody_here() {
        let mut store = Store::default();
        store.apply(vec![
            class("c", CONTROLLER),
            class("d", "other"),
            gateway("c"),
        ]);
        assert!(!store.apply(vec![route("r", "elsewhere")]));
        assert!(store.apply(vec![route("r", "g")]));
        // It leaves us: that is a change, and later ones are none.
        assert!(store.apply(vec![route("r", "elsewhere")]));
        assert!(!store.apply(vec![route("r", "nowhere")]));
        assert!(store.apply(vec![gateway("d")]));
        assert!(!store.apply(vec![gateway("d")]));
        assert_eq!(counts(&store), (0, 0));
    }

    #[test]
    fn what_says_the_same_again_is_no_change() {
        let mut store = Store::default();
        let edited = |class: &str, label: &str| {
            is(
                &json!({"apiVersion": GROUP, "kind": "Gateway", "metadata": {"name": "g", "namespace": "a",
                "labels": {"l": label}}, "spec": {"gatewayClassName": class, "listeners": []}}),
            )
        };
        let gateway = ObjectKey::new("a", "g");
        let addresses = |last: &str| {
            let address = format!("192.0.2.{last}").parse().unwrap();
            Change::Addresses(gateway.clone(), vec![address])
        };
        store.apply(vec![class("c", CONTROLLER), edited("c", "one")]);
        assert!(!store.apply(vec![edited("c", "one"), class("c", CONTROLLER)]));
        assert!(store.apply(vec![edited("c", "two")]));
        assert!(!store.apply(vec![edited("c", "two")]));
        assert!(store.apply(vec![addresses("1")]));
        assert!(!store.apply(vec![addresses("1")]));
        assert!(store.apply(vec![addresses("2")]));
        assert!(store.apply(vec![Change::Addresses(gateway.clone(), vec![])]));
        assert!(!store.apply(vec![Change::Addresses(gateway.clone(), vec![])]));
        // A problem that is solved is told although the object is as it was.
        let bad = Change::Bad(
            ObjectId {
                kind: Kind::Gateway,
                key: gateway,
            },
            "no".to_owned(),
        );
        assert!(store.apply(vec![bad]));
        assert!(store.apply(vec![edited("c", "two")]));
        assert!(!store.apply(vec![edited("c", "two")]));
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_was() {
        let mut store = Store::default();
        store.apply(vec![class("c", CONTROLLER), gateway("c"), route("r", "g")]);
        let id = ObjectId {
            kind: Kind::HttpRoute,
            key: ObjectKey::new("a", "r"),
        };
        assert!(store.apply(vec![Change::Bad(id.clone(), "field spec: odd".into())]));
        assert!(!store.apply(vec![Change::Bad(id, "field spec: odd".into())]));
        assert_eq!(counts(&store), (1, 1));
        let problems: Vec<String> = store.problems().iter().map(ToString::to_string).collect();
        assert_eq!(problems, ["kubernetes: HTTPRoute a/r: field spec: odd"]);
        assert!(store.apply(vec![gone(Kind::HttpRoute, "a", "r")]));
        assert!(store.problems().is_empty());
    }

    #[test]
    fn what_nobody_follows_any_more_is_gone() {
        let mut store = Store::default();
        store.apply(vec![class("c", CONTROLLER), gateway("c"), route("r", "g")]);
        store.apply(vec![route("other", "elsewhere")]);
        assert!(!store.retain(|_| true));
        assert!(!store.retain(|id| &*id.key.name != "other"));
        assert!(store.retain(|id| id.kind != Kind::Gateway));
        assert_eq!(counts(&store), (0, 0));
        store.apply(vec![gateway("c")]);
        assert_eq!(counts(&store), (1, 1));
    }
}
