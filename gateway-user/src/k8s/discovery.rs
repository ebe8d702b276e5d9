//! Which of the kinds that Forebay reads are served here, and under which version.
//!
//! Definitions come and go while we run: a kind that a bundle lacks is absent, nothing more.

use std::collections::BTreeMap;

use kube::Client;
use kube::core::ApiResource;

use crate::translate::Kind;

/// How the kinds are served: those that are not are missing.
pub type Served = BTreeMap<Kind, ApiResource>;

/// Asks the API server for those of `kinds`.
///
/// # Errors
/// It does not answer; a group that is there but cannot be listed counts as an error too, so that nothing is taken for
/// absent that is not.
pub async fn served(client: &Client, kinds: &[Kind]) -> kube::Result<Served> {
    let mut served = Served::new();
    let mut groups = BTreeMap::new();
    for group in client.list_api_groups().await?.groups {
        let versions: Vec<String> = group.versions.into_iter().map(|v| v.version).collect();
        groups.insert(group.name, versions);
    }
    let mut lists: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for &kind in kinds {
        let group = kind.group();
        if group.is_empty() || group == "discovery.k8s.io" {
            served.insert(kind, built_in(kind));
            continue;
        }
        let Some(there) = groups.get(group) else {
            continue;
        };
        for version in kind
            .versions()
            .iter()
            .filter(|v| there.iter().any(|t| t == *v))
        {
            let api_version = format!("{group}/{version}");
            if !lists.contains_key(&api_version) {
                let list = client.list_api_group_resources(&api_version).await?;
                let resources = list.resources.into_iter().map(|r| (r.kind, r.name));
                lists.insert(api_version.clone(), resources.collect());
            }
            let mut resources = lists[&api_version].iter();
            // Subresources have the kind of what they belong to.
            let found =
                resources.find(|(name, plural)| name == kind.as_str() && !plural.contains('/'));
            if let Some((_, plural)) = found {
                served.insert(kind, resource(kind, version, plural));
                break;
            }
        }
    }
    Ok(served)
}

/// Kubernetes' own kinds are everywhere.
fn built_in(kind: Kind) -> ApiResource {
    let plural = format!("{}s", kind.as_str().to_lowercase());
    resource(kind, "v1", &plural)
}

fn resource(kind: Kind, version: &str, plural: &str) -> ApiResource {
    let group = kind.group();
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: if group.is_empty() {
            version.to_owned()
        } else {
            format!("{group}/{version}")
        },
        kind: kind.as_str().to_owned(),
        plural: plural.to_owned(),
    }
}
