//! GatewayClass and Gateway: the CRDs of Gateway API 1.7.

use std::net::IpAddr;

use serde_json::Value;

use super::core::{LABEL_SELECTOR, METADATA};
use super::format::{
    CONTROLLER, DNS_NAME, FREE, GROUP_NAME, HOST, HOSTNAME, KIND_NAME, LABEL_KEY, LABEL_VALUE,
    NAME, NAMESPACE, PORT, PROTOCOL,
};
use super::{Format, List, Schema, entries, given, list, may, need, repeated, shown, string};

pub(super) static GATEWAY_CLASS: Schema = Schema::Object(
    &[
        need("metadata", &METADATA),
        need(
            "spec",
            &Schema::Object(
                &[
                    need("controllerName", &Schema::Text(1, 253, CONTROLLER)),
                    may("description", &Schema::Text(0, 64, FREE)),
                    may("parametersRef", &PARAMETERS),
                ],
                &[],
            ),
        ),
    ],
    &[],
);

const PARAMETERS: Schema = Schema::Object(
    &[
        need("group", &GROUP_NAME),
        need("kind", &KIND_NAME),
        need("name", &NAME),
        may("namespace", &NAMESPACE),
    ],
    &[],
);

pub(super) static GATEWAY: Schema = Schema::Object(
    &[
        need("metadata", &METADATA),
        need(
            "spec",
            &Schema::Object(
                &[
                    need("gatewayClassName", &NAME),
                    need("listeners", &LISTENERS),
                    may("addresses", &ADDRESSES),
                    may("infrastructure", &INFRASTRUCTURE),
                ],
                &[],
            ),
        ),
    ],
    &[],
);

const INFRASTRUCTURE: Schema = Schema::Object(
    &[
        may(
            "labels",
            &Schema::Map(8, LABEL_KEY, &Schema::Text(0, 63, LABEL_VALUE)),
        ),
        may(
            "annotations",
            &Schema::Map(16, LABEL_KEY, &Schema::Text(0, 4096, FREE)),
        ),
        may("parametersRef", &PARAMETERS),
    ],
    &[],
);

const ADDRESSES: Schema = Schema::List(List {
    least: 0,
    most: 16,
    of: &Schema::Object(
        &[
            may("type", &Schema::Text(1, 253, ADDRESS_TYPE)),
            may("value", &Schema::Text(0, 253, FREE)),
        ],
        &[address_fits_its_type],
    ),
    by: &[],
    rules: &[addresses_differ],
});
const ADDRESS_TYPE: Format = Format {
    expected: "IPAddress, Hostname, NamedAddress or a type such as example.com/type",
    fits: |text| {
        matches!(text, "IPAddress" | "Hostname" | "NamedAddress") || (CONTROLLER.fits)(text)
    },
};

fn address_type(address: &Value) -> &str {
    string(address, "type").unwrap_or("IPAddress")
}

/// An IPAddress without a value, or with an empty one, asks for any.
fn address_fits_its_type(address: &Value) -> Option<(String, String)> {
    let value = string(address, "value").filter(|value| !value.is_empty())?;
    let (expected, fits) = match address_type(address) {
        "IPAddress" => ("an IP address", value.parse::<IpAddr>().is_ok()),
        "Hostname" => (HOSTNAME.expected, (HOSTNAME.fits)(value)),
        _ => return None,
    };
    let message = format!("expected {expected}, got {value:?}");
    (!fits).then(|| (".value".to_owned(), message))
}

fn addresses_differ(addresses: &Value) -> Option<(String, String)> {
    let key = |address: &Value| {
        let kind = address_type(address).to_owned();
        let value = string(address, "value").filter(|value| !value.is_empty())?;
        matches!(kind.as_str(), "IPAddress" | "Hostname").then(|| (kind, value.to_owned()))
    };
    let (at, first, (_, value)) = repeated(addresses.as_array()?, key)?;
    let message = format!("{value:?} stands in entry {first} already and must be unique");
    Some((format!("[{at}].value"), message))
}

