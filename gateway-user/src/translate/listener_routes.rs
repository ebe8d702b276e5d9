//! The routes of one listener: who is attached, which hostnames they claim, and the router that follows.
//!
//! It is kept from one translation to the next. A route that comes or goes makes the tables of its own hostnames anew and
//! no others.

use std::collections::{BTreeMap, BTreeSet};

use super::hosts::Hosts;
use super::listener::FirstRule;
use super::precedence::{self, Candidate};
use crate::l7::router::Router;
use crate::snapshot::{Hostname, ObjectKey};

/// Kind and key of a route.
pub(super) type RouteId = (&'static str, ObjectKey);

/// See the module.
#[derive(Default)]
pub(super) struct ListenerRoutes {
    /// Routes that are accepted.
    attached: BTreeSet<RouteId>,
    /// Hostnames of all routes that the listener admits, by kind: also of those that lost against the other kind.
    claims: BTreeMap<&'static str, Hosts>,
    /// Hostnames of the accepted ones, by kind, while all routes attach in their order; empty at other times.
    served: BTreeMap<&'static str, Hosts>,
    in_order: bool,
    /// Matches of the accepted ones by hostname.
    candidates: BTreeMap<Option<Hostname>, Vec<Candidate>>,
    /// Hostnames whose table does not follow from the candidates any more.
    stale: BTreeSet<Option<Hostname>>,
    router: Router,
    /// Routes without matches, the oldest first: it takes all traffic.
    firsts: BTreeSet<FirstRule>,
    /// Whether the router or the first rule may have changed since it was last asked.
    changed: bool,
}

impl ListenerRoutes {
    /// Notes that a route claims hostnames, whether it gets them or not.
    pub(super) fn claim<'h>(
        &mut self,
        route: &RouteId,
        hosts: impl IntoIterator<Item = &'h Option<Hostname>>,
    ) {
        let claims = self.claims.entry(route.0).or_default();
        for host in hosts {
            claims.insert(host.as_ref(), &route.1);
        }
    }

    /// Whether a route of another kind claims one of these hostnames.
    pub(super) fn contests<'h>(
        &self,
        kind: &str,
        hosts: &(impl Iterator<Item = &'h Option<Hostname>> + Clone),
    ) -> bool {
        let mut others = self.claims.iter().filter(|(other, _)| **other != kind);
        others.any(|(_, claims)| {
            hosts
                .clone()
                .any(|host| claims.sharing(host.as_ref()).is_some())
        })
    }

    /// A route of another kind that is served on one of these hostnames; none while not all routes attach.
    pub(super) fn rival<'h>(
        &self,
        kind: &str,
        hosts: &(impl Iterator<Item = &'h Option<Hostname>> + Clone),
    ) -> Option<(&'static str, &ObjectKey)> {
        // HTTPRoute before GRPCRoute.
        let others = self
            .served
            .iter()
            .rev()
            .filter(|(other, _)| **other != kind);
        for (other, served) in others {
            let shared = hosts.clone().find_map(|host| served.sharing(host.as_ref()));
            if let Some(route) = shared {
                return Some((other, route));
            }
        }
        None
    }

    /// Counts a route as attached; false if it was before.
    pub(super) fn attach(&mut self, route: &RouteId) -> bool {
        self.attached.insert(route.clone())
    }

    /// Number of attached routes.
    pub(super) fn attached(&self) -> usize {
        self.attached.len()
    }

    /// Notes a hostname of an attached route.
    pub(super) fn serve(&mut self, route: &RouteId, host: Option<&Hostname>) {
        if self.in_order {
            let served = self.served.entry(route.0).or_default();
            served.insert(host, &route.1);
        }
    }

    /// Adds a match of an attached route for a hostname.
    pub(super) fn add(&mut self, host: &Option<Hostname>, candidate: Candidate) {
        let of_host = self.candidates.entry(host.clone()).or_default();
        of_host.push(candidate);
        self.stale.insert(host.clone());
        self.changed = true;
    }

    /// Adds the rule of an attached route without matches.
    pub(super) fn add_first(&mut self, rule: FirstRule) {
        self.firsts.insert(rule);
        self.changed = true;
    }

    /// Takes a route out that has claimed these hostnames.
    pub(super) fn detach<'h>(
        &mut self,
        route: &RouteId,
        hosts: impl IntoIterator<Item = &'h Option<Hostname>>,
    ) {
        self.attached.remove(route);
        for host in hosts {
            if let Some(claims) = self.claims.get_mut(route.0) {
                claims.remove(host.as_ref(), &route.1);
            }
            if let Some(candidates) = self.candidates.get_mut(host) {
                candidates.retain(|c| (c.rule.key.kind, &c.rule.key.route) != (route.0, &route.1));
                self.stale.insert(host.clone());
                self.changed = true;
            }
        }
        let before = self.firsts.len();
        self.firsts.retain(|first| first.route != route.1);
        self.changed |= self.firsts.len() != before;
    }

    /// Gives back the room that adding one route after the other has left between them.
    pub(super) fn pack(&mut self) {
        self.attached = std::mem::take(&mut self.attached).into_iter().collect();
        self.candidates.values_mut().for_each(Vec::shrink_to_fit);
    }

    /// Says whether all routes attach now, in their order, so that rivals can be told.
    pub(super) fn attach_in_order(&mut self, on: bool) {
        self.in_order = on;
        self.served.clear();
    }

    /// Brings the router up to date; whether it or the first rule may have changed since the last call.
    pub(super) fn settle(&mut self) -> bool {
        for host in std::mem::take(&mut self.stale) {
            let candidates = self.candidates.get_mut(&host);
            let candidates = candidates.map_or(&mut [][..], |of_host| &mut of_host[..]);
            self.router.set(
                host.as_ref(),
                precedence::entries(host.as_ref(), candidates),
            );
            if candidates.is_empty() {
                self.candidates.remove(&host);
            }
        }
        std::mem::take(&mut self.changed)
    }

    /// The router as of the last [`Self::settle`].
    pub(super) fn router(&self) -> &Router {
        &self.router
    }

    /// The rule that takes all traffic.
    pub(super) fn first(&self) -> Option<u32> {
        self.firsts.first().map(|first| first.rule)
    }
}
