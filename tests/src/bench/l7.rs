//! `bench l7`: CPU per request of Forebay, nginx and Envoy in one run, alternating, on the same backend.
//!
//! The proxy under test is alone on one core; load generator and backend share another. A cell is a fixed number of requests, so
//! that all proxies do the same work; its cost is the scheduler's run time of all threads of the proxy. A run whose counts
//! are unequal is void and writes nothing.

mod backend;
mod check;
mod load;
mod multiplexed;
pub(super) mod protocols;
mod proxies;
pub(super) mod requests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use self::check::Totals;
use self::load::Client;
use self::proxies::{Kind, Proxy, Site};
use super::report::{Bar, Machine, Report, Table};
use super::stats::{Summary, number, percentile};
use super::svg::{Chart, Group};
use super::{Common, cpu, sandbox};

const CONNECTIONS: [usize; 3] = [1, 16, 128];

/// Rounds that a run has at least, whatever time it takes.
const LEAST_ROUNDS: usize = 5;

/// No further round begins after this time.
const BUDGET: Duration = Duration::from_secs(180);

/// Longest time of one cell.
const CELL_LIMIT: Duration = Duration::from_secs(30);

/// Flags of `bench l7`.
#[derive(Args, Debug)]
pub(super) struct L7 {
    /// The daemon to measure [default: `forebay` beside this program]
    #[arg(long, env = "FOREBAY_BIN")]
    forebay: Option<PathBuf>,
    /// Requests of one cell [default: 20000, with --quick 3000]
    #[arg(long)]
    requests: Option<u64>,
    /// Rounds [default: 7, with --quick 5]
    #[arg(long)]
    rounds: Option<usize>,
    /// Proxies to measure
    #[arg(long, value_delimiter = ',', default_values_t = [Kind::Forebay, Kind::Nginx, Kind::Envoy], value_enum)]
    proxies: Vec<Kind>,
    #[command(flatten)]
    pub(super) common: Common,
}

/// One proxy under one number of connections in one round.
#[derive(Clone, Debug, Serialize)]
struct Cell {
    cpu_us: f64,
    p50_us: u32,
    p99_us: u32,
    per_second: f64,
}

type Cells = BTreeMap<(usize, Kind), Vec<Cell>>;

/// Outside of the sandbox: what needs the network.
pub(super) fn prepare(args: &L7) -> Result<()> {
    if args.proxies.contains(&Kind::Envoy) {
        proxies::envoy()?;
    }
    Ok(())
}

/// Inside of the sandbox: the run.
pub(super) fn run(args: &L7, outside: &str) -> Result<()> {
    let work = sandbox::settle(&args.common.out, outside)?;
    let (others, core) = cpu::two_cores()?;
    let forebay = match &args.forebay {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("forebay"),
    };
    ensure!(
        !args.proxies.contains(&Kind::Forebay) || forebay.exists(),
        "there is no daemon at {}: build it, or name it with --forebay",
        forebay.display()
    );
    for index in 1..=4 {
        sandbox::ip(&format!("address add 192.0.2.{index}/32 dev lo"))?;
    }
    let backend_address = proxies::address(4, 9000);
    let served = backend::start(backend_address, others)?;
    let site = Site {
        work: &work,
        forebay: &forebay,
        backend: backend_address,
        core,
        templates: proxies::HTTP1,
        values: Vec::new(),
    };
    let mut running = Vec::new();
    for (&kind, index) in args.proxies.iter().zip(1..) {
        running.push(proxies::start(kind, proxies::address(index, 8080), &site)?);
    }
    let machine = Machine::describe(running.iter().map(|p| p.version.clone()).collect());
    cpu::pin(None, others)?;

    let requests = args
        .requests
        .unwrap_or(if args.common.quick { 3_000 } else { 20_000 });
    let (cells, rounds) = measure(args, &mut running, requests).context("the run is void")?;
    let memory: Vec<u64> = running
        .iter()
        .map(|p| cpu::resident_kib(p.pid()))
        .collect::<Result<_>>()?;
    let expected = requests * (rounds * CONNECTIONS.len()) as u64;
    let totals = totals(&running, requests, &cells)?;
    print_totals(&totals);
    let problems = check::problems(&totals, expected, served.load(Ordering::Relaxed), core);
    if !problems.is_empty() {
        bail!("the run is void:\n  {}", problems.join("\n  "));
    }
    report(&cells, &running, &memory, &totals, requests).publish(
        &machine,
        &args.common.out,
        args.common.record,
    )
}

