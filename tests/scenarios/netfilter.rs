//! Nobody's NAT sees packets of VIPs: neither rules for all addresses of a node, as the network plugin makes them for a pod's
//! `hostPort`, nor connection tracking that calls half a conversation invalid.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gateway_tests::daemon::program;
use gateway_tests::eventually::eventually;
use gateway_tests::fixture::HOST;
use gateway_tests::leftovers::Ledger;
use gateway_tests::netns::Netns;
use gateway_tests::rig::{Options, Rig, VIP};
use gateway_tests::split::{RUN_USER, Split};
use gateway_tests::topology::{Site, UPLINK};
use gateway_user::datapath::netfilter::{self, Found, SUBSYSTEM, whole};
use gateway_user::datapath::netlink::Netlink;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const REQUESTS: usize = 30;
const VIP_V6: &str = "2001:db8::100";
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
const POD_V6: &str = "fd00:244::2";
const POD_PORT: u16 = 8080;
/// A flush is healed within it.
const HEALED: Duration = Duration::from_secs(2);

/// Who answered, and how often. Where nobody did, what curl exits with: 7 is refused, 28 timed out, 56 reset.
type Answers = BTreeMap<String, usize>;

/// Asks one after the other, each on a connection of its own.
fn ask(netns: &Netns, to: &str, count: usize) -> Answers {
    let line = format!(
        "for i in $(seq {count}); do curl -gs -m 2 -H 'Host: {HOST}' http://{to}/ || echo \"curl $?\"; echo; done"
    );
    let done = netns.output(Command::new("bash").args(["-c", &line]));
    let text = String::from_utf8(done.unwrap().stdout).unwrap();
    let mut answers = Answers::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let who = match line {
            _ if line.starts_with("hello from the pod") => "pod",
            _ if line.starts_with("hello") => "gateway",
            other => other,
        };
        *answers.entry(who.to_owned()).or_default() += 1;
    }
    answers
}

fn all(who: &'static str) -> Answers {
    [(who.to_owned(), REQUESTS)].into()
}

/// A pod behind a node: a namespace of its own whose way to anywhere is the node. It answers every request.
fn pod(ledger: &Ledger, site: &Site) -> Netns {
    let pod = Netns::new(ledger, "pod").unwrap();
    let node = &site.netns;
    pod.veth("eth0", "02:00:00:00:03:02", node, "pod0").unwrap();
    node.sysctl("net/ipv4/ip_forward", "1").unwrap();
    for netns in [&pod, node] {
        netns.sysctl("net/ipv6/conf/all/disable_ipv6", "0").unwrap();
        netns.sysctl("net/ipv6/conf/lo/disable_ipv6", "0").unwrap();
    }
    for (netns, interface) in [(&pod, "eth0"), (node, "pod0")] {
        let off = format!("net/ipv6/conf/{interface}/disable_ipv6");
        netns.sysctl(&off, "0").unwrap();
    }
    node.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
    pod.address("eth0", POD, 24).unwrap();
    node.address("pod0", Ipv4Addr::new(10, 244, 0, 1), 24)
        .unwrap();
    for (netns, words) in [
        (&pod, format!("address add {POD_V6}/64 dev eth0 nodad")),
        (node, "address add fd00:244::1/64 dev pod0 nodad".to_owned()),
        (&pod, "route add default via 10.244.0.1".to_owned()),
        (&pod, "route add default via fd00:244::1".to_owned()),
    ] {
        netns.ip(&words).unwrap();
    }
    for any in ["0.0.0.0", POD_V6] {
        let listener = pod.run(|| Ok(TcpListener::bind((any, POD_PORT))?)).unwrap();
        // Ends with the process of the tests: its socket is all that it has.
        std::thread::spawn(move || serve(&listener));
    }
    pod
}

fn serve(listener: &TcpListener) {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\nhello from the pod";
    while let Ok((mut stream, _)) = listener.accept() {
        let mut head = Vec::new();
        let mut some = [0; 1024];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut some) {
                Ok(0) | Err(_) => break,
                Ok(read) => head.extend(&some[..read]),
            }
        }
        // Who asked may be gone.
        let _ = stream.write_all(ANSWER.as_bytes());
    }
}

/// As portmap makes them for `hostPort: 80` without `hostIP`, with its backend for iptables and with that for nftables.
#[derive(Clone, Copy, Debug)]
enum Rules {
    Iptables,
    Nftables,
}

