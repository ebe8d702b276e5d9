//! UDPRoutes: what they attach to, where their datagrams go, and what their status says.
//!
//! A UDPRoute has no matches, so its first rule takes everything. Several routes on one listener are all accepted and
//! counted, as Gateway API has it; the oldest gets the traffic, ties by namespace and name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::condition::{ATTACHED, ParentStatus, RouteStatus, route_conditions};
use super::gateway::{Gateway, Gateways};
use super::gathered::{Attachment, Gathered, Place};
use super::listener::{Fault, FirstRule, GROUP, Listener, UDP_ROUTE};
use super::objects::{L4RuleSpec, ParentRef, UdpRoute};
use super::route::{MAX_WEIGHT, missing};
use super::{Context, Inputs, backend_ref, gateway_class};
use crate::snapshot::{Backend, ObjectKey, Rule, RuleKey};

/// A route as it was checked, before it meets a Gateway.
struct Route<'a> {
    key: &'a ObjectKey,
    object: &'a UdpRoute,
    /// The rule that is used, with its backendRefs.
    rule: Option<&'a L4RuleSpec>,
    /// Why rules were dropped, by position.
    dropped: Vec<Fault>,
    fault: Option<Fault>,
}

/// Its backends as Gateways of one namespace see them, and the place of its rule once there is one.
#[derive(Default)]
struct Resolved {
    backends: Vec<Backend>,
    faults: Vec<Fault>,
    position: Option<u32>,
}

/// Attaches one route to all Gateways that it names. Rules that it had `before` keep their places.
pub(super) fn attach(
    inputs: &Inputs,
    context: &Context<'_>,
    (key, object): (&ObjectKey, &UdpRoute),
    gateways: &mut Gateways,
    gathered: &mut Gathered,
    before: &mut Vec<(u32, Arc<Rule>)>,
) -> Attachment {
    let route = Route::read(key, object);
    let generation = object.metadata.generation();
    let mut by_namespace: BTreeMap<&str, Resolved> = BTreeMap::new();
    let mut made = Attachment::default();
    let mut services = BTreeSet::new();
    let mut parents = Vec::new();
    for parent in &object.spec.parent_refs {
        if parent.group.as_deref().unwrap_or(GROUP) != GROUP
            || parent.kind.as_deref().unwrap_or("Gateway") != "Gateway"
        {
            continue;
        }
        let namespace = parent.namespace.as_deref().unwrap_or(&key.namespace);
        let gateway_key = ObjectKey::new(namespace, &*parent.name);
        let attached = match gateways.get(&gateway_key) {
            Some(gateway) => route.find_listeners(inputs, gateway, parent),
            None => match missing(inputs, context, &gateway_key) {
                Some(message) => Err(("NoMatchingParent", message)),
                None => continue,
            },
        };
        let resolved = by_namespace
            .entry(namespace)
            .or_insert_with(|| route.resolve(inputs, gathered, namespace, &mut services));
        if let (Ok(listeners), Some(gateway)) = (&attached, gateways.get_mut(&gateway_key)) {
            let rule = route.add_rule(resolved, &mut made, before, gathered);
            gateway.changed = true;
            for &at in listeners {
                if !made.has(&gateway_key, at) {
                    made.places.push(Place {
                        gateway: gateway_key.clone(),
                        listener: at,
                        hosts: Box::default(),
                    });
                }
                route.enter(&mut gateway.listeners[at], rule);
            }
        }
        let accepted = attached.map(|_| ATTACHED.to_owned());
        parents.push(ParentStatus {
            parent_ref: parent.clone(),
            controller_name: gateway_class::CONTROLLER,
            conditions: route_conditions(accepted, &resolved.faults, &route.dropped)
                .map(|condition| condition.at(generation))
                .collect(),
        });
    }
    made.services = services.into_iter().collect();
    made.pack();
    made.status = (!parents.is_empty()).then(|| Arc::new(RouteStatus { parents }));
    made
}

