//! What is asked of an API server that allows what Forebay needs and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::fake::Fake;
use super::rights::Rights;
use super::statuses::identity;
use crate::k8s::gateway_objects::{GatewayObjects, Port};
use crate::k8s::health::Health;
use crate::k8s::manager::Manager;
use crate::k8s::permissions::Permissions;
use crate::k8s::seen::Seen;
use crate::k8s::watcher::{Change, Scope, Told, Watched};
use crate::k8s::writer::{Desired, Identity, Writer};
use crate::k8s::{NodeReport, Remark};
use crate::snapshot::{ObjectKey, Transport};
use crate::status::{ObjectStatus, Status};
use crate::translate::{Condition, Kind, ObjectId};

fn plural(kind: Kind) -> String {
    let name = kind.as_str().to_lowercase();
    match name.strip_suffix("cy") {
        Some(stem) => format!("{stem}cies"),
        None if name.ends_with("ss") => format!("{name}es"),
        None => format!("{name}s"),
    }
}

/// Where an object of a kind is.
fn path(kind: Kind, namespace: &str, name: &str) -> String {
    let root = if kind.group().is_empty() {
        "api"
    } else {
        "apis"
    };
    let place = match kind.cluster_scoped() {
        true => String::new(),
        false => format!("/namespaces/{namespace}"),
    };
    let version = kind.api_version();
    format!("/{root}/{version}{place}/{}/{name}", plural(kind))
}

/// A server with all kinds, and an object of each in the namespaces `a`, `b` and `c`.
pub(super) fn server() -> Fake {
    let fake = Fake::default();
    let mut state = fake.state();
    state.put("/version", json!({"major": "1", "minor": "33"}));
    let mut groups = BTreeMap::<&str, Vec<Value>>::new();
    for kind in Kind::ALL {
        let resource = json!({"name": plural(*kind), "kind": kind.as_str(), "singularName": "",
            "namespaced": !kind.cluster_scoped(), "verbs": ["list", "watch"]});
        groups.entry(kind.api_version()).or_default().push(resource);
        for namespace in ["a", "b", "c"] {
            let name = if *kind == Kind::Namespace {
                namespace
            } else {
                "x"
            };
            state.put(&path(*kind, namespace, name), json!({"spec": {}}));
        }
    }
    let mut all = Vec::new();
    for (version, resources) in groups.into_iter().filter(|(version, _)| *version != "v1") {
        let (group, number) = version.split_once('/').unwrap();
        let version = json!({"groupVersion": version, "version": number});
        all.push(json!({"name": group, "versions": [version]}));
        let list = json!({"groupVersion": version["groupVersion"], "resources": resources});
        state.put(&format!("/apis/{group}/{number}"), list);
    }
    state.put("/apis", json!({ "groups": all }));
    state.put(&path(Kind::Node, "", "one"), json!({}));
    drop(state);
    fake
}

/// Everything that Forebay does at an API server, on a node that leads.
pub(super) struct All {
    pub(super) writer: Writer,
    pub(super) health: Health,
    pub(super) wanted: watch::Sender<BTreeSet<ObjectKey>>,
    told: mpsc::Receiver<Told>,
    /// What has been read.
    read: BTreeSet<ObjectId>,
    /// What is followed.
    watching: Vec<Watched>,
    /// What was last said.
    message: String,
}

impl All {
    pub(super) fn start(fake: &Fake, namespaces: &[&str]) -> Self {
        let namespaces: Vec<String> = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let seen = Seen::default();
        let permissions = Permissions::new(namespaces.clone());
        let health = Health::new(permissions.clone());
        let (told, receiver) = mpsc::channel(1024);
        let keys = ObjectKey::new("forebay-system", "forebay-keys");
        let certificates = namespaces.iter().map(|of| ObjectKey::new(&**of, "x"));
        let (wanted, of_manager) = watch::channel(certificates.chain([keys]).collect());
        let identity = Identity {
            permissions,
            ..identity()
        };
        let writer = Writer::start(fake.client(), seen.clone(), &identity);
        let manager = Manager {
            client: fake.client(),
            kinds: Kind::ALL,
            namespaces,
            wanted: of_manager,
            told,
            seen,
            health: health.clone(),
        };
        tokio::spawn(manager.run());
        Self {
            writer,
            health,
            wanted,
            told: receiver,
            read: BTreeSet::new(),
            watching: Vec::new(),
            message: String::new(),
        }
    }

