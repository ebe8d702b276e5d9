//! Tests of outlier detection with a clock that stands still.

use super::*;

const S: Duration = Duration::from_secs(1);

struct Fixture {
    outlier: Outlier<u8>,
    counters: Vec<Counters>,
    thresholds: Thresholds,
    start: Instant,
}

impl Fixture {
    fn new(hosts: u8, policy: &OutlierDetection) -> Self {
        let start = Instant::now();
        let mut outlier = Outlier::new();
        outlier.configure(start, Some(policy), 0..hosts);
        let thresholds = Thresholds::default();
        thresholds.set(Some(policy));
        Self {
            outlier,
            counters: (0..hosts).map(|_| Counters::default()).collect(),
            thresholds,
            start,
        }
    }

    fn result(&mut self, at: u64, host: u8, outcome: Outcome) -> Verdict {
        self.outlier.on_result(
            self.start + S * u32::try_from(at).unwrap(),
            &host,
            outcome,
            &self.counters[usize::from(host)],
            &self.thresholds,
        )
    }

    fn eject(&mut self, at: u64, host: u8) -> Verdict {
        (0..4).for_each(|_| {
            assert_eq!(
                self.result(at, host, Outcome::Status(500)),
                Verdict::Ignored
            );
        });
        self.result(at, host, Outcome::Status(500))
    }

    fn sweep(&mut self, at: u64) -> Vec<u8> {
        let counters = &self.counters;
        self.outlier
            .handle_timeout(self.start + S * u32::try_from(at).unwrap(), |k| {
                counters.get(usize::from(*k))
            })
    }
}

fn tutorial() -> OutlierDetection {
    OutlierDetection {
        interval: 30 * S,
        base_ejection: 30 * S,
        max_ejection_percent: 50,
        ..OutlierDetection::default()
    }
}

#[test]
fn exactly_the_fifth_consecutive_error_ejects() {
    let mut f = Fixture::new(3, &tutorial());
    for _ in 0..4 {
        assert_eq!(f.result(0, 1, Outcome::Status(500)), Verdict::Ignored);
    }
    assert_eq!(f.result(0, 1, Outcome::Status(200)), Verdict::Ignored);
    assert_eq!(f.eject(0, 1), Verdict::Ejected);
    assert!(f.outlier.is_ejected(&1) && !f.outlier.is_ejected(&0));
}

#[test]
fn statuses_below_500_are_no_errors() {
    let mut f = Fixture::new(3, &tutorial());
    for status in [400, 404, 429, 499] {
        for _ in 0..10 {
            assert_eq!(f.result(0, 0, Outcome::Status(status)), Verdict::Ignored);
        }
    }
}

#[test]
fn the_cap_counts_the_next_one_too() {
    // Hosts, percentage, how many can be out: 100 * (n + 1) / total <= percentage (measured on Envoy 1.40).
    for (hosts, percent, most) in [
        (3, 10, 0),
        (3, 50, 1),
        (2, 50, 1),
        (1, 50, 0),
        (10, 10, 1),
        (9, 10, 0),
        (3, 100, 3),
        (1, 100, 1),
    ] {
        let policy = OutlierDetection {
            max_ejection_percent: percent,
            ..tutorial()
        };
        let mut f = Fixture::new(hosts, &policy);
        let out = (0..hosts)
            .filter(|host| f.eject(0, *host) == Verdict::Ejected)
            .count();
        assert_eq!(out, most, "{hosts} hosts at {percent} %");
    }
}

#[test]
fn a_suppressed_detection_starts_counting_again() {
    let mut f = Fixture::new(
        3,
        &OutlierDetection {
            max_ejection_percent: 10,
            ..tutorial()
        },
    );
    assert_eq!(f.eject(0, 0), Verdict::SuppressedByCap);
    assert_eq!(f.eject(0, 0), Verdict::SuppressedByCap);
}

#[test]
fn ejections_grow_and_decay() {
    let policy = OutlierDetection {
        interval: S,
        base_ejection: 2 * S,
        ..tutorial()
    };
    let mut f = Fixture::new(3, &policy);
    let mut at = 0;
    for length in [2, 4, 6, 8] {
        assert_eq!(f.eject(at, 0), Verdict::Ejected);
        for earlier in 1..length {
            assert_eq!(f.sweep(at + earlier), [0_u8; 0], "{length}");
        }
        at += length;
        assert_eq!(f.sweep(at), [0], "{length}");
    }
    // Three clean intervals take three steps back: 10 s would be next, 4 s is.
    for _ in 0..3 {
        at += 1;
        assert_eq!(f.sweep(at), [0_u8; 0]);
    }
    assert_eq!(f.eject(at, 0), Verdict::Ejected);
    assert_eq!(
        f.outlier.ejected_until(&0),
        Some(f.start + S * u32::try_from(at + 4).unwrap())
    );
}

