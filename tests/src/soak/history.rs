//! What clients saw, and whether faults explain it.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::time::Duration;

use super::nemesis::Fault;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should, by this backend.
    Answered(&'static str),
    /// By somebody who has no business there, or with another request's answer.
    Wrong(String),
    /// Nobody listens.
    Refused,
    /// Ended before its answer.
    Reset,
    /// Not ended in time.
    TimedOut,
    /// Otherwise.
    Failed(String),
}

impl Outcome {
    /// What an error of a request comes to.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof => Self::Reset,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            _ => Self::Failed(error.to_string()),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Answered(_) => "answered",
            Self::Wrong(_) => "wrong",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::TimedOut => "timed out",
            Self::Failed(_) => "failed otherwise",
        }
    }
}

/// One request; times are since the begin of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// To which VIP.
    pub vip: &'static str,
    /// When it began.
    pub begin: Duration,
    /// When it ended.
    pub end: Duration,
    /// How.
    pub outcome: Outcome,
    /// What it was about last.
    pub doing: &'static str,
}

/// One fault that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// What.
    pub fault: Fault,
    /// When it began.
    pub begin: Duration,
    /// When it was over.
    pub heal: Duration,
}

/// What a history comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Requests by how they ended.
    pub tally: BTreeMap<&'static str, u64>,
    /// Those that were answered, by backend.
    pub backends: BTreeMap<&'static str, u64>,
    /// Failures by the fault that explains them.
    pub explained: BTreeMap<&'static str, u64>,
    /// Longest time from the end of a fault of a kind to an answer at every VIP, in milliseconds.
    pub again: BTreeMap<&'static str, u128>,
    /// What must not be, a sentence each.
    pub violations: Vec<String>,
}

/// Of a run in which nobody had time for one part in so many nothing can be said.
const MOST: u32 = 4;

/// Judges a run of `length`: a request is answered rightly, or it fails while a fault lasts that explains it or in the
/// `grace` after; in that time every VIP is served again.
#[must_use]
pub fn judge(
    requests: &[Request],
    windows: &[Window],
    length: Duration,
    grace: Duration,
) -> Verdict {
    let mut verdict = Verdict::default();
    for request in requests {
        *verdict.tally.entry(request.outcome.kind()).or_default() += 1;
        match &request.outcome {
            Outcome::Answered(by) => *verdict.backends.entry(by).or_default() += 1,
            Outcome::Wrong(_) => verdict.violations.push(sentence(request, "")),
            _ => match explanation(request, windows, grace) {
                Some(fault) => *verdict.explained.entry(fault.name()).or_default() += 1,
                None => verdict
                    .violations
                    .push(sentence(request, ", which no fault explains")),
            },
        }
    }
    let mut vips: Vec<&str> = requests.iter().map(|request| request.vip).collect();
    vips.sort_unstable();
    vips.dedup();
    for window in windows.iter().filter(|it| it.fault != Fault::Stall) {
        let grace = grace + stalled(windows, window.heal, window.heal + grace);
        for vip in &vips {
            served_again(&mut verdict, requests, window, vip, grace);
        }
    }
    let lost = stalled(windows, Duration::ZERO, length);
    if lost > length / MOST {
        let lost = lost.as_secs_f64();
        let said = format!("nobody had time for {lost:.1} s: that shows nothing");
        verdict.violations.push(said);
    }
    for vip in vips {
        silent(&mut verdict, requests, vip, length, grace);
    }
    if requests.is_empty() {
        verdict.violations.push("nothing was asked".to_owned());
    }
    verdict
}

fn sentence(request: &Request, why: &str) -> String {
    let told = match &request.outcome {
        Outcome::Wrong(text) | Outcome::Failed(text) => format!(" ({text})"),
        _ => String::new(),
    };
    format!(
        "a request to {} from {:.3} s to {:.3} s was {}{told} while {}{why}",
        request.vip,
        request.begin.as_secs_f64(),
        request.end.as_secs_f64(),
        request.outcome.kind(),
        request.doing,
    )
}

/// The fault that explains a failure; that nobody had time only where nothing else does, and not for long.
fn explanation(request: &Request, windows: &[Window], grace: Duration) -> Option<Fault> {
    let explains = |window: &&Window| {
        let after = if window.fault == Fault::Stall {
            Duration::ZERO
        } else {
            grace
        };
        window.fault.excuses()
            && request.end >= window.begin
            && request.begin <= window.heal + after
    };
    let found = windows.iter().filter(explains).map(|window| window.fault);
    found.min()
}

/// For how long nobody had time in a part of the run.
fn stalled(windows: &[Window], begin: Duration, end: Duration) -> Duration {
    let stalls = windows.iter().filter(|it| it.fault == Fault::Stall);
    let parts = stalls.map(|it| it.heal.min(end).saturating_sub(it.begin.max(begin)));
    parts.sum()
}

fn served_again(
    verdict: &mut Verdict,
    requests: &[Request],
    window: &Window,
    vip: &str,
    grace: Duration,
) {
    let answered = |request: &&Request| {
        let is_answer = matches!(request.outcome, Outcome::Answered(_));
        is_answer && request.vip == vip && request.begin >= window.heal
    };
    let first = requests.iter().filter(answered).map(|r| r.end).min();
    let took = first.map(|end| end.saturating_sub(window.heal));
    let name = window.fault.name();
    match took {
        Some(took) if took <= grace => {
            let longest = verdict.again.entry(name).or_default();
            *longest = (*longest).max(took.as_millis());
        }
        _ => verdict.violations.push(format!(
            "{vip} was not served again within {:.1} s after {name}, which was over at {:.3} s",
            grace.as_secs_f64(),
            window.heal.as_secs_f64()
        )),
    }
}

