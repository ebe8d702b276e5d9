//! Writes statuses while this node leads: what differs, a few at a time, and never in a fight without end.
//!
//! Level-triggered: what is to be said is the newest list, what is there is what the watch has [`Seen`] or the answer to the
//! own last write, whichever is newer. Every write names the version that it starts from; an object that has changed
//! meanwhile is read and merged anew.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::access::{Access, Failure, What};
use super::events::{Teller, Told};
use super::lease::Leadership;
use super::pace::{Outage, Pace};
use super::queue::Queue;
use super::seen::{Known, Seen};
use super::status_write::{Write, parsed, timestamp};
use crate::status::patch::{Outcome, may_be_ours, patch};
use crate::status::{ObjectStatus, Status};
use crate::translate::{Kind, ObjectId};

/// Most writes under way.
const MOST: usize = 16;
/// Objects that are looked at before other tasks have their turn.
const CHUNK: usize = 32;
/// Between two looks at everything.
const EVERYTHING: Duration = Duration::from_secs(60);
/// How long a kind waits that must not or cannot be written.
const BLOCKED: Duration = Duration::from_secs(30);
/// How long an object waits whose status is refused.
const REFUSED: Duration = Duration::from_secs(60);
/// How long what is newer than what was judged is left alone, so that this node can catch up.
const BEHIND: Duration = Duration::from_secs(3);

/// What is to be said.
pub(super) type Statuses = Arc<Vec<ObjectStatus>>;

/// What was last done about an object.
#[derive(Debug, Default)]
struct Memo {
    pace: Pace,
    /// The answer to the own last write, until the watch has come that far.
    own: Option<Known>,
    /// What was last to be said.
    said: Option<Option<Status>>,
    /// The version and the status that were fine with that.
    fine: Option<(Box<str>, u64)>,
    /// Since when this node seems to be behind.
    behind: Option<Instant>,
    /// What the API server said against the last one.
    refused: Option<String>,
}

impl Memo {
    /// When to write what is to be said, and whether it has been said before; none: the object says it.
    fn judge(
        &mut self,
        kind: Kind,
        desired: &Option<Status>,
        known: &Known,
        now: Instant,
    ) -> Option<(Instant, bool)> {
        let said = self.said.as_ref();
        let repeated = said.is_some_and(|said| same_or_none(said, desired));
        if !repeated {
            self.said = Some(desired.clone());
            self.fine = None;
        }
        let version = &known.resource_version;
        if self.fine.as_ref().is_some_and(|(at, _)| at == version) {
            return None;
        }
        let current = parsed(known);
        let hash = hash(&current);
        let outcome = match &self.fine {
            // The API server may have dropped a field that its schema lacks: to write it again is no use.
            Some((_, fine)) if *fine == hash => Outcome::Nothing,
            _ => patch(kind, desired.as_ref(), &current, &timestamp()),
        };
        let after = match outcome {
            Outcome::Nothing => {
                self.fine = Some((version.clone(), hash));
                self.behind = None;
                return None;
            }
            Outcome::Behind(_) => *self.behind.get_or_insert(now + BEHIND),
            Outcome::Write(_) => now,
        };
        Some((
            after.max(self.pace.next(now, kind == Kind::Gateway, repeated)),
            repeated,
        ))
    }
}

/// The end of a write.
struct Done {
    id: ObjectId,
    desired: Option<Status>,
    /// What was there, and what is there now.
    result: Result<(Known, Known), Failure>,
}

/// The task.
pub(super) struct Engine {
    access: Access,
    seen: Seen,
    events: Teller,
    statuses: Statuses,
    memos: HashMap<ObjectId, Memo>,
    queue: Queue<ObjectId>,
    jobs: JoinSet<Done>,
    outage: Outage,
    blocked: BTreeMap<Kind, Instant>,
    look: Instant,
}

impl Engine {
    pub(super) fn new(access: Access, seen: Seen, events: Teller) -> Self {
        Self {
            access,
            seen,
            events,
            statuses: Statuses::default(),
            memos: HashMap::new(),
            queue: Queue::default(),
            jobs: JoinSet::new(),
            outage: Outage::default(),
            blocked: BTreeMap::new(),
            look: Instant::now(),
        }
    }

