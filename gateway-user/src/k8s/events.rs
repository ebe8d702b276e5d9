//! Writes Events: what of an object has turned bad, or good again, and what a node has to say about itself.
//!
//! What has turned is known from the status that was written and the one it was written over: only one node writes a status
//! at a time, so each turn is told once, and after a restart nothing is repeated. Events are remarks: what does not fit into
//! the queue, or is not written before the process ends, is lost.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::core::ApiResource;
use kube::core::params::{Patch, PatchParams};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::access::{Access, Failure, MANAGER, Target, What, by_us, path};
use super::pace::Outage;
use super::queue::Queue;
use super::seen::Known;
use super::status_write::parsed;
use crate::status::turns::{Said, State, changes, parts};
use crate::translate::{CONTROLLER, ObjectId};

/// Statuses that may wait to be looked at.
const WAITING: usize = 1024;
/// Most Events that may wait to be written, and most that are remembered.
const MOST: usize = 2048;
/// Before a turn is told: what turns back meanwhile was none.
const HOLD: Duration = Duration::from_secs(2);
/// Between two Events about the same condition.
const SAME: Duration = Duration::from_secs(60);
/// Between two writes of the same Event.
const AGAIN: Duration = Duration::from_secs(300);
/// Between any two writes.
const GAP: Duration = Duration::from_millis(100);
/// How long nothing is written when a rule is missing.
const BLOCKED: Duration = Duration::from_secs(300);
/// Most bytes of a note, and of the object's name in that of the Event.
const LONGEST: usize = 1024;
const LONGEST_NAME: usize = 200;

/// Something that a node has to say about itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remark {
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence.
    pub note: String,
}

/// What the engine is told.
pub(super) enum Told {
    /// A status was written over another.
    Status {
        id: ObjectId,
        before: Known,
        after: Known,
    },
    /// This node says something.
    Remark(Remark),
}

/// Where the engine is told.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    told: mpsc::Sender<Told>,
    lost: Arc<AtomicU64>,
}

impl Teller {
    /// Never waits: it is an engine with better things to do that tells.
    pub(super) fn tell(&self, told: Told) {
        if self.told.try_send(told).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Regarding {
    api_version: &'static str,
    kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
}

/// A condition of a part of an object, or a remark: what is told a few times at most.
type Key = (Regarding, String, String);

/// What has turned, and not been told yet.
struct Turn {
    was: State,
    is: State,
}

/// What was told of a key.
struct Past {
    at: Instant,
    bad: bool,
}

/// What is known of an Event that was written.
struct Wrote {
    at: Instant,
    count: u64,
}

/// The task.
pub(super) struct Engine {
    access: Access,
    node: String,
    resource: ApiResource,
    told: mpsc::Receiver<Told>,
    lost: Arc<AtomicU64>,
    turns: HashMap<Key, Turn>,
    queue: Queue<Key>,
    past: HashMap<Key, Past>,
    wrote: HashMap<String, Wrote>,
    outage: Outage,
    not_before: Instant,
    /// Namespaces in which no Event may be written, and when that is tried again.
    blocked: HashMap<String, Instant>,
}

impl Engine {
    pub(super) fn new(access: Access, node: &str) -> (Self, Teller) {
        let (sender, told) = mpsc::channel(WAITING);
        let lost = Arc::<AtomicU64>::default();
        let teller = Teller {
            told: sender,
            lost: Arc::clone(&lost),
        };
        let engine = Self {
            access,
            node: node.to_owned(),
            resource: ApiResource::erase::<Event>(&()),
            told,
            lost,
            turns: HashMap::new(),
            queue: Queue::default(),
            past: HashMap::new(),
            wrote: HashMap::new(),
            outage: Outage::default(),
            not_before: Instant::now(),
            blocked: HashMap::new(),
        };
        (engine, teller)
    }

    /// Works until it is dropped.
    pub(super) async fn run(mut self) {
        loop {
            let now = Instant::now();
            let due = match self.queue.has_ready() {
                true => Some(now),
                false => self.queue.next_due(),
            };
            let earliest = self.not_before.max(self.outage.until().unwrap_or(now));
            let write = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.max(earliest)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                told = self.told.recv() => match told {
                    Some(told) => self.take(told),
                    None => return,
                },
                () = write => self.work().await,
            }
        }
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Status { id, before, after } => {
                let regarding = Regarding {
                    api_version: id.kind.api_version(),
                    kind: id.kind.as_str(),
                    namespace: id.key.namespace.to_string(),
                    name: id.key.name.to_string(),
                    uid: after.uid.to_string(),
                };
                let was = parts(id.kind, &parsed(&before));
                let is = parts(id.kind, &parsed(&after));
                for (part, kind, was, is) in changes(&was, &is) {
                    let key = (regarding.clone(), part.to_owned(), kind.to_owned());
                    self.turn(key, was, is);
                }
            }
            Told::Remark(Remark { reason, note }) => {
                let regarding = Regarding {
                    api_version: "v1",
                    kind: "Node",
                    namespace: String::new(),
                    name: self.node.clone(),
                    uid: String::new(),
                };
                let said = Said {
                    status: String::new(),
                    reason: reason.to_owned(),
                    message: note.clone(),
                };
                self.turn(
                    (regarding, note, String::new()),
                    State::Open,
                    State::Bad(said),
                );
            }
        }
    }

