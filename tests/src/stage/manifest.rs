//! Objects as text, as short as the scenarios need them; all in namespace `default`.

use std::fmt::Write as _;

use super::{VIP, certificates::Leaf};

/// A TLS listener: its name, port, hostname (`None` = all) and Secret.
pub type TlsListener<'a> = (&'a str, u16, Option<&'a str>, &'a str);

/// The class and a Gateway `edge` on the VIP with HTTP on port 80 and these TLS listeners.
#[must_use]
pub fn gateway(listeners: &[TlsListener<'_>]) -> String {
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: forebay}}\n\
         spec: {{controllerName: forebay.dev/gateway-controller}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: default}}\n\
         spec:\n  gatewayClassName: forebay\n  addresses: [{{value: {VIP}}}]\n  listeners:\n  \
         - {{name: http, protocol: HTTP, port: 80}}\n"
    );
    for (name, port, hostname, secret) in listeners {
        let hostname = hostname.map_or(String::new(), |name| format!("hostname: \"{name}\", "));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  - {{name: {name}, protocol: HTTPS, port: {port}, {hostname}tls: {{certificateRefs: [{{name: {secret}}}]}}}}"
        );
    }
    text
}

/// A Secret with a certificate.
#[must_use]
pub fn certificate(name: &str, leaf: &Leaf) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: default}}\ntype: kubernetes.io/tls\nstringData:\n  \
         tls.crt: |\n{}  tls.key: |\n{}",
        indented(&leaf.chain),
        indented(&leaf.key)
    )
}

/// A Secret with an authority's certificate.
#[must_use]
pub fn authority(name: &str, root: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: default}}\nstringData:\n  ca.crt: |\n{}",
        indented(root)
    )
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "    {line}");
        all
    })
}

/// An endpoint's address and its condition.
pub type Endpoint<'a> = (&'a str, Condition);

/// What the conditions of an endpoint say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Ready.
    Ready,
    /// Not ready, still serving, about to go.
    Terminating,
}

/// A Service with port 80 and its EndpointSlice. `app_protocol`: none if empty.
#[must_use]
pub fn service(name: &str, app_protocol: &str, port: u16, endpoints: &[Endpoint<'_>]) -> String {
    let app = match app_protocol {
        "" => String::new(),
        protocol => format!(", appProtocol: {protocol}"),
    };
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{ports: [{{name: main, port: 80{app}}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: main, port: {port}}}]\nendpoints:\n"
    );
    if endpoints.is_empty() {
        text = text.trim_end().to_owned() + " []\n";
    }
    for (address, condition) in endpoints {
        let ready = *condition == Condition::Ready;
        let _ = writeln!(
            text,
            "- {{addresses: [{address}], conditions: {{ready: {ready}, serving: true, terminating: {}}}}}",
            !ready
        );
    }
    text
}

/// A route of this kind (`HTTPRoute` or `GRPCRoute`) from a host by these rules (YAML of a flow sequence).
#[must_use]
pub fn route(kind: &str, name: &str, host: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  parentRefs: [{{name: edge}}]\n  hostnames: [{host}]\n  rules: {rules}\n"
    )
}

/// A DestinationRule for a Service's whole policy (YAML of a flow mapping).
#[must_use]
pub fn policy(service: &str, policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {service}, namespace: default}}\n\
         spec: {{host: {service}, trafficPolicy: {policy}}}\n"
    )
}
