//! What has to be written so that an object says what it should: a pure comparison of a status with the one that is there.
//!
//! Entries of other controllers and conditions of types that are not ours stay as they are; what is ours and holds no more
//! goes. The same state gives nothing to write. Lists are limited as Gateway API's schemas limit them: others' entries
//! stay, ours that do not fit are left out and counted.

use serde::Serialize;
use serde_json::{Map, Value};

use super::Status;
use crate::translate::condition::{AncestorStatus, GatewayStatus, ListenerStatus, ParentStatus};
use crate::translate::{CONTROLLER, Condition, Kind};

/// Most entries of `status.parents`.
const MAX_PARENTS: usize = 32;
/// Most entries of `status.ancestors`.
const MAX_ANCESTORS: usize = 16;
/// Most conditions of an object or of a part of one.
const MAX_CONDITIONS: usize = 8;
/// Most characters of a condition's message.
const MAX_MESSAGE: usize = 32_768;

/// Types of conditions that Gateway API has the controller of an object write.
const STANDARD: [&str; 7] = [
    "Accepted",
    "Programmed",
    "ResolvedRefs",
    "PartiallyInvalid",
    "Conflicted",
    "OverlappingTLSConfig",
    "SupportedVersion",
];
/// Begin of the types that are Forebay's own.
const PREFIX: &str = "forebay.dev/";

/// What to write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Fields of `status` with their new values; a JSON merge patch of it.
    pub fields: Map<String, Value>,
    /// Entries and conditions of ours for which there was no room.
    pub left_out: usize,
}

/// What is to be done about an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It says what it should.
    Nothing,
    /// It says something about a newer generation than the one that was judged: whoever would write this may be behind.
    Behind(Change),
    /// This has to be written.
    Write(Change),
}

/// Compares the status that an object of this kind should have with the one that it has. `desired` none: nothing of the
/// object is ours any more. `now` in RFC 3339.
#[must_use]
pub fn patch(kind: Kind, desired: Option<&Status>, current: &Value, now: &str) -> Outcome {
    let mut run = Run {
        now,
        kind,
        change: Change::default(),
        behind: false,
    };
    match (desired, entries(kind)) {
        (Some(Status::Gateway(status)), _) => run.gateway(status, current),
        (Some(Status::Route(status)), _) => run.entries(PARENTS, &status.parents, current),
        (Some(Status::Policy(status)), _) => run.entries(ANCESTORS, &status.ancestors, current),
        (Some(Status::Plain(status)), _) => {
            run.conditions_of(&status.conditions, current);
            if !status.supported_features.is_empty() {
                let features = json(&status.supported_features);
                run.set("supportedFeatures", features, current);
            }
        }
        (None, Some(list)) => run.entries::<ParentStatus>(list, &[], current),
        (None, None) => {}
    }
    if run.change.fields.is_empty() {
        Outcome::Nothing
    } else if run.behind {
        Outcome::Behind(run.change)
    } else {
        Outcome::Write(run.change)
    }
}

/// Whether a status as JSON text may have an entry of ours, which a route or policy must lose once it is not ours any more.
#[must_use]
pub fn may_be_ours(kind: Kind, status: &str) -> bool {
    entries(kind).is_some() && status.contains(CONTROLLER)
}

/// Whether conditions of this type are ours to write; those of Gateway API are, of its kinds and our own.
#[must_use]
pub fn is_ours(of: Kind, condition: &str) -> bool {
    condition.starts_with(PREFIX) || of != Kind::DestinationRule && STANDARD.contains(&condition)
}

/// A list of entries of several controllers.
#[derive(Clone, Copy)]
struct List {
    field: &'static str,
    reference: &'static str,
    most: usize,
}

const PARENTS: List = List {
    field: "parents",
    reference: "parentRef",
    most: MAX_PARENTS,
};
const ANCESTORS: List = List {
    field: "ancestors",
    reference: "ancestorRef",
    most: MAX_ANCESTORS,
};

fn entries(kind: Kind) -> Option<List> {
    match kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::UdpRoute => Some(PARENTS),
        Kind::TrafficPolicy => Some(ANCESTORS),
        _ => None,
    }
}

/// One entry of such a list.
trait Entry {
    fn reference(&self) -> Value;
    fn conditions(&self) -> &[Condition];
}

impl Entry for ParentStatus {
    fn reference(&self) -> Value {
        json(&self.parent_ref)
    }
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

impl Entry for AncestorStatus {
    fn reference(&self) -> Value {
        json(&self.ancestor_ref)
    }
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

/// One comparison.
struct Run<'a> {
    now: &'a str,
    kind: Kind,
    change: Change,
    behind: bool,
}

impl Run<'_> {
    fn set(&mut self, field: &str, value: Value, current: &Value) {
        if current.get(field) != Some(&value) {
            self.change.fields.insert(field.to_owned(), value);
        }
    }