    fn turn(&mut self, key: Key, was: State, is: State) {
        if let Some(turn) = self.turns.get_mut(&key) {
            turn.is = is;
            return;
        }
        if self.turns.len() >= MOST {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let now = Instant::now();
        let last = self.past.get(&key).map_or(now, |past| past.at + SAME);
        self.queue.push(key.clone(), last.max(now + HOLD), now);
        self.turns.insert(key, Turn { was, is });
    }

    async fn work(&mut self) {
        let now = Instant::now();
        let Some(key) = self.queue.pop(now) else {
            return;
        };
        self.queue.done(&key, now);
        self.blocked.retain(|_, until| *until > now);
        if let Some(until) = self.blocked.get(namespace(&key.0)) {
            self.queue.push(key, *until, now);
            return;
        }
        let Some(turn) = self.turns.remove(&key) else {
            return;
        };
        let told = self.past.get(&key).map(|past| past.bad);
        let (bad, said) = match &turn.is {
            State::Bad(said) if !turn.was.same(&turn.is) => (true, said),
            // Good news is what ends bad news.
            State::Good(said) if told.unwrap_or(matches!(turn.was, State::Bad(_))) => (false, said),
            _ => return,
        };
        self.not_before = now + GAP;
        match self.write(&key, bad, said).await {
            Ok(()) => {
                self.outage.over_now();
                bound(&mut self.past, |past| past.at);
                self.past.insert(key, Past { at: now, bad });
            }
            Err(Failure::Unavailable(why)) => {
                self.outage.failed(now, "Events are written", &why);
                self.queue.push(key.clone(), now, now);
                self.turns.entry(key).or_insert(turn);
            }
            // Elsewhere another role decides.
            Err(Failure::Forbidden) => {
                let namespace = namespace(&key.0).to_owned();
                self.blocked.insert(namespace, now + BLOCKED);
            }
            Err(Failure::NotServed) => self.not_before = now + BLOCKED,
            // A namespace that ends, or something that the API server will never take.
            Err(failure) => {
                tracing::debug!("an Event about {} is not written: {failure}", key.0.name);
            }
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(
                "{lost} changes of statuses are told by no Event: there were too many at once"
            );
        }
    }

    /// Creates an Event; one that is there already has happened again, if it is no remark.
    async fn write(&mut self, key: &Key, bad: bool, said: &Said) -> Result<(), Failure> {
        let now = Instant::now();
        let (mut regarding, part, kind) = key.clone();
        if regarding.kind == "Node" {
            regarding.uid = self.access.node_uid(What::Event, &regarding.name).await?;
        }
        let note = note(&part, &kind, bad, said);
        let name = name(&regarding, [&part, &kind, &said.reason, &note]);
        let wrote = self.wrote.get_mut(&name).map(|wrote| {
            wrote.count += 1;
            (wrote.at, wrote.count)
        });
        let count = match wrote {
            Some((at, _)) if now < at + AGAIN => return Ok(()),
            Some((_, count)) => {
                self.series(&regarding, &name, count).await?;
                count
            }
            None => match self
                .create(&regarding, &name, &note, (bad, said, &kind))
                .await
            {
                Err(Failure::Conflict(_)) if regarding.kind == "Node" => 1,
                Err(Failure::Conflict(_)) => {
                    // An empty patch is a question: to read Events needs a right of its own.
                    let there = self.patch(&regarding, &name, json!({})).await?;
                    let count = there["series"]["count"].as_u64().unwrap_or(1) + 1;
                    self.series(&regarding, &name, count).await?;
                    count
                }
                result => result.map(|()| 1)?,
            },
        };
        bound(&mut self.wrote, |wrote| wrote.at);
        self.wrote.insert(name, Wrote { at: now, count });
        Ok(())
    }

    async fn create(
        &self,
        regarding: &Regarding,
        name: &str,
        note: &str,
        (bad, said, kind): (bool, &Said, &str),
    ) -> Result<(), Failure> {
        let event = json!({
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "metadata": {"name": name, "namespace": namespace(regarding)},
            "eventTime": micro_time(),
            "type": if bad { "Warning" } else { "Normal" },
            "reason": if said.reason.is_empty() { "Resolved" } else { said.reason.as_str() },
            "action": if kind.is_empty() { "Serve" } else { kind },
            "note": note,
            "regarding": {
                "apiVersion": regarding.api_version,
                "kind": regarding.kind,
                "namespace": regarding.namespace,
                "name": regarding.name,
                "uid": regarding.uid,
            },
            "reportingController": CONTROLLER,
            "reportingInstance": self.node,
        });
        let request = path(&self.resource, namespace(regarding));
        let request = request.create(&by_us(), event.to_string().into_bytes());
        let answer = self
            .access
            .call::<Value>(self.target(regarding, "create"), request);
        answer.await.map(drop)
    }

    async fn series(&self, regarding: &Regarding, name: &str, count: u64) -> Result<(), Failure> {
        let series = json!({"series": {"count": count, "lastObservedTime": micro_time()}});
        match self.patch(regarding, name, series).await {
            // They expire, after an hour mostly.
            Err(Failure::Gone) => Ok(()),
            result => result.map(drop),
        }
    }

    async fn patch(
        &self,
        regarding: &Regarding,
        name: &str,
        patch: Value,
    ) -> Result<Value, Failure> {
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let request = path(&self.resource, namespace(regarding));
        let request = request.patch(name, &params, &Patch::Merge(patch));
        self.access
            .call(self.target(regarding, "patch"), request)
            .await
    }

    fn target<'a>(&'a self, regarding: &'a Regarding, verb: &'static str) -> Target<'a> {
        Target {
            what: What::Event,
            resource: &self.resource,
            part: "",
            namespace: namespace(regarding),
            verb,
        }
    }
}

