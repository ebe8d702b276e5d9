//! Flags of the node's kernel half and of the log, which several commands have.

use std::path::PathBuf;

use clap::Args;

use super::number::parse_port;
use super::{DatapathArg, ForwardArg, LogFormat, LogLevel};

/// Where the kernel half is kept.
#[derive(Args, Clone, Debug)]
pub struct PinsArgs {
    /// Where maps and links are pinned.
    #[arg(
        long,
        env = "FOREBAY_BPFFS",
        value_name = "DIR",
        default_value = "/sys/fs/bpf/forebay"
    )]
    pub bpffs: PathBuf,
}

/// Where packets come in.
#[derive(Args, Clone, Debug)]
pub struct UplinkArgs {
    /// Uplink, repeatable [default: the one with the default route].
    #[arg(
        long,
        env = "FOREBAY_INTERFACE",
        value_name = "IFACE",
        value_delimiter = ','
    )]
    pub interface: Vec<String>,
}

/// How packets are steered.
#[derive(Args, Clone, Debug)]
pub struct KernelArgs {
    /// Where packets come in.
    #[command(flatten)]
    pub uplink: UplinkArgs,
    /// How packets are steered in the kernel.
    #[arg(
        long,
        env = "FOREBAY_DATAPATH",
        value_name = "MODE",
        default_value = "auto"
    )]
    pub datapath: DatapathArg,
    /// How packets reach the owner node.
    #[arg(
        long,
        env = "FOREBAY_FORWARD",
        value_name = "FORM",
        default_value = "auto"
    )]
    pub forward: ForwardArg,
    /// Where maps and links are.
    #[command(flatten)]
    pub pins: PinsArgs,
    /// UDP port of the tunnel between nodes.
    #[arg(
        long,
        env = "FOREBAY_TUNNEL_PORT",
        value_name = "PORT",
        default_value_t = 17410,
        value_parser = parse_port,
        allow_hyphen_values = true
    )]
    pub tunnel_port: u16,
    /// UDP port of the probes between nodes.
    #[arg(
        long,
        env = "FOREBAY_PROBE_PORT",
        value_name = "PORT",
        default_value_t = 17411,
        value_parser = parse_port,
        allow_hyphen_values = true
    )]
    pub probe_port: u16,
}

/// What a daemon says of itself.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// Least severe level that is logged: off, error, warn, info, debug or trace.
    #[arg(
        long,
        env = "FOREBAY_LOG",
        value_name = "LEVEL",
        default_value = "info"
    )]
    pub log: LogLevel,
    /// Form of the log.
    #[arg(
        long,
        env = "FOREBAY_LOG_FORMAT",
        value_name = "FORM",
        default_value = "text"
    )]
    pub log_format: LogFormat,
}