    /// Says something new of each object of the namespaces, and of the node.
    pub(super) fn publish(&mut self, namespaces: &[&str], message: &str) {
        message.clone_into(&mut self.message);
        let condition = Condition::no("Accepted", "Invalid", message);
        let kinds = Kind::ALL
            .iter()
            .filter(|kind| crate::k8s::What::status_of(**kind).is_some());
        let mut statuses = Vec::new();
        for kind in kinds {
            let places = if kind.cluster_scoped() {
                &[""][..]
            } else {
                namespaces
            };
            statuses.extend(places.iter().map(|namespace| ObjectStatus {
                api_version: kind.api_version(),
                kind: *kind,
                namespace: (*namespace).into(),
                name: "x".into(),
                status: Status::Plain(Arc::new(vec![condition.clone()].into())),
            }));
        }
        let gateways = namespaces.iter().map(|namespace| GatewayObjects {
            gateway: ObjectKey::new(*namespace, "x"),
            class: "forebay".into(),
            addresses: vec![[192, 0, 2, 1].into()],
            ports: vec![Port {
                name: "http-80".into(),
                port: 80,
                transport: Transport::Tcp,
            }],
            labels: BTreeMap::from([("says".into(), message.replace(' ', "-"))]),
            annotations: BTreeMap::new(),
        });
        self.writer.publish(Desired {
            statuses: Arc::new(statuses),
            gateways: Arc::new(gateways.collect()),
        });
        self.writer.report(NodeReport {
            fingerprint: message.len() as u64,
            ..NodeReport::default()
        });
        self.writer.remark(Remark {
            reason: "NoNativeXDP",
            note: message.to_owned(),
        });
    }

    /// What has been read, and what the server has of what was last said.
    pub(super) fn done(&self, fake: &Fake) -> BTreeSet<String> {
        let state = fake.state();
        let label = self.message.replace(' ', "-");
        let written = state.objects.iter().filter_map(|(path, object)| {
            let says = |field: &str, text: &str| object[field].to_string().contains(text);
            if says("status", &self.message) {
                return Some(format!("status of {path}"));
            }
            let (folder, _) = path.rsplit_once('/')?;
            match folder.rsplit_once('/')?.1 {
                "events" if says("note", &self.message) => Some(format!("an Event in {folder}")),
                "services" | "endpointslices" if says("metadata", &label) => Some(path.clone()),
                "leases" => Some(path.clone()),
                "secrets" if path.ends_with("/forebay-keys") => Some(path.clone()),
                _ => None,
            }
        });
        let read = self.read.iter().map(|id| format!("{id} was read"));
        written.chain(read).collect()
    }

    /// Goes on for so long.
    pub(super) async fn pass(&mut self, seconds: u64) {
        let until = Instant::now() + Duration::from_secs(seconds);
        let read = async {
            while let Some(told) = self.told.recv().await {
                let changes = match told {
                    Told::Changes(changes) => changes,
                    Told::Watching(watching) => {
                        // What no watch follows is gone.
                        self.read
                            .retain(|id| watching.iter().any(|of| of.holds(id)));
                        self.watching = watching;
                        continue;
                    }
                    Told::Synced(_) => continue,
                };
                for change in changes {
                    match change {
                        Change::Is(object) => drop(self.read.insert(object.id())),
                        Change::Bad(id, _) => drop(self.read.insert(id)),
                        Change::Gone(id) => drop(self.read.remove(&id)),
                        Change::Addresses(..) => {}
                    }
                }
            }
        };
        assert!(
            timeout(until - Instant::now(), read).await.is_err(),
            "it goes on"
        );
    }
}

