//! Two nodes and one lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use tokio::time::{Instant, timeout};

use super::fake::Fake;
use crate::k8s::permissions::Permissions;
use crate::k8s::seen::Seen;
use crate::k8s::writer::{Identity, Writer};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/forebay-system/leases/forebay-leader";

fn node(fake: &Fake, name: &str) -> Writer {
    let identity = Identity {
        node: name.into(),
        namespace: "forebay-system".into(),
        permissions: Permissions::default(),
    };
    Writer::start(fake.client(), Seen::default(), &identity)
}

async fn until(what: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    let poll = async {
        while !what() {
            tokio::time::sleep_until(Instant::now() + Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(300), poll)
        .await
        .expect("it becomes so");
    start.elapsed()
}

fn holder(fake: &Fake) -> String {
    let lease = fake.state().objects[LEASE].clone();
    lease["spec"]["holderIdentity"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_gives_it_back_when_it_stops() {
    let fake = Fake::default();
    let (a, b) = (node(&fake, "a"), node(&fake, "b"));
    until(|| a.leads() || b.leads()).await;
    let end = Instant::now() + Duration::from_secs(60);
    tokio::time::sleep_until(end).await;
    let (first, second) = if a.leads() { (a, b) } else { (b, a) };
    assert!(first.leads() && !second.leads());
    let renewals = fake.count(&Method::PUT, "leases");
    assert!((28..=31).contains(&renewals), "{renewals}");
    let held = holder(&fake);
    let lease = fake.state().objects[LEASE].clone();
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 10);
    first.stop().await;
    assert_eq!(holder(&fake), "");
    let took = until(|| second.leads()).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_ne!(holder(&fake), held);
    assert_eq!(fake.state().objects[LEASE]["spec"]["leaseTransitions"], 1);
}

/// The holder cannot reach the API server: it stops before anyone else may begin.
#[tokio::test(start_paused = true)]
async fn never_two_at_a_time() {
    let fake = Fake::default();
    let a = node(&fake, "a");
    until(|| a.leads()).await;
    let b = node(&fake, "b");
    until(|| fake.count(&Method::GET, "leases") >= 3).await;
    let cut = Arc::new(AtomicBool::new(true));
    let is_cut = Arc::clone(&cut);
    let start = Instant::now();
    fake.hook(move |_, method, path| {
        let renewal = *method == Method::PUT && path == LEASE;
        (renewal && is_cut.load(Ordering::Relaxed)).then_some(500)
    });
    let lost_after = until(|| !a.leads()).await;
    assert!(
        !b.leads() && lost_after <= Duration::from_secs(7),
        "{lost_after:?}"
    );
    cut.store(false, Ordering::Relaxed);
    drop(a);
    until(|| b.leads()).await;
    assert!(
        start.elapsed() >= Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}

/// A process that comes after another on the same node waits like everybody else.
#[tokio::test(start_paused = true)]
async fn a_second_process_of_a_node_is_another_holder() {
    let fake = Fake::default();
    let old = node(&fake, "a");
    until(|| old.leads()).await;
    let new = node(&fake, "a");
    let end = Instant::now() + Duration::from_secs(30);
    tokio::time::sleep_until(end).await;
    assert!(old.leads() && !new.leads());
    drop(old);
    let took = until(|| new.leads()).await;
    assert!(
        took > Duration::from_secs(7) && took < Duration::from_secs(14),
        "{took:?}"
    );
}
