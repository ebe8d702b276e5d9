//! What a [`Translator`] remembers must never show: after any history of changes it says the same as a translation from
//! scratch, and what a change does not touch stays the same object.

use std::sync::Arc;

use gateway_user::allocate::{Allocations, allocate};
use gateway_user::snapshot::ObjectKey;
use gateway_user::status::merge;
use gateway_user::translate::{
    Context, Inputs, Kind, Object, ObjectId, Translation, Translator, translate,
};
use proptest::prelude::*;
use proptest::test_runner::TestRng;
use serde_json::{Value, json};

/// Random choices; small numbers, so that objects meet.
struct Dice(TestRng);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    /// A namespace: half of all is in one, or objects would seldom meet.
    fn space(&mut self) -> &'static str {
        if self.one_in(2) {
            "a"
        } else {
            NAMESPACES[self.below(NAMESPACES.len())]
        }
    }

    fn some<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.below(most + 1);
        (0..count).map(|_| make(self)).collect()
    }
}

const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];
const NAMES: [&str; 3] = ["p", "q", "r"];
const HOSTS: [&str; 7] = [
    "x.com",
    "y.x.com",
    "z.y.x.com",
    "*.com",
    "*.x.com",
    "*.y.x.com",
    "bad_host",
];
const KINDS: [(&str, &str, usize); 14] = [
    ("gateway.networking.k8s.io/v1", "HTTPRoute", 14),
    ("gateway.networking.k8s.io/v1", "GRPCRoute", 5),
    ("gateway.networking.k8s.io/v1", "UDPRoute", 4),
    ("v1", "Service", 8),
    ("discovery.k8s.io/v1", "EndpointSlice", 10),
    ("networking.istio.io/v1", "DestinationRule", 6),
    ("gateway.networking.k8s.io/v1", "ReferenceGrant", 3),
    ("gateway.networking.k8s.io/v1", "Gateway", 2),
    ("gateway.networking.k8s.io/v1", "GatewayClass", 1),
    ("v1", "Namespace", 1),
    ("v1", "Secret", 2),
    ("forebay.dev/v1alpha1", "TrafficPolicy", 2),
    ("forebay.dev/v1alpha1", "AddressPool", 1),
    ("v1", "Node", 1),
];

fn kind(dice: &mut Dice) -> (&'static str, &'static str) {
    let all: usize = KINDS.iter().map(|kind| kind.2).sum();
    let mut at = dice.below(all);
    for (api_version, kind, weight) in KINDS {
        if at < weight {
            return (api_version, kind);
        }
        at -= weight;
    }
    unreachable!("the weights cover everything")
}

