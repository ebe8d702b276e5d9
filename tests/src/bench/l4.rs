//! `bench l4`: what the forwarding decision costs, and what it does against nftables on a live link.
//!
//! Two parts in one run: nanoseconds per packet by test runs ([`testrun`]), and throughput on a veth pair
//! ([`live`]). The table swap is timed beside them ([`swap`]).

mod frames;
mod kernel;
mod live;
mod swap;
mod testrun;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use self::kernel::Kernel;
use self::live::{Handler, Rig};
use self::testrun::Sockets;
use super::report::{Bar, Machine, Report, Table, output};
use super::stats::Summary;
use super::svg::{Chart, Group};
use super::{Common, cpu, sandbox};

/// Flags of `bench l4`.
#[derive(Args, Debug)]
pub(super) struct L4 {
    /// The kernel programs, built with the feature `bench`
    #[arg(
        long,
        env = "FOREBAY_BENCH_OBJECT",
        default_value = "target/ebpf/forebay-bench.o"
    )]
    object: PathBuf,
    /// Rounds of the test runs [default: 9]
    #[arg(long, default_value_t = 9, hide_default_value = true)]
    rounds: usize,
    /// Rounds of the live runs [default: 5, with --quick 3]
    #[arg(long)]
    live_rounds: Option<usize>,
    #[command(flatten)]
    pub(super) common: Common,
}

type Live = BTreeMap<Handler, Vec<live::Cell>>;

/// Inside of the sandbox: the run.
pub(super) fn run(args: &L4, outside: &str) -> Result<()> {
    let work = sandbox::settle(&args.common.out, outside)?;
    let (others, core) = cpu::two_cores()?;
    let machine = Machine::describe(vec![output("nft", &["--version"])]);
    let [a, b, c, d] = frames::VIP;
    sandbox::ip(&format!("address add {a}.{b}.{c}.{d}/32 dev lo"))?;
    let programs: Vec<&str> = testrun::PROGRAMS
        .into_iter()
        .chain(live::PROGRAMS)
        .collect();
    let mut kernel = Kernel::load(&args.object, &programs)?;

    let sockets = Sockets::open()?;
    let cases = testrun::cases(&sockets)?;
    let repeat = if args.common.quick {
        100_000
    } else {
        1_000_000
    };
    let ((figures, swaps), real_time) = alone(core, || {
        let figures = testrun::run(&mut kernel, &cases, args.rounds, repeat)?;
        Ok((figures, swap::run(&kernel, args.rounds)?))
    })?;
    eprintln!("test runs done");
    drop(sockets);
    sandbox::ip(&format!("address del {a}.{b}.{c}.{d}/32 dev lo"))?;

    cpu::pin(None, others)?;
    // From here on this thread is the generator: whatever else runs on its core must not slow it.
    cpu::real_time(None, 50);
    let rig = Rig::new(&mut kernel, &work, (others, core))?;
    let (rounds, span) = if args.common.quick {
        (3, 300)
    } else {
        (5, 1_500)
    };
    let mut live = Live::new();
    for round in 0..args.live_rounds.unwrap_or(rounds) {
        for turn in 0..Handler::ALL.len() {
            let handler = Handler::ALL[(turn + round) % Handler::ALL.len()];
            let cell = rig.cell(&mut kernel, handler, Duration::from_millis(span))?;
            live.entry(handler).or_default().push(cell);
        }
        eprintln!("live round {} done", round + 1);
    }
    let differences = testrun::differences(&cases, &figures);
    let mut report = report(&differences, &live, &swaps);
    report.notes = notes(args, repeat, real_time, span);
    report.data = json!({
        "test_runs_ns": figures,
        "swap_us": swaps,
        "live": live.iter().map(|(h, cells)| json!({"handler": h.name(), "rounds": cells})).collect::<Vec<_>>(),
    });
    report.publish(&machine, &args.common.out, args.common.record)
}

/// Runs something on a thread of its own, pinned to `core` and with real-time priority if that is granted.
fn alone<T: Send>(core: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<(T, bool)> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            cpu::pin(None, core)?;
            let real_time = cpu::real_time(None, 50);
            work().map(|figures| (figures, real_time))
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the measuring thread ended early")))
    })
}

fn notes(args: &L4, repeat: u32, real_time: bool, span: u64) -> Vec<String> {
    let priority = if real_time {
        "SCHED_FIFO"
    } else {
        "without real-time priority"
    };
    vec![
        format!("test runs: {} alternating rounds of {repeat} passes, pinned, {priority}; median (min–max)", args.rounds),
        "gross = wrapper and decision; floor = the same wrapper around nothing; difference by round".to_owned(),
        "the SYN and transition rows look sockets up in the kernel; no sk_lookup program is attached here".to_owned(),
        format!("live: veth, native XDP, 60-byte TCP frames of 16,384 flows, {span} ms a cell, alternating; one core for the balancer's NAPI thread"),
    ]
}

