//! What users are told: the conditions of translate, corrected by what the nodes report.
//!
//! Pure, and the end of the flow: nothing here goes back into translate. `lastTransitionTime` is added by the writer.

pub mod agreement;
pub mod patch;
pub mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use crate::snapshot::{BindKey, Generation, ObjectKey, Transport};
use crate::translate::condition::{
    ClassStatus, GatewayStatus, PolicyStatus, RouteStatus, UNSUPPORTED_FIELDS, sentences,
};
use crate::translate::{Condition, Kind, Translation, Truth};

/// What one node says about the configuration that it serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Name of the node.
    pub node: String,
    /// Snapshot that it serves.
    pub generation: Generation,
    /// Sockets that it could not open, each with the reason as a sentence.
    pub failed_listeners: Vec<(BindKey, String)>,
    /// Sockets that some node has not said yet that it has opened them; see [`agreement`].
    pub pending_listeners: BTreeSet<BindKey>,
}

/// The status of one object, in Kubernetes' shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// Group and version under which the status is written.
    pub api_version: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for cluster-scoped kinds.
    #[serde(skip_serializing_if = "is_empty")]
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Its `status`.
    pub status: Status,
}

/// `status` by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Status {
    /// Gateway.
    Gateway(GatewayStatus),
    /// HTTPRoute, GRPCRoute, UDPRoute.
    Route(Arc<RouteStatus>),
    /// TrafficPolicy.
    Policy(PolicyStatus),
    /// GatewayClass, DestinationRule, AddressPool, and objects that are only warned about.
    Plain(Arc<ClassStatus>),
}

impl ObjectStatus {
    /// All conditions of the object and of its parts.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        let parts: Vec<&[Condition]> = match &self.status {
            Status::Gateway(status) => {
                let listeners = status.listeners.iter().map(|l| &l.conditions[..]);
                std::iter::once(&status.conditions[..])
                    .chain(listeners)
                    .collect()
            }
            Status::Route(status) => status.parents.iter().map(|p| &p.conditions[..]).collect(),
            Status::Policy(status) => status.ancestors.iter().map(|a| &a.conditions[..]).collect(),
            Status::Plain(status) => vec![&status.conditions[..]],
        };
        parts.into_iter().flatten()
    }

    /// Whether all that the object asks for is carried out. A DestinationRule that nothing uses is well.
    #[must_use]
    pub fn well(&self) -> bool {
        self.conditions().all(|condition| match condition.kind {
            // A remark: everything is served.
            "forebay.dev/EjectionPossible" | "OverlappingTLSConfig" => true,
            "Accepted" if condition.reason == "ListenersNotValid" => false,
            kind => is_good(kind, condition.status == Truth::True, condition.reason),
        })
    }
}

/// Whether a condition that `holds`, or does not, says that its part is as it should be.
fn is_good(kind: &str, holds: bool, reason: &str) -> bool {
    match kind {
        "PartiallyInvalid" | "Conflicted" | UNSUPPORTED_FIELDS => !holds,
        "forebay.dev/Applied" => !matches!(reason, "Invalid" | "UnsupportedValue" | "HostNotFound"),
        _ => holds,
    }
}

/// Whether every object is well: the exit code of `forebay status`.
#[must_use]
pub fn well(statuses: &[ObjectStatus]) -> bool {
    statuses.iter().all(ObjectStatus::well)
}

