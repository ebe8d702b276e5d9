//! Kernels that are locked down from their start.

use serde_json::{Value, json};

/// Beginnings of the names of what is run then.
const NAMES: [&str; 2] = ["datapath::lockdown::", "datapath::machine::"];

/// How far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Lockdown {
    /// Nobody changes the running kernel.
    Integrity,
    /// Nor reads what it keeps to itself.
    Confidentiality,
}

impl Lockdown {
    /// What the kernel is told.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Integrity => " lockdown=integrity",
            Self::Confidentiality => " lockdown=confidentiality",
        }
    }

    /// Has a machine run what is about it.
    pub(super) fn choose(self, plan: &mut Value) {
        plan["names"] = json!(NAMES);
    }
}
