//! Brings the objects of one Gateway to what they should be.

use std::collections::BTreeMap;

use kube::core::ApiResource;
use kube::core::params::{GetParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::access::{Access, Failure, MANAGER, Target, path};
use super::gateway_objects::{APPLIED, Family, GatewayObjects, has_all};
use crate::snapshot::ObjectKey;

/// Kinds of objects that a Gateway has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Service,
    Slice,
}

/// What is there of one Gateway's objects, by name.
pub(super) struct Actual(BTreeMap<(Part, String), Value>);

impl Actual {
    pub(super) fn of(objects: &GatewayObjects, store: &BTreeMap<(Part, ObjectKey), Value>) -> Self {
        let namespace = &*objects.gateway.namespace;
        let slices = Family::ALL.map(|family| (Part::Slice, objects.slice_name(family)));
        let names = std::iter::once((Part::Service, objects.service_name())).chain(slices);
        let found = names.filter_map(|(part, name)| {
            let object = store.get(&(part, ObjectKey::new(namespace, &*name)))?;
            Some(((part, name), object.clone()))
        });
        Self(found.collect())
    }
}

/// Name and uid of the Gateway that an object belongs to.
pub(super) fn owner(object: &Value) -> Option<(&str, &str)> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    let owner = owners
        .iter()
        .find(|owner| owner["kind"] == "Gateway" && owner["controller"] == true)?;
    Some((owner["name"].as_str()?, owner["uid"].as_str()?))
}

/// The work for one Gateway.
pub(super) struct Ensure {
    pub(super) access: Access,
    pub(super) objects: GatewayObjects,
    pub(super) actual: Actual,
    /// Of the Gateway.
    pub(super) uid: Box<str>,
    /// The Gateway is not ours any more: what it has is emptied and left.
    pub(super) retired: bool,
}

/// Value of the annotation when an object was emptied.
const RETIRED: &str = "retired";

impl Ensure {
    /// Whether something is to be written.
    pub(super) fn differs(&self) -> bool {
        let part = |(part, name, wanted): (Part, String, Value)| {
            let actual = self.actual.0.get(&(part, name));
            self.wants(actual) && !actual.is_some_and(|actual| self.fits(part, actual, &wanted))
        };
        self.parts().into_iter().any(part) || self.ingress_differs(self.service())
    }

    /// Whether a part has to be there: one that is there, or one that addresses need.
    fn wants(&self, actual: Option<&Value>) -> bool {
        match actual {
            Some(actual) if self.retired => self.owns(actual),
            Some(_) => true,
            None => !self.retired && !self.objects.addresses.is_empty(),
        }
    }

    fn service(&self) -> Option<&Value> {
        self.actual
            .0
            .get(&(Part::Service, self.objects.service_name()))
    }

    fn owns(&self, actual: &Value) -> bool {
        owner(actual).is_some_and(|(_, uid)| uid == &*self.uid)
    }

    /// All parts that may be needed.
    fn parts(&self) -> Vec<(Part, String, Value)> {
        let objects = &self.objects;
        let service = (
            Part::Service,
            objects.service_name(),
            objects.service(&self.uid),
        );
        let slices = Family::ALL.into_iter().filter_map(|family| {
            let name = objects.slice_name(family);
            let there = self.actual.0.contains_key(&(Part::Slice, name.clone()));
            let slice = || objects.slice(family, &self.uid);
            (there || objects.has(family)).then(|| (Part::Slice, name, slice()))
        });
        std::iter::once(service).chain(slices).collect()
    }

    fn fits(&self, part: Part, actual: &Value, wanted: &Value) -> bool {
        if self.retired {
            return match part {
                Part::Service => true,
                Part::Slice => actual["metadata"]["annotations"][APPLIED] == RETIRED,
            };
        }
        has_all(actual, wanted, part == Part::Slice)
    }

    fn ingress_differs(&self, service: Option<&Value>) -> bool {
        let wanted = self.objects.ingress();
        match service {
            Some(service) if self.owns(service) => {
                let ingress = &service["status"]["loadBalancer"]["ingress"];
                ingress.as_array().map_or(&[][..], |list| list) != wanted
            }
            _ => !wanted.is_empty(),
        }
    }

    /// Writes what differs, one after the other; gives what was written, also if the rest failed.
    pub(super) async fn run(self) -> (Vec<(Part, Value)>, Result<(), Failure>) {
        let mut written = Vec::new();
        let result = self.write(&mut written).await;
        (written, result)
    }

