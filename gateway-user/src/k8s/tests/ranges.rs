//! The pools as an agent follows them.

use std::time::Duration;

use http::Method;
use serde_json::json;

use super::fake::Fake;
use crate::k8s::Ranges;

const POOLS: &str = "/apis/forebay.dev/v1alpha1/addresspools";

/// Serves the group's definition, and a version that sends lists.
fn serve(fake: &Fake) {
    let mut state = fake.state();
    let version = json!({"groupVersion": "forebay.dev/v1alpha1", "version": "v1alpha1"});
    let group = json!({"name": "forebay.dev", "versions": [version]});
    state.put("/apis", json!({"groups": [group]}));
    let resource = json!({"name": "addresspools", "singularName": "addresspool", "kind": "AddressPool",
        "namespaced": false, "verbs": ["list", "watch"]});
    let list = json!({"groupVersion": "forebay.dev/v1alpha1", "resources": [resource]});
    state.put("/apis/forebay.dev/v1alpha1", list);
}

async fn until(why: &str, what: impl Fn() -> bool) {
    for _ in 0..30_000 {
        if what() {
            return;
        }
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    panic!("it does not become so: {why}");
}

#[tokio::test(start_paused = true)]
async fn pools_are_followed_as_they_come_and_change() {
    let fake = Fake::default();
    fake.state()
        .put("/version", json!({"major": "1", "minor": "33"}));
    fake.state().put("/apis", json!({"groups": []}));
    let ranges = Ranges::default();
    let followed = ranges.clone();
    let client = fake.client();
    tokio::spawn(async move { followed.run(client).await });
    assert_eq!(ranges.now(), None);
    // Without the definition nothing is given out, which is known then.
    until("no definition", || ranges.now() == Some(Vec::new())).await;

    let pool = |ranges: &[&str]| json!({"spec": {"ranges": ranges}});
    fake.state()
        .put(&format!("{POOLS}/a"), pool(&["192.0.2.0/28", "nonsense"]));
    serve(&fake);
    let holds = |address: &str| {
        let address = address.parse().unwrap();
        ranges
            .now()
            .unwrap()
            .iter()
            .any(|range| range.contains(address))
    };
    until("first pool", || holds("192.0.2.14")).await;
    assert!(!holds("192.0.2.15"));
    until("the watch", || fake.count(&Method::GET, POOLS) >= 2).await;
    fake.state()
        .put(&format!("{POOLS}/b"), pool(&["2001:db8::/120"]));
    until("second pool", || holds("2001:db8::1")).await;
    fake.state().delete(&format!("{POOLS}/a"));
    until("the first is gone", || !holds("192.0.2.14")).await;
    assert!(holds("2001:db8::1"));
}
