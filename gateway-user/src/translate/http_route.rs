//! HTTPRoutes: what of them can be carried out, what they attach to, and what their status says.
//!
//! A rule with something that Forebay does not support is dropped, never served without it. Its matches stay in the
//! table and answer 500: otherwise a broader rule would serve the very requests that, say, a filter was to guard.
//! If no rule is left the route is not accepted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::cluster::Clusters;
use super::condition::{ParentStatus, RouteStatus, list, route_conditions};
use super::gateway::Gateway;
use super::listener::{Fault, GROUP, HTTP_ROUTE, Listener};
use super::objects::{self, BackendRef, MatchSpec, ParentRef, RuleSpec};
use super::precedence::Candidate;
use super::{Context, Inputs, backend_ref, duration, gateway_class, route_match};
use crate::snapshot::{Backend, BackendTarget, Hostname, ObjectKey, RouteMatch, Rule, RuleKey};

/// Largest weight that Gateway API admits.
pub(super) const MAX_WEIGHT: u32 = 1_000_000;

/// Our Gateways by key.
pub(super) type Gateways<'a> = BTreeMap<ObjectKey, Gateway<'a>>;

/// A route, checked and compiled, before it meets a Gateway.
struct Route<'a> {
    key: &'a ObjectKey,
    object: &'a objects::HttpRoute,
    hostnames: Vec<Hostname>,
    rules: Vec<CompiledRule<'a>>,
    /// Why rules were dropped, by position.
    dropped: Vec<String>,
    fault: Option<Fault>,
}

struct CompiledRule<'a> {
    index: u16,
    matches: Vec<Arc<RouteMatch>>,
    backends: &'a [BackendRef],
    request_timeout: Option<Duration>,
    backend_timeout: Option<Duration>,
}

/// The rules of a route as Gateways of one namespace see them, in the order of `Route::rules`.
#[derive(Default)]
struct Resolved {
    /// Backends, with clusters as they were interned.
    backends: Vec<Vec<Backend>>,
    /// Bad backendRefs.
    faults: Vec<Fault>,
}

/// What translate gathers over all routes.
pub(super) struct Gathered<'a> {
    pub(super) clusters: Clusters<'a>,
    pub(super) rules: Vec<Rule>,
}

