//! Figures of clusters: requests, permits, ejections, endpoints, latency.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::DescriptorEncoder;

use super::{CLASSES, Row, counter, gauge};
use crate::proxy::ClusterStatus;
use crate::proxy::stats::BUCKETS_US;

/// Collects one figure of every cluster.
fn per_cluster<const N: usize>(
    clusters: &[ClusterStatus],
    labels: [(&'static str, &'static str); N],
    figure: impl Fn(&ClusterStatus, usize) -> u64,
) -> Vec<(Vec<(String, String)>, u64)> {
    clusters
        .iter()
        .flat_map(|cluster| {
            let figure = &figure;
            let rows = labels.iter().enumerate().map(move |(i, (key, value))| {
                let labels = vec![
                    ("cluster".to_owned(), cluster.name.to_string()),
                    ((*key).to_owned(), (*value).to_owned()),
                ];
                (labels, figure(cluster, i))
            });
            rows.collect::<Vec<_>>()
        })
        .collect()
}

fn emit(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: &[(Vec<(String, String)>, u64)],
    is_counter: bool,
) -> fmt::Result {
    let labels: Vec<Vec<(&str, &str)>> = rows
        .iter()
        .map(|(labels, _)| {
            labels
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect()
        })
        .collect();
    let rows: Vec<Row<'_>> = labels
        .iter()
        .zip(rows)
        .map(|(l, (_, n))| (&l[..], *n))
        .collect();
    if is_counter {
        counter(e, name, help, &rows)
    } else {
        gauge(e, name, help, &rows)
    }
}

/// Writes them.
pub(super) fn clusters(e: &mut DescriptorEncoder<'_>, clusters: &[ClusterStatus]) -> fmt::Result {
    let classes = CLASSES.map(|class| ("class", class));
    let rows = per_cluster(clusters, classes, |c, i| c.requests.classes[i]);
    emit(
        e,
        "forebay_cluster_requests",
        "Requests to a cluster by class of the response code.",
        &rows,
        true,
    )?;
    let kinds = [
        ("kind", "connections"),
        ("kind", "requests"),
        ("kind", "pending"),
    ];
    let rows = per_cluster(clusters, kinds, |c, i| {
        u64::from([c.in_use.connections, c.in_use.requests, c.in_use.pending][i])
    });
    emit(
        e,
        "forebay_cluster_in_use",
        "Permits in use now: connections, active requests, waiting requests.",
        &rows,
        false,
    )?;
    health(e, clusters)
}

/// Ejections, endpoints, connects and latency of every cluster.
fn health(e: &mut DescriptorEncoder<'_>, clusters: &[ClusterStatus]) -> fmt::Result {
    let outcomes = [("outcome", "ejected"), ("outcome", "suppressed_by_cap")];
    let rows = per_cluster(clusters, outcomes, |c, i| {
        [c.ejections, c.ejections_suppressed][i]
    });
    emit(
        e,
        "forebay_cluster_ejections",
        "Endpoints that outlier detection took out, or would have without the cap.",
        &rows,
        true,
    )?;
    let health = [("health", "usable"), ("health", "ejected")];
    let rows = per_cluster(clusters, health, |c, i| {
        c.endpoints
            .iter()
            .filter(|endpoint| endpoint.ejected == (i == 1))
            .count() as u64
    });
    emit(
        e,
        "forebay_cluster_endpoints",
        "Endpoints by health.",
        &rows,
        false,
    )?;
    let rows = per_cluster(clusters, [("to", "endpoint")], |c, _| c.requests.connects);
    emit(
        e,
        "forebay_cluster_connects",
        "Connections opened to endpoints.",
        &rows,
        true,
    )?;
    let rows: Vec<_> = clusters.iter().flat_map(latency).collect();
    emit(
        e,
        "forebay_cluster_latency_bucket",
        "Requests that took at most `le` seconds.",
        &rows,
        true,
    )
}

/// Cumulated latency buckets of one cluster.
fn latency(cluster: &ClusterStatus) -> Vec<(Vec<(String, String)>, u64)> {
    let mut sum = 0;
    cluster
        .requests
        .latency
        .iter()
        .enumerate()
        .map(|(i, n)| {
            sum += n;
            let mut bound = String::new();
            match BUCKETS_US.get(i) {
                // Writing to a String cannot fail.
                Some(us) => drop(write!(bound, "{}", *us as f64 / 1e6)),
                None => bound.push_str("+Inf"),
            }
            let labels = vec![
                ("cluster".to_owned(), cluster.name.to_string()),
                ("le".to_owned(), bound),
            ];
            (labels, sum)
        })
        .collect()
}
