//! backendRefs: kind, permission, Service and port, and the cluster that they lead to.

use super::Inputs;
use super::cluster::Clusters;
use super::listener::{Fault, GROUP};
use super::objects::{BackendRef, Service, ServicePort};
use super::replica;
use crate::snapshot::{ObjectKey, Transport};

/// Finds the cluster of a backendRef, as a Gateway in `gateway_namespace` sees it; gives its position among `clusters`.
pub(super) fn resolve<'a>(
    inputs: &'a Inputs,
    clusters: &mut Clusters<'a>,
    route_namespace: &str,
    gateway_namespace: &str,
    backend: &BackendRef,
) -> Result<u32, Fault> {
    let (group, kind) = (
        backend.group.as_deref().unwrap_or(""),
        backend.kind.as_deref().unwrap_or("Service"),
    );
    if (group, kind) != ("", "Service") {
        let shown = if group.is_empty() { "core" } else { group };
        let message = format!("kind {kind} of group {shown} cannot be a backend, use Service");
        return Err(("InvalidKind", message));
    }
    let namespace = backend.namespace.as_deref().unwrap_or(route_namespace);
    let key = ObjectKey::new(namespace, backend.name.as_str());
    // Permission first: without it not even the existence of the Service may show.
    if namespace != route_namespace && !granted(inputs, route_namespace, &key) {
        let message = format!(
            "Service {key} is in another namespace and no ReferenceGrant there admits HTTPRoutes of namespace {route_namespace}"
        );
        return Err(("RefNotPermitted", message));
    }
    if key == replica::service() {
        let message = format!("Service {key} is Forebay itself and cannot be a backend");
        return Err(("RefNotPermitted", message));
    }
    let Some(service) = inputs.services.get(&key) else {
        return Err(("BackendNotFound", format!("Service {key} does not exist")));
    };
    if service.spec.kind == "ExternalName" {
        let message = format!("Service {key} is of type ExternalName, which cannot be a backend");
        return Err(("InvalidKind", message));
    }
    let port = service_port(service, &key, backend.port)?;
    clusters.intern(gateway_namespace, &key, port, Transport::Tcp)
}

/// What is spoken on the port must be HTTP/1.1 in clear text.
fn service_port<'a>(
    service: &'a Service,
    key: &ObjectKey,
    number: Option<u16>,
) -> Result<&'a ServicePort, Fault> {
    let Some(number) = number else {
        let message = format!("backendRef to Service {key} names no port");
        return Err(("BackendNotFound", message));
    };
    let Some(port) = service.spec.ports.iter().find(|port| port.port == number) else {
        let message = format!("Service {key} has no port {number}");
        return Err(("BackendNotFound", message));
    };
    if !matches!(port.protocol.as_str(), "" | "TCP") {
        let message = format!(
            "port {number} of Service {key} is {}, HTTP needs TCP",
            port.protocol
        );
        return Err(("UnsupportedProtocol", message));
    }
    match port.app_protocol.as_deref().unwrap_or("") {
        "" | "http" | "tcp" => Ok(port),
        other => {
            let message = format!(
                "appProtocol {other} of port {number} of Service {key} is not supported, only http is"
            );
            Err(("UnsupportedProtocol", message))
        }
    }
}

fn granted(inputs: &Inputs, route_namespace: &str, service: &ObjectKey) -> bool {
    let first = ObjectKey::new(service.namespace.clone(), "");
    inputs
        .reference_grants
        .range(first..)
        .take_while(|(key, _)| key.namespace == service.namespace)
        .any(|(_, grant)| {
            grant.spec.from.iter().any(|from| {
                from.group == GROUP && from.kind == "HTTPRoute" && from.namespace == route_namespace
            }) && grant.spec.to.iter().any(|to| {
                let name = to.name.as_deref().filter(|name| !name.is_empty());
                to.group.is_empty()
                    && to.kind == "Service"
                    && name.is_none_or(|name| *name == *service.name)
            })
        })
}
