//! Gives back what a request held.

use std::sync::Arc;

use super::cluster::LiveCluster;
use super::permit;
use super::pool::{Lease, Leased};

/// Gives the request's permit and its connection back; `body_taken`: the endpoint has got the whole request.
pub(super) fn release(lease: Lease, cluster: &Arc<LiveCluster>, body_taken: bool) {
    let Lease {
        connection,
        request,
    } = lease;
    let mut connection = match connection {
        Leased::Http1(connection) => connection,
        Leased::Http2(stream) => {
            drop(request);
            drop(stream);
            return;
        }
    };
    connection.end();
    drop(request);
    if connection.origin.is_some() {
        // Its PROXY header names one client, who may never ask again.
        return;
    }
    let max = cluster.view().policy.pool.max_requests_per_connection;
    if max.is_some_and(|max| connection.served >= max) {
        return;
    }
    if connection.is_ready() {
        permit::hand_over(cluster, connection);
    } else if body_taken {
        // The response is complete, but the codec has not come round yet.
        let cluster = Arc::clone(cluster);
        tokio::task::spawn_local(async move {
            if connection.ready().await {
                permit::hand_over(&cluster, connection);
            }
        });
    }
}
