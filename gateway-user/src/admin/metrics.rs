//! Every metric of the daemon, by name. A scrape reads the counters where they are; nothing is kept here.
//!
//! Series are bounded by the configuration: per cluster, never per route, client or path.

mod certificates;
mod clusters;
mod kubernetes;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use self::certificates::certificates;
use self::clusters::clusters;
use self::kubernetes::kubernetes;
use super::certs;
use crate::app::view::Shared;
use crate::datapath::status::{Forward, NodeStatus, ProbeStatus};
use crate::datapath::{AttachState, Attachment, DatapathStatus};
use crate::drain::Phase;
use crate::k8s::Meters;
use crate::l4::liveness::Standing;
use crate::l4::paths::PathReport;
use crate::proxy::stats::Reading;

/// Names of response classes, in the order of the counters.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// `GET /metrics`.
pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .with_state(shared)
}

/// `GET /metrics` while there is no proxy yet: the version, and how the conversation with the API server goes.
pub fn early(meters: Option<Meters>) -> Router {
    let scrape = async move || encoded(Box::new(Early(meters)));
    Router::new().route("/metrics", get(scrape))
}

async fn scrape(State(shared): State<Arc<Shared>>) -> Response {
    let datapath = match shared.kernel() {
        Some(kernel) => kernel.status().await,
        None => None,
    };
    encoded(Box::new(Reader(shared, datapath)))
}

fn encoded(collector: Box<dyn Collector>) -> Response {
    let mut registry = Registry::default();
    registry.register_collector(collector);
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => (
            [(
                CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[derive(Debug)]
struct Early(Option<Meters>);

impl Collector for Early {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        build_info(&mut encoder)?;
        match &self.0 {
            Some(meters) => kubernetes(&mut encoder, meters),
            None => Ok(()),
        }
    }
}

fn build_info(e: &mut DescriptorEncoder<'_>) -> fmt::Result {
    counter(
        e,
        "forebay_build_info",
        "Version of the daemon.",
        &[(&[("version", env!("CARGO_PKG_VERSION"))], 1)],
    )
}

#[derive(Debug)]
struct Reader(Arc<Shared>, Option<DatapathStatus>);

impl Collector for Reader {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let e = &mut encoder;
        let view = self.0.view();
        let reading = self.0.proxy.stats().read();
        let draining = u64::from(self.0.drain() != Phase::Serving);
        build_info(e)?;
        gauge(
            e,
            "forebay_config_generation",
            "Number of the live configuration.",
            &[(&[], view.snapshot.generation)],
        )?;
        gauge(
            e,
            "forebay_config_problems",
            "Files and objects with an error.",
            &[(&[], view.problems.len() as u64)],
        )?;
        let unwell = view.statuses.iter().filter(|s| !s.well()).count() as u64;
        gauge(
            e,
            "forebay_objects_not_well",
            "Objects with a condition that is not well.",
            &[(&[], unwell)],
        )?;
        gauge(
            e,
            "forebay_draining",
            "1 while this node drains.",
            &[(&[], draining)],
        )?;
        gauge(
            e,
            "forebay_downstream_connections_open",
            "Client connections open now.",
            &[(&[], reading.open_connections as u64)],
        )?;
        gauge(
            e,
            "forebay_scarcity",
            "How little is left of descriptors and memory: 0 enough, 1 connections are not kept, 2 none is accepted, 3 requests get 503.",
            &[(&[], self.0.proxy.scarcity() as u64)],
        )?;
        gauge(
            e,
            "forebay_udp_sessions_open",
            "UDP sessions open now.",
            &[(&[], reading.open_sessions as u64)],
        )?;
        totals(e, &reading)?;
        certificates(e, &certs::list(&view.snapshot, certs::now()))?;
        if let Some(meters) = &self.0.kubernetes {
            kubernetes(e, meters)?;
        }
        if let Some(status) = &self.1 {
            datapath(e, status)?;
        }
        clusters(e, &self.0.proxy.endpoints())
    }
}

/// What is counted for the whole node.
fn totals(e: &mut DescriptorEncoder<'_>, reading: &Reading) -> fmt::Result {
    let named = |label: &'static str, counts: &[(&'static str, u64)]| -> Vec<_> {
        counts
            .iter()
            .map(|(name, n)| ([(label, *name)], *n))
            .collect()
    };
    let events = named("event", &reading.events);
    let help = "What happened to connections, by event.";
    counter(e, "forebay_proxy_events", help, &as_rows(&events))?;
    let refusals = named("reason", &reading.refusals);
    let help = "Requests refused before they were routed, by reason.";
    counter(e, "forebay_requests_refused", help, &as_rows(&refusals))?;
    let flags = named("flag", &reading.flags);
    counter(
        e,
        "forebay_responses_by_flag",
        "Requests by response flag.",
        &as_rows(&flags),
    )?;
    let classes: Vec<_> = CLASSES.into_iter().zip(reading.classes).collect();
    let classes = named("class", &classes);
    let help = "Requests by class of the response code.";
    counter(e, "forebay_requests", help, &as_rows(&classes))
}