impl Rules {
    fn install(self, netns: &Netns) {
        match self {
            Self::Iptables => {
                for (tool, to) in [
                    ("iptables", format!("{POD}:{POD_PORT}")),
                    ("ip6tables", format!("[{POD_V6}]:{POD_PORT}")),
                ] {
                    for words in [
                        "-N CNI-HOSTPORT-DNAT".to_owned(),
                        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"
                            .to_owned(),
                        "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT".to_owned(),
                        format!(
                            "-A CNI-HOSTPORT-DNAT -p tcp --dport 80 -j DNAT --to-destination {to}"
                        ),
                    ] {
                        let mut command = Command::new(tool);
                        command.args(["-w", "-t", "nat"]).args(words.split(' '));
                        let done = netns.output(&mut command).unwrap();
                        let said = String::from_utf8_lossy(&done.stderr).into_owned();
                        assert!(done.status.success(), "{tool} {words}: {said}");
                    }
                }
            }
            Self::Nftables => {
                for (family, to) in [("ip", POD.to_string()), ("ip6", format!("[{POD_V6}]"))] {
                    let rules = format!(
                        "table {family} cni_hostport {{
                            chain hostports {{ tcp dport 80 counter dnat to {to}:{POD_PORT}; }}
                            chain prerouting {{ type nat hook prerouting priority -100; fib daddr type local jump hostports; }}
                            chain output {{ type nat hook output priority -100; fib daddr type local jump hostports; }}
                        }}"
                    );
                    netns.nft(&rules).unwrap();
                }
            }
        }
    }

    fn remove(self, netns: &Netns) {
        match self {
            Self::Iptables => {
                for tool in ["iptables", "ip6tables"] {
                    for words in ["-F", "-X"] {
                        let mut command = Command::new(tool);
                        netns
                            .output(command.args(["-w", "-t", "nat", words]))
                            .unwrap();
                    }
                }
            }
            Self::Nftables => {
                for family in ["ip", "ip6"] {
                    netns
                        .nft(&format!("delete table {family} cni_hostport"))
                        .unwrap();
                }
            }
        }
    }

    /// Connections that were led to the pod by now: by IPv4, and by IPv6.
    fn counted(self, netns: &Netns) -> [u64; 2] {
        let output = |words: &[&str]| {
            let mut command = Command::new(words[0]);
            let done = netns.output(command.args(&words[1..])).unwrap();
            String::from_utf8(done.stdout).unwrap()
        };
        match self {
            Self::Iptables => ["iptables", "ip6tables"].map(|tool| {
                let words = ["-w", "-t", "nat", "-L", "CNI-HOSTPORT-DNAT", "-nvx"];
                let text = output(&[&[tool], &words[..]].concat());
                let rule = text.lines().find(|line| line.contains("dpt:80")).unwrap();
                rule.split_whitespace().next().unwrap().parse().unwrap()
            }),
            Self::Nftables => ["ip", "ip6"].map(|family| {
                let text = output(&["nft", "list", "table", family, "cni_hostport"]);
                let (_, rest) = text.split_once("counter packets ").unwrap();
                rest.split(' ').next().unwrap().parse().unwrap()
            }),
        }
    }
}

fn found(netns: &Netns) -> Result<Found> {
    netns.run(|| Ok(netfilter::found()?))
}

/// Waits until the table has exactly these addresses; how long that took.
fn wait_shielded(netns: &Netns, addresses: &[&str], bound: Duration) -> Duration {
    let begun = Instant::now();
    let wanted: BTreeSet<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
    eventually("the table", bound, || {
        let found = found(netns)?;
        ensure!(found == Found::Table(wanted.clone()), "{found:?}");
        Ok(())
    })
    .unwrap();
    begun.elapsed()
}

/// What `forebay check` says of NAT, as it sees it by itself: whether it is well, and what is found.
fn check(netns: &Netns) -> (bool, String) {
    let mut command = Command::new(program());
    command.args([
        "check",
        "--interface",
        UPLINK,
        "--admin",
        "off",
        "--output",
        "json",
    ]);
    let done = netns.output(&mut command).unwrap();
    let findings: Value = serde_json::from_slice(&done.stdout).unwrap();
    let all = findings.as_array().unwrap();
    let nat = all
        .iter()
        .find(|finding| finding["check"] == "NAT")
        .unwrap();
    (nat["ok"] == true, nat["found"].as_str().unwrap().to_owned())
}

