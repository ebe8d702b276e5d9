//! Each rule with what it refuses, in the words that it uses.

use std::net::Ipv4Addr;

use gateway_common::abi::VipKey;
use gateway_common::probe::{PATH, VERSION};

use super::*;
use crate::agent::message::RefusalKind;
use crate::datapath::{AttachMode, PathQuestion};
use crate::l4::abi_address;

const MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const NEXT: [u8; 6] = [2, 0, 0, 0, 1, 2];

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn policy() -> Policy {
    Policy {
        allowed: Allowed {
            ranges: vec![
                PoolRange::parse("192.0.2.0/24").unwrap(),
                PoolRange::parse("2001:db8::1-2001:db8::ff").unwrap(),
                // An administrator's mistake does not make these addresses usable.
                PoolRange::parse("127.0.0.0/8").unwrap(),
                PoolRange::parse("224.0.0.0/4").unwrap(),
                PoolRange::parse("169.254.0.0/16").unwrap(),
                PoolRange::parse("0.0.0.0-0.0.0.1").unwrap(),
                PoolRange::parse("255.255.255.255/32").unwrap(),
                PoolRange::parse("fe80::/10").unwrap(),
            ],
            addresses: [address("198.51.100.7")].into(),
        },
        remedy: "add it",
        reserved: [9000].into(),
        tunnel_port: 17_410,
        probe_port: 17_411,
        ephemeral: 32_768..=60_999,
    }
}

/// Node 192.0.2.11 with node 192.0.2.12 as index 2 beside it, and VIP 192.0.2.100:80.
fn facts() -> Facts {
    let mut image = Image::default();
    image.nodes[1] = own();
    image.nodes[2] = other("192.0.2.12");
    for entry in [vip("192.0.2.100", 80), vip("192.0.2.100", 0)] {
        image.vips.insert(entry.key, entry);
    }
    let mut facts = Facts {
        configured: [address("192.0.2.11"), address("127.0.0.1")].into(),
        attachments: vec![Attachment {
            interface: "eth0".into(),
            ifindex: 4,
            mac: MAC,
            mtu: 1500,
            mode: AttachMode::Native,
            cost_percent: 100,
            state: crate::datapath::AttachState::Attached,
            note: None,
            adopted: false,
        }],
        reach: [
            (address("192.0.2.12"), reach()),
            (address("192.0.2.13"), reach()),
        ]
        .into(),
        ..Facts::default()
    };
    facts.adopt(image);
    facts
}

fn reach() -> Reach {
    Reach {
        mac: NEXT,
        source_mac: MAC,
        ifindex: 4,
        on_link: true,
        resolved: true,
        ..Reach::default()
    }
}

fn own() -> NodeEntry {
    NodeEntry {
        address: abi_address(address("192.0.2.11")),
        source_mac: MAC,
        ifindex: 4,
        flags: node_flag::LISTED | node_flag::SELF | node_flag::RESOLVED,
        ..NodeEntry::default()
    }
}

fn other(text: &str) -> NodeEntry {
    NodeEntry {
        address: abi_address(address(text)),
        mac: NEXT,
        source_mac: MAC,
        ifindex: 4,
        flags: node_flag::LISTED | node_flag::RESOLVED | node_flag::ON_LINK,
        ..NodeEntry::default()
    }
}

fn vip(text: &str, port: u16) -> VipEntry {
    VipEntry {
        key: VipKey {
            address: abi_address(address(text)),
            port: port.to_be_bytes(),
            protocol: if port == 0 { 0 } else { TCP },
            pad: 0,
        },
        flags: if port == 0 {
            vip_flag::USED | vip_flag::ANNOUNCE
        } else {
            vip_flag::USED
        },
        group: 0,
        number: 0,
        ..VipEntry::default()
    }
}

/// Kind and sentence of a refusal; `None` if it is allowed.
fn said(result: Result<(), Refusal>) -> Option<(RefusalKind, String)> {
    result.err().map(|refusal| (refusal.kind, refusal.sentence))
}

