//! What an object in a file is: by what two manifests are the same one, and how people are told of it.

use serde_json::Value;

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}

/// API group without version, and kind; empty where they are not given.
pub(super) fn group_and_kind(value: &Value) -> (&str, &str) {
    let api_version = text(value, "/apiVersion").unwrap_or_default();
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    (group, text(value, "/kind").unwrap_or_default())
}

/// What makes two manifests the same object, readable also from one that is broken elsewhere: group (in any
/// version), kind, namespace, name.
pub(super) fn identity(value: &Value) -> Option<String> {
    let (group, kind) = group_and_kind(value);
    let namespace = match kind {
        // Of the whole cluster: a namespace means nothing.
        "GatewayClass" | "Namespace" | "Node" | "AddressPool" => "",
        _ => text(value, "/metadata/namespace").unwrap_or("default"),
    };
    let name = text(value, "/metadata/name")?;
    (!kind.is_empty()).then(|| format!("{group}/{kind}/{namespace}/{name}"))
}

/// What [`describe`] says of most objects that have this identity: of those that name their namespace if they are in one.
pub(super) fn description(identity: &str) -> Option<String> {
    let mut parts = identity.splitn(4, '/').skip(1);
    let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some(match namespace {
        "" => format!("{kind} {name}"),
        _ => format!("{kind} {namespace}/{name}"),
    })
}

/// How people are told of an object, as its manifest states it.
pub(super) fn describe(value: &Value) -> String {
    let kind = text(value, "/kind").unwrap_or("object");
    match (
        text(value, "/metadata/namespace"),
        text(value, "/metadata/name"),
    ) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => format!("{kind} without a name"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_identity_says_what_most_objects_are_called() {
        let route =
            |metadata| json!({"apiVersion": "g/v1", "kind": "HTTPRoute", "metadata": metadata});
        for (value, said) in [
            (route(json!({"name": "r", "namespace": "n"})), true),
            // Of the default namespace it would say so, which the manifest does not.
            (route(json!({"name": "r"})), false),
            (
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}),
                true,
            ),
            (
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "namespace": "b"}}),
                false,
            ),
        ] {
            let identity = identity(&value).unwrap();
            let same = description(&identity) == Some(describe(&value));
            assert_eq!(same, said, "{identity}");
        }
    }
}
