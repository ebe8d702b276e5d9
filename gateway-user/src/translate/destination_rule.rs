//! DestinationRules: which one applies to a Service as a Gateway sees it, in Istio's order, and what its status says.
//!
//! Order: the Gateway's namespace, the Service's, `istio-system`; the first with a match wins and nothing is merged across
//! namespaces. Inside one an exact host comes before wildcards, the longest wildcard first; of several rules for one host
//! the first with a trafficPolicy counts. Subsets are inert: a Gateway API route cannot name one.

use std::collections::{BTreeMap, BTreeSet};

use super::Inputs;
use super::condition::{ClassStatus, Condition, list};
use super::listener::Fault;
use super::objects::DestinationRule;
use super::traffic_policy::Policies;
use super::upstream_tls::{SERVICE_DOMAIN, ServicePortKey};
use crate::snapshot::{AppProtocol, Cluster, ObjectKey, TrafficPolicy};

const ROOT_NAMESPACE: &str = "istio-system";

/// One rule, compiled.
pub(super) struct Rule<'a> {
    pub(super) key: ObjectKey,
    object: &'a DestinationRule,
    host: String,
    policies: Result<Policies, String>,
}

/// All rules, indexed for the lookup.
pub(super) struct Rules<'a> {
    /// In Istio's order: creation time, name, namespace.
    rules: Vec<Rule<'a>>,
    namespaces: BTreeMap<&'a str, Hosts>,
}

/// Positions of the rules of one namespace.
#[derive(Default)]
struct Hosts {
    exact: BTreeMap<String, Vec<usize>>,
    /// By suffix, longest first.
    wildcards: Vec<(String, Vec<usize>)>,
}

impl Rule<'_> {
    /// The policy and protocol for a port of a Service.
    pub(super) fn policy(
        &self,
        to: ServicePortKey<'_>,
    ) -> Result<(TrafficPolicy, AppProtocol), Fault> {
        let policies = self.policies.as_ref();
        policies
            .map_err(|message| ("UnsupportedProtocol", message.clone()))
            .and_then(|policies| policies.for_port(to))
            .map_err(|(reason, why)| (reason, format!("DestinationRule {}: {why}", self.key)))
    }

    /// Why the rule takes part in no lookup, if it does not.
    fn fault(&self) -> Option<Fault> {
        if let Err(message) = &self.policies {
            return Some(("Invalid", message.clone()));
        }
        if self.object.spec.host.is_empty() {
            return Some(("Invalid", "host is missing".to_owned()));
        }
        if self.object.spec.workload_selector.is_some() {
            let message =
                "workloadSelector is not supported: it would limit the rule to some proxies";
            return Some(("UnsupportedValue", message.to_owned()));
        }
        None
    }

    fn exported_to(&self, namespace: &str) -> bool {
        let export = &self.object.spec.export_to;
        export.is_empty()
            || export.iter().any(|to| match to.as_str() {
                "*" => true,
                "." => *self.key.namespace == *namespace,
                other => other == namespace,
            })
    }

    fn private(&self) -> bool {
        !self.object.spec.export_to.is_empty()
            && self.object.spec.export_to.iter().all(|to| to == ".")
    }
}

