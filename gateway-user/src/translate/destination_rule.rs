//! DestinationRules: which one applies to a Service as a Gateway sees it, in Istio's order, and what its status says.
//!
//! Order: the Gateway's namespace, the Service's, `istio-system`; the first with a match wins and nothing is merged across
//! namespaces. Inside one an exact host comes before wildcards, the longest wildcard first; of several rules for one host
//! the first with a trafficPolicy counts. Subsets are inert: a Gateway API route cannot name one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Inputs;
use super::condition::{ClassStatus, Condition, list};
use super::listener::Fault;
use super::objects::DestinationRule;
use super::traffic_policy::Policies;
use super::upstream_tls::{SERVICE_DOMAIN, ServicePortKey};
use crate::snapshot::{AppProtocol, Cluster, ClusterKey, ObjectKey, TrafficPolicy};

const ROOT_NAMESPACE: &str = "istio-system";

/// One rule, compiled.
pub(super) struct Rule {
    pub(super) key: ObjectKey,
    object: Arc<DestinationRule>,
    host: String,
    policies: Result<Policies, String>,
}

/// All rules, indexed for the lookup, and their statuses. Kept from one translation to the next.
#[derive(Default)]
pub(super) struct Rules {
    by_key: BTreeMap<ObjectKey, Arc<Rule>>,
    /// In Istio's order: creation time, name, namespace.
    rules: Vec<Arc<Rule>>,
    namespaces: BTreeMap<String, Hosts>,
    /// All rules by their exact hosts, whatever their namespaces and faults.
    exact: BTreeMap<String, Vec<ObjectKey>>,
    /// All rules with a wildcard, by suffix.
    wildcards: Vec<(String, ObjectKey)>,
    /// Clusters in use, by the rule that applies to them.
    used: BTreeMap<ObjectKey, BTreeMap<ClusterKey, Arc<Cluster>>>,
    /// Rules that apply to a host, with the number of its clusters.
    by_host: BTreeMap<String, BTreeMap<ObjectKey, usize>>,
    statuses: Arc<BTreeMap<ObjectKey, Arc<ClassStatus>>>,
    /// Rules whose status has to be made anew.
    stale: BTreeSet<ObjectKey>,
}

/// The host of a rule: one, or all that end in a suffix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HostPattern {
    /// One.
    Exact(String),
    /// All that end in this.
    Suffix(String),
}

impl HostPattern {
    fn of(host: &str) -> Self {
        match host.strip_prefix('*') {
            Some(suffix) => Self::Suffix(suffix.to_owned()),
            None => Self::Exact(host.to_owned()),
        }
    }

    /// Whether it is for a Service.
    pub(super) fn covers(&self, service: &ObjectKey) -> bool {
        let host = service_host(service);
        match self {
            Self::Exact(own) => *own == host,
            Self::Suffix(suffix) => host.ends_with(suffix.as_str()),
        }
    }
}

/// Positions of the rules of one namespace.
#[derive(Default)]
struct Hosts {
    exact: BTreeMap<String, Vec<usize>>,
    /// By suffix, longest first.
    wildcards: Vec<(String, Vec<usize>)>,
}

impl Rule {
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

impl Rules {
    /// Reads changed rules anew; gives the hosts that they are or were for.
    pub(super) fn update(
        &mut self,
        inputs: &Inputs,
        changed: impl IntoIterator<Item = ObjectKey>,
    ) -> BTreeSet<HostPattern> {
        let mut hosts = BTreeSet::new();
        let mut any = false;
        for key in changed {
            any = true;
            if let Some(old) = self.by_key.remove(&key) {
                hosts.insert(HostPattern::of(&old.host));
            }
            if let Some(object) = inputs.destination_rules.get(&key) {
                let policy = object.spec.traffic_policy.as_ref();
                let rule = Rule {
                    key: key.clone(),
                    object: Arc::clone(object),
                    host: full_host(&object.spec.host, &key.namespace),
                    policies: Policies::compile(inputs, &key.namespace, policy),
                };
                hosts.insert(HostPattern::of(&rule.host));
                self.by_key.insert(key.clone(), Arc::new(rule));
            }
            self.stale.insert(key);
        }
        if any {
            self.index();
        }
        hosts
    }

    /// Rules of a namespace that may read its Secrets.
    pub(super) fn with_tls(&self, namespace: &str) -> impl Iterator<Item = ObjectKey> {
        let first = ObjectKey::new(namespace, "");
        self.by_key
            .range(first..)
            .take_while(move |(key, _)| *key.namespace == *namespace)
            .filter(|(_, rule)| rule.has_tls())
            .map(|(key, _)| key.clone())
    }

