//! What can be said about a directory of manifests without a daemon.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::allocate::{Allocations, allocate};
use crate::file::merge::Files;
use crate::file::read;
use crate::l7::question::{Question, answer};
use crate::status;
use crate::translate::{Context, Translation, translate};

fn load(dir: &Path) -> Result<(Files, Translation), String> {
    let listing = read::read(dir, &BTreeSet::new());
    if let Some(why) = listing.unreadable.get("") {
        return Err(format!(
            "{} cannot be read: {why}; give a directory of manifests",
            dir.display()
        ));
    }
    let mut files = Files::default();
    files.update(listing);
    let inputs = &files.merged().inputs;
    let allocations = allocate(inputs, false, &Allocations::default());
    let translation = translate(
        inputs,
        &Context {
            on_cluster: false,
            allocations: &allocations,
            zone: None,
        },
    );
    Ok((files, translation))
}

/// Every error of the files and every object with its conditions.
///
/// # Errors
/// The directory cannot be read.
pub fn validate(dir: &Path) -> Result<Value, String> {
    let (files, translation) = load(dir)?;
    let objects = status::merge(&translation, &[]);
    let problems = &files.merged().problems;
    let well = problems.is_empty() && status::well(&objects);
    Ok(json!({
        "well": well,
        "problems": problems,
        "ignored": files.merged().ignored,
        "objects": objects,
    }))
}

/// What the manifests would do with a request.
///
/// # Errors
/// The directory cannot be read.
pub fn explain(dir: &Path, question: &Question) -> Result<Value, String> {
    let (_, translation) = load(dir)?;
    serde_json::to_value(answer(&translation.snapshot, question)).map_err(|error| error.to_string())
}
