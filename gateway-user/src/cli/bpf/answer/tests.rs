//! What the answers say of tables made by hand.

use gateway_common::abi::Config;

use super::*;
use crate::cli::show;
use crate::l4::abi_address;

const CLIENT: &str = "198.51.100.7:40000";

fn node(last: u8, flags: u32) -> NodeEntry {
    NodeEntry {
        address: abi_address(IpAddr::from([10, 0, 0, last])),
        mac: [2, 0, 0, 0, 0, last],
        flags: flags | node_flag::LISTED,
        mtu: 1500,
        ..NodeEntry::default()
    }
}

/// Three nodes; the second is draining and outranks the owner of row 5. VIPs over TCP, and over UDP without ports.
fn seen() -> Seen {
    let vip = |port: u16, protocol, flags, sources| VipEntry {
        key: VipKey::v4([192, 0, 2, 1], port.to_be_bytes(), protocol),
        flags: flags | vip_flag::USED,
        group: 3,
        number: port,
        sources,
        reserved: 0,
    };
    let near = node_flag::RESOLVED | node_flag::ON_LINK;
    let mut rows = vec![Row::new(1, false, [(3, false), (0, false), (0, false)]); ROWS as usize];
    rows[5] = Row::new(1, true, [(2, true), (3, false), (0, false)]);
    rows[6] = Row::default();
    Seen {
        config: Config {
            hash_key: [1, 2],
            ..Config::default()
        },
        nodes: BTreeMap::from([
            (1, node(1, near | node_flag::READY | node_flag::SELF)),
            (2, node(2, near | node_flag::DRAINING)),
            (3, node(3, node_flag::RESOLVED | node_flag::READY)),
        ]),
        suspects: vec![3],
        vips: vec![
            vip(0, 0, vip_flag::ANNOUNCE, 0),
            vip(80, 6, vip_flag::LOCAL_ONLY, 0),
            vip(443, 6, vip_flag::DRAINING, 7),
            vip(53, 17, vip_flag::BY_ADDRESSES | vip_flag::ALLOW_LIST, 8),
        ],
        rows: rows.into(),
    }
}

fn names() -> Names {
    Names::of(&json!({"nodes": [
        {"index": 1, "address": "10.0.0.1", "name": "alpha", "forward": "own"},
        {"index": 2, "address": "10.0.0.2", "name": "beta", "forward": "l2"},
        // Under this index the table has another node by now.
        {"index": 3, "address": "10.0.0.99", "name": "gone", "forward": "l2"},
    ]}))
}

#[test]
fn nodes_are_called_by_name_address_or_index() {
    let (seen, names) = (seen(), names());
    let called = |names: &Names| [1, 2, 3, 4].map(|index| names.call(&seen, index));
    assert_eq!(called(&names), ["alpha", "beta", "10.0.0.3", "#4"]);
    assert_eq!(names.own(), Some("alpha"));
    assert_eq!(
        called(&Names::default()),
        ["10.0.0.1", "10.0.0.2", "10.0.0.3", "#4"]
    );
}

#[test]
fn a_row_lists_its_nodes_by_rank() {
    let answer = rows(&seen(), &names(), &[5, 6]);
    assert_eq!(
        show::bpf::rows(&answer),
        "Rows\n  ROW  OWNER  STATE          RANKS\n  5    alpha  in transition  beta (draining) > alpha > 10.0.0.3 (suspect)\n  6    -      stable\n\n"
    );
    assert_eq!(answer["rows"][0]["ranks"][1]["owner"], true);
}

#[test]
fn shares_are_those_of_the_rows() {
    let answer = owners(&seen(), &names());
    assert_eq!(
        show::bpf::rows(&answer),
        "Rows\n  OWNER     STATE     ROWS   SHARE     IN TRANSITION\n  nobody    -         1      0.00 %    0\n  alpha     ready     65535  100.00 %  1\n  beta      draining  0      0.00 %    0\n  10.0.0.3  ready     0      0.00 %    0\n\n"
    );
    assert_eq!(answer["rows_in_transition"], 1);
}

