//! The running configuration: a snapshot joined with the live state that outlives it.
//!
//! A new one is built from the previous one: a rule keeps its cursor, a cluster its limits, health and connections. Parts of
//! a snapshot that are the same allocations as in the one before cost no more than a look at them. Requests take Arcs of their rule and cluster out of it and never hold it as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::cluster::LiveCluster;
use super::pool::Demand;
use super::tls::{BindTls, TicketKeys, TlsBasis};
use super::upstream::Origin;
use crate::l7::split::Split;
use crate::snapshot::{
    BackendTarget, Bind, BindKey, Cluster, ClusterKey, Filters, Protocol, Rule, RuleKey, Slots,
    Snapshot, TrafficPolicy,
};

/// A rule with its cursor and its clusters.
#[derive(Debug)]
pub(super) struct LiveRule {
    /// The rule.
    pub(super) rule: Arc<Rule>,
    /// Name in logs.
    pub(super) name: Arc<str>,
    split: Arc<Split>,
    targets: Box<[Option<Arc<LiveCluster>>]>,
    /// Mirrors of the rule, then those of each backend.
    mirrors: Box<[LiveMirror]>,
    backend_mirrors: Box<[Box<[LiveMirror]>]>,
}

/// Where copies of a rule's requests go.
#[derive(Debug)]
pub(super) struct LiveMirror {
    /// A cluster beside the one of that name: its connections, limits and health are the mirrors' own.
    pub(super) cluster: Arc<LiveCluster>,
    numerator: u32,
    denominator: u32,
    http2: bool,
}

impl LiveMirror {
    /// Whether it gets a copy of the next request.
    pub(super) fn takes(&self, random: u64) -> bool {
        random % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }

    /// What its copies need of a connection.
    pub(super) fn demand(&self, origin: Origin) -> Demand {
        let transport = Arc::clone(&self.cluster.view().transport);
        Demand {
            way: transport.way(self.http2, false),
            origin: transport.origin(origin),
            transport,
        }
    }
}

impl LiveRule {
    /// Position of the backend that has its turn; `None`: there is none.
    #[must_use]
    pub(super) fn next(&self) -> Option<usize> {
        self.split.next()
    }

    /// The cluster of a backend; `None`: it is invalid.
    #[must_use]
    pub(super) fn target(&self, backend: usize) -> Option<&Arc<LiveCluster>> {
        self.targets.get(backend)?.as_ref()
    }

    /// Mirrors of requests that go to a backend.
    pub(super) fn mirrors(&self, backend: usize) -> impl Iterator<Item = &LiveMirror> {
        let own = self.backend_mirrors.get(backend);
        self.mirrors.iter().chain(own.into_iter().flatten())
    }

    /// Whether it is exactly what it would become if it were made of this rule and these clusters. One with mirrors never
    /// is: their clusters are made with it.
    fn still_means(&self, rule: &Arc<Rule>, clusters: &Slots<LiveCluster>) -> bool {
        Arc::ptr_eq(&self.rule, rule)
            && self.mirrors.is_empty()
            && self
                .backend_mirrors
                .iter()
                .all(|mirrors| mirrors.is_empty())
            && self
                .targets
                .iter()
                .zip(&rule.backends)
                .all(|(target, backend)| {
                    let now = target_of(&backend.target, clusters);
                    match (target, now) {
                        (Some(target), Some(now)) => Arc::ptr_eq(target, now),
                        (None, None) => true,
                        _ => false,
                    }
                })
    }

    /// Whether a share of it goes to the cluster.
    #[must_use]
    pub(super) fn leads_to(&self, cluster: &Arc<LiveCluster>) -> bool {
        let is = |target: &Option<Arc<LiveCluster>>| {
            target.as_ref().is_some_and(|t| Arc::ptr_eq(t, cluster))
        };
        let mut shares = self.targets.iter().zip(&self.rule.backends);
        shares.any(|(target, backend)| backend.weight > 0 && is(target))
    }
}

/// What the live state is made with.
#[derive(Clone, Debug)]
pub(super) struct Basis {
    /// Workers of this process.
    pub(super) workers: usize,
    /// Differs from node to node: where cursors start.
    pub(super) seed: u64,
    /// What TLS configurations are made with.
    pub(super) tls: TlsBasis,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// Rises with each one built: what was found right under a number is right while it lasts.
    pub(super) number: u64,
    /// Binds by address, port and transport.
    pub(super) binds: HashMap<BindKey, Arc<Bind>>,
    /// All VIP addresses.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Rules, at the snapshot's places.
    pub(super) rules: Slots<LiveRule>,
    /// Clusters, at the snapshot's places.
    pub(super) clusters: Slots<LiveCluster>,
    /// Clusters of mirrors.
    mirrors: BTreeMap<ClusterKey, Arc<LiveCluster>>,
    /// TLS of the binds that terminate it.
    pub(super) tls: HashMap<BindKey, Arc<BindTls>>,
    /// Secrets of session tickets that those were made with.
    tickets: Option<Arc<TicketKeys>>,
}

