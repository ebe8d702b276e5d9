//! Metrics of the conversation with the API server; none without one.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;

use super::{as_rows, counter, gauge};
use crate::k8s::Meters;

/// Writes them.
pub(super) fn kubernetes(e: &mut DescriptorEncoder<'_>, meters: &Meters) -> fmt::Result {
    let stale = meters.health.stale().map_or(0, |age| age.as_secs());
    gauge(
        e,
        "forebay_config_stale_seconds",
        "For how long some objects have not been followed; 0 if all are.",
        &[(&[], stale)],
    )?;
    gauge(
        e,
        "forebay_config_from_cache",
        "1 while this node serves what it had saved, as the API server has not told everything since its start.",
        &[(&[], u64::from(meters.from_cache.load(Ordering::Relaxed)))],
    )?;
    let applied = e.encode_descriptor(
        "forebay_config_apply_seconds",
        "Time from the reading of a change until it was live; changes that came together count once.",
        None,
        MetricType::Histogram,
    )?;
    meters.applied.encode(applied)?;
    counter(
        e,
        "forebay_kubernetes_watch_errors",
        "Watches that failed and were tried again.",
        &[(&[], meters.health.errors())],
    )?;
    counter(
        e,
        "forebay_kubernetes_status_left_out",
        "Entries and conditions for which a status had no room.",
        &[(&[], meters.writes.left_out.load(Ordering::Relaxed))],
    )?;
    let writes: Vec<_> = meters
        .writes
        .iter()
        .map(|(what, outcome, count)| {
            (
                [("what", what.as_str()), ("result", outcome.as_str())],
                count,
            )
        })
        .collect();
    counter(
        e,
        "forebay_kubernetes_writes",
        "Writes to the API server by what was written and how it ended.",
        &as_rows(&writes),
    )
}