    fn conditions_of(&mut self, desired: &[Condition], current: &Value) {
        let conditions = self.conditions(desired, list(current, "conditions"));
        self.set("conditions", conditions.into(), current);
    }

    fn gateway(&mut self, desired: &GatewayStatus, current: &Value) {
        self.conditions_of(&desired.conditions, current);
        if !desired.addresses.is_empty() || current.get("addresses").is_some() {
            self.set("addresses", json(&desired.addresses), current);
        }
        let before = list(current, "listeners");
        let listeners: Vec<Value> = desired
            .listeners
            .iter()
            .map(|listener| {
                let before = before.iter().find(|b| b["name"] == *listener.name);
                self.listener(listener, before.unwrap_or(&Value::Null))
            })
            .collect();
        if !listeners.is_empty() || current.get("listeners").is_some() {
            self.set("listeners", listeners.into(), current);
        }
    }

    fn listener(&mut self, desired: &ListenerStatus, before: &Value) -> Value {
        let conditions = self.conditions(&desired.conditions, list(before, "conditions"));
        serde_json::json!({
            "name": desired.name,
            "supportedKinds": desired.supported_kinds,
            "attachedRoutes": desired.attached_routes,
            "conditions": conditions,
        })
    }

    /// Entries keep their places; new ones follow.
    fn entries<E: Entry>(&mut self, of: List, desired: &[E], current: &Value) {
        let before = list(current, of.field);
        let is_ours = |entry: &Value| entry["controllerName"] == CONTROLLER;
        let others = before.iter().filter(|entry| !is_ours(entry)).count();
        let mut open: Vec<(Value, &E)> = Vec::new();
        for entry in desired {
            let reference = entry.reference();
            if open.iter().all(|(known, _)| *known != reference) {
                open.push((reference, entry));
            }
        }
        let room = of.most.saturating_sub(others);
        self.change.left_out += open.len().saturating_sub(room);
        open.truncate(room);
        let mut entries = Vec::new();
        for entry in before {
            if !is_ours(entry) {
                entries.push(entry.clone());
                continue;
            }
            let reference = &entry[of.reference];
            let Some(at) = open.iter().position(|(known, _)| known == reference) else {
                continue;
            };
            let (reference, wanted) = open.remove(at);
            entries.push(self.entry(of, reference, wanted, entry));
        }
        for (reference, wanted) in open {
            entries.push(self.entry(of, reference, wanted, &Value::Null));
        }
        if !entries.is_empty() || !before.is_empty() {
            self.set(of.field, entries.into(), current);
        }
    }

    fn entry<E: Entry>(&mut self, of: List, reference: Value, wanted: &E, before: &Value) -> Value {
        let conditions = self.conditions(wanted.conditions(), list(before, "conditions"));
        let mut entry = Map::new();
        entry.insert(of.reference.to_owned(), reference);
        entry.insert("controllerName".to_owned(), CONTROLLER.into());
        entry.insert("conditions".to_owned(), conditions.into());
        entry.into()
    }

    /// Conditions keep their places; new ones follow.
    fn conditions(&mut self, desired: &[Condition], before: &[Value]) -> Vec<Value> {
        let kind = |condition: &Value| condition["type"].as_str().unwrap_or("").to_owned();
        let others = before
            .iter()
            .filter(|c| !is_ours(self.kind, &kind(c)))
            .count();
        let room = MAX_CONDITIONS.saturating_sub(others);
        let mut open: Vec<&Condition> = desired.iter().take(room).collect();
        self.change.left_out += desired.len() - open.len();
        let mut conditions = Vec::new();
        for condition in before {
            let kind = kind(condition);
            if let Some(at) = open.iter().position(|wanted| wanted.kind == kind) {
                conditions.push(self.condition(open.remove(at), condition));
            } else if !is_ours(self.kind, &kind) {
                conditions.push(condition.clone());
            }
        }
        let new = open.into_iter().map(|c| self.condition(c, &Value::Null));
        conditions.extend(new.collect::<Vec<_>>());
        conditions
    }

    fn condition(&mut self, wanted: &Condition, before: &Value) -> Value {
        let mut condition = json(wanted);
        if let Some((end, _)) = wanted.message.char_indices().nth(MAX_MESSAGE) {
            condition["message"] = wanted.message[..end].into();
        }
        self.behind |= before["observedGeneration"].as_i64() > Some(wanted.observed_generation);
        let since = match &before["lastTransitionTime"] {
            Value::String(since) if before["status"] == condition["status"] => since,
            _ => self.now,
        };
        condition["lastTransitionTime"] = since.into();
        condition
    }
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value
        .get(field)
        .and_then(Value::as_array)
        .map_or(&[], |list| list)
}

fn json<T: Serialize>(value: &T) -> Value {
    // Plain structs with string keys: there is nothing that JSON cannot hold.
    serde_json::to_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests;
