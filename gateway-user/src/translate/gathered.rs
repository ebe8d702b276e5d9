//! What translate gathers over all routes: rules, and the clusters that they lead to.

use std::sync::Arc;

use super::cluster::Clusters;
use crate::snapshot::{BackendTarget, Filters, Rule};

/// Rules and clusters, in the order in which routes brought them.
pub(super) struct Gathered<'a> {
    pub(super) clusters: Clusters<'a>,
    pub(super) rules: Vec<Rule>,
}

impl Gathered<'_> {
    /// Adds a rule that is attached somewhere, and gives its position.
    pub(super) fn add(&mut self, rule: Rule) -> u32 {
        for target in targets(&rule) {
            if let BackendTarget::Cluster(cluster) = target {
                self.clusters.mark_used(*cluster);
            }
        }
        let position =
            u32::try_from(self.rules.len()).expect("fewer than 2^32 rules fit in memory");
        self.rules.push(rule);
        position
    }
}

/// All that a rule leads to: backends, and mirrors of the rule and of its backends.
fn targets(rule: &Rule) -> impl Iterator<Item = &BackendTarget> {
    let of_backends = rule.backends.iter().filter_map(|b| b.filters.as_deref());
    let mirrors = of_backends
        .chain(rule.filters.as_deref())
        .flat_map(|filters| filters.mirrors.iter().map(|mirror| &mirror.target));
    let backends = rule.backends.iter().map(|backend| &backend.target);
    backends.chain(mirrors)
}

/// Points all that a rule leads to at the final positions of the clusters.
pub(super) fn settle(mut rule: Rule, moved: &[u32]) -> Rule {
    settle_mirrors(rule.filters.as_mut(), moved);
    for backend in &mut rule.backends {
        settle_target(&mut backend.target, moved);
        settle_mirrors(backend.filters.as_mut(), moved);
    }
    rule
}

fn settle_mirrors(filters: Option<&mut Arc<Filters>>, moved: &[u32]) {
    let Some(filters) = filters.filter(|filters| !filters.mirrors.is_empty()) else {
        return;
    };
    for mirror in &mut Arc::make_mut(filters).mirrors {
        settle_target(&mut mirror.target, moved);
    }
}

fn settle_target(target: &mut BackendTarget, moved: &[u32]) {
    if let BackendTarget::Cluster(position) = target {
        *position = moved[*position as usize];
    }
}
