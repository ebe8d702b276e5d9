//! Objects as the API server sends them, before anything is read from them.
//!
//! Nothing but the name must be right: one odd object never costs a list.

use std::borrow::Cow;
use std::net::IpAddr;

use kube::Resource;
use kube::api::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::seen::Known;
use crate::translate::{Object, ObjectError};

/// What decides a translation, in sixteen bytes.
pub type Fingerprint = [u8; 16];

/// One object as JSON, with the part of its metadata that the watch needs.
#[derive(Clone, Debug)]
pub struct Raw {
    meta: ObjectMeta,
    value: Value,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let mut meta = ObjectMeta::default();
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            let text = |name: &str| metadata.get(name)?.as_str().map(str::to_owned);
            meta.name = text("name");
            meta.namespace = text("namespace");
            meta.uid = text("uid");
            meta.resource_version = text("resourceVersion");
            metadata.remove("managedFields");
        }
        Ok(Self { meta, value })
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// An object whose status is put aside.
#[derive(Debug)]
pub struct Item {
    /// What a write starts from.
    pub known: Known,
    /// `status.addresses` that are IP addresses.
    pub addresses: Vec<IpAddr>,
    /// The rest, without what changes at every write.
    value: Value,
}

impl Raw {
    /// Puts the status aside.
    #[must_use]
    pub fn split(mut self, resource: &ApiResource) -> Item {
        let status = self
            .value
            .as_object_mut()
            .and_then(|object| object.remove("status"));
        let addresses = status
            .as_ref()
            .and_then(|status| status["addresses"].as_array())
            .map(|addresses| {
                let values = addresses.iter().filter_map(|a| a["value"].as_str());
                values.filter_map(|text| text.parse().ok()).collect()
            });
        let status = status
            .filter(|status| !status.is_null())
            .map(|status| status.to_string().into());
        if let Some(object) = self.value.as_object_mut() {
            // Items of a list do not say what they are.
            let words = [
                ("apiVersion", &resource.api_version),
                ("kind", &resource.kind),
            ];
            for (name, word) in words {
                object.insert(name.to_owned(), Value::String(word.clone()));
            }
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("resourceVersion");
                metadata.remove("uid");
                if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
                    annotations.retain(|name, _| name.starts_with("forebay.dev/"));
                }
            }
        }
        Item {
            known: Known {
                uid: self.meta.uid.unwrap_or_default().into(),
                resource_version: self.meta.resource_version.unwrap_or_default().into(),
                status,
            },
            addresses: addresses.unwrap_or_default(),
            value: self.value,
        }
    }
}

impl Item {
    /// Equal for two versions that differ in nothing that decides a translation, such as the status.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        if let Some(object) = self.value.as_object() {
            for (name, part) in object.iter().filter(|(name, _)| *name != "apiVersion") {
                hash.update(name);
                hash.update(part.to_string());
            }
        }
        let digest = hash.finalize();
        std::array::from_fn(|at| digest[at])
    }

    /// Reads it.
    ///
    /// # Errors
    /// See [`Object::parse`].
    pub fn read(&self) -> Result<Option<Object>, ObjectError> {
        Object::parse(&self.value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item(change: impl Fn(&mut Value)) -> Item {
        let mut value = json!({
            "metadata": {"name": "a", "namespace": "b", "uid": "u", "resourceVersion": "7", "generation": 1,
                "managedFields": [{"x": 1}], "annotations": {"other": "1", "forebay.dev/x": "2"}},
            "spec": {"gatewayClassName": "c"},
            "status": {"addresses": [{"type": "IPAddress", "value": "192.0.2.1"}, {"type": "Hostname", "value": "x"}]},
        });
        change(&mut value);
        let raw: Raw = serde_json::from_value(value).expect("anything is an object");
        let resource = ApiResource {
            group: "gateway.networking.k8s.io".into(),
            version: "v1".into(),
            api_version: "gateway.networking.k8s.io/v1".into(),
            kind: "Gateway".into(),
            plural: "gateways".into(),
        };
        raw.split(&resource)
    }

    #[test]
    fn the_fingerprint_follows_what_is_translated_and_nothing_else() {
        let before = item(|_| {});
        assert_eq!(before.known.resource_version.as_ref(), "7");
        assert_eq!(
            before.addresses,
            ["192.0.2.1".parse::<IpAddr>().expect("address")]
        );
        let same: [fn(&mut Value); 4] = [
            |v| v["status"] = json!({"conditions": []}),
            |v| v["metadata"]["resourceVersion"] = json!("8"),
            |v| v["metadata"]["managedFields"] = json!([]),
            |v| v["metadata"]["annotations"]["other"] = json!("3"),
        ];
        for change in same {
            assert_eq!(item(change).fingerprint(), before.fingerprint());
        }
        let different: [fn(&mut Value); 4] = [
            |v| v["spec"]["gatewayClassName"] = json!("d"),
            |v| v["metadata"]["generation"] = json!(2),
            |v| v["metadata"]["labels"] = json!({"x": "y"}),
            |v| v["metadata"]["annotations"]["forebay.dev/x"] = json!("3"),
        ];
        for change in different {
            assert_ne!(item(change).fingerprint(), before.fingerprint());
        }
        assert!(matches!(before.read(), Ok(Some(Object::Gateway(_)))));
    }
}
