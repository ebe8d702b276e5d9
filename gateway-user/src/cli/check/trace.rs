//! Which rule of nftables ends a packet: its own trace, read from `nft monitor trace`.
//!
//! For as long as that takes there is a table of ours that marks the packets of one client's port and changes nothing
//! else. Rules of `iptables-nft` are seen as well, those of `iptables-legacy` are not.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::IpAddr;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Name of the table.
const TABLE: &str = "forebay_check";

/// What `nft` needs to listen before the packet comes, and to write after it.
const SETTLE: Duration = Duration::from_millis(250);

/// A client whose packets are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// What ended a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Culprit {
    /// Family, table and chain, as `nft list` has them.
    pub chain: String,
    /// The rule, or `policy drop`.
    pub rule: String,
}

/// The table of marks; gone when this is dropped.
struct Marks;

impl Drop for Marks {
    fn drop(&mut self) {
        for family in ["inet", "netdev"] {
            // The one of netdev may never have been made.
            let _gone = nft(&["delete", "table", family, TABLE]);
        }
    }
}

/// Follows what `send` sends from `client` by way of `interface`; none if no rule ends it.
///
/// # Errors
/// `nft` is not there, or refuses; one sentence part.
pub(super) fn follow(
    client: Client,
    interface: Option<&str>,
    send: impl FnOnce(),
) -> Result<Option<Culprit>, String> {
    // One that was killed may have left it.
    drop(Marks);
    let _marks = Marks;
    let made = nft(&[&rules(client)]).map_err(|error| format!("nft cannot be run ({error})"))?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr);
        let first = said.lines().next().unwrap_or_default();
        return Err(format!("nft refuses to trace: {first}"));
    }
    if let Some(interface) = interface {
        // A kernel without chains of the family netdev has none that drop either.
        let _made = nft(&[&ingress_rules(client, interface)]);
    }
    let mut monitor = Command::new("nft")
        .args(["monitor", "trace"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("nft cannot be run ({error})"))?;
    sleep(SETTLE);
    send();
    sleep(SETTLE);
    Ok(culprit(&ended(&mut monitor), client))
}

/// What a program has written, after its end, which this brings about.
fn ended(child: &mut Child) -> String {
    let mut written = Vec::new();
    // It may have ended by itself.
    let _killed = child.kill();
    if let Some(mut output) = child.stdout.take() {
        let _read = output.read_to_end(&mut written);
    }
    let _waited = child.wait();
    String::from_utf8_lossy(&written).into_owned()
}

fn nft(words: &[&str]) -> std::io::Result<Output> {
    Command::new("nft")
        .args(words)
        .stdin(Stdio::null())
        .output()
}

fn rules(client: Client) -> String {
    let (ip, Client { address, port }) = (version(client.address), client);
    format!(
        "add table inet {TABLE}; \
         add chain inet {TABLE} there {{ type filter hook prerouting priority -400; }}; \
         add chain inet {TABLE} back {{ type filter hook output priority -400; }}; \
         add rule inet {TABLE} there {ip} saddr {address} tcp sport {port} meta nftrace set 1; \
         add rule inet {TABLE} back {ip} daddr {address} tcp dport {port} meta nftrace set 1"
    )
}

fn ingress_rules(client: Client, interface: &str) -> String {
    let (ip, Client { address, port }) = (version(client.address), client);
    format!(
        "add table netdev {TABLE}; \
         add chain netdev {TABLE} there {{ type filter hook ingress device \"{interface}\" priority -500; }}; \
         add rule netdev {TABLE} there {ip} saddr {address} tcp sport {port} meta nftrace set 1"
    )
}

const fn version(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    }
}

/// The first verdict in a trace that ends one of the client's packets.
fn culprit(trace: &str, client: Client) -> Option<Culprit> {
    let ip = version(client.address);
    let there = format!("{ip} saddr {} ", client.address);
    let back = format!("{ip} daddr {} ", client.address);
    let ports = [
        format!("tcp sport {} ", client.port),
        format!("tcp dport {} ", client.port),
    ];
    let mut ours = BTreeSet::new();
    for line in trace.lines() {
        let Some((id, rest)) = line
            .strip_prefix("trace id ")
            .and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        let mut words = rest.splitn(4, ' ');
        let chain: Vec<&str> = words.by_ref().take(3).collect();
        let said = words.next().unwrap_or_default().trim_end();
        let (from, to) = (said.contains(&there), said.contains(&back));
        if said.starts_with("packet:")
            && (from && said.contains(&ports[0]) || to && said.contains(&ports[1]))
        {
            ours.insert(id.to_owned());
        }
        let ends = ["(verdict drop)", "(verdict reject)", "(verdict stolen)"];
        let rule = if said == "policy drop" {
            Some(said)
        } else {
            let rule = ends.iter().find_map(|end| said.strip_suffix(end));
            rule.map(|rule| rule.trim_start_matches("rule ").trim())
        };
        if let Some(rule) = rule.filter(|_| ours.contains(id)) {
            return Some(Culprit {
                chain: chain.join(" "),
                rule: rule.to_owned(),
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nftables 1.0.6 writes it.
    const TRACE: &str = "\
trace id 8c8d7a0a inet forebay_check there packet: iif \"eth0\" ether saddr 02:00:00:00:00:02 ether daddr 02:00:00:00:01:01 ip saddr 198.18.0.1 ip daddr 192.0.2.100 ip dscp cs0 ip ecn not-ect ip ttl 64 ip id 0 ip protocol tcp ip length 44 tcp sport 40001 tcp dport 80 tcp flags == syn tcp window 1024
trace id 8c8d7a0a inet forebay_check there rule ip saddr 198.18.0.1 tcp sport 40001 meta nftrace set 1 (verdict continue)
trace id 8c8d7a0a inet forebay_check there policy accept
trace id 11112222 inet other input rule tcp dport 22 drop (verdict drop)
trace id 8c8d7a0a inet firewall input packet: iif \"eth0\" ip saddr 198.18.0.1 ip daddr 192.0.2.100 tcp sport 40001 tcp dport 80 tcp flags == syn
trace id 8c8d7a0a inet firewall input rule ct state new tcp dport 80 drop (verdict drop)
";

    fn client() -> Client {
        Client {
            address: "198.18.0.1".parse().unwrap(),
            port: 40_001,
        }
    }

    #[test]
    fn the_rule_that_ends_our_packet_is_named_and_no_other() {
        let found = culprit(TRACE, client()).unwrap();
        assert_eq!(found.chain, "inet firewall input");
        assert_eq!(found.rule, "ct state new tcp dport 80 drop");
        let other = Client {
            port: 4_000,
            ..client()
        };
        assert_eq!(culprit(TRACE, other), None);
        let lines: Vec<&str> = TRACE.lines().collect();
        let policy =
            lines[..5].join("\n") + "\ntrace id 8c8d7a0a inet firewall input policy drop \n";
        assert_eq!(culprit(&policy, client()).unwrap().rule, "policy drop");
        assert_eq!(culprit(&lines[..5].join("\n"), client()), None);
        assert_eq!(culprit("trace id\ntrace id x\ngarbage", client()), None);
    }
}