/// Attaches one route to all Gateways that it names; `None` if none of them is ours.
pub(super) fn attach<'a>(
    inputs: &'a Inputs,
    context: &Context<'_>,
    route: (&'a ObjectKey, &'a objects::HttpRoute),
    gateways: &mut Gateways<'_>,
    gathered: &mut Gathered<'a>,
) -> Option<RouteStatus> {
    let route = Route::compile(route.0, route.1);
    let generation = route.object.metadata.generation();
    let mut by_namespace: BTreeMap<String, Resolved> = BTreeMap::new();
    let first_rule = gathered.rules.len();
    let mut parents = Vec::new();
    for parent in &route.object.spec.parent_refs {
        if parent.group.as_deref().unwrap_or(GROUP) != GROUP
            || parent.kind.as_deref().unwrap_or("Gateway") != "Gateway"
        {
            continue;
        }
        let namespace = parent.namespace.as_deref().unwrap_or(&route.key.namespace);
        let key = ObjectKey::new(namespace, parent.name.as_str());
        let attached = match gateways.get(&key) {
            Some(gateway) => route.find_listeners(inputs, gateway, parent),
            None => match missing(inputs, context, &key) {
                Some(message) => Err(("NoMatchingParent", message)),
                None => continue,
            },
        };
        let resolved = by_namespace
            .entry(namespace.to_owned())
            .or_insert_with_key(|namespace| {
                route.resolve(inputs, &mut gathered.clusters, namespace)
            });
        if let (Ok(listeners), Some(gateway)) = (&attached, gateways.get_mut(&key)) {
            let positions = route.add_rules(resolved, first_rule, gathered);
            for &at in listeners {
                route.enter(&mut gateway.listeners[at], &positions);
            }
        }
        parents.push(ParentStatus {
            parent_ref: parent.clone(),
            controller_name: gateway_class::CONTROLLER,
            conditions: route_conditions(attached.err(), &resolved.faults, &route.dropped)
                .map(|condition| condition.at(generation))
                .collect(),
        });
    }
    (!parents.is_empty()).then_some(RouteStatus { parents })
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

impl<'a> Route<'a> {
    fn compile(key: &'a ObjectKey, object: &'a objects::HttpRoute) -> Self {
        let spec = &object.spec;
        let mut route = Self {
            key,
            object,
            hostnames: Vec::new(),
            rules: Vec::new(),
            dropped: Vec::new(),
            fault: None,
        };
        if let Some(field) = spec.unread.keys().next() {
            route.fault = Some(("UnsupportedValue", format!("spec.{field} is not supported")));
        }
        for text in &spec.hostnames {
            match Hostname::parse(text) {
                Some(hostname) => route.hostnames.push(hostname),
                None => {
                    let message = format!("hostname {text:?} is not a DNS name or *. and one");
                    route.fault.get_or_insert(("UnsupportedValue", message));
                }
            }
        }
        static NO_RULES: [RuleSpec; 0] = [];
        let given = spec.rules.as_deref().unwrap_or(&NO_RULES);
        let mut served = 0;
        for (at, rule) in given.iter().enumerate() {
            let (compiled, fault) = compile_rule(at, rule);
            served += usize::from(fault.is_none());
            route.rules.extend(compiled);
            if let Some(why) = fault {
                route.dropped.push(format!("{at} ({why})"));
            }
        }
        if spec.rules.is_none() {
            route.rules.extend(catch_all());
        } else if served == 0 && !route.dropped.is_empty() {
            let message = format!("no rule can be carried out: {}", list(&route.dropped));
            route.fault.get_or_insert(("UnsupportedValue", message));
        }
        route
    }

    /// Positions of the listeners that it attaches to, or why there is none.
    fn find_listeners(
        &self,
        inputs: &Inputs,
        gateway: &Gateway<'_>,
        parent: &ParentRef,
    ) -> Result<Vec<usize>, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let matching: Vec<usize> = gateway
            .admitting(inputs, parent, HTTP_ROUTE, self.key)?
            .into_iter()
            .filter(|(_, listener)| !self.effective(listener).is_empty())
            .map(|(at, _)| at)
            .collect();
        if matching.is_empty() {
            let message = format!(
                "no listener of Gateway {} has a hostname in common with the route",
                gateway.key
            );
            return Err(("NoMatchingListenerHostname", message));
        }
        Ok(matching)
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

    /// Resolves all backendRefs.
    fn resolve(
        &self,
        inputs: &'a Inputs,
        clusters: &mut Clusters<'a>,
        gateway_namespace: &str,
    ) -> Resolved {
        let mut resolved = Resolved::default();
        for rule in &self.rules {
            let backends = backend_ref::resolve_all(
                inputs,
                clusters,
                backend_ref::HTTP,
                (&self.key.namespace, gateway_namespace),
                rule.backends,
                &mut resolved.faults,
            );
            resolved.backends.push(backends);
        }
        resolved
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
        for (rule, backends) in self.rules.iter().zip(&resolved.backends) {
            let own = &gathered.rules[first_rule..];
            let known = own
                .iter()
                .position(|r| r.key.index == rule.index && r.backends == *backends);
            let position = known.map_or(gathered.rules.len(), |at| first_rule + at);
            if known.is_none() {
                for backend in backends {
                    if let BackendTarget::Cluster(cluster) = backend.target {
                        gathered.clusters.mark_used(cluster);
                    }
                }
                gathered.rules.push(Rule {
                    key: RuleKey {
                        kind: "HTTPRoute",
                        route: self.key.clone(),
                        index: rule.index,
                    },
                    name: None,
                    filters: None,
                    backends: backends.clone(),
                    request_timeout: rule.request_timeout,
                    backend_timeout: rule.backend_timeout,
                    retry: None,
                });
            }
            let position = u32::try_from(position).expect("fewer than 2^32 rules fit in memory");
            positions.push(position);
        }
        positions
    }

    /// Puts all matches into a listener's table; a second parentRef to the same listener adds nothing.
    fn enter(&self, listener: &mut Listener<'_>, positions: &[u32]) {
        if !listener.attached.insert(self.key.clone()) {
            return;
        }
        let created = self.object.metadata.creation_timestamp.as_deref();
        let created: Arc<str> = created.unwrap_or("").into();
        for (hostname, own_hostname) in self.effective(listener) {
            for (rule, &position) in self.rules.iter().zip(positions) {
                for (match_index, matching) in rule.matches.iter().enumerate() {
                    listener.candidates.push(Candidate {
                        hostname: hostname.clone(),
                        own_hostname: own_hostname.clone(),
                        matching: Arc::clone(matching),
                        created: Arc::clone(&created),
                        route: self.key.clone(),
                        rule_index: rule.index,
                        match_index,
                        rule: position,
                    });
                }
            }
        }
    }
}

/// Gateway API: a route without rules has one that matches everything and, having no backends, answers 500.
fn catch_all<'a>() -> Option<CompiledRule<'a>> {
    let matching = route_match::compile(&MatchSpec::default()).ok()?;
    Some(CompiledRule {
        index: 0,
        matches: vec![Arc::new(matching)],
        backends: &[],
        request_timeout: None,
        backend_timeout: None,
    })
}

/// The rule, and why it is dropped if it is. A dropped rule keeps its matches, if they can be read, but no backends.
fn compile_rule(at: usize, spec: &RuleSpec) -> (Option<CompiledRule<'_>>, Option<String>) {
    let Ok(index) = u16::try_from(at) else {
        return (None, Some("a route holds at most 65536 rules".to_owned()));
    };
    let default = [MatchSpec::default()];
    let given: &[MatchSpec] = if spec.matches.is_empty() {
        &default
    } else {
        &spec.matches
    };
    let matches: Result<Vec<_>, String> = given
        .iter()
        .map(|spec| route_match::compile(spec).map(Arc::new))
        .collect();
    let matches = match matches {
        Ok(matches) => matches,
        Err(why) => return (None, Some(why)),
    };
    let (timeouts, fault) = match (unsupported(spec), timeouts(spec)) {
        (Some(why), _) | (None, Err(why)) => ((None, None), Some(why)),
        (None, Ok(timeouts)) => (timeouts, None),
    };
    let rule = CompiledRule {
        index,
        matches,
        backends: if fault.is_none() {
            &spec.backend_refs
        } else {
            &[]
        },
        request_timeout: timeouts.0,
        backend_timeout: timeouts.1,
    };
    (Some(rule), fault)
}

fn unsupported(spec: &RuleSpec) -> Option<String> {
    let filter = spec
        .filters
        .first()
        .map(|filter| format!("filter {}", filter.kind));
    let field = spec
        .unread
        .keys()
        .next()
        .map(|field| format!("field {field}"));
    let timeout = spec
        .timeouts
        .as_ref()
        .and_then(|timeouts| timeouts.unread.keys().next());
    let timeout = timeout.map(|field| format!("field timeouts.{field}"));
    let what = filter.or(field).or(timeout).or_else(|| {
        spec.backend_refs.iter().find_map(|backend| {
            let filter = backend.filters.first();
            let filter = filter.map(|filter| format!("filter {} of a backendRef", filter.kind));
            let field = backend.unread.keys().next();
            filter.or_else(|| field.map(|field| format!("field {field} of a backendRef")))
        })
    });
    if let Some(what) = what {
        return Some(format!("{what} is not supported"));
    }
    let too_heavy =
        |backend: &&BackendRef| backend.weight.is_some_and(|weight| weight > MAX_WEIGHT);
    spec.backend_refs
        .iter()
        .find(too_heavy)
        .map(|_| format!("a weight is above {MAX_WEIGHT}"))
}

type Timeouts = (Option<Duration>, Option<Duration>);

/// The two timeouts; zero means none.
fn timeouts(spec: &RuleSpec) -> Result<Timeouts, String> {
    let Some(timeouts) = &spec.timeouts else {
        return Ok((None, None));
    };
    let read = |field: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => duration::gateway_api(text)
            .map(|value| Some(value).filter(|value| !value.is_zero()))
            .ok_or_else(|| format!("timeouts.{field} {text:?} is not a duration such as 10s")),
    };
    let request = read("request", &timeouts.request)?;
    let backend = read("backendRequest", &timeouts.backend_request)?;
    match (request, backend) {
        (Some(request), Some(backend)) if backend > request => {
            Err("timeouts.backendRequest is longer than timeouts.request".to_owned())
        }
        both => Ok(both),
    }
}
