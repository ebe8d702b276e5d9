//! Follows the objects of one kind in one scope, and says what has changed of what decides a translation.
//!
//! An interrupted watch goes on where it was; one that cannot is read anew as a whole, and only the difference is passed on.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{Api, ObjectMeta};
use kube::core::{ApiResource, DynamicResourceScope};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Config, Event};
use kube::{Client, Resource};
use tokio::sync::mpsc;

use super::health::Health;
use super::raw::{Fingerprint, Item, Raw};
use super::seen::Seen;
use crate::snapshot::ObjectKey;
use crate::translate::{Kind, Object, ObjectId};

/// Whose objects are followed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Those of the whole cluster.
    All,
    /// Those of one namespace.
    Namespace(Arc<str>),
    /// One object.
    One(ObjectKey),
}

impl Scope {
    /// Where a kind that is in namespaces is followed: in those that are read; none: in all.
    #[must_use]
    pub fn of(namespaces: &[String]) -> BTreeSet<Self> {
        if namespaces.is_empty() {
            return [Self::All].into();
        }
        let namespaces = namespaces
            .iter()
            .map(|name| Self::Namespace(name.as_str().into()));
        namespaces.collect()
    }

    /// Whether an object of that name is one of these.
    #[must_use]
    pub fn holds(&self, key: &ObjectKey) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(namespace) => *key.namespace == **namespace,
            Self::One(one) => one == key,
        }
    }

    /// Asks for them and for nothing else; for one object with [`Self::config`].
    pub(super) fn api<K>(&self, client: Client, resource: &ApiResource) -> Api<K>
    where
        K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
    {
        let namespace = match self {
            Self::All => "",
            Self::Namespace(namespace) => namespace,
            Self::One(key) => &key.namespace,
        };
        match namespace {
            "" => Api::all_with(client, resource),
            namespace => Api::namespaced_with(client, namespace, resource),
        }
    }

    fn config(&self) -> Config {
        let config = Config::default().timeout(WATCH_TIMEOUT);
        match self {
            Self::One(key) => config.fields(&format!("metadata.name={}", key.name)),
            Self::All | Self::Namespace(_) => config,
        }
    }
}

/// What one watch follows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watched {
    /// The kind.
    pub kind: Kind,
    /// Whose.
    pub scope: Scope,
}

impl Watched {
    /// Whether it follows that object.
    #[must_use]
    pub fn holds(&self, id: &ObjectId) -> bool {
        self.kind == id.kind && self.scope.holds(&id.key)
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Scope::All => write!(f, "{}s", self.kind),
            Scope::Namespace(namespace) => write!(f, "{}s of namespace {namespace}", self.kind),
            Scope::One(key) => write!(f, "{} {key}", self.kind),
        }
    }
}

/// What has become of one object.
#[derive(Clone, Debug)]
pub enum Change {
    /// It is new, or different.
    Is(Box<Object>),
    /// It is gone.
    Gone(ObjectId),
    /// It cannot be read: what was last read of it stays. The sentence says why.
    Bad(ObjectId, String),
    /// The addresses that a Gateway's status names.
    Addresses(ObjectKey, Vec<IpAddr>),
}

/// What the control task is told.
#[derive(Clone, Debug)]
pub enum Told {
    /// Which watches there are; objects that are in none are gone.
    Watching(Vec<Watched>),
    /// Changes, together.
    Changes(Vec<Change>),
    /// Everything in it has been read at least once.
    Synced(Watched),
}

/// What has been passed on of each object of a kind. All watches of the kind share it, so that one which takes over from another
/// tells no more and no less than the difference. Clones share it too.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<HashMap<ObjectKey, Mark>>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Mark>> {
        // A panic elsewhere leaves whole entries behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all objects of which this is not true, and says which.
    pub(super) fn retain(&self, keep: impl Fn(&ObjectKey) -> bool) -> Vec<ObjectKey> {
        let mut memory = self.lock();
        let gone = memory.extract_if(|key, _| !keep(key));
        gone.map(|(key, _)| key).collect()
    }
}

/// One object as it was passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    fingerprint: Fingerprint,
    addresses: Box<[IpAddr]>,
}

/// One watch.
pub struct Follower {
    /// Who asks.
    pub client: Client,
    /// How the kind is served.
    pub resource: ApiResource,
    /// What is followed.
    pub watched: Watched,
    /// Whether the API server sends a first list as a stream.
    pub streaming: bool,
    /// What was passed on.
    pub memory: Memory,
    /// Where statuses go.
    pub seen: Seen,
    /// Where changes go.
    pub told: mpsc::Sender<Told>,
    /// How it goes.
    pub health: Health,
}

impl Follower {
    /// Follows until nobody listens any more.
    pub async fn run(mut self) {
        while !self.told.is_closed() {
            if self.follow().await.is_err() {
                return;
            }
            self.streaming = false;
        }
    }

