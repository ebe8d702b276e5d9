//! Which GatewayClasses are ours: by controllerName, whatever their name.

use std::collections::{BTreeMap, BTreeSet};

use super::Inputs;
use super::condition::{ClassStatus, Condition};
use super::features::FEATURES;
use crate::snapshot::ObjectKey;

/// The `controllerName` of our classes.
pub const CONTROLLER: &str = "forebay.dev/gateway-controller";

/// Names of the classes that are ours and accepted.
#[must_use]
pub fn ours(inputs: &Inputs) -> BTreeSet<&str> {
    inputs
        .gateway_classes
        .iter()
        .filter(|(_, class)| {
            class.spec.controller_name == CONTROLLER && class.spec.parameters_ref.is_none()
        })
        .map(|(key, _)| &*key.name)
        .collect()
}

/// Statuses of the classes that are ours.
pub(super) fn judge(inputs: &Inputs) -> BTreeMap<ObjectKey, ClassStatus> {
    inputs
        .gateway_classes
        .iter()
        .filter(|(_, class)| class.spec.controller_name == CONTROLLER)
        .map(|(key, class)| {
            let accepted = match &class.spec.parameters_ref {
                None => Condition::yes("Accepted", "Accepted", "the class is served by Forebay"),
                Some(parameters) => Condition::no(
                    "Accepted",
                    "InvalidParameters",
                    format!(
                        "parametersRef names {} {}, but Forebay has no parameters: remove it",
                        parameters.kind, parameters.name
                    ),
                ),
            };
            let version = Condition::yes(
                "SupportedVersion",
                "SupportedVersion",
                "the API version is supported",
            );
            let generation = class.metadata.generation();
            let conditions = vec![accepted.at(generation), version.at(generation)];
            let status = ClassStatus {
                conditions,
                supported_features: FEATURES,
            };
            (key.clone(), status)
        })
        .collect()
}
