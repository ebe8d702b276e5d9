//! Golden pairs for allocate, translate and status: `golden/<case>.in.yaml` gives `golden/<case>.out.yaml`.
//!
//! `FOREBAY_BLESS=1 cargo test -p gateway-user --test golden` writes the outputs anew; the difference is then reviewed
//! like code. A first document of kind `Case` in the input sets what does not come from objects.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gateway_user::allocate::{Allocations, allocate};
use gateway_user::snapshot::{
    AppProtocol, Backend, BackendTarget, BindKey, ClientAddress, Cluster, Filters, HeaderEdits,
    L4Policy, ListenerTls, Prefix, Protocol, Rule, Snapshot, Sources, TrafficPolicy, Transport,
    UpstreamTls, route::RouteMatch,
};
use gateway_user::snapshot::{PathMatch, ValueMatch};
use gateway_user::status::{ObjectStatus, Report, Status, merge, well};
use gateway_user::translate::{Condition, Context, Inputs, Object, translate};
use serde::Deserialize;
use serde_json::{Value, json};

/// What a case sets beside the objects.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    kind: String,
    on_cluster: bool,
    /// Further inputs, as paths from the top of the repository.
    include: Vec<String>,
    existing: Allocations,
    reports: Vec<CaseReport>,
    /// Zone of the node.
    zone: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CaseReport {
    node: String,
    #[serde(default)]
    failed: BTreeMap<String, String>,
    #[serde(default)]
    pending: Vec<String>,
}

#[test]
fn every_pair_agrees() {
    let bless = std::env::var_os("FOREBAY_BLESS").is_some();
    let cases = cases();
    assert!(cases.len() >= 30, "only {} cases were found", cases.len());
    let mut differing = Vec::new();
    for input in cases {
        let output = PathBuf::from(input.to_string_lossy().replace(".in.yaml", ".out.yaml"));
        let text = std::fs::read_to_string(&input).expect("the input can be read");
        let got = run(&text);
        assert_eq!(
            got,
            run(&text),
            "{} must give the same twice",
            input.display()
        );
        if bless {
            std::fs::write(&output, got).expect("the output can be written");
        } else if std::fs::read_to_string(&output).ok().as_deref() != Some(&*got) {
            differing.push(format!("{}\n{got}", output.display()));
        }
    }
    assert!(
        differing.is_empty(),
        "these differ:\n{}",
        differing.join("\n")
    );
}

/// Whatever a field holds, the object is refused or judged; nothing panics.
#[test]
fn no_value_of_any_field_can_break_translate() {
    let odd = odd_values();
    let (mut tried, mut read) = (0, 0);
    for input in cases() {
        let text = std::fs::read_to_string(&input).expect("the input can be read");
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("the input is YAML");
        let parse = |document: &Value| Object::parse(document).ok().flatten();
        let mut all = Inputs::default();
        documents
            .iter()
            .filter_map(parse)
            .for_each(|object| all.insert(object));
        for document in &documents {
            let Some(original) = parse(document) else {
                continue;
            };
            let paths = pointers(document);
            let places = paths.iter().enumerate();
            let twice = places.flat_map(|(at, path)| [(path, at), (path, 5 * at + 11)]);
            for (path, at) in twice {
                let mut changed = document.clone();
                *changed.pointer_mut(path).expect("it has this field") =
                    odd[at % odd.len()].clone();
                tried += 1;
                let Some(object) = parse(&changed) else {
                    continue;
                };
                read += 1;
                let mut inputs = all.clone();
                inputs.remove(&original.id());
                inputs.insert(object);
                for on_cluster in [false, true] {
                    let allocations = allocate(&inputs, on_cluster, &Allocations::default());
                    let context = Context {
                        on_cluster,
                        allocations: &allocations,
                        zone: None,
                    };
                    std::hint::black_box(merge(&translate(&inputs, &context), &[]));
                }
            }
        }
    }
    assert!(
        tried > 10_000 && read > 2_000,
        "only {tried} tried and {read} read"
    );
}

