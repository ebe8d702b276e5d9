use serde_json::{Value, json};

use super::check;

/// Complete objects of all kinds, which every schema admits.
const GOOD: &str = include_str!("tests/good.yaml");

fn good(kind: &str) -> Value {
    let documents: Vec<Value> = serde_saphyr::from_multiple(GOOD).unwrap();
    documents
        .into_iter()
        .find(|document| document["kind"] == kind)
        .unwrap_or_else(|| panic!("there is no {kind}"))
}

fn findings(object: &Value) -> Vec<String> {
    check(object)
        .iter()
        .map(|finding| format!("{}: {}", finding.field, finding.message))
        .collect()
}

/// Sets one field of a good object, or removes it by null, and wants exactly these findings.
fn table(kind: &str, rows: &[(&str, Value, &[&str])]) {
    for (pointer, value, want) in rows {
        let mut object = good(kind);
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        match object.pointer_mut(parent) {
            Some(Value::Object(fields)) => drop(fields.insert(name.to_owned(), value.clone())),
            Some(Value::Array(items)) if name == "-" => items.push(value.clone()),
            Some(Value::Array(items)) => items[name.parse::<usize>().unwrap()] = value.clone(),
            _ => panic!("{kind} has no {parent}"),
        }
        assert_eq!(findings(&object), *want, "{kind} {pointer} = {value}");
    }
}

#[test]
fn complete_objects_of_all_kinds_are_admitted() {
    let documents: Vec<Value> = serde_saphyr::from_multiple(GOOD).unwrap();
    assert_eq!(documents.len(), 13, "one of each kind that is read");
    for document in &documents {
        assert_eq!(findings(document), [""; 0], "{}", document["kind"]);
        let object = crate::translate::Object::parse(document);
        assert!(object.is_ok_and(|object| object.is_some()));
    }
    assert_eq!(
        findings(&json!({"kind": "Deployment", "apiVersion": "apps/v1"})),
        [""; 0]
    );
}

#[test]
fn gateways() {
    table(
        "Gateway",
        &[
            (
                "/spec/gatewayClassName",
                json!(null),
                &["spec.gatewayClassName: is missing"],
            ),
            (
                "/spec/listeners",
                json!([]),
                &["spec.listeners: expected 1 to 64 entries, got 0"],
            ),
            (
                "/spec/listeners/0/port",
                json!(0),
                &["spec.listeners[0].port: expected a whole number from 1 to 65535, got 0"],
            ),
            (
                "/spec/listeners/0/port",
                json!(70_000),
                &["spec.listeners[0].port: expected a whole number from 1 to 65535, got 70000"],
            ),
            (
                "/spec/listeners/0/name",
                json!("A_b"),
                &["spec.listeners[0].name: expected a lower-case DNS name, got \"A_b\""],
            ),
            (
                "/spec/listeners/0/hostname",
                json!("a..b"),
                &[
                    "spec.listeners[0].hostname: expected a lower-case DNS name, or *. and one, got \"a..b\"",
                ],
            ),
            (
                "/spec/listeners/1/name",
                json!("http"),
                &["spec.listeners[1]: name \"http\" stands in entry 0 already and must be unique"],
            ),
            (
                "/spec/listeners/-",
                json!({"name": "again", "port": 80, "protocol": "HTTP", "hostname": "*.example.com"}),
                &[
                    "spec.listeners[2]: port 80, protocol HTTP and hostname \"*.example.com\" stand in entry 0 already: together they must be unique",
                ],
            ),
            // A protocol is a word of anybody's: which are served is a condition.
            ("/spec/listeners/0/protocol", json!("Foo"), &[]),
            (
                "/spec/listeners/0/protocol",
                json!("a b"),
                &["spec.listeners[0].protocol: expected a protocol such as HTTP, got \"a b\""],
            ),
            (
                "/spec/listeners/0/tls",
                json!({"mode": "Foo", "certificateRefs": [{"name": "c"}]}),
                &[
                    "spec.listeners[0].tls.mode: expected Terminate or Passthrough, got \"Foo\"",
                    "spec.listeners[0].tls: must not be given for the protocols HTTP, TCP and UDP",
                ],
            ),
            (
                "/spec/listeners/1/hostname",
                json!("example.com"),
                &["spec.listeners[1].hostname: must not be given for the protocols TCP and UDP"],
            ),
            (
                "/spec/listeners/0/allowedRoutes/namespaces/from",
                json!("Everywhere"),
                &[
                    "spec.listeners[0].allowedRoutes.namespaces.from: expected All, Selector or Same, got \"Everywhere\"",
                ],
            ),
            (
                "/spec/listeners/0/allowedRoutes/namespaces/selector/matchExpressions/0/operator",
                json!("Near"),
                &[
                    "spec.listeners[0].allowedRoutes.namespaces.selector.matchExpressions[0].operator: expected In, NotIn, Exists or DoesNotExist, got \"Near\"",
                ],
            ),
            (
                "/spec/listeners/0/allowedRoutes/namespaces/selector/matchExpressions/0/operator",
                json!("Exists"),
                &[
                    "spec.listeners[0].allowedRoutes.namespaces.selector.matchExpressions[0].values: the operators Exists and DoesNotExist take no values",
                ],
            ),
            (
                "/spec/addresses/0/value",
                json!("192.0.2.256"),
                &["spec.addresses[0].value: expected an IP address, got \"192.0.2.256\""],
            ),
            (
                "/spec/addresses/-",
                json!({"value": "192.0.2.1"}),
                &[
                    "spec.addresses[1].value: \"192.0.2.1\" stands in entry 0 already and must be unique",
                ],
            ),
            ("/spec/somethingNew", json!({"a": 1}), &[]),
        ],
    );
    table(
        "GatewayClass",
        &[(
            "/spec/controllerName",
            json!("forebay"),
            &[
                "spec.controllerName: expected a controller's name such as example.com/controller, got \"forebay\"",
            ],
        )],
    );
}

