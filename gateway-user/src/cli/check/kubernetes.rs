//! What the API server offers: the definitions, and the rights of whoever asks.

use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client};

use super::Finding;
use crate::causes::chain;
use crate::k8s::connect;
use crate::k8s::discovery::{self, Served};
use crate::k8s::rights::{Place, RIGHTS, Right, rule};
use crate::translate::Kind;

/// Longest time for all of it.
const TIMEOUT: Duration = Duration::from_secs(20);
/// What is looked at.
const CHECK: &str = "API server";
const REMEDY: &str = "check KUBECONFIG, or the pod's ServiceAccount and the way to the API server";

/// Whether there is an API server to ask: a pod's environment, or a kubeconfig that is named.
fn is_there() -> bool {
    ["KUBERNETES_SERVICE_HOST", "KUBECONFIG"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// All that is found; nothing if there is no API server to ask. `namespaces` empty: all are read.
pub(super) fn findings(namespaces: &[String]) -> Vec<Finding> {
    if !is_there() {
        return Vec::new();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return vec![Finding::bad(CHECK, error.to_string(), REMEDY)],
    };
    runtime.block_on(async {
        let asked = tokio::time::timeout(TIMEOUT, ask(namespaces)).await;
        asked
            .unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
            .unwrap_or_else(|why| vec![Finding::bad(CHECK, why, REMEDY)])
    })
}

async fn ask(namespaces: &[String]) -> Result<Vec<Finding>, String> {
    let client = connect().await.map_err(|error| error.to_string())?;
    let said = |error: kube::Error| chain(&error);
    let version = client.apiserver_version().await.map_err(said)?;
    let mut findings = vec![Finding::good(CHECK, version.git_version)];
    let served = discovery::served(&client, Kind::ALL).await.map_err(said)?;
    findings.extend(definitions(&served, &bundle(&client).await));
    let mut missing = Vec::new();
    let mut held = 0;
    for right in RIGHTS {
        for place in right.places(namespaces) {
            let without = lacking(&client, right, &place).await.map_err(said)?;
            match without.is_empty() {
                true => held += 1,
                false => missing.push(finding(right, &place, &without)),
            }
        }
    }
    if missing.is_empty() {
        missing.push(Finding::good(
            "rights",
            format!("all {held} rules are held"),
        ));
    }
    findings.extend(missing);
    Ok(findings)
}

/// Version and channel of the installed bundle of Gateway API, in words.
async fn bundle(client: &Client) -> String {
    let resource = ApiResource {
        group: "apiextensions.k8s.io".into(),
        version: "v1".into(),
        api_version: "apiextensions.k8s.io/v1".into(),
        kind: "CustomResourceDefinition".into(),
        plural: "customresourcedefinitions".into(),
    };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let name = "gateways.gateway.networking.k8s.io";
    let annotations = match api.get(name).await {
        Ok(definition) => definition.metadata.annotations.unwrap_or_default(),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            return "bundle not known (its definitions may not be read, nor need they)".to_owned();
        }
        Err(_) => return "bundle not known".to_owned(),
    };
    let of = |name: &str| {
        let value = annotations.get(&format!("gateway.networking.k8s.io/{name}"));
        value.map_or("not known", String::as_str)
    };
    format!("bundle {}, channel {}", of("bundle-version"), of("channel"))
}

/// Which kinds are served, and under which versions.
fn definitions(served: &Served, bundle: &str) -> Vec<Finding> {
    let group = |check: &str, kinds: &[Kind], needed: &[Kind], remedy: &str, prefix: &str| {
        let there = kinds.iter().filter_map(|kind| {
            let resource = served.get(kind)?;
            Some(format!("{} {}", kind.as_str(), resource.version))
        });
        let absent = |kinds: &[Kind]| -> Vec<&str> {
            let absent = kinds.iter().filter(|kind| !served.contains_key(kind));
            absent.map(|kind| kind.as_str()).collect()
        };
        let mut parts: Vec<String> = Vec::new();
        if !prefix.is_empty() {
            parts.push(prefix.to_owned());
        }
        parts.extend(there);
        let without = absent(kinds);
        if !without.is_empty() {
            parts.push(format!("not there: {}", without.join(", ")));
        }
        let found = parts.join("; ");
        match absent(needed).is_empty() {
            true => Finding::good(check, found),
            false => Finding::bad(check, found, remedy),
        }
    };
    let routes = [
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::UdpRoute,
        Kind::ReferenceGrant,
    ];
    let gateway = [&[Kind::GatewayClass, Kind::Gateway][..], &routes].concat();
    let own = [Kind::AddressPool, Kind::TrafficPolicy];
    let rules = [Kind::DestinationRule];
    vec![
        group(
            "Gateway API",
            &gateway,
            &[Kind::GatewayClass, Kind::Gateway, Kind::HttpRoute],
            "install the definitions of Gateway API, see docs/install.md",
            bundle,
        ),
        group(
            "definitions of Forebay",
            &own,
            &own,
            "kubectl apply -f deploy/crds",
            "",
        ),
        // Without them there is nothing to read; whoever wants them has Istio's, or ours.
        group("DestinationRule", &rules, &[], "", ""),
    ]
}

/// Resources and verbs of a rule that whoever asks may not.
async fn lacking(
    client: &Client,
    right: &Right,
    place: &Place,
) -> kube::Result<Vec<(&'static str, &'static str)>> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut without = Vec::new();
    for resource in right.resources {
        let (plural, part) = resource.split_once('/').unwrap_or((resource, ""));
        for verb in right.verbs {
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(ResourceAttributes {
                        group: Some(right.group.to_owned()),
                        resource: Some(plural.to_owned()),
                        subresource: (!part.is_empty()).then(|| part.to_owned()),
                        verb: Some((*verb).to_owned()),
                        namespace: place.namespace.clone(),
                        name: place.name.clone(),
                        ..ResourceAttributes::default()
                    }),
                    ..SelfSubjectAccessReviewSpec::default()
                },
                ..SelfSubjectAccessReview::default()
            };
            let params = kube::api::PostParams::default();
            let status = reviews.create(&params, &review).await?.status;
            if !status.is_some_and(|status| status.allowed) {
                without.push((*resource, *verb));
            }
        }
    }
    Ok(without)
}