    /// Writes until it is dropped. `statuses` none: nothing has been read completely yet.
    pub(super) async fn run(
        mut self,
        mut statuses: watch::Receiver<Option<Statuses>>,
        mut leadership: Leadership,
    ) {
        let seen = self.seen.clone();
        loop {
            // While another node leads, only what has changed is forgotten.
            self.forget();
            tokio::select! {
                () = leadership.becomes(true) => {}
                () = seen.changed() => {
                    drop(seen.take_touched());
                    continue;
                }
            }
            tokio::select! {
                () = leadership.becomes(false) => {}
                ended = self.lead(&mut statuses) => if ended { return },
            }
        }
    }

    fn forget(&mut self) {
        self.jobs = JoinSet::new();
        self.queue = Queue::default();
        self.memos = HashMap::new();
        self.statuses = Statuses::default();
    }

    async fn lead(&mut self, statuses: &mut watch::Receiver<Option<Statuses>>) -> bool {
        let seen = self.seen.clone();
        if statuses.wait_for(Option::is_some).await.is_err() {
            return true;
        }
        // Before anything is looked at: what is not in the list would lose what it has.
        self.statuses = statuses.borrow_and_update().clone().unwrap_or_default();
        self.look = Instant::now();
        loop {
            let next = self.next();
            tokio::select! {
                changed = statuses.changed() => {
                    if changed.is_err() {
                        return true;
                    }
                    statuses.mark_changed();
                }
                () = seen.changed() => {
                    let now = Instant::now();
                    for id in seen.take_touched() {
                        self.queue.push(id, now, now);
                    }
                }
                Some(done) = self.jobs.join_next() => if let Ok(done) = done {
                    self.finish(done);
                },
                () = tokio::time::sleep_until(next) => {}
            }
            // Whatever has woken it: a write that begins now says the newest.
            if statuses.has_changed().unwrap_or(false) {
                let newest = statuses.borrow_and_update().clone().unwrap_or_default();
                self.take(newest).await;
            }
            self.work().await;
        }
    }

