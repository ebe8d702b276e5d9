//! Manifests: any text goes through everything that is computed from it.

use std::collections::BTreeMap;

use gateway_user::allocate::{Allocations, allocate};
use gateway_user::file::document;
use gateway_user::file::merge::Files;
use gateway_user::file::read::{Content, Listing};
use gateway_user::status::merge;
use gateway_user::translate::{Context, translate};

/// YAML from its text to snapshot and status; the same text gives the same snapshot.
pub fn translate_yaml(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if document::parse("a.yaml", text).is_err() {
        // Most inputs end here: what follows is known not to look at the text.
        return;
    }
    let mut files = Files::default();
    files.update(Listing {
        files: BTreeMap::from([("a.yaml".to_owned(), Content::Text(text.to_owned()))]),
        ..Listing::default()
    });
    let merged = files.merged();
    for problem in merged.problems.iter().chain(&merged.ignored) {
        assert!(!problem.to_string().contains('\n'), "{problem}");
    }
    for on_cluster in [true, false] {
        let allocations = allocate(&merged.inputs, on_cluster, &Allocations::default());
        let context = Context {
            on_cluster,
            allocations: &allocations,
            zone: None,
        };
        let once = translate(&merged.inputs, &context);
        let again = translate(&merged.inputs, &context);
        assert_eq!(
            format!("{:?}", once.snapshot),
            format!("{:?}", again.snapshot)
        );
        std::hint::black_box(merge(&once, &[]));
    }
}
