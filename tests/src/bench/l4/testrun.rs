//! Nanoseconds per packet of the forwarding decision, against the floor of the same harness without it.
//!
//! `BPF_PROG_TEST_RUN` repeats a program without restoring the packet. The wrapper programs undo what the decision did to the packet and
//! count the passes whose action is not the expected one. A single such pass makes the run void, and so does a counter of the
//! decision's own that did not count every pass.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::cases::Case;
use super::kernel::Kernel;
use super::sockets::Sockets;
use super::tables::Tables;
use crate::bench::stats::Summary;

/// Words that the wrapper brings back.
const KEPT: usize = 13;

/// Passes before the measured ones: they warm caches and begin the windows of limits.
const WARM_UP: u32 = 1_000;

/// Nanoseconds of each round, by case.
pub(super) type Figures = BTreeMap<&'static str, Vec<f64>>;

/// Runs all cases `rounds` times, alternating, and gives the nanoseconds of each round.
pub(super) fn run(
    kernel: &mut Kernel,
    tables: &mut Tables,
    sockets: &Sockets,
    cases: &[Case],
    (rounds, repeat): (usize, u32),
) -> Result<Figures> {
    // The interface of a test run without one is the loopback device.
    tables.set_nodes(1)?;
    let mut figures = Figures::new();
    for round in 0..=rounds {
        for case in cases {
            tables.steer_all(case.row);
            tables.set(case.setting);
            if case.setting.flooded {
                sockets.fill_queue()?;
            }
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
    kernel.set::<[u64; KEPT]>("TEMPLATE", 0, case.frame.words())?;
    kernel.set("BENCH", 0, settings(case, 0))?;
    kernel.test_run(case.program, &case.frame.bytes, WARM_UP)?;
    let flow = kernel.get::<[u64; 8]>("BENCH", 0)?[3];
    kernel.set("BENCH", 0, settings(case, flow))?;
    let counter = |kernel: &Kernel| case.counter.map_or(Ok(0), |c| kernel.counter(c));
    let before = counter(kernel)?;
    let result = kernel.test_run(case.program, &case.frame.bytes, repeat)?;
    let odd = kernel.get::<[u64; 8]>("BENCH", 0)?[2];
    ensure!(
        odd == 0 && result.return_value == case.action,
        "the run is void: \"{}\" gave another action than {} in {odd} of {repeat} passes (last: {})",
        case.name,
        case.action,
        result.return_value
    );
    let counted = counter(kernel)? - before;
    if let Some(counter) = case.counter {
        ensure!(
            counted == u64::from(repeat),
            "the run is void: \"{}\" counted {} in {counted} of {repeat} passes",
            case.name,
            counter.name()
        );
    }
    Ok(result.duration.as_nanos() as f64)
}

/// The wrapper's words, see the kernel programs of the benchmark.
fn settings(case: &Case, flow: u64) -> [u64; 8] {
    [
        case.frame.bytes.len() as u64,
        u64::from(case.action),
        0,
        flow,
        u64::from(case.flows),
        case.frame.at as u64,
        u64::from(case.frame.client()),
        0,
    ]
}

/// What a case came to, round by round.
#[derive(Debug)]
pub(super) struct Outcome<'a> {
    pub(super) case: &'a Case,
    pub(super) gross: Vec<f64>,
    /// Above its floor; `None` for floors.
    pub(super) net: Option<Vec<f64>>,
}

/// Each case with its figures and those above its floor.
pub(super) fn outcomes<'a>(cases: &'a [Case], figures: &Figures) -> Vec<Outcome<'a>> {
    let of = |name: &str| figures.get(name).cloned().unwrap_or_default();
    let outcome = |case: &'a Case| {
        let gross = of(case.name);
        let net = case
            .floor
            .map(|floor| pairs(&gross, &of(floor), |a, b| a - b));
        Outcome { case, gross, net }
    };
    cases.iter().map(outcome).collect()
}

/// Combines two rows of rounds, round by round.
pub(super) fn pairs(a: &[f64], b: &[f64], with: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| with(*a, *b)).collect()
}

/// Two cases against each other, round by round: above their floors, or gross if one is none.
pub(super) fn between(
    outcomes: &[Outcome<'_>],
    (a, b): (&str, &str),
    net: bool,
    with: impl Fn(f64, f64) -> f64,
) -> Option<Summary> {
    let of = |name: &str| {
        let found = outcomes.iter().find(|outcome| outcome.case.name == name)?;
        if net {
            found.net.as_ref()
        } else {
            Some(&found.gross)
        }
    };
    Summary::of(&pairs(of(a)?, of(b)?, with))
}

#[cfg(test)]
mod tests {
    use super::super::cases::{ACK_L2, OWN, STUB, cases};
    use super::*;

    #[test]
    fn the_wrapper_is_told_what_the_frame_is() {
        let cases = cases(false);
        let case = cases.iter().find(|case| case.name == ACK_L2).unwrap();
        let client = u64::from(u32::from_be_bytes([100, 64, 0, 0]));
        assert_eq!(settings(case, 7), [64, 3, 0, 7, 10_000, 26, client, 0]);
    }

    #[test]
    fn differences_are_made_within_each_round() {
        let all = cases(false);
        let figures = [
            (STUB, vec![10.0, 30.0]),
            (OWN, vec![15.0, 37.0]),
            (ACK_L2, vec![20.0, 50.0]),
        ];
        let outcomes = outcomes(&all, &figures.into());
        let own = outcomes.iter().find(|o| o.case.name == OWN).unwrap();
        assert_eq!(own.net, Some(vec![5.0, 7.0]));
        let more = between(&outcomes, (ACK_L2, OWN), true, |a, b| a - b).unwrap();
        assert_eq!((more.min, more.max), (5.0, 13.0));
        let ratio = between(&outcomes, (ACK_L2, STUB), false, |a, b| a / b).unwrap();
        assert_eq!((ratio.min, ratio.rounds), (50.0 / 30.0, 2));
        assert!(between(&outcomes, (ACK_L2, STUB), true, |a, b| a / b).is_none());
    }
}
