//! The validated configuration: what translate makes, what the proxy and the kernel tables are built from.
//!
//! Plain immutable data in ordered containers: the same input gives snapshots of one [canonical](Snapshot::canonical)
//! form. Parts that a change does not touch are the same allocations in the next snapshot. It holds no counter, no
//! cursor and no connection: live state belongs to `proxy::runtime`, keyed by the keys below.

mod canonical;
pub mod cluster;
pub mod filter;
pub mod hostname;
pub mod l4_policy;
pub mod listener;
pub mod name;
pub mod policy;
pub mod route;
pub mod slots;
pub mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

pub use cluster::{AppProtocol, Cluster, ClusterKey, Endpoint, EndpointKey};
pub use filter::{
    AnyOr, Cors, Filters, HeaderEdits, Mirror, Origin, PathEdit, Redirect, Rewrite, Scheme,
};
pub use hostname::Hostname;
pub use l4_policy::{ClientAddress, L4Policy, Prefix, ReturnPath, Sources, UdpHash};
pub use listener::{Bind, BindKey, Listener, Protocol, Transport};
pub use name::{ObjectKey, RuleKey};
pub use policy::{Balancer, ConnectionPool, OutlierDetection, ProxyVersion, TrafficPolicy};
pub use route::{Backend, BackendTarget, PathMatch, Retry, RouteMatch, Rule, ValueMatch};
pub use slots::Slots;
pub use tls::{Certificate, ListenerTls, Trust, UpstreamTls};

/// Number of a snapshot, counted up by the application for each one that it publishes.
pub type Generation = u64;

/// One complete configuration.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    /// Its number.
    pub generation: Generation,
    /// What is listened on: one for each (address, port, transport) of each Gateway.
    pub binds: BTreeMap<BindKey, Arc<Bind>>,
    /// Route rules; listeners' routers name them by place.
    pub rules: Slots<Rule>,
    /// Clusters; rules' backends name them by place.
    pub clusters: Slots<Cluster>,
    /// VIP addresses and which Gateway holds each.
    pub addresses: BTreeMap<IpAddr, ObjectKey>,
    /// Those of [`Self::addresses`] that no node announces on the link: routers learn the way to them.
    pub routed: BTreeSet<IpAddr>,
    /// Forebay's own replicas; empty = alone.
    pub replicas: Vec<Replica>,
}

impl Snapshot {
    /// The part that decides where packets go: without what is said over their connections.
    #[must_use]
    pub fn steering(&self) -> Self {
        let binds = self.binds.iter().map(|(key, bind)| {
            let bind = Bind {
                gateway: bind.gateway.clone(),
                policy: Arc::clone(&bind.policy),
                listeners: Vec::new(),
                ..**bind
            };
            (*key, Arc::new(bind))
        });
        Self {
            generation: self.generation,
            binds: binds.collect(),
            addresses: self.addresses.clone(),
            routed: self.routed.clone(),
            replicas: self.replicas.clone(),
            ..Self::default()
        }
    }

    /// Whether the [steering](Self::steering) part of `other` is the same.
    #[must_use]
    pub fn steers_like(&self, other: &Self) -> bool {
        let mut binds = self.binds.iter().zip(&other.binds);
        let same_binds = self.binds.len() == other.binds.len()
            && binds.all(|((key, own), (other_key, other))| {
                key == other_key && own.gateway == other.gateway && own.policy == other.policy
            });
        same_binds
            && self.addresses == other.addresses
            && self.routed == other.routed
            && self.replicas == other.replicas
    }
}

/// One Forebay node as the EndpointSlices of Forebay's own Service list it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Replica {
    /// Node name (`nodeName`).
    pub name: String,
    /// `addresses[0]`.
    pub address: IpAddr,
    /// Membership as the slice says it.
    pub state: ReplicaState,
    /// Capacity weight, 1 to 255.
    pub weight: u8,
}

/// What a replica may do; DESIGN "Membership".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ReplicaState {
    /// Listed, owns nothing yet.
    Joining,
    /// May own rows.
    Ready,
    /// Keeps its sockets, owns nothing.
    Draining,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let (key, gateway) = (
            BindKey::from("192.0.2.1:80".parse::<std::net::SocketAddr>().unwrap()),
            ObjectKey::new("a", "g"),
        );
        let bind = Bind {
            key,
            gateway: gateway.clone(),
            protocol: Protocol::Http,
            builtin_ready: false,
            policy: Arc::default(),
            listeners: Vec::new(),
        };
        Snapshot {
            binds: [(key, Arc::new(bind))].into(),
            addresses: [(key.address, gateway)].into(),
            ..Snapshot::default()
        }
    }

    fn bind(snapshot: &mut Snapshot) -> &mut Bind {
        Arc::make_mut(snapshot.binds.values_mut().next().unwrap())
    }

    #[test]
    fn routes_steer_no_packet_and_all_else_does() {
        let listener = Listener {
            gateway: ObjectKey::new("a", "g"),
            name: "l".into(),
            hostname: None,
            tls: None,
            router: crate::l7::router::Router::default(),
            rule: Some(1),
        };
        let mut routed = snapshot();
        routed.generation = 7;
        bind(&mut routed).listeners.push(Arc::new(listener));
        assert!(snapshot().steers_like(&routed));
        assert!(snapshot().steers_like(&routed.steering()));
        assert!(
            routed
                .steering()
                .binds
                .values()
                .all(|bind| bind.listeners.is_empty())
        );
        let replica = Replica {
            name: "n".to_owned(),
            address: [192, 0, 2, 9].into(),
            state: ReplicaState::Ready,
            weight: 1,
        };
        let changes: [fn(&mut Snapshot); 6] = [
            |s| s.binds.clear(),
            |s| bind(s).gateway = ObjectKey::new("a", "h"),
            |s| {
                let policy = L4Policy {
                    udp_hash: UdpHash::Addresses,
                    ..L4Policy::default()
                };
                bind(s).policy = Arc::new(policy);
            },
            |s| s.addresses.clear(),
            |s| s.routed.extend([IpAddr::from([192, 0, 2, 1])]),
            |s| {
                let (_, bind) = s.binds.pop_first().unwrap();
                let key = BindKey {
                    port: 81,
                    ..bind.key
                };
                s.binds.insert(key, bind);
            },
        ];
        for (at, change) in changes.iter().enumerate() {
            let mut other = snapshot();
            change(&mut other);
            assert!(!snapshot().steers_like(&other), "change {at}");
            assert!(!other.steers_like(&snapshot()), "change {at}");
        }
        let mut other = snapshot();
        other.replicas.push(replica);
        assert!(!snapshot().steers_like(&other));
    }
}
