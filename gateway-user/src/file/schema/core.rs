//! Kubernetes' own kinds, as `pkg/apis/core/validation` and `pkg/apis/discovery/validation` of Kubernetes check them, as
//! far as Forebay reads their fields; and the metadata of all kinds.
//!
//! One rule is left out on purpose: an EndpointSlice may name loopback and link-local addresses, since backends on the
//! machine itself are what file mode is tried with.

use std::net::IpAddr;

use serde_json::Value;

use super::format::{
    ANNOTATION_KEY, BASE64, FREE, LABEL, LABEL_KEY, LABEL_VALUE, NAMESPACE, PORT, SECRET_KEY,
    SERVICE_NAME,
};
use super::{Field, Schema, entries, given, list, may, need, repeated, set, shown, string};

const LABELS: Schema = Schema::Map(usize::MAX, LABEL_KEY, &Schema::Text(0, 63, LABEL_VALUE));
const ANNOTATIONS: Schema = Schema::Map(
    usize::MAX,
    ANNOTATION_KEY,
    &Schema::Text(0, 256 << 10, FREE),
);
/// Names are checked where objects are read: without a valid one there is no object that could stay.
const METADATA_FIELDS: [Field; 3] = [
    may("namespace", &NAMESPACE),
    may("labels", &LABELS),
    may("annotations", &ANNOTATIONS),
];
pub(super) const METADATA: Schema = Schema::Object(&METADATA_FIELDS, &[]);

/// `metadata.labels` of a label selector.
pub(super) const LABEL_SELECTOR: Schema = Schema::Object(
    &[
        may("matchLabels", &LABELS),
        may("matchExpressions", &list(0, usize::MAX, &LABEL_REQUIREMENT)),
    ],
    &[],
);
const LABEL_REQUIREMENT: Schema = Schema::Object(
    &[
        need("key", &Schema::Text(1, 317, LABEL_KEY)),
        need(
            "operator",
            &Schema::Choice(&["In", "NotIn", "Exists", "DoesNotExist"]),
        ),
        may(
            "values",
            &list(0, usize::MAX, &Schema::Text(0, 63, LABEL_VALUE)),
        ),
    ],
    &[values_fit_the_operator],
);

fn values_fit_the_operator(requirement: &Value) -> Option<(String, String)> {
    let none = entries(requirement, "values").is_empty();
    let message = match string(requirement, "operator")? {
        "In" | "NotIn" if none => "the operators In and NotIn need values",
        "Exists" | "DoesNotExist" if !none => {
            "the operators Exists and DoesNotExist take no values"
        }
        _ => return None,
    };
    Some((".values".to_owned(), message.to_owned()))
}

const PROTOCOL: Schema = Schema::Choice(&["TCP", "UDP", "SCTP"]);