#[test]
fn vips_say_what_becomes_of_their_packets() {
    let list = ListSize {
        allowed: 1,
        denied: 2,
    };
    let counts = Counts {
        vips: BTreeMap::from([(80, 17)]),
        ..Counts::default()
    };
    let answer = vips(&seen(), &BTreeMap::from([(7, list), (8, list)]), &counts);
    assert_eq!(
        show::bpf::vips(&answer),
        "VIPs
  ADDRESS        PROTOCOL  GROUP  RETURN      HASH       SOURCES                            STATE           PACKETS
  192.0.2.1      -         -      -           ports      all                                announced here  0
  192.0.2.1:80   tcp       3      local-only  ports      all                                serving         17
  192.0.2.1:443  tcp       3      direct      ports      deny-list of 1 allowed, 2 denied   draining        0
  192.0.2.1:53   udp       3      direct      addresses  allow-list of 1 allowed, 2 denied  serving         0\n\n"
    );
}

#[test]
fn nodes_say_how_packets_reach_them() {
    let counts = Counts {
        nodes: BTreeMap::from([(2, [5, 6, 7, 8])]),
        ..Counts::default()
    };
    let answer = nodes(&seen(), &names(), &counts);
    assert_eq!(
        show::bpf::nodes(&answer),
        "Nodes
  INDEX  NAME   ADDRESS   STATE     SUSPECT  PATH  MAC                INTERFACE  VLAN  MTU
  1      alpha  10.0.0.1  ready     -        own   02:00:00:00:00:01  -          -     1500
  2      beta   10.0.0.2  draining  -        l2    02:00:00:00:00:02  -          -     1500
  3      -      10.0.0.3  ready     suspect  udp   02:00:00:00:00:03  -          -     1500

Packets to them, by path
  INDEX  L2  UDP  SECOND CHANCE  SYN HEIR
  1      0   0    0              0
  2      5   6    7              8
  3      0   0    0              0\n\n"
    );
    let encapsulating = Seen {
        config: Config {
            flags: config::flag::ENCAP_ALWAYS,
            ..Config::default()
        },
        ..seen()
    };
    assert_eq!(
        nodes(&encapsulating, &names(), &counts)["nodes"][1]["forward"],
        "udp"
    );
}

#[test]
fn a_flow_has_the_row_that_the_programs_find() {
    let (seen, names) = (seen(), names());
    let row = |client: &str, vip: &str, transport| {
        let [client, vip] = [client, vip].map(|end| end.parse().unwrap());
        let answer = row_of_flow(&seen, &names, client, vip, transport)?;
        answer["rows"][0]["row"].as_u64()
    };
    let ports = [0x9c, 0x40, 0, 80];
    let hash = flow_v4([1, 2], [198, 51, 100, 7], [192, 0, 2, 1], ports, 6);
    assert_eq!(
        row(CLIENT, "192.0.2.1:80", Transport::Tcp),
        Some(u64::from(row_of(hash)))
    );
    // Without ports every port of a client has the same row.
    let first = row(CLIENT, "192.0.2.1:53", Transport::Udp);
    assert!(first.is_some());
    assert_eq!(
        row("198.51.100.7:40001", "192.0.2.1:53", Transport::Udp),
        first
    );
    for (vip, transport) in [
        ("192.0.2.1:53", Transport::Tcp),
        ("192.0.2.2:80", Transport::Tcp),
        ("192.0.2.1:81", Transport::Tcp),
    ] {
        assert_eq!(row(CLIENT, vip, transport), None, "{vip}");
    }
    let [client, vip] = [CLIENT, "192.0.2.1:80"].map(|end| end.parse().unwrap());
    let answer = row_of_flow(&seen, &names, client, vip, Transport::Tcp).unwrap();
    let text = show::bpf::rows(&answer);
    assert!(
        text.starts_with("198.51.100.7:40000 to 192.0.2.1:80/tcp\n\nThe VIP is local-only: each node serves what it receives, whoever owns the row.\n\nRows\n"),
        "{text}"
    );
}

#[test]
fn the_overview_states_the_memory() {
    let memory = |memory: Value| show::bpf::overview(&json!({"memory": memory}));
    assert!(
        memory(json!({"total_bytes": 5_400_000, "maps": {"A": 1, "B": 2}}))
            .ends_with("Memory of the tables: 5.1 MiB in 2 maps.\n")
    );
    assert!(
        memory(json!({"error": "x may not be opened by this user: run as root"})).ends_with(
            "Memory of the tables: not known, since x may not be opened by this user: run as root.\n"
        )
    );
}
