//! What Forebay asks the API server for, as rules: all of it, and nothing else.

use crate::file::keys::NAMESPACE;

/// Namespace of Events about objects that are in none; the API server takes them nowhere else.
pub const EVENTS: &str = "default";

/// Where a right is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// For objects in no namespace.
    Cluster,
    /// For the Namespaces that are read, which are in no namespace themselves.
    Read,
    /// In all namespaces that are read.
    Namespaces,
    /// In Forebay's own namespace.
    Own,
    /// In [`EVENTS`].
    Events,
}

/// One place where a right is needed: what a role there has to allow.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The namespace; none: a ClusterRole.
    pub namespace: Option<String>,
    /// The only object that it is needed for.
    pub name: Option<String>,
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

impl Place {
    /// The role that has to allow it, in words.
    #[must_use]
    pub fn role(&self) -> String {
        let role = match &self.namespace {
            Some(namespace) => format!("a Role in namespace {namespace}"),
            None => "the ClusterRole".to_owned(),
        };
        format!("{role} of ServiceAccount forebay")
    }
}

/// A rule as YAML on one line.
#[must_use]
pub fn rule(group: &str, resources: &[&str], name: Option<&str>, verbs: &[&str]) -> String {
    let list = |words: &[&str]| format!("[\"{}\"]", words.join("\", \""));
    let named = name.map_or(String::new(), |name| {
        format!(", resourceNames: {}", list(&[name]))
    });
    format!(
        "{{apiGroups: {}, resources: {}{named}, verbs: {}}}",
        list(&[group]),
        list(resources),
        list(verbs)
    )
}

impl Right {
    /// Everywhere that it is needed if these namespaces are read; none: all.
    #[must_use]
    pub fn places(&self, namespaces: &[String]) -> Vec<Place> {
        let place = |namespace: Option<&str>, name: Option<&str>| Place {
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
        };
        let all = namespaces.is_empty();
        let each = namespaces.iter().map(String::as_str);
        match self.scope {
            Where::Own => vec![place(Some(NAMESPACE), self.name)],
            Where::Events if !all => vec![place(Some(EVENTS), self.name)],
            Where::Read if !all => each.map(|name| place(None, Some(name))).collect(),
            Where::Namespaces if !all => each.map(|name| place(Some(name), self.name)).collect(),
            _ => vec![place(None, self.name)],
        }
    }
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
    right("", &["nodes"], READ, Where::Cluster),
    right("", &["namespaces"], READ, Where::Read),
    right("", &["secrets"], READ, Where::Namespaces),
    right(
        "",
        &["services"],
        &["get", "list", "watch", "create", "patch"],
        Where::Namespaces,
    ),
    right("", &["services/status"], &["patch"], Where::Namespaces),
    right(
        "discovery.k8s.io",
        &["endpointslices"],
        &["get", "list", "watch", "create", "patch"],
        Where::Namespaces,
    ),
    // Where the other nodes are.
    right("discovery.k8s.io", &["endpointslices"], READ, Where::Own),
    right(
        "events.k8s.io",
        &["events"],
        &["create", "patch"],
        Where::Namespaces,
    ),
    right(
        "events.k8s.io",
        &["events"],
        &["create", "patch"],
        Where::Events,
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
