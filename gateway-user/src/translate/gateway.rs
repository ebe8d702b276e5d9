//! Gateways: which are ours, what addresses they have, what their status says, and the sockets they need.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::condition::{AddressStatus, Condition, GatewayStatus, SupportedKind, list};
use super::l4_policy::Policies;
use super::listener::{self, Fault, Listener};
use super::objects::{self, ParentRef};
use super::{Context, Inputs, gateway_class};
use crate::allocate::{Allocation, Problem};
use crate::snapshot::{
    Bind, BindKey, Listener as SnapshotListener, ObjectKey, Protocol, Transport,
};

/// The port on which every address answers `GET /healthz/ready` by itself.
pub const READY_PORT: u16 = 15021;

/// One Gateway of ours with the routes that attach to it.
pub(super) struct Gateway {
    pub(super) key: ObjectKey,
    pub(super) listeners: Vec<Listener>,
    object: Arc<objects::Gateway>,
    fault: Option<Fault>,
    allocation: Allocation,
    /// Whether routes came or went, or it was read anew, since binds and status were last made.
    pub(super) changed: bool,
    /// Binds as they were last made.
    made: Vec<Arc<Bind>>,
}

/// Our Gateways by key.
pub(super) type Gateways = BTreeMap<ObjectKey, Gateway>;

/// What is spoken on a port, and its listeners.
type Port = (Protocol, Vec<Arc<SnapshotListener>>);

/// Reads all Gateways of our classes.
pub(super) fn read(inputs: &Inputs, context: &Context<'_>) -> Gateways {
    let classes = gateway_class::ours(inputs);
    inputs
        .gateways
        .iter()
        .filter(|(_, object)| classes.contains(object.spec.gateway_class_name.as_str()))
        .map(|(key, object)| {
            let allocation = context.allocations.gateways.get(key).cloned();
            (key.clone(), Gateway::read(inputs, key, object, allocation))
        })
        .collect()
}

impl Gateway {
    /// The listeners, with their places, that a parentRef means and that admit routes of this kind and namespace.
    ///
    /// # Errors
    /// None is meant, or none admits the route.
    pub(super) fn admitting(
        &self,
        inputs: &Inputs,
        parent: &ParentRef,
        kind: SupportedKind,
        route: &ObjectKey,
    ) -> Result<Vec<(usize, &Listener)>, Fault> {
        let name = parent.section_name.as_deref().unwrap_or("");
        let mut found: Vec<(usize, &Listener)> = self
            .listeners
            .iter()
            .enumerate()
            .filter(|(_, listener)| {
                (name.is_empty() || listener.spec.name == name)
                    && parent.port.is_none_or(|port| listener.spec.port == port)
            })
            .collect();
        if found.is_empty() {
            let message = format!(
                "Gateway {} has no listener with the sectionName and port of the parentRef",
                self.key
            );
            return Err(("NoMatchingParent", message));
        }
        found.retain(|(_, listener)| listener.allows(inputs, &self.key, kind, route));
        if found.is_empty() {
            let message = format!(
                "no listener of Gateway {} admits {}s of namespace {}",
                self.key, kind.kind, route.namespace
            );
            return Err(("NotAllowedByListeners", message));
        }
        Ok(found)
    }

    fn read(
        inputs: &Inputs,
        key: &ObjectKey,
        object: &Arc<objects::Gateway>,
        allocation: Option<Allocation>,
    ) -> Self {
        let allocation = allocation.unwrap_or_else(|| Allocation {
            addresses: Vec::new(),
            problem: Some(Problem::AddressNotAssigned(
                "waiting for an address".to_owned(),
            )),
        });
        let listeners = listener::read(inputs, object);
        let mut gateway = Self {
            key: key.clone(),
            listeners,
            object: Arc::clone(object),
            fault: None,
            allocation,
            changed: true,
            made: Vec::new(),
        };
        gateway.fault = gateway.find_fault();
        gateway
    }

