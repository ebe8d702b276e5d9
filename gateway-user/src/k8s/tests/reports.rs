//! What nodes say of themselves, and who reads it.

use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::time::Instant;

use super::fake::Fake;
use crate::k8s::NodeReport;
use crate::k8s::permissions::Permissions;
use crate::k8s::seen::Seen;
use crate::k8s::writer::{Identity, Writer};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/forebay-system/leases";

fn node(fake: &Fake, name: &str) -> Writer {
    let identity = Identity {
        node: name.into(),
        namespace: "forebay-system".into(),
        permissions: Permissions::default(),
    };
    Writer::start(fake.client(), Seen::default(), &identity)
}

fn report(fingerprint: u64) -> NodeReport {
    NodeReport {
        fingerprint,
        ..NodeReport::default()
    }
}

async fn rest(milliseconds: u64) {
    tokio::time::sleep_until(Instant::now() + Duration::from_millis(milliseconds)).await;
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_reads_and_only_what_changes_is_written() {
    let fake = Fake::default();
    fake.state().put("/api/v1/nodes/b", json!({}));
    let (mut a, mut b) = (node(&fake, "a"), node(&fake, "b"));
    while !a.leads() && !b.leads() {
        rest(1).await;
    }
    rest(500).await;
    let (leader, other, name) = match a.leads() {
        true => (&mut a, &mut b, "b"),
        false => (&mut b, &mut a, "a"),
    };
    for fingerprint in [7, 7, 8] {
        other.report(report(fingerprint));
        let _ = tokio::time::timeout(Duration::from_secs(1), leader.reports_change()).await;
        let said = leader.reports();
        assert_eq!(said.get(name), Some(&report(fingerprint)));
    }
    let path = format!("{LEASES}/forebay-node-{name}");
    let lease = fake.state().objects[&path].clone();
    assert_eq!(
        lease["metadata"]["labels"]["app.kubernetes.io/managed-by"],
        "forebay"
    );
    let owner = &lease["metadata"]["ownerReferences"];
    assert_eq!(owner.is_array(), name == "b", "{owner}");
    assert_eq!(fake.count(&Method::PATCH, "forebay-node-"), 2);
    assert!(other.reports().is_empty());
    // A Node that is gone takes its report along.
    fake.state().delete(&path);
    rest(100).await;
    assert!(leader.reports().is_empty());
}
