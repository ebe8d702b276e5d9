//! What a change costs among many routes. The figures are for people; what is asserted are ratios, which hold on any
//! machine: a change costs a small part of a translation from scratch.
//!
//! `cargo test --release -p gateway-user --test scale -- --ignored --nocapture`

use std::time::{Duration, Instant};

use gateway_user::allocate::{Allocations, allocate};
use gateway_user::file::merge::Files;
use gateway_user::file::watch::Watch;
use gateway_user::l7::router::{RequestView, Router};
use gateway_user::proxy::stats::Stats;
use gateway_user::proxy::{Proxy, ProxySettings};
use gateway_user::snapshot::{BindKey, Transport};
use gateway_user::status::merge;
use gateway_user::translate::{Context, Inputs, Object, Translation, Translator, translate};
use serde_json::{Value, json};

/// How many of each there are.
#[derive(Clone, Copy)]
struct Size {
    hosts: usize,
    routes_of_host: usize,
    endpoints_of_service: usize,
}

impl Size {
    fn routes(self) -> usize {
        self.hosts * self.routes_of_host
    }
}

fn parse(value: &Value) -> Object {
    Object::parse(value).expect("fine").expect("known")
}

fn route(size: Size, n: usize, path: &str) -> Object {
    let host = format!("host-{}.example.com", n % size.hosts);
    parse(
        &json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": format!("web-{n}"), "namespace": format!("ns-{}", n % 50)},
        "spec": {"parentRefs": [{"name": "g", "namespace": "edge"}], "hostnames": [host],
            "rules": [{"matches": [{"path": {"value": format!("/{path}-{n}")}}],
                "backendRefs": [{"name": format!("web-{n}"), "port": 80}]}]}}),
    )
}

fn slice(size: Size, n: usize, round: usize) -> Object {
    let endpoints: Vec<Value> = (0..size.endpoints_of_service)
        .map(|e| {
            let last = if e == 0 { round % 200 } else { 200 + e };
            json!({"addresses": [format!("10.{}.{}.{last}", n / 250, n % 250)], "conditions": {"ready": true}})
        })
        .collect();
    parse(
        &json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("web-{n}-1"), "namespace": format!("ns-{}", n % 50),
            "labels": {"kubernetes.io/service-name": format!("web-{n}")}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints}),
    )
}

fn inputs(size: Size) -> Inputs {
    let mut inputs = Inputs::default();
    inputs.insert(parse(
        &json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": {"name": "forebay"}, "spec": {"controllerName": "forebay.dev/gateway-controller"}}),
    ));
    // An address that this machine does not have: no socket is opened.
    inputs.insert(parse(
        &json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "g", "namespace": "edge"},
        "spec": {"gatewayClassName": "forebay", "addresses": [{"value": "192.0.2.1"}], "listeners": [
            {"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}]}}),
    ));
    for n in 0..size.routes() {
        let (name, namespace) = (format!("web-{n}"), format!("ns-{}", n % 50));
        inputs.insert(route(size, n, "api"));
        inputs.insert(slice(size, n, 0));
        inputs.insert(parse(&json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"ports": [{"name": "http", "port": 80}]}})));
        inputs.insert(parse(
            &json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"host": name, "trafficPolicy": {"loadBalancer": {"simple": "ROUND_ROBIN"}}}}),
        ));
    }
    inputs
}

/// Half and ninety-nine in a hundred of the samples are not above these.
struct Spread {
    half: Duration,
    most: Duration,
}

fn spread(mut samples: Vec<Duration>) -> Spread {
    samples.sort();
    Spread {
        half: samples[samples.len() / 2],
        most: samples[samples.len() * 99 / 100],
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:?}, p99 {:?}", self.half, self.most)
    }
}

/// A control plane with a proxy behind it.
struct Plane {
    size: Size,
    inputs: Inputs,
    allocations: Allocations,
    translator: Translator,
    proxy: Proxy,
}