const LISTENERS: Schema = Schema::List(List {
    least: 1,
    most: 64,
    of: &LISTENER,
    by: &["name"],
    rules: &[listeners_differ],
});

const LISTENER: Schema = Schema::Object(
    &[
        need("name", &DNS_NAME),
        may("hostname", &HOST),
        need("port", &PORT),
        need("protocol", &Schema::Text(1, 255, PROTOCOL)),
        may("tls", &TLS),
        may("allowedRoutes", &ALLOWED_ROUTES),
    ],
    &[tls_fits_the_protocol, hostname_fits_the_protocol],
);

const ALLOWED_ROUTES: Schema = Schema::Object(
    &[
        may(
            "namespaces",
            &Schema::Object(
                &[
                    may("from", &Schema::Choice(&["All", "Selector", "Same"])),
                    may("selector", &LABEL_SELECTOR),
                ],
                &[],
            ),
        ),
        may(
            "kinds",
            &list(
                0,
                8,
                &Schema::Object(&[may("group", &GROUP_NAME), need("kind", &KIND_NAME)], &[]),
            ),
        ),
    ],
    &[],
);

const TLS: Schema = Schema::Object(
    &[
        may("mode", &Schema::Choice(&["Terminate", "Passthrough"])),
        may(
            "certificateRefs",
            &list(
                0,
                64,
                &Schema::Object(
                    &[
                        may("group", &GROUP_NAME),
                        may("kind", &KIND_NAME),
                        need("name", &NAME),
                        may("namespace", &NAMESPACE),
                    ],
                    &[],
                ),
            ),
        ),
        may(
            "options",
            &Schema::Map(16, LABEL_KEY, &Schema::Text(0, 4096, FREE)),
        ),
    ],
    &[tls_has_a_certificate],
);

fn tls_has_a_certificate(tls: &Value) -> Option<(String, String)> {
    let terminates = string(tls, "mode").unwrap_or("Terminate") == "Terminate";
    let options = given(tls, "options").and_then(Value::as_object);
    let none =
        entries(tls, "certificateRefs").is_empty() && options.is_none_or(serde_json::Map::is_empty);
    let message = "is missing: mode Terminate needs certificates";
    (terminates && none).then(|| (".certificateRefs".to_owned(), message.to_owned()))
}

fn tls_fits_the_protocol(listener: &Value) -> Option<(String, String)> {
    let tls = given(listener, "tls");
    let mode = tls.map(|tls| string(tls, "mode").unwrap_or("Terminate"));
    let message = match (string(listener, "protocol")?, mode) {
        ("HTTP" | "TCP" | "UDP", Some(_)) => {
            "must not be given for the protocols HTTP, TCP and UDP"
        }
        ("HTTPS", Some(mode)) if mode != "Terminate" => "mode must be Terminate for protocol HTTPS",
        ("TLS", None) => "is missing: protocol TLS needs a mode",
        _ => return None,
    };
    Some((".tls".to_owned(), message.to_owned()))
}

fn hostname_fits_the_protocol(listener: &Value) -> Option<(String, String)> {
    let bare = matches!(string(listener, "protocol")?, "TCP" | "UDP");
    let named = string(listener, "hostname").is_some_and(|hostname| !hostname.is_empty());
    let message = "must not be given for the protocols TCP and UDP";
    (bare && named).then(|| (".hostname".to_owned(), message.to_owned()))
}

fn listeners_differ(listeners: &Value) -> Option<(String, String)> {
    let key = |listener: &Value| {
        let port = given(listener, "port")?.as_i64()?;
        let protocol = string(listener, "protocol")?.to_owned();
        let hostname = given(listener, "hostname").map(shown);
        Some((port, protocol, hostname))
    };
    let (at, first, (port, protocol, hostname)) = repeated(listeners.as_array()?, key)?;
    let hostname = hostname.map_or("no hostname".to_owned(), |name| format!("hostname {name}"));
    let message = format!(
        "port {port}, protocol {protocol} and {hostname} stand in entry {first} already: together they must be unique"
    );
    Some((format!("[{at}]"), message))
}