    fn find_fault(&self) -> Option<Fault> {
        let infrastructure = self.object.spec.infrastructure.as_ref();
        if let Some(parameters) = infrastructure.and_then(|i| i.parameters_ref.as_ref()) {
            return Some((
                "InvalidParameters",
                format!(
                    "infrastructure.parametersRef names {} {}, but Forebay has no parameters: remove it",
                    parameters.kind, parameters.name
                ),
            ));
        }
        if let Some(Problem::UnsupportedAddress(message)) = &self.allocation.problem {
            return Some(("UnsupportedAddress", message.clone()));
        }
        (!self.listeners.iter().any(Listener::accepted))
            .then(|| ("ListenersNotValid", "no listener is valid".to_owned()))
    }

    /// Addresses that it is served on: none if it is not accepted.
    pub(super) fn addresses(&self) -> &[IpAddr] {
        match self.fault {
            None => &self.allocation.addresses,
            Some(_) => &[],
        }
    }

    /// Takes over the routes of the same Gateway as it was read before. What attaches to a listener depends on nothing
    /// but its spec, which has not changed.
    pub(super) fn keep_routes(&mut self, before: &mut Self) {
        for (listener, before) in self.listeners.iter_mut().zip(&mut before.listeners) {
            listener.routes = std::mem::take(&mut before.routes);
        }
        self.made = std::mem::take(&mut before.made);
    }

    /// Its binds; those of which nothing has changed are the last ones.
    pub(super) fn binds(&mut self, policies: &Policies) -> &[Arc<Bind>] {
        let mut ports: BTreeMap<(u16, Transport), Port> = BTreeMap::new();
        for listener in self.listeners.iter_mut().filter(|l| l.may_serve()) {
            ports
                .entry((listener.spec.port, listener.transport()))
                // All of a port have one protocol, else they clash and none of them is here.
                .or_insert_with(|| (listener.protocol(), Vec::new()))
                .1
                .push(listener.for_snapshot(&self.key));
        }
        for (_, listeners) in ports.values_mut() {
            listeners.sort_by(|a, b| {
                let none_last = a.hostname.is_none().cmp(&b.hostname.is_none());
                none_last.then_with(|| a.hostname.cmp(&b.hostname))
            });
        }
        let ready = (READY_PORT, Transport::Tcp);
        let builtin_ready = !ports.contains_key(&ready);
        if builtin_ready {
            ports.insert(ready, (Protocol::Http, Vec::new()));
        }
        let mut binds = Vec::new();
        for &address in self.addresses() {
            for (&(port, transport), (protocol, listeners)) in &ports {
                let bind = Bind {
                    key: BindKey {
                        address,
                        port,
                        transport,
                    },
                    gateway: self.key.clone(),
                    protocol: *protocol,
                    builtin_ready: builtin_ready && (port, transport) == ready,
                    policy: policies.of(&self.key, (port, transport)),
                    listeners: listeners.clone(),
                };
                let before = self.made.iter().find(|before| same(before, &bind));
                binds.push(before.map_or_else(|| Arc::new(bind), Arc::clone));
            }
        }
        self.made = binds;
        &self.made
    }

    /// Binds as they were last made.
    pub(super) fn made(&self) -> &[Arc<Bind>] {
        &self.made
    }

    /// Its status.
    pub(super) fn status(&self) -> GatewayStatus {
        let generation = self.object.metadata.generation();
        let served = match (&self.fault, self.allocation.addresses.is_empty()) {
            (Some(_), _) => Err("the Gateway is not accepted"),
            (None, true) => Err("the Gateway has no address"),
            (None, false) => Ok(()),
        };
        let unsupported = self.unsupported();
        let conditions = [self.accepted(), self.programmed()]
            .into_iter()
            .chain(Condition::unsupported_fields(&unsupported))
            .map(|condition| condition.at(generation))
            .collect();
        GatewayStatus {
            addresses: self
                .addresses()
                .iter()
                .copied()
                .map(AddressStatus)
                .collect(),
            conditions,
            listeners: self
                .listeners
                .iter()
                .map(|listener| listener.status(generation, served))
                .collect(),
        }
    }