/// All rounds; the order of the proxies turns with each cell, so that none is always first.
fn measure(args: &L7, running: &mut [Proxy], requests: u64) -> Result<(Cells, usize)> {
    let wanted = args
        .rounds
        .unwrap_or(if args.common.quick { LEAST_ROUNDS } else { 7 });
    let (start, mut cells, mut round) = (Instant::now(), Cells::new(), 0);
    for proxy in running.iter_mut() {
        let outcome = Client::connect(proxy.address, 128)?.run(requests.min(2_000), CELL_LIMIT)?;
        proxy.count(&outcome.statuses);
    }
    while round < wanted && (round < LEAST_ROUNDS || start.elapsed() < BUDGET) {
        for (turn, &connections) in CONNECTIONS.iter().enumerate() {
            for i in 0..running.len() {
                let proxy = &mut running[(i + turn + round) % args.proxies.len()];
                let cell = cell(proxy, connections, requests)?;
                cells
                    .entry((connections, proxy.kind))
                    .or_default()
                    .push(cell);
            }
        }
        round += 1;
        eprintln!(
            "round {round} of {wanted} done after {:.0} s",
            start.elapsed().as_secs_f64()
        );
    }
    Ok((cells, round))
}

fn cell(proxy: &mut Proxy, connections: usize, requests: u64) -> Result<Cell> {
    let mut client = Client::connect(proxy.address, connections)?;
    // The first answers pay for accepting the connections and for opening those to the backend.
    let warm = client.run(2 * connections as u64, CELL_LIMIT)?;
    proxy.count(&warm.statuses);
    let before = cpu::run_time(proxy.pid())?;
    let outcome = client.run(requests, CELL_LIMIT)?;
    let spent = cpu::run_time(proxy.pid())? - before;
    proxy.count(&outcome.statuses);
    Ok(Cell {
        cpu_us: spent as f64 / 1_000.0 / requests as f64,
        p50_us: percentile(&outcome.latencies, 50.0),
        p99_us: percentile(&outcome.latencies, 99.0),
        per_second: requests as f64 / outcome.elapsed.as_secs_f64(),
    })
}

/// What each proxy did in all, once its log is written out.
fn totals(running: &[Proxy], requests: u64, cells: &Cells) -> Result<Vec<Totals>> {
    let mut all = Vec::new();
    for proxy in running {
        let mut log = check::Log::default();
        proxies::wait_for(Duration::from_secs(5), || {
            log = check::read_log(&proxy.log)?;
            Ok(log.lines >= proxy.requests)
        })?;
        let rounds: usize = cells
            .iter()
            .filter(|((_, kind), _)| *kind == proxy.kind)
            .map(|(_, c)| c.len())
            .sum();
        all.push(Totals {
            name: proxy.kind.name(),
            cores: cpu::cores_of(proxy.pid())?,
            measured: requests * rounds as u64,
            requests: proxy.requests,
            good: proxy.good,
            log,
        });
    }
    Ok(all)
}

fn print_totals(all: &[Totals]) {
    for t in all {
        let rest = t.requests - t.good;
        println!(
            "{}: core {}, {} × 200, {rest} × other, {} log lines of {} fields",
            t.name,
            t.cores,
            t.good,
            t.log.lines,
            t.log.fields.len()
        );
    }
}

fn summary(cells: &[Cell], value: impl Fn(&Cell) -> f64) -> Option<Summary> {
    Summary::of(&cells.iter().map(value).collect::<Vec<_>>())
}

/// Forebay's CPU per request over a peer's, round by round.
fn ratio(cells: &Cells, connections: usize, peer: Kind) -> Option<Summary> {
    let (own, other) = (
        cells.get(&(connections, Kind::Forebay))?,
        cells.get(&(connections, peer))?,
    );
    Summary::of(
        &own.iter()
            .zip(other)
            .map(|(a, b)| a.cpu_us / b.cpu_us)
            .collect::<Vec<_>>(),
    )
}

