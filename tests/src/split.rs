//! One node as two processes: the agent with its capabilities, and `forebay run` with none.
//!
//! Both run as users of their own, with `no_new_privs`: nothing that root could do by the way helps either of them.

use std::{
    fs::{self, File},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::{
    backend::Backends,
    client::{Client, Load, Outcome},
    daemon::{get, program},
    eventually::eventually,
    fixture::{Fixture, HOST},
    leftovers::Ledger,
    machine::patience,
    rig::VIP,
    topology::{BACKENDS_V1, BACKENDS_V2, CLIENT, Site, Topology, UPLINK},
};

/// User of the agent.
pub const AGENT_USER: u32 = 65_533;
/// User of `forebay run`: nobody.
pub const RUN_USER: u32 = 65_534;

/// What the agent may do: CAP_NET_ADMIN (12), CAP_NET_RAW (13) and CAP_BPF (39).
pub const AGENT_CAPABILITIES: u64 = 1 << 12 | 1 << 13 | 1 << 39;

/// What it may do until the programs are loaded: CAP_PERFMON (38) too.
pub const STARTING_CAPABILITIES: u64 = AGENT_CAPABILITIES | 1 << 38;

const CAPABILITIES: &str = "-all,+net_admin,+net_raw,+bpf,+perfmon";

/// The node with its client and backends. Fields are dropped in this order: processes end before their namespaces go.
#[derive(Debug)]
pub struct Split {
    /// `forebay run`, if it runs.
    run: Option<Process>,
    /// The agent, if it runs.
    agent: Option<Process>,
    /// The backends.
    pub backends: Backends,
    /// The client.
    pub client: Client,
    /// The manifests.
    pub fixture: Fixture,
    /// The namespaces.
    pub topology: Topology,
    directory: PathBuf,
    bpffs: PathBuf,
    agent_flags: Vec<String>,
    /// The agent's user.
    pub user: u32,
    /// What the agent starts with, as `setpriv` takes it.
    pub capabilities: String,
    /// `--datapath` of the agent.
    pub datapath: &'static str,
    /// More of the agent's environment.
    pub environment: &'static [(&'static str, &'static str)],
    ledger: Ledger,
}

/// A child that is killed when this is dropped.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for one that ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Split {
    /// Makes everything and starts the agent; `flags` are added to its own.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn start(ledger: Ledger, flags: &[&str]) -> Result<Self> {
        let topology = Topology::new(&ledger, 1)?;
        let mut split = Self::prepare(ledger, topology, flags)?;
        split.start_agent()?;
        Ok(split)
    }

    /// Makes everything on the first node of `topology`, and starts nothing.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn prepare(ledger: Ledger, topology: Topology, flags: &[&str]) -> Result<Self> {
        let directory = PathBuf::from("/run").join(ledger.run());
        ledger.directory(&directory)?;
        let fixture = Fixture::new(&directory.join("config"), Vec::new())?;
        let site = &topology.nodes[0];
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/{}-{}", ledger.run(), site.name));
        ledger.directory(&bpffs)?;
        fs::create_dir_all(&bpffs).with_context(|| format!("cannot create {}", bpffs.display()))?;
        for name in ["agent", "state"] {
            let path = directory.join(name);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        chown(directory.join("state"), Some(RUN_USER), Some(RUN_USER))?;
        let backends = BACKENDS_V1
            .iter()
            .map(|&address| (address, "hello from backend v1"))
            .chain(
                BACKENDS_V2
                    .iter()
                    .map(|&address| (address, "hello from backend v2")),
            )
            .collect::<Vec<_>>();
        let split = Self {
            run: None,
            agent: None,
            backends: Backends::start(&topology.backends, &backends)?,
            client: Client::new(&topology.client, CLIENT),
            fixture,
            topology,
            directory,
            bpffs,
            agent_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            user: AGENT_USER,
            capabilities: CAPABILITIES.to_owned(),
            datapath: "native",
            environment: &[],
            ledger,
        };
        split.topology.deliver_to(0, *VIP.ip())?;
        Ok(split)
    }

    /// The node.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.topology.nodes[0]
    }

    /// The run's ledger.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("agent/agent.sock")
    }

    /// Where its maps are pinned.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Starts the agent and waits for its socket.
    ///
    /// # Errors
    /// If it does not come up, with the end of its log.
    pub fn start_agent(&mut self) -> Result<()> {
        for path in [&self.bpffs, &self.directory.join("agent")] {
            chown(path, Some(self.user), Some(self.user))?;
        }
        let mut command = drop_to(self.user, &self.capabilities);
        command
            .envs(self.environment.iter().copied())
            .args(["agent", "--datapath", self.datapath, "--interface", UPLINK])
            .args(["--log", "debug"])
            .arg("--socket")
            .arg(self.socket())
            .arg("--bpffs")
            .arg(&self.bpffs)
            .args(&self.agent_flags);
        self.agent = Some(self.spawn(command, "agent")?);
        let socket = self.socket();
        eventually(
            "the agent's socket",
            patience(Duration::from_secs(10)),
            || {
                std::os::unix::net::UnixStream::connect(&socket)
                    .map(drop)
                    .map_err(|error| anyhow!("{error}\n{}", self.log("agent")))
            },
        )
    }

    /// What an agent says that is started with these capabilities (as `setpriv` names them) and ends by itself.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn agent_with(&self, capabilities: &str) -> Result<(Option<i32>, String)> {
        let mut command = drop_to(AGENT_USER, capabilities);
        command
            .args(["agent", "--vips", "192.0.2.100", "--interface", UPLINK])
            .arg("--socket")
            .arg(self.directory.join("agent/other.sock"))
            .arg("--bpffs")
            .arg(&self.bpffs);
        let done = self.site().netns.output(&mut command)?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        Ok((done.status.code(), said))
    }

    /// Starts `forebay run` and returns at once.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_run(&mut self) -> Result<()> {
        let state = self.directory.join("state");
        let mut command = drop_to(RUN_USER, "-all");
        command
            .args(["run", "--node-name", "node1", "--access-log", "off"])
            .args(["--workers", "2", "--drain-timeout", "1s"])
            .arg("--agent")
            .arg(self.socket())
            .arg("--config")
            .arg(self.fixture.directory())
            .arg("--state-dir")
            .arg(&state)
            .arg("--admin")
            .arg(self.admin());
        self.run = Some(self.spawn(command, "run")?);
        Ok(())
    }

    /// Waits until `forebay run` is ready.
    ///
    /// # Errors
    /// The last answer and the end of its log.
    pub fn wait_ready(&self) -> Result<()> {
        eventually("readiness", patience(Duration::from_secs(20)), || {
            let answer = self
                .site()
                .netns
                .run(|| get(([127, 0, 0, 1], 15_021).into(), "/healthz/ready"));
            match answer {
                Ok((200, _)) => Ok(()),
                other => Err(anyhow!("{other:?}\n{}", self.log("run"))),
            }
        })
    }

    /// Waits until the VIP answers a request with 200.
    ///
    /// # Errors
    /// The last answer and the ends of both logs.
    pub fn wait_served(&self) -> Result<()> {
        eventually("an answer", patience(Duration::from_secs(10)), || {
            let load = Load {
                timeout: Duration::from_secs(2),
                ..Load::new(VIP, HOST, 1)
            };
            match &self.client.send(load)?[0].outcome {
                Outcome::Answer(answer) if answer.status == 200 => Ok(()),
                other => bail!("{other:?}\n{}\n{}", self.log("run"), self.log("agent")),
            }
        })
    }

    /// Kills `forebay run` at once.
    pub fn kill_run(&mut self) {
        self.run = None;
    }

    /// Kills the agent at once.
    pub fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// Takes the datapath off, with what the agent starts with: what it says.
    ///
    /// # Errors
    /// If that fails.
    pub fn detach(&self) -> Result<String> {
        let mut command = drop_to(self.user, &self.capabilities);
        command
            .envs(self.environment.iter().copied())
            .arg("detach")
            .arg("--bpffs")
            .arg(&self.bpffs);
        let done = self.site().netns.output(&mut command)?;
        let said = [done.stdout, done.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(done.status.success(), "forebay detach: {said}");
        Ok(said)
    }

    /// Ends the agent as a service manager does, and returns its exit code.
    ///
    /// # Errors
    /// If it does not end.
    pub fn terminate_agent(&mut self) -> Result<Option<i32>> {
        let mut agent = self.agent.take().context("the agent does not run")?;
        let pid = i32::try_from(agent.0.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .context("no process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        eventually("the agent's end", Duration::from_secs(5), || {
            agent.0.try_wait()?.ok_or_else(|| anyhow!("it runs"))
        })
        .map(|status| status.code())
    }

    /// `/proc/PID/status` of the agent and of `forebay run`.
    ///
    /// # Errors
    /// If one of them does not run.
    pub fn statuses(&self) -> Result<[String; 2]> {
        let read = |process: &Option<Process>| {
            let id = process.as_ref().context("it does not run")?.0.id();
            fs::read_to_string(format!("/proc/{id}/status")).context("no status")
        };
        Ok([read(&self.agent)?, read(&self.run)?])
    }

    /// `/proc/PID/status` of the agent alone.
    ///
    /// # Errors
    /// If it does not run.
    pub fn statuses_of_agent(&self) -> Result<String> {
        let id = self.agent_pid()?;
        fs::read_to_string(format!("/proc/{id}/status")).context("no status")
    }

    /// The answer of `forebay status`.
    ///
    /// # Errors
    /// If `forebay run` cannot be asked, or says what is no JSON.
    pub fn status(&self) -> Result<Value> {
        let mut command = Command::new(program());
        command
            .args(["status", "--output", "json", "--admin"])
            .arg(self.admin());
        let done = self.site().netns.output(&mut command)?;
        serde_json::from_slice(&done.stdout)
            .with_context(|| format!("no status: {}", String::from_utf8_lossy(&done.stderr)))
    }

    /// `--admin` of `forebay run`.
    fn admin(&self) -> String {
        let socket = self.directory.join("state/admin.sock");
        format!("unix:{}", socket.display())
    }

    /// The agent's process id.
    ///
    /// # Errors
    /// If it does not run.
    pub fn agent_pid(&self) -> Result<u32> {
        let agent = self.agent.as_ref().context("the agent does not run")?;
        Ok(agent.0.id())
    }

    /// The log of one of the two.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        let path = self.directory.join(format!("{name}.log"));
        fs::read_to_string(path).unwrap_or_default()
    }

    fn spawn(&self, mut command: Command, name: &str) -> Result<Process> {
        let log = self.directory.join(format!("{name}.log"));
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("cannot share the log")?)
            .stderr(out);
        let child = self.site().netns.spawn(&mut command)?;
        self.ledger.process(child.id())?;
        Ok(Process(child))
    }
}

/// The daemon's program as a user with these capabilities and no way to more.
fn drop_to(user: u32, capabilities: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([format!("--reuid={user}"), format!("--regid={user}")])
        .args(["--clear-groups", "--no-new-privs"])
        .args(
            ["--inh-caps", "--ambient-caps", "--bounding-set"]
                .map(|set| format!("{set}={capabilities}")),
        )
        .arg(program());
    command
}