/// The statuses of all objects that Forebay judges, ordered by kind and key.
///
/// A socket that a node could not open turns `Programmed` of its listeners to False, and of the Gateway if none is left.
/// So does one that is pending, of the Gateway at once: it is promised to be served everywhere.
#[must_use]
pub fn merge(translation: &Translation, reports: &[Report]) -> Vec<ObjectStatus> {
    let conditions = &translation.conditions;
    let failures = failures(translation, reports);
    let waiting = waiting(translation, reports);
    let mut statuses = Vec::new();
    let mut push = |kind: Kind, key: &ObjectKey, status: Status| {
        statuses.push(ObjectStatus {
            api_version: kind.api_version(),
            kind,
            namespace: Arc::clone(&key.namespace),
            name: Arc::clone(&key.name),
            status,
        });
    };
    let plain = |status: &ClassStatus| Status::Plain(Arc::new(status.clone()));
    for (key, status) in &conditions.gateway_classes {
        push(Kind::GatewayClass, key, plain(status));
    }
    for (key, status) in &conditions.gateways {
        let mut status = status.clone();
        if let Some(ports) = failures.get(key) {
            fail_listeners(&mut status, ports);
        }
        if let Some(ports) = waiting.get(key) {
            hold_listeners(&mut status, ports);
        }
        push(Kind::Gateway, key, Status::Gateway(status));
    }
    let route = |status: &Arc<RouteStatus>| Status::Route(Arc::clone(status));
    for (key, status) in &*conditions.http_routes {
        push(Kind::HttpRoute, key, route(status));
    }
    for (key, status) in &*conditions.grpc_routes {
        push(Kind::GrpcRoute, key, route(status));
    }
    for (key, status) in &*conditions.udp_routes {
        push(Kind::UdpRoute, key, route(status));
    }
    for (id, messages) in &conditions.warnings {
        let condition = Condition::no("forebay.dev/Usable", "Invalid", sentences(messages));
        push(id.kind, &id.key, plain(&vec![condition].into()));
    }
    for (key, status) in &*conditions.destination_rules {
        let status = Status::Plain(Arc::clone(status));
        push(Kind::DestinationRule, key, status);
    }
    for (key, status) in &conditions.traffic_policies {
        push(Kind::TrafficPolicy, key, Status::Policy(status.clone()));
    }
    for (key, status) in &conditions.address_pools {
        push(Kind::AddressPool, key, plain(status));
    }
    statuses.shrink_to_fit();
    statuses.sort_by(|a, b| (a.kind, &a.namespace, &a.name).cmp(&(b.kind, &b.namespace, &b.name)));
    statuses
}

fn is_empty(text: &Arc<str>) -> bool {
    text.is_empty()
}

/// A port of a Gateway.
type Port = (u16, Transport);

/// Messages by Gateway and port. A report that names a socket which no Gateway has any more is late and says nothing.
fn failures(
    translation: &Translation,
    reports: &[Report],
) -> BTreeMap<ObjectKey, BTreeMap<Port, Vec<String>>> {
    let mut failures: BTreeMap<ObjectKey, BTreeMap<Port, Vec<String>>> = BTreeMap::new();
    for report in reports {
        for (key, message) in &report.failed_listeners {
            if let Some(bind) = translation.snapshot.binds.get(key) {
                let ports = failures.entry(bind.gateway.clone()).or_default();
                let message = format!("{key} on node {}: {message}", report.node);
                let port = (key.port, key.transport);
                ports.entry(port).or_default().push(message);
            }
        }
    }
    failures
}

fn fail_listeners(status: &mut GatewayStatus, ports: &BTreeMap<Port, Vec<String>>) {
    let mut failed = Vec::new();
    for listener in &mut status.listeners {
        let Some(messages) = ports.get(&(listener.port, listener.transport)) else {
            continue;
        };
        if set_not_programmed(&mut listener.conditions, &sentences(messages)) {
            failed.push(listener.name.clone());
        }
    }
    let programmed = |c: &Condition| c.kind == "Programmed" && c.status == Truth::True;
    let none_left = !status
        .listeners
        .iter()
        .any(|l| l.conditions.iter().any(programmed));
    if none_left && !failed.is_empty() {
        let message = format!("no listener could be opened: {}", failed.join(", "));
        set_not_programmed(&mut status.conditions, &message);
    }
}

