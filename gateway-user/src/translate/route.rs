//! HTTPRoutes and GRPCRoutes: what they attach to, where their requests go, and what their status says.
//!
//! A rule with something that Forebay does not support is dropped, never served without it. Its matches stay in the
//! table and answer 500: otherwise a broader rule would serve the very requests that, say, a filter was to guard.
//! If no rule is left the route is not accepted.
//!
//! Of an HTTPRoute and a GRPCRoute that have a hostname in common on a listener only one is accepted there: the older,
//! then the first by namespace and name (GRPCRoute.spec.hostnames in Gateway API). Routes attach in that order.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) use self::source::{Action, Match, RuleSource};
use super::backend_ref::{Referrer, Resolver};
use super::condition::{
    ATTACHED, ParentStatus, RouteStatus, SupportedKind, list, route_conditions,
};
use super::filter::{self, Place};
use super::gateway::{Gateway, Gateways};
use super::gathered::{Attachment, Gathered, Place as Admission};
use super::listener::{Fault, GROUP, Listener};
use super::listener_routes::RouteId;
use super::objects::{BackendRef, Metadata, ParentRef, Unread};
use super::precedence::Candidate;
use super::{Context, Inputs, gateway_class};
use crate::snapshot::{Backend, Filters, Hostname, ObjectKey, Rule, RuleKey};

/// Largest weight that Gateway API admits.
pub(super) const MAX_WEIGHT: u32 = 1_000_000;

/// What an object says beside its rules.
pub(super) struct Head<'a> {
    pub(super) kind: SupportedKind,
    pub(super) referrer: Referrer,
    pub(super) key: &'a ObjectKey,
    pub(super) metadata: &'a Metadata,
    pub(super) parents: &'a [ParentRef],
}

/// A route, checked and compiled, before it meets a Gateway.
pub(super) struct Route<'a> {
    head: Head<'a>,
    hostnames: Vec<Hostname>,
    rules: Vec<CompiledRule<'a>>,
    /// Why rules were dropped, by position.
    dropped: Vec<Fault>,
    fault: Option<Fault>,
}

struct CompiledRule<'a> {
    index: u16,
    name: Option<Arc<str>>,
    matches: Vec<Match>,
    action: Action<'a>,
}

/// The rules of a route as Gateways of one namespace see them, in the order of `Route::rules`.
#[derive(Default)]
struct Resolved {
    /// Filters and backends, with clusters as they were interned.
    rules: Vec<(Option<Arc<Filters>>, Vec<Backend>)>,
    /// Bad backendRefs.
    faults: Vec<Fault>,
}

/// Hostnames that a route serves on a listener, each with the most specific own hostname that leads to it.
type Effective = BTreeMap<Option<Hostname>, Option<Hostname>>;

/// A listener that admits a route and has a hostname in common with it.
struct Claim {
    listener: usize,
    hosts: Effective,
}

/// Which of the claims a route gets, and the message of its condition `Accepted`.
struct Attached {
    claims: Vec<usize>,
    message: String,
}

/// In files nobody else could serve the Gateway, so its absence is said; on a cluster it may be another controller's.
pub(super) fn missing(inputs: &Inputs, context: &Context<'_>, key: &ObjectKey) -> Option<String> {
    if context.on_cluster {
        return None;
    }
    let Some(gateway) = inputs.gateways.get(key) else {
        return Some(format!("Gateway {key} does not exist"));
    };
    let class = gateway.spec.gateway_class_name.as_str();
    let class = ObjectKey::new("", class);
    (!inputs.gateway_classes.contains_key(&class))
        .then(|| format!("GatewayClass {class} of Gateway {key} does not exist"))
}

/// The backendRefs of a rule with their filters, or why one cannot be carried out.
pub(super) fn backends<'a>(
    given: &'a [BackendRef],
    place: Place<'_>,
) -> Result<Vec<(&'a BackendRef, filter::Compiled<'a>)>, Fault> {
    let unsupported = |message: String| ("UnsupportedValue", message);
    let mut backends = Vec::with_capacity(given.len());
    for backend in given {
        if let Some(field) = backend.unread.keys().next() {
            let message = format!("field {field} of a backendRef is not supported");
            return Err(unsupported(message));
        }
        if backend.weight.is_some_and(|weight| weight > MAX_WEIGHT) {
            return Err(unsupported(format!("a weight is above {MAX_WEIGHT}")));
        }
        let filters = filter::compile(&backend.filters, place.backend())?;
        backends.push((backend, filters));
    }
    Ok(backends)
}