    fn index(&mut self) {
        let mut rules: Vec<Arc<Rule>> = self.by_key.values().cloned().collect();
        rules.sort_by(|a, b| a.order().cmp(&b.order()));
        let mut namespaces: BTreeMap<String, Hosts> = BTreeMap::new();
        self.exact.clear();
        self.wildcards.clear();
        for (at, rule) in rules.iter().enumerate() {
            match HostPattern::of(&rule.host) {
                HostPattern::Exact(host) => {
                    self.exact.entry(host).or_default().push(rule.key.clone());
                }
                HostPattern::Suffix(suffix) => self.wildcards.push((suffix, rule.key.clone())),
            }
            if rule.fault().is_some() {
                continue;
            }
            let namespace = &rule.object.metadata.namespace;
            let hosts = match namespaces.get_mut(&**namespace) {
                Some(hosts) => hosts,
                None => namespaces.entry(namespace.to_string()).or_default(),
            };
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
        self.rules = rules;
        self.namespaces = namespaces;
    }

    /// The rule that applies to a Service for Gateways of a namespace.
    pub(super) fn lookup(&self, gateway_namespace: &str, service: &ObjectKey) -> Option<&Rule> {
        let host = service_host(service);
        let own = |rule: &Rule| gateway_namespace != ROOT_NAMESPACE || rule.private();
        let exported = |rule: &Rule| rule.exported_to(gateway_namespace);
        self.find(gateway_namespace, &host, own)
            .or_else(|| self.find(&service.namespace, &host, exported))
            .or_else(|| self.find(ROOT_NAMESPACE, &host, exported))
    }

    fn find(&self, namespace: &str, host: &str, visible: impl Fn(&Rule) -> bool) -> Option<&Rule> {
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
                    .map(|&at| &*self.rules[at])
                    .filter(|rule| visible(rule));
                let first = seen.next()?;
                let with_policy = |rule: &&Rule| rule.object.spec.traffic_policy.is_some();
                Some(if with_policy(&first) {
                    first
                } else {
                    seen.find(with_policy).unwrap_or(first)
                })
            })
    }

    /// Notes that a cluster came, changed or went.
    pub(super) fn cluster(&mut self, before: Option<&Arc<Cluster>>, now: Option<&Arc<Cluster>>) {
        let Some(key) = before.or(now).map(|cluster| &cluster.key) else {
            return;
        };
        let Some(rule) = &key.destination_rule else {
            return;
        };
        self.stale.insert(rule.clone());
        let clusters = self.used.entry(rule.clone()).or_default();
        match now {
            Some(cluster) => drop(clusters.insert(key.clone(), Arc::clone(cluster))),
            None => drop(clusters.remove(key)),
        }
        if clusters.is_empty() {
            self.used.remove(rule);
        }
        if before.is_some() == now.is_some() {
            return;
        }
        let host = service_host(&key.service);
        let rules = self.by_host.entry(host.clone()).or_default();
        let count = rules.entry(rule.clone()).or_default();
        if now.is_some() {
            *count += 1;
        } else {
            *count -= 1;
        }
        if *count == 0 {
            rules.remove(rule);
        }
        if rules.is_empty() {
            self.by_host.remove(&host);
        }
        // They may be shadowed now, or not any more.
        let covering = self.wildcards.iter();
        let covering = covering.filter(|(suffix, _)| host.ends_with(suffix.as_str()));
        self.stale.extend(covering.map(|(_, rule)| rule.clone()));
        self.host_changed(&host);
    }

    /// Notes that a Service came or went.
    pub(super) fn service(&mut self, service: &ObjectKey) {
        self.host_changed(&service_host(service));
    }

    fn host_changed(&mut self, host: &str) {
        let rules = self.exact.get(host).into_iter().flatten();
        self.stale.extend(rules.cloned());
    }

    /// Statuses of all rules, given the clusters that were told.
    pub(super) fn statuses(
        &mut self,
        inputs: &Inputs,
    ) -> Arc<BTreeMap<ObjectKey, Arc<ClassStatus>>> {
        for key in std::mem::take(&mut self.stale) {
            let now = self.by_key.get(&key).map(|rule| self.status(inputs, rule));
            if self.statuses.get(&key).map(|status| &**status) == now.as_ref() {
                continue;
            }
            let statuses = Arc::make_mut(&mut self.statuses);
            match now {
                Some(status) => drop(statuses.insert(key, Arc::new(status))),
                None => drop(statuses.remove(&key)),
            }
        }
        Arc::clone(&self.statuses)
    }

    fn status(&self, inputs: &Inputs, rule: &Rule) -> ClassStatus {
        let used = self.used.get(&rule.key);
        let used: Vec<&Cluster> = used
            .into_iter()
            .flat_map(BTreeMap::values)
            .map(|c| &**c)
            .collect();
        let unsupported = match &rule.policies {
            Ok(policies) => {
                let fields = rule.object.spec.unread.keys();
                let top = fields.map(|field| format!("spec.{field}"));
                top.chain(policies.unsupported.iter().map(|f| format!("spec.{f}")))
                    .collect()
            }
            Err(_) => Vec::new(),
        };
        let generation = rule.object.metadata.generation();
        let conditions: Vec<_> = [rule.applied(inputs, &used, &self.by_host)]
            .into_iter()
            .chain(Condition::unsupported_fields(&unsupported))
            .chain(ejection(&used))
            .map(|condition| condition.at(generation))
            .collect();
        conditions.into()
    }
}

impl Rule {
    /// Istio's order.
    fn order(&self) -> (&str, &str, &str) {
        let metadata = &self.object.metadata;
        let created = metadata.creation_timestamp.as_deref().unwrap_or("");
        (created, &metadata.name, &metadata.namespace)
    }

    fn has_tls(&self) -> bool {
        self.object
            .spec
            .traffic_policy
            .as_ref()
            .is_some_and(|policy| {
                let mut levels = policy.port_level_settings.iter();
                policy.tls.is_some() || levels.any(|level| level.tls.is_some())
            })
    }
}

impl Rule {
    fn applied(
        &self,
        inputs: &Inputs,
        used: &[&Cluster],
        by_host: &BTreeMap<String, BTreeMap<ObjectKey, usize>>,
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
                .flat_map(|rules| rules.keys().map(ToString::to_string))
                .collect(),
            Some(suffix) => by_host
                .iter()
                .filter(|(host, _)| host.ends_with(suffix))
                .flat_map(|(_, rules)| rules.keys().map(ToString::to_string))
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
