//! `forebay check` on a real node: nothing in the way, a rule of nftables, the reverse path filter; and an MTU that native
//! XDP does not take.

use std::process::Command;

use anyhow::{Context, Result};
use gateway_tests::client::{Load, Tally};
use gateway_tests::daemon::program;
use gateway_tests::eventually::throughout;
use gateway_tests::fixture::HOST;
use gateway_tests::leftovers::Ledger;
use gateway_tests::netns::Netns;
use gateway_tests::rig::{Options, Rig, VIP};
use gateway_tests::topology::{CLIENT, UPLINK};
use serde_json::Value;

/// Name, whether it is well, and what was found.
type Finding = (String, bool, String);

/// Exit code, and the findings.
fn check(netns: &Netns, words: &[&str]) -> Result<(Option<i32>, Vec<Finding>)> {
    let mut command = Command::new(program());
    command.args(["check", "--interface", UPLINK, "--output", "json"]);
    let done = netns.output(command.args(words))?;
    let text = String::from_utf8_lossy(&done.stdout);
    let answer: Value = serde_json::from_str(&text)
        .with_context(|| format!("{text}{}", String::from_utf8_lossy(&done.stderr)))?;
    let text =
        |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let findings = answer.as_array().into_iter().flatten().map(|finding| {
        let ok = finding["ok"] == true;
        (text(finding, "check"), ok, text(finding, "found"))
    });
    Ok((done.status.code(), findings.collect()))
}

fn found<'a>(findings: &'a [Finding], check: &str) -> (bool, &'a str) {
    let finding = findings.iter().find(|(name, ..)| name == check);
    let (_, ok, said) = finding.unwrap_or_else(|| panic!("no {check} in {findings:?}"));
    (*ok, said.as_str())
}

/// Connections that are neither open nor gone.
fn half_open(netns: &Netns) -> usize {
    let table = netns.run(|| Ok(std::fs::read_to_string("/proc/self/net/tcp")?));
    let table = table.unwrap();
    let state = |line: &&str| line.split_whitespace().nth(3) == Some("03");
    table.lines().filter(state).count()
}

