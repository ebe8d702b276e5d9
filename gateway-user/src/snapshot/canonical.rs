//! The one form of a configuration: equal whatever came before it.
//!
//! Places of rules and clusters depend on what was there earlier. Whoever compares or shows configurations puts them in
//! this form first: clusters sorted by key, rules by key and what they lead to, no place empty.

use std::sync::Arc;

use super::{BackendTarget, Bind, Filters, Listener, Rule, Slots, Snapshot};

impl Snapshot {
    /// The same configuration with all places in order.
    #[must_use]
    pub fn canonical(&self) -> Self {
        let mut clusters: Vec<usize> = occupied(&self.clusters);
        clusters.sort_by(|a, b| self.clusters[*a].key.cmp(&self.clusters[*b].key));
        let cluster_places = inverse(&clusters);
        let mut rules: Vec<(usize, Arc<Rule>)> = occupied(&self.rules)
            .into_iter()
            .map(|at| {
                let rule = Rule::clone(&self.rules[at]);
                (at, Arc::new(moved_rule(rule, &cluster_places)))
            })
            .collect();
        rules.sort_by_cached_key(|(_, rule)| {
            // Rules of one key differ in what they lead to.
            let text = serde_json::to_string(rule).unwrap_or_default();
            (rule.key.clone(), text)
        });
        let order: Vec<usize> = rules.iter().map(|(at, _)| *at).collect();
        let rule_places = inverse(&order);
        let binds = self.binds.iter().map(|(key, bind)| {
            let listeners = bind.listeners.iter();
            let listeners = listeners.map(|listener| moved_listener(listener, &rule_places));
            let bind = Bind {
                listeners: listeners.collect(),
                ..Bind::clone(bind)
            };
            (*key, Arc::new(bind))
        });
        Self {
            binds: binds.collect(),
            rules: rules.into_iter().map(|(_, rule)| rule).collect(),
            clusters: clusters
                .iter()
                .map(|at| Arc::clone(&self.clusters[*at]))
                .collect(),
            ..self.clone()
        }
    }
}

fn occupied<T>(slots: &Slots<T>) -> Vec<usize> {
    let places = slots.places().iter().enumerate();
    places
        .filter_map(|(at, value)| value.as_ref().map(|_| at))
        .collect()
}

/// New places by old ones.
fn inverse(order: &[usize]) -> Vec<u32> {
    let mut places = vec![u32::MAX; order.iter().max().map_or(0, |last| last + 1)];
    for (new, &old) in (0u32..).zip(order) {
        places[old] = new;
    }
    places
}

/// A place that nothing has stays one.
fn moved(place: u32, places: &[u32]) -> u32 {
    places.get(place as usize).copied().unwrap_or(u32::MAX)
}

fn moved_listener(listener: &Arc<Listener>, places: &[u32]) -> Arc<Listener> {
    let mut own = Listener::clone(listener);
    own.router = own.router.renumbered(|rule| moved(rule, places));
    own.rule = own.rule.map(|rule| moved(rule, places));
    Arc::new(own)
}

fn moved_rule(mut rule: Rule, places: &[u32]) -> Rule {
    move_mirrors(rule.filters.as_mut(), places);
    for backend in &mut rule.backends {
        move_target(&mut backend.target, places);
        move_mirrors(backend.filters.as_mut(), places);
    }
    rule
}

fn move_mirrors(filters: Option<&mut Arc<Filters>>, places: &[u32]) {
    let Some(filters) = filters.filter(|filters| !filters.mirrors.is_empty()) else {
        return;
    };
    for mirror in &mut Arc::make_mut(filters).mirrors {
        move_target(&mut mirror.target, places);
    }
}

fn move_target(target: &mut BackendTarget, places: &[u32]) {
    if let BackendTarget::Cluster(place) = target {
        *place = moved(*place, places);
    }
}
