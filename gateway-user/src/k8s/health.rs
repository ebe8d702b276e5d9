//! How the conversation with the API server goes: said once when it stops, once when it goes on, and for metrics.
//!
//! A watch that goes on says nothing until something changes. So one that has not failed again for [`SETTLED`] counts as well.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::core::ApiResource;
use kube::runtime::watcher;

use super::permissions::{Forbidden, Permissions};
use super::watcher::{Scope, Watched};

/// Longer than the longest attempt with the longest pause before it.
pub const SETTLED: Duration = Duration::from_secs(5);

/// Shared by all watches.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    errors: AtomicU64,
    permissions: Permissions,
}

#[derive(Debug, Default)]
struct State {
    /// Why, and when it last failed.
    failing: BTreeMap<Watched, (String, Instant)>,
    since: Option<Instant>,
}

impl Health {
    /// Of watches that need these permissions.
    #[must_use]
    pub fn new(permissions: Permissions) -> Self {
        Self(Arc::new(Shared {
            permissions,
            ..Shared::default()
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves whole entries behind.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watch goes on.
    pub fn well(&self, watched: &Watched) {
        let mut state = self.lock();
        if state.failing.remove(watched).is_some() {
            state.settle();
        }
    }

    /// Notes which watches have not failed for long enough.
    pub fn look(&self, now: Instant) {
        let mut state = self.lock();
        let before = state.failing.len();
        let settled = |at: Instant| now.saturating_duration_since(at) >= SETTLED;
        state.failing.retain(|_, (_, at)| !settled(*at));
        if state.failing.len() < before {
            state.settle();
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
            true => self.missing(resource, &watched.scope),
            false => format!("{watched} cannot be followed: {}", in_short(error)),
        };
        let mut state = self.lock();
        let first = state.failing.is_empty();
        let now = Instant::now();
        let failure = (sentence.clone(), now);
        let new = state.failing.insert(watched.clone(), failure).is_none();
        state.since.get_or_insert(now);
        if forbidden(error) {
            // It has been said.
        } else if first {
            tracing::warn!("{sentence}; what is served stays as it is");
        } else if new {
            tracing::debug!("{sentence}");
        }
    }

    /// What an administrator has to add.
    fn missing(&self, resource: &ApiResource, scope: &Scope) -> String {
        let (namespace, name) = match scope {
            Scope::All => ("", None),
            Scope::Namespace(namespace) => (&**namespace, None),
            Scope::One(key) => (&*key.namespace, Some(&*key.name)),
        };
        self.0.permissions.missing(Forbidden {
            verb: "list",
            group: &resource.group,
            resource: &resource.plural,
            namespace,
            name,
        })
    }

    /// A watch has ended for good.
    pub fn ended(&self, watched: &Watched) {
        self.well(watched);
    }

    /// What is not followed at the moment, and why.
    #[must_use]
    pub fn failing(&self) -> Vec<String> {
        let state = self.lock();
        state.failing.values().map(|(why, _)| why.clone()).collect()
    }

    /// For how long something has not been followed.
    #[must_use]
    pub fn stale(&self) -> Option<Duration> {
        self.lock().since.map(|since| since.elapsed())
    }

    /// Attempts that have failed since the start.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.0.errors.load(Ordering::Relaxed)
    }
}

impl State {
    /// Says that all is well again, if it is.
    fn settle(&mut self) {
        if self.failing.is_empty() {
            let seconds = self
                .since
                .take()
                .map_or(0, |since| since.elapsed().as_secs());
            tracing::info!(seconds, "all objects are followed again");
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::Kind;

    fn watched() -> Watched {
        Watched {
            kind: Kind::Service,
            scope: Scope::All,
        }
    }

    fn services() -> ApiResource {
        ApiResource {
            group: String::new(),
            version: "v1".into(),
            api_version: "v1".into(),
            kind: "Service".into(),
            plural: "services".into(),
        }
    }

    fn refused(code: u16) -> watcher::Error {
        let mut status = kube::core::Status::failure("no", "Reason");
        status.code = code;
        watcher::Error::WatchStartFailed(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn what_has_not_failed_again_is_well() {
        let health = Health::default();
        health.failed(&watched(), &services(), &refused(500));
        let now = Instant::now();
        health.look(now + SETTLED / 2);
        assert_eq!((health.failing().len(), health.errors()), (1, 1));
        assert!(health.stale().is_some());
        health.look(now + SETTLED);
        assert_eq!((health.failing().len(), health.stale()), (0, None));
    }

    #[test]
    fn a_missing_permission_is_named_with_the_rule_that_grants_it() {
        let health = Health::default();
        health.failed(&watched(), &services(), &refused(403));
        assert_eq!(
            health.failing(),
            [
                "Kubernetes forbids to list services; add to the ClusterRole of ServiceAccount forebay: - {apiGroups: [\"\"], resources: [\"services\"], verbs: [\"get\", \"list\", \"watch\", \"create\", \"patch\"]}"
            ]
        );
        health.well(&watched());
        assert!(health.failing().is_empty());
    }

    #[test]
    fn a_watch_that_is_too_old_is_no_failure() {
        let health = Health::default();
        health.failed(&watched(), &services(), &refused(410));
        assert_eq!((health.failing().len(), health.errors()), (0, 1));
    }
}
