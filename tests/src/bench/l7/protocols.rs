//! `bench protocols`: CPU of TLS handshakes and of requests over TLS, HTTP/2 and gRPC, of Forebay, nginx and Envoy in one run.
//!
//! As in `bench l7` the proxy under test is alone on one core and every cell is a fixed amount of work. Requests are made by
//! h2load, handshakes by a client of our own that never resumes. A run in which a proxy did not do exactly its work is void.

mod grpc;
mod h2load;
mod handshake;
mod idle;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use clap::Args;
use serde_json::json;

use super::proxies::{self, Kind, Proxy, Site};
use super::{BUDGET, LEAST_ROUNDS, backend};
use crate::bench::report::{Bar, Machine, Report, Table};
use crate::bench::stats::Summary;
use crate::bench::svg::{Chart, Group};
use crate::bench::{Common, cpu, sandbox};

/// Port of TLS.
const TLS_PORT: u16 = 8443;
/// Port of the gRPC endpoint.
const GRPC_PORT: u16 = 9001;
/// Name whose certificate has an RSA key.
const RSA_HOST: &str = "rsa.example";

const TEMPLATES: [&str; 3] = [
    include_str!("../../../bench-peers/protocols-forebay.yaml.in"),
    include_str!("../../../bench-peers/protocols-nginx.conf.in"),
    include_str!("../../../bench-peers/protocols-envoy.yaml.in"),
];

/// Flags of `bench protocols`.
#[derive(Args, Debug)]
pub(in crate::bench) struct Protocols {
    /// The daemon to measure [default: `forebay` beside this program]
    #[arg(long, env = "FOREBAY_BIN")]
    forebay: Option<PathBuf>,
    /// Requests of one cell; a tenth as many handshakes [default: 10000, with --quick 2000]
    #[arg(long)]
    requests: Option<u64>,
    /// Rounds [default: 7, with --quick 5]
    #[arg(long)]
    rounds: Option<usize>,
    /// Idle connections of which the memory is measured; 0 leaves it out [default: 10000, with --quick 1000]
    #[arg(long)]
    idle: Option<usize>,
    /// Proxies to measure
    #[arg(long, value_delimiter = ',', default_values_t = [Kind::Forebay, Kind::Nginx, Kind::Envoy], value_enum)]
    proxies: Vec<Kind>,
    #[command(flatten)]
    pub(in crate::bench) common: Common,
}

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    HandshakeEcdsa,
    HandshakeRsa,
    Http1OverTls,
    Http2OverTls,
    Http2Clear,
    Grpc,
}

impl Work {
    const ALL: [Self; 6] = [
        Self::HandshakeEcdsa,
        Self::HandshakeRsa,
        Self::Http1OverTls,
        Self::Http2OverTls,
        Self::Http2Clear,
        Self::Grpc,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::HandshakeEcdsa => "TLS 1.3 handshake, ECDSA P-256",
            Self::HandshakeRsa => "TLS 1.3 handshake, RSA 2048",
            Self::Http1OverTls => "request by HTTP/1.1 over TLS",
            Self::Http2OverTls => "request by HTTP/2 over TLS to HTTP/1.1",
            Self::Http2Clear => "request by HTTP/2 in clear text to HTTP/1.1",
            Self::Grpc => "gRPC call over TLS",
        }
    }

    /// nginx speaks no HTTP/2 by prior knowledge on a port that also takes HTTP/1.1.
    fn is_for(self, kind: Kind) -> bool {
        (self, kind) != (Self::Http2Clear, Kind::Nginx)
    }

    /// The peer that a bar compares with, and the bar.
    fn bar(self) -> (Kind, f64) {
        match self {
            Self::HandshakeEcdsa | Self::HandshakeRsa => (Kind::Nginx, 1.0),
            _ => (Kind::Envoy, 0.5),
        }
    }
}

type Cells = BTreeMap<(Work, Kind), Vec<f64>>;

/// Outside of the sandbox: what needs the network.
pub(in crate::bench) fn prepare(args: &Protocols) -> Result<()> {
    if args.proxies.contains(&Kind::Envoy) {
        proxies::envoy()?;
    }
    Ok(())
}

