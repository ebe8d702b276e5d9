//! Istio's DestinationRule: its CRD, and what its webhook (`pkg/config/validation`) adds.
//!
//! The webhook's warnings are no findings, and its rules for fields that Forebay only names as not carried out are kept
//! where they are short.

use serde_json::Value;

use super::core::METADATA;
use super::format::{
    EXPORT_TO, FREE, GO_DURATION, GO_DURATION_OR_ZERO, ISTIO_HOST, LABEL_KEY, LABEL_VALUE,
    NAMESPACE, PORT,
};
use super::{List, Schema, given, list, may, need, set, string};

const COUNT: Schema = Schema::Number(0, i32::MAX as i64);
const COUNT_32: Schema = Schema::Number(0, u32::MAX as i64);
const PERCENT: Schema = Schema::Number(0, 100);
const TIME: Schema = Schema::Text(1, 64, GO_DURATION);
const TIME_OR_ZERO: Schema = Schema::Text(1, 64, GO_DURATION_OR_ZERO);

pub(super) static DESTINATION_RULE: Schema = Schema::Object(
    &[
        need("metadata", &METADATA),
        need(
            "spec",
            &Schema::Object(
                &[
                    need("host", &Schema::Text(1, 255, ISTIO_HOST)),
                    may("trafficPolicy", &TRAFFIC_POLICY),
                    may("subsets", &set(0, usize::MAX, &SUBSET, &["name"])),
                    may(
                        "exportTo",
                        &Schema::List(List {
                            least: 0,
                            most: usize::MAX,
                            of: &Schema::Text(1, 63, EXPORT_TO),
                            by: &[""],
                            rules: &[everybody_stands_alone],
                        }),
                    ),
                    may(
                        "workloadSelector",
                        &Schema::Object(
                            &[may(
                                "matchLabels",
                                &Schema::Map(4096, LABEL_KEY, &Schema::Text(0, 63, LABEL_VALUE)),
                            )],
                            &[],
                        ),
                    ),
                ],
                &[],
            ),
        ),
    ],
    &[],
);

fn everybody_stands_alone(export_to: &Value) -> Option<(String, String)> {
    let to = export_to.as_array()?;
    let message = "* and ~ must stand alone";
    let alone = |entry: &Value| matches!(entry.as_str(), Some("*" | "~"));
    (to.len() > 1 && to.iter().any(alone)).then(|| (String::new(), message.to_owned()))
}

const SUBSET: Schema = Schema::Object(
    &[
        need("name", &NAMESPACE),
        may(
            "labels",
            &Schema::Map(usize::MAX, LABEL_KEY, &Schema::Text(0, 63, LABEL_VALUE)),
        ),
        may("trafficPolicy", &TRAFFIC_POLICY),
    ],
    &[],
);

const TRAFFIC_POLICY: Schema = Schema::Object(
    &[
        may("loadBalancer", &LOAD_BALANCER),
        may("connectionPool", &CONNECTION_POOL),
        may("outlierDetection", &OUTLIER),
        may("tls", &TLS),
        may("portLevelSettings", &list(0, 4096, &PORT_LEVEL)),
        may(
            "tunnel",
            &Schema::Object(
                &[
                    may("protocol", &Schema::Choice(&["CONNECT", "POST"])),
                    need("targetHost", &Schema::Text(1, 255, FREE)),
                    need("targetPort", &PORT),
                ],
                &[],
            ),
        ),
        may(
            "proxyProtocol",
            &Schema::Object(&[may("version", &Schema::Choice(&["V1", "V2"]))], &[]),
        ),
        may(
            "retryBudget",
            &Schema::Object(
                &[
                    may("percent", &Schema::Decimal(0.0, 100.0)),
                    may("minRetryConcurrency", &COUNT_32),
                ],
                &[],
            ),
        ),
    ],
    &[policy_says_something, tunnel_or_proxy_protocol],
);

fn policy_says_something(policy: &Value) -> Option<(String, String)> {
    says_one_of(
        policy,
        &[
            "loadBalancer",
            "connectionPool",
            "outlierDetection",
            "tls",
            "portLevelSettings",
            "tunnel",
            "proxyProtocol",
            "retryBudget",
        ],
    )
}

fn says_one_of(object: &Value, fields: &[&str]) -> Option<(String, String)> {
    let none = fields.iter().all(|field| given(object, field).is_none());
    let message = format!("expected at least one of {}", fields.join(", "));
    none.then(|| (String::new(), message))
}

fn tunnel_or_proxy_protocol(policy: &Value) -> Option<(String, String)> {
    let both = given(policy, "tunnel").is_some() && given(policy, "proxyProtocol").is_some();
    let message = "tunnel and proxyProtocol exclude each other";
    both.then(|| (String::new(), message.to_owned()))
}

const PORT_LEVEL: Schema = Schema::Object(
    &[
        need("port", &Schema::Object(&[may("number", &COUNT_32)], &[])),
        may("loadBalancer", &LOAD_BALANCER),
        may("connectionPool", &CONNECTION_POOL),
        may("outlierDetection", &OUTLIER),
        may("tls", &TLS),
    ],
    &[level_says_something],
);

fn level_says_something(level: &Value) -> Option<(String, String)> {
    says_one_of(
        level,
        &["loadBalancer", "connectionPool", "outlierDetection", "tls"],
    )
}