/// Listeners that are to be served soon, by Gateway.
fn waiting(translation: &Translation, reports: &[Report]) -> BTreeMap<ObjectKey, BTreeSet<Port>> {
    let mut waiting: BTreeMap<ObjectKey, BTreeSet<Port>> = BTreeMap::new();
    for key in reports.iter().flat_map(|report| &report.pending_listeners) {
        if let Some(bind) = translation.snapshot.binds.get(key) {
            let ports = waiting.entry(bind.gateway.clone()).or_default();
            ports.insert((key.port, key.transport));
        }
    }
    waiting
}

/// A Gateway of which a part is not served everywhere is not programmed yet as a whole.
fn hold_listeners(status: &mut GatewayStatus, ports: &BTreeSet<Port>) {
    const WHY: &str = "not all nodes have said yet that they serve it";
    for listener in &mut status.listeners {
        if ports.contains(&(listener.port, listener.transport)) {
            set_unprogrammed(&mut listener.conditions, "Pending", WHY);
        }
    }
    set_unprogrammed(&mut status.conditions, "Pending", WHY);
}

fn set_not_programmed(conditions: &mut [Condition], message: &str) -> bool {
    set_unprogrammed(conditions, "Invalid", message)
}

fn set_unprogrammed(conditions: &mut [Condition], reason: &'static str, message: &str) -> bool {
    let programmed = conditions
        .iter_mut()
        .find(|c| c.kind == "Programmed" && c.status == Truth::True);
    if let Some(condition) = programmed {
        let generation = condition.observed_generation;
        *condition = Condition::no("Programmed", reason, message).at(generation);
        true
    } else {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(conditions: Vec<Condition>) -> ObjectStatus {
        ObjectStatus {
            api_version: Kind::Gateway.api_version(),
            kind: Kind::Gateway,
            namespace: "a".into(),
            name: "b".into(),
            status: Status::Plain(Arc::new(conditions.into())),
        }
    }

    #[test]
    fn well_means_that_all_that_is_asked_for_is_carried_out() {
        for (condition, want) in [
            (Condition::yes("Accepted", "Accepted", ""), true),
            (Condition::no("Accepted", "Invalid", ""), false),
            (Condition::unknown("Accepted", "Pending", ""), false),
            (Condition::yes("Accepted", "ListenersNotValid", ""), false),
            (Condition::no("Programmed", "AddressNotAssigned", ""), false),
            (Condition::no("ResolvedRefs", "BackendNotFound", ""), false),
            (
                Condition::yes("PartiallyInvalid", "UnsupportedValue", ""),
                false,
            ),
            (Condition::no("Conflicted", "NoConflicts", ""), true),
            (Condition::yes("Conflicted", "HostnameConflict", ""), false),
            (
                Condition::yes("OverlappingTLSConfig", "OverlappingHostnames", ""),
                true,
            ),
            (
                Condition::yes(UNSUPPORTED_FIELDS, "UnsupportedValue", ""),
                false,
            ),
            (
                Condition::no("forebay.dev/Applied", "NotReferenced", ""),
                true,
            ),
            (Condition::no("forebay.dev/Applied", "Shadowed", ""), true),
            (Condition::no("forebay.dev/Applied", "Invalid", ""), false),
            (
                Condition::no("forebay.dev/Applied", "HostNotFound", ""),
                false,
            ),
            (
                Condition::no(
                    "forebay.dev/EjectionPossible",
                    "MaxEjectionPercentTooLow",
                    "",
                ),
                true,
            ),
        ] {
            let shown = format!("{condition:?}");
            let statuses = [status(vec![condition])];
            assert_eq!(well(&statuses), want, "{shown}");
        }
        assert!(well(&[]));
    }

    #[test]
    fn a_status_has_the_shape_that_kubernetes_expects() {
        let condition = Condition::yes("Accepted", "Accepted", "fine").at(3);
        let json = serde_json::to_value(status(vec![condition])).expect("JSON");
        assert_eq!(
            json,
            serde_json::json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "namespace": "a", "name": "b",
                "status": {"conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted",
                    "message": "fine", "observedGeneration": 3}]},
            })
        );
    }
}