#[track_caller]
fn refused(result: Result<(), Refusal>, kind: RefusalKind, words: &str) {
    let (got, sentence) = said(result).unwrap_or_else(|| panic!("not refused: {words}"));
    assert_eq!(got, kind, "{sentence}");
    assert!(sentence.contains(words), "{sentence}");
}

#[test]
fn only_addresses_that_were_given_out_are_vips() {
    let policy = policy();
    for good in ["192.0.2.100", "198.51.100.7", "2001:db8::7"] {
        assert_eq!(said(policy.address(address(good))), None, "{good}");
    }
    for (bad, words) in [
        (
            "198.51.100.8",
            "is not an address that the agent gives out: add it",
        ),
        (
            "2001:db8::100",
            "is not an address that the agent gives out",
        ),
        ("127.0.0.1", "a loopback address"),
        ("0.0.0.0", "the unspecified address"),
        ("224.0.0.1", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("169.254.169.254", "a link-local address"),
        ("fe80::1", "a link-local address"),
    ] {
        refused(policy.address(address(bad)), RefusalKind::Denied, words);
    }
}

#[test]
fn ports_that_belong_to_the_node_are_not_taken() {
    let (policy, facts) = (policy(), facts());
    let claim = |text: &str, port, protocol| policy.claim((address(text), port, protocol), &facts);
    for port in [
        22, 179, 2379, 6443, 10_250, 15_000, 15_020, 15_021, 17_410, 9000,
    ] {
        refused(
            claim("192.0.2.11", port, TCP),
            RefusalKind::Denied,
            "belongs to the node",
        );
        assert_eq!(said(claim("192.0.2.100", port, TCP)), None, "{port}");
    }
    assert_eq!(said(claim("192.0.2.11", 443, TCP)), None);
    for port in [17_410, 17_411] {
        refused(
            claim("192.0.2.100", port, UDP),
            RefusalKind::Denied,
            "nodes talk to each other there",
        );
    }
    refused(
        claim("192.0.2.12", 80, TCP),
        RefusalKind::Denied,
        "the address of another node",
    );
}

#[test]
fn a_vip_table_is_read_entry_by_entry() {
    let (policy, facts) = (policy(), facts());
    let half = |slots: Vec<(u32, VipEntry)>| VipHalf { seed: 1, slots };
    let check = |slots| policy.vips(&half(slots), &facts);
    let good = vip("192.0.2.101", 443);
    let shared = VipEntry {
        flags: vip_flag::USED | vip_flag::SHARED,
        ..vip("192.0.2.11", 443)
    };
    assert_eq!(said(check(vec![(0, good), (1, shared)])), None);
    assert_eq!(said(check(Vec::new())), None);

    let with = |change: fn(&mut VipEntry)| {
        let mut entry = good;
        change(&mut entry);
        check(vec![(0, entry)])
    };
    for (result, words) in [
        (with(|e| e.flags = 0), "not well-formed"),
        (with(|e| e.key.pad = 1), "not well-formed"),
        (with(|e| e.key.protocol = 47), "not well-formed"),
        (with(|e| e.key.protocol = 0), "not well-formed"),
        (with(|e| e.key.port = [0; 2]), "not well-formed"),
        (with(|e| e.group = GROUPS as u16), "not well-formed"),
        (with(|e| e.number = VIP_SLOTS as u16), "not well-formed"),
        (check(vec![(1, good), (1, good)]), "do not rise"),
        (check(vec![(VIP_SLOTS, good)]), "beyond its end"),
        (
            check((0..=MAX_VIPS as u32).map(|n| (n, good)).collect()),
            "at most",
        ),
    ] {
        refused(result, RefusalKind::Malformed, words);
    }
    let announced = VipEntry {
        flags: shared.flags | vip_flag::ANNOUNCE,
        ..vip("192.0.2.11", 0)
    };
    for (entry, words) in [
        (vip("203.0.113.1", 80), "203.0.113.1 is not an address"),
        (vip("203.0.113.1", 0), "203.0.113.1 is not an address"),
        (vip("192.0.2.11", 443), "only be served as shared"),
        (announced, "only be served as shared"),
        (vip("192.0.2.12", 80), "another node"),
    ] {
        refused(
            check(vec![(0, good), (1, entry)]),
            RefusalKind::Denied,
            words,
        );
    }
}

#[test]
fn routes_and_announcements_are_of_vips_only() {
    let (policy, facts) = (policy(), facts());
    let routes = |texts: &[&str]| {
        let addresses = texts.iter().map(|text| address(text)).collect();
        policy.routes(&addresses, &facts.configured)
    };
    assert_eq!(said(routes(&["192.0.2.100", "192.0.2.101"])), None);
    refused(routes(&["8.8.8.8"]), RefusalKind::Denied, "8.8.8.8");
    refused(
        routes(&["192.0.2.11"]),
        RefusalKind::Denied,
        "needs no route",
    );
    let many = (0..=MAX_VIPS as u32)
        .map(|n| IpAddr::from(Ipv4Addr::from(0xc000_0200 + n)))
        .collect();
    refused(
        policy.routes(&many, &facts.configured),
        RefusalKind::Malformed,
        "at most",
    );

    let announce = |text: &str| policy.announce(address(text), &facts);
    assert_eq!(said(announce("192.0.2.100")), None);
    refused(announce("192.0.2.101"), RefusalKind::Denied, "VIP table");
    refused(announce("192.0.2.11"), RefusalKind::Denied, "VIP table");
    refused(announce("192.0.2.1"), RefusalKind::Denied, "VIP table");
    refused(announce("8.8.8.8"), RefusalKind::Denied, "8.8.8.8");
}

/// The node table of [`facts`] with another entry.
fn check(index: usize, entry: NodeEntry) -> Result<(), Refusal> {
    let facts = facts();
    let mut nodes = facts.image().nodes.clone();
    nodes[index] = entry;
    policy().nodes(&nodes, &facts)
}

#[test]
fn nodes_that_are_known_may_stay() {
    let policy = policy();
    assert_eq!(said(check(1, own())), None);
    assert_eq!(said(check(3, other("192.0.2.13"))), None);
    // What stands in the table may stay, whatever is known about it now; other places are looked at anew.
    let mut left = facts();
    left.reach.clear();
    assert_eq!(said(policy.nodes(&left.image().nodes, &left)), None);
    let mut moved = left.image().nodes.clone();
    moved.swap(2, 5);
    refused(
        policy.nodes(&moved, &left),
        RefusalKind::Denied,
        "not reached the way",
    );
}

#[test]
fn nodes_are_reached_as_the_agent_found_out() {
    let policy = policy();
    let unresolved = NodeEntry {
        flags: node_flag::LISTED,
        ..other("192.0.2.99")
    };
    assert_eq!(said(check(3, unresolved)), None);
    let with = |change: fn(&mut NodeEntry)| {
        let mut entry = other("192.0.2.13");
        change(&mut entry);
        check(3, entry)
    };
    for (result, words) in [
        (with(|e| e.mac[5] = 9), "not reached the way"),
        (with(|e| e.source_mac[5] = 9), "not reached the way"),
        (with(|e| e.ifindex = 1), "not reached the way"),
        (check(3, other("192.0.2.14")), "not reached the way"),
        (check(3, other("127.0.0.1")), "a loopback address"),
        (check(3, other("224.0.0.5")), "a multicast address"),
        (check(3, other("0.0.0.0")), "the unspecified address"),
        (check(3, other("192.0.2.100")), "it is a VIP"),
        (check(3, other("192.0.2.11")), "an address of this one"),
    ] {
        refused(result, RefusalKind::Denied, words);
    }
    refused(
        check(0, other("192.0.2.13")),
        RefusalKind::Malformed,
        "means no node",
    );
    let foreign_mac = NodeEntry {
        source_mac: NEXT,
        ..own()
    };
    refused(check(1, foreign_mac), RefusalKind::Denied, "of an uplink");
    let foreign = NodeEntry {
        address: abi_address(address("192.0.2.55")),
        ..own()
    };
    refused(
        check(1, foreign),
        RefusalKind::Denied,
        "no address of this node",
    );
    refused(policy.unlist(&[1024]), RefusalKind::Malformed, "beyond");
    refused(
        policy.reach(&[address("127.0.0.1")].into()),
        RefusalKind::Denied,
        "a loopback address",
    );
    let many = (0..=MAX_NODES)
        .map(|n| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)))
        .collect();
    refused(policy.reach(&many), RefusalKind::Malformed, "at most");
}

