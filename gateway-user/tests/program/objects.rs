//! Manifests with mistakes: what `forebay validate` says about each, whole, and its exit code.

use serde_json::Value;

use crate::support::*;

/// One file; the problems as `file: object: field name: sentence`, and its exit code.
const FILES: [(&str, &str, &str); 33] = [
    (
        "a.yaml",
        "a: [1",
        "a.yaml: the file cannot be parsed: unclosed bracket '[' at line 1, column 4",
    ),
    (
        "a.yaml",
        "a:\n\t- b",
        "a.yaml: the file cannot be parsed: tabs disallowed within this context (block indentation) at line 2, column 2",
    ),
    (
        "a.yaml",
        "a: 1\na: 2",
        "a.yaml: the file cannot be parsed: the key a appears twice at line 2, column 1",
    ),
    (
        "a.json",
        "{\"a\": 1,}",
        "a.json: the file cannot be parsed: trailing comma at line 1 column 9",
    ),
    (
        "a.yaml",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
        "a.yaml: the file cannot be parsed: it is nested too deep or has too many parts at line 1, column 65",
    ),
    (
        "a.yaml",
        "hello",
        "a.yaml: object without a name: field .: expected an object, got a string",
    ),
    (
        "a.yaml",
        "- 1",
        "a.yaml: object without a name: field .: expected an object, got a list",
    ),
    (
        "a.yaml",
        "apiVersion: v1\nmetadata: {name: x}",
        "a.yaml: object x: field kind: is missing",
    ),
    (
        "a.yaml",
        "apiVersion: v1\nkind: [Service]\nmetadata: {name: x}",
        "a.yaml: object x: field kind: expected a string, got a list",
    ),
    (
        "a.yaml",
        "kind: Service\nmetadata: {name: x}",
        "a.yaml: Service x: field apiVersion: is missing",
    ),
    (
        "a.yaml",
        "apiVersion: v1\nkind: Service",
        "a.yaml: Service without a name: field metadata.name: is missing",
    ),
    (
        "a.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: Big_Name}",
        "a.yaml: Service Big_Name: field metadata.name: \"Big_Name\" is not a lower-case DNS name",
    ),
    (
        "a.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: a.b}",
        "a.yaml: Service a.b/x: field metadata.namespace: \"a.b\" is not a lower-case DNS label",
    ),
    (
        "a.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gatway\nmetadata: {name: x}",
        "a.yaml: Gatway x: the kind Gatway of gateway.networking.k8s.io is not supported; correct the kind or remove the object",
    ),
    (
        "a.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}",
        "a.yaml: VirtualService x: the kind VirtualService of networking.istio.io is not supported; correct the kind or remove the object",
    ),
    (
        "a.yaml",
        "apiVersion: gateway.networking.k8s.io/v9\nkind: Gateway\nmetadata: {name: x}",
        "a.yaml: Gateway x: field apiVersion: version v9 is not read, use v1 or v1beta1",
    ),
    (
        "a.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: eighty}]}",
        "a.yaml: Service x: field spec.ports[0].port: expected a whole number from 0 to 65535, got the string \"eighty\"",
    ),
    (
        "a.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 70000}]}",
        "a.yaml: Service x: field spec.ports[0].port: expected a whole number from 0 to 65535, got 70000",
    ),
    (
        "a.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: {port: 80}}",
        "a.yaml: Service x: field spec.ports: expected a list, got an object",
    ),
    (
        "a.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: none",
        "a.yaml: Service x: field spec: expected an object, got the string \"none\"",
    ),
    (
        "a.yaml",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x}\nendpoints: [{conditions: {ready: maybe}}]",
        "a.yaml: EndpointSlice x: field endpoints[0].conditions.ready: expected true or false, got the string \"maybe\"",
    ),
    (
        "a.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: x}\nspec: {rules: [{backendRefs: [{name: a, weight: -1}]}]}",
        "a.yaml: HTTPRoute x: field spec.rules[0].backendRefs[0].weight: expected a whole number of 0 or more, got -1",
    ),
    (
        "a.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: x}\nspec: {hostnames: [1.5]}",
        "a.yaml: HTTPRoute x: field spec.hostnames[0]: expected a string, got 1.5",
    ),
    (
        "a.yaml",
        "apiVersion: networking.istio.io/v1beta1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {trafficPolicy: {connectionPool: {tcp: {maxConnections: lots}}}}",
        "a.yaml: DestinationRule x: field spec.trafficPolicy.connectionPool.tcp.maxConnections: expected a whole number of 0 or more, got the string \"lots\"",
    ),
    // What an API server would refuse.
    (
        "a.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: x}\nspec: {gatewayClassName: c, listeners: [{name: a, port: 0, protocol: HTTP}]}",
        "a.yaml: Gateway x: field spec.listeners[0].port: expected a whole number from 1 to 65535, got 0; what of the object can be carried out is",
    ),
    (
        "a.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: x}\nspec: {rules: [{matches: [{path: {type: Foo}}]}]}",
        "a.yaml: HTTPRoute x: field spec.rules[0].matches[0].path.type: expected Exact, PathPrefix or RegularExpression, got \"Foo\"; what of the object can be carried out is",
    ),
    (
        "a.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: x}\nspec: {rules: [{backendRefs: [{name: a, port: 1, weight: 1000001}]}]}",
        "a.yaml: HTTPRoute x: field spec.rules[0].backendRefs[0].weight: expected a whole number from 0 to 1000000, got 1000001; what of the object can be carried out is",
    ),
    (
        "a.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: x}\nspec: {hostnames: [a_b.example]}",
        "a.yaml: HTTPRoute x: field spec.hostnames[0]: expected a lower-case DNS name, or *. and one, got \"a_b.example\"; what of the object can be carried out is",
    ),
    (
        "a.yaml",
        "apiVersion: networking.istio.io/v1beta1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: a, trafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}}",
        "a.yaml: DestinationRule x: field spec.trafficPolicy.outlierDetection.maxEjectionPercent: expected a whole number from 0 to 100, got 101; what of the object can be carried out is",
    ),
    (
        "a.yaml",
        "apiVersion: forebay.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: x}\nspec: {ranges: [192.0.2.0/33]}",
        "a.yaml: AddressPool x: field spec.ranges[0]: expected a CIDR or FIRST-LAST, such as 192.0.2.0/24 or 192.0.2.10-192.0.2.20, got \"192.0.2.0/33\"; what of the object can be carried out is",
    ),
    (
        "a.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 80, protocol: Foo}]}",
        "a.yaml: Service x: field spec.ports[0].protocol: expected TCP, UDP or SCTP, got \"Foo\"; what of the object can be carried out is",
    ),
    (
        "a.yaml",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x}\naddressType: IPv4\nendpoints: [{addresses: [ten]}]",
        "a.yaml: EndpointSlice x: field endpoints[0].addresses[0]: expected an IPv4 address, got \"ten\"; what of the object can be carried out is",
    ),
    (
        "a.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}",
        "a.yaml: Namespace x: the same object stands earlier in this file, which counts; remove one of them",
    ),
];

