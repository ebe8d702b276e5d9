//! What is kept from one translation to the next, and what of it a change touches.
//!
//! Objects that are the same allocation have not changed. Of what follows from the objects only that is made anew which
//! reads a changed one:
//!
//! - a route, if it has changed, or a Service that it names, a ReferenceGrant of such a Service's namespace, or a
//!   DestinationRule for its host;
//! - the table of a hostname, if a route with that hostname is made anew;
//! - the endpoints of a cluster, if a slice of its Service has changed;
//! - Gateways, if one of the few objects about them has changed; their routes stay attached.
//!
//! All routes are made anew if who may attach where can have changed: with Gateways, their classes and namespaces. So they
//! are if a changed route has a hostname in common with a route of the other kind, as the older of two kinds is served and
//! the chain of losers has no end that is near. What is equal to what was there before stays the same object then too.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::condition::{Conditions, GatewayStatus, RouteStatus};
use super::gateway::Gateways;
use super::gathered::{Attachment, Gathered};
use super::inputs::Changes;
use super::listener::{GRPC_ROUTE, HTTP_ROUTE, UDP_ROUTE};
use super::listener_routes::RouteId;
use super::objects::Metadata;
use super::pack;
use super::shared::Shared;
use super::{
    Context, Inputs, Translation, address_pool, gateway, gateway_class, grpc_route, http_route,
    l4_policy, replica, udp_route,
};
use crate::allocate::{Allocations, Unannounced};
use crate::snapshot::{ObjectKey, Replica, Snapshot};

/// See the module.
#[derive(Default)]
pub(super) struct Memo {
    inputs: Inputs,
    /// `on_cluster` and the addresses; none before the first translation.
    settings: Option<(bool, Allocations)>,
    gateways: Gateways,
    policies: l4_policy::Policies,
    gathered: Gathered,
    routes: BTreeMap<RouteId, Attachment>,
    /// Routes that name a Service.
    referrers: BTreeMap<ObjectKey, Vec<RouteId>>,
    /// Statuses of what follows from few objects, with the warnings that are about none but them.
    edge: Conditions,
    gateway_statuses: BTreeMap<ObjectKey, GatewayStatus>,
    route_statuses: RouteStatuses,
    /// Statuses that routes have: most of thousands have the same one.
    statuses: Shared<RouteStatus>,
    replicas: Vec<Replica>,
    /// What is wrong with replicas.
    replica_warnings: Conditions,
    /// The part of the snapshot that follows from Gateways.
    snapshot: Snapshot,
}

#[derive(Default)]
struct RouteStatuses {
    http: Arc<BTreeMap<ObjectKey, Arc<RouteStatus>>>,
    grpc: Arc<BTreeMap<ObjectKey, Arc<RouteStatus>>>,
    udp: Arc<BTreeMap<ObjectKey, Arc<RouteStatus>>>,
}

/// Which parts a change touches.
struct Scope {
    /// Gateways and what follows from few objects.
    edge: bool,
    /// Every route.
    all_routes: bool,
    /// Replicas.
    replicas: bool,
    /// These routes.
    routes: BTreeSet<RouteId>,
}

impl Memo {
    /// Follows the objects and gives what they mean now.
    pub(super) fn translate(&mut self, inputs: &Inputs, context: &Context<'_>) -> Translation {
        let changes = self.inputs.follow(inputs);
        let scope = self.scope(inputs, context, &changes);
        if scope.edge {
            self.read_edge(inputs, context, scope.all_routes);
        }
        let most = scope.all_routes || scope.routes.len() * 2 > self.routes.len();
        if scope.all_routes || !self.attach_some(inputs, context, scope.routes) {
            self.attach_all(inputs, context);
        }
        if most {
            self.pack();
        }
        if scope.edge {
            self.policies = l4_policy::read(inputs, &self.gateways, &mut self.edge);
        }
        if scope.replicas {
            self.replica_warnings = Conditions::default();
            self.replicas = replica::read(inputs, &mut self.replica_warnings);
        }
        self.settle_gateways(inputs, context, scope.edge);
        let clusters = &mut self.gathered.clusters;
        let snapshot = Snapshot {
            clusters: clusters.settle(context, &self.snapshot.binds),
            rules: self.gathered.rules.clone(),
            replicas: self.replicas.clone(),
            ..self.snapshot.clone()
        };
        Translation {
            snapshot,
            conditions: self.conditions(inputs),
        }
    }

