//! `forebay bpf`: what the kernel's tables of real nodes say, with a daemon and without, and exact numbers of packets.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use gateway_tests::daemon::{Daemon, program};
use gateway_tests::eventually::eventually;
use gateway_tests::leftovers::Ledger;
use gateway_tests::maps;
use gateway_tests::netns::Netns;
use gateway_tests::packet::{ACK, TcpPacket};
use gateway_tests::rig::{Options, Rig, VIP};
use gateway_tests::topology::CLIENT;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

/// Most memory that all maps of a node may take, in bytes.
const MEMORY: u64 = 64 << 20;

/// Exit code and both streams of `forebay bpf` with these words on a node.
pub(crate) fn said(daemon: &Daemon, words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(program());
    command
        .arg("bpf")
        .args(words)
        .args(["--admin", &daemon.admin()])
        .arg("--bpffs")
        .arg(daemon.bpffs());
    let output = daemon.site().netns.output(&mut command).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn asked(daemon: &Daemon, words: &[&str]) -> Value {
    let words = [words, &["--output", "json"]].concat();
    let (code, out, error) = said(daemon, &words);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{words:?}: {out}");
    serde_json::from_str(&out).unwrap()
}

/// Sends TCP segments without SYN from a port of the client to the VIP, by no connection that exists.
pub(crate) fn acks(client: &Netns, port: u16, count: usize) {
    let packet = TcpPacket {
        source: CLIENT.octets(),
        destination: VIP.ip().octets(),
        source_port: port,
        destination_port: VIP.port(),
        flags: ACK,
        ..TcpPacket::default()
    };
    let segment = packet.build()[14 + 20..].to_vec();
    client
        .run(|| {
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
            raw.bind(&SocketAddr::from((CLIENT, 0)).into())?;
            let vip = SocketAddrV4::new(*VIP.ip(), 0);
            for _ in 0..count {
                raw.send_to(&segment, &vip.into())?;
            }
            Ok(())
        })
        .unwrap();
}

/// Waits until no row of any node is in transition.
pub(crate) fn at_rest(rig: &Rig) {
    for daemon in &rig.daemons {
        eventually("rows at rest", Duration::from_secs(20), || {
            let rows = maps::rows_in_transition(daemon.bpffs())?;
            ensure!(rows == 0, "{rows} rows of {}", daemon.site().name);
            Ok(())
        })
        .unwrap();
    }
}

fn vip_packets(daemon: &Daemon) -> u64 {
    let answer = asked(daemon, &["vips"]);
    let vips = answer["vips"].as_array().unwrap();
    let vip = vips.iter().find(|vip| vip["vip"] == VIP.to_string());
    vip.unwrap()["packets"].as_u64().unwrap()
}

fn node_packets(daemon: &Daemon, name: &str) -> Value {
    let answer = asked(daemon, &["nodes"]);
    let nodes = answer["nodes"].as_array().unwrap();
    let node = nodes.iter().find(|node| node["name"] == name);
    node.unwrap()["packets"].clone()
}

fn reason(daemon: &Daemon, name: &str) -> u64 {
    asked(daemon, &["counters"])["counters"][name]
        .as_u64()
        .unwrap()
}

#[test]
fn bpf_counts_each_packet_where_it_went() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    let port = rig.ports(1, 1).unwrap()[0];
    for (forward, path, reason_name) in
        [("auto", "l2", "forward_l2"), ("udp", "udp", "forward_udp")]
    {
        if forward == "udp" {
            rig.restart_with_forward("udp").unwrap();
        }
        rig.deliver_to(0).unwrap();
        at_rest(&rig);
        let names: Vec<String> = rig.topology.nodes.iter().map(|n| n.name.clone()).collect();
        let seen = |rig: &Rig| {
            let [entry, owner, other] = &rig.daemons[..] else {
                panic!("three nodes")
            };
            [
                vip_packets(entry),
                vip_packets(owner),
                vip_packets(other),
                node_packets(entry, &names[1])[path].as_u64().unwrap(),
                node_packets(entry, &names[2])[path].as_u64().unwrap(),
                reason(entry, reason_name),
                reason(owner, "own_pass"),
            ]
        };
        let before = seen(&rig);
        acks(&rig.topology.client, port, 7);
        let mut grown = seen(&rig);
        for (after, before) in grown.iter_mut().zip(before) {
            *after -= before;
        }
        assert_eq!(grown, [7, 7, 0, 7, 0, 7, 7], "{forward}");
        let samples = rig.daemons[0]
            .site()
            .netns
            .output(Command::new("curl").args(["-sf", "http://127.0.0.1:15020/metrics"]));
        let samples = String::from_utf8(samples.unwrap().stdout).unwrap();
        for sample in [
            format!(
                "forebay_node_packets_total{{node=\"{}\",path=\"{path}\"}} {}\n",
                names[1],
                before[3] + 7
            ),
            format!(
                "forebay_vip_packets_total{{vip=\"{VIP}\"}} {}\n",
                before[0] + 7
            ),
        ] {
            assert!(samples.contains(&sample), "{sample}{samples}");
        }
    }
}

