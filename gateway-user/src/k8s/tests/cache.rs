//! What is kept on the node, and a start without an API server.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::fake::Fake;
use crate::k8s::cache::Cache;
use crate::k8s::health::Health;
use crate::k8s::permissions::Permissions;
use crate::k8s::seen::Seen;
use crate::k8s::source::Source;
use crate::k8s::store::Store;
use crate::k8s::watcher::{Change, Scope, Told, Watched};
use crate::k8s::writer::{Identity, Writer};
use crate::snapshot::ObjectKey;
use crate::translate::{Inputs, Kind, Object};

fn object(value: &Value) -> Change {
    Change::Is(Box::new(Object::parse(value).unwrap().unwrap()))
}

fn class() -> Change {
    object(
        &json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": {"name": "c"}, "spec": {"controllerName": "forebay.dev/gateway-controller"}}),
    )
}

fn gateway(name: &str) -> Change {
    object(
        &json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": name, "namespace": "a", "generation": 7},
        "spec": {"gatewayClassName": "c", "listeners": [{"name": "l", "port": 80, "protocol": "HTTP", "odd": 1}]}}),
    )
}

fn secret(namespace: &str, name: &str) -> Change {
    object(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
        "data": {"hash-seed": "AAECAwQFBgcICQoLDA0ODw==", "ticket-key": "VElDS0VU", "tls.key": "S0VZ"}}),
    )
}

fn store() -> Store {
    let mut store = Store::default();
    let address = Change::Addresses(ObjectKey::new("a", "gw"), vec![[192, 0, 2, 1].into()]);
    let secrets = [secret("a", "tls"), secret("forebay-system", "forebay-keys")];
    store.apply([class(), gateway("gw"), address].into());
    store.apply(secrets.into());
    store
}

fn shown(inputs: &Inputs) -> Vec<String> {
    inputs.iter().map(|o| o.to_value().to_string()).collect()
}

fn save(cache: &mut Cache, store: &Store) {
    cache.changed(Instant::now());
    cache.finish(store);
}

#[test]
fn what_is_saved_comes_back_without_private_keys() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = Cache::new(dir.path(), false);
    assert!(cache.load().is_none());
    save(&mut cache, &store());
    let back = cache.load().expect("it is there");
    assert_eq!(back.store.addresses(), store().addresses());
    let ids: Vec<String> = back
        .store
        .inputs()
        .iter()
        .map(|o| o.id().to_string())
        .collect();
    assert_eq!(
        ids,
        [
            "GatewayClass c",
            "Gateway a/gw",
            "Secret forebay-system/forebay-keys"
        ]
    );
    assert_eq!(
        shown(back.store.inputs())[..2],
        shown(store().inputs())[..2]
    );
    let file = std::fs::read_dir(dir.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let text = std::fs::read_to_string(file.path()).unwrap();
    assert!(text.contains("AAECAwQFBgcICQoLDA0ODw=="));
    assert!(
        !text.contains("VElDS0VU") && !text.contains("S0VZ"),
        "{text}"
    );

    let mut whole = Cache::new(dir.path(), true);
    save(&mut whole, &store());
    let back = whole.load().expect("it is there");
    assert_eq!(shown(back.store.inputs()), shown(store().inputs()));
}

#[test]
fn a_damaged_cache_is_not_used_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = Cache::new(dir.path(), false);
    save(&mut cache, &store());
    let path = std::fs::read_dir(dir.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let good = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let cut = &good[..good.len() - 9];
    let one_less = lines[..lines.len() - 1].join("\n");
    let other_format = good.replacen("\"format\":1", "\"format\":99", 1);
    let odd = good.replacen("\"kind\":\"Gateway\"", "\"kind\":\"Getaway\"", 1);
    for bad in ["", "{}", cut, &one_less, &other_format, &odd] {
        std::fs::write(&path, bad).unwrap();
        assert!(cache.load().is_none(), "{bad}");
    }
    std::fs::write(&path, &good).unwrap();
    assert!(cache.load().is_some());
}

fn gateways(inputs: &Inputs) -> Vec<String> {
    inputs.gateways.keys().map(ToString::to_string).collect()
}

fn watched(kind: Kind) -> Watched {
    Watched {
        kind,
        scope: Scope::All,
    }
}

fn start(fake: &Fake, cache: Cache) -> (mpsc::Sender<Told>, Source) {
    let identity = Identity {
        node: "a".into(),
        namespace: "forebay-system".into(),
        permissions: Permissions::default(),
    };
    let writer = Writer::start(fake.client(), Seen::default(), &identity);
    let (told, changes) = mpsc::channel(8);
    let (want, _) = watch::channel(BTreeSet::new());
    let source = Source::new(changes, want, Health::default(), writer, cache);
    (told, source)
}

#[tokio::test(start_paused = true)]
async fn a_start_without_an_api_server_serves_what_was_saved_until_all_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = Cache::new(dir.path(), false);
    save(&mut cache, &store());
    let fake = Fake::default();
    fake.hook(|_, _, _| Some(503));
    let (told, mut source) = start(&fake, cache);
    assert!(source.waits_for().is_some());
    source.next().await;
    assert_eq!(source.waits_for(), None);
    assert_eq!(gateways(source.inputs()), ["a/gw"]);
    assert!(source.addresses().contains_key(&ObjectKey::new("a", "gw")));
    let from_cache = source.meters().from_cache;
    assert!(from_cache.load(std::sync::atomic::Ordering::Relaxed));

    // A part of it changes nothing.
    let shared = Watched {
        kind: Kind::Secret,
        scope: Scope::One(ObjectKey::new("forebay-system", "forebay-keys")),
    };
    let list = vec![
        watched(Kind::GatewayClass),
        watched(Kind::Gateway),
        shared.clone(),
    ];
    told.send(Told::Watching(list)).await.unwrap();
    told.send(Told::Changes(vec![class(), gateway("new")]))
        .await
        .unwrap();
    told.send(Told::Synced(watched(Kind::GatewayClass)))
        .await
        .unwrap();
    let early = tokio::time::timeout(Duration::from_secs(60), source.next()).await;
    assert!(early.is_err());
    assert_eq!(gateways(source.inputs()), ["a/gw"]);

    told.send(Told::Synced(watched(Kind::Gateway)))
        .await
        .unwrap();
    told.send(Told::Synced(shared)).await.unwrap();
    source.next().await;
    assert_eq!(gateways(source.inputs()), ["a/new"]);
    assert!(source.addresses().is_empty());
    assert!(!from_cache.load(std::sync::atomic::Ordering::Relaxed));
    // That was a change, the look at the cache was none.
    for _ in 0..2 {
        source.is_live();
        assert!(applied(&source).contains("applied_count 1\n"));
    }
    // And is what the next start finds.
    source.stop().await;
    let back = Cache::new(dir.path(), false).load().expect("it is there");
    assert_eq!(gateways(back.store.inputs()), ["a/new"]);
}

/// The histogram of changes as text.
fn applied(source: &Source) -> String {
    let mut registry = Registry::default();
    registry.register("applied", "", source.meters().applied);
    let mut text = String::new();
    encode(&mut text, &registry).expect("a String takes all");
    text
}
