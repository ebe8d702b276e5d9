//! Makes the objects of Gateways and keeps them as they should be, while this node leads.
//!
//! What is there is watched by Forebay's label, in the namespaces that are read, in this task only and only while it leads. An object of the same name that
//! the Gateway does not own is never touched. Nothing is deleted: objects go with their Gateway.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{StreamExt, select_all};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::access::{Access, Failure, Target, What};
use super::ensure::{Actual, Ensure, Part};
use super::gateway_objects::{GatewayObjects, MANAGED_BY};
use super::lease::Leadership;
use super::pace::{Outage, Pace};
use super::queue::Queue;
use super::seen::Seen;
use super::watcher::Scope;
use crate::snapshot::ObjectKey;
use crate::translate::{Kind, ObjectId};

/// Most Gateways whose objects are written at a time.
const MOST: usize = 8;
/// Between two looks at everything.
const EVERYTHING: Duration = Duration::from_secs(60);
/// How long to wait for a Gateway that is not seen yet.
const UNSEEN: Duration = Duration::from_secs(1);
/// How long a Gateway waits whose objects are refused or forbidden.
const REFUSED: Duration = Duration::from_secs(30);

/// What is seen of one watch.
type Event = watcher::Result<watcher::Event<DynamicObject>>;

/// What Gateways need.
pub(super) type Wanted = Arc<Vec<GatewayObjects>>;

#[derive(Default)]
struct Memo {
    pace: Pace,
    refused: Option<String>,
}

struct Done {
    gateway: ObjectKey,
    written: Vec<(Part, Value)>,
    result: Result<(), Failure>,
}

/// The task.
pub(super) struct Engine {
    access: Access,
    seen: Seen,
    /// Where objects are watched; none of them holds what another one does.
    scopes: BTreeSet<Scope>,
    wanted: BTreeMap<ObjectKey, GatewayObjects>,
    /// What is there.
    store: BTreeMap<(Part, ObjectKey), Value>,
    memos: HashMap<ObjectKey, Memo>,
    queue: Queue<ObjectKey>,
    jobs: JoinSet<Done>,
    outage: Outage,
    look: Instant,
    /// What has been listed.
    listed: BTreeSet<(Part, Scope)>,
}

impl Engine {
    pub(super) fn new(access: Access, seen: Seen, scopes: BTreeSet<Scope>) -> Self {
        Self {
            access,
            seen,
            scopes,
            wanted: BTreeMap::new(),
            store: BTreeMap::new(),
            memos: HashMap::new(),
            queue: Queue::default(),
            jobs: JoinSet::new(),
            outage: Outage::default(),
            look: Instant::now(),
            listed: BTreeSet::new(),
        }
    }

    /// Works until it is dropped.
    pub(super) async fn run(
        self,
        mut wanted: watch::Receiver<Option<Wanted>>,
        mut leadership: Leadership,
    ) {
        let Self {
            access,
            seen,
            scopes,
            ..
        } = self;
        loop {
            leadership.becomes(true).await;
            let mut engine = Self::new(access.clone(), seen.clone(), scopes.clone());
            tokio::select! {
                () = leadership.becomes(false) => {}
                () = engine.lead(&mut wanted) => return,
            }
        }
    }

