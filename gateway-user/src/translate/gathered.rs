//! What translate gathers over all routes: rules, and the clusters that they lead to, by places that they keep.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::cluster::{Clusters, free_place};
use super::condition::RouteStatus;
use super::gateway::Gateways;
use super::listener_routes::RouteId;
use crate::snapshot::{BackendTarget, Hostname, ObjectKey, Rule, Slots};

/// Rules and clusters. Kept from one translation to the next.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) clusters: Clusters,
    pub(super) rules: Slots<Rule>,
    free: BTreeSet<u32>,
}

/// What became of one route: all that has to be undone before it is read again. There is one for each route, so it holds
/// lists: a set of one element has the size of eleven.
#[derive(Default)]
pub(super) struct Attachment {
    /// Its status; none: it names none of our Gateways.
    pub(super) status: Option<Arc<RouteStatus>>,
    /// Its rules with their places.
    pub(super) rules: Vec<(u32, Arc<Rule>)>,
    /// Services that its backendRefs name, those of mirrors included.
    pub(super) services: Box<[ObjectKey]>,
    /// Listeners that admit it.
    pub(super) places: Vec<Place>,
}

/// A listener that admits a route.
pub(super) struct Place {
    /// The Gateway.
    pub(super) gateway: ObjectKey,
    /// Position of the listener.
    pub(super) listener: usize,
    /// Hostnames that the route claims there.
    pub(super) hosts: Box<[Option<Hostname>]>,
}

impl Attachment {
    /// Gives back the room that its lists have for more.
    pub(super) fn pack(&mut self) {
        self.rules.shrink_to_fit();
        self.places.shrink_to_fit();
    }

    /// Whether the listener is among its places.
    pub(super) fn has(&self, gateway: &ObjectKey, listener: usize) -> bool {
        let mut places = self.places.iter();
        places.any(|place| place.listener == listener && place.gateway == *gateway)
    }

    /// Takes the route out of all listeners.
    pub(super) fn detach(&mut self, route: &RouteId, gateways: &mut Gateways) {
        for place in self.places.drain(..) {
            if let Some(gateway) = gateways.get_mut(&place.gateway) {
                gateway.changed = true;
                if let Some(listener) = gateway.listeners.get_mut(place.listener) {
                    listener.routes.detach(route, &place.hosts);
                }
            }
        }
    }

    /// Whether a route of another kind claims one of its hostnames.
    pub(super) fn contested(&self, route: &RouteId, gateways: &Gateways) -> bool {
        self.places.iter().any(|place| {
            let gateway = gateways.get(&place.gateway);
            let listener = gateway.and_then(|gateway| gateway.listeners.get(place.listener));
            listener.is_some_and(|listener| listener.routes.contests(route.0, &place.hosts.iter()))
        })
    }
}

impl Gathered {
    /// Puts a rule that is attached somewhere into the snapshot's: one that the route had `before` keeps its place, and
    /// is the same object if nothing of it has changed.
    pub(super) fn add(
        &mut self,
        rule: Rule,
        before: &mut Vec<(u32, Arc<Rule>)>,
    ) -> (u32, Arc<Rule>) {
        for position in clusters(&rule) {
            self.clusters.hold(position);
        }
        let equal = before.iter().position(|(_, old)| **old == rule);
        if let Some(at) = equal {
            let (position, old) = before.swap_remove(at);
            // Taken out of `before`, so its references are given back here.
            self.release(&old);
            return (position, old);
        }
        let similar = before.iter().position(|(_, old)| old.key == rule.key);
        let position = match similar {
            Some(at) => {
                let (position, old) = before.swap_remove(at);
                self.release(&old);
                position
            }
            None => free_place(&mut self.free, self.rules.places().len()),
        };
        let rule = Arc::new(rule);
        self.rules.set(position as usize, Some(Arc::clone(&rule)));
        (position, rule)
    }

    /// Takes rules out of the snapshot's.
    pub(super) fn remove(&mut self, rules: Vec<(u32, Arc<Rule>)>) {
        for (position, rule) in rules {
            self.release(&rule);
            self.rules.set(position as usize, None);
            self.free.insert(position);
        }
    }

    fn release(&mut self, rule: &Rule) {
        for position in clusters(rule) {
            self.clusters.release(position);
        }
    }
}

/// All clusters that a rule leads to: by backends, and by mirrors of the rule and of its backends.
fn clusters(rule: &Rule) -> impl Iterator<Item = u32> {
    let of_backends = rule.backends.iter().filter_map(|b| b.filters.as_deref());
    let mirrors = of_backends
        .chain(rule.filters.as_deref())
        .flat_map(|filters| filters.mirrors.iter().map(|mirror| &mirror.target));
    let backends = rule.backends.iter().map(|backend| &backend.target);
    backends.chain(mirrors).filter_map(|target| match target {
        BackendTarget::Cluster(position) => Some(*position),
        BackendTarget::Invalid(_) => None,
    })
}
