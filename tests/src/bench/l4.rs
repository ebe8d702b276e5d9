//! `bench l4`: what the forwarding decision costs, and what it does against nftables on a live link.
//!
//! Three parts in one run: nanoseconds per packet by test runs ([`testrun`]), what stands beside the path of packets
//! ([`beside`]), and throughput on a veth pair ([`live`]).

mod beside;
mod cases;
mod figures;
mod frames;
pub(super) mod instructions;
mod kernel;
mod live;
pub(super) mod loops;
mod peer;
mod sockets;
mod tables;
mod testrun;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use self::beside::Beside;
use self::cases::Case;
use self::figures::Live;
use self::kernel::Kernel;
use self::live::{Handler, Rig};
use self::sockets::Sockets;
use self::tables::{Setting, Tables};
use self::testrun::Figures;
use super::report::{Machine, Report, output};
use super::{Common, cpu, sandbox};

/// Where the program in C lies.
const PEERS: &str = "tests/bench-peers";

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
    /// Rounds of the test runs [default: 41, with --quick 11]
    #[arg(long)]
    rounds: Option<usize>,
    /// Rounds of the live runs [default: 15, with --quick 3]
    #[arg(long)]
    live_rounds: Option<usize>,
    /// Only the test runs whose name contains this, and their floors
    #[arg(long, conflicts_with = "record")]
    only: Option<String>,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Passes of one test run: short, so that some rounds fall between the disturbances of a shared machine.
const REPEAT: u32 = 250_000;

/// Times that each shipped program is loaded.
const LOADS: usize = 5;

/// Rounds of what stands beside the path of packets.
const BESIDE: usize = 7;

/// The same of a short one.
const REPEAT_QUICK: u32 = 50_000;

/// Inside of the sandbox: the run.
pub(super) fn run(args: &L4, outside: &str) -> Result<()> {
    let work = sandbox::settle(&args.common.out, outside)?;
    let (others, core) = cpu::two_cores()?;
    let machine = Machine::describe(vec![output("nft", &["--version"])]);
    let mut kernel = Kernel::load(&args.object, &work, LOADS)?;
    let c = peer(&mut kernel, &work);
    let mut tables = Tables::new(&kernel)?;
    let mut cases = cases::cases(kernel.has_peer());
    if let Some(only) = &args.only {
        cases.retain(|case| case.floor.is_none() || case.name.contains(only));
    }
    // The lookup program must know the VIPs before somebody connects to one.
    tables.set(Setting::default());
    let sockets = Sockets::open(&mut kernel)?;
    let (rounds, repeat) = if args.common.quick {
        (11, REPEAT_QUICK)
    } else {
        (41, REPEAT)
    };
    let count = (args.rounds.unwrap_or(rounds), repeat);
    let ((measured, beside), real_time) = alone(core, || {
        let measured = testrun::run(&mut kernel, &mut tables, &sockets, &cases, count)?;
        let beside = match args.only {
            Some(_) => Beside::default(),
            None => beside::run(&mut kernel, &tables, BESIDE)?,
        };
        Ok((measured, beside))
    })?;
    eprintln!("test runs done");
    sockets.close()?;

    cpu::pin(None, others)?;
    // From here on this thread is the generator: whatever else runs on its core must not slow it.
    cpu::real_time(None, 50);
    let (rounds, span) = if args.common.quick {
        (3, 300)
    } else {
        (15, 500)
    };
    let rounds = args.live_rounds.unwrap_or(rounds);
    let live = if args.only.is_some() {
        Live::new()
    } else {
        let rig = Rig::new(&mut kernel, &tables, &work, (others, core))?;
        live_runs(&rig, &mut kernel, &mut tables, (rounds, span))?
    };
    let mut report = report(&cases, &measured, &beside, &live);
    report.notes = notes(count, real_time, span);
    report.notes.push(c);
    report.publish(&machine, &args.common.out, args.common.record)
}

/// Builds and loads the program in C; says which compiler built it, or why there is none.
fn peer(kernel: &mut Kernel, work: &Path) -> String {
    let loaded = peer::build(Path::new(PEERS), work).and_then(|(version, object)| {
        kernel.add_peer(&object, &peer::PROGRAMS)?;
        Ok(version)
    });
    match loaded {
        Ok(version) => format!("the same path in C: {version}, -O2, on the same tables"),
        Err(error) => {
            let note = format!("no comparison with C: {error:#}");
            eprintln!("{note}");
            note
        }
    }
}

fn live_runs(
    rig: &Rig,
    kernel: &mut Kernel,
    tables: &mut Tables,
    (rounds, span): (usize, u64),
) -> Result<Live> {
    let mut live = Live::new();
    let handlers = Handler::ALL
        .into_iter()
        .filter(|handler| kernel.has_peer() || !handler.is_c());
    let handlers: Vec<Handler> = handlers.collect();
    for round in 0..rounds {
        for turn in 0..handlers.len() {
            let handler = handlers[(turn + round) % handlers.len()];
            let cell = rig.cell(kernel, tables, handler, Duration::from_millis(span))?;
            live.entry(handler).or_default().push(cell);
        }
        eprintln!("live round {} done", round + 1);
    }
    Ok(live)
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

fn notes((rounds, repeat): (usize, u32), real_time: bool, span: u64) -> Vec<String> {
    let priority = if real_time {
        "SCHED_FIFO"
    } else {
        "without real-time priority"
    };
    vec![
        format!("test runs: {rounds} alternating rounds of {repeat} passes, pinned, {priority}; quiet = a tenth of the rounds was no dearer, median (min–max)"),
        "floor = the same wrapper around nothing; above it = the difference of the quiet figures".to_owned(),
        "no table of flows exists, so nothing is hit or missed but sockets: with 1M flows and as many passes each packet is of a new flow".to_owned(),
        "sockets are looked up in the kernel, through our sk_lookup program, among 10,000 connections to the VIP".to_owned(),
        format!("live: veth, native XDP, 60-byte TCP frames, {span} ms a cell, alternating; one core for the balancer's NAPI thread"),
    ]
}

fn report(cases: &[Case], measured: &Figures, beside: &Beside, live: &Live) -> Report {
    let outcomes = testrun::outcomes(cases, measured);
    let parts = [
        figures::test_runs(&outcomes),
        figures::twins(&outcomes),
        figures::live(live),
        figures::beside(beside),
    ];
    let mut report = Report {
        name: "l4",
        title: "Packet forwarding: cost of the decision and live throughput".to_owned(),
        notes: Vec::new(),
        tables: Vec::new(),
        bars: Vec::new(),
        charts: Vec::new(),
        data: json!({
            "test_runs_ns": measured,
            "beside": beside,
            "live": live.iter().map(|(h, cells)| json!({"handler": h.name(), "rounds": cells})).collect::<Vec<_>>(),
        }),
    };
    for part in parts {
        let tables = part.tables.into_iter();
        report.tables.extend(tables.filter(|t| !t.rows.is_empty()));
        report.bars.extend(part.bars);
        report.charts.extend(part.charts);
    }
    report
}
