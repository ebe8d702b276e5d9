//! The figures as tables, bars and charts. Pure.

use std::collections::BTreeMap;

use super::beside::Beside;
use super::cases::{ACK_L2, ACK_L2_1M, ACK_UDP, HIT, MISS, OWN, SYN_L2_1M, SYN_OWN, TWINS};
use super::live::{BUSY, Cell, Handler};
use super::testrun::{Outcome, above_floors, times};
use crate::bench::report::{Bar, Table};
use crate::bench::stats::{Summary, number};
use crate::bench::svg::{Chart, Group};

/// The cells of each handler, by round.
pub(super) type Live = BTreeMap<Handler, Vec<Cell>>;

/// A part of the report.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) tables: Vec<Table>,
    pub(super) bars: Vec<Bar>,
    pub(super) charts: Vec<Chart>,
}

fn bar(what: impl Into<String>, measured: f64, limit: f64, unit: &str, at_most: bool) -> Bar {
    Bar {
        what: what.into(),
        measured,
        limit,
        at_most,
        unit: unit.to_owned(),
    }
}

fn table(title: &str, columns: &[&str], rows: Vec<Vec<String>>) -> Table {
    Table {
        title: title.to_owned(),
        columns: columns.iter().map(|&column| column.to_owned()).collect(),
        rows,
    }
}

fn chart(title: &str, unit: &str, bars: Vec<(String, Summary)>) -> Chart {
    let groups = bars.into_iter().map(|bar| Group {
        label: String::new(),
        bars: vec![bar],
    });
    Chart {
        title: title.to_owned(),
        unit: unit.to_owned(),
        groups: groups.collect(),
    }
}

fn text(summary: Option<Summary>) -> String {
    summary.map_or_else(none, |s| s.text())
}

/// What stands in a table where there is no figure.
fn none() -> String {
    "–".to_owned()
}