async fn validated(files: &[(&str, &str)]) -> (Option<i32>, Value) {
    let directory = manifests(files);
    let path = directory.path().display().to_string();
    let said = said(program().args(["validate", &path, "--output", "json"])).await;
    assert_eq!(said.stderr, "");
    (said.code, serde_json::from_str(&said.stdout).unwrap())
}

fn sentences(report: &Value) -> Vec<String> {
    let problems = report["problems"].as_array().unwrap().iter();
    problems
        .map(|problem| {
            serde_json::from_value::<gateway_user::file::merge::Problem>(problem.clone())
                .unwrap()
                .to_string()
        })
        .collect()
}

#[tokio::test]
async fn files_and_fields() {
    for (name, text, sentence) in FILES {
        let (code, report) = validated(&[(name, text)]).await;
        assert_eq!(sentences(&report), [sentence], "{text}");
        assert_eq!(code, Some(1), "{text}");
    }
}

#[tokio::test]
async fn what_is_no_mistake() {
    for text in [
        "",
        "# nothing",
        "---\n---",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}",
    ] {
        let (code, report) = validated(&[("a.yaml", text)]).await;
        assert_eq!(sentences(&report), [""; 0], "{text}");
        assert_eq!(code, Some(0), "{text}");
    }
    let nothing = tempfile::tempdir().unwrap();
    let said = said(program().arg("validate").arg(nothing.path())).await;
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (
            Some(0),
            "there are no objects; manifests are files that end in .yaml, .yml or .json\n"
        )
    );
}

#[tokio::test]
async fn a_directory_that_is_none() {
    let directory = manifests(&[("file", "")]);
    let here = directory.path().display();
    for (path, why) in [
        (format!("{here}/none"), "it does not exist"),
        (format!("{here}/file"), "it is not a directory"),
    ] {
        for words in [
            vec!["validate", &path],
            vec!["explain", "http://a/", "--config", &path],
        ] {
            let said = said(program().args(&words)).await;
            assert_eq!(
                said.stderr,
                format!("forebay: {path} cannot be read: {why}; give a directory of manifests\n")
            );
            assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""));
        }
    }
}

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: forebay}
spec: {controllerName: forebay.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g}
spec:
  gatewayClassName: forebay
  addresses: [{value: 192.0.2.1}]
  listeners: [{name: http, protocol: HTTP, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{name: http, port: 80}]}
