//! Which addresses the manifests of `--config` give out: the ranges of their AddressPools and the static addresses of
//! their Gateways.
//!
//! The agent reads the directory itself and takes nothing else from it: who may write there decides over VIPs.

use std::collections::BTreeSet;
use std::path::Path;

use super::policy::Allowed;
use crate::allocate::PoolRange;
use crate::file::merge::Files;
use crate::file::read;

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
    let ranges = inputs
        .address_pools
        .values()
        .flat_map(|pool| pool.spec.ranges.iter())
        .filter_map(|text| PoolRange::parse(text).ok())
        .collect();
    let addresses = inputs
        .gateways
        .values()
        .flat_map(|gateway| gateway.spec.addresses.iter())
        .filter_map(|address| address.value.parse().ok())
        .collect();
    Ok(Allowed { ranges, addresses })
}
