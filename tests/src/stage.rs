//! One node without a datapath, with clients and servers of others around it, all in one namespace.
//!
//! The VIP and the endpoints' addresses are on the loopback. `tests/clients` holds what drives the servers and clients;
//! they run in the virtual environment that `cargo xtask setup` installs.

pub mod certificates;
pub mod manifest;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use self::certificates::{Authority, Leaf};
use crate::{
    daemon::{get, program},
    eventually::eventually,
    fixture,
    leftovers::Ledger,
    netns::Netns,
};

/// Address of the Gateway.
pub const VIP: &str = "192.0.2.100";
/// Addresses of the endpoints.
pub const ENDPOINTS: [&str; 3] = ["198.51.100.11", "198.51.100.12", "198.51.100.13"];
/// Ports of the endpoints: HTTP/1.1 and HTTP/2 in clear, the same by TLS, gRPC, the same by TLS, WebSocket.
pub const CLEAR: u16 = 8080;
/// See [`CLEAR`].
pub const TLS: u16 = 8443;
/// See [`CLEAR`].
pub const GRPC: u16 = 50051;
/// See [`CLEAR`].
pub const GRPC_TLS: u16 = 50052;
/// See [`CLEAR`].
pub const WEBSOCKET: u16 = 9001;

/// Longest time for a program to be ready.
const READY: Duration = Duration::from_secs(30);

