//! Istio's DestinationRule (v1, v1beta1 and v1alpha3 share one schema).

use serde::{Deserialize, Serialize};

use super::Present;
use super::Unread;

/// `spec`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRuleSpec {
    /// Service that it is for: short name, FQDN or wildcard.
    pub host: String,
    /// Policy.
    pub traffic_policy: Option<TrafficPolicySpec>,
    /// Inert: no Gateway API route can name a subset.
    pub subsets: Vec<Present>,
    /// Namespaces that see it; empty: all.
    pub export_to: Vec<String>,
    /// Limits it to some proxies; such a rule is not applied.
    pub workload_selector: Option<Present>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `trafficPolicy`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicySpec {
    /// Balancing.
    pub load_balancer: Option<LoadBalancerSpec>,
    /// Limits.
    pub connection_pool: Option<ConnectionPoolSpec>,
    /// Passive health checking.
    pub outlier_detection: Option<OutlierSpec>,
    /// TLS to the backend.
    pub tls: Option<TlsSpec>,
    /// PROXY header to the backend.
    pub proxy_protocol: Option<ProxyProtocolSpec>,
    /// Policies of single ports.
    pub port_level_settings: Vec<PortLevel>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// One of `portLevelSettings`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortLevel {
    /// Service port.
    pub port: PortSelector,
    /// Balancing.
    pub load_balancer: Option<LoadBalancerSpec>,
    /// Limits.
    pub connection_pool: Option<ConnectionPoolSpec>,
    /// Passive health checking.
    pub outlier_detection: Option<OutlierSpec>,
    /// TLS to the backend.
    pub tls: Option<TlsSpec>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// A port by number.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct PortSelector {
    /// Number.
    pub number: u16,
}

/// `loadBalancer`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct LoadBalancerSpec {
    /// `ROUND_ROBIN` and so on.
    pub simple: Option<String>,
    /// Fields that Forebay does not carry out.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `connectionPool`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ConnectionPoolSpec {
    /// TCP.
    pub tcp: Option<TcpPoolSpec>,
    /// HTTP.
    pub http: Option<HttpPoolSpec>,
    /// Fields that Forebay does not know.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `connectionPool.tcp`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpPoolSpec {
    /// Connections.
    pub max_connections: Option<u32>,
    /// Duration.
    pub connect_timeout: Option<String>,
    /// Duration; stands in for the HTTP one.
    pub idle_timeout: Option<String>,
    /// Fields that Forebay does not carry out.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `connectionPool.http`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct HttpPoolSpec {
    /// Waiting requests.
    #[serde(rename = "http1MaxPendingRequests")]
    pub max_pending: Option<u32>,
    /// Active requests.
    #[serde(rename = "http2MaxRequests")]
    pub max_requests: Option<u32>,
    /// Requests in the life of a connection.
    #[serde(rename = "maxRequestsPerConnection")]
    pub max_requests_per_connection: Option<u32>,
    /// Concurrent retries.
    #[serde(rename = "maxRetries")]
    pub max_retries: Option<u32>,
    /// Duration.
    #[serde(rename = "idleTimeout")]
    pub idle_timeout: Option<String>,
    /// `DEFAULT`, `DO_NOT_UPGRADE` or `UPGRADE`.
    #[serde(rename = "h2UpgradePolicy")]
    pub h2_upgrade_policy: Option<String>,
    /// Concurrent requests on one HTTP/2 connection.
    #[serde(rename = "maxConcurrentStreams")]
    pub max_concurrent_streams: Option<u32>,
    /// Upstream protocol follows downstream.
    #[serde(rename = "useClientProtocol")]
    pub use_client_protocol: bool,
    /// Fields that Forebay does not carry out.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `outlierDetection`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierSpec {
    /// 5xx in a row.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx: Option<u32>,
    /// 502, 503, 504 in a row.
    pub consecutive_gateway_errors: Option<u32>,
    /// Local errors count apart.
    pub split_external_local_origin_errors: bool,
    /// Local errors in a row.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Duration.
    pub interval: Option<String>,
    /// Duration.
    pub base_ejection_time: Option<String>,
    /// Percent.
    pub max_ejection_percent: Option<u32>,
    /// Percent.
    pub min_health_percent: Option<u32>,
    /// Fields that Forebay does not carry out.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `tls`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsSpec {
    /// `DISABLE` (default), `SIMPLE`, `MUTUAL` or `ISTIO_MUTUAL`.
    pub mode: Option<String>,
    /// Name that is sent; the Service's if none.
    pub sni: Option<String>,
    /// Names of which the certificate must be for one.
    pub subject_alt_names: Vec<String>,
    /// Whether nothing of the certificate is checked.
    pub insecure_skip_verify: bool,
    /// Secret with certificate authorities.
    pub credential_name: Option<String>,
    /// File with certificate authorities.
    pub ca_certificates: Option<String>,
    /// Fields that Forebay does not carry out.
    #[serde(flatten)]
    pub unread: Unread,
}

/// `proxyProtocol`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ProxyProtocolSpec {
    /// `V1` (default) or `V2`.
    pub version: Option<String>,
    /// Fields that Forebay does not carry out.
    #[serde(flatten)]
    pub unread: Unread,
}