impl<'a> Route<'a> {
    /// Compiles a route; no `rules` at all means one that matches everything and, having no backends, answers 500.
    pub(super) fn compile<S: RuleSource + Default>(
        head: Head<'a>,
        hostnames: &[String],
        rules: Option<&'a [S]>,
        unread: &Unread,
    ) -> Self {
        let unsupported = |message: String| ("UnsupportedValue", message);
        let mut route = Self {
            head,
            hostnames: Vec::new(),
            rules: Vec::new(),
            dropped: Vec::new(),
            fault: None,
        };
        if let Some(field) = unread.keys().next() {
            route.fault = Some(unsupported(format!("spec.{field} is not supported")));
        }
        for text in hostnames {
            match Hostname::parse(text) {
                Some(hostname) => route.hostnames.push(hostname),
                None => {
                    let message = format!("hostname {text:?} is not a DNS name or *. and one");
                    route.fault.get_or_insert(unsupported(message));
                }
            }
        }
        let Some(rules) = rules else {
            route
                .rules
                .extend(S::default().matches().map(|matches| CompiledRule {
                    index: 0,
                    name: None,
                    matches,
                    action: Action::default(),
                }));
            return route;
        };
        let mut names = BTreeMap::new();
        for (at, rule) in rules.iter().enumerate() {
            if let Err((reason, why)) = route.add(at, rule, &mut names) {
                route.dropped.push((reason, format!("{at} ({why})")));
            }
        }
        if let Some((reason, _)) = route.dropped.first()
            && route.dropped.len() == rules.len()
        {
            let rules: Vec<String> = route.dropped.iter().map(|fault| fault.1.clone()).collect();
            let message = format!("no rule can be carried out: {}", list(&rules));
            route.fault.get_or_insert((reason, message));
        }
        route
    }

    /// Adds a rule, or says why it is dropped: then it keeps its matches, if they can be read, and answers 500.
    fn add<'s: 'a, S: RuleSource>(
        &mut self,
        at: usize,
        rule: &'s S,
        names: &mut BTreeMap<&'s str, usize>,
    ) -> Result<(), Fault> {
        let unsupported = |message: String| ("UnsupportedValue", message);
        let Ok(index) = u16::try_from(at) else {
            let message = "a route holds at most 65536 rules".to_owned();
            return Err(unsupported(message));
        };
        let first = rule
            .name()
            .map(|name| (name, *names.entry(name).or_insert(at)));
        let matches = rule.matches().map_err(unsupported)?;
        let action = match first {
            Some((name, first)) if first != at => Err(unsupported(format!(
                "{name:?} is the name of rule {first} already"
            ))),
            _ => rule.action(&matches),
        };
        let (action, fault) = match action {
            Ok(action) => (action, Ok(())),
            Err(fault) => (Action::default(), Err(fault)),
        };
        self.rules.push(CompiledRule {
            index,
            name: first
                .filter(|(_, first)| *first == at)
                .map(|(name, _)| name.into()),
            matches,
            action,
        });
        fault
    }

    fn id(&self) -> RouteId {
        (self.head.kind.kind, self.head.key.clone())
    }

