//! What each node says of itself, on a Lease of its own, and what the lease holder reads of the others.
//!
//! A report is written when it changes, which is when listeners come and go: not with every change of a route.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::core::ApiResource;
use kube::core::params::{Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::access::{Access, Failure, MANAGER, Target, What, backoff, path};
use super::gateway_objects::MANAGED_BY;
use super::lease::Leadership;
use super::writer::Identity;
use crate::snapshot::{BindKey, Transport};

/// Begin of the Leases' names.
const PREFIX: &str = "forebay-node-";
/// Label of the Leases, beside that of who makes them.
const LABEL: (&str, &str) = ("app.kubernetes.io/component", "node-report");
/// Annotation that holds the report.
const REPORT: &str = "forebay.dev/report";
/// Most listeners that a report names, and characters of each reason: an annotation has bounds.
const MOST: usize = 100;
const LONGEST: usize = 300;
/// Between two writes.
const GAP: Duration = Duration::from_millis(100);
/// After a failure.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// What one node says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// See [`crate::status::agreement::fingerprint`].
    pub fingerprint: u64,
    /// Sockets that it could not open, each with the reason as a sentence.
    pub failed_listeners: Vec<(BindKey, String)>,
}

/// What the other nodes say, by their names; nothing while this node does not lead.
pub type Reports = Arc<BTreeMap<String, NodeReport>>;

/// A report as it is written.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Written {
    /// Hexadecimal: a number in JSON has 53 bits.
    serves: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed: Vec<Failed>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Failed {
    address: std::net::IpAddr,
    port: u16,
    protocol: u8,
    why: String,
}

fn written(said: &NodeReport) -> Written {
    let failed = said.failed_listeners.iter().take(MOST);
    Written {
        serves: format!("{:016x}", said.fingerprint),
        failed: failed
            .map(|(bind, why)| Failed {
                address: bind.address,
                port: bind.port,
                protocol: bind.transport.number(),
                why: why.chars().take(LONGEST).collect(),
            })
            .collect(),
    }
}

/// A report that cannot be read is none.
fn read(lease: &Lease) -> Option<NodeReport> {
    let text = lease.metadata.annotations.as_ref()?.get(REPORT)?;
    let written: Written = serde_json::from_str(text).ok()?;
    let failed = written.failed.into_iter().take(MOST).filter_map(|failed| {
        let bind = BindKey {
            address: failed.address,
            port: failed.port,
            transport: Transport::of_number(failed.protocol)?,
        };
        Some((bind, failed.why.chars().take(LONGEST).collect()))
    });
    Some(NodeReport {
        fingerprint: u64::from_str_radix(&written.serves, 16).ok()?,
        failed_listeners: failed.collect(),
    })
}

/// Writes this node's reports.
pub(super) struct Reporter {
    access: Access,
    identity: Identity,
    resource: ApiResource,
    /// Of the Node, with which the Lease goes.
    uid: Option<String>,
}

impl Reporter {
    pub(super) fn new(access: Access, identity: &Identity) -> Self {
        Self {
            access,
            identity: identity.clone(),
            resource: ApiResource::erase::<Lease>(&()),
            uid: None,
        }
    }

    /// Works until it is dropped.
    pub(super) async fn run(mut self, mut said: watch::Receiver<Option<NodeReport>>) {
        let mut failures = 0;
        let mut told = None;
        while said.wait_for(Option::is_some).await.is_ok() {
            let newest = said.borrow_and_update().clone();
            let result = match &newest {
                Some(report) if newest != told => self.write(report).await,
                _ => Ok(()),
            };
            let wait = match result {
                Ok(()) => {
                    (told, failures) = (newest, 0);
                    if said.changed().await.is_err() {
                        return;
                    }
                    GAP
                }
                Err(failure) => {
                    failures += 1;
                    // Of a missing rule it is said which.
                    if failures == 1 && failure != Failure::Forbidden {
                        let Identity {
                            node, namespace, ..
                        } = &self.identity;
                        tracing::warn!("Lease {namespace}/{PREFIX}{node}: {failure}");
                    }
                    backoff(AGAIN.0, AGAIN.1, failures - 1)
                }
            };
            tokio::time::sleep_until(Instant::now() + wait).await;
        }
    }

