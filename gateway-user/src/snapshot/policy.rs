//! Traffic policy of a cluster, with Istio's DestinationRule defaults.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::tls::UpstreamTls;

/// All that a DestinationRule says about one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TrafficPolicy {
    /// Which endpoint gets the next request.
    pub balancer: Balancer,
    /// Limits and connection handling.
    pub pool: ConnectionPool,
    /// Passive health checking; `None` = off.
    pub outlier: Option<OutlierDetection>,
    /// TLS towards the endpoints, as `tls` or the Service's port says. `None` = clear text, whatever
    /// [`super::Cluster::protocol`] is.
    pub tls: Option<Arc<UpstreamTls>>,
    /// `proxyProtocol.version`: the header that begins each connection to an endpoint.
    pub proxy_protocol: Option<ProxyVersion>,
}

/// Version of the PROXY protocol (haproxy.org, proxy-protocol.txt).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ProxyVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// `loadBalancer.simple`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Balancer {
    /// Each in turn.
    RoundRobin,
    /// The less busy of two picked at random; Istio's default.
    #[default]
    LeastRequest,
    /// Any.
    Random,
}

/// `connectionPool`. `None` = no limit (Istio treats 0 as not set).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConnectionPool {
    /// `tcp.maxConnections`: connections of this node to the cluster, busy and idle.
    pub max_connections: Option<u32>,
    /// `tcp.connectTimeout`, default 10 s.
    pub connect_timeout: Duration,
    /// `http.http1MaxPendingRequests`: requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// `http.http2MaxRequests`: active requests, HTTP/1 and HTTP/2 alike.
    pub max_requests: Option<u32>,
    /// `http.maxRequestsPerConnection`: a connection is retired after this many.
    pub max_requests_per_connection: Option<u32>,
    /// `http.maxRetries`: retries outstanding at once.
    pub max_retries: Option<u32>,
    /// `http.idleTimeout`, default 1 h: an idle connection is closed after it. Zero = never.
    pub idle_timeout: Duration,
    /// `http.maxConcurrentStreams`: requests at once on one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
}

impl Default for ConnectionPool {
    fn default() -> Self {
        Self {
            max_connections: None,
            connect_timeout: Duration::from_secs(10),
            max_pending_requests: None,
            max_requests: None,
            max_requests_per_connection: None,
            max_retries: None,
            idle_timeout: Duration::from_secs(3600),
            max_concurrent_streams: None,
        }
    }
}

/// `outlierDetection`, Envoy's consecutive detectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutlierDetection {
    /// `consecutive5xxErrors`, default 5; 0 = off.
    pub consecutive_5xx: u32,
    /// `consecutiveGatewayErrors` (502, 503, 504), default off.
    pub consecutive_gateway: u32,
    /// `splitExternalLocalOriginErrors`.
    pub split_local_origin: bool,
    /// `consecutiveLocalOriginFailures`, default 5; only with the split.
    pub consecutive_local: u32,
    /// `interval`, default 10 s: sweep that brings endpoints back and lets the backoff decay.
    pub interval: Duration,
    /// `baseEjectionTime`, default 30 s.
    pub base_ejection: Duration,
    /// `maxEjectionPercent`, default 10.
    pub max_ejection_percent: u32,
    /// `minHealthPercent`, default 0: below it all endpoints are used regardless of health.
    pub min_health_percent: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            split_local_origin: false,
            consecutive_local: 5,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection_percent: 10,
            min_health_percent: 0,
        }
    }
}
