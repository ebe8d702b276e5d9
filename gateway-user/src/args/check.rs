//! The command line of `forebay check`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::{Endpoint, Output, PinsArgs, UplinkArgs};

/// Flags of `forebay check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// What is checked.
    #[command(flatten)]
    pub uplink: UplinkArgs,
    /// Where maps and links would be.
    #[command(flatten)]
    pub pins: PinsArgs,
    /// Where a running daemon's admin endpoint is, whose VIPs are tried: ADDR:PORT, unix:PATH or off.
    #[arg(
        long,
        env = "FOREBAY_ADMIN",
        value_name = "ADDR",
        default_value = "127.0.0.1:15000"
    )]
    pub admin: Endpoint,
    /// The agent that holds the privileges [default: one that answers at /run/forebay/agent.sock].
    #[arg(long, env = "FOREBAY_AGENT", value_name = "SOCKET")]
    pub agent: Option<PathBuf>,
    /// Check the rights for these namespaces, repeatable [default: all].
    #[arg(
        long,
        env = "FOREBAY_NAMESPACES",
        value_name = "NAMESPACE",
        value_delimiter = ','
    )]
    pub namespaces: Vec<String>,
    /// Refused: this machine is looked at.
    #[arg(long, value_name = "NODE", hide = true)]
    pub node: Option<String>,
    /// Address of a client that VIPs are tried from, one for each IP version [default: one that nobody has].
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    pub client: Vec<IpAddr>,
    /// Form of the answer.
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub output: Output,
}
