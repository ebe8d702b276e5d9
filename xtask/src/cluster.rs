//! `cargo xtask cluster`: a real Kubernetes cluster on this machine, several side by side if they have names of their own.
//!
//! A hub namespace holds the control plane, one more for each node holds containerd, kubelet and kube-proxy. All
//! processes are in one cgroup, all mounts in namespaces that end with them, all files in one folder: a removal needs
//! nothing but the name, whatever has become of the command that started it.

mod binaries;
mod cgroups;
mod checks;
mod config;
mod control;
mod definitions;
mod demo;
mod echo;
pub(crate) mod forebay;
pub(crate) mod go;
mod layout;
mod network;
mod node;
mod pki;
mod processes;
mod remove;
mod running;
mod scenarios;
mod status;
pub(crate) mod wait;

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::progress::Steps;
use binaries::Binaries;
use layout::{MOST_NODES, Node};

pub(crate) use binaries::KUBERNETES;
pub(crate) use checks::root;
pub(crate) use layout::Name;
pub(crate) use running::{Running, Wanted};
pub(crate) use wait::{Interrupt, until};

/// What to do with a cluster.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Start a cluster and wait until its nodes are ready.
    Up {
        #[command(flatten)]
        cluster: Named,
        /// Nodes, 1 to 9.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
        nodes: u8,
        #[command(flatten)]
        definitions: Definitions,
    },
    /// Remove a cluster, also what a start that died has left.
    Down {
        #[command(flatten)]
        cluster: Named,
    },
    /// Show nodes and how to reach them.
    Status {
        /// Only this one; default: all.
        #[arg(long)]
        name: Option<Name>,
    },
    /// The quick start on a cluster of its own: walked through, shown and checked.
    Demo {
        /// Name of the cluster.
        #[arg(long, default_value = "demo")]
        name: Name,
        /// Leave the cluster running at the end.
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        definitions: Definitions,
    },
    /// Roll-outs, drains, an API server that is away and more, on a cluster of its own under load.
    Scenarios(scenarios::Args),
    /// Import an OCI archive on every node.
    LoadImage {
        #[command(flatten)]
        cluster: Named,
        /// The archive; its index names the image.
        archive: PathBuf,
    },
}

#[derive(clap::Args)]
struct Named {
    /// Which cluster: 1 to 16 small letters and digits.
    #[arg(long, default_value = "dev")]
    name: Name,
}

/// Which of Gateway API's definitions to install.
#[derive(clap::Args)]
struct Definitions {
    /// Which of Gateway API's definitions to install.
    #[arg(long, value_enum, default_value_t = Channel::Standard)]
    crds: Channel,
    /// Version of these definitions.
    #[arg(long, default_value = binaries::GATEWAY_API, value_parser = definitions::VERSIONS)]
    gateway_api: String,
}

impl Definitions {
    fn on<'a>(&'a self, name: &'a Name, nodes: u8) -> Wanted<'a> {
        Wanted {
            name,
            nodes,
            channel: self.crds,
            gateway_api: &self.gateway_api,
        }
    }
}

/// A release channel of Gateway API.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Channel {
    Standard,
    Experimental,
    None,
}

impl Channel {
    pub(crate) fn folder(self) -> Option<&'static str> {
        match self {
            Self::Standard => Some("standard"),
            Self::Experimental => Some("experimental"),
            Self::None => None,
        }
    }
}

/// `cargo xtask cluster`.
pub(crate) fn run(args: &Args) -> Result<()> {
    root()?;
    match &args.command {
        Command::Up {
            cluster,
            nodes,
            definitions,
        } => up(&definitions.on(&cluster.name, *nodes)),
        Command::Down { cluster } => down(&cluster.name),
        Command::Status { name } => show(name.as_ref()),
        Command::Demo {
            name,
            keep,
            definitions,
        } => demo::run(&definitions.on(name, demo::NODES), *keep),
        Command::Scenarios(args) => scenarios::run(args),
        Command::LoadImage { cluster, archive } => load_image(&cluster.name, archive),
    }
}

