//! The Secret that the nodes share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::fake::Fake;
use crate::k8s::permissions::Permissions;
use crate::k8s::seen::Seen;
use crate::k8s::writer::{Identity, Writer};
use crate::k8s::{Outcome, What};

const KEYS: &str = "/api/v1/namespaces/forebay-system/secrets/forebay-keys";

fn node(fake: &Fake, name: &str) -> Writer {
    let identity = Identity {
        node: name.into(),
        namespace: "forebay-system".into(),
        permissions: Permissions::default(),
    };
    Writer::start(fake.client(), Seen::default(), &identity)
}

async fn rest(seconds: u64) {
    tokio::time::sleep_until(Instant::now() + Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn one_node_makes_the_secret_and_the_next_one_leaves_it() {
    let fake = Fake::default();
    let nodes = ["a", "b", "c"].map(|name| node(&fake, name));
    rest(300).await;
    let made = fake.state().objects[KEYS].clone();
    assert_eq!(made["data"].as_object().unwrap().len(), 3);
    assert_eq!(fake.count(&Method::POST, "secrets"), 1);
    let written = |node: &Writer| node.counters().get(What::Secret, Outcome::Written);
    assert_eq!(nodes.iter().map(written).sum::<u64>(), 1);
    let [a, b, c] = nodes;
    let (leader, others) = match [a.leads(), b.leads()] {
        [true, _] => (a, [b, c]),
        [_, true] => (b, [a, c]),
        _ => (c, [a, b]),
    };
    leader.stop().await;
    rest(300).await;
    assert!(others.iter().any(Writer::leads));
    assert_eq!(fake.state().objects[KEYS], made);
}

#[tokio::test(start_paused = true)]
async fn it_is_made_anew_as_soon_as_it_may_and_never_over_another_one() {
    let fake = Fake::default();
    let forbidden = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&forbidden);
    fake.hook(move |_, method, path| {
        let create = *method == Method::POST && path.ends_with("/secrets");
        (create && still.load(Ordering::Relaxed)).then_some(403)
    });
    let node = node(&fake, "a");
    rest(30).await;
    assert!(!fake.state().objects.contains_key(KEYS));
    assert!(node.counters().get(What::Secret, Outcome::Forbidden) > 2);
    forbidden.store(false, Ordering::Relaxed);
    rest(120).await;
    assert!(fake.state().objects.contains_key(KEYS));
    // What somebody else has made wrongly stays as it is.
    let mut bad = fake.state().objects[KEYS].clone();
    bad["data"]["hash-seed"] = "AAEC".into();
    fake.state().put(KEYS, bad.clone());
    rest(300).await;
    assert_eq!(fake.state().objects[KEYS]["data"], bad["data"]);
    assert_eq!(fake.count(&Method::PUT, "secrets"), 0);
}
