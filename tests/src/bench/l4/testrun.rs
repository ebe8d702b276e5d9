//! Nanoseconds per packet of the forwarding decision, against the floor of the same harness without it.
//!
//! `BPF_PROG_TEST_RUN` repeats a program without restoring the packet. The wrapper programs undo what the decision did to the packet and
//! count the passes whose action is not the expected one: a single such pass makes the run void.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use gateway_common::abi::{Row, config::flag};

use super::frames::{ACK, Flow, PORT, STRANGER, SYN, TO_VIP, VIP, frame};
use super::kernel::{Kernel, OTHER, SELF};
use crate::bench::stats::Summary;

/// Programs that a test run needs.
pub(super) const PROGRAMS: [&str; 3] = ["bench_stub", "bench_push_pop", "bench_decide"];

const PASS: u32 = 2;
const TX: u32 = 3;

/// Flows that the wrapper walks through where sockets do not matter, as a mask.
const FLOWS: u64 = 16_383;

/// MAC of this node.
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 1, SELF as u8];

/// One path through the decision, or a floor.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// The floor to take off; `None` for a floor itself.
    pub(super) floor: Option<&'static str>,
    /// Highest difference to the floor, in ns.
    pub(super) bar: Option<f64>,
    program: &'static str,
    flow: Flow,
    tcp: u8,
    row: Row,
    flags: u32,
    mask: u64,
    action: u32,
}

pub(super) const STUB: &str = "floor: stub";
pub(super) const PUSH_POP: &str = "floor: push and pop 36 bytes";

/// Sockets that the transition cases look up; they live as long as the run.
pub(super) struct Sockets {
    _listener: TcpListener,
    client: TcpStream,
}

impl Sockets {
    /// A listener on the VIP and one connection to it; the VIP is an address of this thread's namespace.
    pub(super) fn open() -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::from(VIP), PORT));
        let listener =
            TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let client =
            TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        Ok(Self {
            _listener: listener,
            client,
        })
    }

    fn flow(&self) -> Result<Flow> {
        let source_port = self.client.local_addr()?.port();
        Ok(Flow {
            source: VIP,
            source_port,
            destination: VIP,
        })
    }
}

/// All cases in the order of the report; those with equal rows stand together.
pub(super) fn cases(sockets: &Sockets) -> Result<Vec<Case>> {
    let mut cases = floors().to_vec();
    cases.extend(stable());
    cases.extend(in_transition(sockets.flow()?));
    Ok(cases)
}

/// A packet of a client for the VIP, on a row that this node owns.
fn own() -> Case {
    Case {
        name: "own row: pass",
        floor: Some(STUB),
        bar: None,
        program: "bench_decide",
        flow: TO_VIP,
        tcp: ACK,
        row: Row::new(SELF, false, [(OTHER, false), (0, false), (0, false)]),
        flags: 0,
        mask: FLOWS,
        action: PASS,
    }
}

fn floors() -> [Case; 2] {
    let stub = Case {
        name: STUB,
        floor: None,
        program: "bench_stub",
        ..own()
    };
    let push_pop = Case {
        name: PUSH_POP,
        program: "bench_push_pop",
        action: TX,
        ..stub.clone()
    };
    [stub, push_pop]
}

fn stable() -> [Case; 5] {
    let stranger = Case {
        name: "not a VIP: pass",
        bar: Some(30.0),
        flow: Flow {
            destination: STRANGER,
            ..TO_VIP
        },
        ..own()
    };
    let syn = Case {
        name: "own row, SYN: listener found, pass",
        tcp: SYN,
        ..own()
    };
    let rewrite = Case {
        name: "forward by MAC rewrite",
        row: Row::new(OTHER, false, [(SELF, false), (0, false), (0, false)]),
        action: TX,
        bar: Some(80.0),
        ..own()
    };
    let encapsulate = Case {
        name: "forward by UDP",
        flags: flag::ENCAP_ALWAYS,
        floor: Some(PUSH_POP),
        ..rewrite.clone()
    };
    [stranger, own(), syn, rewrite, encapsulate]
}

fn in_transition(connected: Flow) -> [Case; 2] {
    let row = Row::new(SELF, true, [(OTHER, true), (0, false), (0, false)]);
    let held = Case {
        name: "in transition: socket found, pass",
        flow: connected,
        row,
        mask: 0,
        ..own()
    };
    let missed = Case {
        name: "in transition: second chance by UDP",
        row,
        action: TX,
        floor: Some(PUSH_POP),
        ..own()
    };
    [held, missed]
}

/// Runs all cases `rounds` times, alternating, and gives the nanoseconds of each round.
pub(super) fn run(
    kernel: &mut Kernel,
    cases: &[Case],
    rounds: usize,
    repeat: u32,
) -> Result<BTreeMap<&'static str, Vec<f64>>> {
    // The interface of a test run without one is the loopback device.
    kernel.tables(1)?;
    let mut figures: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for round in 0..=rounds {
        for case in cases {
            let nanoseconds = measure(kernel, case, repeat)?;
            // The first round warms caches and branch predictors.
            if round > 0 {
                figures.entry(case.name).or_default().push(nanoseconds);
            }
        }
    }
    Ok(figures)
}

fn measure(kernel: &mut Kernel, case: &Case, repeat: u32) -> Result<f64> {
    kernel.steer_all(case.row)?;
    kernel.configure(case.flags)?;
    let packet = frame(OWN_MAC, case.flow, case.tcp);
    kernel.set("BENCH", 0, settings(&packet, case))?;
    let result = kernel.test_run(case.program, &packet, repeat)?;
    let odd = kernel.get::<[u64; 8]>("BENCH", 0)?[2];
    ensure!(
        odd == 0 && result.return_value == case.action,
        "the run is void: \"{}\" gave another action than {} in {odd} of {repeat} passes (last: {})",
        case.name,
        case.action,
        result.return_value
    );
    Ok(result.duration.as_nanos() as f64)
}

/// The wrapper's words, see the kernel programs of the benchmark.
fn settings(packet: &[u8], case: &Case) -> [u64; 8] {
    let word = |from: usize, length: usize| {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(&packet[from..from + length]);
        u64::from_ne_bytes(bytes)
    };
    [
        packet.len() as u64,
        u64::from(case.action),
        0,
        0,
        case.mask,
        word(0, 8),
        word(8, 6),
        word(22, 4),
    ]
}

/// Each case with its figures and those of the difference to its floor, round by round.
pub(super) fn differences<'a>(
    cases: &'a [Case],
    figures: &BTreeMap<&str, Vec<f64>>,
) -> Vec<(&'a Case, Summary, Option<Summary>)> {
    let of = |name: &str| figures.get(name).map(Vec::as_slice).unwrap_or_default();
    let row = |case: &'a Case| {
        let gross = of(case.name);
        let net = case.floor.map(|floor| {
            gross
                .iter()
                .zip(of(floor))
                .map(|(a, b)| a - b)
                .collect::<Vec<_>>()
        });
        Some((case, Summary::of(gross)?, net.and_then(|n| Summary::of(&n))))
    };
    cases.iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrapper_restores_what_it_is_told() {
        let packet: Vec<u8> = (0..60).collect();
        let case = Case { mask: 7, ..own() };
        let words = settings(&packet, &case);
        assert_eq!(words[..5], [60, 2, 0, 0, 7]);
        assert_eq!(words[6].to_ne_bytes(), [8, 9, 10, 11, 12, 13, 0, 0]);
        assert_eq!(words[7].to_ne_bytes(), [22, 23, 24, 25, 0, 0, 0, 0]);
    }
}