impl Plane {
    fn new(size: Size) -> Self {
        let inputs = inputs(size);
        let settings = ProxySettings::default();
        let stats = Stats::new(settings.workers).into();
        let allocations = allocate(&inputs, false, &Allocations::default());
        let mut plane = Self {
            size,
            inputs,
            allocations,
            translator: Translator::default(),
            proxy: Proxy::start(settings, stats).expect("a proxy"),
        };
        plane.live();
        plane
    }

    /// From its own changed inputs to what is served.
    fn live(&mut self) -> Translation {
        let inputs = std::mem::take(&mut self.inputs);
        let translation = self.serve(&inputs);
        self.inputs = inputs;
        translation
    }

    /// From changed inputs to what is served.
    fn serve(&mut self, inputs: &Inputs) -> Translation {
        self.allocations = allocate(inputs, false, &self.allocations);
        let context = Context {
            on_cluster: false,
            allocations: &self.allocations,
            zone: None,
        };
        let translation = self.translator.translate(inputs, &context);
        self.proxy.publish(&translation.snapshot);
        translation
    }

    /// Times changes, one after the other; gives what is spent until it is served, and on statuses after that.
    fn time(&mut self, rounds: usize, change: impl Fn(Size, usize) -> Object) -> (Spread, Spread) {
        let mut served = Vec::new();
        let mut told = Vec::new();
        for round in 0..rounds {
            let object = change(self.size, round);
            let start = Instant::now();
            self.inputs.insert(object);
            let translation = self.live();
            served.push(start.elapsed());
            let start = Instant::now();
            let statuses = merge(&translation, &[]);
            told.push(start.elapsed());
            assert!(statuses.len() > self.size.routes());
            assert_eq!(translation.snapshot.rules.len(), self.size.routes());
        }
        (spread(served), spread(told))
    }

    fn scratch(&self) -> Duration {
        let context = Context {
            on_cluster: false,
            allocations: &self.allocations,
            zone: None,
        };
        let start = Instant::now();
        let translation = translate(&self.inputs, &context);
        let took = start.elapsed();
        assert_eq!(translation.snapshot.clusters.len(), self.size.routes());
        took
    }
}

/// Half of the changes at least are of routes whose hosts and places are far from each other.
fn far(size: Size, round: usize) -> usize {
    round * 997 % size.routes()
}

fn change_route(size: Size, round: usize) -> Object {
    route(size, far(size, round), &format!("v{round}"))
}

fn change_endpoint(size: Size, round: usize) -> Object {
    slice(size, far(size, round), round + 1)
}

fn pick(size: Size, router: &Router) -> Spread {
    let headers = http::HeaderMap::new();
    let requests: Vec<(String, String)> = (0..1_000)
        .map(|round| {
            let n = far(size, round);
            let host = format!("host-{}.example.com", n % size.hosts);
            (host, format!("/api-{n}/users/17"))
        })
        .collect();
    // Several times each, as the clock itself costs as much as a look.
    const TIMES: u32 = 20;
    let samples = requests.iter().map(|(host, path)| {
        let request = RequestView {
            host,
            path,
            query: None,
            method: "GET",
            headers: &headers,
        };
        let start = Instant::now();
        for _ in 0..TIMES {
            assert!(router.pick(std::hint::black_box(&request)).is_some());
        }
        start.elapsed() / TIMES
    });
    spread(samples.collect())
}

fn measure(size: Size, rounds: usize) -> (Duration, Spread, Spread) {
    let mut plane = Plane::new(size);
    let scratch = (0..3).map(|_| plane.scratch()).min();
    let scratch = scratch.expect("three of them");
    let first = plane.live();
    let bind = BindKey {
        transport: Transport::Tcp,
        address: "192.0.2.1".parse().expect("address"),
        port: 80,
    };
    let picked = pick(size, &first.snapshot.binds[&bind].listeners[0].router);
    let (endpoint, told) = plane.time(rounds, change_endpoint);
    println!("{} routes in {} hosts", size.routes(), size.hosts);
    println!("  match:               {picked}");
    println!("  from scratch:        {scratch:?} (translate alone)");
    println!("  one endpoint:        {endpoint}; statuses {told}");
    let (route, told) = plane.time(rounds, change_route);
    println!("  one route:           {route}; statuses {told}");
    (scratch, endpoint, route)
}

