//! The running configuration: a snapshot joined with the live state that outlives it.
//!
//! A new one is built from the previous one: a rule keeps its cursor, a cluster its limits, health and connections.
//! Requests take Arcs of their rule and cluster out of it and never hold it as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::cluster::LiveCluster;
use crate::l7::split::Split;
use crate::snapshot::{BackendTarget, Bind, BindKey, ClusterKey, Rule, RuleKey, Snapshot};

/// A rule with its cursor and its clusters.
#[derive(Debug)]
pub(super) struct LiveRule {
    /// The rule.
    pub(super) rule: Arc<Rule>,
    /// Name in logs.
    pub(super) name: Arc<str>,
    split: Arc<Split>,
    targets: Box<[Option<Arc<LiveCluster>>]>,
}

impl LiveRule {
    /// Where the next request goes; `None`: no backend, or an invalid one had its turn.
    #[must_use]
    pub(super) fn next(&self) -> Option<Arc<LiveCluster>> {
        self.targets.get(self.split.next()?)?.clone()
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
#[derive(Clone, Copy, Debug)]
pub(super) struct Basis {
    /// Workers of this process.
    pub(super) workers: usize,
    /// Differs from node to node: where cursors start.
    pub(super) seed: u64,
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
    /// Rules, in the snapshot's order.
    pub(super) rules: Vec<Arc<LiveRule>>,
    /// Clusters, in the snapshot's order.
    pub(super) clusters: Vec<Arc<LiveCluster>>,
}

impl Live {
    /// Joins a snapshot with the live state of the one before it.
    #[must_use]
    pub(super) fn build(snapshot: &Snapshot, previous: &Self, basis: Basis, now: Instant) -> Self {
        let known: BTreeMap<&ClusterKey, &Arc<LiveCluster>> =
            previous.clusters.iter().map(|c| (&c.key, c)).collect();
        let clusters: Vec<_> = snapshot
            .clusters
            .iter()
            .map(|cluster| match known.get(&cluster.key) {
                Some(live) => {
                    live.update(cluster, now);
                    Arc::clone(live)
                }
                None => Arc::new(LiveCluster::new(cluster, basis.workers, basis.seed, now)),
            })
            .collect();
        let cursors: BTreeMap<&RuleKey, &Arc<Split>> = previous
            .rules
            .iter()
            .map(|r| (&r.rule.key, &r.split))
            .collect();
        let rules = snapshot
            .rules
            .iter()
            .map(|rule| {
                let cursor = cursors.get(&rule.key).copied();
                Arc::new(live_rule(rule, cursor, &clusters, basis.seed))
            })
            .collect();
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
        }
    }

    /// Clusters that `self` has and `next` has not.
    pub(super) fn gone<'a>(&'a self, next: &'a Self) -> impl Iterator<Item = &'a Arc<LiveCluster>> {
        let kept: BTreeSet<&ClusterKey> = next.clusters.iter().map(|c| &c.key).collect();
        self.clusters.iter().filter(move |c| !kept.contains(&c.key))
    }
}

fn live_rule(
    rule: &Arc<Rule>,
    cursor: Option<&Arc<Split>>,
    clusters: &[Arc<LiveCluster>],
    seed: u64,
) -> LiveRule {
    let weights: Vec<u32> = rule.backends.iter().map(|b| b.weight).collect();
    let split = match cursor {
        Some(split) => {
            split.set_weights(&weights);
            Arc::clone(split)
        }
        None => Arc::new(Split::new(&weights, seed)),
    };
    let target = |target: &BackendTarget| match target {
        BackendTarget::Cluster(at) => clusters.get(*at as usize).cloned(),
        BackendTarget::Invalid(_) => None,
    };
    LiveRule {
        name: rule.key.to_string().into(),
        split,
        targets: rule.backends.iter().map(|b| target(&b.target)).collect(),
        rule: Arc::clone(rule),
    }
}