fn finding(right: &Right, place: &Place, without: &[(&str, &str)]) -> Finding {
    let lacks = |word: &&str| {
        without
            .iter()
            .any(|(resource, verb)| word == resource || word == verb)
    };
    let [resources, verbs] = [right.resources, right.verbs]
        .map(|words| words.iter().copied().filter(lacks).collect::<Vec<_>>());
    let place_of = place.namespace.as_ref();
    Finding::bad(
        "rights",
        format!(
            "forbidden: {} {}{}",
            verbs.join(", "),
            resources.join(", "),
            place_of.map_or(String::new(), |namespace| format!(
                " in namespace {namespace}"
            )),
        ),
        format!(
            "add to {}: - {}",
            place.role(),
            rule(right.group, &resources, place.name.as_deref(), &verbs)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(kinds: &[Kind]) -> Served {
        let resource = |kind: &Kind| ApiResource {
            group: kind.group().into(),
            version: kind.versions()[0].into(),
            api_version: kind.api_version().into(),
            kind: kind.as_str().into(),
            plural: String::new(),
        };
        kinds.iter().map(|kind| (*kind, resource(kind))).collect()
    }

    #[test]
    fn what_is_needed_must_be_there_and_all_is_named() {
        let some = [
            Kind::GatewayClass,
            Kind::Gateway,
            Kind::HttpRoute,
            Kind::AddressPool,
        ];
        let found = definitions(&served(&some), "bundle v1.7.0, channel standard");
        let ok: Vec<bool> = found.iter().map(|finding| finding.ok).collect();
        assert_eq!(ok, [true, false, true]);
        assert_eq!(
            found[0].found,
            "bundle v1.7.0, channel standard; GatewayClass v1; Gateway v1; HTTPRoute v1; not there: GRPCRoute, UDPRoute, ReferenceGrant"
        );
        assert_eq!(
            found[1].found,
            "AddressPool v1alpha1; not there: TrafficPolicy"
        );
        assert_eq!(found[2].found, "not there: DestinationRule");
        assert!(!definitions(&served(&[]), "")[0].ok);
    }

    #[test]
    fn the_missing_rule_is_yaml_that_can_be_pasted() {
        let keys = RIGHTS.last().unwrap();
        let place = &keys.places(&[])[0];
        let finding = finding(keys, place, &[("secrets", "get"), ("secrets", "update")]);
        assert_eq!(
            finding.found,
            "forbidden: get, update secrets in namespace forebay-system"
        );
        assert_eq!(
            finding.remedy.unwrap(),
            "add to a Role in namespace forebay-system of ServiceAccount forebay: - {apiGroups: [\"\"], resources: [\"secrets\"], resourceNames: [\"forebay-keys\"], verbs: [\"get\", \"update\"]}"
        );
    }
}
