//! What the API server holds of objects that may get a status from us: what a write starts from.
//!
//! Filled by the watch, read by the writer. It may be behind; every write therefore names the version that it starts from.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::core::ApiResource;
use tokio::sync::Notify;

use crate::translate::shared::Shared;
use crate::translate::{Kind, ObjectId};

/// One object as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// `metadata.resourceVersion`.
    pub resource_version: Box<str>,
    /// `status` as JSON; none if it has none.
    pub status: Option<Arc<str>>,
}

/// Objects by kind and key. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Common>);

#[derive(Debug, Default)]
struct Common {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    objects: HashMap<ObjectId, Known>,
    /// Of routes that were judged within one second most have the same.
    statuses: Shared<str>,
    resources: BTreeMap<Kind, ApiResource>,
    /// Objects that came, went or got another status since they were last taken.
    touched: HashSet<ObjectId>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves whole entries behind.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One object, if it is there.
    #[must_use]
    pub fn get(&self, id: &ObjectId) -> Option<Known> {
        self.lock().objects.get(id).cloned()
    }

    /// Notes what was seen of an object; none: it is gone.
    pub fn set(&self, id: ObjectId, mut known: Option<Known>) {
        let mut state = self.lock();
        if let Some(status) = known.as_mut().and_then(|known| known.status.as_mut()) {
            *status = state.statuses.shared(Arc::clone(status));
        }
        let same_status = |old: &Known, new: &Known| old.uid == new.uid && old.status == new.status;
        let touched = id.clone();
        let changed = match known {
            Some(known) => match state.objects.insert(id, known.clone()) {
                Some(old) => !same_status(&old, &known),
                None => true,
            },
            None => state.objects.remove(&touched).is_some(),
        };
        if changed {
            state.touched.insert(touched);
        }
        drop(state);
        if changed {
            self.0.changed.notify_one();
        }
    }

    /// Objects that came, went or got another status since the last call.
    #[must_use]
    pub fn take_touched(&self) -> HashSet<ObjectId> {
        std::mem::take(&mut self.lock().touched)
    }

    /// Objects of which this is true.
    #[must_use]
    pub fn matching(&self, is: impl Fn(&ObjectId, &Known) -> bool) -> Vec<ObjectId> {
        let state = self.lock();
        let found = state.objects.iter().filter(|(id, known)| is(id, known));
        found.map(|(id, _)| id.clone()).collect()
    }

    /// Under which group, version and plural a kind is served here; none: it is not.
    #[must_use]
    pub fn resource(&self, kind: Kind) -> Option<ApiResource> {
        self.lock().resources.get(&kind).cloned()
    }

    /// Notes how kinds are served.
    pub fn set_resources(&self, resources: BTreeMap<Kind, ApiResource>) {
        self.lock().resources = resources;
        self.0.changed.notify_one();
    }

    /// Waits until a status or a kind has changed since the last wait.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }
}