#[test]
fn check_names_what_eats_packets_for_a_vip() {
    let options = Options {
        nodes: 1,
        ..Options::default()
    };
    let rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    rig.deliver_to(0).unwrap();
    let netns = &rig.topology.nodes[0].netns;
    let daemon = &rig.daemons[0];
    let (admin, client) = (daemon.admin(), CLIENT.to_string());
    let bpffs = daemon.bpffs().display().to_string();
    let words = ["--admin", &admin, "--client", &client, "--bpffs", &bpffs];
    let load = rig.client.start(Load {
        count: None,
        ..Load::new(VIP, HOST, 0)
    });
    let load = load.unwrap();
    let vip = format!("VIP {VIP}");

    let (code, findings) = check(netns, &words).unwrap();
    assert_eq!(code, Some(0), "{findings:?}");
    let accepted = format!("a SYN from {CLIENT} is accepted");
    assert_eq!(found(&findings, &vip), (true, accepted.as_str()));
    assert_eq!(
        found(&findings, "way in by eth0"),
        (true, "native is in use")
    );
    let (_, queues) = found(&findings, "queues of eth0");
    println!("{queues}");
    assert!(
        queues.contains(" to receive by; UDP over IPv4 spread by: not known"),
        "{queues}"
    );
    throughout(
        "no half-open connection",
        std::time::Duration::from_millis(300),
        || {
            anyhow::ensure!(half_open(netns) == 0, "{}", half_open(netns));
            Ok(())
        },
    )
    .unwrap();
    // Without a way to the client nothing is said about the VIP.
    let (code, findings) = check(netns, &["--admin", &admin, "--bpffs", &bpffs]).unwrap();
    let (ok, said) = found(&findings, &vip);
    assert!(code == Some(0) && ok, "{findings:?}");
    assert!(
        said.contains("there is no route to a client at 198.18.0.1"),
        "{said}"
    );
    let tally = Tally::of(&load.stop().unwrap());
    assert_eq!(tally.broken(), 0, "a check disturbs nobody: {tally}");

    netns
        .nft(
            "add table inet firewall; \
             add chain inet firewall incoming { type filter hook input priority 0; }; \
             add rule inet firewall incoming ip daddr 192.0.2.100 tcp dport 80 counter drop",
        )
        .unwrap();
    let (code, findings) = check(netns, &words).unwrap();
    let (ok, said) = found(&findings, &vip);
    println!("{said}");
    assert!(code == Some(1) && !ok, "{findings:?}");
    let named = [
        "is not answered",
        "chain inet firewall incoming",
        "tcp dport 80",
        "drop",
    ];
    assert!(named.iter().all(|part| said.contains(part)), "{said}");
    let (_, other) = found(&findings, "VIP 192.0.2.100:15021");
    assert_eq!(other, accepted, "another port is not concerned");
    netns.nft("delete table inet firewall").unwrap();

    // A policy, at a hook of the way back.
    netns
        .nft(
            "add table ip outgoing; \
             add chain ip outgoing replies { type filter hook output priority 0; policy drop; }; \
             add rule ip outgoing replies tcp sport != 80 accept",
        )
        .unwrap();
    let (code, findings) = check(netns, &words).unwrap();
    let (ok, said) = found(&findings, &vip);
    println!("{said}");
    assert!(code == Some(1) && !ok, "{findings:?}");
    assert!(
        said.contains("chain ip outgoing replies, policy drop"),
        "{said}"
    );
    netns.nft("delete table ip outgoing").unwrap();
    let left = netns
        .output(Command::new("nft").args(["list", "ruleset"]))
        .unwrap();
    let left = String::from_utf8_lossy(&left.stdout);
    let tables: Vec<&str> = left.lines().filter(|l| l.starts_with("table")).collect();
    assert_eq!(tables, ["table inet forebay {"], "the check leaves a table");

    // Clients whose way back is the other interface: strict filtering drops them.
    netns
        .ip(&format!("route add {CLIENT}/32 dev eth1"))
        .unwrap();
    netns.sysctl("net/ipv4/conf/eth0/rp_filter", "1").unwrap();
    let (code, findings) = check(netns, &words).unwrap();
    assert_eq!(code, Some(1), "{findings:?}");
    let strict =
        "rp_filter is 1 (strict) on eth0, and the way back to 192.0.2.1 is another interface's";
    assert_eq!(found(&findings, "reverse path of eth0"), (false, strict));
    let (ok, said) = found(&findings, &vip);
    println!("{said}");
    assert!(!ok && said.contains(strict), "{said}");
    netns
        .ip(&format!("route del {CLIENT}/32 dev eth1"))
        .unwrap();
    let (code, findings) = check(netns, &words).unwrap();
    assert_eq!(code, Some(0), "{findings:?}");
}

#[test]
fn check_says_what_becomes_of_a_large_mtu() {
    let ledger = Ledger::open().unwrap();
    let here = Netns::new(&ledger, "jumbo").unwrap();
    let there = Netns::new(&ledger, "far").unwrap();
    here.veth(UPLINK, "02:00:00:00:00:01", &there, "far")
        .unwrap();
    here.checksums_in_software(UPLINK).unwrap();
    let way = |findings: &[Finding]| found(findings, "way in by eth0").1.to_owned();
    let (_, findings) = check(&here, &["--admin", "off"]).unwrap();
    assert!(
        way(&findings).starts_with("native will be used"),
        "{findings:?}"
    );
    here.ip("link set eth0 mtu 9000").unwrap();
    there.ip("link set far mtu 9000").unwrap();
    let (_, findings) = check(&here, &["--admin", "off"]).unwrap();
    let said = way(&findings);
    println!("{said}");
    assert!(
        said.starts_with("tcx, else clsact, else generic is likely"),
        "{said}"
    );
    assert!(said.contains("MTU 9000 is more than"), "{said}");
}