/// What the kernel half counts and holds.
fn datapath(e: &mut DescriptorEncoder<'_>, status: &DatapathStatus) -> fmt::Result {
    let reasons = status.counters.iter();
    let reasons: Vec<_> = reasons.map(|(name, n)| ([("reason", *name)], *n)).collect();
    let help = "Packets and socket lookups by what became of them.";
    counter(e, "forebay_xdp_packets", help, &as_rows(&reasons))?;
    let rows = u64::from(status.rows_in_transition);
    gauge(
        e,
        "forebay_rows_in_transition",
        "Rows in transition.",
        &[(&[], rows)],
    )?;
    shield(e, status)?;
    uplinks(e, status)?;
    packets(e, status)?;
    let nodes = status.nodes.iter();
    let owned: Vec<_> = nodes
        .map(|n| ([("node", n.name.as_str())], u64::from(n.rows)))
        .collect();
    gauge(
        e,
        "forebay_rows_owned",
        "Rows that each listed node owns.",
        &as_rows(&owned),
    )?;
    probes(e, &status.nodes)?;
    paths(e, &status.nodes)
}

/// How VIPs are kept from NAT.
fn shield(e: &mut DescriptorEncoder<'_>, status: &DatapathStatus) -> fmt::Result {
    let shield = &status.nat_shield;
    let help = "VIP addresses whose packets nobody's NAT sees.";
    let shielded = shield.addresses.len() as u64;
    gauge(
        e,
        "forebay_nat_shielded_addresses",
        help,
        &[(&[], shielded)],
    )?;
    let help = "1 while VIPs are served that are not kept from NAT.";
    let failed = u64::from(shield.failed.is_some());
    gauge(e, "forebay_nat_shield_failed", help, &[(&[], failed)])?;
    let help =
        "Times that somebody removed or changed what keeps VIPs from NAT, and it was put back.";
    counter(
        e,
        "forebay_nat_shield_restored",
        help,
        &[(&[], shield.restored)],
    )
}

/// How packets go to the other nodes.
fn paths(e: &mut DescriptorEncoder<'_>, nodes: &[NodeStatus]) -> fmt::Result {
    let others = nodes.iter().filter(|node| node.forward != Forward::Own);
    let ways: Vec<_> = others
        .map(|node| {
            let labels = [
                ("node", node.name.as_str()),
                ("path", node.forward.name()),
                ("reason", node.forward_why.words()),
            ];
            (labels, 1)
        })
        .collect();
    let help = "1 for the way that packets go to a node, with the reason.";
    gauge(e, "forebay_node_path", help, &as_rows(&ways))?;
    let of = |figure: fn(&PathReport) -> u64| -> Vec<_> {
        let asked = nodes.iter().filter_map(|node| {
            let n = figure(node.path.as_ref()?);
            Some(([("node", node.name.as_str())], n))
        });
        asked.collect()
    };
    let sent = of(|path| path.sent);
    let help = "Probes sent by way of a MAC rewrite.";
    counter(e, "forebay_path_probes_sent", help, &as_rows(&sent))?;
    let missed = of(|path| path.missed);
    let help = "Probes by way of a MAC rewrite that were not answered although the node was well.";
    counter(e, "forebay_path_probes_missed", help, &as_rows(&missed))?;
    let changes = of(|path| path.changes);
    let help = "Times that the way to a node changed between MAC rewrite and UDP.";
    counter(e, "forebay_path_changes", help, &as_rows(&changes))
}

/// VIPs that have a series of their own; what the others counted is summed up under `other`.
const VIP_SERIES: usize = 256;

/// Nodes that have series of their own; the same.
const NODE_SERIES: usize = 64;

/// Packets by VIP, and by node and path.
fn packets(e: &mut DescriptorEncoder<'_>, status: &DatapathStatus) -> fmt::Result {
    let others = status
        .nodes
        .iter()
        .filter(|node| node.forward != Forward::Own);
    let named = others.flat_map(|node| {
        let paths = node.packets.by_path().into_iter();
        paths.map(|(path, n)| ([("node", node.name.as_str()), ("path", path)], n))
    });
    let rows = bounded(named.collect(), NODE_SERIES * 4, |[_, path]| {
        [("node", "other"), path]
    });
    let help = "Packets that went to another node, by path.";
    counter(e, "forebay_node_packets", help, &as_rows(&rows))?;
    let named = status.vips.iter();
    let named = named.map(|vip| ([("vip", vip.vip.as_str())], vip.packets));
    let rows = bounded(named.collect(), VIP_SERIES, |_| [("vip", "other")]);
    let help = "Packets for a VIP that arrived at this node.";
    counter(e, "forebay_vip_packets", help, &as_rows(&rows))
}

