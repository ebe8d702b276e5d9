//! The flags of `forebay run`, checked together: every error at once, each one sentence.
//!
//! Looks at the machine only where a default comes from it (its name, its cores); whether interfaces, ports and
//! directories can be used is found out by whoever uses them.

pub mod agent;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::{AccessLogArg, DatapathArg, Endpoint, ForwardArg, RunArgs};
use crate::k8s;
use crate::l4::liveness::Settings as Probes;

/// Most worker threads that `--workers` may ask for.
pub const MAX_WORKERS: usize = 64;

/// Worker threads without `--workers`, where the machine has more cores.
const DEFAULT_WORKERS: usize = 8;

/// `--bpffs` unless it is given.
const DEFAULT_BPFFS: &str = "/sys/fs/bpf/forebay";

/// What `forebay run` runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where objects come from.
    pub source: Source,
    /// This replica's name.
    pub node_name: String,
    /// Uplinks; empty = the one with the default route.
    pub interfaces: Vec<String>,
    /// How packets are steered.
    pub datapath: Datapath,
    /// Socket of the agent; none = the privileges are this process's own.
    pub agent: Option<PathBuf>,
    /// How packets reach the owner node; with an agent, it says so.
    pub forward: ForwardArg,
    /// Worker threads of the proxy, at least 1.
    pub workers: usize,
    /// Where maps and links are pinned.
    pub bpffs: PathBuf,
    /// Where allocations and keys are kept.
    pub state_dir: PathBuf,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// UDP port of the probes.
    pub probe_port: u16,
    /// How nodes probe each other.
    pub probes: Probes,
    /// Longest drain.
    pub drain_timeout: Duration,
    /// Admin endpoint.
    pub admin: Endpoint,
    /// Metrics endpoint.
    pub metrics: Endpoint,
    /// Readiness endpoint.
    pub ready: Endpoint,
    /// Access log.
    pub access_log: AccessLogArg,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of manifests.
    Files(PathBuf),
    /// The API server.
    Kubernetes(k8s::Options),
}

/// How packets are steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datapath {
    /// The best that each interface allows.
    Auto,
    /// XDP in the driver or nothing.
    Native,
    /// Traffic control by a tcx link or nothing.
    Tcx,
    /// XDP behind the driver.
    Generic,
    /// No BPF.
    Off,
}

