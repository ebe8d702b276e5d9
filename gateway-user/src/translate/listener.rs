//! Listeners of one Gateway: what is supported, what clashes, which routes may attach.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Inputs;
use super::condition::{Condition, ListenerStatus, SupportedKind};
use super::listener_routes::ListenerRoutes;
use super::namespace;
use super::objects::{Gateway, LabelSelector, ListenerSpec, RouteGroupKind};
use super::tls::{self, Tls};
use crate::snapshot::{
    Hostname, Listener as SnapshotListener, ListenerTls, ObjectKey, Protocol, Transport,
};

/// Gateway API's group.
pub(super) const GROUP: &str = "gateway.networking.k8s.io";

/// HTTPRoute.
pub(super) const HTTP_ROUTE: SupportedKind = SupportedKind {
    group: GROUP,
    kind: "HTTPRoute",
};

/// GRPCRoute.
pub(super) const GRPC_ROUTE: SupportedKind = SupportedKind {
    group: GROUP,
    kind: "GRPCRoute",
};

/// UDPRoute.
pub(super) const UDP_ROUTE: SupportedKind = SupportedKind {
    group: GROUP,
    kind: "UDPRoute",
};

/// Why something is not as it should be: a CamelCase reason and a sentence.
pub(super) type Fault = (&'static str, String);

/// One listener with the routes that attach to it.
pub(super) struct Listener {
    pub(super) spec: ListenerSpec,
    pub(super) hostname: Option<Hostname>,
    fault: Option<Fault>,
    conflict: Option<Fault>,
    kinds: Vec<SupportedKind>,
    bad_kinds: Vec<String>,
    allowed: Allowed,
    /// TLS, if its protocol has it and nothing of it is at fault.
    pub(super) tls: Option<Tls>,
    /// The condition OverlappingTLSConfig, if it has it.
    overlap: Option<Condition>,
    /// What follows from the routes.
    pub(super) routes: ListenerRoutes,
    /// As it was last made for a snapshot.
    made: Option<Arc<SnapshotListener>>,
}

/// The rule of a route without matches, which takes all traffic of its listener; the least one wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FirstRule {
    /// `creationTimestamp` of the route; empty if it has none.
    pub(super) created: Box<str>,
    /// The route.
    pub(super) route: ObjectKey,
    /// Place in the snapshot's rules.
    pub(super) rule: u32,
}

enum Allowed {
    Same,
    All,
    Selector(LabelSelector),
    Nobody,
}

/// Reads the listeners of a Gateway.
pub(super) fn read(inputs: &Inputs, gateway: &Gateway) -> Vec<Listener> {
    let mut names = BTreeSet::new();
    let mut listeners: Vec<Listener> = gateway
        .spec
        .listeners
        .iter()
        .map(|spec| {
            let first = names.insert(spec.name.as_str());
            Listener::read(spec, first)
        })
        .collect();
    mark_conflicts(&mut listeners);
    let frontend = gateway.spec.tls.as_ref();
    let asks_clients = frontend.is_some_and(|tls| tls.frontend.is_some());
    for listener in listeners.iter_mut().filter(|l| l.spec.protocol == "HTTPS") {
        listener.read_tls(inputs, &gateway.metadata.namespace, asks_clients);
    }
    for (at, condition) in tls::overlaps(&listeners) {
        listeners[at].overlap = Some(condition);
    }
    listeners
}