#[test]
fn no_ejection_is_longer_than_300_seconds() {
    let policy = OutlierDetection {
        interval: S,
        base_ejection: 200 * S,
        ..tutorial()
    };
    let mut f = Fixture::new(3, &policy);
    let mut at = 0;
    for length in [200, 300, 300, 300] {
        assert_eq!(f.eject(at, 0), Verdict::Ejected);
        assert_eq!(f.sweep(at + length - 1), [0_u8; 0]);
        assert_eq!(f.sweep(at + length), [0]);
        at += length;
    }
}

#[test]
fn the_sweep_has_its_own_rhythm() {
    let mut f = Fixture::new(3, &tutorial());
    assert_eq!(f.outlier.poll_timeout(), Some(f.start + 30 * S));
    assert_eq!(f.eject(1, 0), Verdict::Ejected);
    // Out since second 1: 30 s are not over at the first sweep, so it is the second that brings it back.
    assert_eq!(f.sweep(30), [0_u8; 0]);
    assert_eq!(f.outlier.poll_timeout(), Some(f.start + 60 * S));
    assert_eq!(f.sweep(45), [0_u8; 0]);
    assert_eq!(f.sweep(60), [0]);
}

#[test]
fn returning_clears_all_counters() {
    let mut f = Fixture::new(3, &tutorial());
    assert_eq!(f.eject(0, 0), Verdict::Ejected);
    for _ in 0..4 {
        f.result(1, 0, Outcome::Status(500));
    }
    assert_eq!(f.sweep(30), [0]);
    assert_eq!(f.eject(31, 0), Verdict::Ejected, "five more, not one");
}

#[test]
fn late_results_of_an_ejected_endpoint_change_nothing() {
    let mut f = Fixture::new(3, &tutorial());
    assert_eq!(f.eject(0, 0), Verdict::Ejected);
    let until = f.outlier.ejected_until(&0);
    assert_eq!(f.eject(5, 0), Verdict::AlreadyEjected);
    assert_eq!(f.outlier.ejected_until(&0), until);
}

#[test]
fn local_failures_count_as_statuses_unless_split() {
    for outcome in [
        Outcome::ConnectFailure,
        Outcome::Timeout,
        Outcome::ProtocolError,
    ] {
        let mut f = Fixture::new(3, &tutorial());
        for _ in 0..4 {
            assert_eq!(f.result(0, 0, outcome), Verdict::Ignored);
        }
        assert_eq!(f.result(0, 0, outcome), Verdict::Ejected, "{outcome:?}");
    }
    let split = OutlierDetection {
        split_local_origin: true,
        consecutive_local: 2,
        ..tutorial()
    };
    let mut f = Fixture::new(3, &split);
    assert_eq!(f.result(0, 0, Outcome::Timeout), Verdict::Ignored);
    assert_eq!(f.result(0, 0, Outcome::Status(500)), Verdict::Ignored);
    assert_eq!(f.result(0, 0, Outcome::ConnectFailure), Verdict::Ignored);
    assert_eq!(f.result(0, 0, Outcome::ConnectFailure), Verdict::Ejected);
}

#[test]
fn gateway_errors_have_their_own_threshold() {
    let policy = OutlierDetection {
        consecutive_gateway: 2,
        ..tutorial()
    };
    let mut f = Fixture::new(3, &policy);
    assert_eq!(f.result(0, 0, Outcome::Status(503)), Verdict::Ignored);
    assert_eq!(f.result(0, 0, Outcome::Status(500)), Verdict::Ignored);
    assert_eq!(f.result(0, 0, Outcome::Status(502)), Verdict::Ignored);
    assert_eq!(f.result(0, 0, Outcome::Status(504)), Verdict::Ejected);
}

#[test]
fn panic_begins_below_the_health_threshold() {
    let policy = OutlierDetection {
        min_health_percent: 50,
        max_ejection_percent: 100,
        ..tutorial()
    };
    let mut f = Fixture::new(4, &policy);
    f.eject(0, 0);
    f.eject(0, 1);
    assert!(!f.outlier.is_panicking());
    f.eject(0, 2);
    assert!(f.outlier.is_panicking());
}

#[test]
fn state_outlives_a_new_list_and_dies_with_the_endpoint() {
    let mut f = Fixture::new(3, &tutorial());
    f.eject(0, 1);
    f.outlier.configure(f.start, Some(&tutorial()), [1, 7, 8]);
    assert!(f.outlier.is_ejected(&1));
    f.outlier.configure(f.start, Some(&tutorial()), [7, 8]);
    f.outlier.configure(f.start, Some(&tutorial()), [1, 7, 8]);
    assert!(!f.outlier.is_ejected(&1));
    f.eject(0, 1);
    f.outlier.configure(f.start, None, [1, 7, 8]);
    assert!(!f.outlier.is_ejected(&1));
    assert_eq!(f.outlier.poll_timeout(), None);
}