#[test]
fn the_configuration_fits_the_agent() {
    let (policy, facts) = (policy(), facts());
    let good = Config {
        abi_version: ABI_VERSION,
        self_index: 1,
        tunnel_port: 17_410_u16.to_be_bytes(),
        probe_port: 17_411_u16.to_be_bytes(),
        tunnel_source: abi_address(address("192.0.2.11")),
        ..Config::default()
    };
    assert_eq!(said(policy.config(&good, &facts)), None);
    let with = |change: fn(&mut Config)| {
        let mut config = good;
        change(&mut config);
        policy.config(&config, &facts)
    };
    assert_eq!(said(with(|c| c.tunnel_source = [0; 16])), None);
    refused(
        with(|c| c.abi_version += 1),
        RefusalKind::Malformed,
        "ABI version",
    );
    refused(
        with(|c| c.self_index = MAX_NODES),
        RefusalKind::Malformed,
        "ABI version",
    );
    refused(
        with(|c| c.tunnel_port = [0, 53]),
        RefusalKind::Denied,
        "--tunnel-port is 53 in `forebay run` and 17410 in the agent",
    );
    refused(
        with(|c| c.tunnel_source[15] = 99),
        RefusalKind::Denied,
        "192.0.2.99 is no address of this node",
    );
}