impl Listener {
    fn read(spec: &ListenerSpec, first_of_its_name: bool) -> Self {
        let mut fault = None;
        let mut note = |reason, message: String| {
            fault.get_or_insert((reason, message));
        };
        let route_kinds = route_kinds(&spec.protocol);
        if let Some((reason, message)) = protocol_fault(spec, route_kinds) {
            note(reason, message);
        }
        if spec.name.is_empty() || !first_of_its_name {
            note(
                "UnsupportedValue",
                "every listener needs a name of its own".to_owned(),
            );
        }
        if spec.port == 0 {
            note("UnsupportedValue", "port must be 1 to 65535".to_owned());
        }
        let hostname = match spec.hostname.as_str() {
            "" => None,
            text => {
                let hostname = Hostname::parse(text);
                if hostname.is_none() {
                    let message = format!("hostname {text:?} is not a DNS name or *. and one");
                    note("UnsupportedValue", message);
                }
                hostname
            }
        };
        let allowed = match read_allowed(spec) {
            Ok(allowed) => allowed,
            Err(message) => {
                note("UnsupportedValue", message);
                Allowed::Nobody
            }
        };
        let (kinds, bad_kinds) = match route_kinds {
            [] => (Vec::new(), Vec::new()),
            own => read_kinds(spec, own),
        };
        Self {
            spec: spec.clone(),
            hostname,
            fault,
            conflict: None,
            kinds,
            bad_kinds,
            allowed,
            tls: None,
            overlap: None,
            routes: ListenerRoutes::default(),
            made: None,
        }
    }

    /// Reads its certificates; `asks_clients` says that clients shall be asked for theirs.
    fn read_tls(&mut self, inputs: &Inputs, namespace: &str, asks_clients: bool) {
        if asks_clients {
            let message = "spec.tls.frontend of the Gateway is not supported, and clients are not admitted without the certificate that it asks for";
            let fault = ("UnsupportedValue", message.to_owned());
            self.fault.get_or_insert(fault);
        }
        let none = super::objects::ListenerTlsSpec::default();
        let spec = self.spec.tls.as_ref().unwrap_or(&none);
        self.tls = Some(Tls::read(inputs, namespace, spec));
    }

    /// Whether it is configured well enough to be counted as accepted.
    pub(super) fn accepted(&self) -> bool {
        self.fault.is_none() && self.conflict.is_none()
    }

    /// Whether its references hold.
    pub(super) fn resolved(&self) -> bool {
        self.bad_kinds.is_empty() && self.tls.as_ref().is_none_or(|tls| tls.faults.is_empty())
    }

    /// Whether it can be served.
    pub(super) fn serves(&self) -> bool {
        self.may_serve() && self.tls.as_ref().is_none_or(Tls::serves)
    }

    /// Whether a node may have what it takes to serve it, and shall then: see [`Tls::may_serve`].
    pub(super) fn may_serve(&self) -> bool {
        let has_routes = self.accepted() && !self.kinds.is_empty();
        has_routes && self.tls.as_ref().is_none_or(Tls::may_serve)
    }

    /// What is spoken on it.
    pub(super) fn protocol(&self) -> Protocol {
        match self.spec.protocol.as_str() {
            "HTTPS" => Protocol::Https,
            "UDP" => Protocol::Udp,
            _ => Protocol::Http,
        }
    }

    /// Its TLS, as the snapshot has it.
    fn tls_for_snapshot(&self) -> Option<Arc<ListenerTls>> {
        self.tls.as_ref().map(Tls::for_snapshot)
    }

    /// What carries its protocol.
    pub(super) fn transport(&self) -> Transport {
        transport(&self.spec.protocol)
    }

    /// Whether routes of this kind and namespace may attach.
    pub(super) fn allows(
        &self,
        inputs: &Inputs,
        gateway: &ObjectKey,
        kind: SupportedKind,
        route: &ObjectKey,
    ) -> bool {
        self.kinds.contains(&kind)
            && match &self.allowed {
                Allowed::Same => route.namespace == gateway.namespace,
                Allowed::All => true,
                Allowed::Selector(selector) => {
                    selector.matches(&namespace::labels(inputs, &route.namespace))
                }
                Allowed::Nobody => false,
            }
    }