/// What no field is meant to hold, or what is at its bounds.
fn odd_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(""),
        json!("-"),
        json!(0),
        json!([]),
        json!({}),
        json!(["*.", {"a": 1}]),
        json!(true),
        json!(-1),
        json!(1),
        json!(65_536),
        json!(u64::MAX),
        json!(1e308),
        json!("5000000000000000h"),
        json!("99999h99999h99999h99999h"),
        json!("0.0.0.0/0"),
        json!("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        json!("*"),
        json!("\u{0}\u{fffd}é/../%00"),
        json!("(".repeat(300)),
        json!(["a", "a"]),
    ]
}

/// The paths of all values inside a value.
fn pointers(value: &Value) -> Vec<String> {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => {
            let escape = |name: &str| name.replace('~', "~0").replace('/', "~1");
            fields
                .iter()
                .map(|(name, value)| (escape(name), value))
                .collect()
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(at, v)| (at.to_string(), v))
            .collect(),
        _ => Vec::new(),
    };
    let mut paths = Vec::new();
    for (name, value) in inner {
        paths.push(format!("/{name}"));
        paths.extend(
            pointers(value)
                .into_iter()
                .map(|rest| format!("/{name}{rest}")),
        );
    }
    paths
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder exists")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.to_string_lossy().ends_with(".in.yaml"))
        .collect();
    cases.sort();
    cases
}

fn run(text: &str) -> String {
    let mut documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("the input is YAML");
    let mut case = Case::default();
    let mut inputs = Inputs::default();
    let mut errors = Vec::new();
    if documents[0].get("kind").and_then(Value::as_str) == Some("Case") {
        case = serde_json::from_value(documents.remove(0)).expect("a Case");
        assert_eq!(case.kind, "Case");
    }
    for path in &case.include {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        let text = std::fs::read_to_string(path).expect("the included file can be read");
        documents.extend(serde_saphyr::from_multiple::<Value>(&text).expect("it is YAML"));
    }
    for document in &documents {
        match Object::parse(document) {
            Ok(Some(object)) => {
                // Written and read again it says the same, as a cache needs.
                let again = Object::parse(&object.to_value()).expect("it is read");
                let again = again.expect("it is of a known kind");
                assert_eq!(format!("{again:?}"), format!("{object:?}"));
                inputs.insert(object);
            }
            Ok(None) => errors.push(format!("not read: {}", document["kind"])),
            Err(error) => errors.push(error.to_string()),
        }
    }
    let allocations = allocate(&inputs, case.on_cluster, &case.existing);
    let again = allocate(&inputs, case.on_cluster, &allocations);
    assert_eq!(allocations, again, "allocation must be stable");
    let context = Context {
        on_cluster: case.on_cluster,
        allocations: &allocations,
        zone: case.zone.as_deref(),
    };
    let translation = translate(&inputs, &context);
    let statuses = merge(&translation, &reports(&case.reports));
    let mut out = json!({
        "snapshot": show_snapshot(&translation.snapshot),
        "well": well(&statuses),
        "statuses": statuses.iter().map(show_status).collect::<Vec<_>>(),
    });
    if !errors.is_empty() {
        out["errors"] = errors.into();
    }
    serde_saphyr::to_string(&out).expect("the output is YAML")
}

fn reports(given: &[CaseReport]) -> Vec<Report> {
    let bind = |socket: &str| {
        let (socket, transport) = match socket.strip_suffix("/udp") {
            Some(socket) => (socket, Transport::Udp),
            None => (socket, Transport::Tcp),
        };
        let socket: std::net::SocketAddr = socket.parse().expect("ADDR:PORT");
        BindKey::new(socket, transport)
    };
    let report = |given: &CaseReport| {
        let failed = given.failed.iter();
        Report {
            node: given.node.clone(),
            generation: 0,
            failed_listeners: failed.map(|(at, why)| (bind(at), why.clone())).collect(),
            pending_listeners: given.pending.iter().map(|at| bind(at)).collect(),
        }
    };
    given.iter().map(report).collect()
}

