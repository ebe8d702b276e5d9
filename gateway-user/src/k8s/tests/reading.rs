//! Watches against an API server in memory: what is passed on, and what is not.

use http::Method;
use kube::core::ApiResource;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::fake::Fake;
use crate::k8s::health::Health;
use crate::k8s::seen::Seen;
use crate::k8s::watcher::{Change, Follower, Memory, Scope, Told, Watched};
use crate::snapshot::ObjectKey;
use crate::translate::{Kind, ObjectId};

const GATEWAYS: &str = "/apis/gateway.networking.k8s.io/v1/gateways";

fn path(name: &str) -> String {
    format!("/apis/gateway.networking.k8s.io/v1/namespaces/a/gateways/{name}")
}

fn gateway(class: &str) -> Value {
    json!({"spec": {"gatewayClassName": class, "listeners": []}})
}

struct Reader {
    fake: Fake,
    seen: Seen,
    told: mpsc::Receiver<Told>,
    memory: Memory,
}

impl Reader {
    fn new() -> Self {
        Self {
            fake: Fake::default(),
            seen: Seen::default(),
            told: mpsc::channel(1).1,
            memory: Memory::default(),
        }
    }

    /// Begins to follow all Gateways; what ran before ends, as nobody listens to it.
    fn follow(&mut self, streaming: bool) {
        self.follow_in(Scope::All, streaming);
    }

    fn follow_in(&mut self, scope: Scope, streaming: bool) {
        let (told, receiver) = mpsc::channel(64);
        self.told = receiver;
        let follower = Follower {
            client: self.fake.client(),
            resource: ApiResource {
                group: "gateway.networking.k8s.io".into(),
                version: "v1".into(),
                api_version: "gateway.networking.k8s.io/v1".into(),
                kind: "Gateway".into(),
                plural: "gateways".into(),
            },
            watched: Watched {
                kind: Kind::Gateway,
                scope,
            },
            streaming,
            memory: self.memory.clone(),
            seen: self.seen.clone(),
            told,
            health: Health::default(),
        };
        tokio::spawn(follower.run());
    }

    /// Waits until it has asked for Gateways so often. What is told from then on is not missed.
    async fn asked(&self, times: usize) {
        for _ in 0..10_000 {
            if self.fake.count(&Method::GET, GATEWAYS) >= times {
                return;
            }
            tokio::time::advance(std::time::Duration::from_millis(1)).await;
        }
        panic!("it does not ask {times} times");
    }

    /// The next message in short.
    async fn next(&mut self) -> Vec<String> {
        match self.told.recv().await.expect("it goes on") {
            Told::Changes(changes) => changes.iter().map(shown).collect(),
            Told::Synced(watched) => vec![format!("synced {watched}")],
            Told::Watching(_) => panic!("a follower decides nothing"),
        }
    }
}