    /// The listener as snapshots have it: the last one, unless something of it has changed.
    pub(super) fn for_snapshot(&mut self, gateway: &ObjectKey) -> Arc<SnapshotListener> {
        let changed = self.routes.settle();
        if let Some(made) = self.made.as_ref().filter(|_| !changed) {
            return Arc::clone(made);
        }
        let made = Arc::new(SnapshotListener {
            gateway: gateway.clone(),
            name: self.spec.name.as_str().into(),
            hostname: self.hostname.clone(),
            tls: self.tls_for_snapshot(),
            router: self.routes.router().clone(),
            rule: self.routes.first(),
        });
        self.made = Some(Arc::clone(&made));
        made
    }

    /// Its status; `served` is false if the Gateway as a whole cannot be programmed.
    pub(super) fn status(&self, generation: i64, served: Result<(), &str>) -> ListenerStatus {
        let accepted = match self.fault.as_ref().or(self.conflict.as_ref()) {
            None => Condition::yes("Accepted", "Accepted", "the listener is valid"),
            Some((reason, message)) => Condition::no("Accepted", reason, message.clone()),
        };
        let programmed = match (self.serves(), served) {
            (true, Ok(())) => Condition::yes("Programmed", "Programmed", "the listener is served"),
            (true, Err(why)) => Condition::no("Programmed", "Pending", why),
            (false, _) => {
                let message = if self.may_serve() {
                    "no certificate of the listener can be used; a node goes on with what it has of the same Secrets"
                } else {
                    "the listener is not valid and therefore not served"
                };
                Condition::no("Programmed", "Invalid", message)
            }
        };
        let conflicted = match &self.conflict {
            None => Condition::no("Conflicted", "NoConflicts", "no other listener clashes"),
            Some((reason, message)) => Condition::yes("Conflicted", reason, message.clone()),
        };
        ListenerStatus {
            name: self.spec.name.clone(),
            supported_kinds: self.kinds.clone(),
            attached_routes: self.routes.attached(),
            conditions: [accepted, programmed, self.resolved_refs(), conflicted]
                .into_iter()
                .chain(self.overlap.clone())
                .map(|condition| condition.at(generation))
                .collect(),
            port: self.spec.port,
            transport: self.transport(),
        }
    }

    fn resolved_refs(&self) -> Condition {
        let mut faults = Vec::new();
        if !self.bad_kinds.is_empty() {
            let message = format!(
                "allowedRoutes names kinds that cannot attach here: {}",
                super::condition::list(&self.bad_kinds)
            );
            faults.push(("InvalidRouteKinds", message));
        }
        faults.extend(self.tls.iter().flat_map(|tls| tls.faults.iter().cloned()));
        let Some((reason, _)) = faults.first() else {
            return Condition::yes("ResolvedRefs", "ResolvedRefs", "all references are valid");
        };
        let messages: Vec<String> = faults.iter().map(|fault| fault.1.clone()).collect();
        let message = super::condition::sentences(&messages);
        Condition::no("ResolvedRefs", reason, message)
    }
}

/// The kinds of routes that a listener of this protocol takes; none: the protocol is not served.
fn route_kinds(protocol: &str) -> &'static [SupportedKind] {
    match protocol {
        "HTTP" | "HTTPS" => &[HTTP_ROUTE, GRPC_ROUTE],
        "UDP" => &[UDP_ROUTE],
        _ => &[],
    }
}

/// What of a listener its protocol forbids.
fn protocol_fault(spec: &ListenerSpec, route_kinds: &[SupportedKind]) -> Option<Fault> {
    let protocol = spec.protocol.as_str();
    if route_kinds.is_empty() {
        let message = format!("protocol {protocol:?} is not supported, use HTTP, HTTPS or UDP");
        return Some(("UnsupportedProtocol", message));
    }
    let hostname = protocol == "UDP" && !spec.hostname.is_empty();
    let field = spec.unread.keys().next().map(String::as_str);
    let Some(field) = field.or(hostname.then_some("hostname")) else {
        return tls::fault(spec);
    };
    let article = if protocol == "UDP" { "a" } else { "an" };
    let message = format!("field {field} is not supported on {article} {protocol} listener");
    Some(("UnsupportedValue", message))
}

