//! The demo: three nodes behind XDP with the quick start on top; started by `cargo xtask demo`.
//!
//! It asserts what it shows: exit code 1 if anything is not as it says.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use gateway_tests::{
    demo::{Table, curls, death, drain, ejection, limits, spread},
    leftovers::Ledger,
    rig::{Options, Rig, VIP},
};
use rustix::process::geteuid;

/// Base ejection time of the quick start.
const EJECTION: Duration = Duration::from_secs(30);

/// How long backends hold long requests.
const HOLD: Duration = Duration::from_secs(3);

/// Three nodes behind XDP with the quick start on top.
#[derive(Parser)]
#[command(name = "forebay-demo")]
struct Args {
    /// Forebay nodes, 1 to 3; some acts need two.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// Leave everything running at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// How packets reach the owner node.
    #[arg(long, default_value = "auto", value_parser = ["auto", "l2", "udp"])]
    forward: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> Result<()> {
    if !geteuid().is_root() {
        bail!(
            "the demo makes network namespaces and loads kernel programs: run `sudo -E cargo xtask demo`"
        );
    }
    let ledger = Ledger::open()?;
    ledger.clean_on_signals()?;
    let played = run(args, ledger.clone());
    ledger.end()?;
    played
}

fn run(args: &Args, ledger: Ledger) -> Result<()> {
    let started = Instant::now();
    println!("\nStarting {} and five backends", nodes(args.nodes));
    let options = Options {
        nodes: args.nodes,
        forward: args.forward.clone(),
        ..Options::default()
    };
    let mut rig = Rig::start(ledger, &options)?;
    println!("  ready after {:.1} s\n", started.elapsed().as_secs_f32());
    let played = play(&mut rig, args);
    match &played {
        Ok(()) => println!("Every act was as it should be."),
        // With --keep one may look around after a failure, too.
        Err(error) if args.keep => eprintln!("\nerror: {error:#}"),
        Err(_) => {}
    }
    if args.keep {
        look_around(&rig);
    }
    played
}

fn play(rig: &mut Rig, args: &Args) -> Result<()> {
    println!("$ {}", curls::LINE);
    for line in curls::curls(rig)? {
        println!("{line}");
    }
    println!();
    act(
        "1 Spread: 300 new connections, each node being the entry in turn",
        || spread::spread(rig),
    )?;
    if args.forward != "udp" && args.nodes > 1 {
        rig.restart_with_forward("udp")
            .context("restarting with --forward udp")?;
        act("1 Spread, once more with --forward udp", || {
            spread::spread(rig)
        })?;
        rig.restart_with_forward(&args.forward)
            .context("restarting")?;
    }
    act(
        "2 Limits: 300 overlapping requests to backend-v1, which holds each for 3 s",
        || limits::limits(rig, HOLD),
    )?;
    act("3 Ejection: a backend fails five times", || {
        ejection::ejection(rig, EJECTION, countdown)
    })?;
    if args.nodes > 1 {
        act("4 Drain: a node leaves while 200 long requests run", || {
            drain::drain(rig, HOLD)
        })?;
        act("5 Death: a node's process is killed", || {
            death::death(rig, HOLD)
        })?;
    } else {
        println!("4 Drain and 5 Death need a second node.\n");
    }
    Ok(())
}

fn act(title: &str, play: impl FnOnce() -> Result<Table>) -> Result<()> {
    println!("{title}");
    let table = play().with_context(|| format!("act {title}"))?;
    println!("{table}");
    Ok(())
}

fn countdown(left: Duration) {
    if std::io::stdout().is_terminal() {
        print!("\r  back in {:>2} s \r", left.as_secs());
        // A terminal that went away is no reason to stop.
        let _ = std::io::stdout().flush();
    }
}

fn nodes(count: u8) -> String {
    if count == 1 {
        "one node".to_owned()
    } else {
        format!("{count} nodes")
    }
}

fn look_around(rig: &Rig) {
    let forebay = gateway_tests::daemon::program();
    let client = rig.topology.client.name();
    println!("\nEverything is left running. From another terminal:");
    println!(
        "  ip netns exec {client} curl -H 'Host: {}' http://{}/",
        gateway_tests::fixture::HOST,
        VIP.ip()
    );
    for daemon in &rig.daemons {
        println!("  {} status --admin {}", forebay.display(), daemon.admin());
    }
    println!(
        "  edit the manifests in {}",
        rig.fixture.directory().display()
    );
    println!(
        "  read the logs in {}/*.log",
        rig.settings.directory.display()
    );
    println!("Ctrl-C ends it and cleans up.");
    loop {
        thread::park();
    }
}