    /// What has to be made anew; takes over what needs no route.
    fn scope(&mut self, inputs: &Inputs, context: &Context<'_>, changes: &Changes) -> Scope {
        let same = |(on_cluster, allocations): &(bool, Allocations)| {
            (
                *on_cluster == context.on_cluster,
                allocations == context.allocations,
            )
        };
        let (same_source, same_addresses) = self.settings.as_ref().map_or((false, false), same);
        if !(same_source && same_addresses) {
            self.settings = Some((context.on_cluster, context.allocations.clone()));
        }
        let all_routes = !same_source
            || !changes.gateways.is_empty()
            || !changes.gateway_classes.is_empty()
            || !changes.namespaces.is_empty();
        let edge = all_routes
            || !same_addresses
            || !changes.secrets.is_empty()
            || !changes.reference_grants.is_empty()
            || !changes.address_pools.is_empty()
            || !changes.traffic_policies.is_empty();
        let mut replicas = !changes.nodes.is_empty();
        for (key, before) in &changes.endpoint_slices {
            let now = inputs.endpoint_slices.get(key);
            let mut both = before.iter().chain(now);
            replicas |= both.any(|slice| replica::is_ours(slice));
            self.gathered.clusters.update_slices(before.as_ref(), now);
        }
        let http = changes.http_routes.iter().map(|(key, _)| (HTTP_ROUTE, key));
        let grpc = changes.grpc_routes.iter().map(|(key, _)| (GRPC_ROUTE, key));
        let udp = changes.udp_routes.iter().map(|(key, _)| (UDP_ROUTE, key));
        let routes = http.chain(grpc).chain(udp);
        let routes = routes.map(|(kind, key)| (kind.kind, key.clone()));
        let mut routes: BTreeSet<RouteId> = routes.collect();
        for service in self.services(inputs, changes) {
            self.gathered.clusters.service_changed(&service);
            let referrers = self.referrers.get(&service);
            routes.extend(referrers.into_iter().flatten().cloned());
        }
        Scope {
            edge,
            all_routes,
            replicas,
            routes,
        }
    }

    /// Services that routes name and of which something has changed that decides what a backendRef leads to.
    fn services(&mut self, inputs: &Inputs, changes: &Changes) -> BTreeSet<ObjectKey> {
        let rules = &mut self.gathered.clusters.rules;
        let own = changes.destination_rules.iter().map(|(key, _)| key.clone());
        let mut changed: BTreeSet<ObjectKey> = own.collect();
        let secrets = changes.secrets.iter();
        let namespaces: BTreeSet<&str> = secrets.map(|(key, _)| &*key.namespace).collect();
        for namespace in namespaces {
            changed.extend(rules.with_tls(namespace));
        }
        let hosts = rules.update(inputs, changed);
        let mut services: BTreeSet<ObjectKey> = BTreeSet::new();
        for (service, _) in &changes.services {
            rules.service(service);
            services.insert(service.clone());
        }
        if !hosts.is_empty() {
            let named = self.referrers.keys();
            let covered = named.filter(|service| hosts.iter().any(|host| host.covers(service)));
            services.extend(covered.cloned());
        }
        for (grant, _) in &changes.reference_grants {
            let first = ObjectKey::new(grant.namespace.clone(), "");
            let named = self.referrers.range(first..).map(|(service, _)| service);
            let beside = named.take_while(|service| service.namespace == grant.namespace);
            services.extend(beside.cloned());
        }
        services
    }

    /// Reads Gateways and what follows from few objects.
    fn read_edge(&mut self, inputs: &Inputs, context: &Context<'_>, all_routes: bool) {
        self.edge = Conditions {
            gateway_classes: gateway_class::judge(inputs),
            address_pools: address_pool::judge(inputs),
            ..Conditions::default()
        };
        let mut before = std::mem::replace(&mut self.gateways, gateway::read(inputs, context));
        if all_routes {
            return;
        }
        for (key, gateway) in &mut self.gateways {
            if let Some(before) = before.get_mut(key) {
                gateway.keep_routes(before);
            }
        }
    }

