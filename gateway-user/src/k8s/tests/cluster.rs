//! The writer against a real API server, such as that of `cargo xtask cluster up`:
//! `KUBECONFIG=… cargo test -p gateway-user --lib k8s::tests::cluster -- --ignored --nocapture`

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use super::statuses::identity;
use crate::allocate::{Allocation, Allocations};
use crate::k8s::cache::Cache;
use crate::k8s::health::Health;
use crate::k8s::manager::Manager;
use crate::k8s::seen::Seen;
use crate::k8s::source::Source;
use crate::k8s::writer::Writer;
use crate::k8s::{Counters, Outcome, What};
use crate::snapshot::ObjectKey;
use crate::status::merge;
use crate::translate::Kind;
use crate::translate::features::FEATURES;
use crate::translate::{Context, Translator};

const NAMESPACE: &str = "writer-test";

fn api(client: &kube::Client, object: &Value) -> Api<DynamicObject> {
    let version = object["apiVersion"].as_str().unwrap();
    let kind = object["kind"].as_str().unwrap();
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    let kind = kube::core::GroupVersionKind::gvk(group, version, kind);
    let resource = ApiResource::from_gvk(&kind);
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

async fn apply(client: &kube::Client, object: &Value) {
    let name = object["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply("test").force();
    let patch = Patch::Apply(object);
    api(client, object)
        .patch(name, &params, &patch)
        .await
        .unwrap();
}

async fn get(client: &kube::Client, object: &Value) -> Value {
    let name = object["metadata"]["name"].as_str().unwrap();
    match api(client, object).get_opt(name).await.unwrap() {
        Some(object) => serde_json::to_value(object).unwrap(),
        None => Value::Null,
    }
}

async fn until(
    what: &str,
    client: &kube::Client,
    object: &Value,
    is: impl Fn(&Value) -> bool,
) -> Value {
    let start = Instant::now();
    loop {
        let found = get(client, object).await;
        if is(&found) {
            return found;
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{what}: {found:#}"
        );
        tokio::time::sleep_until((Instant::now() + Duration::from_millis(20)).into()).await;
    }
}

fn gateway() -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "gw", "namespace": NAMESPACE},
        "spec": {"gatewayClassName": "writer-test",
            "infrastructure": {"labels": {"key2": "value2"}, "annotations": {"key1": "value1"}},
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}})
}

fn named(kind: &str, version: &str, name: &str) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}})
}

fn route(name: &str) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"parentRefs": [{"name": "gw"}], "hostnames": [format!("{name}.example.com")],
            "rules": [{"backendRefs": [{"name": "none", "port": 80}]}]}})
}

/// The control task in short.
async fn control(mut source: Source, stop: oneshot::Receiver<()>) {
    let gateway = ObjectKey::new(NAMESPACE, "gw");
    let addresses = ["192.0.2.10", "2001:db8::10"]
        .map(|a| a.parse().unwrap())
        .into();
    let allocation = Allocation {
        addresses,
        problem: None,
    };
    let allocations = Allocations {
        gateways: [(gateway, allocation)].into(),
    };
    let mut translator = Translator::default();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = source.next() => {}
            _ = &mut stop => return source.stop().await,
        }
        let context = Context {
            on_cluster: true,
            allocations: &allocations,
            zone: None,
        };
        let translation = translator.translate(source.inputs(), &context);
        source.publish(Arc::new(merge(&translation, &[])));
    }
}

async fn objects_follow(client: &kube::Client) {
    let service = named("Service", "v1", "gw-forebay");
    let has_ingress = |s: &Value| s["status"]["loadBalancer"]["ingress"].is_array();
    let made = until("the Service", client, &service, has_ingress).await;
    assert_eq!(
        made["status"]["loadBalancer"]["ingress"][1]["ipMode"],
        "Proxy"
    );
    for family in ["v4", "v6"] {
        let slice = named(
            "EndpointSlice",
            "discovery.k8s.io/v1",
            &format!("gw-forebay-{family}"),
        );
        until("the slice", client, &slice, |s| s["endpoints"].is_array()).await;
    }
    api(client, &service)
        .delete("gw-forebay", &DeleteParams::default())
        .await
        .unwrap();
    until("the Service again", client, &service, has_ingress).await;
    // What goes from the Gateway goes from its objects.
    let mut changed = gateway();
    changed["spec"]["infrastructure"] = json!({"labels": {"key3": "value3"}});
    changed["spec"]["listeners"].as_array_mut().unwrap().pop();
    apply(client, &changed).await;
    let is_new = |s: &Value| s["metadata"]["labels"]["key3"] == "value3" && has_ingress(s);
    let made = until("the Service changed", client, &service, is_new).await;
    assert!(made["metadata"]["labels"].get("key2").is_none());
    assert!(made["metadata"]["annotations"].get("key1").is_none());
    assert_eq!(
        made["spec"]["ports"].as_array().unwrap().len(),
        2,
        "{made:#}"
    );
    let two = |s: &Value| {
        s["status"]["loadBalancer"]["ingress"][0]["ports"]
            .as_array()
            .is_some_and(|p| p.len() == 2)
    };
    until("the Service's status", client, &service, two).await;
}