impl<'a> Rules<'a> {
    pub(super) fn new(inputs: &'a Inputs) -> Self {
        let mut rules: Vec<Rule<'a>> = inputs
            .destination_rules
            .iter()
            .map(|(key, object)| Rule {
                key: key.clone(),
                object,
                host: full_host(&object.spec.host, &key.namespace),
                policies: Policies::compile(
                    inputs,
                    &key.namespace,
                    object.spec.traffic_policy.as_ref(),
                ),
            })
            .collect();
        rules.sort_by(|a, b| {
            let order = |rule: &Rule<'a>| {
                let metadata = &rule.object.metadata;
                let created = metadata.creation_timestamp.as_deref().unwrap_or("");
                (created, metadata.name.as_str(), metadata.namespace.as_str())
            };
            order(a).cmp(&order(b))
        });
        let mut namespaces: BTreeMap<&'a str, Hosts> = BTreeMap::new();
        for (at, rule) in rules.iter().enumerate() {
            if rule.fault().is_some() {
                continue;
            }
            let hosts = namespaces
                .entry(&rule.object.metadata.namespace)
                .or_default();
            match rule.host.strip_prefix('*') {
                None => hosts.exact.entry(rule.host.clone()).or_default().push(at),
                Some(suffix) => match hosts.wildcards.iter_mut().find(|(s, _)| s == suffix) {
                    Some((_, group)) => group.push(at),
                    None => hosts.wildcards.push((suffix.to_owned(), vec![at])),
                },
            }
        }
        for hosts in namespaces.values_mut() {
            hosts
                .wildcards
                .sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        }
        Self { rules, namespaces }
    }

    /// The rule that applies to a Service for Gateways of a namespace.
    pub(super) fn lookup(&self, gateway_namespace: &str, service: &ObjectKey) -> Option<&Rule<'a>> {
        let host = service_host(service);
        let own = |rule: &Rule<'_>| gateway_namespace != ROOT_NAMESPACE || rule.private();
        let exported = |rule: &Rule<'_>| rule.exported_to(gateway_namespace);
        self.find(gateway_namespace, &host, own)
            .or_else(|| self.find(&service.namespace, &host, exported))
            .or_else(|| self.find(ROOT_NAMESPACE, &host, exported))
    }

    fn find(
        &self,
        namespace: &str,
        host: &str,
        visible: impl Fn(&Rule<'a>) -> bool,
    ) -> Option<&Rule<'a>> {
        let hosts = self.namespaces.get(namespace)?;
        let wildcards = hosts
            .wildcards
            .iter()
            .filter(|(suffix, _)| host.ends_with(suffix.as_str()))
            .map(|(_, group)| group);
        hosts
            .exact
            .get(host)
            .into_iter()
            .chain(wildcards)
            .find_map(|group| {
                let mut seen = group
                    .iter()
                    .map(|&at| &self.rules[at])
                    .filter(|rule| visible(rule));
                let first = seen.next()?;
                let with_policy = |rule: &&Rule<'a>| rule.object.spec.traffic_policy.is_some();
                Some(if with_policy(&first) {
                    first
                } else {
                    seen.find(with_policy).unwrap_or(first)
                })
            })
    }

    /// Statuses of all rules, given the clusters that are in use.
    pub(super) fn statuses(
        &self,
        inputs: &Inputs,
        clusters: &[std::sync::Arc<Cluster>],
    ) -> BTreeMap<ObjectKey, ClassStatus> {
        let mut by_rule: BTreeMap<&ObjectKey, Vec<&Cluster>> = BTreeMap::new();
        let mut by_host: BTreeMap<String, BTreeSet<&ObjectKey>> = BTreeMap::new();
        for cluster in clusters {
            if let Some(rule) = &cluster.key.destination_rule {
                by_rule.entry(rule).or_default().push(cluster);
                by_host
                    .entry(service_host(&cluster.key.service))
                    .or_default()
                    .insert(rule);
            }
        }
        self.rules
            .iter()
            .map(|rule| {
                let used = by_rule.get(&rule.key).map_or(&[][..], Vec::as_slice);
                let unsupported = match &rule.policies {
                    Ok(policies) => {
                        let top = rule
                            .object
                            .spec
                            .unread
                            .keys()
                            .map(|field| format!("spec.{field}"));
                        top.chain(policies.unsupported.iter().map(|f| format!("spec.{f}")))
                            .collect()
                    }
                    Err(_) => Vec::new(),
                };
                let generation = rule.object.metadata.generation();
                let conditions = [rule.applied(inputs, used, &by_host)]
                    .into_iter()
                    .chain(Condition::unsupported_fields(&unsupported))
                    .chain(ejection(used))
                    .map(|condition| condition.at(generation))
                    .collect();
                (rule.key.clone(), ClassStatus { conditions })
            })
            .collect()
    }
}

