//! The flags of `forebay agent`, checked together: every error at once, each one sentence.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::allocate::PoolRange;
use crate::args::agent::AgentArgs;
use crate::args::{DatapathArg, ForwardArg};
use crate::datapath::{AttachMode, ForwardMode};

/// What `forebay agent` runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Unix socket.
    pub socket: PathBuf,
    /// Ranges of `--vips`.
    pub vips: Vec<PoolRange>,
    /// Directory of manifests.
    pub config: Option<PathBuf>,
    /// Follow the AddressPools of a cluster.
    pub kubernetes: bool,
    /// Users that may connect.
    pub allow_uid: Vec<u32>,
    /// Groups that may connect.
    pub allow_gid: Vec<u32>,
    /// Ports that VIPs on the node's own addresses never take, beside the built-in ones.
    pub reserved_ports: BTreeSet<u16>,
    /// How long listening sockets wait.
    pub keep_listeners: Duration,
    /// Uplinks; empty = the one with the default route.
    pub interfaces: Vec<String>,
    /// How programs are attached.
    pub mode: AttachMode,
    /// How packets reach the owner node.
    pub forward: ForwardMode,
    /// Where maps and links are pinned.
    pub bpffs: PathBuf,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// UDP port of the probes.
    pub probe_port: u16,
}

impl Settings {
    /// Checks `args`.
    ///
    /// # Errors
    /// Every mistake, one sentence each.
    pub fn new(args: AgentArgs) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        if args.vips.is_empty() && args.config.is_none() && !args.kubernetes {
            errors.push(
                "the agent gives out no address; name the addresses that may be VIPs with --vips RANGE, manifests with AddressPools with --config DIR, or the AddressPools of a cluster with --kubernetes"
                    .into(),
            );
        }
        if args.kubernetes && args.config.is_some() {
            errors.push("--kubernetes and --config exclude each other; give one of them".into());
        }
        let mode = match args.kernel.datapath {
            DatapathArg::Auto => AttachMode::Auto,
            DatapathArg::Native => AttachMode::Native,
            DatapathArg::Generic => AttachMode::Generic,
            DatapathArg::Tcx => AttachMode::Tcx,
            DatapathArg::Off => {
                errors.push(
                    "--datapath off needs no agent; use `forebay run --datapath off` without --agent"
                        .into(),
                );
                AttachMode::Auto
            }
        };
        if args.kernel.uplink.interface.iter().any(String::is_empty) {
            errors.push("--interface has an empty name; give the name of an uplink".into());
        }
        errors.extend(super::ports(
            args.kernel.tunnel_port,
            args.kernel.probe_port,
        ));
        if args.socket.as_os_str().len() > LONGEST_SOCKET {
            errors.push(format!(
                "--socket is longer than {LONGEST_SOCKET} bytes, which the kernel does not take; give a shorter path"
            ));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            socket: args.socket,
            vips: args.vips,
            config: args.config,
            kubernetes: args.kubernetes,
            allow_uid: args.allow_uid,
            allow_gid: args.allow_gid,
            reserved_ports: args.reserved_port.into_iter().collect(),
            keep_listeners: args.keep_listeners,
            interfaces: args.kernel.uplink.interface,
            mode,
            forward: match args.kernel.forward {
                ForwardArg::Auto => ForwardMode::Auto,
                ForwardArg::L2 => ForwardMode::L2,
                ForwardArg::Udp => ForwardMode::Udp,
            },
            bpffs: args.kernel.pins.bpffs,
            tunnel_port: args.kernel.tunnel_port,
            probe_port: args.kernel.probe_port,
        })
    }
}

/// Bytes of `sun_path` without its end.
const LONGEST_SOCKET: usize = 107;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn settings(flags: &str) -> Result<Settings, Vec<String>> {
        let words = ["forebay", "agent"]
            .into_iter()
            .chain(flags.split_whitespace());
        let Command::Agent(args) = Cli::try_parse_from(words).expect("flags parse").command else {
            panic!("agent");
        };
        Settings::new(*args)
    }

    #[test]
    fn defaults() {
        let got = settings("--vips 192.0.2.0/24,198.51.100.1").expect("good");
        assert_eq!(got.socket, PathBuf::from("/run/forebay/agent.sock"));
        assert_eq!((got.vips.len(), got.mode), (2, AttachMode::Auto));
        assert_eq!(got.keep_listeners, Duration::from_secs(30));
        assert!(got.allow_uid.is_empty() && got.allow_gid.is_empty());
        assert!(settings("--config /etc/forebay").is_ok());
        assert!(settings("--kubernetes").expect("good").kubernetes);
        let both = settings("--kubernetes --config x").expect_err("two sources");
        assert!(both[0].starts_with("--kubernetes and --config exclude each other"));
    }

    #[test]
    fn all_errors_come_at_once() {
        let long = format!("--socket /{}", "x".repeat(107));
        let errors = settings(&format!(
            "--datapath off --tunnel-port 7 --probe-port 7 {long}"
        ))
        .expect_err("four mistakes");
        assert_eq!(
            errors,
            [
                "the agent gives out no address; name the addresses that may be VIPs with --vips RANGE, manifests with AddressPools with --config DIR, or the AddressPools of a cluster with --kubernetes",
                "--datapath off needs no agent; use `forebay run --datapath off` without --agent",
                "--tunnel-port and --probe-port are both 7; give two different ports",
                "--socket is longer than 107 bytes, which the kernel does not take; give a shorter path",
            ]
        );
    }
}
