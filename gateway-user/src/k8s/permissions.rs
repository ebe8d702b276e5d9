//! Permissions that are missing: each is said once, with the rule that grants it and the role that has to have it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::rights::{Place, RIGHTS, Right, rule};

/// Shared by all that talk to the API server. Clones share it too.
#[derive(Clone, Debug, Default)]
pub struct Permissions(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Namespaces that are read; none: all.
    namespaces: Vec<String>,
    said: Mutex<BTreeSet<String>>,
}

/// What the API server has forbidden, in the words of its rules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forbidden<'a> {
    pub(super) verb: &'a str,
    pub(super) group: &'a str,
    /// With its part behind a slash.
    pub(super) resource: &'a str,
    /// Empty: none, or all.
    pub(super) namespace: &'a str,
    /// The object, if it is about one that is named.
    pub(super) name: Option<&'a str>,
}

impl Permissions {
    /// Of a process that reads these namespaces; none: all.
    #[must_use]
    pub fn new(namespaces: Vec<String>) -> Self {
        Self(Arc::new(Shared {
            namespaces,
            said: Mutex::default(),
        }))
    }

    /// Namespaces that are read; none: all.
    #[must_use]
    pub fn namespaces(&self) -> &[String] {
        &self.0.namespaces
    }

    /// Says which rule is missing, in the log if it is for the first time: a thousand objects want the same one.
    pub(super) fn missing(&self, forbidden: Forbidden<'_>) -> String {
        let needed = self.needed(&forbidden);
        let Forbidden { verb, resource, .. } = forbidden;
        let grant = match &needed {
            Some((right, place)) => {
                let name = place.name.as_deref();
                let rule = rule(right.group, right.resources, name, right.verbs);
                format!("add to {}: - {rule}", place.role())
            }
            None => {
                let rule = rule(forbidden.group, &[resource], forbidden.name, &[verb]);
                format!("add to {}: - {rule}", Place::default().role())
            }
        };
        let place = match forbidden.namespace {
            "" => String::new(),
            namespace => format!(" in namespace {namespace}"),
        };
        let sentence = format!("Kubernetes forbids to {verb} {resource}{place}; {grant}");
        let mut said = self.0.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.insert(grant) {
            tracing::error!("{sentence}");
        }
        sentence
    }

    /// The right that allows it, and where.
    fn needed(&self, forbidden: &Forbidden<'_>) -> Option<(Right, Place)> {
        let is = |right: &&Right| {
            right.group == forbidden.group
                && right.resources.contains(&forbidden.resource)
                && right.verbs.contains(&forbidden.verb)
        };
        let here = |place: &Place| {
            let namespace = place.namespace.as_deref();
            let name = place.name.as_deref().zip(forbidden.name);
            namespace.is_none_or(|namespace| namespace == forbidden.namespace)
                && name.is_none_or(|(place, asked)| place == asked)
        };
        RIGHTS.iter().filter(is).find_map(|right| {
            let places = right.places(&self.0.namespaces);
            Some((*right, places.into_iter().find(here)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_is_the_one_that_the_chart_has_for_it() {
        let all = Permissions::default();
        let some = Permissions::new(vec!["a".to_owned(), "b".to_owned()]);
        let routes = Forbidden {
            verb: "patch",
            group: "gateway.networking.k8s.io",
            resource: "httproutes/status",
            namespace: "b",
            name: None,
        };
        let rule = r#"{apiGroups: ["gateway.networking.k8s.io"], resources: ["gateways/status", "grpcroutes/status", "httproutes/status", "udproutes/status"], verbs: ["patch"]}"#;
        let forbidden = "Kubernetes forbids to patch httproutes/status in namespace b; add to";
        assert_eq!(
            all.missing(routes),
            format!("{forbidden} the ClusterRole of ServiceAccount forebay: - {rule}")
        );
        assert_eq!(
            some.missing(routes),
            format!("{forbidden} a Role in namespace b of ServiceAccount forebay: - {rule}")
        );
        let read: serde_json::Value = serde_saphyr::from_str(rule).expect("YAML");
        assert_eq!(read["verbs"][0], "patch");
        let namespace = Forbidden {
            verb: "list",
            group: "",
            resource: "namespaces",
            namespace: "",
            name: Some("b"),
        };
        assert_eq!(
            some.missing(namespace),
            "Kubernetes forbids to list namespaces; add to the ClusterRole of ServiceAccount forebay: - {apiGroups: [\"\"], resources: [\"namespaces\"], resourceNames: [\"b\"], verbs: [\"get\", \"list\", \"watch\"]}"
        );
    }
}
