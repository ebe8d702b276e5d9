//! How long translate takes for many routes. Ignored by default: a figure for people, not a test of timing.
//!
//! `cargo test --release -p gateway-user --test scale -- --ignored --nocapture`

use std::time::Instant;

use gateway_user::allocate::{Allocations, allocate};
use gateway_user::l7::router::RequestView;
use gateway_user::snapshot::BindKey;
use gateway_user::status::merge;
use gateway_user::translate::{Context, Inputs, Object, translate};
use serde_json::{Value, json};

const NAMESPACES: usize = 50;
const ROUTES: usize = 100;
const ENDPOINTS: usize = 20;

fn inputs() -> Inputs {
    let mut inputs = Inputs::default();
    let mut put =
        |value: Value| inputs.insert(Object::parse(&value).expect("fine").expect("known"));
    put(
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": {"name": "forebay"}, "spec": {"controllerName": "forebay.dev/gateway-controller"}}),
    );
    put(
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "g", "namespace": "edge"},
        "spec": {"gatewayClassName": "forebay", "addresses": [{"value": "192.0.2.1"}], "listeners": [
            {"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}]}}),
    );
    for n in 0..NAMESPACES {
        let namespace = format!("ns-{n}");
        for r in 0..ROUTES {
            let name = format!("web-{r}");
            put(
                json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"parentRefs": [{"name": "g", "namespace": "edge"}],
                    "hostnames": [format!("{name}.{namespace}.example.com")],
                    "rules": [{"matches": [{"path": {"value": "/api"}}], "backendRefs": [{"name": name, "port": 80}]}]}}),
            );
            put(json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"ports": [{"name": "http", "port": 80}]}}));
            let endpoints: Vec<Value> = (0..ENDPOINTS)
                .map(|e| json!({"addresses": [format!("10.{n}.{r}.{e}")], "conditions": {"ready": true}}))
                .collect();
            put(
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("{name}-1"), "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints}),
            );
            put(
                json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"host": name, "trafficPolicy": {"loadBalancer": {"simple": "ROUND_ROBIN"}}}}),
            );
        }
    }
    inputs
}

#[test]
#[ignore = "measures; run it in release"]
fn five_thousand_routes() {
    let inputs = inputs();
    let allocations = allocate(&inputs, false, &Allocations::default());
    let context = Context {
        on_cluster: true,
        allocations: &allocations,
        zone: None,
    };
    for _ in 0..5 {
        let start = Instant::now();
        let translation = translate(&inputs, &context);
        let translated = start.elapsed();
        let statuses = merge(&translation, &[]);
        let merged = start.elapsed() - translated;
        assert_eq!(translation.snapshot.rules.len(), NAMESPACES * ROUTES);
        assert_eq!(translation.snapshot.clusters.len(), NAMESPACES * ROUTES);
        let bind = BindKey {
            transport: gateway_user::snapshot::Transport::Tcp,
            address: "192.0.2.1".parse().expect("address"),
            port: 80,
        };
        let router = &translation.snapshot.binds[&bind].listeners[0].router;
        let headers = http::HeaderMap::new();
        let start = Instant::now();
        for r in 0..100_000usize {
            let host = format!("web-{}.ns-{}.example.com", r % ROUTES, r % NAMESPACES);
            let request = RequestView {
                host: &host,
                path: "/api/users/17",
                query: None,
                method: "GET",
                headers: &headers,
            };
            assert!(router.pick(&request).is_some());
        }
        let picked = start.elapsed() / 100_000;
        println!(
            "translate {translated:?}, merge {merged:?} ({} statuses), pick {picked:?} with the host's formatting",
            statuses.len()
        );
    }
}
