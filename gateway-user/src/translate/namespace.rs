//! Labels of namespaces.

use std::collections::BTreeMap;

use super::Inputs;
use crate::snapshot::ObjectKey;

/// The labels of a namespace. `kubernetes.io/metadata.name` is always among them, as on a cluster; a namespace without an
/// object has no other.
#[must_use]
pub fn labels(inputs: &Inputs, namespace: &str) -> BTreeMap<String, String> {
    let mut labels = inputs
        .namespaces
        .get(&ObjectKey::new("", namespace))
        .map(|object| {
            let own = object.metadata.labels.iter();
            own.map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect::<BTreeMap<_, _>>()
        })
        .unwrap_or_default();
    labels.insert(
        "kubernetes.io/metadata.name".to_owned(),
        namespace.to_owned(),
    );
    labels
}