pub(super) static SERVICE: Schema = Schema::Object(
    &[
        need(
            "metadata",
            &Schema::Object(
                &[
                    need("name", &Schema::Text(1, 63, SERVICE_NAME)),
                    may("namespace", &NAMESPACE),
                    may("labels", &LABELS),
                    may("annotations", &ANNOTATIONS),
                ],
                &[],
            ),
        ),
        need(
            "spec",
            &Schema::Object(
                &[
                    may(
                        "type",
                        &Schema::Choice(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
                    ),
                    may("ports", &set(0, usize::MAX, &SERVICE_PORT, &["name"])),
                ],
                &[ports_are_there, ports_are_named, ports_differ],
            ),
        ),
    ],
    &[],
);
const SERVICE_PORT: Schema = Schema::Object(
    &[
        may("name", &Schema::Text(0, 63, PORT_NAME)),
        need("port", &PORT),
        may("protocol", &PROTOCOL),
        may("appProtocol", &Schema::Text(1, 317, LABEL_KEY)),
    ],
    &[],
);
const PORT_NAME: super::Format = super::Format {
    expected: LABEL.expected,
    fits: |text| text.is_empty() || super::format::is_label(text),
};

fn ports_are_there(spec: &Value) -> Option<(String, String)> {
    let without =
        string(spec, "type") == Some("ExternalName") || string(spec, "clusterIP") == Some("None");
    (!without && entries(spec, "ports").is_empty()).then(|| (".ports".into(), "is missing".into()))
}

fn ports_are_named(spec: &Value) -> Option<(String, String)> {
    let ports = entries(spec, "ports");
    let nameless = |port: &Value| string(port, "name").unwrap_or("").is_empty();
    let at = ports
        .iter()
        .position(nameless)
        .filter(|_| ports.len() > 1)?;
    let message = "is missing: of several ports each needs a name";
    Some((format!(".ports[{at}].name"), message.to_owned()))
}

/// The same number twice is fine for different protocols.
fn ports_differ(spec: &Value) -> Option<(String, String)> {
    let ports = entries(spec, "ports");
    let key = |port: &Value| {
        let number = given(port, "port")?.as_i64()?;
        Some((number, string(port, "protocol").unwrap_or("TCP").to_owned()))
    };
    let (at, first, (number, protocol)) = repeated(ports, key)?;
    let message = format!(
        "port {number} and protocol {protocol} stand in entry {first} already and must be unique"
    );
    Some((format!(".ports[{at}]"), message))
}

pub(super) static ENDPOINT_SLICE: Schema = Schema::Object(
    &[
        need("metadata", &METADATA),
        need("addressType", &Schema::Choice(&["IPv4", "IPv6", "FQDN"])),
        may("endpoints", &list(0, 1000, &ENDPOINT)),
        may("ports", &list(0, 20_000, &ENDPOINT_PORT)),
    ],
    &[addresses_are_of_the_type, slice_ports_differ],
);
const ENDPOINT: Schema = Schema::Object(
    &[
        need(
            "addresses",
            &set(1, 100, &Schema::Text(1, 253, FREE), &[""]),
        ),
        may(
            "conditions",
            &Schema::Object(
                &[
                    may("ready", &Schema::Bool),
                    may("serving", &Schema::Bool),
                    may("terminating", &Schema::Bool),
                ],
                &[],
            ),
        ),
        may("nodeName", &super::format::DNS_NAME),
        may(
            "hints",
            &Schema::Object(&[may("forZones", &set(0, 8, &FOR_ZONE, &["name"]))], &[]),
        ),
    ],
    &[],
);
const FOR_ZONE: Schema = Schema::Object(&[need("name", &Schema::Text(1, 63, LABEL_VALUE))], &[]);
const ENDPOINT_PORT: Schema = Schema::Object(
    &[
        may("name", &Schema::Text(0, 63, PORT_NAME)),
        may("port", &PORT),
        may("protocol", &PROTOCOL),
    ],
    &[],
);

fn addresses_are_of_the_type(slice: &Value) -> Option<(String, String)> {
    let (kind, fits): (&str, fn(IpAddr) -> bool) = match string(slice, "addressType")? {
        "IPv4" => ("an IPv4 address", |address| address.is_ipv4()),
        "IPv6" => ("an IPv6 address", |address| address.is_ipv6()),
        _ => return None,
    };
    entries(slice, "endpoints")
        .iter()
        .enumerate()
        .find_map(|(at, endpoint)| {
            let addresses = entries(endpoint, "addresses");
            let wrong = addresses.iter().position(|address| {
                let address = address.as_str().and_then(|text| text.parse().ok());
                !address.is_some_and(fits)
            })?;
            let message = format!("expected {kind}, got {}", shown(&addresses[wrong]));
            Some((format!(".endpoints[{at}].addresses[{wrong}]"), message))
        })
        .map(|(field, message)| (field[1..].to_owned(), message))
}

fn slice_ports_differ(slice: &Value) -> Option<(String, String)> {
    let name = |port: &Value| Some(string(port, "name").unwrap_or("").to_owned());
    let (at, first, name) = repeated(entries(slice, "ports"), name)?;
    let message = format!("name {name:?} stands in entry {first} already and must be unique");
    Some((format!("ports[{at}]"), message))
}

pub(super) static SECRET: Schema = Schema::Object(
    &[
        need("metadata", &METADATA),
        may(
            "data",
            &Schema::Map(usize::MAX, SECRET_KEY, &Schema::Text(0, 2 << 20, BASE64)),
        ),
        may(
            "stringData",
            &Schema::Map(usize::MAX, SECRET_KEY, &Schema::Text(0, 2 << 20, FREE)),
        ),
        may("type", &Schema::Text(0, 253, FREE)),
    ],
    &[certificate_is_whole],
);

fn certificate_is_whole(secret: &Value) -> Option<(String, String)> {
    if string(secret, "type") != Some("kubernetes.io/tls") {
        return None;
    }
    let has = |key: &str| {
        ["data", "stringData"]
            .iter()
            .any(|part| given(secret, part).is_some_and(|part| given(part, key).is_some()))
    };
    ["tls.crt", "tls.key"]
        .into_iter()
        .find(|key| !has(key))
        .map(|key| (format!("data[{key}]"), "is missing".to_owned()))
}

pub(super) static NAMESPACE_KIND: Schema = Schema::Object(
    &[need(
        "metadata",
        &Schema::Object(
            &[
                need("name", &NAMESPACE),
                may("labels", &LABELS),
                may("annotations", &ANNOTATIONS),
            ],
            &[],
        ),
    )],
    &[],
);
pub(super) static NODE: Schema = Schema::Object(&[need("metadata", &METADATA)], &[]);