    /// When there is something to do without an event.
    fn next(&self) -> Instant {
        if self.jobs.len() >= self.outage.most(MOST) {
            // The end of one of them is an event.
            return self.look.max(Instant::now() + EVERYTHING);
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

    /// Takes a newer list: what differs is to be looked at.
    async fn take(&mut self, newest: Statuses) {
        let before = std::mem::replace(&mut self.statuses, Arc::clone(&newest));
        let now = Instant::now();
        let mut old = before.iter().peekable();
        for (at, status) in newest.iter().enumerate() {
            while let Some(gone) = old.next_if(|old| order(old, status).is_lt()) {
                self.queue.push(id(gone), now, now);
            }
            let was = old.next_if(|old| order(old, status).is_eq());
            if !was.is_some_and(|was| same(&was.status, &status.status)) {
                self.queue.push(id(status), now, now);
            }
            if at % 1024 == 1023 {
                tokio::task::yield_now().await;
            }
        }
        for gone in old {
            self.queue.push(id(gone), now, now);
        }
    }

    /// Looks at what is due and begins writes.
    async fn work(&mut self) {
        let mut now = Instant::now();
        if self.look <= now {
            self.look = now + EVERYTHING;
            let ours = |id: &ObjectId, known: &Known| {
                known
                    .status
                    .as_ref()
                    .is_some_and(|s| may_be_ours(id.kind, s))
            };
            for id in self.seen.matching(ours) {
                self.queue.push(id, now, now);
            }
            for status in &*Arc::clone(&self.statuses) {
                self.queue.push(id(status), now, now);
            }
        }
        let mut looked = 0;
        while self.jobs.len() < self.outage.most(MOST) && self.outage.over(now) {
            let Some(id) = self.queue.pop(now) else {
                return;
            };
            let begun = self.begin(&id, now);
            if !begun {
                self.queue.done(&id, now);
            }
            looked += 1;
            if looked % CHUNK == 0 {
                tokio::task::yield_now().await;
                now = Instant::now();
            }
        }
    }

    /// Compares one object with what is to be said of it and begins to write if that differs.
    fn begin(&mut self, id: &ObjectId, now: Instant) -> bool {
        let Some(what) = What::status_of(id.kind) else {
            return false;
        };
        let (Some(resource), Some(known)) = (self.seen.resource(id.kind), self.known(id)) else {
            self.memos.remove(id);
            return false;
        };
        if let Some(until) = self
            .blocked
            .get(&id.kind)
            .copied()
            .filter(|until| *until > now)
        {
            self.queue.push(id.clone(), until, now);
            return false;
        }
        let desired = self.desired(id);
        let text = known.status.as_deref().unwrap_or("null");
        if desired.is_none() && !may_be_ours(id.kind, text) {
            self.memos.remove(id);
            return false;
        }
        let memo = self.memos.entry(id.clone()).or_default();
        let Some((at, repeated)) = memo.judge(id.kind, &desired, &known, now) else {
            return false;
        };
        if at > now {
            self.queue.push(id.clone(), at, now);
            return false;
        }
        memo.behind = None;
        memo.pace.wrote(now, repeated);
        let write = Write {
            access: self.access.clone(),
            what,
            resource,
            id: id.clone(),
            desired,
        };
        self.jobs.spawn(async move {
            let result = write.run(known).await;
            let Write { id, desired, .. } = write;
            Done {
                id,
                desired,
                result,
            }
        });
        true
    }

    /// What is known of an object: by the watch, or by the answer to the own last write if that is newer.
    fn known(&mut self, id: &ObjectId) -> Option<Known> {
        let seen = self.seen.get(id)?;
        let Some(memo) = self.memos.get_mut(id) else {
            return Some(seen);
        };
        match memo.own.take() {
            Some(own) if own.uid == seen.uid && number(&own) > number(&seen) => {
                memo.own = Some(own.clone());
                Some(own)
            }
            _ => Some(seen),
        }
    }

    /// What is to be said of an object.
    fn desired(&self, id: &ObjectId) -> Option<Status> {
        let wanted = (id.kind, &*id.key.namespace, &*id.key.name);
        let found = self
            .statuses
            .binary_search_by(|status| place(status).cmp(&wanted));
        found.ok().map(|at| self.statuses[at].status.clone())
    }

    fn finish(&mut self, done: Done) {
        let now = Instant::now();
        let Done {
            id,
            desired,
            result,
        } = done;
        self.queue.done(&id, now);
        let memo = self.memos.entry(id.clone()).or_default();
        if !matches!(result, Err(Failure::Unavailable(_))) {
            self.outage.over_now();
        }
        match result {
            Ok((before, known)) => {
                if memo
                    .said
                    .as_ref()
                    .is_some_and(|said| same_or_none(said, &desired))
                {
                    memo.fine = Some((known.resource_version.clone(), hash(&parsed(&known))));
                }
                memo.own = Some(known.clone());
                memo.refused = None;
                let after = known;
                self.events.tell(Told::Status { id, before, after });
            }
            Err(Failure::Gone) => drop(self.memos.remove(&id)),
            Err(Failure::NotServed | Failure::Forbidden) => {
                self.blocked.insert(id.kind, now + BLOCKED);
                self.queue.push(id, now + BLOCKED, now);
            }
            Err(Failure::Conflict(_)) => {
                let wait = memo.pace.failed(now);
                self.queue.push(id, wait, now);
            }
            Err(Failure::Invalid(why)) => {
                if memo.refused.as_ref() != Some(&why) {
                    tracing::error!("the status of {id} is refused: {why}");
                    memo.refused = Some(why);
                }
                memo.pace.not_before(now + REFUSED);
                self.queue.push(id, now + REFUSED, now);
            }
            Err(Failure::Unavailable(why)) => {
                self.outage.failed(now, "statuses are written", &why);
                self.queue.push(id, now, now);
            }
        }
    }
}

fn place(status: &ObjectStatus) -> (Kind, &str, &str) {
    (status.kind, &status.namespace, &status.name)
}

/// The order of two statuses; names that are the same allocation need no look.
fn order(a: &ObjectStatus, b: &ObjectStatus) -> Ordering {
    let same = Arc::ptr_eq(&a.name, &b.name) && Arc::ptr_eq(&a.namespace, &b.namespace);
    if same && a.kind == b.kind {
        return Ordering::Equal;
    }
    place(a).cmp(&place(b))
}

fn id(status: &ObjectStatus) -> ObjectId {
    ObjectId {
        kind: status.kind,
        key: crate::snapshot::ObjectKey {
            namespace: Arc::clone(&status.namespace),
            name: Arc::clone(&status.name),
        },
    }
}

/// Whether two statuses say the same; those that are the same allocation need no look.
fn same(a: &Status, b: &Status) -> bool {
    match (a, b) {
        (Status::Route(a), Status::Route(b)) if Arc::ptr_eq(a, b) => true,
        (Status::Plain(a), Status::Plain(b)) if Arc::ptr_eq(a, b) => true,
        _ => a == b,
    }
}

fn same_or_none(a: &Option<Status>, b: &Option<Status>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => same(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// Versions are numbers, and later ones are greater.
fn number(known: &Known) -> u128 {
    known.resource_version.parse().unwrap_or(0)
}

fn hash(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
