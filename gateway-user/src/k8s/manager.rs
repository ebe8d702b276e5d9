//! Starts and stops watches as kinds and Secrets come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::Client;
use kube::core::ApiResource;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::discovery::{self, Served};
use super::health::Health;
use super::seen::Seen;
use super::watcher::{Follower, Memory, Scope, Told, Watched};
use crate::snapshot::ObjectKey;
use crate::translate::{Kind, ObjectId};

/// How often the API server is asked which kinds it serves.
const DISCOVERY: Duration = Duration::from_secs(5);

/// Pause after it has not answered.
const AGAIN: Duration = Duration::from_millis(500);

/// Secrets that are watched one by one; if there are more, those of a namespace are watched together.
const SINGLE_SECRETS: usize = 50;

/// The first minor version of Kubernetes 1 that sends a first list as a stream without being told to.
const STREAMING_MINOR: u32 = 34;

/// The namespace of Forebay itself, which is always read.
const OWN: &str = crate::file::keys::NAMESPACE;

/// Everything that watches have in common.
pub struct Manager {
    /// Who asks.
    pub client: Client,
    /// Kinds that are read where they are served.
    pub kinds: &'static [Kind],
    /// Namespaces that are read; none: all.
    pub namespaces: Vec<String>,
    /// Secrets that are needed.
    pub wanted: watch::Receiver<BTreeSet<ObjectKey>>,
    /// Where changes go.
    pub told: mpsc::Sender<Told>,
    /// Where statuses go.
    pub seen: Seen,
    /// How it goes.
    pub health: Health,
}

struct Running {
    resource: ApiResource,
    task: JoinHandle<()>,
}

/// What goes on.
#[derive(Default)]
struct State {
    /// What is watched has been told, were it nothing.
    told: bool,
    running: BTreeMap<Watched, Running>,
    memories: BTreeMap<Kind, Memory>,
}

impl Manager {
    /// Watches until nobody listens any more.
    pub async fn run(mut self) {
        let mut state = State::default();
        let mut served: Option<Served> = None;
        let mut streaming = None;
        let mut said = false;
        let mut discovery = Instant::now();
        loop {
            self.health.look(Instant::now().into_std());
            if discovery <= Instant::now() {
                match self.discover(&mut streaming).await {
                    Ok(found) => {
                        if std::mem::take(&mut said) {
                            tracing::info!("the API server says again which kinds it serves");
                        }
                        if served.as_ref() != Some(&found) {
                            log_kinds(self.kinds, served.as_ref(), &found);
                            self.seen.set_resources(found.clone());
                            served = Some(found);
                        }
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut said, true) {
                            tracing::warn!(
                                "the API server does not say which kinds it serves: {error}"
                            );
                        }
                    }
                }
                discovery = Instant::now() + if served.is_some() { DISCOVERY } else { AGAIN };
            }
            if let Some(served) = &served {
                let stream = streaming.unwrap_or_default();
                if self.follow(&mut state, served, stream).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(discovery) => {}
            }
        }
    }

    async fn discover(&self, streaming: &mut Option<bool>) -> kube::Result<Served> {
        if streaming.is_none() {
            let version = self.client.apiserver_version().await?;
            let digits: String = version
                .minor
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            let minor = digits.parse::<u32>().unwrap_or_default();
            *streaming = Some(minor >= STREAMING_MINOR);
            tracing::info!(version = version.git_version, "the API server answers");
        }
        discovery::served(&self.client, self.kinds).await
    }

    /// Brings the watches in line; an error if nobody listens.
    async fn follow(
        &self,
        state: &mut State,
        served: &Served,
        streaming: bool,
    ) -> Result<(), mpsc::error::SendError<Told>> {
        let wanted = self.watches(served);
        if !std::mem::replace(&mut state.told, true) || !wanted.iter().eq(state.running.keys()) {
            self.end_others(state, &wanted);
            let list = wanted.iter().cloned().collect();
            self.told.send(Told::Watching(list)).await?;
        }
        let State {
            running, memories, ..
        } = state;
        for watched in wanted {
            let Some(resource) = served.get(&watched.kind) else {
                continue;
            };
            if let Some(known) = running.get(&watched) {
                if known.resource == *resource {
                    continue;
                }
                known.task.abort();
            }
            let follower = Follower {
                client: self.client.clone(),
                resource: resource.clone(),
                watched: watched.clone(),
                streaming,
                memory: memories.entry(watched.kind).or_default().clone(),
                seen: self.seen.clone(),
                told: self.told.clone(),
                health: self.health.clone(),
            };
            let run = Running {
                resource: resource.clone(),
                task: tokio::spawn(follower.run()),
            };
            running.insert(watched, run);
        }
        Ok(())
    }

    /// Ends watches that are not wanted any more, and forgets objects that no other one follows.
    fn end_others(&self, state: &mut State, wanted: &BTreeSet<Watched>) {
        state.running.retain(|watched, run| {
            let keep = wanted.contains(watched);
            if !keep {
                run.task.abort();
                self.health.ended(watched);
            }
            keep
        });
        for (&kind, memory) in &state.memories {
            let scopes: Vec<&Scope> = wanted
                .iter()
                .filter(|watched| watched.kind == kind)
                .map(|watched| &watched.scope)
                .collect();
            for key in memory.retain(|key| scopes.iter().any(|scope| scope.holds(key))) {
                self.seen.set(ObjectId { kind, key }, None);
            }
        }
    }

    /// What has to be watched.
    fn watches(&self, served: &Served) -> BTreeSet<Watched> {
        let mut watches = BTreeSet::new();
        let scopes = Scope::of(&self.namespaces);
        for &kind in served.keys() {
            let mut add = |scope| watches.insert(Watched { kind, scope });
            if kind == Kind::Secret {
                for scope in secrets(&self.wanted.borrow()) {
                    add(scope);
                }
            } else if kind == Kind::Namespace && !self.namespaces.is_empty() {
                // Nothing is asked of the labels of others: nothing in them is read.
                for namespace in &self.namespaces {
                    add(Scope::One(ObjectKey::new("", &**namespace)));
                }
            } else if kind.cluster_scoped() {
                add(Scope::All);
            } else {
                for scope in &scopes {
                    add(scope.clone());
                }
                if kind == Kind::EndpointSlice && !self.namespaces.is_empty() {
                    add(Scope::Namespace(OWN.into()));
                }
            }
        }
        watches
    }
}