const SIX: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: six, namespace: istio-test}
spec:
  gatewayClassName: istio
  addresses: [{type: IPAddress, value: '2001:db8::100'}]
  listeners: [{name: http, protocol: HTTP, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: six, namespace: istio-test}
spec:
  parentRefs: [{name: six}]
  hostnames: [test.devopscube.com]
  rules: [{backendRefs: [{name: backend-v1, port: 80}]}]
";

fn with_ipv6(client: &Netns, node: &Netns) {
    for (number, netns) in (1..).zip([client, node]) {
        netns.sysctl("net/ipv6/conf/all/disable_ipv6", "0").unwrap();
        netns
            .sysctl(&format!("net/ipv6/conf/{UPLINK}/disable_ipv6"), "0")
            .unwrap();
        let address = format!("address add 2001:db8::{number}/64 dev {UPLINK} nodad");
        netns.ip(&address).unwrap();
    }
}

/// A node with a pod behind it, agent and `forebay run` as two processes, and a VIP of each family.
fn split() -> (Split, Netns) {
    let ledger = Ledger::open().unwrap();
    let allow = RUN_USER.to_string();
    let flags = [
        ["--vips", "192.0.2.100-192.0.2.119"],
        ["--vips", "2001:db8::100-2001:db8::10f"],
        ["--allow-uid", &allow],
    ];
    let mut split = Split::start(ledger, &flags.concat()).unwrap();
    let pod = pod(split.ledger(), split.site());
    with_ipv6(&split.topology.client, &split.site().netns);
    split.fixture.write("six.yaml", SIX).unwrap();
    split.start_run().unwrap();
    split.wait_ready().unwrap();
    split.wait_served().unwrap();
    (split, pod)
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn a_pods_host_port_takes_no_connection_of_a_vip() {
    let (mut split, _pod) = split();
    let node = split.site().netns.clone();
    let client = split.topology.client.clone();
    let vips = [VIP.to_string(), format!("[{VIP_V6}]:80")];
    let own = ["192.0.2.11:80", "[2001:db8::2]:80"];
    wait_shielded(&node, &["192.0.2.100", VIP_V6], Duration::from_secs(5));
    for rules in [Rules::Iptables, Rules::Nftables] {
        rules.install(&node);
        // From outside, and from the node itself.
        for from in [&client, &node] {
            for vip in &vips {
                assert_eq!(ask(from, vip, REQUESTS), all("gateway"), "{vip}, {rules:?}");
            }
        }
        assert_eq!(rules.counted(&node), [0, 0], "{rules:?}");
        // The rules are good ones.
        let mut times = 0;
        for from in [&client, &node] {
            for own in own {
                assert_eq!(ask(from, own, REQUESTS), all("pod"), "{own}, {rules:?}");
            }
            times += REQUESTS as u64;
            assert_eq!(rules.counted(&node), [times; 2], "{rules:?}");
        }
        // What it is that keeps them away: while the agent stands still nobody puts it back.
        let agent = split.agent_pid().unwrap();
        signal(agent, Signal::STOP);
        node.nft("delete table inet forebay").unwrap();
        for vip in &vips {
            assert_eq!(ask(&client, vip, REQUESTS), all("pod"), "{vip}, {rules:?}");
        }
        let (ok, said) = check(&node);
        assert!(!ok, "{said}");
        let missing =
            "the table inet forebay of nftables does not have 192.0.2.100, 2001:db8::100: ";
        assert!(said.starts_with(missing), "{said}");
        let stolen = [times + REQUESTS as u64; 2];
        assert_eq!(rules.counted(&node), stolen, "{rules:?}");
        signal(agent, Signal::CONT);
        let after = wait_shielded(&node, &["192.0.2.100", VIP_V6], HEALED);
        println!("put back {after:?} after the agent went on");
        for vip in &vips {
            assert_eq!(
                ask(&client, vip, REQUESTS),
                all("gateway"),
                "{vip}, {rules:?}"
            );
        }
        assert_eq!(rules.counted(&node), stolen, "{rules:?}");
        rules.remove(&node);
    }

    let well = (true, "2 VIP addresses are kept from it".to_owned());
    assert_eq!(check(&node), well);

    // Somebody flushes everything, and somebody empties only what he finds, while others change rules of theirs all the time.
    let line = "while :; do nft add table ip churn; nft delete table ip churn; done";
    let mut churn = Command::new("bash");
    churn.args(["-c", line]).stderr(Stdio::null());
    let mut churn = node.spawn(&mut churn).unwrap();
    split.ledger().process(churn.id()).unwrap();
    for words in [
        "flush ruleset",
        "flush table inet forebay",
        "flush set inet forebay vips4",
        "delete element inet forebay vips6 { 2001:db8::100 }",
        "add element inet forebay vips4 { 192.0.2.77 }",
    ] {
        node.nft(words).unwrap();
        let after = wait_shielded(&node, &["192.0.2.100", VIP_V6], HEALED);
        println!("{words}: put back after {after:?}");
    }

    churn.kill().unwrap();
    churn.wait().unwrap();

    // An agent that is killed leaves everything as it is.
    let rules = Rules::Nftables;
    rules.install(&node);
    let handles = |node: &Netns| {
        let words = ["-a", "list", "table", "inet", "forebay"];
        let done = node.output(Command::new("nft").args(words)).unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    let before = handles(&node);
    assert!(before.contains("192.0.2.100"), "{before}");
    split.kill_agent();
    for vip in &vips {
        assert_eq!(ask(&client, vip, REQUESTS), all("gateway"), "without agent");
    }
    split.start_agent().unwrap();
    split.wait_ready().unwrap();
    for vip in &vips {
        assert_eq!(
            ask(&client, vip, REQUESTS),
            all("gateway"),
            "with a new one"
        );
    }
    assert_eq!(rules.counted(&node), [0, 0]);
    assert_eq!(handles(&node), before, "it is the same table still");

    // A VIP that goes.
    split.fixture.remove("six.yaml").unwrap();
    wait_shielded(&node, &["192.0.2.100"], Duration::from_secs(10));
    assert_eq!(ask(&client, &vips[0], REQUESTS), all("gateway"));
    assert_eq!(rules.counted(&node), [0, 0]);

    // What is left in the kernel is taken away by detaching.
    split.kill_run();
    split.kill_agent();
    let mut detach = Command::new(program());
    detach.arg("detach").arg("--bpffs").arg(split.bpffs());
    let done = node.output(&mut detach).unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert_eq!(found(&node).unwrap(), Found::None);
    assert_eq!(check(&node), (true, "no VIP is local here".to_owned()));
}

/// An agent that knew no such table has left routes and connections: the next one shields them at once, and they go on.
#[test]
fn connections_that_were_tracked_go_on_when_they_are_not_any_more() {
    let (mut split, _pod) = split();
    let node = split.site().netns.clone();
    // As a host firewall has it, so that connections are tracked.
    node.nft("table inet fw { chain in { type filter hook input priority 0; ct state invalid counter drop; }; chain out { type filter hook output priority 0; ct state invalid counter drop; }; }").unwrap();
    let agent = split.agent_pid().unwrap();
    signal(agent, Signal::STOP);
    node.nft("delete table inet forebay").unwrap();
    let client = split.topology.client.clone();
    let mut kept = client
        .run(|| Ok(std::net::TcpStream::connect(VIP)?))
        .unwrap();
    kept.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut exchange = || -> Result<()> {
        write!(kept, "GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut some = [0; 4096];
        while !String::from_utf8_lossy(&answer).contains("hello from backend") {
            let read = kept.read(&mut some)?;
            ensure!(read > 0, "the connection has ended");
            answer.extend(&some[..read]);
        }
        Ok(())
    };
    exchange().unwrap();
    signal(agent, Signal::CONT);
    split.kill_agent();
    split.start_agent().unwrap();
    wait_shielded(&node, &["192.0.2.100", VIP_V6], HEALED);
    for _ in 0..20 {
        exchange().unwrap();
    }
    let list = node.output(Command::new("nft").args(["list", "table", "inet", "fw"]));
    let text = String::from_utf8(list.unwrap().stdout).unwrap();
    assert_eq!(text.matches("counter packets 0 ").count(), 2, "{text}");
}

/// Replies of one node's proxy that another node forwards to a pod of its own, having seen none of the requests: connection
/// tracking calls them invalid, and kube-proxy, for one, drops that.
#[test]
fn replies_that_a_node_forwards_are_not_called_invalid() {
    let options = Options {
        nodes: 2,
        ..Options::default()
    };
    let rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    let [one, two] = [&rig.topology.nodes[0], &rig.topology.nodes[1]];
    let pod = pod(rig.ledger(), two);
    // The pod's packets for the VIP reach node 1 by the switch; the way back is by node 2.
    pod.veth("eth1", "02:00:00:00:03:03", &rig.topology.switch, "pod1")
        .unwrap();
    rig.topology.switch.ip("link set pod1 master br0").unwrap();
    pod.checksums_in_software("eth1").unwrap();
    let vip = VIP.ip();
    pod.ip(&format!("route add {vip} dev eth1 src {POD}"))
        .unwrap();
    let to_one = format!(
        "neigh replace {vip} lladdr {} dev eth1 nud permanent",
        one.mac
    );
    pod.ip(&to_one).unwrap();
    one.netns
        .ip(&format!("route add 10.244.0.0/24 via {}", two.address))
        .unwrap();
    // The VIP is local on node 2 too: without this the kernel takes a packet from there for a forged one. Some network plugins
    // have it so.
    two.netns
        .sysctl(&format!("net/ipv4/conf/{UPLINK}/accept_local"), "1")
        .unwrap();
    two.netns
        .nft("table inet proxy { chain forward { type filter hook forward priority 0; ct state invalid counter drop; counter; }; }")
        .unwrap();
    let counted = || -> Result<[u64; 2]> {
        let list = ["list", "table", "inet", "proxy"];
        let done = two.netns.output(Command::new("nft").args(list))?;
        let text = String::from_utf8(done.stdout)?;
        let mut all = text.split("counter packets ").skip(1);
        let mut next = || all.next()?.split(' ').next()?.parse().ok();
        Ok([next().context("no rule")?, next().context("no rule")?])
    };
    let answers = ask(&pod, &VIP.to_string(), REQUESTS);
    let [invalid, forwarded] = counted().unwrap();
    assert_eq!(answers, all("gateway"));
    println!("{forwarded} replies forwarded, {invalid} dropped as invalid");
    assert_eq!(invalid, 0);
    // Each of node 1's answers is several packets; it owns half of the rows or so.
    assert!(forwarded > 20, "{forwarded}");

    // Without the table they are, so the rule is one that would have dropped them.
    rig.daemons[1].pause().unwrap();
    two.netns.nft("delete table inet forebay").unwrap();
    let answers = ask(&pod, &VIP.to_string(), 3);
    assert_eq!(
        answers,
        [("curl 28".to_owned(), 3)].into(),
        "all rows are node 1's while node 2 stands still"
    );
    let [invalid, after] = counted().unwrap();
    assert!(invalid >= 3, "{invalid}");
    assert_eq!(after, forwarded);
    rig.daemons[1].resume().unwrap();
    wait_shielded(&two.netns, &[&vip.to_string()], HEALED);
    eventually("a word about it", Duration::from_secs(5), || {
        let shield = &rig.daemons[1].status()?["datapath"]["nat_shield"];
        let wanted = json!({"addresses": [vip.to_string()], "restored": 1, "failed": null});
        ensure!(*shield == wanted, "{shield}");
        let told = rig.daemons[1].ask(&["status"])?;
        let line = format!("Kept from NAT: {vip} (put back: 1).");
        ensure!(told.lines().any(|told| told == line), "{told}");
        Ok(())
    })
    .unwrap();
    eventually("all are answered", Duration::from_secs(10), || {
        let answers = ask(&pod, &VIP.to_string(), 3);
        ensure!(answers == [("gateway".to_owned(), 3)].into(), "{answers:?}");
        Ok(())
    })
    .unwrap();
}

/// The batch that the unit tests compare with, taken by this kernel and shown by nft.
#[test]
fn the_kernel_takes_the_batch_whatever_was_there() {
    let ledger = Ledger::open().unwrap();
    let netns = Netns::new(&ledger, "table").unwrap();
    let vips = ["192.0.2.100", "192.0.2.101", "2001:db8::100"];
    let vips: BTreeSet<_> = vips.iter().map(|text| text.parse().unwrap()).collect();
    for before in [
        "list ruleset",
        "add chain inet forebay stranger",
        "delete table inet forebay; add table inet forebay",
    ] {
        netns.nft(before).unwrap();
        netns
            .run(|| Ok(Netlink::netfilter()?.batch(SUBSYSTEM, &whole(&vips))?))
            .unwrap();
        assert_eq!(
            found(&netns).unwrap(),
            Found::Table(vips.clone()),
            "{before}"
        );
        let list = netns.output(Command::new("nft").args(["list", "ruleset"]));
        let text = String::from_utf8(list.unwrap().stdout).unwrap();
        assert_eq!(text.matches(" notrack comment ").count(), 8, "{text}");
        assert!(!text.contains("stranger"), "{text}");
        let hooks = ["prerouting", "output"].map(|hook| {
            text.contains(&format!(
                "type filter hook {hook} priority raw - 1; policy accept;"
            ))
        });
        assert_eq!(hooks, [true; 2], "{text}");
    }
    netns.run(|| Ok(netfilter::remove()?)).unwrap();
    netns.run(|| Ok(netfilter::remove()?)).unwrap();
    assert_eq!(found(&netns).unwrap(), Found::None);
}