/// A manifest of a kind with a name of the pool and random contents.
fn manifest(dice: &mut Dice, (api_version, kind): (&str, &str)) -> Value {
    let mut namespace = dice.space();
    let mut name = dice.pick(&NAMES);
    let mut labels = json!({"team": dice.pick(&["red", "blue"])});
    match kind {
        "GatewayClass" => name = "forebay",
        "Namespace" | "Node" => name = dice.pick(&NAMESPACES),
        "Gateway" => {
            name = dice.pick(&["p", "q"]);
            namespace = "a";
        }
        "EndpointSlice" => {
            let ours = dice.one_in(8);
            if ours {
                namespace = "forebay-system";
            }
            let service = if ours { "forebay" } else { dice.pick(&NAMES) };
            labels["kubernetes.io/service-name"] = service.into();
        }
        _ => {}
    }
    let mut object = json!({"apiVersion": api_version, "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": labels,
            "annotations": {"forebay.dev/capacity": dice.pick(&["1", "7", "x"])}}});
    if dice.one_in(2) {
        let created = format!("202{}-01-01T00:00:00Z", dice.below(3));
        object["metadata"]["creationTimestamp"] = created.into();
    }
    if dice.one_in(3) {
        object["metadata"]["generation"] = dice.below(4).into();
    }
    fill(dice, kind, &mut object);
    object
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn fill(dice: &mut Dice, kind: &str, object: &mut Value) {
    match kind {
        "GatewayClass" => {
            let ours = if dice.one_in(12) {
                "else"
            } else {
                "forebay.dev/gateway-controller"
            };
            object["spec"] = json!({"controllerName": ours});
        }
        "Gateway" => object["spec"] = gateway(dice),
        "HTTPRoute" => object["spec"] = route(dice, http_rule),
        "GRPCRoute" => object["spec"] = route(dice, grpc_rule),
        "UDPRoute" => {
            object["spec"] = route(dice, |dice| json!({"backendRefs": dice.some(2, backend)}));
            object["spec"]
                .as_object_mut()
                .expect("object")
                .remove("hostnames");
        }
        "Service" => {
            let mut ports = dice.some(3, |dice| {
                json!({"name": dice.pick(&["http", "other", ""]), "port": 80 + dice.below(2),
                    "protocol": dice.pick(&["TCP", "TCP", "UDP"]),
                    "appProtocol": dice.pick(&["", "", "https", "kubernetes.io/h2c", "odd"])})
            });
            if !dice.one_in(5) {
                ports.insert(0, json!({"name": "http", "port": 80, "appProtocol": dice.pick(&["", "", "http"])}));
            }
            let kind = if dice.one_in(9) {
                "ExternalName"
            } else {
                "ClusterIP"
            };
            object["spec"] = json!({"type": kind, "ports": ports});
        }
        "EndpointSlice" => {
            object["addressType"] = "IPv4".into();
            object["ports"] = json!([{"name": dice.pick(&["http", "other", ""]), "port": 8080,
                "protocol": dice.pick(&["TCP", "TCP", "UDP"])}]);
            object["endpoints"] = dice.some(3, endpoint).into();
        }
        "DestinationRule" => object["spec"] = destination_rule(dice),
        "ReferenceGrant" => {
            let from = dice.some(3, |dice| {
                json!({"group": "gateway.networking.k8s.io", "namespace": dice.pick(&NAMESPACES),
                    "kind": dice.pick(&["HTTPRoute", "GRPCRoute", "UDPRoute", "Gateway"])})
            });
            let to = dice.some(2, |dice| {
                json!({"group": "", "kind": dice.pick(&["Service", "Service", "Secret"]),
                    "name": dice.pick(&["", "p", "q"])})
            });
            object["spec"] = json!({"from": from, "to": to});
        }
        "Secret" => {
            object["type"] = dice.pick(&["kubernetes.io/tls", "Opaque"]).into();
            object["stringData"] = json!({"ca.crt": dice.pick(&["nonsense", "other"])});
        }
        "TrafficPolicy" => {
            let target = |dice: &mut Dice| {
                let mut target = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": dice.pick(&["p", "q"])});
                if dice.one_in(2) {
                    target["sectionName"] = dice.pick(&["l0", "l1", "l2"]).into();
                }
                target
            };
            object["spec"] = json!({"targetRefs": dice.some(2, target),
                "sources": {"deny": [dice.pick(&["10.0.0.0/8", "192.0.2.0/24", "bad"])]}});
        }
        "AddressPool" => {
            object["spec"] = json!({"ranges": [dice.pick(&["198.51.100.0/24", "203.0.113.7-203.0.113.9"])],
                "announce": dice.pick(&["L2", "None"])});
        }
        _ => {}
    }
}

fn gateway(dice: &mut Dice) -> Value {
    let count = 1 + dice.below(3);
    let listeners: Vec<Value> = (0..count)
        .map(|at| {
            let protocol = dice.pick(&["HTTP", "HTTP", "HTTP", "UDP", "HTTPS"]);
            let mut listener = json!({"name": format!("l{at}"), "port": 80 + at - usize::from(at > 0 && dice.one_in(5)), "protocol": protocol,
                "allowedRoutes": {"namespaces": {"from": dice.pick(&["All", "All", "All", "All", "Same", "Selector"]),
                    "selector": {"matchLabels": {"team": "red"}}}}});
            if protocol != "UDP" && dice.one_in(4) {
                listener["hostname"] = dice.pick(&HOSTS).into();
            }
            if protocol == "HTTPS" {
                listener["tls"] = json!({"certificateRefs": [{"name": dice.pick(&NAMES), "namespace": dice.pick(&NAMESPACES)}]});
            }
            listener
        })
        .collect();
    let mut spec = json!({"gatewayClassName": dice.pick(&["forebay", "forebay", "forebay", "forebay", "forebay", "missing"]), "listeners": listeners});
    if dice.one_in(2) {
        spec["addresses"] = json!([{"value": dice.pick(&["192.0.2.1", "192.0.2.2", "10.0.0.1"])}]);
    }
    spec
}