impl Settings {
    /// Checks `args`; `host_name` and `cores` give the defaults that come from the machine.
    ///
    /// # Errors
    /// Every mistake, one sentence each.
    pub fn new(
        args: RunArgs,
        host_name: Option<String>,
        cores: usize,
    ) -> Result<Self, Vec<String>> {
        let mut errors = contradictions(&args);
        let config = args.config.unwrap_or_default();
        if config.as_os_str().is_empty() && !args.kubernetes {
            errors.push(
                "no source of objects; give a directory of manifests with --config DIR, or --kubernetes".into(),
            );
        }
        let named = args.node_name.is_some();
        let node_name = args.node_name.or(host_name).unwrap_or_default();
        if let Err(error) = check_node_name(&node_name, named) {
            errors.push(error);
        }
        let workers = args.workers.unwrap_or(cores.clamp(1, DEFAULT_WORKERS));
        if workers == 0 || workers > MAX_WORKERS {
            errors.push(format!(
                "--workers {workers} is out of range; give 1 to {MAX_WORKERS}"
            ));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let source = if args.kubernetes {
            Source::Kubernetes(k8s::Options {
                namespaces: args.namespaces,
                node: node_name.clone(),
                state_dir: args.state_dir.clone(),
                cache_secrets: args.cache_secrets,
            })
        } else {
            Source::Files(config)
        };
        Ok(Self {
            source,
            node_name,
            interfaces: args.kernel.uplink.interface,
            datapath: match args.kernel.datapath {
                DatapathArg::Auto => Datapath::Auto,
                DatapathArg::Native => Datapath::Native,
                DatapathArg::Tcx => Datapath::Tcx,
                DatapathArg::Generic => Datapath::Generic,
                DatapathArg::Off => Datapath::Off,
            },
            agent: args.agent,
            forward: args.kernel.forward,
            workers,
            bpffs: args.kernel.pins.bpffs,
            state_dir: args.state_dir,
            tunnel_port: args.kernel.tunnel_port,
            probe_port: args.kernel.probe_port,
            probes: Probes {
                interval: args.probe_interval,
                suspect_after: args.suspect_after,
                dead_after: args.dead_after,
            },
            drain_timeout: args.drain_timeout,
            admin: args.admin,
            metrics: args.metrics,
            ready: args.ready,
            access_log: args.access_log,
        })
    }
}

/// Flags that do not go together or that this version cannot honour.
fn contradictions(args: &RunArgs) -> Vec<String> {
    let mut errors = Vec::new();
    if args.kubernetes && args.config.is_some() {
        errors.push("--kubernetes and --config exclude each other; give one of them".into());
    }
    if !args.kubernetes && !args.namespaces.is_empty() {
        errors.push("--namespaces limits what is read from the API server; give --kubernetes, or leave it out".into());
    }
    if !args.kubernetes && args.cache_secrets {
        errors.push(
            "--cache-secrets keeps Secrets of the API server; give --kubernetes, or leave it out"
                .into(),
        );
    }
    for name in &args.namespaces {
        if let Err(error) = check_namespace(name) {
            errors.push(error);
        }
    }
    errors.extend(beside_an_agent(args));
    if args.kernel.datapath == DatapathArg::Off {
        if !args.kernel.uplink.interface.is_empty() {
            errors.push("--datapath off uses no interface; leave --interface out".into());
        }
        if args.kernel.forward != ForwardArg::Auto {
            errors.push("--datapath off forwards no packets; leave --forward out".into());
        }
    }
    if args.kernel.datapath != DatapathArg::Off
        && args.kernel.uplink.interface.iter().any(String::is_empty)
    {
        errors.push("--interface has an empty name; give the name of an uplink".into());
    }
    errors.extend(ports(args.kernel.tunnel_port, args.kernel.probe_port));
    errors.extend(bad_times(args));
    let endpoints = [
        ("--admin", &args.admin),
        ("--metrics", &args.metrics),
        ("--ready", &args.ready),
    ];
    for (i, (first, a)) in endpoints.iter().enumerate() {
        for (second, b) in &endpoints[i + 1..] {
            if a == b && **a != Endpoint::Off && !picks_its_port(a) {
                errors.push(format!(
                    "{first} and {second} are both {a}; give two different addresses"
                ));
            }
        }
    }
    errors
}

/// What belongs to the agent if there is one.
fn beside_an_agent(args: &RunArgs) -> Vec<String> {
    if args.agent.is_none() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if args.kernel.datapath == DatapathArg::Off {
        errors.push(
            "--datapath off needs no privileges; leave --agent out, or --datapath off".into(),
        );
    }
    for (given, flag) in [
        (!args.kernel.uplink.interface.is_empty(), "--interface"),
        (
            matches!(
                args.kernel.datapath,
                DatapathArg::Native | DatapathArg::Generic
            ),
            "--datapath",
        ),
        (args.kernel.forward != ForwardArg::Auto, "--forward"),
        (
            args.kernel.pins.bpffs != Path::new(DEFAULT_BPFFS),
            "--bpffs",
        ),
    ] {
        if given {
            errors.push(format!(
                "{flag} is the agent's business; give it to `forebay agent`, or leave --agent out"
            ));
        }
    }
    errors
}

/// Times of the probes that would take a late packet for a death, or no death for one.
fn bad_times(args: &RunArgs) -> Vec<String> {
    let (interval, suspect, dead) = (args.probe_interval, args.suspect_after, args.dead_after);
    let mut errors = Vec::new();
    let shortest = Duration::from_millis(10);
    if interval < shortest || interval > Duration::from_secs(10) {
        errors.push(format!(
            "--probe-interval {interval:?} is out of range; give 10ms to 10s"
        ));
    }
    if suspect < 2 * interval || suspect > Duration::from_secs(60) {
        errors.push(format!(
            "--suspect-after {suspect:?} is out of range; give at least two probe intervals and at most 60s"
        ));
    }
    if dead < 2 * suspect || dead > Duration::from_secs(600) {
        errors.push(format!(
            "--dead-after {dead:?} is out of range; give at least twice --suspect-after and at most 10m"
        ));
    }
    errors
}

/// Ports of tunnel and probes.
fn ports(tunnel: u16, probe: u16) -> Option<String> {
    (tunnel == probe).then(|| {
        format!("--tunnel-port and --probe-port are both {tunnel}; give two different ports")
    })
}

fn picks_its_port(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Tcp(address) if address.port() == 0)
}

/// A namespace is a DNS label.
fn check_namespace(name: &str) -> Result<(), String> {
    if name.len() <= 63 && label_is_good(name) {
        return Ok(());
    }
    Err(format!(
        "--namespaces {name:?} is not the name of a namespace; give DNS labels, separated by commas"
    ))
}

fn label_is_good(label: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !label.is_empty() && label.bytes().all(good) && !label.starts_with('-') && !label.ends_with('-')
}