/// The first `most` rows; those beyond are summed up under the labels that `other` makes of theirs.
fn bounded<'a, const N: usize>(
    mut rows: Vec<([(&'a str, &'a str); N], u64)>,
    most: usize,
    other: impl Fn([(&'a str, &'a str); N]) -> [(&'a str, &'a str); N],
) -> Vec<([(&'a str, &'a str); N], u64)> {
    let beyond = rows.split_off(most.min(rows.len()));
    let mut sums = BTreeMap::new();
    for (labels, n) in beyond {
        *sums.entry(other(labels)).or_default() += n;
    }
    rows.extend(sums);
    rows
}

/// What the other nodes answer to probes.
fn probes(e: &mut DescriptorEncoder<'_>, nodes: &[NodeStatus]) -> fmt::Result {
    let of = |figure: &dyn Fn(&NodeStatus, &ProbeStatus) -> Option<u64>| -> Vec<_> {
        let probed = nodes.iter().filter_map(|node| {
            let n = figure(node, node.probes.as_ref()?)?;
            Some(([("node", node.name.as_str())], n))
        });
        probed.collect()
    };
    let help = "Round trip of the last answered probe, in microseconds.";
    let trips = of(&|_, probes| probes.round_trip_us);
    gauge(e, "forebay_probe_round_trip_us", help, &as_rows(&trips))?;
    let help = "1 while a listed node does not answer probes.";
    let suspects = of(&|_, probes| {
        let unwell = matches!(probes.standing, Standing::Suspect | Standing::Silent);
        Some(u64::from(unwell))
    });
    gauge(e, "forebay_node_suspect", help, &as_rows(&suspects))?;
    let help = "1 while a listed node is taken for dead.";
    let dead = of(&|node, _| Some(u64::from(node.dead)));
    gauge(e, "forebay_node_dead", help, &as_rows(&dead))?;
    let help = "Connections that a listed node holds of rows that it does not own.";
    let foreign = of(&|_, probes| probes.foreign_sockets.map(u64::from));
    gauge(e, "forebay_node_foreign_sockets", help, &as_rows(&foreign))?;
    let help = "Probes sent.";
    let sent = of(&|_, probes| Some(probes.sent));
    counter(e, "forebay_probes_sent", help, &as_rows(&sent))?;
    let help = "Probes that were never answered.";
    let lost = of(&|_, probes| Some(probes.lost));
    counter(e, "forebay_probes_lost", help, &as_rows(&lost))?;
    let help = "Times that a node became suspect.";
    let suspected = of(&|_, probes| Some(probes.suspected));
    counter(e, "forebay_node_suspicions", help, &as_rows(&suspected))
}

/// How the programs are attached.
fn uplinks(e: &mut DescriptorEncoder<'_>, status: &DatapathStatus) -> fmt::Result {
    let labelled = |value: fn(&Attachment) -> u64| -> Vec<_> {
        let uplinks = status.interfaces.iter();
        uplinks
            .map(|a| {
                let labels = [("interface", a.interface.as_str()), ("mode", a.mode.name())];
                (labels, value(a))
            })
            .collect()
    };
    let attached = labelled(|a| u64::from(a.state == AttachState::Attached));
    let help = "Whether the program sees an uplink's packets, and in which mode.";
    gauge(e, "forebay_uplink_attached", help, &as_rows(&attached))?;
    let cost = labelled(|a| u64::from(a.cost_percent));
    let help = "About what a packet costs in the uplink's mode, in percent of native XDP.";
    gauge(e, "forebay_uplink_cost_percent", help, &as_rows(&cost))
}

type Row<'a> = (&'a [(&'a str, &'a str)], u64);

fn as_rows<'a, const N: usize>(rows: &'a [([(&'a str, &'a str); N], u64)]) -> Vec<Row<'a>> {
    rows.iter().map(|(labels, n)| (&labels[..], *n)).collect()
}

fn counter(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: &[Row<'_>]) -> fmt::Result {
    family(e, name, help, rows, ConstCounter::new)
}

fn gauge(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: &[Row<'_>]) -> fmt::Result {
    family(e, name, help, rows, |n| {
        ConstGauge::new(i64::try_from(n).unwrap_or(i64::MAX))
    })
}

fn family<M: EncodeMetric>(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: &[Row<'_>],
    make: impl Fn(u64) -> M,
) -> fmt::Result {
    let Some((_, first)) = rows.first() else {
        return Ok(());
    };
    let mut family = e.encode_descriptor(name, help, None, make(*first).metric_type())?;
    if let [([], n)] = rows {
        return make(*n).encode(family);
    }
    for (labels, n) in rows {
        make(*n).encode(family.encode_family(&labels.to_vec())?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_bound_is_summed_up() {
        let row = |vip, n| ([("vip", vip)], n);
        let rows = vec![row("a", 1), row("b", 2), row("c", 3), row("d", 4)];
        let other = |_| [("vip", "other")];
        assert_eq!(bounded(rows.clone(), 4, other), rows);
        assert_eq!(
            bounded(rows, 2, other),
            [row("a", 1), row("b", 2), row("other", 7)]
        );
    }
}
