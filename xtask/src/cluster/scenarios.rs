//! `cargo xtask cluster scenarios`: what must not disturb anybody's requests, done to a cluster of its own under load.

mod api;
mod applied;
mod away;
mod changes;
mod foreign;
mod http;
mod load;
mod replaced;
mod scale;
mod stage;
mod usage;
mod vips;

use std::{fs::File, thread, time::Duration};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::{
    fd::AsFd,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{
    Channel, binaries, echo, forebay,
    layout::{self, Name},
    running::{Running, Wanted},
    wait::Interrupt,
};
use crate::{paths, progress::Steps};
use api::Api;
use stage::Stage;

/// Nodes of the cluster.
const NODES: u8 = 3;
/// Steps under way are told to those who watch.
type Scenario = fn(&Stage<'_>) -> Result<String>;

/// All of them, in their order. The first looks at what the installation has left.
const ALL: [(&str, Scenario); 13] = [
    ("cold-start", vips::cold_start),
    ("rollout", replaced::rollout),
    ("deletion", replaced::deletion),
    ("drain", replaced::drain),
    ("upgrade", replaced::upgrade),
    ("host-port", vips::host_port),
    ("backends", changes::backends),
    ("routes", changes::routes),
    ("scale", scale::scale),
    ("foreign", foreign::foreign),
    ("start", replaced::start),
    ("api-away", away::api_away),
    ("restart-without-api", away::restart),
];

/// What to run.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Name of the cluster.
    #[arg(long, default_value = "scenarios")]
    name: Name,
    /// Leave the cluster running at the end.
    #[arg(long)]
    keep: bool,
    /// Only these, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = ALL.map(|(name, _)| name))]
    only: Vec<String>,
    /// Routes that are added one by one.
    #[arg(long, default_value_t = 300)]
    routes: usize,
    /// Routes over many namespaces.
    #[arg(long, default_value_t = 5000)]
    scale: usize,
    /// Gateways and routes of another class.
    #[arg(long, default_value_t = 10_000)]
    foreign: usize,
    /// Seconds without the API server.
    #[arg(long, default_value_t = 20)]
    away: u64,
}

/// The whole of it.
pub(super) fn run(args: &Args) -> Result<()> {
    let steps = Steps::new();
    let interrupt = Interrupt::listen()?;
    let archives = [forebay::image()?, echo::image(&interrupt)?];
    let wanted = Wanted {
        name: &args.name,
        nodes: NODES,
        channel: Channel::Standard,
        gateway_api: binaries::GATEWAY_API,
    };
    let running = Running::start(&steps, &interrupt, &wanted)?;
    let done = stage::install(&running, &archives).and_then(|()| in_hub(&running, args));
    if !matches!(done, Ok(0)) {
        let folder = paths::target().join("cluster").join(args.name.to_string());
        // What failed matters more than a log that cannot be kept.
        if forebay::keep_logs(&running, &folder).is_ok() {
            println!("what Forebay said is in {}", folder.display());
        }
    }
    if args.keep {
        println!(
            "the cluster {0} is left running: `cargo xtask cluster down --name {0}` removes it",
            args.name
        );
        running.keep();
    }
    match done? {
        0 => Ok(()),
        failed => bail!("{failed} of the scenarios failed"),
    }
}

/// Runs them on a thread whose network is the hub's, outside of the cluster; how many failed.
fn in_hub(running: &Running<'_>, args: &Args) -> Result<usize> {
    let inside = || {
        let hub = layout::namespace_file(&running.name.hub());
        let file = File::open(&hub).with_context(|| format!("cannot open {}", hub.display()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter the hub")?;
        all(running, args)
    };
    thread::scope(|scope| scope.spawn(inside).join())
        .map_err(|_| anyhow!("the thread of the scenarios panicked"))?
}

fn all(running: &Running<'_>, args: &Args) -> Result<usize> {
    let api = Api::start(running)?;
    let vips = stage::addresses(running, &api)?;
    let stage = Stage {
        running,
        api,
        vips,
        routes: args.routes,
        scale: args.scale,
        foreign: args.foreign,
        away: Duration::from_secs(args.away),
    };
    ensure!(!stage.vips.is_empty(), "no Gateway has an address");
    let chosen = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let (mut passed, mut failed) = (0, 0);
    for (name, scenario) in ALL.into_iter().filter(|(name, _)| chosen(name)) {
        let mut said = None;
        let ended = running.steps.run(name, |_| {
            let ended = stage.settle().and_then(|()| scenario(&stage));
            ended.inspect_err(|error| said = Some(format!("{error:#}")))
        });
        running.interrupt.check()?;
        match ended {
            Ok(()) => passed += 1,
            Err(_) => failed += 1,
        }
        if let Some(said) = said {
            eprintln!("        {said}");
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed)
}
