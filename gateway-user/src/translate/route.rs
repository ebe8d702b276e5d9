//! HTTPRoutes and GRPCRoutes: what they attach to, where their requests go, and what their status says.
//!
//! A rule with something that Forebay does not support is dropped, never served without it. Its matches stay in the
//! table and answer 500: otherwise a broader rule would serve the very requests that, say, a filter was to guard.
//! If no rule is left the route is not accepted.
//!
//! Of an HTTPRoute and a GRPCRoute that have a hostname in common on a listener only one is accepted there: the older,
//! then the first by namespace and name (GRPCRoute.spec.hostnames in Gateway API). Routes attach in that order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::backend_ref::{Referrer, Resolver};
use super::condition::{
    ATTACHED, ParentStatus, RouteStatus, SupportedKind, list, route_conditions,
};
use super::filter::{self, Place};
use super::gateway::Gateway;
use super::gathered::Gathered;
use super::listener::{Fault, GROUP, GRPC_ROUTE, HTTP_ROUTE, Listener};
use super::objects::{BackendRef, Metadata, ParentRef, Unread};
use super::precedence::{Candidate, Rank};
use super::{Context, Inputs, gateway_class};
use crate::snapshot::{Backend, Filters, Hostname, ObjectKey, Retry, RouteMatch, Rule, RuleKey};

/// Largest weight that Gateway API admits.
pub(super) const MAX_WEIGHT: u32 = 1_000_000;

/// Our Gateways by key.
pub(super) type Gateways<'a> = BTreeMap<ObjectKey, Gateway<'a>>;

/// What an object says beside its rules.
pub(super) struct Head<'a> {
    pub(super) kind: SupportedKind,
    pub(super) referrer: Referrer,
    pub(super) key: &'a ObjectKey,
    pub(super) metadata: &'a Metadata,
    pub(super) parents: &'a [ParentRef],
}

/// A rule as an object of some kind states it.
pub(super) trait RuleSource {
    /// `name`.
    fn name(&self) -> Option<&str>;

    /// Its matches, or why they cannot be read.
    fn matches(&self) -> Result<Vec<Match>, String>;

    /// What is done to the requests that match, or why it cannot be carried out.
    fn action(&self, matches: &[Match]) -> Result<Action<'_>, Fault>;
}

/// One match of a rule.
pub(super) struct Match {
    pub(super) matching: Arc<RouteMatch>,
    pub(super) rank: Rank,
}

/// What is done to the requests of a rule; by default they answer 500.
#[derive(Default)]
pub(super) struct Action<'a> {
    pub(super) filters: filter::Compiled<'a>,
    pub(super) backends: Vec<(&'a BackendRef, filter::Compiled<'a>)>,
    pub(super) request_timeout: Option<Duration>,
    pub(super) backend_timeout: Option<Duration>,
    pub(super) retry: Option<Retry>,
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

/// Listeners that a route attaches to, and the message of its condition `Accepted`.
struct Attached {
    listeners: Vec<usize>,
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

    /// Namespace and name, and what orders routes: the older first.
    pub(super) fn age(&self) -> (&str, &str, &str) {
        self.head.metadata.age()
    }

    /// Kind and key.
    pub(super) fn id(&self) -> (SupportedKind, &'a ObjectKey) {
        (self.head.kind, self.head.key)
    }

    /// Attaches the route to all Gateways that it names; `None` if none of them is ours.
    pub(super) fn attach(
        &self,
        inputs: &'a Inputs,
        context: &Context<'_>,
        gateways: &mut Gateways<'_>,
        gathered: &mut Gathered<'a>,
    ) -> Option<RouteStatus> {
        let generation = self.head.metadata.generation();
        let mut by_namespace: BTreeMap<&str, Resolved> = BTreeMap::new();
        let first_rule = gathered.rules.len();
        let mut parents = Vec::new();
        for parent in self.head.parents {
            if parent.group.as_deref().unwrap_or(GROUP) != GROUP
                || parent.kind.as_deref().unwrap_or("Gateway") != "Gateway"
            {
                continue;
            }
            let own = &self.head.key.namespace;
            let namespace = parent.namespace.as_deref().unwrap_or(own);
            let key = ObjectKey::new(namespace, parent.name.as_str());
            let attached = match gateways.get(&key) {
                Some(gateway) => self.find_listeners(inputs, gateway, parent),
                None => match missing(inputs, context, &key) {
                    Some(message) => Err(("NoMatchingParent", message)),
                    None => continue,
                },
            };
            let resolved = by_namespace
                .entry(namespace)
                .or_insert_with(|| self.resolve(inputs, gathered, namespace));
            if let (Ok(attached), Some(gateway)) = (&attached, gateways.get_mut(&key)) {
                let positions = self.add_rules(resolved, first_rule, gathered);
                for &at in &attached.listeners {
                    self.enter(&mut gateway.listeners[at], &positions);
                }
            }
            let accepted = attached.map(|attached| attached.message);
            parents.push(ParentStatus {
                parent_ref: parent.clone(),
                controller_name: gateway_class::CONTROLLER,
                conditions: route_conditions(accepted, &resolved.faults, &self.dropped)
                    .map(|condition| condition.at(generation))
                    .collect(),
            });
        }
        (!parents.is_empty()).then_some(RouteStatus { parents })
    }