/// Services that Forebay has made.
fn made(fake: &Fake) -> Vec<String> {
    let state = fake.state();
    let paths = state.objects.keys();
    paths
        .filter(|path| path.ends_with("/services/x-forebay"))
        .cloned()
        .collect()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_outside_of_the_namespaces_that_are_read() {
    for (namespaces, written) in [(&["a", "b"][..], &["a", "b"][..]), (&[], &["a", "b", "c"])] {
        let fake = server();
        fake.state().rights = Some(Rights::of(namespaces, None));
        let mut all = All::start(&fake, namespaces);
        all.pass(5).await;
        all.publish(written, "the first");
        all.pass(70).await;
        let done = all.done(&fake);
        for kind in Kind::ALL {
            let has_status = crate::k8s::What::status_of(*kind).is_some();
            for namespace in written.iter().filter(|_| has_status) {
                let status = format!("status of {}", path(*kind, namespace, "x"));
                assert!(done.contains(&status), "{status} is not among {done:#?}");
            }
        }
        // Many Secrets: those of a namespace together.
        let many = (0..60).map(|n| ObjectKey::new(written[n % written.len()], format!("s{n}")));
        all.wanted.send_modify(|wanted| wanted.extend(many));
        all.publish(written, "the second one");
        all.pass(70).await;
        let state = fake.state();
        let refused = &state.rights.as_ref().unwrap().refused;
        assert!(refused.is_empty(), "{namespaces:?}: {refused:#?}");
        // Each kind has been read there, and nowhere else.
        let services: Vec<&str> = all
            .read
            .iter()
            .filter(|id| id.kind == Kind::Service && &*id.key.name == "x")
            .map(|id| &*id.key.namespace)
            .collect();
        assert_eq!(services, written);
        for kind in Kind::ALL {
            assert!(all.read.iter().any(|id| id.kind == *kind), "{kind}");
        }
        drop(state);
        let paths = written.iter().map(|n| path(Kind::Service, n, "x-forebay"));
        assert_eq!(made(&fake), paths.collect::<Vec<_>>());
        assert_eq!(all.health.errors(), 0);
    }
}

/// The labels of other namespaces decide nothing: of them nothing is read.
#[tokio::test(start_paused = true)]
async fn of_namespaces_only_those_that_are_read_are_followed() {
    let fake = server();
    let mut all = All::start(&fake, &["a", "b"]);
    all.pass(2).await;
    let names = |all: &All| -> Vec<String> {
        let read = all.read.iter().filter(|id| id.kind == Kind::Namespace);
        read.map(|id| id.key.name.to_string()).collect()
    };
    assert_eq!(names(&all), ["a", "b"]);
    fake.state().delete("/api/v1/namespaces/b");
    fake.state().put("/api/v1/namespaces/d", json!({}));
    all.pass(1).await;
    assert_eq!(names(&all), ["a"]);
}

/// One namespace whose Services may not be read holds up no other.
#[tokio::test(start_paused = true)]
async fn a_namespace_that_cannot_be_read_holds_up_no_other() {
    let fake = server();
    fake.hook(|_, method, path| {
        let services = path == "/api/v1/namespaces/b/services";
        (*method == http::Method::GET && services).then_some(403)
    });
    let mut all = All::start(&fake, &["a", "b"]);
    all.pass(2).await;
    all.publish(&["a", "b"], "the first");
    all.pass(30).await;
    assert_eq!(made(&fake), [path(Kind::Service, "a", "x-forebay")]);
    fake.no_hook();
    all.pass(120).await;
    assert_eq!(made(&fake).len(), 2);
}

/// With a Role in the namespace alone, up to fifty Secrets are followed one by one, more of them together; none is lost
/// meanwhile, and what is not named any more is not kept.
#[tokio::test(start_paused = true)]
async fn secrets_are_followed_one_by_one_up_to_fifty() {
    let fake = server();
    let names: Vec<String> = (0..60).map(|n| format!("s{n:02}")).collect();
    for name in &names {
        fake.state().put(&path(Kind::Secret, "a", name), json!({}));
    }
    fake.state().rights = Some(Rights::of(&["a"], None));
    let keys = ObjectKey::new("forebay-system", "forebay-keys");
    let mut all = All::start(&fake, &["a"]);
    for count in [50, 51, 50, 49] {
        let wanted = names[..count]
            .iter()
            .map(|name| ObjectKey::new("a", &**name));
        all.wanted
            .send_replace(wanted.chain([keys.clone()]).collect());
        all.pass(5).await;
        let scopes = all
            .watching
            .iter()
            .filter(|watched| watched.kind == Kind::Secret);
        let scopes: BTreeSet<Scope> = scopes.map(|watched| watched.scope.clone()).collect();
        let of_a = match count {
            51 => [Scope::Namespace("a".into())].into(),
            _ => {
                let keys = names[..count]
                    .iter()
                    .map(|name| ObjectKey::new("a", &**name));
                keys.map(Scope::One).collect::<BTreeSet<_>>()
            }
        };
        let own = Scope::One(keys.clone());
        assert_eq!(scopes, of_a.into_iter().chain([own]).collect(), "{count}");
        let read = names.iter().filter(|name| {
            let key = ObjectKey::new("a", &***name);
            let kind = Kind::Secret;
            all.read.contains(&ObjectId { kind, key })
        });
        // Of a namespace all are seen; those that nobody names decide nothing.
        assert_eq!(read.count(), if count == 51 { 60 } else { count });
    }
    assert!(fake.state().rights.as_ref().unwrap().refused.is_empty());
    assert_eq!(all.health.errors(), 0);
}
