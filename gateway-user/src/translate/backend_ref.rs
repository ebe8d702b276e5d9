//! backendRefs: kind, permission, Service and port, and the cluster that they lead to.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Inputs;
use super::cluster::{Clusters, carried_by};
use super::listener::Fault;
use super::objects::{BackendRef, Service, ServicePort};
use super::{reference_grant, replica};
use crate::snapshot::{AppProtocol, Backend, BackendTarget, Filters, ObjectKey, Transport};

/// A kind of routes, and what their backends must speak.
#[derive(Clone, Copy, Debug)]
pub(super) struct Referrer {
    /// As `kind` spells it.
    pub(super) kind: &'static str,
    /// Transport of the Service's port.
    pub(super) transport: Transport,
    /// Whether endpoints speak HTTP/2 where the Service's port says nothing else.
    http2: bool,
}

/// HTTPRoutes.
pub(super) const HTTP: Referrer = Referrer {
    kind: "HTTPRoute",
    transport: Transport::Tcp,
    http2: false,
};

/// GRPCRoutes.
pub(super) const GRPC: Referrer = Referrer {
    kind: "GRPCRoute",
    transport: Transport::Tcp,
    http2: true,
};

/// UDPRoutes.
pub(super) const UDP: Referrer = Referrer {
    kind: "UDPRoute",
    transport: Transport::Udp,
    http2: false,
};

/// Resolves the backendRefs of one kind of routes in one namespace, as Gateways in another see them.
pub(super) struct Resolver<'r, 'c> {
    pub(super) inputs: &'r Inputs,
    pub(super) clusters: &'c mut Clusters,
    pub(super) referrer: Referrer,
    pub(super) route_namespace: &'r str,
    pub(super) gateway_namespace: &'r str,
    /// What is wrong with those that are bad.
    pub(super) faults: Vec<Fault>,
    /// Services that they name, also those that do not exist: what is found depends on nothing else that changes often.
    pub(super) services: &'c mut BTreeSet<ObjectKey>,
}

impl Resolver<'_, '_> {
    /// Where a backendRef leads to; what is wrong with it is told in [`Self::faults`] too.
    pub(super) fn target(&mut self, backend: &BackendRef) -> BackendTarget {
        let namespaces = (self.route_namespace, self.gateway_namespace);
        let Self {
            inputs, referrer, ..
        } = *self;
        let namespace = backend.namespace.as_deref();
        let namespace = namespace.unwrap_or(self.route_namespace);
        let key = ObjectKey::new(namespace, &*backend.name);
        // What is kept of it is kept once for all.
        let known = inputs.services.get_key_value(&key);
        let key = known.map_or(key, |(known, _)| known.clone());
        self.services.insert(key.clone());
        match resolve(inputs, self.clusters, referrer, namespaces, (key, backend)) {
            Ok(cluster) => BackendTarget::Cluster(cluster),
            Err(fault) => {
                let target = BackendTarget::Invalid(fault.1.as_str().into());
                self.faults.push(fault);
                target
            }
        }
    }

    /// Whether the kind of routes implies that endpoints speak HTTP/2.
    pub(super) fn http2(&self) -> bool {
        self.referrer.http2
    }

    /// A backend of a rule; a bad one keeps its share.
    pub(super) fn backend(&mut self, spec: &BackendRef, filters: Option<Arc<Filters>>) -> Backend {
        Backend {
            weight: spec.weight.unwrap_or(1),
            target: self.target(spec),
            filters,
            http2: self.http2(),
        }
    }
}

/// Finds the cluster of a backendRef, as a Gateway in the second namespace sees it; gives its position among `clusters`.
fn resolve(
    inputs: &Inputs,
    clusters: &mut Clusters,
    referrer: Referrer,
    (route_namespace, gateway_namespace): (&str, &str),
    (key, backend): (ObjectKey, &BackendRef),
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
    // Permission first: without it not even the existence of the Service may show.
    let from = (referrer.kind, route_namespace);
    if !reference_grant::permits(inputs, from, ("Service", &key)) {
        let message = format!(
            "Service {key} is in another namespace and no ReferenceGrant there admits {}s of namespace {route_namespace}",
            referrer.kind
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
    if *service.spec.kind == *"ExternalName" {
        let message = format!("Service {key} is of type ExternalName, which cannot be a backend");
        return Err(("InvalidKind", message));
    }
    let port = service_port(service, &key, referrer, backend.port)?;
    clusters.intern(gateway_namespace, &key, port, referrer.transport)
}

/// What is spoken on the port must be a form of HTTP over TCP, or anything over UDP.
fn service_port<'a>(
    service: &'a Service,
    key: &ObjectKey,
    referrer: Referrer,
    number: Option<u16>,
) -> Result<&'a ServicePort, Fault> {
    let Some(number) = number else {
        let message = format!("backendRef to Service {key} names no port");
        return Err(("BackendNotFound", message));
    };
    let ports = service.spec.ports.iter();
    let mut with_number = ports.filter(|port| port.port == number).peekable();
    let Some(&first) = with_number.peek() else {
        let message = format!("Service {key} has no port {number}");
        return Err(("BackendNotFound", message));
    };
    let Some(port) = with_number.find(|port| carried_by(&port.protocol, referrer.transport)) else {
        let own = match &*first.protocol {
            "" => "TCP",
            protocol => protocol,
        };
        let need = match referrer.transport {
            Transport::Tcp => "HTTP needs TCP",
            Transport::Udp => "a UDPRoute needs UDP",
        };
        let message = format!("port {number} of Service {key} is {own}, {need}");
        return Err(("UnsupportedProtocol", message));
    };
    if referrer.transport == Transport::Udp || app_protocol(port).is_some() {
        return Ok(port);
    }
    let message = format!(
        "appProtocol {} of port {number} of Service {key} is not supported, use http, https, grpc, kubernetes.io/h2c, kubernetes.io/ws or kubernetes.io/wss",
        port.app_protocol.as_deref().unwrap_or("")
    );
    Err(("UnsupportedProtocol", message))
}

/// What a port's `appProtocol` says; nothing if it says something that the proxy does not speak.
///
/// Kubernetes' names are those of KEP-3726; `tcp` and `grpc` are widely written.
pub(super) fn app_protocol(port: &ServicePort) -> Option<AppProtocol> {
    Some(match port.app_protocol.as_deref().unwrap_or("") {
        "" | "tcp" => AppProtocol::Unset,
        "http" | "kubernetes.io/ws" => AppProtocol::Http1,
        "kubernetes.io/h2c" | "grpc" => AppProtocol::Http2,
        "https" => AppProtocol::Https,
        "kubernetes.io/wss" => AppProtocol::Wss,
        _ => return None,
    })
}
