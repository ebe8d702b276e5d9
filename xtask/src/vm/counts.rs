//! Counts of instructions: what a run gave, what is recorded, and what has become dearer.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::paths;

/// Where they are recorded, below the checkout.
pub(super) const FILE: &str = "docs/benchmarks/instructions.json";

/// Instructions in a thousand that a packet may take more than at the last record.
const MORE: u64 = 20;
/// The same of cases that go through the whole stack: timers and threads come in between.
const MORE_OF_STACK: u64 = 50;
/// Between the name of such a case and that of a part of it. How much of a request is in user space comes in two sizes from run to
/// run, and the kernel's part is what is left: a part has grown only if the sum has grown as well.
const PART: &str = ", in ";
/// Fewer are chance.
const CHANCE: u64 = 5;

/// Beginning of the names of requests.
const REQUEST: &str = "l7: ";
/// Beginnings of the names of cases that go through the whole stack, which not every emulator counts.
const STACK: [&str; 2] = ["loop: ", REQUEST];

/// Whether it is such a case.
pub(super) fn is_stack(name: &str) -> bool {
    STACK.iter().any(|begin| name.starts_with(begin))
}

/// Whether it is a request, which takes the daemon.
pub(super) fn is_request(name: &str) -> bool {
    name.starts_with(REQUEST)
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    /// The kernel's release.
    pub(super) release: String,
    /// SHA-256 of the kernel programs.
    pub(super) object: String,
    /// Instructions of a packet with those of the harness, by case.
    pub(super) instructions: BTreeMap<String, u64>,
}

impl Counts {
    /// As if these cases were none.
    pub(super) fn leave_out(&mut self, which: impl Fn(&str) -> bool) {
        self.instructions.retain(|name, _| !which(name));
    }

    /// Takes over what only another emulator counts, from a record of the same kernel.
    pub(super) fn keep_stack_of(&mut self, before: &Self) {
        if before.release != self.release || self.instructions.keys().any(|name| is_stack(name)) {
            return;
        }
        let kept = before
            .instructions
            .iter()
            .filter(|(name, _)| is_stack(name));
        let kept = kept.map(|(name, count)| (name.clone(), *count));
        self.instructions.extend(kept);
    }
}

/// Counts by kernel, as the file has them.
pub(super) type Recorded = BTreeMap<String, Counts>;

/// What was recorded.
pub(super) fn read() -> Result<Recorded> {
    let path = path();
    if !path.exists() {
        return Ok(Recorded::new());
    }
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} holds no counts", path.display()))
}

/// The text of such a file.
pub(super) fn parse(text: &[u8]) -> Result<Recorded> {
    Ok(serde_json::from_slice(text)?)
}

/// Records anew.
pub(super) fn write(recorded: &Recorded) -> Result<()> {
    let text = format!("{}\n", serde_json::to_string_pretty(recorded)?);
    fs::write(path(), text).with_context(|| format!("cannot write {}", path().display()))
}

fn path() -> PathBuf {
    paths::root().join(FILE)
}

/// What is not as recorded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// What may not be: a sentence each.
    pub(super) faults: Vec<String>,
    /// What has become cheaper: another growth would hide in what was won.
    pub(super) cheaper: Vec<String>,
}

/// Compares a run with what is recorded.
pub(super) fn changes(before: &Counts, now: &Counts) -> Changes {
    let mut changes = Changes::default();
    let names = before.instructions.keys().chain(now.instructions.keys());
    let names: std::collections::BTreeSet<&String> = names.collect();
    for name in names {
        let counts = (before.instructions.get(name), now.instructions.get(name));
        let (was, is) = match counts {
            (Some(was), Some(is)) => (*was, *is),
            // Who has an older emulator cannot record it.
            (None, _) if is_stack(name) => continue,
            (None, _) => {
                let fault = format!("\"{name}\" is not recorded: record it");
                changes.faults.push(fault);
                continue;
            }
            (_, None) => {
                let fault = format!("\"{name}\" was not counted: record anew");
                changes.faults.push(fault);
                continue;
            }
        };
        let counts = format!("\"{name}\" takes {is} instructions, {was} are recorded");
        let more = if is_stack(name) { MORE_OF_STACK } else { MORE };
        if grows(was, is, more) && !is_moved(name, before, now) {
            changes.faults.push(format!(
                "{counts} (on Linux {}): make it cheaper, or record it and say why",
                before.release
            ));
        } else if grows(is, was, more) {
            changes.cheaper.push(format!("{counts}: record it"));
        }
    }
    changes
}

