//! What Forebay asks the API server for, as rules: all of it, and nothing else.

/// Where a right is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// For objects in no namespace.
    Cluster,
    /// In all namespaces that are read.
    Namespaces,
    /// In all namespaces, whichever are read.
    Everywhere,
    /// In Forebay's own namespace.
    Own,
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// API group.
    pub group: &'static str,
    /// Resources, with their part behind a slash.
    pub resources: &'static [&'static str],
    /// What is done.
    pub verbs: &'static [&'static str],
    /// Where.
    pub scope: Where,
    /// The only object that it is needed for.
    pub name: Option<&'static str>,
}

const READ: &[&str] = &["get", "list", "watch"];
const GATEWAY: &str = "gateway.networking.k8s.io";

const fn right(
    group: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
    scope: Where,
) -> Right {
    Right {
        group,
        resources,
        verbs,
        scope,
        name: None,
    }
}

/// All of them.
pub const RIGHTS: &[Right] = &[
    right(GATEWAY, &["gatewayclasses"], READ, Where::Cluster),
    right(
        GATEWAY,
        &["gatewayclasses/status"],
        &["patch"],
        Where::Cluster,
    ),
    right(
        GATEWAY,
        &[
            "gateways",
            "grpcroutes",
            "httproutes",
            "referencegrants",
            "udproutes",
        ],
        READ,
        Where::Namespaces,
    ),
    right(
        GATEWAY,
        &[
            "gateways/status",
            "grpcroutes/status",
            "httproutes/status",
            "udproutes/status",
        ],
        &["patch"],
        Where::Namespaces,
    ),
    right("forebay.dev", &["addresspools"], READ, Where::Cluster),
    right(
        "forebay.dev",
        &["addresspools/status"],
        &["patch"],
        Where::Cluster,
    ),
    right("forebay.dev", &["trafficpolicies"], READ, Where::Namespaces),
    right(
        "forebay.dev",
        &["trafficpolicies/status"],
        &["patch"],
        Where::Namespaces,
    ),
    right(
        "networking.istio.io",
        &["destinationrules"],
        READ,
        Where::Namespaces,
    ),
    right(
        "networking.istio.io",
        &["destinationrules/status"],
        &["patch"],
        Where::Namespaces,
    ),
    right("", &["namespaces", "nodes"], READ, Where::Cluster),
    right("", &["secrets"], READ, Where::Namespaces),
    right(
        "",
        &["services"],
        &["get", "create", "patch"],
        Where::Namespaces,
    ),
    right("", &["services"], &["list", "watch"], Where::Everywhere),
    right("", &["services/status"], &["patch"], Where::Namespaces),
    right(
        "discovery.k8s.io",
        &["endpointslices"],
        &["get", "create", "patch"],
        Where::Namespaces,
    ),
    right(
        "discovery.k8s.io",
        &["endpointslices"],
        &["list", "watch"],
        Where::Everywhere,
    ),
    right(
        "events.k8s.io",
        &["events"],
        &["create", "patch"],
        Where::Everywhere,
    ),
    right(
        "coordination.k8s.io",
        &["leases"],
        &["get", "list", "watch", "create", "patch", "update"],
        Where::Own,
    ),
    right("", &["secrets"], &["create"], Where::Own),
    Right {
        name: Some("forebay-keys"),
        ..right(
            "",
            &["secrets"],
            &["get", "list", "watch", "update"],
            Where::Own,
        )
    },
];