#[test]
fn listening_sockets_are_on_loopback_here() {
    let policy = policy();
    let good = Socket {
        address: "127.0.0.1:40000".parse().unwrap(),
        own_namespace: true,
    };
    assert_eq!(said(policy.listeners(63, &[good; 8])), None);
    assert_eq!(said(policy.listeners(0, &[])), None);
    refused(
        policy.listeners(64, &[good]),
        RefusalKind::Malformed,
        "64 groups",
    );
    refused(
        policy.listeners(0, &[good; 9]),
        RefusalKind::Malformed,
        "at most 8",
    );
    for (socket, words) in [
        (
            Socket {
                own_namespace: false,
                ..good
            },
            "another network namespace",
        ),
        (
            Socket {
                address: "0.0.0.0:40000".parse().unwrap(),
                ..good
            },
            "bound to 0.0.0.0",
        ),
        (
            Socket {
                address: "127.0.0.1:10250".parse().unwrap(),
                ..good
            },
            "bound to port 10250",
        ),
    ] {
        refused(
            policy.listeners(0, &[good, socket]),
            RefusalKind::Denied,
            words,
        );
    }
}

#[test]
fn paths_are_asked_for_on_the_link_and_with_vips_only() {
    let (policy, mut facts) = (policy(), facts());
    let mut message = [0; 64];
    message[..2].copy_from_slice(&[VERSION, PATH]);
    let good = PathQuestion {
        node: address("192.0.2.12"),
        vip: address("192.0.2.100"),
        reply_port: 40_000,
        message,
    };
    assert_eq!(said(policy.paths(&[good, good], &facts)), None);
    let mut other = good;
    other.message[1] = 1;
    refused(
        policy.paths(&[good, other], &facts),
        RefusalKind::Malformed,
        "a question for a path is none",
    );
    for (node, vip, words) in [
        (
            "192.0.2.13",
            "192.0.2.100",
            "192.0.2.13 is not asked for its path",
        ),
        (
            "192.0.2.11",
            "192.0.2.100",
            "192.0.2.11 is not asked for its path",
        ),
        (
            "192.0.2.12",
            "192.0.2.101",
            "with 192.0.2.101: it is no VIP",
        ),
    ] {
        let question = PathQuestion {
            node: address(node),
            vip: address(vip),
            ..good
        };
        refused(
            policy.paths(&[question], &facts),
            RefusalKind::Denied,
            words,
        );
    }
    let to = facts.reach.get_mut(&good.node).unwrap();
    to.on_link = false;
    refused(
        policy.paths(&[good], &facts),
        RefusalKind::Denied,
        "192.0.2.12 is not asked for its path",
    );
}