impl Rule<'_> {
    fn applied(
        &self,
        inputs: &Inputs,
        used: &[&Cluster],
        by_host: &BTreeMap<String, BTreeSet<&ObjectKey>>,
    ) -> Condition {
        const TYPE: &str = "forebay.dev/Applied";
        if let Some((reason, message)) = self.fault() {
            return Condition::no(TYPE, reason, message);
        }
        if !used.is_empty() {
            let names: Vec<_> = used.iter().map(|cluster| cluster.key.to_string()).collect();
            let subsets = match self.object.spec.subsets.len() {
                0 => String::new(),
                n => format!("; its {n} subsets are inert: no route can name one"),
            };
            return Condition::yes(
                TYPE,
                "Applied",
                format!("applies to {}{subsets}", list(&names)),
            );
        }
        if let Some(refused) = self.policies.as_ref().ok().and_then(Policies::refused) {
            return Condition::no(TYPE, refused.reason, refused.message.clone());
        }
        let others: BTreeSet<String> = match self.host.strip_prefix('*') {
            None => by_host
                .get(&self.host)
                .into_iter()
                .flatten()
                .map(ToString::to_string)
                .collect(),
            Some(suffix) => by_host
                .iter()
                .filter(|(host, _)| host.ends_with(suffix))
                .flat_map(|(_, rules)| rules.iter().map(ToString::to_string))
                .collect(),
        };
        if !others.is_empty() {
            let others: Vec<_> = others.into_iter().collect();
            let message = format!(
                "DestinationRule {} comes first for host {}",
                list(&others),
                self.host
            );
            return Condition::no(TYPE, "Shadowed", message);
        }
        if !self.host.starts_with('*') && !names_a_service(inputs, &self.host) {
            let message = format!(
                "host {} names no Service; write SERVICE.NAMESPACE{SERVICE_DOMAIN} or, in the rule's own namespace, SERVICE",
                self.host
            );
            return Condition::no(TYPE, "HostNotFound", message);
        }
        let message = format!(
            "no route sends requests to host {} through a Gateway that can see the rule",
            self.host
        );
        Condition::no(TYPE, "NotReferenced", message)
    }
}

/// A warning if the cap on ejections is so low that no endpoint can ever be ejected.
fn ejection(used: &[&Cluster]) -> Option<Condition> {
    let never: Vec<String> = used
        .iter()
        .filter_map(|cluster| {
            let outlier = cluster.policy.outlier.as_ref()?;
            let count = u32::try_from(cluster.endpoints.len()).unwrap_or(u32::MAX);
            let share = 100u32.checked_div(count)?;
            (share > outlier.max_ejection_percent).then(|| {
                format!(
                    "one of {count} of {} is {share} percent, maxEjectionPercent is {}",
                    cluster.key, outlier.max_ejection_percent
                )
            })
        })
        .collect();
    (!never.is_empty()).then(|| {
        let message = format!("no endpoint can be ejected: {}", list(&never));
        Condition::no(
            "forebay.dev/EjectionPossible",
            "MaxEjectionPercentTooLow",
            message,
        )
    })
}

/// Istio: a name without a dot is a Service of the rule's namespace, everything else is taken as it is.
fn full_host(host: &str, namespace: &str) -> String {
    if host.is_empty() || host.contains('.') || host.starts_with('*') {
        host.to_ascii_lowercase()
    } else {
        format!("{}.{namespace}{SERVICE_DOMAIN}", host.to_ascii_lowercase())
    }
}

fn service_host(service: &ObjectKey) -> String {
    format!("{}.{}{SERVICE_DOMAIN}", service.name, service.namespace)
}

fn names_a_service(inputs: &Inputs, host: &str) -> bool {
    host.strip_suffix(SERVICE_DOMAIN)
        .and_then(|short| short.rsplit_once('.'))
        .is_some_and(|(name, namespace)| {
            inputs
                .services
                .contains_key(&ObjectKey::new(namespace, name))
        })
}