fn route(dice: &mut Dice, rule: impl FnMut(&mut Dice) -> Value) -> Value {
    let parents = dice.some(3, |dice| {
        let mut parent = json!({"name": dice.pick(&["p", "q", "p", "q", "gone"]), "namespace": if dice.one_in(6) { "b" } else { "a" }});
        if dice.one_in(3) {
            parent["sectionName"] = dice.pick(&["l0", "l1"]).into();
        }
        parent
    });
    let good = HOSTS.len() - usize::from(!dice.one_in(9));
    let hosts = dice.some(2, |dice| dice.pick(&HOSTS[..good]));
    json!({"parentRefs": parents, "hostnames": hosts, "rules": dice.some(2, rule)})
}

fn backend(dice: &mut Dice) -> Value {
    let mut backend = json!({"name": dice.pick(&NAMES), "port": 80 + usize::from(dice.one_in(6)), "weight": dice.below(4)});
    if dice.one_in(3) {
        backend["namespace"] = dice.pick(&NAMESPACES).into();
    }
    backend
}

fn filters(dice: &mut Dice) -> Vec<Value> {
    if !dice.one_in(4) {
        return Vec::new();
    }
    let mut mirror = backend(dice);
    mirror.as_object_mut().expect("object").remove("weight");
    let mirror = json!({"type": "RequestMirror", "requestMirror": {"backendRef": mirror}});
    let unknown = json!({"type": "ExtensionRef"});
    vec![if dice.one_in(4) { unknown } else { mirror }]
}

fn http_rule(dice: &mut Dice) -> Value {
    let matches = dice.some(2, |dice| {
        json!({"path": {"type": dice.pick(&["Exact", "PathPrefix", "RegularExpression"]), "value": dice.pick(&["/a", "/a/b", "/"])}})
    });
    json!({"matches": matches, "backendRefs": dice.some(2, backend), "filters": filters(dice)})
}

fn grpc_rule(dice: &mut Dice) -> Value {
    let matches = dice.some(
        1,
        |dice| json!({"method": {"service": dice.pick(&["s.A", "s.B"])}}),
    );
    json!({"matches": matches, "backendRefs": dice.some(2, backend), "filters": filters(dice)})
}

fn endpoint(dice: &mut Dice) -> Value {
    let last = dice.below(4);
    let address = match dice.below(9) {
        0 => "192.0.2.1".to_owned(),
        1 => "no address".to_owned(),
        _ => format!("10.0.0.{last}"),
    };
    let mut endpoint = json!({"addresses": [address], "nodeName": dice.pick(&NAMESPACES),
        "conditions": {"ready": !dice.one_in(3), "serving": true, "terminating": dice.one_in(2)}});
    if dice.one_in(2) {
        endpoint["targetRef"] = json!({"uid": dice.pick(&NAMES)});
    }
    if dice.one_in(2) {
        endpoint["hints"] = json!({"forZones": [{"name": dice.pick(&["east", "west"])}]});
    }
    endpoint
}

fn destination_rule(dice: &mut Dice) -> Value {
    let host = match dice.below(5) {
        0 => "*".to_owned(),
        1 => format!("*.{}.svc.cluster.local", dice.pick(&NAMESPACES)),
        2 => dice.pick(&NAMES).to_owned(),
        _ => {
            let name = dice.pick(&NAMES);
            format!("{name}.{}.svc.cluster.local", dice.pick(&NAMESPACES))
        }
    };
    let mut spec =
        json!({"host": host, "exportTo": dice.some(1, |dice| dice.pick(&["*", ".", "a"]))});
    if !dice.one_in(4) {
        let balancer = dice.pick(&["ROUND_ROBIN", "RANDOM", "ODD", "LEAST_REQUEST"]);
        spec["trafficPolicy"] = json!({"loadBalancer": {"simple": balancer}});
        if dice.one_in(2) {
            spec["trafficPolicy"]["outlierDetection"] = json!({"maxEjectionPercent": 20});
        }
        if dice.one_in(4) {
            spec["trafficPolicy"]["tls"] = json!({"mode": dice.pick(&["SIMPLE", "DISABLE", "MUTUAL"]),
                "credentialName": dice.pick(&NAMES)});
        }
    }
    spec
}

/// Everything that a translation says, in one form.
fn told(translation: &Translation) -> (String, String, String) {
    let snapshot = translation.snapshot.canonical();
    (
        serde_json::to_string_pretty(&snapshot).expect("JSON"),
        format!("{:#?}", translation.conditions),
        serde_json::to_string(&merge(translation, &[])).expect("JSON"),
    )
}