    /// Attaches the route to all Gateways that it names. Rules that it had `before` keep their places.
    pub(super) fn attach(
        &self,
        inputs: &Inputs,
        context: &Context<'_>,
        gateways: &mut Gateways,
        gathered: &mut Gathered,
        before: &mut Vec<(u32, Arc<Rule>)>,
    ) -> Attachment {
        let generation = self.head.metadata.generation();
        let mut by_namespace: BTreeMap<&str, Resolved> = BTreeMap::new();
        let mut made = Attachment::default();
        let mut services = BTreeSet::new();
        let mut parents = Vec::new();
        for parent in self.head.parents {
            if parent.group.as_deref().unwrap_or(GROUP) != GROUP
                || parent.kind.as_deref().unwrap_or("Gateway") != "Gateway"
            {
                continue;
            }
            let own = &self.head.key.namespace;
            let namespace = parent.namespace.as_deref().unwrap_or(own);
            let key = ObjectKey::new(namespace, &*parent.name);
            let claims = match gateways.get(&key) {
                Some(gateway) => self.claims(inputs, gateway, parent),
                None => match missing(inputs, context, &key) {
                    Some(message) => Err(("NoMatchingParent", message)),
                    None => continue,
                },
            };
            let resolved = by_namespace
                .entry(namespace)
                .or_insert_with(|| self.resolve(inputs, gathered, namespace, &mut services));
            let gateway = gateways.get_mut(&key);
            let attached = match (claims, gateway) {
                (Ok(claims), Some(gateway)) => {
                    self.admit(gateway, &claims, &mut made);
                    let attached = self.judge(gateway, &claims);
                    if let Ok(attached) = &attached {
                        let placed = self.add_rules(resolved, &mut made, before, gathered);
                        for &at in &attached.claims {
                            let Claim { listener, hosts } = &claims[at];
                            self.enter(&mut gateway.listeners[*listener], hosts, &placed);
                        }
                    }
                    attached
                }
                (Ok(_), None) => continue,
                (Err(fault), _) => Err(fault),
            };
            let accepted = attached.map(|attached| attached.message);
            parents.push(ParentStatus {
                parent_ref: parent.clone(),
                controller_name: gateway_class::CONTROLLER,
                conditions: route_conditions(accepted, &resolved.faults, &self.dropped)
                    .map(|condition| condition.at(generation))
                    .collect(),
            });
        }
        made.services = services.into_iter().collect();
        made.pack();
        made.status = (!parents.is_empty()).then(|| Arc::new(RouteStatus { parents }));
        made
    }