";

fn route(spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec: {spec}\n"
    )
}

/// `object, condition, reason, message` of each condition that is not as asked for, as the table shows them.
async fn remarks(files: &[(&str, &str)]) -> (Option<i32>, Vec<String>) {
    let directory = manifests(files);
    let said = said(program().arg("validate").arg(directory.path())).await;
    assert_eq!(said.stderr, "");
    let remarks = said
        .stdout
        .split_once("Not as asked for\n")
        .map_or("", |(_, rest)| rest);
    let lines = remarks.lines().skip(1).take_while(|line| !line.is_empty());
    let cells = lines.map(|line| {
        let cells = line
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty());
        cells.collect::<Vec<_>>().join(" | ")
    });
    (said.code, cells.collect())
}

#[tokio::test]
async fn references_and_values() {
    let good = "{parentRefs: [{name: g}], rules: [{backendRefs: [{name: web, port: 80}]}]}";
    let rows: &[(String, &[&str])] = &[
        (route(good), &[]),
        (
            route("{parentRefs: [{name: nope}], rules: [{backendRefs: [{name: web, port: 80}]}]}"),
            &[
                "HTTPRoute default/r at nope | Accepted | NoMatchingParent | Gateway default/nope does not exist",
            ],
        ),
        (
            route(
                "{parentRefs: [{name: g, sectionName: https}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
            ),
            &[
                "HTTPRoute default/r at g | Accepted | NoMatchingParent | Gateway default/g has no listener with the sectionName and port of the parentRef",
            ],
        ),
        (
            route("{parentRefs: [{name: g}], rules: [{backendRefs: [{name: missing, port: 80}]}]}"),
            &[
                "HTTPRoute default/r at g | ResolvedRefs | BackendNotFound | Service default/missing does not exist",
            ],
        ),
        (
            route("{parentRefs: [{name: g}], rules: [{backendRefs: [{name: web, port: 81}]}]}"),
            &[
                "HTTPRoute default/r at g | ResolvedRefs | BackendNotFound | Service default/web has no port 81",
            ],
        ),
        (
            route("{parentRefs: [{name: g}], rules: [{backendRefs: [{name: web}]}]}"),
            &[
                "HTTPRoute default/r at g | ResolvedRefs | BackendNotFound | backendRef to Service default/web names no port",
            ],
        ),
        (
            format!(
                "{}---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: other}}\nspec: {{gatewayClassName: nope, listeners: [{{name: http, protocol: HTTP, port: 80}}]}}\n",
                route(good)
            ),
            &[
                "Gateway default/other | Accepted | Pending | GatewayClass nope does not exist",
                "Gateway default/other | Programmed | Pending | GatewayClass nope does not exist",
            ],
        ),
        (
            format!(
                "{}---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: pooled}}\nspec: {{gatewayClassName: forebay, listeners: [{{name: http, protocol: HTTP, port: 80}}]}}\n",
                route(good)
            ),
            &[
                "Gateway default/pooled | Programmed | AddressNotAssigned | there is no AddressPool that admits namespace default; add one or give spec.addresses",
                "Gateway default/pooled listener http | Programmed | Pending | the Gateway has no address",
            ],
        ),
        (
            format!(
                "{}---\napiVersion: forebay.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: p}}\nspec: {{ranges: [192.0.2.0/33]}}\n",
                route(good)
            ),
            &[
                "AddressPool p | Accepted | Invalid | \"192.0.2.0/33\" is neither a CIDR nor FIRST-LAST",
            ],
        ),
        (
            format!(
                "{}---\napiVersion: networking.istio.io/v1beta1\nkind: DestinationRule\nmetadata: {{name: d}}\nspec: {{host: web, trafficPolicy: {{outlierDetection: {{interval: soon}}}}}}\n",
                route(good)
            ),
            &[
                "DestinationRule default/d | forebay.dev/Applied | Invalid | trafficPolicy.outlierDetection.interval \"soon\" is not a duration such as 30s",
            ],
        ),
        (
            format!(
                "{}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints: [{{addresses: [ten]}}]\n",
                route(good)
            ),
            &[
                "EndpointSlice default/web-1 | forebay.dev/Usable | Invalid | endpoint address \"ten\" is not an IP address",
            ],
        ),
    ];
    for (text, want) in rows {
        // What an API server would refuse is said as well, under `Errors`.
        let (code, got) = remarks(&[("a-gateway.yaml", GATEWAY), ("b.yaml", text)]).await;
        assert_eq!(got, *want, "{text}");
        assert_eq!(code, Some(i32::from(!want.is_empty())), "{text}");
    }
}
