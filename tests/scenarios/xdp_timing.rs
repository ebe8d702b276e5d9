//! A quick look at what a packet costs; the benchmark proper is `cargo xtask bench l4`.

use gateway_common::abi::{NodeIndex, Row, config::flag};
use gateway_common::host::HostTables;
use gateway_tests::object::fixture::{LISTENING, ME, ON_LINK, Sockets, set_row, tables};
use gateway_tests::object::{Object, fresh_namespace};
use gateway_tests::packet::TcpPacket;

const REPEAT: u32 = 1_000_000;

#[test]
#[ignore = "measures; needs FOREBAY_EBPF_OBJECT built with the feature `bench`"]
fn xdp_timing_of_the_usual_cases() {
    fresh_namespace().unwrap();
    let mut base = tables();
    let sockets = Sockets::open(&mut base).unwrap();
    let mut object = Object::load().unwrap();
    let packet = TcpPacket::default();
    let row = |owner: NodeIndex, transition| {
        Row::new(owner, transition, [(0, false), (0, false), (0, false)])
    };
    let with = |packet: &TcpPacket, row, flags| {
        let mut tables = base.clone();
        set_row(&mut tables, packet, row);
        tables.config.flags = flags;
        tables
    };
    let pushed = TcpPacket {
        to_mac: [6, 0, 0, 0, 0, 1],
        ..packet.clone()
    };
    let foreign = TcpPacket {
        destination: [203, 0, 113, 99],
        ..packet.clone()
    };
    let listened = TcpPacket {
        destination_port: LISTENING,
        flags: 2,
        ..packet.clone()
    };
    let cases: Vec<(&str, &str, &TcpPacket, HostTables)> = vec![
        (
            "nothing (forebay_pass)",
            "forebay_pass",
            &packet,
            base.clone(),
        ),
        ("floor", "forebay_bench_floor", &packet, base.clone()),
        (
            "floor, push and pop",
            "forebay_bench_floor",
            &pushed,
            base.clone(),
        ),
        ("not for a VIP", "forebay_bench", &foreign, base.clone()),
        (
            "not for a VIP, without restoring",
            "forebay_xdp",
            &foreign,
            base.clone(),
        ),
        (
            "own, pass",
            "forebay_bench",
            &packet,
            with(&packet, row(ME, false), 0),
        ),
        ("own, pass, heartbeat watched", "forebay_bench", &packet, {
            let mut tables = with(&packet, row(ME, false), 0);
            (tables.config.beat_limit_jiffies, tables.heartbeat) = (u32::MAX, 1);
            tables
        }),
        (
            "own, pass, without restoring",
            "forebay_xdp",
            &packet,
            with(&packet, row(ME, false), 0),
        ),
        (
            "own, SYN with a listener",
            "forebay_bench",
            &listened,
            with(&listened, row(ME, false), 0),
        ),
        (
            "own, in transition, socket here",
            "forebay_bench",
            &sockets.flow,
            with(&sockets.flow, row(ME, true), 0),
        ),
        (
            "forward, MAC rewrite",
            "forebay_bench",
            &packet,
            with(&packet, row(ON_LINK, false), 0),
        ),
        (
            "forward, UDP form",
            "forebay_bench",
            &packet,
            with(&packet, row(ON_LINK, false), flag::ENCAP_ALWAYS),
        ),
    ];
    let mut times = vec![Vec::new(); cases.len()];
    for _ in 0..5 {
        for ((_, program, packet, tables), times) in cases.iter().zip(&mut times) {
            object.write(tables).unwrap();
            times.push(object.time(program, &packet.build(), REPEAT).unwrap());
        }
    }
    for ((name, ..), times) in cases.iter().zip(&mut times) {
        times.sort_unstable();
        println!("{:>4} ns (min {}) {name}", times[times.len() / 2], times[0]);
    }
}