/// What there is, and what was made of it.
struct World {
    inputs: Inputs,
    on_cluster: bool,
    zone: Option<&'static str>,
    allocations: Allocations,
    translator: Translator,
    ids: Vec<ObjectId>,
}

impl World {
    fn change(&mut self, dice: &mut Dice) -> String {
        if dice.one_in(40) {
            self.on_cluster = !self.on_cluster;
            return format!("on_cluster {}", self.on_cluster);
        }
        if dice.one_in(30) {
            self.zone = [None, Some("east"), Some("west")][dice.below(3)];
            return format!("zone {:?}", self.zone);
        }
        if dice.one_in(3) && !self.ids.is_empty() {
            let at = dice.below(self.ids.len());
            let first = matches!(self.ids[at].kind, Kind::Gateway | Kind::GatewayClass);
            if first && !dice.one_in(6) {
                return "nothing, as nothing would be left".to_owned();
            }
            let id = self.ids.swap_remove(at);
            self.inputs.remove(&id);
            return format!("without {id}");
        }
        let kind = kind(dice);
        let value = manifest(dice, kind);
        let object = Object::parse(&value).expect("readable").expect("known");
        let id = object.id();
        if !self.ids.contains(&id) {
            self.ids.push(id);
        }
        self.inputs.insert(object);
        value.to_string()
    }

    fn check(&mut self, history: &[String]) {
        self.allocations = allocate(&self.inputs, self.on_cluster, &self.allocations);
        let context = Context {
            on_cluster: self.on_cluster,
            allocations: &self.allocations,
            zone: self.zone,
        };
        let now = told(&self.translator.translate(&self.inputs, &context));
        let fresh = told(&translate(&self.inputs, &context));
        let last = history.len().saturating_sub(1);
        for (now, fresh) in [(&now.0, &fresh.0), (&now.1, &fresh.1), (&now.2, &fresh.2)] {
            if now != fresh {
                let differs = now.lines().zip(fresh.lines()).find(|(a, b)| a != b);
                panic!("{differs:#?}\nlast of {last}: {}", history[last]);
            }
        }
    }
}

fn history(seed: TestRng, steps: usize) {
    let mut dice = Dice(seed);
    let mut world = World {
        inputs: Inputs::default(),
        on_cluster: false,
        zone: None,
        allocations: Allocations::default(),
        translator: Translator::default(),
        ids: Vec::new(),
    };
    let mut history = Vec::new();
    // Something to begin with, or most of the history would be about nothing.
    for (api_version, kind, weight) in KINDS {
        for _ in 0..weight {
            let value = manifest(&mut dice, (api_version, kind));
            let object = Object::parse(&value).expect("readable").expect("known");
            if !world.ids.contains(&object.id()) {
                world.ids.push(object.id());
            }
            world.inputs.insert(object);
        }
    }
    for _ in 0..steps {
        let changes = 1 + usize::from(dice.one_in(4)) * dice.below(4);
        let changes: Vec<String> = (0..changes).map(|_| world.change(&mut dice)).collect();
        history.push(changes.join(" + "));
        world.check(&history);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn remembering_changes_nothing(seed in any::<[u8; 32]>()) {
        history(TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed), 40);
    }
}

fn parse(value: &Value) -> Object {
    Object::parse(value).expect("readable").expect("known")
}

/// Three routes on two hosts, each with a Service of its own.
fn small() -> Inputs {
    let mut inputs = Inputs::default();
    let gateway = "gateway.networking.k8s.io/v1";
    inputs.insert(parse(
        &json!({"apiVersion": gateway, "kind": "GatewayClass", "metadata": {"name": "forebay"},
        "spec": {"controllerName": "forebay.dev/gateway-controller"}}),
    ));
    inputs.insert(parse(&json!({"apiVersion": gateway, "kind": "Gateway", "metadata": {"name": "g"},
        "spec": {"gatewayClassName": "forebay", "addresses": [{"value": "192.0.2.1"}, {"value": "192.0.2.2"}],
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}, {"name": "other", "port": 81, "protocol": "HTTP"}]}})));
    for (name, host) in [("p", "x.com"), ("q", "x.com"), ("r", "y.com")] {
        inputs.insert(http(name, host, name));
        inputs.insert(parse(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}})));
        inputs.insert(slice(name, 1));
    }
    inputs
}