    async fn write(&self, written: &mut Vec<(Part, Value)>) -> Result<(), Failure> {
        let mut service = self.service().cloned();
        for (part, name, wanted) in self.parts() {
            let actual = self.actual.0.get(&(part, name.clone()));
            if !self.wants(actual) || actual.is_some_and(|a| self.fits(part, a, &wanted)) {
                continue;
            }
            let object = match self.retired {
                true => self.retire(&name).await?,
                false => self.apply(part, &name, actual, wanted).await?,
            };
            if part == Part::Service {
                service = Some(object.clone());
            }
            written.push((part, object));
        }
        if self.ingress_differs(service.as_ref()) {
            let object = self.tell_ingress(self.objects.ingress()).await?;
            let ingress = object["status"]["loadBalancer"]["ingress"].as_array();
            let lost = ingress.is_some_and(|list| list.iter().any(|i| i["ipMode"] != "Proxy"));
            written.push((Part::Service, object));
            if lost {
                // Without the mode kube-proxy would take the address away from the Gateway.
                written.push((Part::Service, self.tell_ingress(Vec::new()).await?));
                let why = "this Kubernetes does not know ipMode of status.loadBalancer.ingress: the Service tells no addresses";
                return Err(Failure::Invalid(why.to_owned()));
            }
        }
        Ok(())
    }

    fn target<'a>(
        &'a self,
        part: Part,
        resource: &'a ApiResource,
        subresource: &'static str,
        verb: &'static str,
    ) -> Target<'a> {
        Target {
            what: part.what(),
            resource,
            part: subresource,
            namespace: &self.objects.gateway.namespace,
            verb,
        }
    }

    /// Server-side apply. Fields of others stay; an object that does not belong to the Gateway is left alone.
    async fn apply(
        &self,
        part: Part,
        name: &str,
        actual: Option<&Value>,
        wanted: Value,
    ) -> Result<Value, Failure> {
        let resource = part.resource();
        let request = || path(&resource, &self.objects.gateway.namespace);
        let read = match actual {
            Some(actual) => Some(actual.clone()),
            None => {
                let target = self.target(part, &resource, "", "get");
                match self
                    .access
                    .call(target, request().get(name, &GetParams::default()))
                    .await
                {
                    Ok(object) => Some(object),
                    Err(Failure::Gone) => None,
                    Err(failure) => return Err(failure),
                }
            }
        };
        if let Some(object) = &read {
            self.refuse_foreign(&resource.kind, name, object)?;
        }
        let mut params = PatchParams::apply(MANAGER);
        // One that was just made by somebody else is not taken over.
        params.force = read.is_some();
        let target = self.target(part, &resource, "", "patch");
        let request = request().patch(name, &params, &Patch::Apply(wanted));
        pruned(self.access.call(target, request).await)
    }

    fn refuse_foreign(&self, kind: &str, name: &str, object: &Value) -> Result<(), Failure> {
        if self.owns(object) {
            return Ok(());
        }
        let gateway = &self.objects.gateway;
        if owner(object).is_some_and(|(owner, _)| owner == &*gateway.name) {
            // Of a Gateway of this name that was deleted; it goes soon.
            return Err(Failure::Conflict(String::new()));
        }
        Err(Failure::Invalid(format!(
            "{kind} {}/{name} is there and does not belong to the Gateway; it is left alone: rename it, or the Gateway",
            gateway.namespace
        )))
    }

    /// Takes the endpoints out of an EndpointSlice.
    async fn retire(&self, name: &str) -> Result<Value, Failure> {
        let resource = Part::Slice.resource();
        let body =
            json!({"metadata": {"annotations": {APPLIED: RETIRED}}, "endpoints": [], "ports": []});
        let target = self.target(Part::Slice, &resource, "", "patch");
        let request = path(&resource, &self.objects.gateway.namespace);
        let request = request.patch(name, &by_us(), &Patch::Merge(body));
        pruned(self.access.call(target, request).await)
    }

    async fn tell_ingress(&self, ingress: Vec<Value>) -> Result<Value, Failure> {
        let resource = Part::Service.resource();
        let load_balancer = match ingress.is_empty() {
            true => json!({"ingress": null}),
            false => json!({ "ingress": ingress }),
        };
        let body = json!({"status": {"loadBalancer": load_balancer}});
        let target = self.target(Part::Service, &resource, "status", "patch");
        let request = path(&resource, &self.objects.gateway.namespace);
        let name = self.objects.service_name();
        let request = request.patch_subresource("status", &name, &by_us(), &Patch::Merge(body));
        pruned(self.access.call(target, request).await)
    }
}

fn by_us() -> PatchParams {
    PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn pruned(answer: Result<Value, Failure>) -> Result<Value, Failure> {
    answer.map(|mut object| {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        object
    })
}
