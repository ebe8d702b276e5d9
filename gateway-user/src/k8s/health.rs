//! How the conversation with the API server goes: said once when it stops, once when it goes on, and for metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kube::core::ApiResource;
use kube::runtime::watcher;

use super::watcher::{Scope, Watched};

/// Shared by all watches.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    errors: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    failing: BTreeMap<Watched, String>,
    since: Option<Instant>,
    /// Permissions whose absence has been said.
    forbidden: BTreeSet<String>,
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves whole entries behind.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watch goes on.
    pub fn well(&self, watched: &Watched) {
        let mut state = self.lock();
        if state.failing.remove(watched).is_some() && state.failing.is_empty() {
            let away = state.since.take().map(|since| since.elapsed());
            tracing::info!(
                ?away,
                "the API server answers again: all objects are followed"
            );
        }
    }

    /// A watch has failed and will be tried again.
    pub fn failed(&self, watched: &Watched, resource: &ApiResource, error: &watcher::Error) {
        self.0.errors.fetch_add(1, Ordering::Relaxed);
        // The watch has been read to its end, or was too old: the next attempt mends it.
        if is_gone(error) {
            tracing::debug!(%watched, "read anew: {error}");
            return;
        }
        let sentence = match forbidden(error) {
            true => missing_rule(resource, &watched.scope),
            false => format!("{watched} cannot be followed: {}", in_short(error)),
        };
        let mut state = self.lock();
        let first = state.failing.is_empty();
        let new = state
            .failing
            .insert(watched.clone(), sentence.clone())
            .is_none();
        if forbidden(error) {
            if state.forbidden.insert(sentence.clone()) {
                tracing::error!("{sentence}");
            }
        } else if first {
            state.since = Some(Instant::now());
            tracing::warn!("{sentence}; what is served stays as it is");
        } else if new {
            tracing::debug!("{sentence}");
        }
    }

    /// A watch has ended for good.
    pub fn ended(&self, watched: &Watched) {
        self.well(watched);
    }

    /// What is not followed at the moment, and why.
    #[must_use]
    pub fn failing(&self) -> Vec<String> {
        self.lock().failing.values().cloned().collect()
    }

    /// For how long something has not been followed.
    #[must_use]
    pub fn stale(&self) -> Option<std::time::Duration> {
        self.lock().since.map(|since| since.elapsed())
    }

    /// Attempts that have failed since the start.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.0.errors.load(Ordering::Relaxed)
    }
}

fn status(error: &watcher::Error) -> Option<&kube::core::Status> {
    use watcher::Error::{
        InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed,
    };
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => Some(status),
        InitialListFailed(_) | WatchStartFailed(_) | WatchFailed(_) | NoResourceVersion => None,
    }
}

fn forbidden(error: &watcher::Error) -> bool {
    status(error).is_some_and(|status| status.code == 403)
}

fn is_gone(error: &watcher::Error) -> bool {
    status(error).is_some_and(|status| status.code == 410)
}

/// One line without the whole chain of wrappers.
fn in_short(error: &watcher::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// What an administrator has to add.
fn missing_rule(resource: &ApiResource, scope: &Scope) -> String {
    let (role, place) = match scope {
        Scope::All => ("ClusterRole", String::new()),
        Scope::Namespace(namespace) => ("Role", format!(" of namespace {namespace}")),
        Scope::One(key) => ("Role", format!(" of namespace {}", key.namespace)),
    };
    format!(
        "no permission to list and watch {}: a {role}{place} needs {{apiGroups: [\"{}\"], resources: [\"{}\"], verbs: [\"get\", \"list\", \"watch\"]}}",
        resource.plural, resource.group, resource.plural
    )
}