/// One after the other.
async fn many_routes(client: &kube::Client, counters: &Counters) {
    let before = counters.iter().collect::<Vec<_>>();
    println!("{before:?}");
    let start = Instant::now();
    for n in 0..1000 {
        apply(client, &route(&format!("r{n}"))).await;
    }
    let applied = Instant::now();
    let attached = |g: &Value| g["status"]["listeners"][0]["attachedRoutes"] == 1000;
    until("the routes", client, &gateway(), attached).await;
    let late = applied.elapsed();
    let last = until("the last route", client, &route("r999"), |r| {
        r["status"]["parents"].is_array()
    })
    .await;
    assert_eq!(last["status"]["parents"].as_array().unwrap().len(), 1);
    println!("applied in {:?}, attached {late:?} later", applied - start);
    println!("{:?}", counters.iter().collect::<Vec<_>>());
    assert!(late < Duration::from_secs(2), "{late:?}");
    let written = |what| counters.get(what, Outcome::Written);
    assert!(written(What::HttpRoute) <= 1000);
    assert!(written(What::HttpRoute) + written(What::Gateway) <= 1100);
}

/// Gives the class.
async fn prepare(client: &kube::Client) -> Value {
    for namespace in [NAMESPACE, "forebay-system"] {
        let object =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        apply(client, &object).await;
    }
    let class = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": {"name": "writer-test"}, "spec": {"controllerName": "forebay.dev/gateway-controller"}});
    apply(client, &class).await;
    apply(client, &gateway()).await;
    class
}

#[tokio::test]
#[ignore = "needs an API server with Gateway API's definitions"]
async fn a_real_api_server_takes_all_of_it() {
    drop(tracing_subscriber::fmt().with_test_writer().try_init());
    let client = kube::Client::try_default().await.unwrap();
    let class = prepare(&client).await;
    let seen = Seen::default();
    let (told, changes) = mpsc::channel(1024);
    let (want, wanted) = watch::channel(BTreeSet::new());
    let manager = Manager {
        client: client.clone(),
        kinds: Kind::ALL,
        namespaces: Vec::new(),
        wanted,
        told,
        seen: seen.clone(),
        health: Health::default(),
    };
    tokio::spawn(manager.run());
    let writer = Writer::start(client.clone(), seen, &identity());
    let counters = Arc::clone(writer.counters());
    let source = Source::new(
        changes,
        want,
        Health::default(),
        writer,
        Cache::new(&std::env::temp_dir(), false),
    );
    let (stop, stopped) = oneshot::channel();
    let control = tokio::spawn(control(source, stopped));

    let programmed = |g: &Value| {
        g["status"]["conditions"]
            .to_string()
            .contains("served on 192.0.2.10")
    };
    until("the Gateway", &client, &gateway(), programmed).await;
    let class = until("the class", &client, &class, |c| {
        c["status"]["supportedFeatures"].is_array()
    })
    .await;
    assert_eq!(class["status"]["supportedFeatures"], json!(FEATURES));
    objects_follow(&client).await;
    let settled = counters.get(What::Service, Outcome::Written);
    many_routes(&client, &counters).await;
    assert_eq!(counters.get(What::Service, Outcome::Written), settled);

    drop(stop);
    control.await.unwrap();
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "forebay-leader", "namespace": "forebay-system"}});
    let lease = get(&client, &lease).await;
    assert_eq!(
        lease["spec"]
            .get("holderIdentity")
            .and_then(Value::as_str)
            .unwrap_or(""),
        ""
    );
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    api(&client, &namespace)
        .delete(NAMESPACE, &DeleteParams::default())
        .await
        .unwrap();
}