fn show_snapshot(snapshot: &Snapshot) -> Value {
    let mut shown = serde_json::Map::new();
    let mut part = |name: &str, items: Vec<Value>| {
        if !items.is_empty() {
            shown.insert(name.to_owned(), items.into());
        }
    };
    part(
        "binds",
        snapshot
            .binds
            .values()
            .map(|bind| show_bind(snapshot, bind))
            .collect(),
    );
    let routed = snapshot.routed.iter();
    part("routed", routed.map(|a| a.to_string().into()).collect());
    let rules = snapshot.rules.iter();
    let rules = rules.map(|rule| show_rule(snapshot, rule));
    part("rules", rules.collect());
    let mut clusters: Vec<_> = snapshot.clusters.iter().collect();
    clusters.sort_by(|a, b| a.key.cmp(&b.key));
    let clusters = clusters.into_iter().map(|cluster| show_cluster(cluster));
    part("clusters", clusters.collect());
    let replicas = snapshot.replicas.iter().map(|replica| {
        format!(
            "{} {} {:?} weight {}",
            replica.name, replica.address, replica.state, replica.weight
        )
        .into()
    });
    part("replicas", replicas.collect());
    shown.into()
}

fn show_rule(snapshot: &Snapshot, rule: &Rule) -> Value {
    let backends = rule
        .backends
        .iter()
        .map(|b| show_backend(snapshot, b))
        .collect::<Vec<_>>();
    let key = match rule.key.kind {
        "GRPCRoute" => format!("GRPCRoute {}", rule.key),
        _ => rule.key.to_string(),
    };
    let mut shown = json!({"rule": key, "backends": backends});
    if let Some(name) = &rule.name {
        shown["name"] = name.to_string().into();
    }
    if let Some(filters) = &rule.filters {
        shown["filters"] = show_filters(snapshot, filters);
    }
    if let Some(retry) = &rule.retry {
        let backoff = retry.backoff.map(|backoff| format!(" after {backoff:?}"));
        let backoff = backoff.unwrap_or_default();
        shown["retry"] = format!("{} times{backoff} {:?}", retry.attempts, retry.codes).into();
    }
    for (name, timeout) in [
        ("request", rule.request_timeout),
        ("backendRequest", rule.backend_timeout),
    ] {
        if let Some(timeout) = timeout {
            shown[name] = format!("{timeout:?}").into();
        }
    }
    shown
}

fn show_cluster(cluster: &Cluster) -> Value {
    let endpoints = cluster.endpoints.iter().map(|endpoint| {
        let mut text = endpoint.key.address.to_string();
        if let Some(uid) = &endpoint.key.pod_uid {
            text = format!("{text} pod {uid}");
        }
        if endpoint.terminating {
            text += " terminating";
        }
        text
    });
    let rule = cluster
        .key
        .destination_rule
        .as_ref()
        .map(ToString::to_string);
    let policy = TrafficPolicy {
        tls: None,
        ..TrafficPolicy::clone(&cluster.policy)
    };
    let mut shown = json!({
        "cluster": cluster.key.to_string(),
        "destinationRule": rule,
        "policy": rule.map(|_| format!("{policy:?}")),
        "endpoints": endpoints.collect::<Vec<_>>(),
    });
    if cluster.protocol != AppProtocol::Unset {
        shown["protocol"] = format!("{:?}", cluster.protocol).into();
    }
    if let Some(tls) = &cluster.policy.tls {
        let UpstreamTls {
            server_name, names, ..
        } = &**tls;
        let trust = serde_json::to_value(&tls.trust).expect("JSON");
        shown["tls"] = format!("{server_name}, names {names:?}, trust {trust}").into();
    }
    shown
}

fn show_tls(tls: &ListenerTls) -> Value {
    let certificates = tls.certificates.iter();
    let certificates =
        certificates.map(|c| Value::from(format!("{} {}", c.secret, c.names.join(" "))));
    let broken = tls.broken.iter().map(|key| format!("{key} broken").into());
    certificates.chain(broken).collect()
}