    /// Makes some routes anew; false if that is not enough, as one has a hostname in common with one of another kind.
    fn attach_some(
        &mut self,
        inputs: &Inputs,
        context: &Context<'_>,
        routes: BTreeSet<RouteId>,
    ) -> bool {
        for route in routes {
            let before = self.routes.remove(&route).unwrap_or_default();
            let contested = before.contested(&route, &self.gateways);
            self.attach(inputs, context, &route, before);
            let now = self.routes.get(&route);
            if contested || now.is_some_and(|now| now.contested(&route, &self.gateways)) {
                return false;
            }
        }
        true
    }

    /// Makes all routes anew, those with hostnames by age: where an HTTPRoute and a GRPCRoute exclude each other the older
    /// one is served.
    fn attach_all(&mut self, inputs: &Inputs, context: &Context<'_>) {
        let mut by_age: Vec<(&Metadata, RouteId)> = Vec::new();
        for (key, object) in &inputs.http_routes {
            by_age.push((&object.metadata, (HTTP_ROUTE.kind, key.clone())));
        }
        for (key, object) in &inputs.grpc_routes {
            by_age.push((&object.metadata, (GRPC_ROUTE.kind, key.clone())));
        }
        // HTTPRoutes stay before GRPCRoutes of the same age and key.
        by_age.sort_by(|(a, _), (b, _)| a.age().cmp(&b.age()));
        let udp = inputs.udp_routes.keys();
        let udp = udp.map(|key| (UDP_ROUTE.kind, key.clone()));
        let routes: Vec<RouteId> = by_age.into_iter().map(|(_, id)| id).chain(udp).collect();
        let mut before = std::mem::take(&mut self.routes);
        for (route, attachment) in &mut before {
            attachment.detach(route, &mut self.gateways);
        }
        for gateway in self.gateways.values_mut() {
            for listener in &mut gateway.listeners {
                listener.routes.attach_in_order(true);
            }
        }
        for route in routes {
            let before = before.remove(&route).unwrap_or_default();
            self.attach(inputs, context, &route, before);
        }
        for (route, attachment) in before {
            self.forget(&route, attachment);
        }
        for gateway in self.gateways.values_mut() {
            for listener in &mut gateway.listeners {
                listener.routes.attach_in_order(false);
            }
        }
    }

    /// Has maps take no more room than they need: one that was filled in the order of its keys is half empty.
    fn pack(&mut self) {
        pack(&mut self.routes);
        pack(&mut self.referrers);
        for statuses in [
            &mut self.route_statuses.http,
            &mut self.route_statuses.grpc,
            &mut self.route_statuses.udp,
        ] {
            pack(Arc::make_mut(statuses));
        }
        self.gathered.clusters.pack();
        for gateway in self.gateways.values_mut() {
            for listener in &mut gateway.listeners {
                listener.routes.pack();
            }
        }
    }

    /// Makes one route anew; what became of it before is undone.
    fn attach(
        &mut self,
        inputs: &Inputs,
        context: &Context<'_>,
        route: &RouteId,
        mut before: Attachment,
    ) {
        before.detach(route, &mut self.gateways);
        let mut rules = std::mem::take(&mut before.rules);
        let (gateways, gathered) = (&mut self.gateways, &mut self.gathered);
        let (kind, key) = route;
        let made = if *kind == HTTP_ROUTE.kind {
            inputs.http_routes.get(key).map(|object| {
                let compiled = http_route::compile(key, object);
                compiled.attach(inputs, context, gateways, gathered, &mut rules)
            })
        } else if *kind == GRPC_ROUTE.kind {
            inputs.grpc_routes.get(key).map(|object| {
                let compiled = grpc_route::compile(key, object);
                compiled.attach(inputs, context, gateways, gathered, &mut rules)
            })
        } else {
            inputs.udp_routes.get(key).map(|object| {
                let object = (key, &**object);
                udp_route::attach(inputs, context, object, gateways, gathered, &mut rules)
            })
        };
        before.rules = rules;
        let Some(mut made) = made else {
            return self.forget(route, before);
        };
        made.status = made.status.map(|status| self.statuses.shared(status));
        self.gathered.remove(before.rules);
        let gone = before.services.iter();
        for gone in gone.filter(|service| !made.services.contains(service)) {
            unrefer(&mut self.referrers, gone, route);
        }
        let new = made.services.iter();
        for new in new.filter(|service| !before.services.contains(service)) {
            match self.referrers.entry(new.clone()) {
                // Most Services have one, and a list that grows begins with room for four.
                Entry::Vacant(vacant) => drop(vacant.insert(vec![route.clone()])),
                Entry::Occupied(mut known) => known.get_mut().push(route.clone()),
            }
        }
        self.route_statuses.set(route, made.status.as_ref());
        self.routes.insert(route.clone(), made);
    }

