//! Flags and environment exactly as given.
//!
//! Nothing here touches the system or decides anything: [`crate::settings`] checks what the flags of `run` mean
//! together.

pub mod agent;
pub mod bpf;
mod check;
mod client;
mod kernel;
mod number;
mod sentence;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use self::check::CheckArgs;
pub use self::client::{ClientArgs, CompletionArgs, DumpArgs, Shell};
pub use self::kernel::{KernelArgs, LogArgs, PinsArgs, UplinkArgs};
use clap::{Args, Parser, Subcommand, ValueEnum};

use self::number::parse_count;
pub use self::sentence::one_sentence;

/// eBPF/XDP-accelerated ingress load balancer.
#[derive(Debug, Parser)]
#[command(name = "forebay", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the load balancer on this node.
    Run(Box<RunArgs>),
    /// Hold the privileges on this node for an unprivileged `forebay run --agent`.
    Agent(Box<agent::AgentArgs>),
    /// Show how this node is doing; exit code 1 if something is not well.
    Status(ClientArgs),
    /// Check a directory of manifests; exit code 1 if one of them is not well.
    Validate(ValidateArgs),
    /// Say which rule takes a request, and why.
    Explain(ExplainArgs),
    /// List what the proxy routes.
    Routes(ClientArgs),
    /// List endpoints with their health and load.
    Endpoints(ClientArgs),
    /// List certificates with the days until they expire; exit code 1 if one is bad or expires within seven days.
    Certs(ClientArgs),
    /// Check what this machine offers: interface, kernel, capabilities.
    Check(CheckArgs),
    /// Print everything the daemon knows, as JSON.
    Dump(DumpArgs),
    /// Show the kernel tables and counters.
    Bpf(Box<bpf::BpfArgs>),
    /// Let this node drain: it keeps its connections and gets no new ones.
    Drain(ClientArgs),
    /// Remove everything that is pinned and attached in the kernel.
    Detach(DetachArgs),
    /// Print a script that completes command lines.
    Completion(CompletionArgs),
}

/// Flags of `forebay run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Read manifests from this directory and follow changes.
    #[arg(long, env = "FOREBAY_CONFIG", value_name = "DIR")]
    pub config: Option<PathBuf>,
    /// Read from the Kubernetes API server [default: in a pod].
    #[arg(long, env = "FOREBAY_KUBERNETES")]
    pub kubernetes: bool,
    /// With --kubernetes: read only these namespaces, repeatable [default: all].
    #[arg(
        long,
        env = "FOREBAY_NAMESPACES",
        value_name = "NAMESPACE",
        value_delimiter = ','
    )]
    pub namespaces: Vec<String>,
    /// With --kubernetes: keep Secrets in the state directory too, for a start without an API server.
    #[arg(long, env = "FOREBAY_CACHE_SECRETS")]
    pub cache_secrets: bool,
    /// This replica's name [default: the host's name].
    #[arg(long, env = "FOREBAY_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// The node's kernel half.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Use the privileged agent at this socket.
    #[arg(long, env = "FOREBAY_AGENT", value_name = "SOCKET")]
    pub agent: Option<PathBuf>,
    /// Worker threads [default: cores available, at most 8].
    #[arg(long, env = "FOREBAY_WORKERS", value_name = "N", value_parser = parse_count, allow_hyphen_values = true)]
    pub workers: Option<usize>,
    /// Where allocations and keys are kept.
    #[arg(
        long,
        env = "FOREBAY_STATE_DIR",
        value_name = "DIR",
        default_value = "/run/forebay"
    )]
    pub state_dir: PathBuf,
    /// Time between two probes of another node.
    #[arg(
        long,
        env = "FOREBAY_PROBE_INTERVAL",
        value_name = "DURATION",
        default_value = "100ms",
        value_parser = parse_duration,
        allow_hyphen_values = true
    )]
    pub probe_interval: Duration,
    /// A node that has not answered for so long gets no new connections.
    #[arg(
        long,
        env = "FOREBAY_SUSPECT_AFTER",
        value_name = "DURATION",
        default_value = "300ms",
        value_parser = parse_duration,
        allow_hyphen_values = true
    )]
    pub suspect_after: Duration,
    /// A node that has not answered for so long is dead if most nodes agree.
    #[arg(
        long,
        env = "FOREBAY_DEAD_AFTER",
        value_name = "DURATION",
        default_value = "3s",
        value_parser = parse_duration,
        allow_hyphen_values = true
    )]
    pub dead_after: Duration,
    /// How long a draining node waits for its connections.
    #[arg(
        long,
        env = "FOREBAY_DRAIN_TIMEOUT",
        value_name = "DURATION",
        default_value = "60s",
        value_parser = parse_duration,
        allow_hyphen_values = true
    )]
    pub drain_timeout: Duration,
    /// Admin endpoint: ADDR:PORT, unix:PATH or off.
    #[arg(
        long,
        env = "FOREBAY_ADMIN",
        value_name = "ADDR",
        default_value = "127.0.0.1:15000"
    )]
    pub admin: Endpoint,
    /// Metrics endpoint: ADDR:PORT, unix:PATH or off.
    #[arg(
        long,
        env = "FOREBAY_METRICS",
        value_name = "ADDR",
        default_value = "0.0.0.0:15020"
    )]
    pub metrics: Endpoint,
    /// Readiness endpoint: ADDR:PORT, unix:PATH or off.
    #[arg(
        long,
        env = "FOREBAY_READY",
        value_name = "ADDR",
        default_value = "0.0.0.0:15021"
    )]
    pub ready: Endpoint,
    /// Access log: PATH, stdout or off.
    #[arg(
        long,
        env = "FOREBAY_ACCESS_LOG",
        value_name = "WHERE",
        default_value = "stdout"
    )]
    pub access_log: AccessLogArg,
    /// The daemon's own log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Flags of `forebay validate`.
