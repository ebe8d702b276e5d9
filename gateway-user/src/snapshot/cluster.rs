//! Clusters: endpoints plus the traffic policy that a DestinationRule sets for them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use super::listener::Transport;
use super::name::ObjectKey;
use super::policy::TrafficPolicy;

/// What limits and health belong to: (Service, port, DestinationRule or none).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ClusterKey {
    /// The Service.
    pub service: ObjectKey,
    /// Service port.
    pub port: u16,
    /// Transport: a Service may have one port number for TCP and for UDP.
    pub transport: Transport,
    /// The DestinationRule that applies.
    pub destination_rule: Option<ObjectKey>,
}

impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}{}",
            self.service,
            self.port,
            self.transport.suffix()
        )
    }
}

/// One cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// Identity.
    pub key: ClusterKey,
    /// Limits, balancing, outlier detection. Most clusters have the same.
    pub policy: Arc<TrafficPolicy>,
    /// Which HTTP is spoken, as the Service's port says, or `h2UpgradePolicy` where it says nothing. Whether over TLS is
    /// what [`TrafficPolicy::tls`] says: `Https` and `Wss` always have it.
    pub protocol: AppProtocol,
    /// Endpoints that may take requests, in the order of their keys.
    pub endpoints: Arc<[Endpoint]>,
}

/// `appProtocol` of a Service's port. A DestinationRule may put TLS below each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum AppProtocol {
    /// Nothing is said: HTTP/1.1, or what the route implies.
    #[default]
    Unset,
    /// `http`, `kubernetes.io/ws`: HTTP/1.1 in clear text.
    Http1,
    /// `kubernetes.io/h2c`, `grpc`: HTTP/2 in clear text, by prior knowledge.
    Http2,
    /// `https`: TLS, HTTP/2 or HTTP/1.1 as the endpoint chooses.
    Https,
    /// `kubernetes.io/wss`: TLS, HTTP/1.1.
    Wss,
}

/// Identity of an endpoint inside its cluster: its health lives as long as this.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct EndpointKey {
    /// Address and port of the pod.
    pub address: SocketAddr,
    /// `targetRef.uid` of the pod, if the slice names it.
    pub pod_uid: Option<Arc<str>>,
}

/// One pod behind a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Endpoint {
    /// Identity.
    pub key: EndpointKey,
    /// The slice says `serving` but `terminating`: used only while no endpoint is ready.
    pub terminating: bool,
}
