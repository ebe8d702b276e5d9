//! What lines say of events made by hand, and what flags ask the programs for.

use std::collections::BTreeMap;

use clap::Parser;
use gateway_common::abi::{Config, NodeEntry, Path, VipCell, node_flag};

use super::*;
use crate::args::bpf::BpfCommand;
use crate::args::{Cli, Command};

fn view() -> View {
    let node = |last| NodeEntry {
        address: abi_address([10, 0, 0, last].into()),
        flags: node_flag::LISTED,
        ..NodeEntry::default()
    };
    View {
        names: Names::of(&json!({"nodes": [
            {"index": 1, "address": "10.0.0.1", "name": "alpha", "forward": "own"},
            {"index": 2, "address": "10.0.0.2", "name": "beta", "forward": "l2"},
        ]})),
        node: "alpha".into(),
        seen: Seen {
            config: Config::default(),
            nodes: BTreeMap::from([(1, node(1)), (2, node(2)), (3, node(3))]),
            suspects: Vec::new(),
            vips: Vec::new(),
            rows: Box::default(),
        },
        output: Output::Table,
    }
}

fn event() -> TraceEvent {
    TraceEvent {
        client: abi_address([198, 51, 100, 7].into()),
        vip: abi_address([192, 0, 2, 1].into()),
        client_port: 40_000_u16.to_be_bytes(),
        vip_port: 80_u16.to_be_bytes(),
        protocol: 6,
        length: 74,
        row_number: 4711,
        row: Row::new(2, false, [(1, false), (3, false), (0, false)]).0,
        seen: seen::ROW | seen::SYN,
        ..TraceEvent::default()
    }
}

fn said(event: &TraceEvent) -> String {
    line(&view().event(event, "T"))
}

#[test]
fn lines_say_row_owner_path_and_why() {
    let forwarded = TraceEvent {
        verdict: Verdict::out_in(3, 3, Path::L2.cell(2)).pack(),
        why: why::OWNER,
        ..event()
    };
    assert_eq!(
        said(&forwarded),
        "T alpha 198.51.100.7:40000 > 192.0.2.1:80/tcp SYN, row 4711 of beta (beta > alpha > 10.0.0.3): send forward_l2 to beta, the owner\n"
    );
    let tunnel = Tunnel {
        hops: 2,
        phase: Phase::SecondChance,
        fingerprint: 1,
    };
    let searched = TraceEvent {
        verdict: Verdict::out_in(4, 3, Path::SecondChance.cell(3)).pack(),
        why: why::SECOND_CHANCE,
        arrival: tunnel.pack(),
        row: Row::new(2, true, [(1, true), (3, false), (0, false)]).0,
        suspects: 0b101,
        seen: seen::ROW,
        ..event()
    };
    assert_eq!(
        said(&searched),
        "T alpha 198.51.100.7:40000 > 192.0.2.1:80/tcp, second chance with 2 hops left, row 4711 in transition of beta (alpha > beta > 10.0.0.3), suspect: beta, 10.0.0.3: send second_chance to 10.0.0.3, may hold the flow\n"
    );
    let kept = TraceEvent {
        verdict: Verdict::pass_in(VipCell::Owned.cell(9)).pack(),
        ..event()
    };
    assert!(said(&kept).ends_with("(beta > alpha > 10.0.0.3): pass own_pass\n"));
    let refused = TraceEvent {
        verdict: Verdict::drop(Counter::SourceDenied).pack(),
        seen: 0,
        ..event()
    };
    assert_eq!(
        said(&refused),
        "T alpha 198.51.100.7:40000 > 192.0.2.1:80/tcp: drop source_denied\n"
    );
    let value = view().event(&forwarded, "T");
    assert_eq!(
        (
            &value["to"],
            &value["owner"],
            &value["syn"],
            &value["bytes"]
        ),
        (&json!("beta"), &json!("beta"), &json!(true), &json!(74))
    );
}

#[test]
fn flags_become_the_filter() {
    let of = |flags: &str| {
        let words = ["forebay", "bpf", "trace"].into_iter();
        let cli = Cli::try_parse_from(words.chain(flags.split_whitespace())).unwrap();
        let Command::Bpf(bpf) = cli.command else {
            panic!("bpf")
        };
        let Some(BpfCommand::Trace(args)) = bpf.what else {
            panic!("trace")
        };
        filter(&args)
    };
    let all = TraceFilter {
        most: u32::MAX,
        ..TraceFilter::default()
    };
    assert_eq!(of(""), all);
    let vip = "--vip [2001:db8::1]:53/udp --port 7 --sample 4 --address 10.0.0.1";
    assert_eq!(
        of(vip),
        TraceFilter {
            wants: want::VIP | want::ADDRESS,
            vip: abi_address("2001:db8::1".parse().unwrap()),
            vip_port: [0, 53],
            protocol: 17,
            port: [0, 7],
            address: abi_address([10, 0, 0, 1].into()),
            most: u32::MAX / 4,
            ..all
        }
    );
    assert_eq!(of("--vip 192.0.2.1").wants, want::VIP);
    assert_eq!(of("--vip 192.0.2.1").vip_port, [0, 0]);
}