impl Live {
    /// Joins a snapshot with the live state of the one before it.
    #[must_use]
    pub(super) fn build(snapshot: &Snapshot, previous: &Self, basis: &Basis, now: Instant) -> Self {
        let clusters = live_clusters(snapshot, previous, basis, now);
        let mut mirrors = Mirrors {
            snapshot,
            previous: &previous.mirrors,
            basis,
            now,
            clusters: BTreeMap::new(),
        };
        let rules = live_rules(snapshot, previous, &clusters, &mut mirrors);
        let mirrors = mirrors.clusters;
        let tls = snapshot
            .binds
            .iter()
            .filter(|(_, bind)| bind.protocol == Protocol::Https);
        let tls = tls.map(|(key, bind)| {
            let same_bind = previous
                .binds
                .get(key)
                .is_some_and(|b| Arc::ptr_eq(b, bind));
            let tickets = previous.tickets.as_ref();
            let same_tickets = tickets.is_some_and(|t| Arc::ptr_eq(t, &basis.tls.tickets));
            match previous.tls.get(key) {
                Some(known) if same_bind && same_tickets => (*key, Arc::clone(known)),
                known => {
                    let known = known.map(|known| &**known);
                    (*key, Arc::new(BindTls::build(bind, known, &basis.tls)))
                }
            }
        });
        let tls = tls.collect();
        Self {
            number: previous.number + 1,
            binds: snapshot
                .binds
                .iter()
                .map(|(key, bind)| (*key, Arc::clone(bind)))
                .collect(),
            addresses: snapshot
                .binds
                .keys()
                .map(|key| key.address)
                .chain(snapshot.addresses.keys().copied())
                .collect(),
            rules,
            clusters,
            mirrors,
            tls,
            tickets: Some(Arc::clone(&basis.tls.tickets)),
        }
    }

    /// All clusters, those of mirrors too.
    pub(super) fn all_clusters(&self) -> impl Iterator<Item = &Arc<LiveCluster>> {
        self.clusters.iter().chain(self.mirrors.values())
    }

    /// Clusters that `self` has and `next` has not.
    pub(super) fn gone<'a>(&'a self, next: &'a Self) -> impl Iterator<Item = &'a Arc<LiveCluster>> {
        let moved = displaced(&self.clusters, |at, cluster| {
            let now = next.clusters.get(at);
            now.is_some_and(|now| Arc::ptr_eq(now, cluster))
        });
        let moved: Vec<_> = moved.chain(self.mirrors.values()).collect();
        let kept: HashSet<_> = if moved.is_empty() {
            HashSet::new()
        } else {
            next.all_clusters().map(Arc::as_ptr).collect()
        };
        let gone = moved.into_iter();
        gone.filter(move |cluster| !kept.contains(&Arc::as_ptr(cluster)))
    }
}

/// Values that have not stayed where they were.
fn displaced<T>(
    slots: &Slots<T>,
    stays: impl Fn(usize, &Arc<T>) -> bool,
) -> impl Iterator<Item = &Arc<T>> {
    let places = slots.places().iter().enumerate();
    let values = places.filter_map(|(at, value)| Some((at, value.as_ref()?)));
    let displaced = values.filter(move |(at, value)| !stays(*at, value));
    displaced.map(|(_, value)| value)
}