/// A history without requests would show nothing.
fn silent(
    verdict: &mut Verdict,
    requests: &[Request],
    vip: &str,
    length: Duration,
    grace: Duration,
) {
    const LONGEST: Duration = Duration::from_secs(10);
    let mut ends: Vec<Duration> = requests
        .iter()
        .filter(|request| request.vip == vip)
        .map(|request| request.end)
        .collect();
    ends.extend([Duration::ZERO, length]);
    ends.sort_unstable();
    for pair in ends.windows(2) {
        if pair[1] - pair[0] > LONGEST + grace {
            verdict.violations.push(format!(
                "no request to {vip} ended between {:.1} s and {:.1} s",
                pair[0].as_secs_f64(),
                pair[1].as_secs_f64()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(2);

    fn request(begin: u64, outcome: Outcome) -> Request {
        Request {
            vip: "a",
            begin: Duration::from_millis(begin),
            end: Duration::from_millis(begin + 100),
            outcome,
            doing: "connecting",
        }
    }

    fn answered(begin: u64) -> Request {
        request(begin, Outcome::Answered("one"))
    }

    fn window(fault: Fault) -> Window {
        Window {
            fault,
            begin: Duration::from_secs(1),
            heal: Duration::from_secs(2),
        }
    }

    fn judged(requests: &[Request], fault: Fault) -> Verdict {
        judge(requests, &[window(fault)], Duration::from_secs(5), GRACE)
    }

    #[test]
    fn failures_are_explained_by_a_fault_that_may_fail_requests_alone() {
        let requests = [
            answered(0),
            request(950, Outcome::TimedOut),
            request(3_900, Outcome::Reset),
            answered(3_000),
        ];
        let good = judged(&requests, Fault::Flap);
        assert_eq!(good.violations, [] as [String; 0]);
        assert_eq!(good.explained, [("flap", 2)].into());
        assert_eq!(good.again, [("flap", 1_100)].into());
        assert_eq!(
            good.tally,
            [("answered", 2), ("reset", 1), ("timed out", 1)].into()
        );
        assert_eq!(judged(&requests, Fault::Restart).violations.len(), 2);
    }

    #[test]
    fn a_failure_outside_of_a_fault_is_a_violation_that_names_it() {
        for begin in [800, 4_100] {
            let requests = [answered(2_000), request(begin, Outcome::Refused)];
            let verdict = judged(&requests, Fault::Flap);
            let end = begin + 100;
            assert_eq!(
                verdict.violations,
                [format!(
                    "a request to a from {begin_s} s to {end_s} s was refused while connecting, which no fault explains",
                    begin_s = format_args!("{}.{:03}", begin / 1000, begin % 1000),
                    end_s = format_args!("{}.{:03}", end / 1000, end % 1000),
                )]
            );
        }
    }

    #[test]
    fn a_wrong_answer_is_never_explained() {
        let wrong = Outcome::Wrong("hello from b".to_owned());
        let verdict = judged(&[answered(2_000), request(1_500, wrong)], Fault::Flap);
        assert_eq!(verdict.violations.len(), 1);
        assert!(verdict.violations[0].contains("wrong (hello from b)"));
    }

    #[test]
    fn what_is_not_served_in_time_after_a_fault_is_told() {
        let verdict = judged(&[answered(0), answered(4_000)], Fault::Memory);
        assert_eq!(
            verdict.violations,
            ["a was not served again within 2.0 s after memory, which was over at 2.000 s"]
        );
    }

    #[test]
    fn a_machine_that_had_no_time_explains_what_failed_meanwhile_alone() {
        let stall = |begin: u64, heal: u64| Window {
            fault: Fault::Stall,
            begin: Duration::from_millis(begin),
            heal: Duration::from_millis(heal),
        };
        let requests = [
            answered(0),
            request(1_000, Outcome::TimedOut),
            answered(4_500),
        ];
        let length = Duration::from_secs(5);
        let windows = [window(Fault::Memory), stall(900, 1_500)];
        let verdict = judge(&requests, &windows, length, GRACE);
        assert_eq!(verdict.explained, [("stall", 1)].into());
        assert_eq!(
            verdict.violations,
            ["a was not served again within 2.0 s after memory, which was over at 2.000 s"]
        );
        let windows = [
            window(Fault::Flap),
            stall(2_100, 3_000),
            stall(3_500, 4_000),
        ];
        let verdict = judge(&requests, &windows, length, GRACE);
        assert_eq!(verdict.explained, [("flap", 1)].into());
        assert_eq!(verdict.again, [("flap", 2_600)].into());
        assert_eq!(
            verdict.violations,
            ["nobody had time for 1.4 s: that shows nothing"]
        );
    }

    #[test]
    fn silence_is_no_success() {
        let verdict = judge(&[], &[], Duration::from_secs(5), GRACE);
        assert_eq!(verdict.violations, ["nothing was asked"]);
        let verdict = judge(&[answered(0)], &[], Duration::from_secs(60), GRACE);
        assert_eq!(
            verdict.violations,
            ["no request to a ended between 0.1 s and 60.0 s"]
        );
    }
}
