//! Statuses of AddressPools.

use std::collections::BTreeMap;

use super::Inputs;
use super::condition::{ClassStatus, Condition, sentences};
use crate::allocate::{ANNOUNCE_NONE, PoolRange};
use crate::snapshot::ObjectKey;

/// Judges all pools. The good ranges of a pool are used even if others cannot be read.
pub(super) fn judge(inputs: &Inputs) -> BTreeMap<ObjectKey, ClassStatus> {
    inputs
        .address_pools
        .iter()
        .map(|(key, pool)| {
            let spec = &pool.spec;
            let mut faults: Vec<String> = spec
                .ranges
                .iter()
                .filter_map(|text| PoolRange::parse(text).err())
                .map(|error| error.to_string())
                .collect();
            if spec.ranges.is_empty() {
                faults.push("there are no ranges".to_owned());
            }
            let operator = spec
                .namespace_selector
                .as_ref()
                .and_then(|s| s.bad_operator());
            faults.extend(
                operator.map(|op| format!("namespaceSelector has the unknown operator {op:?}")),
            );
            let accepted = if faults.is_empty() {
                Condition::yes("Accepted", "Accepted", "all ranges can be used")
            } else {
                Condition::no("Accepted", "Invalid", sentences(&faults))
            };
            let mut unsupported: Vec<String> = spec
                .unread
                .keys()
                .map(|field| format!("spec.{field}"))
                .collect();
            match spec.announce.as_deref() {
                None | Some("L2" | ANNOUNCE_NONE) => {}
                Some(other) => unsupported.push(format!("spec.announce ({other})")),
            }
            let generation = pool.metadata.generation();
            let conditions: Vec<_> = std::iter::once(accepted)
                .chain(Condition::unsupported_fields(&unsupported))
                .map(|condition| condition.at(generation))
                .collect();
            (key.clone(), conditions.into())
        })
        .collect()
}