    /// Follows as long as it makes sense to do so in this way.
    async fn follow(&self) -> Result<(), mpsc::error::SendError<Told>> {
        let scope = &self.watched.scope;
        let api = scope.api(self.client.clone(), &self.resource);
        let mut config = scope.config();
        if self.streaming {
            config = config.streaming_lists();
        }
        let stream = watcher::watcher(api, config).backoff(Pace::default());
        let mut stream = pin!(stream);
        let mut listed: Option<Listed> = None;
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    self.health.well(&self.watched);
                    self.take(event, &mut listed).await?;
                }
                Err(error) => {
                    if self.streaming && is_refused_stream(&error) {
                        return Ok(());
                    }
                    self.health.failed(&self.watched, &self.resource, &error);
                }
            }
        }
        Ok(())
    }

    async fn take(
        &self,
        event: Event<Raw>,
        listed: &mut Option<Listed>,
    ) -> Result<(), mpsc::error::SendError<Told>> {
        match event {
            Event::Init => *listed = Some(Listed::default()),
            Event::InitApply(raw) => {
                if let Some(listed) = listed {
                    let key = key(raw.meta());
                    let changes = self.apply(&key, raw);
                    listed.changes.extend(changes);
                    listed.keys.push(key);
                }
            }
            Event::InitDone => {
                let Listed { mut changes, keys } = listed.take().unwrap_or_default();
                changes.extend(self.forget_all_but(keys));
                self.told.send(Told::Changes(changes)).await?;
                self.told.send(Told::Synced(self.watched.clone())).await?;
            }
            Event::Apply(raw) => {
                let key = key(raw.meta());
                let changes = self.apply(&key, raw);
                if !changes.is_empty() {
                    self.told.send(Told::Changes(changes)).await?;
                }
            }
            Event::Delete(raw) => {
                let change = self.forget(key(raw.meta()));
                self.told.send(Told::Changes(vec![change])).await?;
            }
        }
        Ok(())
    }

    /// Notes an object; what of it has to be passed on.
    fn apply(&self, key: &ObjectKey, raw: Raw) -> Vec<Change> {
        let kind = self.watched.kind;
        let id = ObjectId {
            kind,
            key: key.clone(),
        };
        let item = raw.split(&self.resource);
        let mark = Mark {
            fingerprint: item.fingerprint(),
            addresses: item.addresses.clone().into(),
        };
        let before = self.memory.lock().insert(key.clone(), mark.clone());
        let before = before.unwrap_or_default();
        let mut changes = Vec::new();
        if kind == Kind::Gateway && before.addresses != mark.addresses {
            changes.push(Change::Addresses(key.clone(), item.addresses.clone()));
        }
        if before.fingerprint != mark.fingerprint {
            changes.extend(self.read(&id, &item));
        }
        if has_status(kind) {
            self.seen.set(id, Some(item.known));
        }
        changes
    }

    fn read(&self, id: &ObjectId, item: &Item) -> Option<Change> {
        match item.read() {
            Ok(Some(object)) => Some(Change::Is(Box::new(object))),
            // Of another kind than was asked for: nothing of ours.
            Ok(None) => None,
            Err(error) => Some(Change::Bad(
                id.clone(),
                format!("field {}: {}", error.field, error.message),
            )),
        }
    }

    fn forget(&self, key: ObjectKey) -> Change {
        self.memory.lock().remove(&key);
        let id = ObjectId {
            kind: self.watched.kind,
            key,
        };
        if has_status(id.kind) {
            self.seen.set(id.clone(), None);
        }
        Change::Gone(id)
    }

    fn forget_all_but(&self, keys: Vec<ObjectKey>) -> Vec<Change> {
        let keys: HashSet<ObjectKey> = keys.into_iter().collect();
        let scope = &self.watched.scope;
        let gone = self
            .memory
            .retain(|key| keys.contains(key) || !scope.holds(key));
        gone.into_iter().map(|key| self.forget(key)).collect()
    }
}

/// Seconds that a watch lasts at most, and with it the time until a connection that is dead is found out.
const WATCH_TIMEOUT: u32 = 60;

/// What has been read of a list so far.
#[derive(Default)]
struct Listed {
    changes: Vec<Change>,
    keys: Vec<ObjectKey>,
}

/// Kinds whose status Forebay writes.
fn has_status(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::GatewayClass
            | Kind::Gateway
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::UdpRoute
            | Kind::DestinationRule
            | Kind::AddressPool
            | Kind::TrafficPolicy
    )
}

fn key(meta: &ObjectMeta) -> ObjectKey {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    ObjectKey {
        namespace: text(&meta.namespace),
        name: text(&meta.name),
    }
}

/// An API server that does not know how to stream a list says that the request is invalid.
fn is_refused_stream(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status))
        if matches!(status.code, 400 | 422))
}

/// Pauses between attempts: short, since there are few that ask, and with chance, since all nodes do at once.
struct Pace(Duration);

/// Shortest and longest pause.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(800)];

impl Default for Pace {
    fn default() -> Self {
        Self(PAUSES[0])
    }
}

impl Iterator for Pace {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSES[1]);
        let mut byte = [0];
        // Without chance it is the middle.
        let chance = aws_lc_rs::rand::fill(&mut byte).map_or(128, |()| u32::from(byte[0]));
        Some(pause / 2 + pause * chance / 256)
    }
}

impl Backoff for Pace {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_holds_what_it_names() {
        let key = ObjectKey::new("a", "x");
        for (scope, want) in [
            (Scope::All, true),
            (Scope::Namespace("a".into()), true),
            (Scope::Namespace("b".into()), false),
            (Scope::One(key.clone()), true),
            (Scope::One(ObjectKey::new("a", "y")), false),
        ] {
            assert_eq!(scope.holds(&key), want, "{scope:?}");
        }
    }

    #[test]
    fn pauses_grow_to_their_limit_and_begin_anew() {
        let mut pace = Pace::default();
        let pauses: Vec<Duration> = pace.by_ref().take(8).collect();
        assert!(pauses[0] >= PAUSES[0] / 2 && pauses[0] <= PAUSES[0] * 3 / 2);
        let last = pauses[7];
        assert!(
            last >= PAUSES[1] / 2 && last <= PAUSES[1] * 3 / 2,
            "{last:?}"
        );
        pace.reset();
        assert!(pace.next().is_some_and(|pause| pause <= PAUSES[0] * 3 / 2));
    }
}