#[derive(Args, Clone, Debug)]
pub struct ValidateArgs {
    /// Directory of manifests.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Form of the answer.
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub output: Output,
}

/// Flags of `forebay explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The request, for example `http://shop.example.com/cart?x=1`, or `udp://192.0.2.1:53` for datagrams.
    #[arg(value_name = "URL")]
    pub url: String,
    /// Method of the request.
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    pub method: String,
    /// Header of the request, NAME:VALUE, repeatable.
    #[arg(long, value_name = "NAME:VALUE")]
    pub header: Vec<String>,
    /// Explain what these manifests would do instead of asking a daemon.
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,
    /// Where the daemon is and the form of the answer.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Flags of `forebay detach`.
#[derive(Args, Clone, Debug)]
pub struct DetachArgs {
    /// What is detached.
    #[command(flatten)]
    pub pins: PinsArgs,
    /// Form of the answer.
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub output: Output,
}

/// `--datapath`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatapathArg {
    /// The best that the interface offers.
    Auto,
    /// XDP in the driver.
    Native,
    /// Traffic control, before all other programs there (Linux 6.6).
    Tcx,
    /// XDP behind the driver.
    Generic,
    /// No BPF: listeners bind on the Gateway's addresses.
    Off,
}

/// `--forward`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ForwardArg {
    /// By MAC rewrite where the node is on-link, else encapsulated.
    Auto,
    /// By MAC rewrite only.
    L2,
    /// Encapsulated only.
    Udp,
}

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line for each event.
    Text,
    /// One JSON object for each event.
    Json,
}

/// `--log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What is not well.
    Warn,
    /// What changed.
    Info,
    /// Details of the control plane.
    Debug,
    /// Everything.
    Trace,
}

/// `--access-log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogArg {
    /// No access log.
    Off,
    /// Standard output.
    Stdout,
    /// This file.
    File(PathBuf),
}

impl FromStr for AccessLogArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("give PATH, stdout or off".into()),
            "off" => Ok(Self::Off),
            "stdout" => Ok(Self::Stdout),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// Where an HTTP endpoint of the daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Nowhere.
    Off,
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        match text.strip_prefix("unix:") {
            Some("") => Err("give a path after unix:".into()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                "give ADDR:PORT (for example 127.0.0.1:15000), unix:PATH or off".into()
            }),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A duration such as `60s`, `500ms`, `2m` or `1m30s`; a bare 0 is allowed.
///
/// # Errors
/// One phrase that says what is expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || "give a duration such as 60s, 500ms or 1m30s".to_owned();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .ok_or_else(expected)?;
        let number: u32 = rest[..digits].parse().map_err(|_| expected())?;
        rest = &rest[digits..];
        let unit_length = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = match &rest[..unit_length] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(expected()),
        };
        total = unit
            .checked_mul(number)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(expected)?;
        rest = &rest[unit_length..];
    }
    if text.is_empty() {
        Err(expected())
    } else {
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let table: &[(&str, Option<u64>)] = &[
            ("60s", Some(60_000)),
            ("500ms", Some(500)),
            ("1m30s", Some(90_000)),
            ("2h", Some(7_200_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("60", None),
            ("s", None),
            ("-1s", None),
            ("1.5s", None),
            ("5d", None),
            ("99999999999s", None),
        ];
        for (text, millis) in table {
            assert_eq!(
                parse_duration(text).ok(),
                millis.map(Duration::from_millis),
                "{text:?}"
            );
        }
    }

    #[test]
    fn endpoints() {
        assert_eq!("off".parse(), Ok(Endpoint::Off));
        assert_eq!(
            "unix:/run/x.sock".parse(),
            Ok(Endpoint::Unix("/run/x.sock".into()))
        );
        assert_eq!(
            "[::1]:15000".parse(),
            Ok(Endpoint::Tcp("[::1]:15000".parse().unwrap()))
        );
        for bad in [
            "15000",
            "localhost:15000",
            "1.2.3.4",
            "unix:",
            "1.2.3.4:70000",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_flag_of_run_has_its_environment_variable() {
        use clap::CommandFactory;
        let cli = Cli::command();
        let run = cli.find_subcommand("run").expect("run exists");
        for flag in run.get_arguments().filter(|a| a.get_id() != "help") {
            let name = flag.get_long().expect("flags have long names");
            let want = format!("FOREBAY_{}", name.to_uppercase().replace('-', "_"));
            assert_eq!(
                flag.get_env().and_then(|e| e.to_str()),
                Some(want.as_str()),
                "{name}"
            );
        }
    }
}
