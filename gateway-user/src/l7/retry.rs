//! Which answers are tried again, and how long to wait before.
//!
//! Source: GEP-1731 (`codes`, `attempts`, `backoff`: "minimum"), Envoy's retry back-off where no `backoff` is given. Chance is
//! an argument.

use std::time::Duration;

use crate::snapshot::Retry;

/// Envoy's base interval, ms.
const BASE_MS: u64 = 25;
/// Envoy's longest interval: ten times its base, ms.
const LONGEST_MS: u64 = 10 * BASE_MS;
/// Longest wait, in multiples of a given `backoff`.
const LONGEST: u32 = 10;

/// Whether an answer with this status is tried again.
#[must_use]
pub fn retries_status(retry: &Retry, status: u16) -> bool {
    retry.codes.contains(&status)
}

/// How long to wait before a further try; `retry_number` counts from 1, `random` is any number.
///
/// With a `backoff`: at least that, twice as long with each try, up to a quarter more by chance, at most ten times as long.
/// Without: by chance below 25 ms, 50 ms, 100 ms and so on, up to 250 ms.
#[must_use]
pub fn backoff(retry: &Retry, retry_number: u32, random: u64) -> Duration {
    let doublings = retry_number.saturating_sub(1);
    let Some(base) = retry.backoff else {
        let factor = 1_u64.checked_shl(doublings).unwrap_or(u64::MAX);
        let longest = BASE_MS.saturating_mul(factor).min(LONGEST_MS);
        return share(Duration::from_millis(longest), random);
    };
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    let least = base.saturating_mul(factor);
    let jittered = least.saturating_add(share(least / 4, random));
    jittered.min(base.saturating_mul(LONGEST))
}

/// The part of `span` that `random` picks: all of them equally likely, never the whole.
fn share(span: Duration, random: u64) -> Duration {
    let nanos = (span.as_nanos().min(u128::from(u64::MAX)) * u128::from(random)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn retry(backoff: Option<Duration>) -> Retry {
        Retry {
            codes: vec![500, 503],
            attempts: 3,
            backoff,
        }
    }

    #[test]
    fn only_listed_codes_are_tried_again() {
        let got =
            [200, 404, 499, 500, 501, 503, 504].map(|code| retries_status(&retry(None), code));
        assert_eq!(got, [false, false, false, true, false, true, false]);
    }

    #[test]
    fn given_backoffs_double_up_to_ten_times() {
        let ms = Duration::from_millis;
        for (number, least, most) in [
            (0, 100, 125),
            (1, 100, 125),
            (2, 200, 250),
            (3, 400, 500),
            (4, 800, 1000),
            (5, 1000, 1000),
            (33, 1000, 1000),
            (u32::MAX, 1000, 1000),
        ] {
            let wait = |random| backoff(&retry(Some(ms(100))), number, random);
            assert_eq!(wait(0), ms(least), "{number}");
            let longest = wait(u64::MAX);
            assert!(
                longest <= ms(most) && ms(most) - longest <= Duration::from_nanos(1),
                "{number}: {longest:?}"
            );
        }
        let extremes = retry(Some(Duration::MAX));
        assert_eq!(backoff(&extremes, 9, u64::MAX), Duration::MAX);
        assert_eq!(backoff(&retry(Some(Duration::ZERO)), 9, 7), Duration::ZERO);
    }

    #[test]
    fn without_one_the_wait_is_envoys() {
        let half = 1 << 63;
        let micros = [1, 2, 3, 4, 5, 6, 64, 65, u32::MAX]
            .map(|number| backoff(&retry(None), number, half).as_micros());
        let longest = 125_000;
        assert_eq!(
            micros,
            [
                12_500, 25_000, 50_000, 100_000, longest, longest, longest, longest, longest
            ]
        );
        assert_eq!(backoff(&retry(None), 1, 0), Duration::ZERO);
        assert!(backoff(&retry(None), 1, u64::MAX) < Duration::from_millis(25));
    }

    proptest! {
        #[test]
        fn waits_stay_in_their_bounds(nanos in any::<u64>(), number in any::<u32>(), random in any::<u64>()) {
            let base = Duration::from_nanos(nanos);
            let wait = backoff(&retry(Some(base)), number, random);
            prop_assert!(base <= wait && wait <= base * 10);
            prop_assert!(backoff(&retry(None), number, random) < Duration::from_millis(250));
        }
    }
}