    /// The listeners that admit it and have a hostname in common with it, or why there is none.
    fn claims(
        &self,
        inputs: &Inputs,
        gateway: &Gateway,
        parent: &ParentRef,
    ) -> Result<Vec<Claim>, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let admitting = gateway.admitting(inputs, parent, self.head.kind, self.head.key)?;
        let claims = admitting.into_iter().map(|(at, listener)| Claim {
            listener: at,
            hosts: self.effective(listener),
        });
        let claims: Vec<Claim> = claims.filter(|claim| !claim.hosts.is_empty()).collect();
        if claims.is_empty() {
            let message = format!(
                "no listener of Gateway {} has a hostname in common with the route",
                gateway.key
            );
            return Err(("NoMatchingListenerHostname", message));
        }
        Ok(claims)
    }

    /// Tells the listeners what it claims of them, once each.
    fn admit(&self, gateway: &mut Gateway, claims: &[Claim], made: &mut Attachment) {
        for Claim { listener, hosts } in claims {
            if !made.has(&gateway.key, *listener) {
                let routes = &mut gateway.listeners[*listener].routes;
                routes.claim(&self.id(), hosts.keys());
                gateway.changed = true;
                made.places.push(Admission {
                    gateway: gateway.key.clone(),
                    listener: *listener,
                    hosts: hosts.keys().cloned().collect(),
                });
            }
        }
    }

    /// Which of the claims it gets, or why none.
    fn judge(&self, gateway: &Gateway, claims: &[Claim]) -> Result<Attached, Fault> {
        let mut got = Vec::new();
        let mut lost = Vec::new();
        for (at, claim) in claims.iter().enumerate() {
            let listener = &gateway.listeners[claim.listener];
            match listener.routes.rival(self.head.kind.kind, &claim.hosts.keys()) {
                None => got.push(at),
                Some((kind, route)) => lost.push(format!(
                    "listener {} of Gateway {} serves {kind} {route}, which has a hostname in common",
                    listener.spec.name, gateway.key
                )),
            }
        }
        let mut message = ATTACHED.to_owned();
        if !lost.is_empty() {
            let why = format!(
                "{}; of an HTTPRoute and a GRPCRoute the older is served, then the first by namespace and name",
                list(&lost)
            );
            if got.is_empty() {
                return Err(("HostnameConflict", why));
            }
            message = format!("{ATTACHED}, but not everywhere: {why}");
        }
        Ok(Attached {
            claims: got,
            message,
        })
    }

    /// What it serves on a listener.
    fn effective(&self, listener: &Listener) -> Effective {
        if self.hostnames.is_empty() {
            return BTreeMap::from([(listener.hostname.clone(), None)]);
        }
        let mut effective = Effective::new();
        for own in &self.hostnames {
            let common = match &listener.hostname {
                None => Some(own.clone()),
                Some(hostname) => hostname.intersect(own),
            };
            if let Some(common) = common {
                let entry = effective.entry(Some(common)).or_default();
                let better = entry.as_ref().is_none_or(|seen| own < seen);
                if better {
                    *entry = Some(own.clone());
                }
            }
        }
        effective
    }

    /// Resolves all backendRefs, those of mirrors included.
    fn resolve(
        &self,
        inputs: &Inputs,
        gathered: &mut Gathered,
        gateway_namespace: &str,
        services: &mut BTreeSet<ObjectKey>,
    ) -> Resolved {
        let mut resolver = Resolver {
            inputs,
            clusters: &mut gathered.clusters,
            referrer: self.head.referrer,
            route_namespace: &self.head.key.namespace,
            gateway_namespace,
            faults: Vec::new(),
            services,
        };
        let mut rules = Vec::with_capacity(self.rules.len());
        for CompiledRule { action, .. } in &self.rules {
            let mut backends = Vec::with_capacity(action.backends.len());
            for (spec, filters) in &action.backends {
                let filters = filters.resolve(&mut resolver);
                backends.push(resolver.backend(spec, filters));
            }
            if backends.iter().all(|backend| backend.weight == 0) {
                backends.clear();
            }
            rules.push((action.filters.resolve(&mut resolver), backends));
        }
        Resolved {
            rules,
            faults: resolver.faults,
        }
    }

    /// Adds the rules to the snapshot's and gives their places. Gateways that see the same backends share a rule;
    /// where DestinationRules make them differ, several rules of the snapshot have one key.
    fn add_rules(
        &self,
        resolved: &Resolved,
        made: &mut Attachment,
        before: &mut Vec<(u32, Arc<Rule>)>,
        gathered: &mut Gathered,
    ) -> Vec<(u32, Arc<Rule>)> {
        let mut placed = Vec::with_capacity(self.rules.len());
        for (rule, (filters, backends)) in self.rules.iter().zip(&resolved.rules) {
            let known = made.rules.iter().find(|(_, r)| {
                r.key.index == rule.index && r.backends == *backends && r.filters == *filters
            });
            let rule = if let Some(known) = known {
                known.clone()
            } else {
                let rule = Rule {
                    key: RuleKey {
                        kind: self.head.kind.kind,
                        route: self.head.key.clone(),
                        index: rule.index,
                    },
                    name: rule.name.clone(),
                    filters: filters.clone(),
                    backends: backends.clone(),
                    request_timeout: rule.action.request_timeout,
                    backend_timeout: rule.action.backend_timeout,
                    retry: rule.action.retry.clone().map(Box::new),
                };
                let added = gathered.add(rule, before);
                made.rules.push(added.clone());
                added
            };
            placed.push(rule);
        }
        placed
    }

    /// Puts all matches into a listener's table; a second parentRef to the same listener adds nothing.
    fn enter(&self, listener: &mut Listener, hosts: &Effective, placed: &[(u32, Arc<Rule>)]) {
        let id = self.id();
        let routes = &mut listener.routes;
        if !routes.attach(&id) {
            return;
        }
        let created = self.head.metadata.creation_timestamp.as_deref();
        let created: Option<Arc<str>> = created.filter(|at| !at.is_empty()).map(Into::into);
        for (hostname, own_hostname) in hosts {
            routes.serve(&id, hostname.as_ref());
            for (rule, (place, placed)) in self.rules.iter().zip(placed) {
                for (match_index, Match { matching, rank }) in (0u32..).zip(&rule.matches) {
                    let candidate = Candidate {
                        own_hostname: own_hostname.clone(),
                        matching: Arc::clone(matching),
                        rank: *rank,
                        created: created.clone(),
                        rule: Arc::clone(placed),
                        match_index,
                        place: *place,
                    };
                    routes.add(hostname, candidate);
                }
            }
        }
    }
}
