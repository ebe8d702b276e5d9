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
