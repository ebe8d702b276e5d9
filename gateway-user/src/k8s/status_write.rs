//! One write of a status: a JSON merge patch that names the version it starts from; if that has passed, the object is read
//! and merged anew.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kube::core::ApiResource;
use kube::core::params::{GetParams, Patch, PatchParams};
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::{Access, Failure, MANAGER, Target, What, backoff, path};
use super::seen::Known;
use crate::status::Status;
use crate::status::patch::{Change, Outcome, patch};
use crate::translate::ObjectId;

/// How often an object is read anew because it has changed, before it has to wait.
const TRIES: u32 = 4;

/// One write with all that it needs.
pub(super) struct Write {
    pub(super) access: Access,
    pub(super) what: What,
    pub(super) resource: ApiResource,
    pub(super) id: ObjectId,
    pub(super) desired: Option<Status>,
}

/// What the API server answers, as far as it is of use.
#[derive(Deserialize)]
struct Answer {
    metadata: AnswerMetadata,
    #[serde(default)]
    status: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnswerMetadata {
    uid: Box<str>,
    resource_version: Box<str>,
}

impl Write {
    /// Writes what differs from `known`; gives what was there before, and what is there then.
    pub(super) async fn run(&self, mut known: Known) -> Result<(Known, Known), Failure> {
        let mut tried = 0;
        loop {
            let current = parsed(&known);
            let change = match patch(self.id.kind, self.desired.as_ref(), &current, &timestamp()) {
                Outcome::Nothing => return Ok((known.clone(), known)),
                Outcome::Behind(change) | Outcome::Write(change) => change,
            };
            match self.send(&known, change).await {
                Err(Failure::Conflict(_)) if tried < TRIES => {
                    let wait = backoff(Duration::from_millis(20), Duration::from_secs(1), tried);
                    if tried > 0 {
                        tokio::time::sleep(wait).await;
                    }
                    tried += 1;
                    known = self.read().await?;
                }
                result => return result.map(|now| (known, now)),
            }
        }
    }

    fn target(&self, part: &'static str, verb: &'static str) -> Target<'_> {
        Target {
            what: self.what,
            resource: &self.resource,
            part,
            namespace: &self.id.key.namespace,
            verb,
        }
    }

    async fn send(&self, known: &Known, change: Change) -> Result<Known, Failure> {
        let left_out = u64::try_from(change.left_out).unwrap_or(u64::MAX);
        if left_out > 0 {
            let counter = &self.access.counters().left_out;
            counter.fetch_add(left_out, Ordering::Relaxed);
            tracing::warn!(
                "the status of {} has no room for {left_out} of its entries",
                self.id
            );
        }
        let body = json!({
            "metadata": {"uid": &*known.uid, "resourceVersion": &*known.resource_version},
            "status": change.fields,
        });
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let request = path(&self.resource, &self.id.key.namespace);
        let request =
            request.patch_subresource("status", &self.id.key.name, &params, &Patch::Merge(body));
        let answer = self
            .access
            .call(self.target("status", "patch"), request)
            .await;
        answer.map(Answer::known)
    }

    async fn read(&self) -> Result<Known, Failure> {
        let request = path(&self.resource, &self.id.key.namespace);
        let request = request.get(&self.id.key.name, &GetParams::default());
        let answer = self.access.call(self.target("", "get"), request).await;
        answer.map(Answer::known)
    }
}

impl Answer {
    fn known(self) -> Known {
        Known {
            uid: self.metadata.uid,
            resource_version: self.metadata.resource_version,
            status: (!self.status.is_null()).then(|| self.status.to_string().into()),
        }
    }
}

/// The status that is there.
pub(super) fn parsed(known: &Known) -> Value {
    let text = known.status.as_deref().unwrap_or("null");
    serde_json::from_str(text).unwrap_or_default()
}

/// Now, as Kubernetes writes it.
pub(super) fn timestamp() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