/// How Secrets are followed: few one by one, many by their namespaces. Those of Forebay itself are few always.
fn secrets(wanted: &BTreeSet<ObjectKey>) -> BTreeSet<Scope> {
    let others = wanted.iter().filter(|key| *key.namespace != *OWN);
    let few = others.count() <= SINGLE_SECRETS;
    let scope = |key: &ObjectKey| match few || *key.namespace == *OWN {
        true => Scope::One(key.clone()),
        false => Scope::Namespace(key.namespace.clone()),
    };
    wanted.iter().map(scope).collect()
}

fn log_kinds(kinds: &[Kind], before: Option<&Served>, now: &Served) {
    for kind in kinds {
        let was = before.and_then(|served| served.get(kind));
        match (was, now.get(kind)) {
            (None, Some(resource)) if before.is_some() => {
                tracing::info!(%kind, version = resource.version, "is served from now on");
            }
            (Some(_), None) => tracing::warn!(%kind, "is not served any more"),
            (None, None) if before.is_none() => {
                tracing::info!(%kind, "is not served here: there are no such objects");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_secrets_are_followed_one_by_one_and_many_by_namespace() {
        let own = ObjectKey::new(OWN, "keys");
        let of = |n: usize| {
            let others = (0..n).map(|i| ObjectKey::new(["a", "b"][i % 2], format!("s{i}")));
            others.chain([own.clone()]).collect::<BTreeSet<_>>()
        };
        let few = of(SINGLE_SECRETS);
        let one_by_one = few.iter().cloned().map(Scope::One).collect();
        assert_eq!(secrets(&few), one_by_one);
        let many = ["a", "b"].map(|namespace| Scope::Namespace(namespace.into()));
        let many = many.into_iter().chain([Scope::One(own.clone())]).collect();
        assert_eq!(secrets(&of(SINGLE_SECRETS + 1)), many);
    }
}