fn show_bind(snapshot: &Snapshot, bind: &gateway_user::snapshot::Bind) -> Value {
    let socket = bind.key;
    let policy = (*bind.policy != L4Policy::default()).then(|| show_policy(&bind.policy));
    if bind.builtin_ready {
        let policy = policy.map(|policy| format!(", {policy}"));
        let policy = policy.unwrap_or_default();
        return format!("{socket} {} built-in readiness{policy}", bind.gateway).into();
    }
    let listeners = bind.listeners.iter().map(|listener| {
        let hostname = listener.hostname.as_ref().map_or("*", |name| name.as_str());
        if let Some(rule) = listener.rule {
            let rule = &snapshot.rules[rule as usize].key;
            return json!({"listener": listener.name, "everything": rule.to_string()});
        }
        let entries = listener.router.entries().map(|entry| {
            let hostname = entry.hostname.as_ref().map_or("*", |name| name.as_str());
            let rule = &snapshot.rules[entry.rule as usize].key;
            format!("{hostname} {} -> {rule}", show_match(&entry.matching))
        });
        let mut shown = json!({"listener": format!("{} {hostname}", listener.name), "routes": entries.collect::<Vec<_>>()});
        if let Some(tls) = &listener.tls {
            shown["tls"] = show_tls(tls);
        }
        shown
    });
    let mut shown = json!({"bind": format!("{socket} {}", bind.gateway), "listeners": listeners.collect::<Vec<_>>()});
    if bind.protocol == Protocol::Https {
        shown["protocol"] = "HTTPS".into();
    }
    if let Some(policy) = policy {
        shown["policy"] = policy.into();
    }
    shown
}

fn show_policy(policy: &L4Policy) -> String {
    let list = |prefixes: &[Prefix]| {
        let texts: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
        format!("[{}]", texts.join(" "))
    };
    let Sources { allow, deny } = &policy.sources;
    let allow = allow.as_deref().map_or_else(|| "all".to_owned(), list);
    let mut shown = format!(
        "{:?}, {:?}, allow {allow} deny {}",
        policy.return_path,
        policy.udp_hash,
        list(deny)
    );
    if policy.client != ClientAddress::default() {
        let ClientAddress {
            proxy_protocol,
            trusted_hops,
        } = policy.client;
        shown += &format!(", PROXY {proxy_protocol}, trusted hops {trusted_hops}");
    }
    shown
}

fn show_match(matching: &RouteMatch) -> String {
    let mut text = match &matching.path {
        PathMatch::Exact(path) => format!("={path}"),
        PathMatch::Prefix(path) => format!("{path}/*"),
        PathMatch::Regex(pattern) => format!("~{}", pattern.0.as_str()),
    };
    if let Some(method) = &matching.method {
        text = format!("{method} {text}");
    }
    let value = |value: &ValueMatch| match value {
        ValueMatch::Exact(value) => format!("={value}"),
        ValueMatch::Regex(pattern) => format!("~{}", pattern.0.as_str()),
    };
    for (name, want) in &matching.headers {
        text += &format!(" header {name}{}", value(want));
    }
    for (name, want) in &matching.query {
        text += &format!(" query {name}{}", value(want));
    }
    text
}

fn show_backend(snapshot: &Snapshot, backend: &Backend) -> Value {
    let http2 = if backend.http2 { " by HTTP/2" } else { "" };
    let target = show_target(snapshot, &backend.target);
    let text = format!("{} {target}{http2}", backend.weight);
    match &backend.filters {
        None => text.into(),
        Some(filters) => json!({"backend": text, "filters": show_filters(snapshot, filters)}),
    }
}