    /// Forgets a route that is gone and taken out of its listeners.
    fn forget(&mut self, route: &RouteId, before: Attachment) {
        self.gathered.remove(before.rules);
        for service in &before.services {
            unrefer(&mut self.referrers, service, route);
        }
        self.route_statuses.set(route, None);
    }

    /// Makes binds and statuses of the Gateways anew that have changed, and the snapshot's part that follows.
    fn settle_gateways(&mut self, inputs: &Inputs, context: &Context<'_>, edge: bool) {
        if edge {
            self.gateway_statuses.clear();
        }
        let mut changed = edge;
        for (key, gateway) in &mut self.gateways {
            if !std::mem::take(&mut gateway.changed) {
                continue;
            }
            changed = true;
            gateway.binds(&self.policies);
            self.gateway_statuses.insert(key.clone(), gateway.status());
        }
        if edge {
            gateway::add_orphans(inputs, context, &mut self.gateway_statuses);
        }
        if !changed {
            return;
        }
        let snapshot = &mut self.snapshot;
        snapshot.addresses.clear();
        snapshot.routed.clear();
        snapshot.binds.clear();
        let unannounced = Unannounced::new(inputs);
        for (key, gateway) in &self.gateways {
            for &address in gateway.addresses() {
                snapshot.addresses.insert(address, key.clone());
                if unannounced.holds(&key.namespace, address) {
                    snapshot.routed.insert(address);
                }
            }
            let binds = gateway.made().iter();
            snapshot
                .binds
                .extend(binds.map(|bind| (bind.key, Arc::clone(bind))));
        }
    }

    fn conditions(&mut self, inputs: &Inputs) -> Conditions {
        let mut conditions = Conditions {
            gateways: self.gateway_statuses.clone(),
            http_routes: Arc::clone(&self.route_statuses.http),
            grpc_routes: Arc::clone(&self.route_statuses.grpc),
            udp_routes: Arc::clone(&self.route_statuses.udp),
            destination_rules: self.gathered.clusters.rules.statuses(inputs),
            ..self.edge.clone()
        };
        self.gathered.clusters.warn(&mut conditions);
        for (id, messages) in &self.replica_warnings.warnings {
            for message in messages {
                conditions.warn(id.kind, &id.key, message.clone());
            }
        }
        conditions
    }
}

impl RouteStatuses {
    fn set(&mut self, (kind, key): &RouteId, status: Option<&Arc<RouteStatus>>) {
        let statuses = if *kind == HTTP_ROUTE.kind {
            &mut self.http
        } else if *kind == GRPC_ROUTE.kind {
            &mut self.grpc
        } else {
            &mut self.udp
        };
        if statuses.get(key) == status {
            return;
        }
        let statuses = Arc::make_mut(statuses);
        match status {
            Some(status) => drop(statuses.insert(key.clone(), Arc::clone(status))),
            None => drop(statuses.remove(key)),
        }
    }
}

fn unrefer(
    referrers: &mut BTreeMap<ObjectKey, Vec<RouteId>>,
    service: &ObjectKey,
    route: &RouteId,
) {
    if let Some(routes) = referrers.get_mut(service) {
        routes.retain(|other| other != route);
        if routes.is_empty() {
            referrers.remove(service);
        }
    }
}
