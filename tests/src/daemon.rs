//! The real daemon in a node's namespace.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    eventually::eventually,
    leftovers::Ledger,
    machine::patience,
    topology::{Site, UPLINK},
};

/// Lines of a log that an error shows.
const TAIL: usize = 15;

/// Longest time from start to ready; a second where nothing else runs.
const READY: Duration = Duration::from_secs(60);

/// Port of `--ready`.
const READY_PORT: u16 = 15021;

/// How a daemon is started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of manifests.
    pub config: PathBuf,
    /// Directory for state and logs of all nodes.
    pub directory: PathBuf,
    /// `--forward`.
    pub forward: String,
    /// `--drain-timeout`.
    pub drain_timeout: Duration,
    /// `--workers`; `None` = the daemon's default.
    pub workers: Option<usize>,
    /// More words of the command line.
    pub words: &'static [&'static str],
    /// A program, with its words, that becomes the daemon: what limits it.
    pub under: &'static [&'static str],
}

/// A started daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    site: Site,
    child: Child,
    log: PathBuf,
    state: PathBuf,
    bpffs: PathBuf,
}

impl Daemon {
    /// Starts the daemon of a node and returns at once.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(ledger: &Ledger, site: &Site, settings: &Settings) -> Result<Self> {
        let state = settings.directory.join(&site.name);
        fs::create_dir_all(&state).with_context(|| format!("cannot create {}", state.display()))?;
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/{}-{}", ledger.run(), site.name));
        ledger.directory(&bpffs)?;
        let log = settings.directory.join(format!("{}.log", site.name));
        let open = || File::options().create(true).append(true).open(&log);
        let out = open().with_context(|| format!("cannot write {}", log.display()))?;
        let mut words = settings.under.iter().map(PathBuf::from).chain([program()]);
        let mut command = Command::new(words.next().context("no program")?);
        command
            .args(words)
            .args([
                "run",
                "--datapath",
                "native",
                "--interface",
                UPLINK,
                "--node-name",
                &site.name,
            ])
            .args(["--forward", &settings.forward, "--access-log", "off"])
            .args([
                "--drain-timeout",
                &format!("{}ms", settings.drain_timeout.as_millis()),
            ])
            .arg("--config")
            .arg(&settings.config)
            .arg("--state-dir")
            .arg(&state)
            .arg("--bpffs")
            .arg(&bpffs)
            .args([
                "--admin",
                &format!("unix:{}", state.join("admin.sock").display()),
            ])
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("cannot share the log")?)
            .stderr(out);
        if let Some(workers) = settings.workers {
            command.args(["--workers", &workers.to_string()]);
        }
        command.args(settings.words);
        let child = site
            .netns
            .spawn(&mut command)
            .context("is it built? FOREBAY_BIN names another one")?;
        ledger.process(child.id())?;
        Ok(Self {
            site: site.clone(),
            child,
            log,
            state,
            bpffs,
        })
    }

    /// Waits until `/healthz/ready` is 200.
    ///
    /// # Errors
    /// The answer before, or the end of the log if the daemon ended.
    pub fn wait_ready(&mut self) -> Result<()> {
        let name = self.site.name.clone();
        let waited = eventually(&format!("{name} ready"), patience(READY), || {
            // An end is no error to poll on: it is returned as what was found.
            if let Some(status) = self
                .child
                .try_wait()
                .context("cannot ask for the daemon's end")?
            {
                return Ok(Some(status));
            }
            match self.readiness()? {
                (200, _) => Ok(None),
                (status, why) => Err(anyhow!("{status} {}", why.trim())),
            }
        });
        match waited {
            Ok(None) => Ok(()),
            Ok(Some(status)) => bail!("{name} ended ({status})\n{}", self.log_tail()),
            Err(error) => bail!("{error:#}\n{}\n{}", self.log_tail(), self.threads()),
        }
    }

    /// Status and body of `/healthz/ready`.
    ///
    /// # Errors
    /// If nobody answers.
    pub fn readiness(&self) -> Result<(u16, String)> {
        self.site.netns.run(|| {
            get(
                SocketAddr::from((Ipv4Addr::LOCALHOST, READY_PORT)),
                "/healthz/ready",
            )
        })
    }

    /// The node that it runs on.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its maps are pinned.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The value of `--admin` for the commands that ask it.
    #[must_use]
    pub fn admin(&self) -> String {
        format!("unix:{}", self.state.join("admin.sock").display())
    }

    /// Output of a subcommand asked of this daemon, whatever its exit code.
    ///
    /// # Errors
    /// If it cannot be run or says nothing.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(program());
        let done = self
            .site
            .netns
            .output(command.args(words).args(["--admin", &self.admin()]))?;
        if done.stdout.is_empty() {
            bail!(
                "forebay {}: {}",
                words.join(" "),
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Kills it at once: sockets and all.
    ///
    /// # Errors
    /// If it is already gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .with_context(|| format!("cannot kill {}", self.site.name))?;
        self.child
            .wait()
            .map(drop)
            .context("cannot wait for the daemon's end")
    }

    /// Stops it without its knowing (SIGSTOP): its sockets stay, nothing of it runs.
    ///
    /// # Errors
    /// If it is gone.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after [`Self::pause`].
    ///
    /// # Errors
    /// If it is gone.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("no process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.site.name))
    }

    /// The answer of `forebay status`.
    ///
    /// # Errors
    /// If it cannot be asked, or says what is no JSON.
    pub fn status(&self) -> Result<Value> {
        let text = self.ask(&["status", "--output", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// What it says of a listed node.
    ///
    /// # Errors
    /// If it cannot be asked, or lists no such node.
    pub fn node_status(&self, name: &str) -> Result<Value> {
        let status = self.status()?;
        let nodes = status["datapath"]["nodes"].as_array();
        let found = nodes.and_then(|nodes| nodes.iter().find(|node| node["name"] == name));
        found
            .cloned()
            .with_context(|| format!("{} does not list {name}", self.site.name))
    }

    /// Asks it to drain and waits for its end.
    ///
    /// # Errors
    /// If it does not end within `bound`, with the end of its log.
    pub fn terminate(&mut self, bound: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let name = self.site.name.clone();
        let ended = eventually(&format!("the end of {name}"), bound, || {
            self.child
                .try_wait()?
                .ok_or_else(|| anyhow!("it still runs"))
        });
        ended.map_err(|error| anyhow!("{error:#}\n{}", self.log_tail()))
    }

    /// Where each of its threads is in the kernel, as far as that can be read.
    fn threads(&self) -> String {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let tasks = tasks.into_iter().flatten().flatten();
        let of = |task: fs::DirEntry| {
            let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let (name, stack) = (read("comm"), read("stack"));
            format!("thread {}:\n{stack}", name.trim())
        };
        tasks.map(of).collect::<Vec<_>>().join("\n")
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n  ");
        format!("end of {}:\n  {tail}", self.log.display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only for one that ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon: `FOREBAY_BIN`, else the release build.
#[must_use]
pub fn program() -> PathBuf {
    std::env::var_os("FOREBAY_BIN").map_or_else(
        || crate::checkout().join("target/release/forebay"),
        PathBuf::from,
    )
}

/// A plain GET in the namespace of the calling thread.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let bound = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, bound)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(bound))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .context("no whole answer")?;
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("no HTTP answer")?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}