    async fn write(&mut self, report: &NodeReport) -> Result<(), Failure> {
        if self.uid.is_none() {
            let uid = self.access.node_uid(What::Lease, &self.identity.node);
            self.uid = Some(match uid.await {
                // A process that runs beside a cluster.
                Err(Failure::Gone) => String::new(),
                uid => uid?,
            });
        }
        let text = serde_json::to_string(&written(report));
        let text = text.map_err(|error| Failure::Invalid(error.to_string()))?;
        let Identity {
            node, namespace, ..
        } = &self.identity;
        let name = format!("{PREFIX}{node}");
        let mut metadata = json!({
            "name": name,
            "namespace": namespace,
            "labels": {MANAGED_BY.0: MANAGED_BY.1, LABEL.0: LABEL.1},
            "annotations": {REPORT: text},
        });
        if let Some(uid) = self.uid.as_ref().filter(|uid| !uid.is_empty()) {
            // A Node that is deleted takes its report along.
            metadata["ownerReferences"] = json!([
                {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
            ]);
        }
        let lease = json!({
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "metadata": metadata,
            "spec": {"holderIdentity": node},
        });
        let params = PatchParams::apply(MANAGER).force();
        let request = path(&self.resource, namespace).patch(&name, &params, &Patch::Apply(lease));
        let target = Target {
            what: What::Lease,
            resource: &self.resource,
            part: "",
            namespace,
            verb: "patch",
        };
        self.access.call::<Value>(target, request).await.map(drop)
    }
}

/// Reads the reports of the other nodes while this node leads.
pub(super) async fn follow(
    access: Access,
    identity: Identity,
    mut leadership: Leadership,
    reports: watch::Sender<Reports>,
) {
    loop {
        leadership.becomes(true).await;
        tokio::select! {
            () = leadership.becomes(false) => {}
            () = follow_once(&access, &identity, &reports) => {}
        }
        reports.send_replace(Reports::default());
    }
}

async fn follow_once(access: &Access, identity: &Identity, reports: &watch::Sender<Reports>) {
    let api: Api<Lease> = Api::namespaced(access.client().clone(), &identity.namespace);
    let config = watcher::Config::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
    let mut events = pin!(watcher::watcher(api, config).default_backoff());
    let mut nodes = BTreeMap::new();
    let mut listed = None;
    while let Some(event) = events.next().await {
        let node = |lease: &Lease| {
            let name = lease.metadata.name.as_ref()?.strip_prefix(PREFIX)?;
            (name != identity.node).then(|| name.to_owned())
        };
        let insert = |nodes: &mut BTreeMap<_, _>, lease: &Lease| {
            let Some(node) = node(lease) else { return };
            match read(lease) {
                Some(report) => drop(nodes.insert(node, report)),
                None => drop(nodes.remove(&node)),
            }
        };
        match event {
            Ok(Event::Init) => listed = Some(BTreeMap::new()),
            Ok(Event::InitApply(lease)) => insert(listed.get_or_insert_default(), &lease),
            Ok(Event::InitDone) => nodes = listed.take().unwrap_or_default(),
            Ok(Event::Apply(lease)) => insert(&mut nodes, &lease),
            Ok(Event::Delete(lease)) => {
                if let Some(node) = node(&lease) {
                    nodes.remove(&node);
                }
            }
            Err(error) => {
                let resource = ApiResource::erase::<Lease>(&());
                let target = Target {
                    what: What::Lease,
                    resource: &resource,
                    part: "",
                    namespace: &identity.namespace,
                    verb: "list",
                };
                let failure = access.judge(&target, error);
                tracing::debug!("reports of the nodes: {failure}");
                continue;
            }
        }
        reports.send_if_modified(|before| {
            let changed = **before != nodes;
            if changed {
                *before = Arc::new(nodes.clone());
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> NodeReport {
        let bind = BindKey {
            address: [192, 0, 2, 1].into(),
            port: 53,
            transport: Transport::Udp,
        };
        NodeReport {
            fingerprint: u64::MAX - 7,
            failed_listeners: vec![(bind, "no".to_owned())],
        }
    }

    fn lease(text: &str) -> Lease {
        let annotations = [(REPORT.to_owned(), text.to_owned())].into();
        let mut lease = Lease::default();
        lease.metadata.annotations = Some(annotations);
        lease
    }

    #[test]
    fn what_is_written_is_read() {
        let text = serde_json::to_string(&written(&report())).unwrap();
        assert_eq!(read(&lease(&text)), Some(report()));
    }

    #[test]
    fn what_cannot_be_read_is_no_report() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"serves":"x"}"#,
            r#"{"serves":"1","failed":[{}]}"#,
        ] {
            assert_eq!(read(&lease(bad)), None, "{bad}");
        }
        assert_eq!(read(&Lease::default()), None);
        // What a later version adds is no obstacle.
        assert!(read(&lease(r#"{"serves":"1f","more":1}"#)).is_some());
    }

    #[test]
    fn a_report_has_bounds() {
        let mut many = report();
        let one = (many.failed_listeners[0].0, "x".repeat(1000));
        many.failed_listeners = vec![one; 1000];
        let text = serde_json::to_string(&written(&many)).unwrap();
        assert!(text.len() < 64 << 10, "{}", text.len());
    }
}