impl<'a> Route<'a> {
    fn read(key: &'a ObjectKey, object: &'a UdpRoute) -> Self {
        let spec = &object.spec;
        let unsupported = |message: String| ("UnsupportedValue", message);
        let mut dropped = Vec::new();
        let mut fault = spec
            .unread
            .keys()
            .next()
            .map(|field| unsupported(format!("spec.{field} is not supported")));
        let mut rule = None;
        for (at, given) in spec.rules.iter().enumerate() {
            let why = match (at, bad_rule(given)) {
                (0, None) => {
                    rule = Some(given);
                    continue;
                }
                (0, Some(why)) => {
                    let message = format!("no rule can be carried out: 0 ({why})");
                    fault.get_or_insert(unsupported(message));
                    why
                }
                _ => {
                    "rules of a UDPRoute have no matches, so only the first can be used".to_owned()
                }
            };
            dropped.push(unsupported(format!("{at} ({why})")));
        }
        Self {
            key,
            object,
            rule,
            dropped,
            fault,
        }
    }

    /// Positions of the listeners that it attaches to, or why there is none.
    fn find_listeners(
        &self,
        inputs: &Inputs,
        gateway: &Gateway,
        parent: &ParentRef,
    ) -> Result<Vec<usize>, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let admitting = gateway.admitting(inputs, parent, UDP_ROUTE, self.key)?;
        Ok(admitting.into_iter().map(|(at, _)| at).collect())
    }

    fn resolve(
        &self,
        inputs: &Inputs,
        gathered: &mut Gathered,
        gateway_namespace: &str,
        services: &mut BTreeSet<ObjectKey>,
    ) -> Resolved {
        let mut resolver = backend_ref::Resolver {
            inputs,
            clusters: &mut gathered.clusters,
            referrer: backend_ref::UDP,
            route_namespace: &self.key.namespace,
            gateway_namespace,
            faults: Vec::new(),
            services,
        };
        let given = self.rule.map_or(&[][..], |rule| &rule.backend_refs);
        let mut backends: Vec<Backend> = given
            .iter()
            .map(|spec| resolver.backend(spec, None))
            .collect();
        if backends.iter().all(|backend| backend.weight == 0) {
            backends.clear();
        }
        Resolved {
            backends,
            faults: resolver.faults,
            position: None,
        }
    }

    /// Place of its rule among the snapshot's.
    fn add_rule(
        &self,
        resolved: &mut Resolved,
        made: &mut Attachment,
        before: &mut Vec<(u32, Arc<Rule>)>,
        gathered: &mut Gathered,
    ) -> u32 {
        if let Some(position) = resolved.position {
            return position;
        }
        let rule = Rule {
            key: RuleKey {
                kind: UDP_ROUTE.kind,
                route: self.key.clone(),
                index: 0,
            },
            name: None,
            filters: None,
            backends: resolved.backends.clone(),
            request_timeout: None,
            backend_timeout: None,
            retry: None,
        };
        let added = gathered.add(rule, before);
        let position = added.0;
        made.rules.push(added);
        resolved.position = Some(position);
        position
    }

    /// Counts it on a listener; the oldest route there gets the traffic.
    fn enter(&self, listener: &mut Listener, rule: u32) {
        if !listener.routes.attach(&(UDP_ROUTE.kind, self.key.clone())) {
            return;
        }
        let metadata = &self.object.metadata;
        let own = FirstRule {
            created: metadata.creation_timestamp.as_deref().unwrap_or("").into(),
            route: self.key.clone(),
            rule,
        };
        listener.routes.add_first(own);
    }
}

/// Why a rule is not carried out.
fn bad_rule(rule: &L4RuleSpec) -> Option<String> {
    if let Some(field) = rule.unread.keys().next() {
        return Some(format!("field {field} is not supported"));
    }
    rule.backend_refs.iter().find_map(|backend| {
        if let Some(field) = backend.unread.keys().next() {
            return Some(format!("field {field} of a backendRef is not supported"));
        }
        if let Some(filter) = backend.filters.first() {
            let kind = &filter.kind;
            return Some(format!("filter {kind} of a backendRef is not supported"));
        }
        let too_heavy = backend.weight.is_some_and(|weight| weight > MAX_WEIGHT);
        too_heavy.then(|| format!("a weight is above {MAX_WEIGHT}"))
    })
}