/// A node name is what Kubernetes allows: a DNS subdomain.
fn check_node_name(name: &str, given: bool) -> Result<(), String> {
    if name.is_empty() && given {
        Err("--node-name is empty; give a name or leave it out".into())
    } else if name.is_empty() {
        Err("this host has no name; give one with --node-name".into())
    } else if name.len() > 253 || !name.split('.').all(label_is_good) {
        Err(format!(
            "node name {name:?} is not a DNS name; give one of lower-case letters, digits, '-' and '.' with --node-name"
        ))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn settings(flags: &str) -> Result<Settings, Vec<String>> {
        let words = ["forebay", "run"]
            .into_iter()
            .chain(flags.split_whitespace());
        let Command::Run(args) = Cli::try_parse_from(words).expect("flags parse").command else {
            panic!("run");
        };
        Settings::new(*args, Some("host-1".into()), 12)
    }

    #[test]
    fn defaults() {
        let got = settings("--config /etc/forebay").expect("good");
        assert_eq!(got.source, Source::Files("/etc/forebay".into()));
        assert_eq!((got.node_name.as_str(), got.workers), ("host-1", 8));
        assert_eq!(got.datapath, Datapath::Auto);
        assert_eq!(got.drain_timeout, Duration::from_secs(60));
        assert_eq!(got.state_dir, PathBuf::from("/run/forebay"));
        assert_eq!(got.admin.to_string(), "127.0.0.1:15000");
    }

    #[test]
    fn objects_come_from_one_source() {
        let got = settings("--kubernetes --namespaces a,b").expect("good");
        let namespaces = vec!["a".to_owned(), "b".to_owned()];
        let node = "host-1".to_owned();
        let options = k8s::Options {
            namespaces,
            node,
            state_dir: "/run/forebay".into(),
            cache_secrets: false,
        };
        assert_eq!(got.source, Source::Kubernetes(options));
        for (flags, want) in [
            (
                "--kubernetes --config x",
                "--kubernetes and --config exclude each other; give one of them",
            ),
            (
                "--config x --namespaces a",
                "--namespaces limits what is read from the API server; give --kubernetes, or leave it out",
            ),
            (
                "--kubernetes --namespaces a.b",
                "--namespaces \"a.b\" is not the name of a namespace; give DNS labels, separated by commas",
            ),
        ] {
            assert_eq!(settings(flags).expect_err(flags), [want]);
        }
    }

    #[test]
    fn all_errors_come_at_once() {
        let errors = settings("--workers 0 --node-name A --tunnel-port 17411")
            .expect_err("four mistakes and no source");
        assert_eq!(
            errors,
            [
                "--tunnel-port and --probe-port are both 17411; give two different ports",
                "no source of objects; give a directory of manifests with --config DIR, or --kubernetes",
                "node name \"A\" is not a DNS name; give one of lower-case letters, digits, '-' and '.' with --node-name",
                "--workers 0 is out of range; give 1 to 64",
            ]
        );
    }

    #[test]
    fn what_belongs_to_the_agent_is_not_given_to_run() {
        let good = settings("--config x --agent /run/forebay/agent.sock").expect("good");
        assert_eq!(good.agent, Some("/run/forebay/agent.sock".into()));
        let errors = settings(
            "--config x --agent s --interface eth0 --datapath native --forward udp --bpffs /elsewhere",
        );
        let of = |flag: &str| {
            format!(
                "{flag} is the agent's business; give it to `forebay agent`, or leave --agent out"
            )
        };
        assert_eq!(
            errors.expect_err("four mistakes"),
            ["--interface", "--datapath", "--forward", "--bpffs"].map(of)
        );
        assert_eq!(
            settings("--config x --agent s --datapath off").expect_err("contradiction"),
            ["--datapath off needs no privileges; leave --agent out, or --datapath off"]
        );
    }

    #[test]
    fn equal_endpoints_are_refused_unless_the_system_picks_the_port() {
        assert_eq!(
            settings("--config x --admin 127.0.0.1:1 --ready 127.0.0.1:1").expect_err("same"),
            ["--admin and --ready are both 127.0.0.1:1; give two different addresses"]
        );
        assert!(settings("--config x --admin 127.0.0.1:0 --ready 127.0.0.1:0").is_ok());
        assert!(settings("--config x --admin off --ready off").is_ok());
    }

    #[test]
    fn times_of_probes_are_bounded() {
        assert_eq!(
            settings("--config x").expect("good").probes,
            Probes::default()
        );
        let errors = |flags: &str| settings(&format!("--config x {flags}")).expect_err("bad");
        assert_eq!(
            errors("--probe-interval 0"),
            ["--probe-interval 0ns is out of range; give 10ms to 10s"]
        );
        assert_eq!(
            errors("--probe-interval 200ms"),
            [
                "--suspect-after 300ms is out of range; give at least two probe intervals and at most 60s"
            ]
        );
        assert_eq!(
            errors("--suspect-after 2s"),
            [
                "--dead-after 3s is out of range; give at least twice --suspect-after and at most 10m"
            ]
        );
        assert!(
            settings("--config x --probe-interval 1s --suspect-after 3s --dead-after 10s").is_ok()
        );
    }
}
