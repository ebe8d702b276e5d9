//! ReferenceGrants: who may refer to an object of another namespace. They live beside the object that is referred to.

use super::Inputs;
use super::listener::GROUP;
use crate::snapshot::ObjectKey;

/// Whether a Gateway API kind of a namespace may refer to an object of a core kind: in its own namespace always, else by a
/// grant. Whether the object exists plays no part, so that this says nothing about it.
pub(super) fn permits(
    inputs: &Inputs,
    (from_kind, from_namespace): (&str, &str),
    (to_kind, to): (&str, &ObjectKey),
) -> bool {
    if *to.namespace == *from_namespace {
        return true;
    }
    let first = ObjectKey::new(to.namespace.clone(), "");
    inputs
        .reference_grants
        .range(first..)
        .take_while(|(key, _)| key.namespace == to.namespace)
        .any(|(_, grant)| {
            let from = grant.spec.from.iter().any(|from| {
                from.group == GROUP && from.kind == from_kind && from.namespace == from_namespace
            });
            let to = grant.spec.to.iter().any(|granted| {
                let name = granted.name.as_deref().filter(|name| !name.is_empty());
                granted.group.is_empty()
                    && granted.kind == to_kind
                    && name.is_none_or(|name| *name == *to.name)
            });
            from && to
        })
}