fn transport(protocol: &str) -> Transport {
    match protocol {
        "UDP" => Transport::Udp,
        _ => Transport::Tcp,
    }
}

fn read_allowed(spec: &ListenerSpec) -> Result<Allowed, String> {
    let namespaces = &spec.allowed_routes.namespaces;
    match namespaces.from.as_deref().unwrap_or("Same") {
        "Same" => Ok(Allowed::Same),
        "All" => Ok(Allowed::All),
        "Selector" => {
            let selector = namespaces.selector.as_ref().ok_or(
                "allowedRoutes.namespaces.from is Selector, but there is no selector beside it",
            )?;
            match selector.bad_operator() {
                None => Ok(Allowed::Selector(selector.clone())),
                Some(operator) => Err(format!(
                    "allowedRoutes.namespaces.selector has the unknown operator {operator:?}"
                )),
            }
        }
        other => Err(format!(
            "allowedRoutes.namespaces.from {other:?} is not supported, use Same, All or Selector"
        )),
    }
}

/// Kinds that may attach, and those that are asked for but cannot.
fn read_kinds(spec: &ListenerSpec, own: &[SupportedKind]) -> (Vec<SupportedKind>, Vec<String>) {
    let asked = &spec.allowed_routes.kinds;
    if asked.is_empty() {
        return (own.to_vec(), Vec::new());
    }
    let means = |asked: &RouteGroupKind, kind: &SupportedKind| {
        asked.group.as_deref().unwrap_or(GROUP) == kind.group && asked.kind == kind.kind
    };
    let good = own
        .iter()
        .filter(|kind| asked.iter().any(|a| means(a, kind)));
    let bad = asked
        .iter()
        .filter(|a| !own.iter().any(|kind| means(a, kind)));
    let bad = bad.map(|a| format!("{}/{}", a.group.as_deref().unwrap_or(GROUP), a.kind));
    (good.copied().collect(), bad.collect())
}

/// How a protocol shares a port: equal families can be told apart by hostname, different ones cannot share.
fn family(protocol: &str) -> Option<&'static str> {
    match protocol {
        "HTTP" => Some("HTTP"),
        "HTTPS" | "TLS" => Some("TLS"),
        "TCP" => Some("TCP"),
        "UDP" => Some("UDP"),
        // A vendor's protocol is refused anyway.
        _ => None,
    }
}

/// Inside one Gateway all listeners of a clash lose.
fn mark_conflicts(listeners: &mut [Listener]) {
    // TCP and UDP have ports of their own.
    let mut ports: BTreeMap<(u16, Transport), Vec<usize>> = BTreeMap::new();
    for (at, listener) in listeners.iter().enumerate() {
        if family(&listener.spec.protocol).is_some() {
            let port = (listener.spec.port, listener.transport());
            ports.entry(port).or_default().push(at);
        }
    }
    for ((port, _), members) in ports {
        let families: BTreeSet<_> = members
            .iter()
            .map(|&at| family(&listeners[at].spec.protocol))
            .collect();
        // Without hostnames nothing tells two listeners apart.
        let without_hosts = [Some("TCP"), Some("UDP")];
        let several = members.len() > 1 && families.iter().any(|f| without_hosts.contains(f));
        if families.len() > 1 || several {
            for at in members {
                listeners[at].conflict = Some((
                    "ProtocolConflict",
                    format!("other listeners use port {port} with a protocol that cannot share it"),
                ));
            }
            continue;
        }
        let mut hosts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for at in members {
            let host = listeners[at].spec.hostname.to_ascii_lowercase();
            hosts.entry(host).or_default().push(at);
        }
        for (host, same) in hosts.into_iter().filter(|(_, same)| same.len() > 1) {
            for at in same {
                let shown = if host.is_empty() { "no" } else { &host };
                listeners[at].conflict = Some((
                    "HostnameConflict",
                    format!("several listeners use port {port} with {shown} hostname"),
                ));
            }
        }
    }
}
