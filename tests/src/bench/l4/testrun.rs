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
            // Where the round before ended, so that all flows of a case come up.
            let flow = u64::from(repeat) * round as u64;
            let nanoseconds = measure(kernel, case, flow, repeat)?;
            // The first round warms caches and branch predictors.
            if round > 0 {
                figures.entry(case.name).or_default().push(nanoseconds);
            }
        }
    }
    Ok(figures)
}

fn measure(kernel: &mut Kernel, case: &Case, flow: u64, repeat: u32) -> Result<f64> {
    kernel.set::<[u64; KEPT]>("TEMPLATE", 0, case.frame.words())?;
    let flow = flow % u64::from(case.flows.max(1));
    kernel.set("BENCH", 0, settings(case, flow))?;
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

/// What a case came to.
#[derive(Debug)]
pub(super) struct Outcome<'a> {
    pub(super) case: &'a Case,
    pub(super) gross: Summary,
    /// The quiet figures' difference to the floor; `None` for floors.
    pub(super) net: Option<f64>,
}

/// Each case with its figures and what is left above its floor.
pub(super) fn outcomes<'a>(cases: &'a [Case], figures: &Figures) -> Vec<Outcome<'a>> {
    let of = |name: &str| Summary::of(figures.get(name)?);
    let outcome = |case: &'a Case| {
        let gross = of(case.name)?;
        let floor = case.floor.and_then(of);
        let net = floor.map(|floor| gross.quiet - floor.quiet);
        Some(Outcome { case, gross, net })
    };
    cases.iter().filter_map(outcome).collect()
}

/// Two cases against each other, above their floors: `with` of the first and the second.
pub(super) fn above_floors(
    outcomes: &[Outcome<'_>],
    (a, b): (&str, &str),
    with: impl Fn(f64, f64) -> f64,
) -> Option<f64> {
    Some(with(find(outcomes, a)?.net?, find(outcomes, b)?.net?))
}

/// How many times as dear as the second the first is, floors included.
pub(super) fn times(outcomes: &[Outcome<'_>], (a, b): (&str, &str)) -> Option<f64> {
    Some(find(outcomes, a)?.gross.quiet / find(outcomes, b)?.gross.quiet)
}

fn find<'a, 'c>(outcomes: &'a [Outcome<'c>], name: &str) -> Option<&'a Outcome<'c>> {
    outcomes.iter().find(|outcome| outcome.case.name == name)
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
    fn floors_are_taken_off_the_quiet_figures() {
        let all = cases(false);
        let figures = [
            (STUB, vec![30.0, 10.0, 90.0]),
            (OWN, vec![15.0, 37.0]),
            (ACK_L2, vec![50.0, 20.0]),
        ];
        let outcomes = outcomes(&all, &figures.into());
        let own = find(&outcomes, OWN).unwrap();
        assert_eq!((own.net, own.gross.median), (Some(5.0), 26.0));
        let more = above_floors(&outcomes, (ACK_L2, OWN), |a, b| a - b);
        assert_eq!(more, Some(5.0));
        assert_eq!(times(&outcomes, (ACK_L2, STUB)), Some(2.0));
        assert_eq!(above_floors(&outcomes, (ACK_L2, STUB), |a, b| a / b), None);
    }
}