fn report(
    differences: &[(&testrun::Case, Summary, Option<Summary>)],
    live: &Live,
    swaps: &[f64],
) -> Report {
    let (runs, mut bars, chart) = test_runs(differences);
    let (throughput, live_bars, live_chart) = throughput(live);
    bars.extend(live_bars);
    let mut tables = vec![runs, throughput];
    if let Some(swap) = Summary::of(swaps) {
        bars.push(bar(
            "swap of all rows through shared memory",
            swap.median / 1_000.0,
            1.0,
            "ms",
            true,
        ));
        tables.push(Table {
            title: "Table swap".to_owned(),
            columns: ["operation", "µs"].map(str::to_owned).to_vec(),
            rows: vec![vec![
                "all 65,536 rows, one aligned store each".to_owned(),
                swap.text(),
            ]],
        });
    }
    Report {
        name: "l4",
        title: "Packet forwarding: cost of the decision and live throughput".to_owned(),
        notes: Vec::new(),
        tables,
        bars,
        charts: vec![chart, live_chart],
        data: json!(null),
    }
}

fn bar(what: &str, measured: f64, limit: f64, unit: &str, at_most: bool) -> Bar {
    Bar {
        what: what.to_owned(),
        measured,
        limit,
        at_most,
        unit: unit.to_owned(),
    }
}

fn test_runs(
    differences: &[(&testrun::Case, Summary, Option<Summary>)],
) -> (Table, Vec<Bar>, Chart) {
    let (mut rows, mut bars, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    for (case, gross, net) in differences {
        let text = net.map_or_else(|| "–".to_owned(), |n| n.text());
        rows.push(vec![
            case.name.to_owned(),
            gross.text(),
            case.floor.unwrap_or("–").to_owned(),
            text,
        ]);
        groups.push(Group {
            label: String::new(),
            bars: vec![(case.name.to_owned(), *gross)],
        });
        if let (Some(net), Some(limit)) = (net, case.bar) {
            bars.push(bar(
                &format!("{}, above its floor", case.name),
                net.median,
                limit,
                "ns",
                true,
            ));
        }
    }
    let columns = ["path", "gross ns", "floor", "difference ns"]
        .map(str::to_owned)
        .to_vec();
    let table = Table {
        title: "Test runs, ns per packet".to_owned(),
        columns,
        rows,
    };
    (
        table,
        bars,
        Chart {
            title: "Test runs, gross".to_owned(),
            unit: "ns per packet".to_owned(),
            groups,
        },
    )
}

fn throughput(live: &Live) -> (Table, Vec<Bar>, Chart) {
    let of = |handler: Handler, value: fn(&live::Cell) -> f64| {
        Summary::of(&live.get(&handler)?.iter().map(value).collect::<Vec<_>>())
    };
    let against = |handler: Handler| {
        let pairs = live
            .get(&handler)?
            .iter()
            .zip(live.get(&Handler::Nftables)?);
        Summary::of(&pairs.map(|(a, b)| a.mpps / b.mpps).collect::<Vec<_>>())
    };
    let (mut rows, mut group) = (Vec::new(), Vec::new());
    for handler in Handler::ALL {
        let text = |s: Option<Summary>| s.map_or_else(|| "–".to_owned(), |s| s.text());
        let busy = of(handler, |c| 100.0 * c.busy);
        rows.push(vec![
            handler.name().to_owned(),
            text(of(handler, |c| c.mpps)),
            text(against(handler)),
            text(of(handler, |c| c.cpu_ns)),
            text(busy),
        ]);
        group.extend(of(handler, |c| c.mpps).map(|s| Group {
            label: String::new(),
            bars: vec![(handler.name().to_owned(), s)],
        }));
    }
    let judged = [Handler::ForebayL2, Handler::ForebayUdp].into_iter();
    let bars = judged.filter_map(|h| {
        Some(bar(
            &format!("{} against nftables", h.name()),
            against(h)?.median,
            4.0,
            "×",
            false,
        ))
    });
    let columns = [
        "balancer",
        "Mpps",
        "× nftables",
        "CPU ns per packet",
        "% of its core",
    ]
    .map(str::to_owned)
    .to_vec();
    let table = Table {
        title: "Live on veth, one core".to_owned(),
        columns,
        rows,
    };
    (
        table,
        bars.collect(),
        Chart {
            title: "Live on veth".to_owned(),
            unit: "Mpps".to_owned(),
            groups: group,
        },
    )
}
