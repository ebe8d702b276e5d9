//! Requests through the whole stack, in a virtual machine whose clock counts instructions: client, veth, native XDP, the real
//! daemon, backend, and back.
//!
//! The machine's time is told, which holds client and backend too, and the run time of the daemon's threads alone, which holds what
//! interrupts did meanwhile.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::load::{Client, HOST};
use super::multiplexed::Multiplexed;
use super::{CELL_LIMIT, backend};
use crate::bench::{cpu, stack};
use crate::daemon::{Daemon, Settings};
use crate::eventually::{eventually, throughout};
use crate::leftovers::Ledger;
use crate::netns::Netns;
use crate::topology::{Site, UPLINK};

const MANIFESTS: &str = include_str!("../../../bench-peers/stack.yaml.in");

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const BACKEND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
const PORT: u16 = 8080;
const BACKEND_PORT: u16 = 9000;

/// The processor where everything runs: the only one, or the one without a tick of a machine that has two.
const CORES: [usize; 2] = [0, 1];

/// Requests of the short and of the long run.
const REQUESTS: (u32, u32) = (200, 2_200);

/// How long the daemon is left to itself before it is measured: what it does after its start is no request's.
const SETTLED: Duration = Duration::from_secs(3);

/// Runs all and tells their instructions: of the whole machine and of the daemon.
pub(in crate::bench) fn run(work: &Path) -> Result<()> {
    serve(work, CORES[0], |daemon| {
        for_each_kind(&mut |name, ask| {
            let mut own = f64::INFINITY;
            let whole = stack::cost(REQUESTS, &mut |requests| {
                let start = Instant::now();
                let ran = grown(|| cpu::run_time(daemon.pid()), || ask(requests))?;
                if requests == REQUESTS.1 {
                    own = own.min(ran as f64 / f64::from(requests));
                }
                Ok(start.elapsed())
            })?;
            stack::tell(&format!("l7: {name}, whole machine"), whole);
            stack::tell(&format!("l7: {name}, daemon"), own);
            Ok(())
        })
    })
}

/// Runs all where the kernel notes every way into it, and tells what of the daemon's instructions is in user space. The others are
/// not told: that the kernel notes it makes them more.
pub(in crate::bench) fn run_apart(work: &Path) -> Result<()> {
    let core = CORES[1];
    let tickless = fs::read_to_string("/sys/devices/system/cpu/nohz_full").unwrap_or_default();
    ensure!(
        tickless.trim() == core.to_string(),
        "processor {core} has a tick: it takes a kernel with CONFIG_NO_HZ_FULL and the word nohz_full={core}"
    );
    cpu::pin(None, core)?;
    serve(work, core, |daemon| {
        for_each_kind(&mut |name, ask| {
            let user = stack::cost(REQUESTS, &mut |requests| {
                grown(|| cpu::user_time(daemon.pid()), || ask(requests)).map(Duration::from_nanos)
            })?;
            stack::tell(&format!("l7: {name}, daemon, in user space"), user);
            Ok(())
        })
    })
}

/// By how much a reading is higher afterwards.
fn grown(read: impl Fn() -> Result<u64>, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = read()?;
    work()?;
    Ok(read()?.saturating_sub(before))
}

/// Has the daemon and a backend on this processor, and calls `measure` in the client's namespace.
fn serve(
    work: &Path,
    core: usize,
    measure: impl FnOnce(&Daemon) -> Result<()> + Send,
) -> Result<()> {
    let ledger = Ledger::open()?;
    let (site, client) = place(&ledger)?;
    let address = SocketAddr::from((BACKEND, BACKEND_PORT));
    site.netns.run(|| backend::start(address, core).map(drop))?;
    let settings = settings(work)?;
    let mut daemon = Daemon::start(&ledger, &site, &settings)?;
    daemon.wait_ready()?;
    client.run(|| measure(&daemon))
}

/// The node's namespace and the client's, with a veth between them.
fn place(ledger: &Ledger) -> Result<(Site, Netns)> {
    let client = Netns::new(ledger, "requests")?;
    let netns = Netns::new(ledger, "node1")?;
    let site = Site {
        name: "node1".to_owned(),
        address: NODE,
        back: BACKEND,
        mac: "02:00:00:00:01:01".to_owned(),
        netns,
    };
    let node = &site.netns;
    node.veth(UPLINK, &site.mac, &client, UPLINK)?;
    node.address(UPLINK, NODE, 24)?;
    node.address("lo", BACKEND, 32)?;
    client.address(UPLINK, CLIENT, 24)?;
    client.ip(&format!(
        "neigh replace {VIP} lladdr {} dev {UPLINK} nud permanent",
        site.mac
    ))?;
    for end in [node, &client] {
        end.checksums_in_software(UPLINK)?;
    }
    Ok((site, client))
}

fn settings(work: &Path) -> Result<Settings> {
    let config = work.join("config");
    fs::create_dir_all(&config).with_context(|| format!("cannot make {}", config.display()))?;
    let values = [
        ("@NODE@", NODE.to_string()),
        ("@HOST@", HOST.to_owned()),
        ("@LISTEN_ADDRESS@", VIP.to_string()),
        ("@LISTEN_PORT@", PORT.to_string()),
        ("@BACKEND_ADDRESS@", BACKEND.to_string()),
        ("@BACKEND_PORT@", BACKEND_PORT.to_string()),
    ];
    let text = values
        .iter()
        .fold(MANIFESTS.to_owned(), |text, (name, value)| {
            text.replace(name, value)
        });
    fs::write(config.join("all.yaml"), text).context("cannot write the manifests")?;
    Ok(Settings {
        config,
        directory: work.to_path_buf(),
        forward: "auto".to_owned(),
        drain_timeout: Duration::from_secs(1),
        workers: Some(1),
        words: &[],
        under: &[],
    })
}

/// Sends so many requests.
type Ask<'a> = dyn FnMut(u32) -> Result<()> + 'a;

/// Calls `each` with the name of every kind of request, and with what sends them.
fn for_each_kind(each: &mut dyn FnMut(&str, &mut Ask<'_>) -> Result<()>) -> Result<()> {
    let vip = SocketAddr::from((VIP, PORT));
    let mut kept = eventually("the first answer", CELL_LIMIT, || {
        let mut client = Client::connect(vip, 1)?;
        let outcome = client.run(1, CELL_LIMIT)?;
        ensure!(
            outcome.statuses.contains_key(&200),
            "{:?}",
            outcome.statuses
        );
        Ok(client)
    })?;
    throughout("nothing", SETTLED, || Ok(()))?;
    each("HTTP/1.1 request", &mut |requests| {
        only_good(&mut kept, requests)
    })?;
    each("HTTP/1.1 request over a new connection", &mut |requests| {
        (0..requests).try_for_each(|_| only_good(&mut Client::connect(vip, 1)?, 1))
    })?;
    let mut multiplexed = Multiplexed::connect(vip)?;
    each("HTTP/2 request", &mut |requests| multiplexed.ask(requests))
}

/// Asks so often, and fails unless every answer is a good one.
fn only_good(client: &mut Client, requests: u32) -> Result<()> {
    let outcome = client.run(u64::from(requests), CELL_LIMIT)?;
    ensure!(
        outcome.statuses.get(&200) == Some(&u64::from(requests)),
        "the run is void: answers by status are {:?}",
        outcome.statuses
    );
    Ok(())
}
