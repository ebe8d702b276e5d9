//! `trafficPolicy` of a DestinationRule: checked, compiled, and what of it is not carried out.
//!
//! Istio's rules: a port-level entry replaces all blocks, those that it leaves out go back to the defaults; an integer of
//! 0 in `connectionPool` is the same as none.

use std::collections::BTreeMap;
use std::time::Duration;

use super::listener::Fault;
use super::objects::{
    ConnectionPoolSpec, LoadBalancerSpec, OutlierSpec, ProxyProtocolSpec, TlsSpec,
    TrafficPolicySpec, Unread,
};
use super::upstream_tls::{self, PortPolicy, Refused, ServicePortKey};
use super::{Inputs, duration};
use crate::snapshot::{
    AppProtocol, Balancer, ConnectionPool, OutlierDetection, ProxyVersion, TrafficPolicy,
};

/// The policies of one rule, by port.
#[derive(Debug)]
pub(super) struct Policies {
    general: Result<PortPolicy, Refused>,
    ports: BTreeMap<u16, Result<PortPolicy, Refused>>,
    /// Paths of the fields that are not carried out.
    pub(super) unsupported: Vec<String>,
}

/// The blocks that a policy and a port-level entry have in common.
struct Blocks<'a> {
    balancer: Option<&'a LoadBalancerSpec>,
    pool: Option<&'a ConnectionPoolSpec>,
    outlier: Option<&'a OutlierSpec>,
    tls: Option<&'a TlsSpec>,
    /// Only a policy has it.
    proxy_protocol: Option<&'a ProxyProtocolSpec>,
}

impl Policies {
    /// Compiles the policy of a rule in a namespace, or says in one sentence which field is wrong.
    pub(super) fn compile(
        inputs: &Inputs,
        namespace: &str,
        spec: Option<&TrafficPolicySpec>,
    ) -> Result<Self, String> {
        let mut policies = Self {
            general: Ok(PortPolicy::default()),
            ports: BTreeMap::new(),
            unsupported: Vec::new(),
        };
        let Some(spec) = spec else {
            return Ok(policies);
        };
        let mut reader = Reader {
            inputs,
            namespace,
            unsupported: Vec::new(),
        };
        reader.unread("trafficPolicy", &spec.unread);
        let blocks = Blocks {
            balancer: spec.load_balancer.as_ref(),
            pool: spec.connection_pool.as_ref(),
            outlier: spec.outlier_detection.as_ref(),
            tls: spec.tls.as_ref(),
            proxy_protocol: spec.proxy_protocol.as_ref(),
        };
        policies.general = reader.blocks("trafficPolicy", &blocks)?;
        for (at, level) in spec.port_level_settings.iter().enumerate() {
            let path = format!("trafficPolicy.portLevelSettings[{at}]");
            reader.unread(&path, &level.unread);
            if level.port.number == 0 {
                return Err(format!("{path}.port.number must be 1 to 65535"));
            }
            let blocks = Blocks {
                balancer: level.load_balancer.as_ref(),
                pool: level.connection_pool.as_ref(),
                outlier: level.outlier_detection.as_ref(),
                tls: level.tls.as_ref(),
                proxy_protocol: None,
            };
            let blocks = reader.blocks(&path, &blocks)?;
            policies.ports.entry(level.port.number).or_insert(blocks);
        }
        policies.unsupported = reader.unsupported;
        Ok(policies)
    }

    /// Why no port without an entry of its own can be served, if so.
    pub(super) fn refused(&self) -> Option<&Refused> {
        self.general.as_ref().err()
    }

    /// The policy and protocol for a port of a Service.
    pub(super) fn for_port(
        &self,
        to: ServicePortKey<'_>,
    ) -> Result<(TrafficPolicy, AppProtocol), Fault> {
        match self.ports.get(&to.port).unwrap_or(&self.general) {
            Ok(policy) => policy.settle(to),
            Err(refused) => Err(("UnsupportedProtocol", refused.message.clone())),
        }
    }
}

struct Reader<'a> {
    inputs: &'a Inputs,
    /// Namespace of the rule.
    namespace: &'a str,
    unsupported: Vec<String>,
}

