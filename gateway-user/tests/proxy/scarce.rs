//! What the proxy does without while memory is scarce: the files of a control group are played by others.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gateway_user::proxy::headroom::{Headroom, Scarcity};
use gateway_user::proxy::stats::Event;
use gateway_user::proxy::{Proxy, ProxySettings, Timers};
use gateway_user::snapshot::TrafficPolicy;

use crate::support::*;

/// A control group's directory; removed with this.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Self {
        let name = format!("forebay-scarce-{name}-{}", std::process::id());
        let group = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&group.0).unwrap();
        group.write("memory.max", "1000000000");
        group.write("memory.stat", "file 0\n");
        group.taken(100);
        group
    }

    fn write(&self, name: &str, text: &str) {
        // In one step: it is read meanwhile.
        let new = self.0.join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, self.0.join(name)).unwrap();
    }

    /// So many thousandths of the limit.
    fn taken(&self, part: u64) {
        self.write("memory.current", &format!("{}\n", part * 1_000_000));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

async fn served(group: &Group, workers: usize) -> (BackendServer, Proxy, SocketAddr) {
    let server = backend(fixed(200, "a")).await;
    let at = free_address();
    let live = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let settings = ProxySettings {
        workers,
        headroom: Headroom::of_groups(vec![group.0.clone()]),
        timers: Timers {
            drain_idle: Duration::from_millis(500),
            ..Timers::default()
        },
        ..ProxySettings::default()
    };
    let proxy = start_with(settings, &snapshot(at, &[(1, live)], |_| {}));
    (server, proxy, at)
}

async fn becomes(proxy: &Proxy, group: &Group, part: u64, scarcity: Scarcity) {
    group.taken(part);
    until(|| proxy.scarcity() == scarcity).await;
}

fn count(proxy: &Proxy, event: Event) -> u64 {
    proxy.stats().event(event)
}

async fn of_workers(workers: usize) {
    let group = Group::new(&format!("steps-{workers}"));
    let (server, proxy, at) = served(&group, workers).await;
    let mut kept = Client::connect(at).await;
    assert_eq!(kept.get("/").await.status, 200);

    // Tight: who is idle is closed, and so is who is answered.
    let mut other = Client::connect(at).await;
    becomes(&proxy, &group, 900, Scarcity::Tight).await;
    assert!(kept.closed().await);
    let answer = other.get("/").await;
    assert!(
        answer
            .head
            .to_ascii_lowercase()
            .contains("connection: close")
    );
    assert!(other.closed().await);
    assert!(count(&proxy, Event::Shed) >= 1);
    until(|| proxy.open_connections() == 0).await;

    // Full: who comes waits.
    becomes(&proxy, &group, 930, Scarcity::Full).await;
    // An `accept` that was waiting already takes one for each worker.
    let mut waiting = Vec::new();
    for _ in 0..2 * workers + 2 {
        let mut client = Client::connect(at).await;
        client.send(&request("/")).await;
        waiting.push(client);
    }
    until(|| count(&proxy, Event::AcceptPauses) >= 1).await;
    let before = server.count();
    assert!(before <= 2 + workers, "{before}");

    // Exhausted: a request on a connection that is there is refused, and reaches nobody.
    becomes(&proxy, &group, 100, Scarcity::None).await;
    for mut client in waiting {
        assert_eq!(client.next().await.unwrap().status, 200);
    }
    let mut client = Client::connect(at).await;
    assert_eq!(client.get("/").await.status, 200);
    let before = server.count();
    // It is closed half a second after it was idle.
    becomes(&proxy, &group, 960, Scarcity::Exhausted).await;
    let answer = client.get("/").await;
    assert_eq!((answer.status, &*answer.body), (503, "overloaded\n"));
    assert!(answer.head.contains("x-envoy-overloaded: true"));
    let flags = proxy.stats().read().flags;
    assert!(flags.contains(&("OM", 1)), "{flags:?}");
    assert_eq!(server.count(), before);

    // There is room again, and all is as before.
    becomes(&proxy, &group, 100, Scarcity::None).await;
    let mut client = Client::connect(at).await;
    for _ in 0..3 {
        assert_eq!(client.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn each_step_does_without_something_more_with_one_worker() {
    of_workers(1).await;
}

#[tokio::test]
async fn each_step_does_without_something_more_with_two_workers() {
    of_workers(2).await;
}

#[tokio::test]
async fn each_step_does_without_something_more_with_four_workers() {
    of_workers(4).await;
}

#[tokio::test]
async fn who_owes_a_head_has_a_second_where_none_is_accepted() {
    let group = Group::new("heads");
    let (server, proxy, at) = served(&group, 1).await;
    let begun = Instant::now();
    let mut silent = Client::connect(at).await;
    let mut slow = Client::connect(at).await;
    slow.send("GET / HTTP/1.1\r\nhost: test.example\r\nx: ")
        .await;
    until(|| proxy.open_connections() == 2).await;
    becomes(&proxy, &group, 930, Scarcity::Full).await;
    assert!(silent.closed().await);
    // What it is told before is that it was too slow.
    drop(slow.next().await);
    assert!(slow.closed().await);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1), "{took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    until(|| count(&proxy, Event::HeaderTimeouts) == 2).await;
    assert_eq!(server.count(), 0);
}
