//! What a node may not lose or gather as time passes.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::machine;

/// Looked at while all is well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gauge {
    /// Open file descriptors of the process.
    pub descriptors: u64,
    /// Maps, programs and links in the kernel; empty where they are not of this run alone.
    pub objects: BTreeMap<&'static str, u64>,
    /// Names of what is pinned.
    pub pins: Vec<String>,
    /// Resident memory of the process without files and without the history, in KB.
    pub resident: u64,
    /// Memory of the machine that could be had, in KB; 0 where others take it too.
    pub available: u64,
}

impl Gauge {
    /// What the kernel holds and what memory there is, where both are of this run alone.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn of_machine() -> Result<Self> {
        if !machine::is_here() {
            return Ok(Self::default());
        }
        let maps = aya::maps::loaded_maps().flatten().count();
        let programs = aya::programs::loaded_programs().flatten().count();
        let links = aya::programs::loaded_links().flatten().count();
        let objects = [("links", links), ("maps", maps), ("programs", programs)];
        Ok(Self {
            objects: objects.map(|(kind, count)| (kind, count as u64)).into(),
            available: machine::available()? << 10,
            ..Self::default()
        })
    }
}

/// Descriptors that connections on their way may hold besides.
const DESCRIPTORS: u64 = 16;
/// What the process may gather, in KB.
const RESIDENT: u64 = 32 << 10;
/// What the machine may be short of besides, in KB.
const AVAILABLE: u64 = 48 << 10;

/// What has leaked between two looks, a sentence each.
#[must_use]
pub fn leaks(first: &Gauge, last: &Gauge) -> Vec<String> {
    let mut found = Vec::new();
    if last.descriptors > first.descriptors + DESCRIPTORS {
        found.push(format!(
            "{} descriptors are open, {} were",
            last.descriptors, first.descriptors
        ));
    }
    if last.objects != first.objects {
        found.push(format!(
            "the kernel holds {:?}, it held {:?}",
            last.objects, first.objects
        ));
    }
    if last.pins != first.pins {
        found.push(format!("pinned are {:?}, were {:?}", last.pins, first.pins));
    }
    if last.resident > first.resident + RESIDENT {
        found.push(format!(
            "the process takes {} KB, it took {}",
            last.resident, first.resident
        ));
    }
    if last.available + AVAILABLE < first.available {
        found.push(format!(
            "{} KB of memory can be had, {} could",
            last.available, first.available
        ));
    }
    found
}

/// Counters that went backwards, a sentence each.
#[must_use]
pub fn backwards(
    node: &str,
    before: &BTreeMap<&'static str, u64>,
    after: &BTreeMap<&'static str, u64>,
) -> Vec<String> {
    let is = |name: &str| after.get(name).copied().unwrap_or(0);
    let less = before.iter().filter(|(name, was)| is(name) < **was);
    less.map(|(name, was)| format!("{name} of {node} fell from {was} to {}", is(name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_leak_is_told_and_a_little_is_none() {
        let first = Gauge {
            descriptors: 40,
            objects: [("maps", 34)].into(),
            pins: vec!["ROWS".to_owned()],
            resident: 90_000,
            available: 600_000,
        };
        let little = Gauge {
            descriptors: 56,
            resident: 100_000,
            available: 590_000,
            ..first.clone()
        };
        assert_eq!(leaks(&first, &little), [] as [String; 0]);
        let much = Gauge {
            descriptors: 57,
            objects: [("maps", 35)].into(),
            pins: Vec::new(),
            resident: 123_000,
            available: 500_000,
        };
        assert_eq!(leaks(&first, &much).len(), 5);
    }

    #[test]
    fn counters_only_grow() {
        let before = [("a", 3), ("b", 1)].into();
        assert!(backwards("one", &before, &[("a", 3), ("b", 2)].into()).is_empty());
        assert_eq!(
            backwards("one", &before, &[("a", 2)].into()),
            ["a of one fell from 3 to 2", "b of one fell from 1 to 0"]
        );
    }
}
