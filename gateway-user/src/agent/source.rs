//! Which addresses are given out: by manifests the ranges of their AddressPools and the static addresses of their
//! Gateways, by Kubernetes the ranges of the AddressPools alone: anybody may write an address into a Gateway there.
//!
//! The agent reads the directory or asks the API server itself, and takes nothing else from them: who may write there
//! decides over VIPs.

use std::collections::BTreeSet;
use std::path::Path;

use super::policy::Allowed;
use crate::file::merge::Files;
use crate::file::read;
use crate::k8s::{Ranges, of_pools};

/// Reads the directory.
///
/// # Errors
/// It cannot be read; one phrase.
pub fn read(directory: &Path) -> Result<Allowed, String> {
    let listing = read::read(directory, &BTreeSet::new());
    if let Some(why) = listing.unreadable.get("") {
        return Err(why.clone());
    }
    let mut files = Files::default();
    files.update(listing);
    let inputs = &files.merged().inputs;
    let addresses = inputs
        .gateways
        .values()
        .flat_map(|gateway| gateway.spec.addresses.iter())
        .filter_map(|address| address.value.parse().ok())
        .collect();
    Ok(Allowed {
        ranges: of_pools(inputs),
        addresses,
    })
}

/// What the pools of a cluster give out now; none: they have not been read yet.
#[must_use]
pub fn of_cluster(ranges: &Ranges) -> Option<Allowed> {
    Some(Allowed {
        ranges: ranges.now()?,
        ..Allowed::default()
    })
}
