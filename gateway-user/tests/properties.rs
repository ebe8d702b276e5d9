//! Properties: what must hold for any input, checked against the simplest model that can be written down.

use std::sync::{Arc, LazyLock};

use gateway_user::allocate::{Allocations, allocate};
use gateway_user::l7::router::{Entry, RequestView, Router};
use gateway_user::snapshot::route::Pattern;
use gateway_user::snapshot::{Hostname, PathMatch, RouteMatch, ValueMatch};
use gateway_user::translate::condition::RouteStatus;
use gateway_user::translate::{Context, Inputs, Object, Truth, translate};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

/// The model: from the best entry to the last, everything spelled out; of hostnames the more specific one comes first.
fn scan(entries: &[Entry], request: &RequestView<'_>) -> Option<u32> {
    let mut entries: Vec<&Entry> = entries.iter().collect();
    entries.sort_by_key(|entry| (entry.hostname.is_none(), entry.hostname.clone()));
    let value = |want: &ValueMatch, got: &str| match want {
        ValueMatch::Exact(exact) => &**exact == got,
        ValueMatch::Regex(pattern) => pattern.0.is_match(got),
    };
    let found = entries.into_iter().find(|entry| {
        let host = match entry.hostname.as_ref().map(Hostname::as_str) {
            None => true,
            Some(name) => match name.strip_prefix('*') {
                None => name == request.host,
                Some(end) => request.host.len() > end.len() && request.host.ends_with(end),
            },
        };
        let matching = &entry.matching;
        let path = match &matching.path {
            PathMatch::Exact(path) => &**path == request.path,
            PathMatch::Prefix(prefix) => {
                request.path == &**prefix || request.path.starts_with(&format!("{prefix}/"))
            }
            PathMatch::Regex(pattern) => pattern.0.is_match(request.path),
        };
        let method = matching
            .method
            .as_deref()
            .is_none_or(|m| m == request.method);
        let headers = matching.headers.iter().all(|(name, want)| {
            let got = request.headers.get(&**name);
            got.is_some_and(|got| value(want, got.to_str().expect("text")))
        });
        let query = matching.query.iter().all(|(name, want)| {
            let pairs = request.query.unwrap_or("").split('&');
            let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            pairs
                .find(|(n, _)| *n == &**name)
                .is_some_and(|(_, got)| value(want, got))
        });
        host && path && method && headers && query
    });
    found.map(|entry| entry.rule)
}

/// Compiled once: compiling is by far the slowest part of a case.
static PATHS: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    // The last two are as GRPCRoutes make them: any service and a method, and services that share a prefix.
    let texts = [
        "/a(/.*)?",
        "/a/[ab]+",
        "/.*b",
        "(/ab)*",
        "/",
        "/[^/]+/b",
        "/(?:a|ab)/[^/]+",
    ];
    texts.into_iter().map(pattern).collect()
});
static VALUE: LazyLock<Pattern> = LazyLock::new(|| pattern("[12]"));

fn pattern(text: &str) -> Pattern {
    Pattern(regex::Regex::new(&format!("^(?:{text})$")).expect("valid"))
}

fn name() -> impl Strategy<Value = Option<Hostname>> {
    const NAMES: [&str; 7] = [
        "a.com",
        "b.a.com",
        "c.b.a.com",
        "*.com",
        "*.a.com",
        "*.b.a.com",
        "",
    ];
    prop::sample::select(&NAMES[..]).prop_map(Hostname::parse)
}

fn path() -> impl Strategy<Value = PathMatch> {
    let text = vec(prop::sample::select(&["a", "b", "ab"][..]), 0..4).prop_map(|parts| {
        parts
            .iter()
            .map(|part| format!("/{part}"))
            .collect::<String>()
    });
    (text, 0..10usize).prop_map(|(text, kind)| match kind {
        0 if text.is_empty() => PathMatch::Exact("/".into()),
        0 => PathMatch::Exact(text.into()),
        1..3 => PathMatch::Prefix(text.into()),
        _ => PathMatch::Regex(PATHS[kind - 3].clone()),
    })
}

fn value() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        prop::sample::select(&["1", "2", ""][..]).prop_map(|text| ValueMatch::Exact(text.into())),
        Just(ValueMatch::Regex(VALUE.clone())),
    ]
}

fn values() -> impl Strategy<Value = Vec<(Arc<str>, ValueMatch)>> {
    let one = (prop::sample::select(&["x", "y"][..]), value());
    vec(one.prop_map(|(name, value)| (Arc::from(name), value)), 0..2)
}

