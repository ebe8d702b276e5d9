//! The real program, as a user starts it: its answers, its exit code, its endpoints. No privileges; every wait is bounded.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// Longest that any single wait of a test may take.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// The program without any of its variables in the environment.
pub(crate) fn program() -> Command {
    wrapped(&[])
}

/// The program, started by another one.
pub(crate) fn wrapped(by: &[&str]) -> Command {
    let binary = env!("CARGO_BIN_EXE_forebay");
    let mut command = match by.split_first() {
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(binary);
            command
        }
        None => Command::new(binary),
    };
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FOREBAY_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What a command said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command to its end.
pub(crate) async fn said(command: &mut Command) -> Said {
    let output = tokio::time::timeout(BOUND, command.output());
    let output = output.await.expect("it ends in time").unwrap();
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Polls until `look` gives something.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let poll = async {
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        loop {
            tick.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(BOUND, poll).await;
    found.unwrap_or_else(|_| panic!("{what}: not within {BOUND:?}"))
}

/// A directory of manifests.
pub(crate) fn manifests(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

/// A free port of 127.0.0.1.
pub(crate) fn free_port() -> u16 {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    probe.local_addr().unwrap().port()
}

/// A daemon with `--datapath off` and its endpoints on Unix sockets; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    own: tempfile::TempDir,
}

impl Daemon {
    /// Starts it and waits until it is ready.
    pub(crate) async fn start(config: &Path, by: &[&str], more: &[&str]) -> Self {
        let own = tempfile::tempdir().unwrap();
        let path = |name: &str| own.path().join(name);
        let socket = |name: &str| format!("unix:{}", path(name).display());
        let mut command = wrapped(by);
        command.args(["run", "--datapath", "off", "--node-name", "node-1"]);
        command.arg("--config").arg(config);
        command.arg("--state-dir").arg(path("state"));
        for endpoint in ["admin", "metrics", "ready"] {
            command.args([&format!("--{endpoint}"), &socket(endpoint)]);
        }
        command.arg("--access-log").arg(path("access.log"));
        command.args(more);
        let log = std::fs::File::create(path("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let mut daemon = Self { child, own };
        let log = daemon.path("log");
        let ready = daemon.path("ready");
        let child = &mut daemon.child;
        tokio::time::timeout(BOUND, async {
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            loop {
                tick.tick().await;
                let ended = child.try_wait().unwrap();
                let text = std::fs::read_to_string(&log).unwrap();
                assert!(ended.is_none(), "it ended: {text}");
                if let Ok((200, _)) = get(&ready, "/healthz/ready").await {
                    return;
                }
            }
        })
        .await
        .expect("ready in time");
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.own.path().join(name)
    }

    /// All that it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// A page of an endpoint (`admin`, `metrics`, `ready`).
    pub(crate) async fn page(&self, endpoint: &str, page: &str) -> String {
        let (status, body) = get(&self.path(endpoint), page).await.unwrap();
        assert_eq!(status, 200, "{page}: {body}");
        body
    }

    /// The status code of its readiness.
    pub(crate) async fn ready(&self) -> u16 {
        let (status, _) = get(&self.path("ready"), "/healthz/ready").await.unwrap();
        status
    }

    /// A JSON page of the admin endpoint.
    pub(crate) async fn admin(&self, page: &str) -> Value {
        serde_json::from_str(&self.page("admin", page).await).unwrap()
    }

    /// What a subcommand says about this daemon.
    pub(crate) async fn ask(&self, words: &[&str]) -> Said {
        let admin = format!("unix:{}", self.path("admin").display());
        said(program().args(words).args(["--admin", &admin])).await
    }

    /// Asks it to end and waits for that; nothing in its log is a panic.
    pub(crate) async fn terminate(mut self) -> (ExitStatus, String) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        let pid = rustix::process::Pid::from_raw(pid.unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = tokio::time::timeout(BOUND, self.child.wait()).await;
        let log = self.log();
        assert!(!log.contains("panicked"), "{log}");
        (status.expect("it ends in time").unwrap(), log)
    }
}

/// Status and body of a GET over a Unix socket.
pub(crate) async fn get(socket: &Path, page: &str) -> std::io::Result<(u16, String)> {
    let stream = UnixStream::connect(socket).await?;
    ask(stream, page, "forebay").await
}

/// Status and body of a GET on a connection that ends with it.
pub(crate) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    page: &str,
    host: &str,
) -> std::io::Result<(u16, String)> {
    let request = format!("GET {page} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text: String = tokio::time::timeout(BOUND, exchange).await??;
    let status = text.get(9..12).and_then(|status| status.parse().ok());
    let (_, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    status
        .map(|status| (status, body.to_owned()))
        .ok_or_else(|| std::io::Error::other(format!("no HTTP answer: {text:?}")))
}