#[test]
fn http_routes() {
    let backends: Vec<Value> = (0..17).map(|_| json!({"name": "a", "port": 1})).collect();
    let rules: Vec<Value> = (0..17).map(|_| json!({})).collect();
    let matches: Vec<Value> = (0..65).map(|_| json!({"method": "GET"})).collect();
    let half: Vec<Value> = matches[..64].to_vec();
    let full = json!([{"matches": half}, {"matches": half}, {}]);
    table(
        "HTTPRoute",
        &[
            (
                "/spec/rules",
                json!([]),
                &["spec.rules: expected 1 to 16 entries, got 0"],
            ),
            (
                "/spec/rules",
                json!(rules),
                &["spec.rules: expected 1 to 16 entries, got 17"],
            ),
            (
                "/spec/rules/0/matches",
                json!(matches),
                &["spec.rules[0].matches: expected at most 64 entries, got 65"],
            ),
            (
                "/spec/rules",
                full,
                &["spec.rules: expected at most 128 matches in all rules together, got 129"],
            ),
            (
                "/spec/rules/0/backendRefs",
                json!(backends),
                &["spec.rules[0].backendRefs: expected at most 16 entries, got 17"],
            ),
            (
                "/spec/rules/0/backendRefs/0/weight",
                json!(1_000_001),
                &[
                    "spec.rules[0].backendRefs[0].weight: expected a whole number from 0 to 1000000, got 1000001",
                ],
            ),
            (
                "/spec/rules/0/backendRefs/0/port",
                json!(null),
                &["spec.rules[0].backendRefs[0].port: is missing: a Service needs one"],
            ),
            (
                "/spec/rules/0/matches/0/path/type",
                json!("Foo"),
                &[
                    "spec.rules[0].matches[0].path.type: expected Exact, PathPrefix or RegularExpression, got \"Foo\"",
                ],
            ),
            (
                "/spec/rules/0/matches/0/path/value",
                json!("a"),
                &[
                    "spec.rules[0].matches[0].path.value: expected a path that begins with /, got \"a\"",
                ],
            ),
            (
                "/spec/rules/0/matches/0/path/value",
                json!("/a/../b"),
                &[
                    "spec.rules[0].matches[0].path.value: expected a path without /../, got \"/a/../b\"",
                ],
            ),
            (
                "/spec/rules/0/matches/0/path/value",
                json!("/%zz"),
                &[
                    "spec.rules[0].matches[0].path.value: expected a path of the characters that RFC 3986 allows in one, others in the form %41, got \"/%zz\"",
                ],
            ),
            // No schema knows what a good pattern is: that is a condition.
            (
                "/spec/rules/0/matches/0/path",
                json!({"type": "RegularExpression", "value": "(["}),
                &[],
            ),
            (
                "/spec/rules/0/matches/0/method",
                json!("BREW"),
                &[
                    "spec.rules[0].matches[0].method: expected GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE or PATCH, got \"BREW\"",
                ],
            ),
            (
                "/spec/rules/0/matches/0/headers/0/name",
                json!("a b"),
                &[
                    "spec.rules[0].matches[0].headers[0].name: expected letters, digits and the signs of an HTTP header name, got \"a b\"",
                ],
            ),
            (
                "/spec/rules/0/matches/0/queryParams/-",
                json!({"name": "q", "value": "2"}),
                &[
                    "spec.rules[0].matches[0].queryParams[1]: name \"q\" stands in entry 0 already and must be unique",
                ],
            ),
            (
                "/spec/hostnames/0",
                json!("Example.com"),
                &[
                    "spec.hostnames[0]: expected a lower-case DNS name, or *. and one, got \"Example.com\"",
                ],
            ),
            (
                "/spec/parentRefs/-",
                json!({"name": "gateway", "sectionName": "http"}),
                &[
                    "spec.parentRefs[1]: entry 0 is the same parent: give each a sectionName or port of its own",
                ],
            ),
            (
                "/spec/parentRefs",
                json!([{"name": "gateway", "port": 80}, {"name": "gateway", "port": 81}]),
                &[],
            ),
            (
                "/spec/rules/0/timeouts/request",
                json!("1.5s"),
                &[
                    "spec.rules[0].timeouts.request: expected a duration such as 10s or 1m30s, got \"1.5s\"",
                ],
            ),
            (
                "/spec/rules/0/timeouts/backendRequest",
                json!("11s"),
                &["spec.rules[0].timeouts.backendRequest: must not be longer than request"],
            ),
            ("/spec/rules/0/timeouts/request", json!("0s"), &[]),
            ("/spec/rules/0/retry", json!({"attempts": 3}), &[]),
            (
                "/spec/rules/0/retry",
                json!({"attempts": 0, "codes": [200]}),
                &[
                    "spec.rules[0].retry.attempts: expected a whole number from 1 to 2147483647, got 0",
                    "spec.rules[0].retry.codes[0]: expected a whole number from 400 to 599, got 200",
                ],
            ),
        ],
    );
}