/// Whether a case is a part of one that takes no more than before: what this part takes, another one has given.
fn is_moved(name: &str, before: &Counts, now: &Counts) -> bool {
    let Some((sum, _)) = name.split_once(PART).filter(|_| is_request(name)) else {
        return false;
    };
    let of = |counts: &Counts| counts.instructions.get(sum).copied();
    let (was, is) = (of(before), of(now));
    was.zip(is).is_some_and(|(was, is)| !grows(was, is, MORE))
}

/// Whether `is` is more than `was` by more than chance and `parts` in a thousand.
fn grows(was: u64, is: u64, parts: u64) -> bool {
    let more = is.saturating_sub(was);
    more > CHANCE && more * 1000 > was * parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(own: u64, other: u64) -> Counts {
        Counts {
            release: "6.12.1".to_owned(),
            object: String::new(),
            instructions: [("own".to_owned(), own), ("other".to_owned(), other)].into(),
        }
    }

    #[test]
    fn only_what_is_more_than_chance_and_two_in_a_hundred_is_a_fault() {
        let before = counts(100, 1_000);
        for same in [
            counts(100, 1_000),
            counts(105, 1_020),
            counts(95, 981),
            counts(98, 1_003),
        ] {
            assert_eq!(changes(&before, &same), Changes::default());
        }
        let dearer = changes(&before, &counts(106, 1_021)).faults;
        assert_eq!(dearer.len(), 2);
        assert_eq!(
            dearer[1],
            "\"own\" takes 106 instructions, 100 are recorded (on Linux 6.12.1): make it cheaper, or record it and say why"
        );
    }

    #[test]
    fn what_goes_through_the_whole_stack_is_compared_less_strictly() {
        let name = "l7: a request".to_owned();
        let with = |count| {
            let mut counts = counts(100, 1_000);
            counts.instructions.insert(name.clone(), count);
            counts
        };
        let same = changes(&with(10_000), &with(10_500));
        assert_eq!(same, Changes::default());
        assert_eq!(changes(&with(10_000), &with(10_501)).faults.len(), 1);
        let unrecorded = changes(&counts(100, 1_000), &with(10_000));
        assert_eq!(unrecorded, Changes::default());
        let mut kept = counts(100, 1_000);
        kept.keep_stack_of(&with(7));
        assert_eq!(kept, with(7));
        kept.leave_out(is_stack);
        assert_eq!(kept, counts(100, 1_000));
    }

    #[test]
    fn a_part_of_a_request_has_grown_only_with_the_whole() {
        let with = |user, kernel| {
            let mut counts = counts(100, 1_000);
            let all = [
                ("l7: one, daemon", user + kernel),
                ("l7: one, daemon, in user space", user),
                ("l7: one, daemon, in the kernel", kernel),
            ];
            let all = all.map(|(name, count)| (name.to_owned(), count));
            counts.instructions.extend(all);
            counts
        };
        let before = with(70_000, 40_000);
        let moved = changes(&before, &with(74_000, 36_000));
        assert_eq!(moved.faults, [] as [String; 0]);
        let dearer = changes(&before, &with(74_000, 39_000)).faults;
        assert_eq!(dearer.len(), 1, "{dearer:?}");
        assert!(dearer[0].starts_with("\"l7: one, daemon, in user space\" takes 74000"));
    }

    #[test]
    fn what_was_won_is_told_and_is_no_fault() {
        let changes = changes(&counts(100, 1_000), &counts(20, 1_000));
        assert!(changes.faults.is_empty());
        assert_eq!(
            changes.cheaper,
            ["\"own\" takes 20 instructions, 100 are recorded: record it"]
        );
    }

    #[test]
    fn a_case_on_one_side_only_is_a_fault() {
        let all = counts(100, 1_000);
        let mut fewer = all.clone();
        fewer.instructions.remove("own");
        assert_eq!(
            changes(&all, &fewer).faults,
            ["\"own\" was not counted: record anew"]
        );
        assert_eq!(
            changes(&fewer, &all).faults,
            ["\"own\" is not recorded: record it"]
        );
    }

    #[test]
    fn what_is_recorded_can_be_read() {
        let recorded = read().unwrap();
        for (kernel, counts) in &recorded {
            assert!(!counts.instructions.is_empty(), "{kernel}");
        }
    }
}