    async fn lead(&mut self, wanted: &mut watch::Receiver<Option<Wanted>>) {
        if wanted.wait_for(Option::is_some).await.is_err() {
            return;
        }
        // Before anything is looked at: what is not in the list would be emptied.
        let newest = wanted.borrow_and_update().clone().unwrap_or_default();
        self.take(&newest);
        let parts = |scope| Part::ALL.map(|part| self.watch(part, scope).boxed());
        let mut events = select_all(self.scopes.iter().flat_map(parts));
        loop {
            let next = self.next();
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let newest = wanted.borrow_and_update().clone().unwrap_or_default();
                    self.take(&newest);
                }
                Some((part, scope, event)) = events.next() => self.note(part, &scope, event),
                Some(done) = self.jobs.join_next() => if let Ok(done) = done {
                    self.finish(done);
                },
                () = tokio::time::sleep_until(next) => {}
            }
            self.work();
        }
    }

    fn watch(
        &self,
        part: Part,
        scope: &Scope,
    ) -> impl futures_util::Stream<Item = (Part, Scope, Event)> + use<> {
        let scope = scope.clone();
        let api = scope.api(self.access.client().clone(), &part.resource());
        let ours = format!("{}={}", MANAGED_BY.0, MANAGED_BY.1);
        let config = watcher::Config::default().labels(&ours);
        watcher(api, config)
            .default_backoff()
            .map(move |event| (part, scope.clone(), event))
    }

    fn next(&self) -> Instant {
        if self.jobs.len() >= self.outage.most(MOST) {
            return Instant::now() + EVERYTHING;
        }
        let next = match self.queue.has_ready() {
            true => Instant::now(),
            false => self
                .queue
                .next_due()
                .map_or(self.look, |due| due.min(self.look)),
        };
        self.outage.until().map_or(next, |until| next.max(until))
    }

    fn take(&mut self, newest: &[GatewayObjects]) {
        let now = Instant::now();
        let newest = newest
            .iter()
            .map(|objects| (objects.gateway.clone(), objects.clone()));
        let newest: BTreeMap<ObjectKey, GatewayObjects> = newest.collect();
        for (gateway, objects) in &newest {
            if self.wanted.get(gateway) != Some(objects) {
                self.queue.push(gateway.clone(), now, now);
            }
        }
        for gateway in self
            .wanted
            .keys()
            .filter(|gateway| !newest.contains_key(*gateway))
        {
            self.queue.push(gateway.clone(), now, now);
        }
        self.wanted = newest;
    }

    /// Takes what was seen of an object.
    fn note(&mut self, part: Part, scope: &Scope, event: Event) {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        match event {
            Ok(Init) => self
                .store
                .retain(|(of, key), _| *of != part || !scope.holds(key)),
            Ok(Apply(object) | InitApply(object)) => self.set(part, &object, true),
            Ok(Delete(object)) => self.set(part, &object, false),
            Ok(InitDone) => {
                self.listed.insert((part, scope.clone()));
                self.look = Instant::now();
            }
            Err(error) => {
                let namespace = match scope {
                    Scope::Namespace(namespace) => namespace,
                    Scope::All | Scope::One(_) => "",
                };
                let failure = self.access.judge(
                    &Target {
                        what: part.what(),
                        resource: &part.resource(),
                        part: "",
                        namespace,
                        verb: "list",
                    },
                    error,
                );
                tracing::debug!(
                    "{} of Forebay's Gateways are not watched: {failure}",
                    part.resource().plural
                );
            }
        }
    }

    fn set(&mut self, part: Part, object: &DynamicObject, there: bool) {
        let now = Instant::now();
        let namespace = object.metadata.namespace.as_deref().unwrap_or("");
        let name = object.metadata.name.as_deref().unwrap_or("");
        let key = (part, ObjectKey::new(namespace, name));
        let owners = object.metadata.owner_references.iter().flatten();
        let gateways: Vec<ObjectKey> = owners
            .filter(|owner| owner.kind == "Gateway")
            .map(|owner| ObjectKey::new(namespace, &*owner.name))
            .collect();
        let before = match there.then(|| part.pruned(object)) {
            Some(value) => self.store.insert(key, value),
            None => self.store.remove(&key),
        };
        // An owner that somebody took away.
        let owner_before = before
            .as_ref()
            .and_then(|before| super::ensure::owner(before));
        let owner_before = owner_before.map(|(name, _)| ObjectKey::new(namespace, name));
        for gateway in gateways.into_iter().chain(owner_before) {
            self.queue.push(gateway, now, now);
        }
    }

    fn work(&mut self) {
        let now = Instant::now();
        if self.look <= now {
            self.look = now + EVERYTHING;
            let owners = self.store.iter().filter_map(|((_, key), object)| {
                let (name, _) = super::ensure::owner(object)?;
                Some(ObjectKey::new(&*key.namespace, name))
            });
            for gateway in owners.chain(self.wanted.keys().cloned()) {
                self.queue.push(gateway, now, now);
            }
        }
        while self.jobs.len() < self.outage.most(MOST) && self.outage.over(now) {
            let Some(gateway) = self.queue.pop(now) else {
                return;
            };
            if !self.begin(&gateway, now) {
                self.queue.done(&gateway, now);
            }
        }
    }

    /// Whether it is known what there is in the Gateway's namespace.
    fn is_listed(&self, gateway: &ObjectKey) -> bool {
        let listed = self.listed.iter().filter(|(_, scope)| scope.holds(gateway));
        listed.count() == Part::ALL.len()
    }

    /// Compares the objects of one Gateway and begins to write if something differs.
    fn begin(&mut self, gateway: &ObjectKey, now: Instant) -> bool {
        let id = ObjectId {
            kind: Kind::Gateway,
            key: gateway.clone(),
        };
        if !self.is_listed(gateway) {
            // Everything is looked at when it has been.
            return false;
        }
        let wanted = self.wanted.get(gateway);
        let Some(known) = self.seen.get(&id) else {
            if wanted.is_some() {
                self.queue.push(gateway.clone(), now + UNSEEN, now);
            }
            return false;
        };
        let objects = wanted.cloned().unwrap_or_else(|| GatewayObjects {
            gateway: gateway.clone(),
            class: String::new(),
            addresses: Vec::new(),
            ports: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        });
        let ensure = Ensure {
            access: self.access.clone(),
            retired: wanted.is_none(),
            actual: Actual::of(&objects, &self.store),
            objects,
            uid: known.uid,
        };
        if !ensure.differs() {
            return false;
        }
        let memo = self.memos.entry(gateway.clone()).or_default();
        let at = memo.pace.next(now, false, true);
        if at > now {
            self.queue.push(gateway.clone(), at, now);
            return false;
        }
        memo.pace.wrote(now, true);
        let gateway = gateway.clone();
        self.jobs.spawn(async move {
            let (written, result) = ensure.run().await;
            Done {
                gateway,
                written,
                result,
            }
        });
        true
    }

    fn finish(&mut self, done: Done) {
        let now = Instant::now();
        self.queue.done(&done.gateway, now);
        for (part, object) in done.written {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_owned();
            let key = (part, ObjectKey::new(text("namespace"), text("name")));
            let newer = |before: &Value| version(&object) > version(before);
            if self.store.get(&key).is_none_or(newer) {
                self.store.insert(key, object);
            }
        }
        let memo = self.memos.entry(done.gateway.clone()).or_default();
        if !matches!(done.result, Err(Failure::Unavailable(_))) {
            self.outage.over_now();
        }
        match done.result {
            Ok(()) => memo.refused = None,
            Err(Failure::Unavailable(why)) => {
                self.outage
                    .failed(now, "objects of Gateways are written", &why);
                self.queue.push(done.gateway, now, now);
            }
            Err(Failure::Conflict(_) | Failure::Gone) => {
                let at = memo.pace.failed(now);
                self.queue.push(done.gateway, at, now);
            }
            Err(failure) => {
                let why = failure.to_string();
                if failure != Failure::Forbidden && memo.refused.as_ref() != Some(&why) {
                    tracing::error!("objects of Gateway {}: {why}", done.gateway);
                    memo.refused = Some(why);
                }
                memo.pace.not_before(now + REFUSED);
                self.queue.push(done.gateway, now + REFUSED, now);
            }
        }
    }
}

fn version(object: &Value) -> u128 {
    let version = object["metadata"]["resourceVersion"].as_str();
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

impl Part {
    const ALL: [Self; 2] = [Self::Service, Self::Slice];

    fn pruned(self, object: &DynamicObject) -> Value {
        let mut value = serde_json::to_value(object).unwrap_or_default();
        if let Some(metadata) = value["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        value
    }

    pub(super) fn what(self) -> What {
        match self {
            Self::Service => What::Service,
            Self::Slice => What::EndpointSlice,
        }
    }

    pub(super) fn resource(self) -> ApiResource {
        use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
        match self {
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::Slice => ApiResource::erase::<EndpointSlice>(&()),
        }
    }
}