fn report(
    cells: &Cells,
    running: &[Proxy],
    memory: &[u64],
    totals: &[Totals],
    requests: u64,
) -> Report {
    let (cost, chart) = cost_table(cells, running);
    let mut bars: Vec<Bar> = CONNECTIONS.iter().flat_map(|&c| limits(cells, c)).collect();
    let forebay = running.iter().find(|p| p.kind == Kind::Forebay);
    bars.extend(forebay.map(|p| Bar {
        what: "idle daemon, resident".to_owned(),
        measured: p.idle_kib as f64 / 1024.0,
        limit: 20.0,
        at_most: true,
        unit: "MiB".to_owned(),
    }));
    let rounds = cells.values().map(Vec::len).max().unwrap_or(0);
    let raw = |((connections, kind), rounds): (&(usize, Kind), &Vec<Cell>)| json!({"connections": connections, "proxy": kind.name(), "rounds": rounds});
    Report {
        name: "l7",
        title: "HTTP/1.1 proxying: CPU per request on one core".to_owned(),
        notes: vec![
            format!("{rounds} alternating rounds of {requests} requests, {} byte answers, median (min–max)", backend::BODY),
            "proxy alone on one core, load generator and backend on another; every proxy writes the same log fields to a file".to_owned(),
            "a ratio is the median over the rounds of the two costs in the same round; latency and rate are information only".to_owned(),
        ],
        tables: vec![cost, proxy_table(running, memory, totals)],
        bars,
        charts: vec![chart],
        data: cells.iter().map(raw).collect(),
    }
}

fn cost_table(cells: &Cells, running: &[Proxy]) -> (Table, Chart) {
    let (mut rows, mut groups) = (Vec::new(), Vec::new());
    for connections in CONNECTIONS {
        let mut bars = Vec::new();
        for kind in running.iter().map(|p| p.kind) {
            let cell = cells.get(&(connections, kind));
            let Some((cell, cpu)) = cell.and_then(|c| Some((c, summary(c, |c| c.cpu_us)?))) else {
                continue;
            };
            rows.push(cost_row(
                connections,
                kind,
                cell,
                &cpu,
                ratio(cells, connections, kind),
            ));
            bars.push((kind.name().to_owned(), cpu));
        }
        groups.push(Group {
            label: format!("{connections} connections"),
            bars,
        });
    }
    let columns = [
        "connections",
        "proxy",
        "CPU µs per request",
        "Forebay / it",
        "p50 µs",
        "p99 µs",
        "requests/s",
    ];
    let table = Table {
        title: "CPU per request".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows,
    };
    let chart = Chart {
        title: "CPU per request".to_owned(),
        unit: "µs".to_owned(),
        groups,
    };
    (table, chart)
}

fn cost_row(
    connections: usize,
    kind: Kind,
    cells: &[Cell],
    cpu: &Summary,
    against: Option<Summary>,
) -> Vec<String> {
    let median = |value: fn(&Cell) -> f64| {
        summary(cells, value).map_or_else(String::new, |s| number(s.median))
    };
    let against = against.filter(|_| kind != Kind::Forebay);
    vec![
        connections.to_string(),
        kind.name().to_owned(),
        cpu.text(),
        against.map_or_else(|| "–".to_owned(), |s| s.text()),
        median(|c| f64::from(c.p50_us)),
        median(|c| f64::from(c.p99_us)),
        median(|c| c.per_second),
    ]
}

fn limits(cells: &Cells, connections: usize) -> Vec<Bar> {
    let wanted = [(Kind::Nginx, 1.3), (Kind::Envoy, 0.6)];
    let judged = wanted.iter().filter(|_| connections > 1);
    let bar = |&(peer, limit): &(Kind, f64)| {
        let what = format!(
            "CPU per request against {} at {connections} connections",
            peer.name()
        );
        Some(Bar {
            what,
            measured: ratio(cells, connections, peer)?.median,
            limit,
            at_most: true,
            unit: "×".to_owned(),
        })
    };
    judged.filter_map(bar).collect()
}

fn proxy_table(running: &[Proxy], memory: &[u64], totals: &[Totals]) -> Table {
    let mib = |kib: u64| number(kib as f64 / 1024.0);
    let rows = running
        .iter()
        .zip(memory)
        .zip(totals)
        .map(|((proxy, &loaded), t)| {
            let (idle, loaded) = (mib(proxy.idle_kib), mib(loaded));
            vec![
                t.name.to_owned(),
                t.cores.clone(),
                t.good.to_string(),
                (t.requests - t.good).to_string(),
                t.log.lines.to_string(),
                idle,
                loaded,
            ]
        });
    let columns = [
        "proxy",
        "core",
        "answers 200",
        "other answers",
        "log lines",
        "MiB resident, idle",
        "MiB resident, after load",
    ];
    Table {
        title: "What each proxy did".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}