/// Inside of the sandbox: the run.
pub(in crate::bench) fn run(args: &Protocols, outside: &str) -> Result<()> {
    let work = sandbox::settle(&args.common.out, outside)?;
    let (others, core) = cpu::two_cores()?;
    let forebay = match &args.forebay {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("forebay"),
    };
    for index in 1..=4 {
        sandbox::ip(&format!("address add 192.0.2.{index}/32 dev lo"))?;
    }
    let backend_address = proxies::address(4, 9000);
    let served = backend::start(backend_address, others)?;
    let called = grpc::start(proxies::address(4, GRPC_PORT), others)?;
    let site = Site {
        work: &work,
        forebay: &forebay,
        backend: backend_address,
        core,
        templates: TEMPLATES,
        values: values(&work)?,
    };
    let connections = args
        .idle
        .unwrap_or(if args.common.quick { 1_000 } else { 10_000 });
    let connections = idle::make_room(connections)?;
    let mut running = Vec::new();
    for (&kind, index) in args.proxies.iter().zip(1..) {
        running.push(proxies::start(kind, proxies::address(index, 8080), &site)?);
    }
    let machine = Machine::describe(running.iter().map(|p| p.version.clone()).collect());
    cpu::pin(None, others)?;
    let requests = args
        .requests
        .unwrap_or(if args.common.quick { 2_000 } else { 10_000 });
    let cells = measure(args, &mut running, requests, others).context("the run is void")?;
    let good: u64 = running.iter().map(|p| p.good).sum();
    let answered = served.load(Ordering::Relaxed) + called.load(Ordering::Relaxed);
    ensure!(
        good == answered,
        "the run is void: {good} good answers, but the endpoints gave {answered}"
    );
    let memory = match running.iter().find(|p| p.kind == Kind::Forebay) {
        Some(proxy) if connections > 0 => Some(idle::measure(proxy, connections)?),
        _ => None,
    };
    report(&cells, &args.proxies, memory.as_ref(), requests).publish(
        &machine,
        &args.common.out,
        args.common.record,
    )
}

/// Certificates in the working directory, and what stands for them in the templates.
fn values(work: &Path) -> Result<Vec<(&'static str, String)>> {
    let mut values = vec![
        ("@TLS_PORT@", TLS_PORT.to_string()),
        ("@GRPC_PORT@", GRPC_PORT.to_string()),
        ("@RSA_HOST@", RSA_HOST.to_owned()),
    ];
    let certificates = [
        (
            "ecdsa",
            super::load::HOST,
            "ec -pkeyopt ec_paramgen_curve:prime256v1",
        ),
        ("rsa", RSA_HOST, "rsa:2048"),
    ];
    for (name, host, key) in certificates {
        let (crt, file) = (
            work.join(format!("{name}.crt")),
            work.join(format!("{name}.key")),
        );
        let line = format!(
            "req -x509 -newkey {key} -nodes -days 30 -subj /CN={host} -addext subjectAltName=DNS:{host} -keyout {} -out {}",
            file.display(),
            crt.display()
        );
        sandbox::run("openssl", &line.split(' ').collect::<Vec<_>>())?;
        let text = |path: &Path| -> Result<String> {
            Ok(base64::engine::general_purpose::STANDARD.encode(std::fs::read(path)?))
        };
        let [crt_name, key_name] = match name {
            "ecdsa" => ["@ECDSA_CRT@", "@ECDSA_KEY@"],
            _ => ["@RSA_CRT@", "@RSA_KEY@"],
        };
        values.push((crt_name, text(&crt)?));
        values.push((key_name, text(&file)?));
    }
    Ok(values)
}

/// All rounds; the order of the proxies turns with each cell.
fn measure(args: &Protocols, running: &mut [Proxy], requests: u64, others: usize) -> Result<Cells> {
    let wanted = args
        .rounds
        .unwrap_or(if args.common.quick { LEAST_ROUNDS } else { 7 });
    let (start, mut cells, mut round) = (Instant::now(), Cells::new(), 0);
    while round < wanted && (round < LEAST_ROUNDS || start.elapsed() < 2 * BUDGET) {
        for (turn, work) in Work::ALL.into_iter().enumerate() {
            for i in 0..running.len() {
                let proxy = &mut running[(i + turn + round) % args.proxies.len()];
                if !work.is_for(proxy.kind) {
                    continue;
                }
                let cost = cell(proxy, work, requests, others)
                    .with_context(|| format!("{} with {}", work.name(), proxy.kind.name()))?;
                cells.entry((work, proxy.kind)).or_default().push(cost);
            }
        }
        round += 1;
        eprintln!(
            "round {round} of {wanted} done after {:.0} s",
            start.elapsed().as_secs_f64()
        );
    }
    Ok(cells)
}