fn show_target(snapshot: &Snapshot, target: &BackendTarget) -> String {
    match target {
        BackendTarget::Cluster(at) => {
            let key = &snapshot.clusters[*at as usize].key;
            let rule = key
                .destination_rule
                .as_ref()
                .map(|rule| format!(" with {rule}"));
            format!("{key}{}", rule.unwrap_or_default())
        }
        BackendTarget::Invalid(why) => format!("500: {why}"),
    }
}

fn show_filters(snapshot: &Snapshot, filters: &Filters) -> Value {
    let mut shown = serde_json::Map::new();
    for (name, edits) in [
        ("request", &filters.request_headers),
        ("response", &filters.response_headers),
    ] {
        if !edits.is_empty() {
            shown.insert(name.to_owned(), show_edits(edits));
        }
    }
    let parts = [
        (
            "redirect",
            filters.redirect.as_ref().map(|r| format!("{r:?}")),
        ),
        (
            "rewrite",
            filters.rewrite.as_ref().map(|r| format!("{r:?}")),
        ),
        ("cors", filters.cors.as_ref().map(|c| format!("{c:?}"))),
    ];
    for (name, text) in parts {
        if let Some(text) = text {
            shown.insert(name.to_owned(), text.into());
        }
    }
    if !filters.mirrors.is_empty() {
        let mirrors = filters.mirrors.iter().map(|mirror| {
            let http2 = if mirror.http2 { " by HTTP/2" } else { "" };
            let target = show_target(snapshot, &mirror.target).replace("500:", "nothing:");
            format!(
                "{}/{} {target}{http2}",
                mirror.numerator, mirror.denominator
            )
        });
        shown.insert("mirrors".to_owned(), mirrors.collect());
    }
    shown.into()
}

fn show_edits(edits: &HeaderEdits) -> Value {
    let of = |what: &str, fields: &[(http::HeaderName, http::HeaderValue)]| -> Vec<String> {
        let fields = fields.iter();
        fields
            .map(|(name, value)| format!("{what} {name}: {}", value.to_str().expect("text")))
            .collect()
    };
    let remove = edits.remove.iter().map(|name| format!("remove {name}"));
    of("set", &edits.set)
        .into_iter()
        .chain(of("add", &edits.add))
        .chain(remove)
        .collect()
}

fn show_status(status: &ObjectStatus) -> Value {
    let name = format!("{} {}/{}", status.kind, status.namespace, status.name);
    let mut shown = json!({"object": name});
    match &status.status {
        Status::Gateway(gateway) => {
            shown["addresses"] = gateway.addresses.iter().map(|a| a.0.to_string()).collect();
            shown["conditions"] = show_conditions(&gateway.conditions);
            let listeners = gateway.listeners.iter().map(|listener| {
                let kinds: Vec<_> = listener
                    .supported_kinds
                    .iter()
                    .map(|kind| kind.kind)
                    .collect();
                json!({
                    "name": listener.name,
                    "attachedRoutes": listener.attached_routes,
                    "supportedKinds": kinds,
                    "conditions": show_conditions(&listener.conditions),
                })
            });
            shown["listeners"] = listeners.collect();
        }
        Status::Route(route) => {
            let parents = route.parents.iter().map(|parent| {
                json!({"parentRef": parent.parent_ref, "conditions": show_conditions(&parent.conditions)})
            });
            shown["parents"] = parents.collect();
        }
        Status::Policy(policy) => {
            let ancestors = policy.ancestors.iter().map(|ancestor| {
                json!({"ancestorRef": ancestor.ancestor_ref, "conditions": show_conditions(&ancestor.conditions)})
            });
            shown["ancestors"] = ancestors.collect();
        }
        Status::Plain(plain) => shown["conditions"] = show_conditions(&plain.conditions),
    }
    shown
}

fn show_conditions(conditions: &[Condition]) -> Value {
    conditions
        .iter()
        .map(|condition| {
            let generation = match condition.observed_generation {
                1 => String::new(),
                generation => format!(" @{generation}"),
            };
            Value::from(format!(
                "{}={:?}{generation} {}: {}",
                condition.kind, condition.status, condition.reason, condition.message
            ))
        })
        .collect()
}