    /// The listeners that it attaches to, or why there is none.
    fn find_listeners(
        &self,
        inputs: &Inputs,
        gateway: &Gateway<'_>,
        parent: &ParentRef,
    ) -> Result<Attached, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let mut matching = gateway.admitting(inputs, parent, self.head.kind, self.head.key)?;
        matching.retain(|(_, listener)| !self.effective(listener).is_empty());
        if matching.is_empty() {
            let message = format!(
                "no listener of Gateway {} has a hostname in common with the route",
                gateway.key
            );
            return Err(("NoMatchingListenerHostname", message));
        }
        let mut listeners = Vec::new();
        let mut lost = Vec::new();
        for (at, listener) in matching {
            match self.rival(listener) {
                None => listeners.push(at),
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
            if listeners.is_empty() {
                return Err(("HostnameConflict", why));
            }
            message = format!("{ATTACHED}, but not everywhere: {why}");
        }
        Ok(Attached { listeners, message })
    }

    /// A route of the other kind on the listener that has a hostname in common with this one.
    fn rival<'l>(&self, listener: &'l Listener<'_>) -> Option<(&'static str, &'l ObjectKey)> {
        let others = [HTTP_ROUTE, GRPC_ROUTE].map(|other| other.kind);
        let mut others = others
            .into_iter()
            .filter(|kind| *kind != self.head.kind.kind)
            .filter_map(|kind| Some((kind, listener.hosts.get(kind)?)));
        let own = self.effective(listener);
        others.find_map(|(kind, hosts)| {
            let mut shared = own.keys().filter_map(|host| hosts.sharing(host.as_ref()));
            Some((kind, shared.next()?))
        })
    }

    /// Hostnames that it serves on a listener, each with the most specific own hostname that leads to it.
    fn effective(&self, listener: &Listener<'_>) -> BTreeMap<Option<Hostname>, Option<Hostname>> {
        if self.hostnames.is_empty() {
            return BTreeMap::from([(listener.hostname.clone(), None)]);
        }
        let mut effective: BTreeMap<Option<Hostname>, Option<Hostname>> = BTreeMap::new();
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
        inputs: &'a Inputs,
        gathered: &mut Gathered<'a>,
        gateway_namespace: &str,
    ) -> Resolved {
        let mut resolver = Resolver {
            inputs,
            clusters: &mut gathered.clusters,
            referrer: self.head.referrer,
            route_namespace: &self.head.key.namespace,
            gateway_namespace,
            faults: Vec::new(),
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

    /// Adds the rules to the snapshot's and gives their positions. Gateways that see the same backends share a rule;
    /// where DestinationRules make them differ, several rules of the snapshot have one key.
    fn add_rules(
        &self,
        resolved: &Resolved,
        first_rule: usize,
        gathered: &mut Gathered<'_>,
    ) -> Vec<u32> {
        let mut positions = Vec::with_capacity(self.rules.len());
        for (rule, (filters, backends)) in self.rules.iter().zip(&resolved.rules) {
            let known = (0u32..)
                .zip(&gathered.rules)
                .skip(first_rule)
                .find(|(_, r)| {
                    r.key.index == rule.index && r.backends == *backends && r.filters == *filters
                });
            let position = match known {
                Some((position, _)) => position,
                None => gathered.add(Rule {
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
                    retry: rule.action.retry.clone(),
                }),
            };
            positions.push(position);
        }
        positions
    }

    /// Puts all matches into a listener's table; a second parentRef to the same listener adds nothing.
    fn enter(&self, listener: &mut Listener<'_>, positions: &[u32]) {
        let kind = self.head.kind.kind;
        if !listener.attach(kind, self.head.key) {
            return;
        }
        let created = self.head.metadata.creation_timestamp.as_deref();
        let created: Arc<str> = created.unwrap_or("").into();
        for (hostname, own_hostname) in self.effective(listener) {
            let hosts = listener.hosts.entry(kind).or_default();
            hosts.insert(hostname.as_ref(), self.head.key);
            for (rule, &position) in self.rules.iter().zip(positions) {
                for (match_index, Match { matching, rank }) in rule.matches.iter().enumerate() {
                    listener.candidates.push(Candidate {
                        hostname: hostname.clone(),
                        own_hostname: own_hostname.clone(),
                        matching: Arc::clone(matching),
                        rank: *rank,
                        created: Arc::clone(&created),
                        kind,
                        route: self.head.key.clone(),
                        rule_index: rule.index,
                        match_index,
                        rule: position,
                    });
                }
            }
        }
    }
}