/// CPU microseconds of one piece of work.
fn cell(proxy: &mut Proxy, work: Work, requests: u64, others: usize) -> Result<f64> {
    let tls = SocketAddr::new(proxy.address.ip(), TLS_PORT);
    let handshakes = |host: &'static str| {
        let count = requests / 10;
        handshake::run(tls, host, count / 10)?;
        let before = cpu::run_time(proxy.pid())?;
        handshake::run(tls, host, count)?;
        let spent = cpu::run_time(proxy.pid())? - before;
        Ok(spent as f64 / 1_000.0 / count as f64)
    };
    let kind = match work {
        Work::HandshakeEcdsa => return handshakes(super::load::HOST),
        Work::HandshakeRsa => return handshakes(RSA_HOST),
        Work::Http1OverTls => h2load::Kind::Http1OverTls,
        Work::Http2OverTls => h2load::Kind::Http2OverTls,
        Work::Http2Clear => h2load::Kind::Http2Clear,
        Work::Grpc => h2load::Kind::Grpc,
    };
    // What opening connections costs is in both runs; the difference is the requests'.
    let few = requests / 5;
    let run = |proxy: &mut Proxy, count: u64| {
        let before = cpu::run_time(proxy.pid())?;
        h2load::run(kind, proxy.address, tls, count, others)?;
        proxy.requests += count;
        proxy.good += count;
        Ok::<u64, anyhow::Error>(cpu::run_time(proxy.pid())? - before)
    };
    let base = run(proxy, few)?;
    let spent = run(proxy, few + requests)?;
    Ok(spent.saturating_sub(base) as f64 / 1_000.0 / requests as f64)
}

/// Forebay's cost over a peer's, round by round.
fn ratio(cells: &Cells, work: Work, peer: Kind) -> Option<Summary> {
    let (own, other) = (
        cells.get(&(work, Kind::Forebay))?,
        cells.get(&(work, peer))?,
    );
    Summary::of(
        &own.iter()
            .zip(other)
            .map(|(a, b)| a / b)
            .collect::<Vec<_>>(),
    )
}

fn report(cells: &Cells, proxies: &[Kind], memory: Option<&idle::Memory>, requests: u64) -> Report {
    let (mut rows, mut groups, mut bars) = (Vec::new(), Vec::new(), Vec::new());
    for work in Work::ALL {
        let mut columns = Vec::new();
        for &kind in proxies {
            let Some(cost) = cells.get(&(work, kind)).and_then(|c| Summary::of(c)) else {
                continue;
            };
            let against = ratio(cells, work, kind).filter(|_| kind != Kind::Forebay);
            rows.push(vec![
                work.name().to_owned(),
                kind.name().to_owned(),
                cost.text(),
                against.map_or_else(|| "–".to_owned(), |s| s.text()),
            ]);
            columns.push((kind.name().to_owned(), cost));
        }
        groups.push(Group {
            label: work.name().to_owned(),
            bars: columns,
        });
        let (peer, limit) = work.bar();
        bars.extend(ratio(cells, work, peer).map(|ratio| Bar {
            what: format!("{}: CPU against {}", work.name(), peer.name()),
            measured: ratio.median,
            limit,
            at_most: true,
            unit: "×".to_owned(),
        }));
    }
    bars.extend(memory.into_iter().flat_map(idle::Memory::bars));
    let raw = |((work, kind), rounds): (&(Work, Kind), &Vec<f64>)| json!({"work": work.name(), "proxy": kind.name(), "cpu_us": rounds});
    let mut tables = vec![Table {
        title: "CPU of one piece of work".to_owned(),
        columns: ["work", "proxy", "CPU µs", "Forebay / it"]
            .map(str::to_owned)
            .to_vec(),
        rows,
    }];
    tables.extend(memory.map(idle::Memory::table));
    let rounds = cells.values().map(Vec::len).max().unwrap_or(0);
    Report {
        name: "protocols",
        title: "TLS, HTTP/2 and gRPC: CPU on one core".to_owned(),
        notes: vec![
            format!("{rounds} alternating rounds of {requests} requests and {} handshakes, median (min–max)", requests / 10),
            "proxy alone on one core, load generator and endpoints on another; every proxy writes the same log fields to a file".to_owned(),
            "requests: h2load, the difference of a long and a short run, so that connections and handshakes are not in it; 16 connections by HTTP/1.1, 4 with 32 streams each by HTTP/2".to_owned(),
            "a ratio is the median over the rounds of the two costs in the same round".to_owned(),
        ],
        tables,
        bars,
        charts: vec![Chart {
            title: "CPU of one piece of work".to_owned(),
            unit: "µs".to_owned(),
            groups,
        }],
        data: cells.iter().map(raw).collect(),
    }
}