fn http(name: &str, host: &str, service: &str) -> Object {
    parse(
        &json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
        "spec": {"parentRefs": [{"name": "g", "sectionName": "http"}], "hostnames": [host], "rules": [
            {"matches": [{"path": {"value": format!("/{name}")}}], "backendRefs": [{"name": service, "port": 80}]}]}}),
    )
}

fn slice(service: &str, last: u8) -> Object {
    parse(
        &json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
        "ports": [{"port": 8080}], "endpoints": [{"addresses": [format!("10.0.0.{last}")]}]}),
    )
}

/// Names of the rules, clusters, statuses and binds that are not the same objects as before.
fn replaced(before: &Translation, now: &Translation) -> Vec<String> {
    let mut replaced = Vec::new();
    let (old, new) = (&before.snapshot, &now.snapshot);
    for (at, rule) in new.rules.places().iter().enumerate() {
        let known = old.rules.get(at);
        if let Some(rule) = rule
            && !known.is_some_and(|known| Arc::ptr_eq(known, rule))
        {
            replaced.push(format!("rule {}", rule.key));
        }
    }
    for (at, cluster) in new.clusters.places().iter().enumerate() {
        let known = old.clusters.get(at);
        if let Some(cluster) = cluster
            && !known.is_some_and(|known| Arc::ptr_eq(known, cluster))
        {
            replaced.push(format!("cluster {}", cluster.key));
        }
    }
    for (key, bind) in &new.binds {
        let known = old.binds.get(key);
        if !known.is_some_and(|known| Arc::ptr_eq(known, bind)) {
            replaced.push(format!("bind {key}"));
        }
    }
    for (key, status) in &*now.conditions.http_routes {
        let known = before.conditions.http_routes.get(key);
        if !known.is_some_and(|known| Arc::ptr_eq(known, status)) {
            replaced.push(format!("status {key}"));
        }
    }
    replaced
}

#[allow(clippy::too_many_lines, reason = "a table")]
#[test]
fn what_a_change_does_not_touch_stays_the_same_object() {
    let gone = |inputs: &mut Inputs, kind, name: &str| {
        let key = ObjectKey::new("default", name);
        assert!(inputs.remove(&ObjectId { kind, key }));
    };
    type Edit<'a> = &'a dyn Fn(&mut Inputs);
    let steps: [(&str, Edit<'_>, &[&str]); 7] = [
        ("nothing", &|_| {}, &[]),
        (
            "an endpoint",
            &|inputs| inputs.insert(slice("q", 2)),
            &["cluster default/q:80"],
        ),
        (
            "the same again",
            &|inputs| inputs.insert(slice("q", 2)),
            &[],
        ),
        (
            "a route elsewhere",
            &|inputs| inputs.insert(http("q", "x.com", "p")),
            // The cluster of q is gone.
            &[
                "rule default/q/rule/0",
                "bind 192.0.2.1:80",
                "bind 192.0.2.2:80",
            ],
        ),
        (
            "a route gone",
            &|inputs| gone(inputs, Kind::HttpRoute, "p"),
            &["bind 192.0.2.1:80", "bind 192.0.2.2:80"],
        ),
        (
            "a Service gone",
            &|inputs| gone(inputs, Kind::Service, "r"),
            // The route is made anew, and with it the table of its host.
            &[
                "rule default/r/rule/0",
                "bind 192.0.2.1:80",
                "bind 192.0.2.2:80",
                "status default/r",
            ],
        ),
        (
            "a new Gateway",
            &|inputs| {
                inputs.insert(parse(&json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                    "metadata": {"name": "h"}, "spec": {"gatewayClassName": "forebay", "listeners": []}})));
            },
            &[
                "bind 192.0.2.1:80",
                "bind 192.0.2.1:81",
                "bind 192.0.2.1:15021",
                "bind 192.0.2.2:80",
                "bind 192.0.2.2:81",
                "bind 192.0.2.2:15021",
            ],
        ),
    ];
    let mut inputs = small();
    let mut translator = Translator::default();
    let mut translate = |inputs: &Inputs| {
        let allocations = allocate(inputs, false, &Allocations::default());
        let context = Context {
            on_cluster: false,
            allocations: &allocations,
            zone: None,
        };
        translator.translate(inputs, &context)
    };
    let mut before = translate(&inputs);
    for (what, edit, want) in steps {
        edit(&mut inputs);
        let now = translate(&inputs);
        assert_eq!(replaced(&before, &now), want, "{what}");
        before = now;
    }
}