/// Events about objects in no namespace are in `default`.
fn namespace(regarding: &Regarding) -> &str {
    match regarding.namespace.as_str() {
        "" => super::rights::EVENTS,
        namespace => namespace,
    }
}

fn note(part: &str, kind: &str, bad: bool, said: &Said) -> String {
    let message = &said.message;
    let mut note = match (kind, said.status.as_str()) {
        ("", _) => message.clone(),
        (_, "") => format!("{kind}{part} is over"),
        (_, status) => {
            let again = if bad { "" } else { " again" };
            format!("{kind}{part} is {status}{again}: {message}")
        }
    };
    note.truncate(note.floor_char_boundary(LONGEST));
    note
}

/// The same for the same on every node, at any time.
fn name(regarding: &Regarding, says: [&str; 4]) -> String {
    let mut hash = Sha256::new();
    for text in [regarding.uid.as_str()].into_iter().chain(says) {
        hash.update(text);
        hash.update([0]);
    }
    let mut name = regarding.name.clone();
    name.truncate(LONGEST_NAME);
    let mut name = name.trim_end_matches(['.', '-']).to_owned();
    name.push('.');
    for byte in &hash.finalize()[..8] {
        // To a string, this cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// Makes room for one more, by the older half.
fn bound<K: Clone + Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>, at: impl Fn(&V) -> Instant) {
    if map.len() < MOST {
        return;
    }
    let mut times: Vec<Instant> = map.values().map(&at).collect();
    times.sort_unstable();
    let middle = times[times.len() / 2];
    map.retain(|_, value| at(value) > middle);
}

fn micro_time() -> String {
    let now = jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
