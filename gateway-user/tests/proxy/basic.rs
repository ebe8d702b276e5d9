//! Requests there and back.

use crate::support::*;
use gateway_user::snapshot::TrafficPolicy;

#[tokio::test]
async fn a_request_goes_through_and_keeps_its_connections() {
    let server = backend(fixed(200, "hello")).await;
    let at = free_address();
    let cluster = cluster("a", &TrafficPolicy::default(), &[server.address]);
    let proxy = start(1, &snapshot(at, &[(1, cluster)], |_| {}));
    let mut client = Client::connect(at).await;
    for _ in 0..3 {
        let answer = client.get("/x?y=1").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    }
    assert_eq!(
        server.connections.load(std::sync::atomic::Ordering::SeqCst),
        1
    );
    assert_eq!(server.count(), 3);
    let seen = server.seen.lock().unwrap()[0].clone();
    assert_eq!(seen.path(), "/x?y=1");
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(proxy.open_connections(), 1);
}