fn matching() -> impl Strategy<Value = RouteMatch> {
    let method = prop::option::weighted(0.2, prop::sample::select(&["GET", "POST"][..]));
    (path(), method, values(), values()).prop_map(|(path, method, headers, query)| RouteMatch {
        path,
        method: method.map(Arc::from),
        headers,
        query,
    })
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    vec((name(), matching()), 0..24).prop_map(|all| {
        let numbered = (0u32..).zip(all);
        let entries = numbered.map(|(rule, (hostname, matching))| Entry {
            hostname,
            matching: matching.into(),
            rule,
        });
        entries.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// Entries of a hostname in any order, not only in that of Gateway API: the lookup must honour whatever order it is given.
    #[test]
    fn router_equals_a_linear_scan(
        entries in entries(),
        host in prop::sample::select(&["a.com", "b.a.com", "c.b.a.com", "d.c.b.a.com", "com", ".com", ".a.com", "x..com", "", "org"][..]),
        path in "(/|(/(a|b|ab|é)){0,4}/{0,2})",
        method in prop::sample::select(&["GET", "POST"][..]),
        query in prop::option::of(prop::sample::select(&["x=1", "y=2&x=1", "x=2&x=1", "x", "x=&y=1", "z"][..])),
        headers in vec((prop::sample::select(&["x", "y"][..]), prop::sample::select(&["1", "2", "3"][..])), 0..3),
    ) {
        let mut map = http::HeaderMap::new();
        for (name, value) in headers {
            map.append(name, http::HeaderValue::from_static(value));
        }
        let request = RequestView { host, path: &path, query, method, headers: &map };
        let wanted = scan(&entries, &request);
        prop_assert_eq!(Router::compile(entries).pick(&request), wanted);
    }
}

/// A route of either kind: whether it is a GRPCRoute, its age, its hostnames.
type Claim = (bool, u8, Vec<&'static str>);

fn claims() -> impl Strategy<Value = Vec<Claim>> {
    const HOSTS: [&str; 7] = [
        "a.com",
        "b.a.com",
        "c.b.a.com",
        "*.com",
        "*.a.com",
        "*.b.a.com",
        "b.org",
    ];
    let hosts = vec(prop::sample::select(&HOSTS[..]), 0..3);
    vec((any::<bool>(), 0..3u8, hosts), 0..8)
}

fn kind_of(grpc: bool) -> &'static str {
    if grpc { "GRPCRoute" } else { "HTTPRoute" }
}

/// Whether each of the routes is accepted on a listener without a hostname.
fn accepted(claims: &[Claim]) -> Vec<bool> {
    let of = |kind: &str, name: String, metadata: Value, spec: Value| {
        let mut metadata = metadata;
        metadata["name"] = name.into();
        let object = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec});
        Object::parse(&object).expect("valid").expect("known")
    };
    let mut inputs = Inputs::default();
    inputs.insert(of(
        "GatewayClass",
        "c".into(),
        json!({}),
        json!({"controllerName": "forebay.dev/gateway-controller"}),
    ));
    inputs.insert(of(
        "Gateway",
        "g".into(),
        json!({}),
        json!({"gatewayClassName": "c", "addresses": [{"value": "192.0.2.1"}],
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}),
    ));
    for (at, (grpc, age, hosts)) in claims.iter().enumerate() {
        let metadata = json!({"creationTimestamp": format!("202{age}-01-01T00:00:00Z")});
        let spec = json!({"parentRefs": [{"name": "g"}], "hostnames": hosts, "rules": [{}]});
        inputs.insert(of(kind_of(*grpc), format!("r{at}"), metadata, spec));
    }
    let allocations = allocate(&inputs, false, &Allocations::default());
    let context = Context {
        on_cluster: false,
        allocations: &allocations,
        zone: None,
    };
    let conditions = translate(&inputs, &context).conditions;
    let yes = |status: &RouteStatus| status.parents[0].conditions[0].status == Truth::True;
    let routes = claims.iter().enumerate().map(|(at, (grpc, ..))| {
        let statuses = if *grpc {
            &conditions.grpc_routes
        } else {
            &conditions.http_routes
        };
        let status = statuses
            .iter()
            .find(|(key, _)| *key.name == *format!("r{at}"));
        yes(status.expect("each has a status").1)
    });
    routes.collect()
}

fn share(a: &[&str], b: &[&str]) -> bool {
    let parse = |name: &&str| Hostname::parse(name).expect("valid");
    let common = |a: &&str, b: &&str| parse(a).intersect(&parse(b)).is_some();
    a.is_empty() || b.is_empty() || a.iter().any(|a| b.iter().any(|b| common(a, b)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A route is refused exactly if an accepted one of the other kind, older or first by name, shares a hostname.
    #[test]
    fn of_two_kinds_with_a_common_hostname_the_older_is_accepted(claims in claims()) {
        let accepted = accepted(&claims);
        for (at, (grpc, age, hosts)) in claims.iter().enumerate() {
            let rival = claims.iter().enumerate().any(|(other, (kind, older, theirs))| {
                accepted[other]
                    && kind != grpc
                    && (older, other) < (age, at)
                    && share(hosts, theirs)
            });
            prop_assert_eq!(accepted[at], !rival, "route {} of {:?}", at, claims);
        }
    }
}
