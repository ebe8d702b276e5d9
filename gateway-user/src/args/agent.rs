//! Flags of `forebay agent`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::number::parse_port;
use super::{KernelArgs, LogArgs, parse_duration};
use crate::allocate::PoolRange;

/// Flags of `forebay agent`.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Unix socket for `forebay run --agent`.
    #[arg(
        long,
        env = "FOREBAY_SOCKET",
        value_name = "PATH",
        default_value = "/run/forebay/agent.sock"
    )]
    pub socket: PathBuf,
    /// Addresses that may be VIPs: ADDRESS, CIDR (all of it) or FIRST-LAST, repeatable.
    #[arg(
        long,
        env = "FOREBAY_VIPS",
        value_name = "RANGE",
        value_delimiter = ',',
        value_parser = parse_vips
    )]
    pub vips: Vec<PoolRange>,
    /// Directory of manifests: what their AddressPools and Gateways name may be VIPs too.
    #[arg(long, env = "FOREBAY_CONFIG", value_name = "DIR")]
    pub config: Option<PathBuf>,
    /// Ask the Kubernetes API server: what its AddressPools give out may be VIPs too.
    #[arg(long, env = "FOREBAY_KUBERNETES")]
    pub kubernetes: bool,
    /// User that may connect, repeatable [default: root and the agent's own].
    #[arg(
        long,
        env = "FOREBAY_ALLOW_UID",
        value_name = "UID",
        value_delimiter = ',',
        value_parser = parse_id,
        allow_hyphen_values = true
    )]
    pub allow_uid: Vec<u32>,
    /// Group that may connect, repeatable: the first group of the process.
    #[arg(
        long,
        env = "FOREBAY_ALLOW_GID",
        value_name = "GID",
        value_delimiter = ',',
        value_parser = parse_id,
        allow_hyphen_values = true
    )]
    pub allow_gid: Vec<u32>,
    /// Port that no VIP on an address of the node itself takes, repeatable; added to those of ssh, Kubernetes and Forebay.
    #[arg(
        long,
        env = "FOREBAY_RESERVED_PORT",
        value_name = "PORT",
        value_delimiter = ',',
        value_parser = parse_port,
        allow_hyphen_values = true
    )]
    pub reserved_port: Vec<u16>,
    /// How long the listening sockets of a `forebay run` that ended wait for the next one.
    #[arg(
        long,
        env = "FOREBAY_KEEP_LISTENERS",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = parse_duration,
        allow_hyphen_values = true
    )]
    pub keep_listeners: Duration,
    /// The node's kernel half.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// The agent's own log.
    #[command(flatten)]
    pub log: LogArgs,
}

fn parse_id(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "give its number".to_owned())
}

/// One address or a range. What is permitted is permitted as a whole: whether the first or the last address of a CIDR serves
/// as a VIP is up to whoever gives it to a Gateway.
fn parse_vips(text: &str) -> Result<PoolRange, String> {
    let range = match text.parse::<IpAddr>() {
        Ok(address) => PoolRange::all_of(&format!("{address}-{address}")),
        Err(_) => PoolRange::all_of(text),
    };
    range.map_err(|_| {
        "give an address, a CIDR (192.0.2.0/24) or FIRST-LAST (192.0.2.10-192.0.2.20)".into()
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn vips_are_addresses_cidrs_or_ranges() {
        let contains = |text: &str, address: &str| {
            parse_vips(text).unwrap().contains(address.parse().unwrap())
        };
        assert!(contains("192.0.2.1", "192.0.2.1") && !contains("192.0.2.1", "192.0.2.2"));
        for inside in ["192.0.2.128", "192.0.2.129", "192.0.2.254", "192.0.2.255"] {
            assert!(contains("192.0.2.128/25", inside), "{inside}");
        }
        assert!(!contains("192.0.2.128/25", "192.0.2.127"));
        assert!(!contains("192.0.2.128/25", "192.0.3.0"));
        assert!(contains("2001:db8::/64", "2001:db8::"));
        assert!(contains("2001:db8::/64", "2001:db8::ffff:ffff:ffff:ffff"));
        assert!(!contains("2001:db8::/64", "2001:db8:0:1::"));
        assert!(contains("2001:db8::1-2001:db8::9", "2001:db8::5"));
        for bad in ["", "192.0.2", "192.0.2.0/33", "192.0.2.9-192.0.2.1", "a-b"] {
            assert!(parse_vips(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_flag_of_the_agent_has_its_environment_variable() {
        let cli = Cli::command();
        let agent = cli.find_subcommand("agent").expect("agent exists");
        for flag in agent.get_arguments().filter(|a| a.get_id() != "help") {
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