/// The test runs.
pub(super) fn test_runs(outcomes: &[Outcome<'_>]) -> Part {
    let mut part = Part::default();
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    for Outcome { case, gross, net } in outcomes {
        rows.push(vec![
            case.name.to_owned(),
            number(gross.quiet),
            gross.text(),
            case.floor.unwrap_or("–").to_owned(),
            net.map_or_else(none, number),
        ]);
        bars.push((case.name.to_owned(), *gross));
        if let (Some(net), Some(limit)) = (net, case.bar) {
            let what = format!("{}, above its floor", case.name);
            part.bars.push(bar(what, *net, limit, "ns", true));
        }
    }
    let columns = ["path", "quiet", "median (range)", "floor", "above it"];
    part.tables
        .push(table("Test runs, ns per packet", &columns, rows));
    part.charts
        .push(chart("Test runs, gross", "ns per packet", bars));
    part.bars.extend(comparisons(outcomes));
    part
}

/// Cases against each other.
fn comparisons(outcomes: &[Outcome<'_>]) -> Vec<Bar> {
    let more = [(HIT, ACK_L2, 100.0), (MISS, ACK_UDP, 200.0)];
    let more = more.into_iter().filter_map(|(a, b, limit)| {
        let more = above_floors(outcomes, (a, b), |a, b| a - b)?;
        let what = format!("{a}: more than {b}, each above its floor");
        Some(bar(what, more, limit, "ns", true))
    });
    let floods = [(SYN_L2_1M, ACK_L2_1M), (SYN_OWN, OWN)];
    let floods = floods.into_iter().filter_map(|(a, b)| {
        let times = times(outcomes, (a, b))?;
        Some(bar(format!("{a} against {b}"), times, 1.05, "×", true))
    });
    more.chain(floods).collect()
}

/// Rust against C. Nothing if there is no program in C.
pub(super) fn twins(outcomes: &[Outcome<'_>]) -> Part {
    let mut part = Part::default();
    let mut rows = Vec::new();
    for (rust, c) in TWINS {
        let net = above_floors(outcomes, (rust, c), |a, b| a / b);
        let gross = times(outcomes, (rust, c));
        let (Some(net), Some(gross)) = (net, gross) else {
            continue;
        };
        rows.push(vec![rust.to_owned(), number(net), number(gross)]);
        if [ACK_L2, ACK_L2_1M, ACK_UDP].contains(&rust) {
            let what = format!("{rust}: against the same in C, each above its floor");
            part.bars.push(bar(what, net, 1.25, "×", true));
        }
    }
    if !rows.is_empty() {
        let columns = ["path", "Rust / C above floors", "Rust / C gross"];
        part.tables
            .push(table("The same path in C, by clang -O2", &columns, rows));
    }
    part
}

/// The live runs.
pub(super) fn live(live: &Live) -> Part {
    let mut part = Part::default();
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    for handler in Handler::ALL.into_iter().filter(|h| live.contains_key(h)) {
        let cost = over(live, handler, COST);
        rows.push(vec![
            handler.name().to_owned(),
            text(over(live, handler, MPPS)),
            text(faster(live, handler, Handler::Nftables)),
            cost.map_or_else(none, |s| number(s.quiet)),
            text(cost),
            dearer(live, handler, Handler::Floor).map_or_else(none, number),
            dearer(live, Handler::Nftables, handler).map_or_else(none, number),
            text(over(live, handler, |c| 100.0 * c.busy)),
        ]);
        bars.extend(over(live, handler, MPPS).map(|s| (handler.name().to_owned(), s)));
    }
    part.bars
        .extend(Handler::OURS.iter().flat_map(|&ours| judged(live, ours)));
    let columns = [
        "balancer",
        "Mpps",
        "× nftables",
        "CPU ns per packet, quiet",
        "median (range)",
        "× floor",
        "nftables ×",
        "% of its core",
    ];
    part.tables
        .push(table("Live on veth, one core", &columns, rows));
    part.charts.push(chart("Live on veth", "Mpps", bars));
    part
}

const MPPS: fn(&Cell) -> f64 = |cell| cell.mpps;
const COST: fn(&Cell) -> f64 = |cell| cell.cpu_ns;

/// A value of a handler's cells.
fn over(live: &Live, handler: Handler, value: fn(&Cell) -> f64) -> Option<Summary> {
    Summary::of(&live.get(&handler)?.iter().map(value).collect::<Vec<_>>())
}

/// How many times as many packets as `b` handler `a` forwards, round by round.
fn faster(live: &Live, a: Handler, b: Handler) -> Option<Summary> {
    let pairs = live.get(&a)?.iter().zip(live.get(&b)?);
    Summary::of(&pairs.map(|(a, b)| a.mpps / b.mpps).collect::<Vec<_>>())
}

/// How many times as dear as with `b` a packet is with `a`.
fn dearer(live: &Live, a: Handler, b: Handler) -> Option<f64> {
    Some(over(live, a, COST)?.quiet / over(live, b, COST)?.quiet)
}

/// The bars of one of our handlers; none if it did not run.
fn judged(live: &Live, ours: Handler) -> Vec<Bar> {
    let mut bars = Vec::new();
    let (Some(busy), Some(more)) = (
        over(live, ours, |c| c.busy),
        faster(live, ours, Handler::Nftables),
    ) else {
        return bars;
    };
    if busy.median >= BUSY {
        let what = format!("{}: throughput against nftables", ours.name());
        bars.push(bar(what, more.median, 6.0, "×", false));
    } else if let Some(less) = dearer(live, Handler::Nftables, ours) {
        let what = format!(
            "{}: CPU per packet of nftables against its own (the generator is the limit: its core was {} % busy, throughput {} ×)",
            ours.name(),
            number(100.0 * busy.median),
            number(more.median)
        );
        bars.push(bar(what, less, 6.0, "×", false));
    }
    if let Some(times) = dearer(live, ours, Handler::Floor) {
        let what = format!("{}: CPU per packet against a MAC swap", ours.name());
        bars.push(bar(what, times, 1.8, "×", true));
    }
    bars
}

/// What stands beside the path of packets.
pub(super) fn beside(beside: &Beside) -> Part {
    let mut part = Part::default();
    let loads = beside.verified.iter().map(|(name, verified)| {
        let load = Summary::of(&verified.load_ms);
        vec![name.clone(), verified.instructions.to_string(), text(load)]
    });
    let columns = ["program", "verified instructions", "load ms"];
    part.tables
        .push(table("Programs", &columns, loads.collect()));
    operations(beside, &mut part);
    memory(beside, &mut part);
    part
}

/// Times of what is done to tables.
fn operations(beside: &Beside, part: &mut Part) {
    let scratch = &beside.rows_from_scratch_ms;
    let times = [
        ("rows of 256 nodes, from scratch", scratch, Some(300.0)),
        (
            "rows of 256 nodes, after one came",
            &beside.node_comes_ms,
            Some(5.0),
        ),
        (
            "rows of 256 nodes, after one went",
            &beside.node_goes_ms,
            Some(5.0),
        ),
        (
            "rows of 256 nodes, after one began to drain",
            &beside.node_drains_ms,
            Some(5.0),
        ),
        (
            "swap of all rows through shared memory",
            &beside.swap_ms,
            Some(1.0),
        ),
        (
            "2,000 VIPs and their addresses placed",
            &beside.vips_placed_ms,
            None,
        ),
    ];
    let (mut rows, mut charted) = (Vec::new(), Vec::new());
    for (what, taken, limit) in times {
        let Some(summary) = Summary::of(taken) else {
            continue;
        };
        rows.push(vec![what.to_owned(), summary.text()]);
        charted.push((what.to_owned(), summary));
        let limit = limit.map(|limit| bar(what, summary.median, limit, "ms", true));
        part.bars.extend(limit);
    }
    part.tables
        .push(table("Tables", &["operation", "ms"], rows));
    part.charts.push(chart("Tables", "ms", charted));
    let placed = beside.vips_placed as f64;
    part.bars
        .push(bar("VIPs placed", placed, 2_000.0, "VIPs", false));
}

fn memory(beside: &Beside, part: &mut Part) {
    const KIB: f64 = 1_024.0;
    let total = beside.map_bytes.values().sum::<u64>() as f64 / KIB;
    let maps = beside.map_bytes.iter();
    let mut rows: Vec<Vec<String>> = maps
        .map(|(name, bytes)| vec![name.clone(), number(*bytes as f64 / KIB)])
        .collect();
    rows.push(vec!["all".to_owned(), number(total)]);
    part.tables
        .push(table("Memory of the maps", &["map", "KiB"], rows));
    let limit = bar("memory of all maps", total / KIB, 64.0, "MiB", true);
    part.bars.push(limit);
}

#[cfg(test)]
mod tests {
    use super::super::cases::{C_STUB, STUB, cases};
    use super::super::testrun::{Figures, outcomes};
    use super::*;

    fn cell(mpps: f64, cpu_ns: f64, busy: f64) -> Cell {
        Cell { mpps, cpu_ns, busy }
    }

    fn found<'a>(bars: &'a [Bar], what: &str) -> &'a Bar {
        bars.iter().find(|bar| bar.what.contains(what)).expect(what)
    }

    #[test]
    fn where_the_generator_is_the_limit_cpu_is_compared() {
        let cells = |mpps, cost, busy| vec![cell(mpps, cost, busy); 3];
        let runs: Live = [
            (Handler::Floor, cells(2.0, 200.0, 0.4)),
            (Handler::ForebayL2, cells(2.0, 300.0, 0.6)),
            (Handler::ForebayUdp, cells(1.8, 500.0, 0.95)),
            (Handler::Nftables, cells(0.25, 3_000.0, 1.0)),
        ]
        .into();
        let bars = live(&runs).bars;
        let limited = found(&bars, "MAC rewrite, 10k flows: CPU per packet of nftables");
        assert_eq!((limited.measured, limited.met()), (10.0, true));
        assert!(
            limited
                .what
                .contains("its core was 60.0 % busy, throughput 8.00 ×")
        );
        let full = found(&bars, "UDP, 10k flows: throughput against nftables");
        assert_eq!((full.measured, full.met()), (7.2, true));
        assert_eq!(
            found(&bars, "UDP, 10k flows: CPU per packet against a MAC swap").measured,
            2.5
        );
    }

    #[test]
    fn a_second_chance_is_compared_with_the_forward_above_its_floor() {
        let all = cases(true);
        let figures: Figures = [
            (STUB, vec![40.0; 3]),
            (C_STUB, vec![38.0; 3]),
            (ACK_L2, vec![100.0; 3]),
            (TWINS[0].1, vec![88.0; 3]),
            (HIT, vec![250.0; 3]),
        ]
        .into();
        let outcomes = outcomes(&all, &figures);
        let hit = comparisons(&outcomes);
        assert_eq!((hit[0].measured, hit[0].met()), (150.0, false));
        let part = twins(&outcomes);
        assert_eq!((part.bars[0].measured, part.bars[0].met()), (1.2, true));
        assert_eq!(part.tables[0].rows.len(), 1);
        assert!(twins(&[]).tables.is_empty());
    }

    #[test]
    fn memory_is_the_sum_of_all_maps() {
        let map_bytes = [("A".to_owned(), 33 << 20), ("B".to_owned(), 32 << 20)].into();
        let part = beside(&Beside {
            map_bytes,
            ..Beside::default()
        });
        let memory = found(&part.bars, "memory of all maps");
        assert_eq!((memory.measured, memory.met()), (65.0, false));
    }
}