impl Reader<'_> {
    fn unread(&mut self, path: &str, unread: &Unread) {
        self.unsupported
            .extend(unread.keys().map(|field| format!("{path}.{field}")));
    }

    fn blocks(
        &mut self,
        path: &str,
        blocks: &Blocks<'_>,
    ) -> Result<Result<PortPolicy, Refused>, String> {
        let policy = TrafficPolicy {
            balancer: self.balancer(&format!("{path}.loadBalancer"), blocks.balancer)?,
            pool: self.pool(&format!("{path}.connectionPool"), blocks.pool)?,
            outlier: blocks
                .outlier
                .map(|spec| self.outlier(&format!("{path}.outlierDetection"), spec))
                .transpose()?,
            tls: None,
            proxy_protocol: blocks
                .proxy_protocol
                .map(|spec| self.proxy_protocol(&format!("{path}.proxyProtocol"), spec))
                .transpose()?,
        };
        let http = blocks.pool.and_then(|pool| pool.http.as_ref());
        let upgrade = http.is_some_and(|http| http.h2_upgrade_policy.as_deref() == Some("UPGRADE"));
        let path = format!("{path}.tls");
        if let Some(tls) = blocks.tls {
            self.unread(&path, &tls.unread);
        }
        let read = upstream_tls::read(self.inputs, self.namespace, &path, blocks.tls);
        if let Err(refused) = &read {
            self.unsupported.extend(refused.unsupported.clone());
        }
        Ok(read.map(|tls| PortPolicy {
            policy,
            tls,
            upgrade,
        }))
    }

    fn proxy_protocol(
        &mut self,
        path: &str,
        spec: &ProxyProtocolSpec,
    ) -> Result<ProxyVersion, String> {
        self.unread(path, &spec.unread);
        match spec.version.as_deref().unwrap_or("V1") {
            "V1" => Ok(ProxyVersion::V1),
            "V2" => Ok(ProxyVersion::V2),
            other => Err(format!("{path}.version {other:?} does not exist")),
        }
    }

    fn balancer(
        &mut self,
        path: &str,
        spec: Option<&LoadBalancerSpec>,
    ) -> Result<Balancer, String> {
        let Some(spec) = spec else {
            return Ok(Balancer::default());
        };
        self.unread(path, &spec.unread);
        match spec.simple.as_deref().unwrap_or("UNSPECIFIED") {
            "ROUND_ROBIN" => Ok(Balancer::RoundRobin),
            "RANDOM" => Ok(Balancer::Random),
            "UNSPECIFIED" | "LEAST_REQUEST" | "LEAST_CONN" => Ok(Balancer::LeastRequest),
            "PASSTHROUGH" => {
                self.unsupported
                    .push(format!("{path}.simple (PASSTHROUGH)"));
                Ok(Balancer::default())
            }
            other => Err(format!("{path}.simple {other:?} does not exist")),
        }
    }

    fn pool(
        &mut self,
        path: &str,
        spec: Option<&ConnectionPoolSpec>,
    ) -> Result<ConnectionPool, String> {
        let mut pool = ConnectionPool::default();
        let Some(spec) = spec else {
            return Ok(pool);
        };
        self.unread(path, &spec.unread);
        let set = |value: Option<u32>| value.filter(|value| *value > 0);
        if let Some(tcp) = &spec.tcp {
            let path = format!("{path}.tcp");
            self.unread(&path, &tcp.unread);
            pool.max_connections = set(tcp.max_connections);
            if let Some(text) = &tcp.connect_timeout {
                pool.connect_timeout = at_least_a_millisecond(&path, "connectTimeout", text)?;
            }
            if let Some(text) = &tcp.idle_timeout {
                pool.idle_timeout = read_duration(&path, "idleTimeout", text)?;
            }
        }
        if let Some(http) = &spec.http {
            let path = format!("{path}.http");
            self.unread(&path, &http.unread);
            pool.max_pending_requests = set(http.max_pending);
            pool.max_requests = set(http.max_requests);
            pool.max_requests_per_connection = set(http.max_requests_per_connection);
            pool.max_retries = set(http.max_retries);
            pool.max_concurrent_streams = set(http.max_concurrent_streams);
            if let Some(text) = &http.idle_timeout {
                pool.idle_timeout = read_duration(&path, "idleTimeout", text)?;
            }
            match http.h2_upgrade_policy.as_deref() {
                None | Some("DEFAULT" | "DO_NOT_UPGRADE" | "UPGRADE") => {}
                Some(other) => {
                    return Err(format!("{path}.h2UpgradePolicy {other:?} does not exist"));
                }
            }
            if http.use_client_protocol {
                self.unsupported.push(format!("{path}.useClientProtocol"));
            }
        }
        Ok(pool)
    }

    fn outlier(&mut self, path: &str, spec: &OutlierSpec) -> Result<OutlierDetection, String> {
        self.unread(path, &spec.unread);
        let default = OutlierDetection::default();
        let percent = |field: &str, value: Option<u32>| match value {
            Some(101..) => Err(format!("{path}.{field} must be 0 to 100")),
            value => Ok(value),
        };
        if spec.consecutive_local_origin_failures.is_some()
            && !spec.split_external_local_origin_errors
        {
            return Err(format!(
                "{path}.consecutiveLocalOriginFailures needs splitExternalLocalOriginErrors: true"
            ));
        }
        let interval = |field: &str, text: &Option<String>, default| match text {
            None => Ok(default),
            Some(text) => at_least_a_millisecond(path, field, text),
        };
        Ok(OutlierDetection {
            consecutive_5xx: spec.consecutive_5xx.unwrap_or(default.consecutive_5xx),
            consecutive_gateway: spec.consecutive_gateway_errors.unwrap_or(0),
            split_local_origin: spec.split_external_local_origin_errors,
            consecutive_local: spec
                .consecutive_local_origin_failures
                .unwrap_or(default.consecutive_local),
            interval: interval("interval", &spec.interval, default.interval)?,
            base_ejection: interval(
                "baseEjectionTime",
                &spec.base_ejection_time,
                default.base_ejection,
            )?,
            max_ejection_percent: percent("maxEjectionPercent", spec.max_ejection_percent)?
                .filter(|percent| *percent > 0)
                .unwrap_or(default.max_ejection_percent),
            min_health_percent: percent("minHealthPercent", spec.min_health_percent)?.unwrap_or(0),
        })
    }
}

fn read_duration(path: &str, field: &str, text: &str) -> Result<Duration, String> {
    duration::go(text)
        .ok_or_else(|| format!("{path}.{field} {text:?} is not a duration such as 30s"))
}

fn at_least_a_millisecond(path: &str, field: &str, text: &str) -> Result<Duration, String> {
    let value = read_duration(path, field, text)?;
    if value < Duration::from_millis(1) {
        return Err(format!("{path}.{field} must be at least 1ms"));
    }
    Ok(value)
}