    /// Paths of the fields that are not carried out and leave the rest as it is.
    fn unsupported(&self) -> Vec<String> {
        let spec = &self.object.spec;
        let mut fields: Vec<String> = spec.unread.keys().map(|f| format!("spec.{f}")).collect();
        if let Some(tls) = &spec.tls {
            fields.extend(tls.frontend.iter().map(|_| "spec.tls.frontend".to_owned()));
            fields.extend(tls.unread.keys().map(|field| format!("spec.tls.{field}")));
        }
        for (at, listener) in spec.listeners.iter().enumerate() {
            let options = listener.tls.iter().flat_map(|tls| tls.options.keys());
            fields.extend(options.map(|key| format!("spec.listeners[{at}].tls.options[{key}]")));
        }
        fields
    }

    fn accepted(&self) -> Condition {
        if let Some((reason, message)) = &self.fault {
            return Condition::no("Accepted", reason, message.clone());
        }
        let bad: Vec<String> = self
            .listeners
            .iter()
            .filter(|listener| !listener.accepted() || !listener.resolved())
            .map(|listener| listener.spec.name.clone())
            .collect();
        if bad.is_empty() {
            Condition::yes("Accepted", "Accepted", "the Gateway is served by Forebay")
        } else {
            let message = format!("some listeners are not valid: {}", list(&bad));
            Condition::yes("Accepted", "ListenersNotValid", message)
        }
    }

    fn programmed(&self) -> Condition {
        if self.fault.is_some() {
            return Condition::no("Programmed", "Invalid", "the Gateway is not accepted");
        }
        if !self.listeners.iter().any(Listener::serves) {
            return Condition::no("Programmed", "Invalid", "no listener can be served");
        }
        match &self.allocation.problem {
            Some(Problem::AddressNotUsable(message) | Problem::UnsupportedAddress(message)) => {
                Condition::no("Programmed", "AddressNotUsable", message.clone())
            }
            Some(Problem::AddressNotAssigned(message)) => {
                Condition::no("Programmed", "AddressNotAssigned", message.clone())
            }
            None => {
                let addresses: Vec<_> = self.addresses().iter().map(ToString::to_string).collect();
                let message = format!("served on {}", list(&addresses));
                Condition::yes("Programmed", "Programmed", message)
            }
        }
    }
}

/// Whether nothing of a bind has changed.
fn same(before: &Bind, now: &Bind) -> bool {
    let listeners = before.listeners.iter().zip(&now.listeners);
    before.key == now.key
        && before.gateway == now.gateway
        && before.protocol == now.protocol
        && before.builtin_ready == now.builtin_ready
        && before.policy == now.policy
        && before.listeners.len() == now.listeners.len()
        && listeners.fold(true, |same, (a, b)| same && Arc::ptr_eq(a, b))
}

/// In files a Gateway whose class does not exist is nobody's: it gets a status that says so.
pub(super) fn add_orphans(
    inputs: &Inputs,
    context: &Context<'_>,
    statuses: &mut BTreeMap<ObjectKey, GatewayStatus>,
) {
    if context.on_cluster {
        return;
    }
    for (key, object) in &inputs.gateways {
        let class = ObjectKey::new("", object.spec.gateway_class_name.as_str());
        if !inputs.gateway_classes.contains_key(&class) {
            let message = format!("GatewayClass {class} does not exist");
            let generation = object.metadata.generation();
            let conditions = ["Accepted", "Programmed"]
                .map(|kind| Condition::unknown(kind, "Pending", message.clone()).at(generation));
            statuses.insert(
                key.clone(),
                GatewayStatus {
                    conditions: conditions.into(),
                    ..GatewayStatus::default()
                },
            );
        }
    }
}
