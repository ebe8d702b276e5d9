//! Objects of Gateways.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::fake::Fake;
use super::statuses::identity;
use crate::k8s::gateway_objects::{GatewayObjects, Port, gateway_objects, has_all};
use crate::k8s::writer::{Desired, Writer};
use crate::snapshot::{ObjectKey, Transport};
use crate::translate::condition::{AddressStatus, GatewayStatus, ListenerStatus};
use crate::translate::{Condition, Inputs, Kind, Object};

const GATEWAY: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/a/gateways/gw";
const SERVICE: &str = "/api/v1/namespaces/a/services/gw-forebay";
const SLICE4: &str = "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices/gw-forebay-v4";
const SLICE6: &str = "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices/gw-forebay-v6";

fn objects(addresses: &[&str]) -> GatewayObjects {
    GatewayObjects {
        gateway: ObjectKey::new("a", "gw"),
        class: "forebay".into(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ports: vec![Port {
            name: "http-80".into(),
            port: 80,
            transport: Transport::Tcp,
        }],
        labels: BTreeMap::from([("key2".into(), "value2".into())]),
        annotations: BTreeMap::from([("key1".into(), "value1".into())]),
    }
}

fn want(writer: &Writer, gateways: Vec<GatewayObjects>) {
    writer.publish(Desired {
        gateways: Arc::new(gateways),
        ..Desired::default()
    });
}

async fn until(what: impl Fn() -> bool) {
    let poll = async {
        while !what() {
            tokio::time::sleep_until(Instant::now() + Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(300), poll)
        .await
        .expect("it becomes so");
}

async fn pass(seconds: u64) {
    tokio::time::sleep_until(Instant::now() + Duration::from_secs(seconds)).await;
}

fn started() -> (Fake, Writer) {
    let fake = Fake::default();
    fake.state().put(GATEWAY, json!({}));
    let writer = Writer::start(fake.client(), fake.seen(), &identity());
    (fake, writer)
}

fn endpoints(fake: &Fake, path: &str) -> Value {
    fake.state().objects[path]["endpoints"].clone()
}

fn ingress(fake: &Fake) -> Value {
    fake.state().status(SERVICE)["loadBalancer"]["ingress"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_gateway_has_a_service_and_slices() {
    let (fake, writer) = started();
    want(&writer, vec![objects(&["192.0.2.1", "2001:db8::1"])]);
    until(|| ingress(&fake).is_array()).await;
    pass(100).await;
    // A Service and its status, two slices; each looked for once, as somebody else may have one of that name.
    assert_eq!(fake.count(&Method::PATCH, ""), 4);
    let uid = fake.state().objects[GATEWAY]["metadata"]["uid"].clone();
    let service = fake.state().objects[SERVICE].clone();
    assert!(
        has_all(
            &service,
            &json!({
                "metadata": {
                    "labels": {"key2": "value2", "app.kubernetes.io/managed-by": "forebay",
                        "gateway.networking.k8s.io/gateway-name": "gw", "gateway.networking.k8s.io/gateway-class-name": "forebay"},
                    "annotations": {"key1": "value1"},
                    "ownerReferences": [{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "gw",
                        "uid": uid, "controller": true}],
                },
                "spec": {"type": "LoadBalancer", "loadBalancerClass": "forebay.dev/gateway", "allocateLoadBalancerNodePorts": false,
                    "ports": [{"name": "http-80", "port": 80, "targetPort": 80, "protocol": "TCP"}]},
            }),
            true
        ),
        "{service:#}"
    );
    assert!(service["spec"].get("selector").is_none());
    assert_eq!(
        ingress(&fake),
        json!([
            {"ip": "192.0.2.1", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]},
            {"ip": "2001:db8::1", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]}])
    );
    let slice = fake.state().objects[SLICE6].clone();
    assert_eq!(slice["addressType"], "IPv6");
    assert_eq!(
        slice["endpoints"],
        json!([{"addresses": ["2001:db8::1"], "conditions": {"ready": true}}])
    );
    assert_eq!(
        slice["metadata"]["labels"]["kubernetes.io/service-name"],
        "gw-forebay"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_or_edited_comes_back() {
    let (fake, writer) = started();
    want(&writer, vec![objects(&["192.0.2.1", "2001:db8::1"])]);
    until(|| ingress(&fake).is_array()).await;
    fake.state().delete(SERVICE);
    until(|| ingress(&fake).is_array()).await;
    let mut edited = fake.state().objects[SLICE4].clone();
    edited["endpoints"] = json!([{"addresses": ["203.0.113.9"]}, edited["endpoints"][0]]);
    fake.state().put(SLICE4, edited);
    until(|| endpoints(&fake, SLICE4).as_array().unwrap().len() == 1).await;
    let mut edited = fake.state().objects[SERVICE].clone();
    edited["metadata"]["labels"]["key2"] = "x".into();
    edited["status"] = json!({});
    fake.state().put(SERVICE, edited);
    until(|| ingress(&fake).is_array()).await;
    assert_eq!(
        fake.state().objects[SERVICE]["metadata"]["labels"]["key2"],
        "value2"
    );
}

#[tokio::test(start_paused = true)]
async fn what_has_no_address_or_is_not_ours_any_more_is_emptied() {
    let (fake, writer) = started();
    want(&writer, vec![objects(&["192.0.2.1", "2001:db8::1"])]);
    until(|| ingress(&fake).is_array()).await;
    want(&writer, vec![objects(&["192.0.2.2"])]);
    until(|| endpoints(&fake, SLICE6) == json!([])).await;
    until(|| ingress(&fake)[0]["ip"] == "192.0.2.2").await;
    want(&writer, vec![]);
    until(|| ingress(&fake).is_null()).await;
    pass(1).await;
    assert_eq!(
        (endpoints(&fake, SLICE4), endpoints(&fake, SLICE6)),
        (json!([]), json!([]))
    );
    let calls = fake.count(&Method::PATCH, "");
    pass(300).await;
    assert_eq!(fake.count(&Method::PATCH, ""), calls);
    // And ours again.
    want(&writer, vec![objects(&["192.0.2.2"])]);
    until(|| ingress(&fake).is_array()).await;
    assert_eq!(
        endpoints(&fake, SLICE4)[0]["addresses"],
        json!(["192.0.2.2"])
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_of_somebody_else_is_left_alone() {
    let (fake, writer) = started();
    let foreign = json!({"spec": {"type": "ClusterIP"}});
    fake.state().put(SERVICE, foreign);
    let before = fake.state().objects[SERVICE].clone();
    want(&writer, vec![objects(&["192.0.2.1"])]);
    pass(100).await;
    assert_eq!(fake.state().objects[SERVICE], before);
    assert_eq!(fake.count(&Method::PATCH, ""), 0);
    assert!(fake.count(&Method::GET, "gw-forebay") <= 5);
    fake.state().delete(SERVICE);
    until(|| ingress(&fake).is_array()).await;
}

#[tokio::test(start_paused = true)]
async fn what_belonged_to_a_deleted_gateway_of_this_name_is_awaited() {
    let (fake, writer) = started();
    want(&writer, vec![objects(&["192.0.2.1"])]);
    until(|| ingress(&fake).is_array()).await;
    fake.state().delete(GATEWAY);
    fake.state().put(GATEWAY, json!({}));
    pass(5).await;
    let uid = fake.state().objects[GATEWAY]["metadata"]["uid"].clone();
    let owner = || fake.state().objects[SERVICE]["metadata"]["ownerReferences"][0]["uid"].clone();
    assert_ne!(owner(), uid);
    // The garbage collector.
    for path in [SERVICE, SLICE4] {
        fake.state().delete(path);
    }
    until(|| ingress(&fake).is_array() && fake.state().objects.contains_key(SLICE4)).await;
    assert_eq!(owner(), uid);
}

#[tokio::test(start_paused = true)]
async fn without_addresses_nothing_is_made() {
    let (fake, writer) = started();
    want(&writer, vec![objects(&[])]);
    pass(200).await;
    assert_eq!(fake.count(&Method::PATCH, ""), 0);
}

#[test]
fn names_and_labels_are_short_and_valid() {
    let mut objects = objects(&["192.0.2.1"]);
    for (gateway, service) in [
        ("gw".to_owned(), Some("gw-forebay")),
        (
            "x".repeat(55),
            Some(&*format!("{}-forebay", "x".repeat(55))),
        ),
        ("x".repeat(56), None),
        ("a.b".to_owned(), None),
        ("1st".to_owned(), None),
        (format!("{}.{}", "y".repeat(62), "z".repeat(190)), None),
    ] {
        objects.gateway = ObjectKey::new("a", &*gateway);
        let name = objects.service_name();
        assert!(service.is_none_or(|service| service == name), "{name}");
        assert!(
            name.len() <= 63 && name.starts_with(|c: char| c.is_ascii_lowercase()),
            "{name}"
        );
        assert!(name.ends_with("-forebay") && !name.contains('.'), "{name}");
        let made = objects.service("u");
        let labels = made["metadata"]["labels"].as_object().unwrap();
        assert!(
            labels
                .values()
                .all(|value| value.as_str().unwrap().len() <= 63)
        );
    }
}

#[test]
fn what_a_gateway_needs_follows_from_its_status() {
    let object = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"namespace": "a", "name": "gw"},
        "spec": {"gatewayClassName": "c", "infrastructure": {"labels": {"l": "1"}, "annotations": {"a": "2"}},
            "listeners": [
                {"name": "one", "port": 443, "protocol": "HTTPS"}, {"name": "two", "port": 443, "protocol": "HTTPS"},
                {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "bad", "port": 9, "protocol": "ODD"}]}});
    let mut inputs = Inputs::default();
    inputs.insert(Object::parse(&object).unwrap().unwrap());
    let listener = |name: &str, port, transport, condition: Condition| ListenerStatus {
        name: name.into(),
        port,
        transport,
        conditions: vec![condition],
        ..ListenerStatus::default()
    };
    let yes = || Condition::yes("Accepted", "Accepted", "");
    let status = GatewayStatus {
        addresses: vec![AddressStatus("192.0.2.1".parse().unwrap())],
        listeners: vec![
            listener("one", 443, Transport::Tcp, yes()),
            listener("two", 443, Transport::Tcp, yes()),
            listener("dns", 53, Transport::Udp, yes()),
            listener(
                "bad",
                9,
                Transport::Tcp,
                Condition::no("Accepted", "UnsupportedProtocol", ""),
            ),
        ],
        ..GatewayStatus::default()
    };
    let status = crate::status::ObjectStatus {
        api_version: Kind::Gateway.api_version(),
        kind: Kind::Gateway,
        namespace: "a".into(),
        name: "gw".into(),
        status: crate::status::Status::Gateway(status),
    };
    let made = gateway_objects(&inputs, &[status]);
    let ports: Vec<String> = made[0]
        .ports
        .iter()
        .map(|p| format!("{} {} {:?}", p.name, p.port, p.transport))
        .collect();
    assert_eq!(
        ports,
        [
            "udp-53 53 Udp",
            "https-443 443 Tcp",
            "status-port 15021 Tcp"
        ]
    );
    assert_eq!(
        (
            made[0].labels["l"].as_str(),
            made[0].annotations["a"].as_str()
        ),
        ("1", "2")
    );
    assert_eq!(made[0].class, "c");
}