#[test]
fn bpf_shows_the_tables_with_a_daemon_and_without() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    let names: Vec<String> = rig.topology.nodes.iter().map(|n| n.name.clone()).collect();
    at_rest(&rig);
    let owner_of = |daemon: &Daemon, port: u16| {
        let client = SocketAddrV4::new(CLIENT, port).to_string();
        let vip = format!("{VIP}/tcp");
        let answer = asked(daemon, &["rows", "--address", &client, &vip]);
        answer["rows"][0]["owner"].as_str().unwrap().to_owned()
    };
    let ports = [0, 1, 2].map(|node| rig.ports(node, 1).unwrap()[0]);
    for (port, name) in ports.iter().zip(&names) {
        assert_eq!(owner_of(&rig.daemons[0], *port), *name);
    }
    let shares = |daemon: &Daemon| -> Vec<u64> {
        let answer = asked(daemon, &["rows"]);
        assert_eq!(answer["rows_in_transition"], 0, "{answer}");
        let owners = answer["owners"].as_array().unwrap();
        owners.iter().map(|o| o["rows"].as_u64().unwrap()).collect()
    };
    let before = shares(&rig.daemons[0]);
    assert_eq!(
        (before.len(), before.iter().sum()),
        (3, 65_536),
        "{before:?}"
    );
    let nodes = asked(&rig.daemons[0], &["nodes"]);
    assert_eq!(nodes["nodes"][1]["interface"], "eth0", "{nodes}");
    let overview = asked(&rig.daemons[0], &[]);
    let memory = overview["memory"]["total_bytes"].as_u64().unwrap();
    println!("{memory} bytes: {}", overview["memory"]["maps"]);
    assert!((1..=MEMORY).contains(&memory), "{overview}");
    let (_, text, _) = said(&rig.daemons[0], &[]);
    assert!(text.contains("\nMemory of the tables: "), "{text}");
    let stranger = said(
        &rig.daemons[0],
        &["rows", "--address", "192.0.2.1:5", "192.0.2.99:80"],
    );
    assert_eq!(
        stranger,
        (
            Some(1),
            String::new(),
            "forebay: 192.0.2.99:80/tcp is no VIP on this node; `forebay bpf vips` lists them\n"
                .to_owned()
        )
    );

    rig.daemons[0].kill().unwrap();
    let addresses: Vec<Ipv4Addr> = rig.topology.nodes.iter().map(|n| n.address).collect();
    for (port, address) in ports.iter().zip(&addresses) {
        assert_eq!(owner_of(&rig.daemons[0], *port), address.to_string());
    }
    assert_eq!(shares(&rig.daemons[0]), before);
    let overview = asked(&rig.daemons[0], &[]);
    assert_eq!(overview["daemon"], false, "{overview}");
    let (code, text, _) = said(&rig.daemons[0], &[]);
    assert_eq!(code, Some(0));
    for part in [
        "No daemon answers: this is what the kernel's tables say.\n",
        "\nNodes\n",
        "\nRows\n",
        "\nVIPs\n",
        "\nCounters\n",
        "\nMemory of the tables: ",
    ] {
        assert!(text.contains(part), "{part}{text}");
    }
}

#[test]
fn bpf_says_who_may_look() {
    let options = Options {
        nodes: 1,
        ..Options::default()
    };
    let rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let binary = directory.path().join("forebay");
    fs::copy(program(), &binary).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let bpffs = rig.daemons[0].bpffs();
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut command = Command::new("setpriv");
    command
        .args(user)
        .arg(&binary)
        .args(["bpf", "vips", "--bpffs"])
        .arg(bpffs);
    let output = rig.daemons[0].site().netns.output(&mut command).unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let version = gateway_common::abi::ABI_VERSION;
    assert!(
        text.starts_with(&format!("forebay: {}/v{version}", bpffs.display()))
            && text.ends_with(" may not be opened by this user: run as root\n"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1));
}