fn shown(change: &Change) -> String {
    match change {
        Change::Is(object) => format!("is {}", object.id()),
        Change::Gone(id) => format!("gone {id}"),
        Change::Bad(id, why) => format!("bad {id}: {why}"),
        Change::Addresses(key, addresses) => format!("addresses {key} {addresses:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_decides_a_translation_is_passed_on() {
    let mut reader = Reader::new();
    reader.fake.state().put(&path("x"), gateway("c"));
    reader.follow(false);
    assert_eq!(reader.next().await, ["is Gateway a/x"]);
    assert_eq!(reader.next().await, ["synced Gateways"]);
    reader.asked(2).await;
    let id = ObjectId {
        kind: Kind::Gateway,
        key: ObjectKey::new("a", "x"),
    };
    // A status is no change, but is seen.
    let mut with_status = gateway("c");
    with_status["status"] = json!({"conditions": []});
    reader.fake.state().put(&path("x"), with_status.clone());
    with_status["status"] = json!({"addresses": [{"type": "IPAddress", "value": "192.0.2.1"}]});
    reader.fake.state().put(&path("x"), with_status.clone());
    assert_eq!(reader.next().await, ["addresses a/x [192.0.2.1]"]);
    let status = reader.seen.get(&id).and_then(|known| known.status);
    assert_eq!(status.as_deref(), Some(&*with_status["status"].to_string()));
    with_status["spec"]["gatewayClassName"] = "d".into();
    reader.fake.state().put(&path("x"), with_status);
    assert_eq!(reader.next().await, ["is Gateway a/x"]);
    reader.fake.state().delete(&path("x"));
    assert_eq!(reader.next().await, ["gone Gateway a/x"]);
    assert_eq!(reader.seen.get(&id), None);
}

#[tokio::test(start_paused = true)]
async fn an_odd_object_costs_nothing_but_itself() {
    let mut reader = Reader::new();
    let odd = json!({"spec": {"gatewayClassName": 7, "listeners": {}}});
    reader.fake.state().put(&path("odd"), odd);
    reader.fake.state().put(&path("x"), gateway("c"));
    reader.follow(false);
    let told = reader.next().await;
    assert_eq!(told.len(), 2);
    assert!(
        told[0].starts_with("bad Gateway a/odd: field spec."),
        "{}",
        told[0]
    );
    assert_eq!(told[1], "is Gateway a/x");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_begins_anew_tells_the_difference() {
    let mut reader = Reader::new();
    for name in ["stays", "changes", "goes"] {
        reader.fake.state().put(&path(name), gateway("c"));
    }
    reader.follow(false);
    assert_eq!(reader.next().await.len(), 3);
    assert_eq!(reader.next().await, ["synced Gateways"]);
    reader.told.close();
    reader.fake.state().delete(&path("goes"));
    reader.fake.state().put(&path("changes"), gateway("d"));
    reader.fake.state().put(&path("comes"), gateway("c"));
    reader.follow(false);
    assert_eq!(
        reader.next().await,
        [
            "is Gateway a/changes",
            "is Gateway a/comes",
            "gone Gateway a/goes"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_takes_over_from_a_wider_one_tells_the_difference() {
    let mut reader = Reader::new();
    for name in ["other", "x"] {
        reader.fake.state().put(&path(name), gateway("c"));
    }
    reader.follow(false);
    assert_eq!(reader.next().await.len(), 2);
    reader.told.close();
    reader.fake.state().delete(&path("x"));
    let one = ObjectKey::new("a", "x");
    reader.follow_in(Scope::One(one), false);
    // The other one is not its business.
    assert_eq!(reader.next().await, ["gone Gateway a/x"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_streams_no_list_is_asked_for_one() {
    let mut reader = Reader::new();
    reader.fake.state().put(&path("x"), gateway("c"));
    let mut refused = 0;
    reader.fake.hook(move |_, method, path| {
        let first = method == Method::GET && path == GATEWAYS && refused == 0;
        refused += 1;
        first.then_some(422)
    });
    reader.follow(true);
    assert_eq!(reader.next().await, ["is Gateway a/x"]);
    assert_eq!(reader.next().await, ["synced Gateways"]);
    assert!(reader.fake.count(&Method::GET, GATEWAYS) >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_too_old_or_refused_for_a_while_goes_on() {
    for code in [410, 429, 500, 503] {
        let mut reader = Reader::new();
        reader.fake.state().put(&path("x"), gateway("c"));
        let mut asked = 0;
        reader.fake.hook(move |_, _, _| {
            asked += 1;
            // The list, then the watch three times.
            (2..=4).contains(&asked).then_some(code)
        });
        reader.follow(false);
        assert_eq!(reader.next().await, ["is Gateway a/x"], "{code}");
        assert_eq!(reader.next().await, ["synced Gateways"]);
        reader.asked(5).await;
        reader.fake.state().put(&path("x"), gateway("d"));
        assert_eq!(reader.next().await, ["is Gateway a/x"], "{code}");
    }
}