#[test]
fn filters() {
    let at = "/spec/rules/0/filters/0";
    let redirect = json!({"type": "RequestRedirect", "requestRedirect": {"statusCode": 302}});
    table(
        "HTTPRoute",
        &[
            (
                "/spec/rules/0/filters/0/type",
                json!("Foo"),
                &[
                    "spec.rules[0].filters[0].type: expected RequestHeaderModifier, ResponseHeaderModifier, RequestMirror, RequestRedirect, URLRewrite, ExtensionRef, CORS or ExternalAuth, got \"Foo\"",
                    "spec.rules[0].filters[0].requestHeaderModifier: must not be given for type Foo",
                ],
            ),
            (
                at,
                json!({"type": "CORS"}),
                &["spec.rules[0].filters[0].cors: is missing: type CORS needs it"],
            ),
            (
                at,
                json!({"type": "CORS", "cors": {"allowOrigins": ["*", "https://a.b"]}}),
                &["spec.rules[0].filters[0].cors.allowOrigins: * must stand alone"],
            ),
            (
                at,
                redirect,
                &["spec.rules[0].backendRefs: must not be given beside a RequestRedirect filter"],
            ),
            (
                at,
                json!({"type": "ExternalAuth", "externalAuth": {"protocol": "GRPC", "backendRef": {"name": "a", "port": 1}}}),
                &["spec.rules[0].filters[0].externalAuth.grpc: is missing: protocol GRPC needs it"],
            ),
            (
                "/spec/rules/0/filters/-",
                json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {}}),
                &[
                    "spec.rules[0].filters[1]: a RequestHeaderModifier filter stands in entry 0 already and must be the only one",
                ],
            ),
            (
                at,
                json!({"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replaceFullPath": "/"}}}),
                &[
                    "spec.rules[0].filters[0].urlRewrite.path.replaceFullPath: must not be given for type ReplacePrefixMatch",
                ],
            ),
            (
                at,
                json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "a", "port": 1}, "percent": 101}}),
                &[
                    "spec.rules[0].filters[0].requestMirror.percent: expected a whole number from 0 to 100, got 101",
                ],
            ),
        ],
    );
    let mut two = good("HTTPRoute");
    two["spec"]["rules"][0]["matches"] = json!([{}, {"path": {"value": "/b"}}]);
    two["spec"]["rules"][0]["filters"] = json!([{"type": "URLRewrite", "urlRewrite":
        {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"}}}]);
    assert_eq!(
        findings(&two),
        [
            "spec.rules[0].matches: expected exactly one match of type PathPrefix, as a filter replaces the prefix"
        ]
    );
}

#[test]
fn other_routes_and_grants() {
    table(
        "UDPRoute",
        &[
            (
                "/spec/rules/-",
                json!({"backendRefs": [{"name": "a", "port": 1}]}),
                &["spec.rules: expected exactly 1 entries, got 2"],
            ),
            (
                "/spec/rules/0/backendRefs",
                json!([]),
                &["spec.rules[0].backendRefs: expected 1 to 16 entries, got 0"],
            ),
        ],
    );
    table(
        "ReferenceGrant",
        &[(
            "/spec/from/0/namespace",
            json!("a.b"),
            &["spec.from[0].namespace: expected a lower-case DNS label, got \"a.b\""],
        )],
    );
}

#[test]
fn destination_rules() {
    let outlier = "/spec/trafficPolicy/outlierDetection";
    let time = "expected a duration of whole milliseconds, at least 1ms, such as 30s, got";
    let interval =
        |value: &str| format!("spec.trafficPolicy.outlierDetection.interval: {time} \"{value}\"");
    table(
        "DestinationRule",
        &[
            ("/spec/host", json!(null), &["spec.host: is missing"]),
            (
                "/spec/host",
                json!("a.*.b"),
                &[
                    "spec.host: expected a DNS name whose first label may begin with *, got \"a.*.b\"",
                ],
            ),
            ("/spec/host", json!("*-x.example.com"), &[]),
            ("/spec/host", json!("*"), &[]),
            (
                "/spec/host",
                json!("10.0.0.1"),
                &[
                    "spec.host: expected a DNS name whose first label may begin with *, got \"10.0.0.1\"",
                ],
            ),
            (
                &format!("{outlier}/maxEjectionPercent"),
                json!(101),
                &[
                    "spec.trafficPolicy.outlierDetection.maxEjectionPercent: expected a whole number from 0 to 100, got 101",
                ],
            ),
            (
                &format!("{outlier}/interval"),
                json!("-1s"),
                &[&interval("-1s")],
            ),
            (
                &format!("{outlier}/interval"),
                json!("500us"),
                &[&interval("500us")],
            ),
            (
                &format!("{outlier}/interval"),
                json!("1500us"),
                &[&interval("1500us")],
            ),
            (&format!("{outlier}/interval"), json!("1ms"), &[]),
            (
                &format!("{outlier}/consecutiveLocalOriginFailures"),
                json!(3),
                &[
                    "spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures: needs splitExternalLocalOriginErrors: true",
                ],
            ),
            (
                "/spec/trafficPolicy/connectionPool/tcp/maxConnections",
                json!(-1),
                &[
                    "spec.trafficPolicy.connectionPool.tcp.maxConnections: expected a whole number from 0 to 2147483647, got -1",
                ],
            ),
            (
                "/spec/trafficPolicy/connectionPool/tcp/idleTimeout",
                json!("0s"),
                &[],
            ),
            (
                "/spec/trafficPolicy/connectionPool/http/idleTimeout",
                json!("0s"),
                &[&format!(
                    "spec.trafficPolicy.connectionPool.http.idleTimeout: {time} \"0s\""
                )],
            ),
            (
                "/spec/trafficPolicy/connectionPool",
                json!({}),
                &["spec.trafficPolicy.connectionPool: expected at least one of tcp, http"],
            ),
            (
                "/spec/trafficPolicy/loadBalancer",
                json!({"simple": "RANDOM", "consistentHash": {}}),
                &["spec.trafficPolicy.loadBalancer: simple and consistentHash exclude each other"],
            ),
            (
                "/spec/trafficPolicy/portLevelSettings",
                json!([{"loadBalancer": {"simple": "NEAREST"}}, {"port": {"number": 1}}]),
                &[
                    "spec.trafficPolicy.portLevelSettings[0].port: is missing",
                    "spec.trafficPolicy.portLevelSettings[0].loadBalancer.simple: expected UNSPECIFIED, LEAST_CONN, RANDOM, PASSTHROUGH, ROUND_ROBIN or LEAST_REQUEST, got \"NEAREST\"",
                    "spec.trafficPolicy.portLevelSettings[1]: expected at least one of loadBalancer, connectionPool, outlierDetection, tls",
                ],
            ),
            (
                "/spec/trafficPolicy/loadBalancer",
                json!({"simple": "RANDOM", "warmup": {"duration": "1s", "minimumPercent": 150.5}}),
                &[
                    "spec.trafficPolicy.loadBalancer.warmup.minimumPercent: expected a number from 0 to 100, got 150.5",
                ],
            ),
            (
                "/spec/exportTo",
                json!([".", "*"]),
                &["spec.exportTo: * and ~ must stand alone"],
            ),
            (
                "/spec/subsets/-",
                json!({"name": "v1", "trafficPolicy": {}}),
                &[
                    "spec.subsets[1].trafficPolicy: expected at least one of loadBalancer, connectionPool, outlierDetection, tls, portLevelSettings, tunnel, proxyProtocol, retryBudget",
                    "spec.subsets[1]: name \"v1\" stands in entry 0 already and must be unique",
                ],
            ),
            (
                "/spec/trafficPolicy/tls",
                json!({"mode": "MUTUAL"}),
                &[
                    "spec.trafficPolicy.tls.clientCertificate: is missing: mode MUTUAL needs it, or a credentialName",
                ],
            ),
        ],
    );
}

#[test]
fn own_kinds() {
    table(
        "AddressPool",
        &[
            (
                "/spec/ranges/0",
                json!("192.0.2.0/33"),
                &[
                    "spec.ranges[0]: expected a CIDR or FIRST-LAST, such as 192.0.2.0/24 or 192.0.2.10-192.0.2.20, got \"192.0.2.0/33\"",
                ],
            ),
            ("/spec/ranges", json!(null), &["spec.ranges: is missing"]),
            (
                "/spec/announce",
                json!("BGP"),
                &["spec.announce: expected L2 or None, got \"BGP\""],
            ),
        ],
    );
    table(
        "TrafficPolicy",
        &[
            (
                "/spec/sources/allow/0",
                json!("10.0.0.1/8"),
                &[
                    "spec.sources.allow[0]: expected a CIDR without bits behind its length, such as 10.0.0.0/8, got \"10.0.0.1/8\"",
                ],
            ),
            (
                "/spec/sources/allow",
                json!([]),
                &["spec.sources.allow: expected 1 to 1024 entries, got 0"],
            ),
            (
                "/spec/targetRefs",
                json!([]),
                &["spec.targetRefs: expected 1 to 16 entries, got 0"],
            ),
        ],
    );
}

#[test]
fn kubernetes_kinds() {
    table(
        "Service",
        &[
            (
                "/metadata/name",
                json!("1a"),
                &[
                    "metadata.name: expected a lower-case DNS label that begins with a letter, got \"1a\"",
                ],
            ),
            (
                "/metadata/labels",
                json!({"a": "b c"}),
                &[
                    "metadata.labels[a]: expected letters, digits, -, _ and ., beginning and ending with a letter or digit, got \"b c\"",
                ],
            ),
            (
                "/metadata/annotations",
                json!({"Example.com/Note": "Any text."}),
                &[],
            ),
            (
                "/metadata/annotations",
                json!({"a b": ""}),
                &[
                    "metadata.annotations[a b]: expected an annotation key such as example.com/name as the key",
                ],
            ),
            ("/spec/ports", json!([]), &["spec.ports: is missing"]),
            (
                "/spec/ports/0/protocol",
                json!("Foo"),
                &["spec.ports[0].protocol: expected TCP, UDP or SCTP, got \"Foo\""],
            ),
            (
                "/spec/ports/-",
                json!({"port": 80, "name": "again"}),
                &[
                    "spec.ports[2]: port 80 and protocol TCP stand in entry 0 already and must be unique",
                ],
            ),
            (
                "/spec/ports/-",
                json!({"port": 81}),
                &["spec.ports[2].name: is missing: of several ports each needs a name"],
            ),
        ],
    );
    table(
        "EndpointSlice",
        &[
            ("/addressType", json!(null), &["addressType: is missing"]),
            (
                "/endpoints/0/addresses/0",
                json!("::1"),
                &["endpoints[0].addresses[0]: expected an IPv4 address, got \"::1\""],
            ),
            (
                "/endpoints/0/addresses",
                json!([]),
                &["endpoints[0].addresses: expected 1 to 100 entries, got 0"],
            ),
            (
                "/ports/-",
                json!({"port": 1, "name": "http"}),
                &["ports[1]: name \"http\" stands in entry 0 already and must be unique"],
            ),
        ],
    );
    // A value of a Secret is never shown.
    table(
        "Secret",
        &[(
            "/data/tls.key",
            json!("hunter2!"),
            &["data[tls.key]: expected base64, got something else"],
        )],
    );
}

#[test]
fn findings_are_limited_and_long_values_cut() {
    let mut route = good("HTTPRoute");
    route["spec"]["hostnames"] = (0..20).map(|_| json!("_".repeat(200))).collect();
    let found = check(&route);
    assert_eq!(found.len(), super::MAX_FINDINGS);
    assert!(found[1].message.chars().count() < 160, "{:?}", found[1]);
}

#[test]
fn no_value_of_any_field_can_break_it() {
    fn each(value: &mut Value, odd: &Value, tried: &mut usize) {
        let whole = value.clone();
        let keys: Vec<String> = match value {
            Value::Object(fields) => fields.keys().map(|key| format!("/{key}")).collect(),
            Value::Array(items) => (0..items.len()).map(|at| format!("/{at}")).collect(),
            _ => return,
        };
        for key in keys.iter().map(|key| key.replacen("io/", "io~1", 1)) {
            let Some(field) = value.pointer_mut(&key) else {
                continue;
            };
            let before = std::mem::replace(field, odd.clone());
            std::hint::black_box(check(value));
            *tried += 1;
            *value.pointer_mut(&key).unwrap() = before;
        }
        assert_eq!(*value, whole);
    }
    let odd = [
        json!(null),
        json!(""),
        json!("%"),
        json!(-1),
        json!([[]]),
        json!({"": {}}),
    ];
    let mut tried = 0;
    for document in serde_saphyr::from_multiple::<Value>(GOOD).unwrap() {
        for odd in &odd {
            let mut document = document.clone();
            each(&mut document, odd, &mut tried);
            // Below as well, where the object is still found by its kind.
            for path in [
                "/spec",
                "/spec/rules",
                "/spec/rules/0",
                "/spec/listeners",
                "/spec/trafficPolicy",
            ] {
                let Some(inner) = document.pointer(path).cloned() else {
                    continue;
                };
                let mut inner = inner;
                let count = match &inner {
                    Value::Object(fields) => fields.len(),
                    Value::Array(items) => items.len(),
                    _ => 0,
                };
                for at in 0..count {
                    let before = inner.clone();
                    match &mut inner {
                        Value::Object(fields) => {
                            *fields.values_mut().nth(at).unwrap() = odd.clone();
                        }
                        Value::Array(items) => items[at] = odd.clone(),
                        _ => {}
                    }
                    let mut changed = document.clone();
                    *changed.pointer_mut(path).unwrap() = inner.clone();
                    std::hint::black_box(check(&changed));
                    tried += 1;
                    inner = before;
                }
            }
        }
    }
    assert!(tried > 400, "only {tried}");
}