/// A program that others wrote, or the daemon; killed when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Program {
    /// Closes its standard input and returns what else it says, once it has ended.
    ///
    /// # Errors
    /// If it does not end well.
    pub fn end(mut self) -> Result<String> {
        drop(self.stdin.take());
        let mut said = String::new();
        let mut stdout = self.stdout.take().context("its output is not read")?;
        stdout
            .read_to_string(&mut said)
            .context("cannot read what it says")?;
        let status = self.child.wait().context("cannot wait for its end")?;
        ensure!(status.success(), "it ended with {status}: {said}");
        Ok(said)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails only for one that ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// See the module. Fields are dropped in this order: programs end before their namespace goes.
#[derive(Debug)]
pub struct Stage {
    daemon: Option<Program>,
    programs: Vec<Program>,
    /// The authority that clients trust.
    pub authority: Authority,
    /// Certificate of `*.example.test`, serial number 100.
    pub wild: Leaf,
    netns: Netns,
    directory: PathBuf,
    ledger: Ledger,
}

impl Stage {
    /// Makes the namespace, the certificates and the endpoints.
    ///
    /// # Errors
    /// The first step that failed; what was made is removed again.
    pub fn new() -> Result<Self> {
        let ledger = Ledger::open()?;
        let netns = Netns::new(&ledger, "stage")?;
        for address in [VIP].iter().chain(&ENDPOINTS) {
            netns.ip(&format!("address add {address}/32 dev lo"))?;
        }
        let directory = PathBuf::from("/run").join(ledger.run());
        ledger.directory(&directory)?;
        for name in ["config", "state", "certificates"] {
            let path = directory.join(name);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        let authority = Authority::new(&directory.join("certificates"))?;
        let wild = authority.issue("wild", &["*.example.test"], 100)?;
        let endpoint = authority.issue("endpoint", &["endpoint.test"], 101)?;
        let mut stage = Self {
            daemon: None,
            programs: Vec::new(),
            authority,
            wild,
            netns,
            directory,
            ledger,
        };
        let mut python = stage.python("endpoint.py")?;
        python.arg(&endpoint.chain_file).arg(&endpoint.key_file);
        let endpoints = stage.start(python.args(ENDPOINTS))?;
        stage.programs.push(endpoints);
        Ok(stage)
    }

    /// Starts the daemon on what was written and waits until it is ready.
    ///
    /// # Errors
    /// The end of its log, if it does not become ready.
    pub fn serve(&mut self, workers: usize) -> Result<()> {
        let log = self.directory.join("daemon.log");
        let open = || File::create(&log).with_context(|| format!("cannot write {}", log.display()));
        let out = open()?;
        let mut command = Command::new(program());
        command
            .args(["run", "--datapath", "off", "--node-name", "node1"])
            .args(["--workers", &workers.to_string()])
            .args(["--metrics", "off", "--admin"])
            .arg(format!("unix:{}", self.path("state/admin.sock")))
            .args(["--access-log", &self.path("access.log")])
            .args(["--config", &self.path("config")])
            .args(["--state-dir", &self.path("state")])
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("cannot share the log")?)
            .stderr(out);
        let child = self.netns.spawn(&mut command)?;
        self.ledger.process(child.id())?;
        self.daemon = Some(Program {
            child,
            stdin: None,
            stdout: None,
        });
        let ready = eventually("the daemon ready", READY, || {
            let address = ([127, 0, 0, 1], 15021).into();
            match self.netns.run(|| get(address, "/healthz/ready"))? {
                (200, _) => Ok(()),
                (status, why) => Err(anyhow!("{status} {}", why.trim())),
            }
        });
        ready.map_err(|error| anyhow!("{error:#}\n{}", self.log()))
    }

    /// Sends the daemon SIGTERM: it drains from then on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn terminate(&self) -> Result<()> {
        let daemon = self.daemon.as_ref().context("no daemon was started")?;
        let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process id")?, Signal::TERM).context("cannot signal it")
    }

    /// Waits for the end of the daemon after [`Self::terminate`].
    ///
    /// # Errors
    /// Its log, if it does not end within `bound`.
    pub fn ended(&mut self, bound: Duration) -> Result<ExitStatus> {
        let log = self.log();
        let daemon = self.daemon.as_mut().context("no daemon was started")?;
        eventually("the end of the daemon", bound, || {
            let ended = daemon.child.try_wait()?;
            ended.with_context(|| format!("it still runs\n{log}"))
        })
    }

    /// What the daemon has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("daemon.log")).unwrap_or_default()
    }

    /// Lines of the access log so far, in the order in which what they tell of began.
    ///
    /// # Errors
    /// If a line is no JSON.
    pub fn access_log(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.directory.join("access.log")).unwrap_or_default();
        let lines = text.lines().map(serde_json::from_str);
        let mut lines: Vec<Value> = lines
            .collect::<Result<_, _>>()
            .context("a line of the access log is no JSON")?;
        // Each worker writes its own, when it comes to it.
        lines.sort_by(|one, two| one["start_time"].as_str().cmp(&two["start_time"].as_str()));
        Ok(lines)
    }

    /// Writes a manifest at once.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        fixture::write_whole(&self.directory.join("config"), file, text)
    }

    /// Removes a manifest.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove(&self, file: &str) -> Result<()> {
        let path = self.directory.join("config").join(file);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// A file of the run, as text.
    #[must_use]
    pub fn path(&self, file: &str) -> String {
        self.directory.join(file).display().to_string()
    }

    /// File with the root that clients trust, as text.
    #[must_use]
    pub fn root(&self) -> String {
        self.authority.root().display().to_string()
    }

    /// Starts a program in the namespace and waits until it says `ready`.
    ///
    /// # Errors
    /// If it says something else or ends.
    pub fn start(&self, command: &mut Command) -> Result<Program> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = self.netns.spawn(command)?;
        self.ledger.process(child.id())?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("its output is not read")?;
        let mut program = Program {
            child,
            stdin,
            stdout: None,
        };
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout
            .read_line(&mut line)
            .context("cannot read what it says")?;
        ensure!(
            line.trim() == "ready",
            "{command:?} says {line:?} and not that it is ready"
        );
        program.stdout = Some(stdout);
        Ok(program)
    }

    /// Starts a program that does not say when it is ready and keeps it until the end; it listens there then.
    ///
    /// # Errors
    /// If it cannot be started or does not listen.
    pub fn keep(&mut self, command: &mut Command, listens: &str) -> Result<()> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = self.netns.spawn(command)?;
        self.ledger.process(child.id())?;
        self.programs.push(Program {
            child,
            stdin: None,
            stdout: None,
        });
        eventually(listens, READY, || {
            let connect = || std::net::TcpStream::connect(listens).map_err(Into::into);
            self.netns.run(connect).map(drop)
        })
    }

    /// Starts a program in the namespace whose output is read at its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn begin(&self, command: &mut Command) -> Result<Program> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = self.netns.spawn(command)?;
        self.ledger.process(child.id())?;
        Ok(Program {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(BufReader::new),
            child,
        })
    }

    /// Runs a program in the namespace to its end, for 120 s at most; its standard output.
    ///
    /// # Errors
    /// What it said, if it fails.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        let (code, stdout, stderr) = self.result(command)?;
        ensure!(
            code == Some(0),
            "{command:?} ended with {code:?}: {stderr}\n{stdout}"
        );
        Ok(stdout)
    }

    /// Runs a program in the namespace to its end, for 120 s at most: exit code, standard output and error.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn result(&self, command: &mut Command) -> Result<(Option<i32>, String, String)> {
        let mut bounded = Command::new("timeout");
        bounded
            .args(["--kill-after=5", "120"])
            .arg(command.get_program())
            .args(command.get_args());
        let done = self.netns.output(&mut bounded)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((done.status.code(), text(&done.stdout), text(&done.stderr)))
    }

    /// A program of `tests/clients`, to be run by the virtual environment's Python.
    ///
    /// # Errors
    /// If that is not installed.
    pub fn python(&self, script: &str) -> Result<Command> {
        let script = crate::checkout().join("tests/clients").join(script);
        let mut command = Command::new(python()?);
        // No compiled files beside the sources.
        command.arg("-B").arg(script);
        Ok(command)
    }

    /// Runs one of `tests/clients` and reads the JSON that it says.
    ///
    /// # Errors
    /// What it said instead.
    pub fn ask(&self, script: &str, words: &[&str]) -> Result<Value> {
        let said = self.run(self.python(script)?.args(words))?;
        serde_json::from_str(&said).with_context(|| format!("{script} says {said:?}"))
    }

    /// `curl`, silent, with the root trusted and every name of the scenarios leading to the VIP.
    #[must_use]
    pub fn curl(&self) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "--noproxy", "*"])
            .args(["--connect-to", &format!("::{VIP}:"), "--cacert"])
            .arg(self.authority.root());
        curl
    }

    /// `grpcurl` with its time bounded.
    ///
    /// # Errors
    /// If it is not installed.
    pub fn grpcurl(&self) -> Result<Command> {
        let path = std::env::var_os("FOREBAY_GRPCURL");
        let path = path.context("FOREBAY_GRPCURL is not set: `cargo xtask setup` installs it as ~/.cache/forebay/grpcurl-…/grpcurl")?;
        let mut grpcurl = Command::new(path);
        grpcurl.args(["-connect-timeout", "10"]);
        Ok(grpcurl)
    }

    /// What the endpoints saw since it was last asked, in the order of their requests.
    ///
    /// # Errors
    /// If they do not answer.
    pub fn seen(&self) -> Result<Vec<Value>> {
        let seen = self.look()?;
        let address = format!("{}:{CLEAR}", ENDPOINTS[0]).parse()?;
        self.netns.run(|| get(address, "/__forget"))?;
        Ok(seen)
    }

    /// The same without its being forgotten: for what is waited for.
    ///
    /// # Errors
    /// If they do not answer.
    pub fn look(&self) -> Result<Vec<Value>> {
        let address = format!("{}:{CLEAR}", ENDPOINTS[0]).parse()?;
        self.netns.run(|| {
            let (status, body) = get(address, "/__seen")?;
            ensure!(status == 200, "status {status}");
            serde_json::from_str(&body).context("not JSON")
        })
    }
}

/// A header field of what an endpoint saw; several values are joined by `|`.
#[must_use]
pub fn field(saw: &Value, name: &str) -> Option<String> {
    let fields = saw["headers"].as_array()?;
    let values: Vec<&str> = fields
        .iter()
        .filter(|field| field[0] == name)
        .filter_map(|field| field[1].as_str())
        .collect();
    (!values.is_empty()).then(|| values.join("|"))
}

/// The virtual environment's Python, as `cargo xtask test` names it.
fn python() -> Result<PathBuf> {
    let python = std::env::var_os("FOREBAY_PYTHON").map(PathBuf::from);
    python.context("FOREBAY_PYTHON is not set: `cargo xtask setup` installs it as ~/.cache/forebay/clients-…/bin/python")
}