fn up(wanted: &Wanted<'_>) -> Result<()> {
    let steps = Steps::new();
    let interrupt = Interrupt::listen()?;
    Running::start(&steps, &interrupt, wanted)?.keep();
    status::print(wanted.name);
    Ok(())
}

fn start(running: &Running<'_>, wanted: &Wanted<'_>) -> Result<()> {
    let (steps, interrupt) = (running.steps, running.interrupt);
    let (cluster, nodes) = (wanted.name, wanted.nodes);
    let binaries = Binaries::place()?;
    steps.run("namespaces and keys", |_| {
        for folder in [cluster.state(), cluster.logs(), cluster.records()] {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        cgroups::make(cluster, nodes)?;
        network::make(cluster, nodes)?;
        control::prepare(cluster, nodes, &binaries)?;
        node::write_pause(cluster, &binaries)?;
        interrupt.check()?;
        Ok(format!("{} and {nodes} nodes", cluster.hub()))
    })?;
    steps.run("control plane", |step| {
        control::start(cluster, &binaries)?;
        // The nodes' first programs need no API server.
        for node in Node::all(nodes) {
            step.say(&format!("containerd on {node}"));
            node::start(interrupt, cluster, node)?;
        }
        step.say("API server");
        control::finish(interrupt, cluster, &binaries)?;
        Ok(format!("Kubernetes {KUBERNETES}"))
    })?;
    steps.run("nodes", |step| {
        for node in Node::all(nodes) {
            step.say(&node.to_string());
            node::join(interrupt, cluster, node, &binaries)?;
        }
        Ok("started".to_owned())
    })?;
    if let Some(channel) = wanted.channel.folder() {
        steps.run("definitions", |_| {
            let version = wanted.gateway_api;
            let folder = definitions::provide(interrupt, &binaries, version, channel)?;
            control::definitions(interrupt, cluster, &folder)?;
            Ok(format!("Gateway API {version}, {channel}"))
        })?;
    }
    steps.run("ready", |_| {
        node::ready(interrupt, cluster, nodes, &binaries)?;
        control::accounts(interrupt, cluster)?;
        Ok(format!("{nodes} nodes, and pods are admitted"))
    })
}

fn down(cluster: &Name) -> Result<()> {
    if !remove::is_there(cluster) {
        println!("there is no cluster {cluster}");
        return Ok(());
    }
    let _lock = lock(cluster)?;
    Steps::new().run("removal", |_| remove::all(cluster))
}

fn show(name: Option<&Name>) -> Result<()> {
    let there = status::clusters();
    let wanted: Vec<&Name> = match name {
        Some(name) if !there.contains(name) => bail!("there is no cluster {name}"),
        Some(name) => vec![name],
        None => there.iter().collect(),
    };
    if wanted.is_empty() {
        println!("there is no cluster: `cargo xtask cluster up` starts one");
    }
    for cluster in wanted {
        status::print(cluster);
    }
    Ok(())
}

fn load_image(cluster: &Name, archive: &Path) -> Result<()> {
    let nodes = node::of_cluster(cluster);
    if nodes.is_empty() {
        bail!("there is no cluster {cluster}");
    }
    let steps = Steps::new();
    for node in nodes {
        steps.run(&node.to_string(), |_| {
            node::load(cluster, node, archive)?;
            Ok(archive.display().to_string())
        })?;
    }
    Ok(())
}

/// Held by the one command that changes a cluster.
fn lock(cluster: &Name) -> Result<File> {
    let path = cluster.lock();
    let parent = layout::states();
    fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let taken = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    // A removal takes the file away in the end.
    let number = |found: fs::Metadata| found.ino();
    let same = file.metadata().ok().map(number) == fs::metadata(&path).ok().map(number);
    if !taken || !same {
        bail!("another command works on the cluster {cluster}: wait for its end");
    }
    Ok(file)
}
