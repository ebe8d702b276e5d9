//! The flags of `forebay bpf` and its subcommands.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use gateway_common::abi::ROWS;

use super::{Output, Whom};
use crate::snapshot::Transport;

/// Flags of `forebay bpf`.
#[derive(Args, Clone, Debug)]
pub struct BpfArgs {
    /// What to show [default: everything in short].
    #[command(subcommand)]
    pub what: Option<BpfCommand>,
    /// Where to look, and the form of the answer.
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// Where the tables are and who knows the nodes' names.
#[derive(Args, Clone, Debug)]
pub struct TablesArgs {
    /// Where maps and links are pinned.
    #[arg(
        long,
        env = "FOREBAY_BPFFS",
        value_name = "DIR",
        default_value = "/sys/fs/bpf/forebay",
        global = true
    )]
    pub bpffs: PathBuf,
    /// The daemon that knows the names of nodes.
    #[command(flatten)]
    pub whom: Whom,
    /// Form of the answer.
    #[arg(long, value_name = "FORM", default_value = "table", global = true)]
    pub output: Output,
}

/// The tables and what can be seen of them.
#[derive(Clone, Debug, Subcommand)]
pub enum BpfCommand {
    /// List the VIPs with their settings.
    Vips,
    /// Say who owns the rows, or what single rows say.
    Rows(RowsArgs),
    /// List the nodes and how packets go to them.
    Nodes,
    /// List what packets were counted as.
    Counters,
    /// Follow packets: what this node decides about each, and why.
    Trace(TraceArgs),
}

impl BpfCommand {
    /// As it is typed.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Vips => "vips",
            Self::Rows(_) => "rows",
            Self::Nodes => "nodes",
            Self::Counters => "counters",
            Self::Trace(_) => "trace",
        }
    }
}

/// Flags of `forebay bpf trace`.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// Only packets whose client or VIP has this address.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub address: Option<IpAddr>,
    /// Only packets whose client or VIP has this port.
    #[arg(long, value_name = "PORT", value_parser = super::number::parse_port)]
    pub port: Option<u16>,
    /// Only packets for this VIP: ADDR, ADDR:PORT or ADDR:PORT/PROTOCOL.
    #[arg(long, value_name = "VIP")]
    pub vip: Option<Target>,
    /// Only one in N flows, the same ones on every node.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_sample)]
    pub sample: u32,
    /// End after N packets.
    #[arg(long, value_name = "N", value_parser = parse_packets)]
    pub count: Option<u64>,
    /// End after this time.
    #[arg(long, value_name = "DURATION", value_parser = super::parse_duration)]
    pub timeout: Option<Duration>,
    /// Name of this node in the lines [default: the daemon's, else the host's].
    #[arg(long, env = "FOREBAY_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
}

/// A VIP: its address, with a port and a protocol if these count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Address.
    pub address: IpAddr,
    /// Port; 0: any.
    pub port: u16,
    /// Protocol; none: any.
    pub protocol: Option<Transport>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self {
                address,
                port: 0,
                protocol: None,
            });
        }
        let end: FlowEnd = text.parse().map_err(|error| match text.contains('/') {
            true => error,
            false => "give ADDR, ADDR:PORT or ADDR:PORT/PROTOCOL".to_owned(),
        })?;
        Ok(Self {
            address: end.address.ip(),
            port: end.address.port(),
            protocol: end.protocol,
        })
    }
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| "give an address, for example 192.0.2.1 or 2001:db8::1".to_owned())
}

fn parse_sample(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("give a whole number from 1 to 4294967295".to_owned()),
    }
}

fn parse_packets(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("give a whole number from 1 on".to_owned()),
    }
}

/// Flags of `forebay bpf rows`.
#[derive(Args, Clone, Debug)]
pub struct RowsArgs {
    /// Rows to show one by one [default: a summary by owner].
    #[arg(value_name = "ROW", value_parser = parse_row)]
    pub row: Vec<u32>,
    /// The row of a flow: its client, then its VIP with the protocol (tcp if none is given).
    #[arg(long, num_args = 2, value_names = ["CLIENT:PORT", "VIP:PORT/PROTOCOL"])]
    pub address: Vec<FlowEnd>,
}

/// One end of a flow: `ADDR:PORT` or `ADDR:PORT/PROTOCOL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEnd {
    /// Address and port.
    pub address: SocketAddr,
    /// Protocol, if it was given.
    pub protocol: Option<Transport>,
}

impl FromStr for FlowEnd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            "give ADDR:PORT or ADDR:PORT/PROTOCOL, for example 192.0.2.1:80/tcp or [2001:db8::1]:53/udp"
                .to_owned()
        };
        let (address, protocol) = match text.split_once('/') {
            Some((address, protocol)) => (address, Some(parse_protocol(protocol)?)),
            None => (text, None),
        };
        Ok(Self {
            address: address.parse().map_err(|_| expected())?,
            protocol,
        })
    }
}

/// `tcp` or `udp`.
fn parse_protocol(text: &str) -> Result<Transport, String> {
    match text {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        _ => Err("give tcp or udp as the protocol".to_owned()),
    }
}

fn parse_row(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(row) if row < ROWS => Ok(row),
        _ => Err(format!("give a row from 0 to {}", ROWS - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_flows() {
        let end = |address: &str, protocol| {
            Ok(FlowEnd {
                address: address.parse().unwrap(),
                protocol,
            })
        };
        let table = [
            ("192.0.2.1:80", end("192.0.2.1:80", None)),
            (
                "192.0.2.1:80/tcp",
                end("192.0.2.1:80", Some(Transport::Tcp)),
            ),
            (
                "[2001:db8::1]:53/udp",
                end("[2001:db8::1]:53", Some(Transport::Udp)),
            ),
        ];
        for (text, want) in table {
            assert_eq!(text.parse::<FlowEnd>(), want, "{text}");
        }
        for bad in ["", "192.0.2.1", "2001:db8::1:53", "a:1", "192.0.2.1:80/"] {
            assert!(bad.parse::<FlowEnd>().is_err(), "{bad}");
        }
        assert_eq!(
            "192.0.2.1:80/sctp".parse::<FlowEnd>(),
            Err("give tcp or udp as the protocol".to_owned())
        );
    }
}