#[test]
fn a_change_costs_a_small_part_of_everything() {
    let size = Size {
        hosts: 50,
        routes_of_host: 20,
        endpoints_of_service: 4,
    };
    let (scratch, endpoint, route) = measure(size, 21);
    for (what, change) in [("endpoint", endpoint), ("route", route)] {
        // The half of them: what else the machine does meanwhile must decide nothing. It is a twentieth and less.
        assert!(
            change.half * 3 < scratch,
            "one {what} takes {change}, all take {scratch:?}"
        );
    }
}

#[test]
#[ignore = "measures; run it in release"]
fn five_thousand_routes() {
    let size = Size {
        hosts: 200,
        routes_of_host: 25,
        endpoints_of_service: 20,
    };
    measure(size, 500);
}

/// From a changed file to what is served, in a directory of that many files.
fn measure_files(size: Size, rounds: usize) -> (Duration, Spread) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let mut plane = Plane::new(size);
    let write = |name: &str, text: String| {
        std::fs::write(dir.path().join(name), text).expect("it can be written");
    };
    let gateway = include_str!("scale/gateway.yaml");
    write("gateway.yaml", gateway.to_owned());
    for n in 0..size.routes() {
        write(&format!("{n}.yaml"), manifests(size, n, 0));
    }
    let mut watch = Watch::new(dir.path());
    let mut files = Files::default();
    let mut live = |plane: &mut Plane| {
        let listing = runtime.block_on(watch.next());
        let changed = files.update(listing);
        if changed {
            let translation = plane.serve(&files.merged().inputs);
            assert_eq!(translation.snapshot.rules.len(), size.routes());
        }
        changed
    };
    let start = Instant::now();
    live(&mut plane);
    let first = start.elapsed();
    let mut samples = Vec::new();
    for round in 1..=rounds {
        // Later than what the last change belongs to: a change by itself is acted on at once.
        std::thread::park_timeout(Duration::from_millis(25));
        let n = far(size, round);
        let text = manifests(size, n, round);
        let start = Instant::now();
        write(&format!("{n}.yaml"), text);
        while !live(&mut plane) {}
        samples.push(start.elapsed());
    }
    (first, spread(samples))
}

fn manifests(size: Size, n: usize, round: usize) -> String {
    let addresses: Vec<String> = (0..size.endpoints_of_service)
        .map(|e| {
            let last = if e == 0 { round % 200 } else { 200 + e };
            format!("{{addresses: [10.{}.{}.{last}]}}", n / 250, n % 250)
        })
        .collect();
    include_str!("scale/route.yaml")
        .replace("NAME", &format!("web-{n}"))
        .replace("SPACE", &format!("ns-{}", n % 50))
        .replace("HOST", &format!("host-{}.example.com", n % size.hosts))
        .replace("ENDPOINTS", &addresses.join(", "))
}

#[test]
#[ignore = "measures; run it in release"]
fn five_thousand_files() {
    let size = Size {
        hosts: 200,
        routes_of_host: 25,
        endpoints_of_service: 20,
    };
    let (first, one) = measure_files(size, 199);
    println!("{} files: all {first:?}; one {one}", size.routes());
}

#[test]
fn a_changed_file_costs_a_small_part_of_all() {
    let size = Size {
        hosts: 50,
        routes_of_host: 10,
        endpoints_of_service: 4,
    };
    let (first, one) = measure_files(size, 11);
    println!("{} files: all {first:?}; one {one}", size.routes());
    assert!(
        one.half * 3 < first,
        "one file takes {one}, all take {first:?}"
    );
}