const LOAD_BALANCER: Schema = Schema::Object(
    &[
        may(
            "simple",
            &Schema::Choice(&[
                "UNSPECIFIED",
                "LEAST_CONN",
                "RANDOM",
                "PASSTHROUGH",
                "ROUND_ROBIN",
                "LEAST_REQUEST",
            ]),
        ),
        may("warmupDurationSecs", &TIME),
        may(
            "warmup",
            &Schema::Object(
                &[
                    need("duration", &TIME),
                    may("minimumPercent", &Schema::Decimal(0.0, 100.0)),
                    may("aggression", &Schema::Decimal(0.001, 1e9)),
                ],
                &[],
            ),
        ),
    ],
    &[one_balancer, one_locality],
);

fn one_balancer(balancer: &Value) -> Option<(String, String)> {
    let both = given(balancer, "simple").is_some() && given(balancer, "consistentHash").is_some();
    let message = "simple and consistentHash exclude each other";
    both.then(|| (String::new(), message.to_owned()))
}

fn one_locality(balancer: &Value) -> Option<(String, String)> {
    let both = ["localityLbSetting", "zoneAwareLbSetting"]
        .iter()
        .all(|field| given(balancer, field).is_some());
    let message = "localityLbSetting and zoneAwareLbSetting exclude each other";
    both.then(|| (String::new(), message.to_owned()))
}

const CONNECTION_POOL: Schema = Schema::Object(
    &[
        may(
            "tcp",
            &Schema::Object(
                &[
                    may("maxConnections", &COUNT),
                    may("connectTimeout", &TIME),
                    may("maxConnectionDuration", &TIME),
                    may("idleTimeout", &TIME_OR_ZERO),
                    may(
                        "tcpKeepalive",
                        &Schema::Object(
                            &[
                                may("probes", &COUNT_32),
                                may("time", &TIME),
                                may("interval", &TIME),
                            ],
                            &[],
                        ),
                    ),
                ],
                &[],
            ),
        ),
        may(
            "http",
            &Schema::Object(
                &[
                    may("http1MaxPendingRequests", &COUNT),
                    may("http2MaxRequests", &COUNT),
                    may("maxRequestsPerConnection", &COUNT),
                    may("maxRetries", &COUNT),
                    may("maxConcurrentStreams", &COUNT),
                    may("idleTimeout", &TIME),
                    may("useClientProtocol", &Schema::Bool),
                    may(
                        "h2UpgradePolicy",
                        &Schema::Choice(&["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"]),
                    ),
                    may(
                        "http2KeepAlive",
                        &Schema::Object(&[need("interval", &TIME), need("timeout", &TIME)], &[]),
                    ),
                ],
                &[upgrade_or_client_protocol],
            ),
        ),
    ],
    &[pool_says_something],
);

fn pool_says_something(pool: &Value) -> Option<(String, String)> {
    says_one_of(pool, &["tcp", "http"])
}

fn upgrade_or_client_protocol(http: &Value) -> Option<(String, String)> {
    let both = string(http, "h2UpgradePolicy") == Some("UPGRADE")
        && given(http, "useClientProtocol") == Some(&Value::Bool(true));
    let message = "must not be true with h2UpgradePolicy UPGRADE";
    both.then(|| (".useClientProtocol".to_owned(), message.to_owned()))
}

const OUTLIER: Schema = Schema::Object(
    &[
        may("consecutiveErrors", &COUNT),
        may("consecutive5xxErrors", &COUNT_32),
        may("consecutiveGatewayErrors", &COUNT_32),
        may("splitExternalLocalOriginErrors", &Schema::Bool),
        may("consecutiveLocalOriginFailures", &COUNT_32),
        may("interval", &TIME),
        may("baseEjectionTime", &TIME),
        may("maxEjectionPercent", &PERCENT),
        may("minHealthPercent", &PERCENT),
    ],
    &[local_errors_are_split],
);

fn local_errors_are_split(outlier: &Value) -> Option<(String, String)> {
    let count = given(outlier, "consecutiveLocalOriginFailures").and_then(Value::as_i64);
    let split = given(outlier, "splitExternalLocalOriginErrors") == Some(&Value::Bool(true));
    let message = "needs splitExternalLocalOriginErrors: true";
    (count.is_some_and(|count| count > 0) && !split).then(|| {
        let field = ".consecutiveLocalOriginFailures";
        (field.to_owned(), message.to_owned())
    })
}

const TLS: Schema = Schema::Object(
    &[
        may(
            "mode",
            &Schema::Choice(&["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"]),
        ),
        may("sni", &Schema::Text(0, 253, FREE)),
        may("insecureSkipVerify", &Schema::Bool),
        may("credentialName", &Schema::Text(0, 253, FREE)),
        may("caCertificates", &Schema::Text(0, 4096, FREE)),
        may(
            "subjectAltNames",
            &list(0, usize::MAX, &Schema::Text(0, 2048, FREE)),
        ),
    ],
    &[mutual_has_a_certificate],
);

fn mutual_has_a_certificate(tls: &Value) -> Option<(String, String)> {
    let has = |field| string(tls, field).is_some_and(|text| !text.is_empty());
    if string(tls, "mode") != Some("MUTUAL") || has("credentialName") {
        return None;
    }
    ["clientCertificate", "privateKey"]
        .into_iter()
        .find(|field| !has(field))
        .map(|field| {
            let message = "is missing: mode MUTUAL needs it, or a credentialName";
            (format!(".{field}"), message.to_owned())
        })
}