/// The live state that stays in its place, and what has none there.
fn kept<'a, L, T>(
    wanted: &'a Slots<T>,
    previous: &Slots<L>,
    stays: impl Fn(&L, &Arc<T>) -> bool,
) -> (Slots<L>, Vec<(usize, &'a Arc<T>)>) {
    let (mut live, mut others) = (Slots::default(), Vec::new());
    for (at, value) in wanted.places().iter().enumerate() {
        let here = value.as_ref().and_then(|value| {
            let here = previous.get(at).filter(|live| stays(live, value));
            if here.is_none() {
                others.push((at, value));
            }
            here.cloned()
        });
        live.set(at, here);
    }
    (live, others)
}

/// The clusters of a snapshot. Most are where they were before; the others are looked for by key.
fn live_clusters(
    snapshot: &Snapshot,
    previous: &Live,
    basis: &Basis,
    now: Instant,
) -> Slots<LiveCluster> {
    let (mut clusters, moved) = kept(&snapshot.clusters, &previous.clusters, |live, cluster| {
        live.follow(cluster, now)
    });
    if moved.is_empty() {
        return clusters;
    }
    let elsewhere = displaced(&previous.clusters, |at, live| {
        let now = clusters.get(at);
        now.is_some_and(|now| Arc::ptr_eq(now, live))
    });
    let elsewhere: BTreeMap<&ClusterKey, Arc<LiveCluster>> = elsewhere
        .map(|live| (&live.key, Arc::clone(live)))
        .collect();
    for (at, cluster) in moved {
        let known = elsewhere.get(&cluster.key);
        let live = match known.filter(|live| live.follow(cluster, now)) {
            Some(live) => Arc::clone(live),
            None => Arc::new(LiveCluster::new(cluster, basis.workers, basis.seed, now)),
        };
        clusters.set(at, Some(live));
    }
    clusters
}

/// The rules of a snapshot. Most are where they were before; cursors of the others are looked for by key.
fn live_rules(
    snapshot: &Snapshot,
    previous: &Live,
    clusters: &Slots<LiveCluster>,
    mirrors: &mut Mirrors<'_>,
) -> Slots<LiveRule> {
    let (mut rules, changed) = kept(&snapshot.rules, &previous.rules, |live, rule| {
        live.still_means(rule, clusters)
    });
    if changed.is_empty() {
        return rules;
    }
    let elsewhere = displaced(&previous.rules, |at, live| {
        let rule = snapshot.rules.get(at);
        rule.is_some_and(|rule| Arc::ptr_eq(rule, &live.rule) || rule.key == live.rule.key)
    });
    let elsewhere: BTreeMap<&RuleKey, &Arc<LiveRule>> =
        elsewhere.map(|live| (&live.rule.key, live)).collect();
    for (at, rule) in changed {
        let here = previous.rules.get(at);
        let here = here.filter(|live| live.rule.key == rule.key);
        let before = here.or_else(|| elsewhere.get(&rule.key).copied());
        let cursor = before.map(|live| &live.split);
        let live = live_rule(rule, cursor, clusters, mirrors);
        rules.set(at, Some(Arc::new(live)));
    }
    rules
}

fn live_rule(
    rule: &Arc<Rule>,
    cursor: Option<&Arc<Split>>,
    clusters: &Slots<LiveCluster>,
    mirrors: &mut Mirrors<'_>,
) -> LiveRule {
    let weights: Vec<u32> = rule.backends.iter().map(|b| b.weight).collect();
    let split = match cursor {
        Some(split) => {
            split.set_weights(&weights);
            Arc::clone(split)
        }
        None => Arc::new(Split::new(&weights, mirrors.basis.seed)),
    };
    let target = |target: &BackendTarget| target_of(target, clusters).cloned();
    LiveRule {
        name: rule_name(rule).into(),
        split,
        targets: rule.backends.iter().map(|b| target(&b.target)).collect(),
        mirrors: mirrors.of(rule.filters.as_deref()),
        backend_mirrors: if rule.backends.iter().any(|b| b.filters.is_some()) {
            let own = rule.backends.iter().map(|b| b.filters.as_deref());
            own.map(|filters| mirrors.of(filters)).collect()
        } else {
            Box::default()
        },
        rule: Arc::clone(rule),
    }
}

fn target_of<'a>(
    target: &BackendTarget,
    clusters: &'a Slots<LiveCluster>,
) -> Option<&'a Arc<LiveCluster>> {
    match target {
        BackendTarget::Cluster(at) => clusters.get(*at as usize),
        BackendTarget::Invalid(_) => None,
    }
}

/// As logs show a rule: by its name if it has one, else by its place.
fn rule_name(rule: &Rule) -> String {
    match &rule.name {
        Some(name) => format!("{}/rule/{name}", rule.key.route),
        None => rule.key.to_string(),
    }
}

/// The clusters of mirrors, as they are met.
struct Mirrors<'a> {
    snapshot: &'a Snapshot,
    previous: &'a BTreeMap<ClusterKey, Arc<LiveCluster>>,
    basis: &'a Basis,
    now: Instant,
    clusters: BTreeMap<ClusterKey, Arc<LiveCluster>>,
}

impl Mirrors<'_> {
    /// The mirrors of a list of filters; an invalid target gets no copies.
    fn of(&mut self, filters: Option<&Filters>) -> Box<[LiveMirror]> {
        let given = filters.map_or(&[][..], |filters| &filters.mirrors);
        let valid = given.iter().filter_map(|mirror| {
            let BackendTarget::Cluster(at) = mirror.target else {
                return None;
            };
            Some(LiveMirror {
                cluster: self.cluster(at)?,
                numerator: mirror.numerator,
                denominator: mirror.denominator,
                http2: mirror.http2,
            })
        });
        valid.collect()
    }

    fn cluster(&mut self, at: u32) -> Option<Arc<LiveCluster>> {
        let cluster = self.snapshot.clusters.get(at as usize)?;
        if let Some(known) = self.clusters.get(&cluster.key) {
            return Some(Arc::clone(known));
        }
        let own = Arc::new(Cluster {
            policy: Arc::new(TrafficPolicy {
                tls: cluster.policy.tls.clone(),
                proxy_protocol: cluster.policy.proxy_protocol,
                ..TrafficPolicy::default()
            }),
            ..Cluster::clone(cluster)
        });
        let live = match self.previous.get(&cluster.key) {
            Some(live) => {
                live.follow(&own, self.now);
                Arc::clone(live)
            }
            None => Arc::new(LiveCluster::new(
                &own,
                self.basis.workers,
                self.basis.seed,
                self.now,
            )),
        };
        self.clusters.insert(cluster.key.clone(), Arc::clone(&live));
        Some(live)
    }
}
