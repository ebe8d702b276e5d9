//! The two ways in which objects spell durations.

use std::time::Duration;

/// Reads a Gateway API duration (GEP-2257): one to four of up to five digits and `h`, `m`, `s` or `ms`.
pub(crate) fn gateway_api(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > 5 {
            return None;
        }
        let (number, after) = rest.split_at(digits);
        let (unit, after) = unit(after)?;
        let number: u32 = number.parse().ok()?;
        if unit < Duration::from_millis(1) {
            return None;
        }
        total += unit * number;
        rest = after;
        if rest.is_empty() {
            return Some(total);
        }
    }
    None
}

/// Longest duration of Go, and of Istio with it: some 292 years. The clock cannot be put off by much more.
const LONGEST_OF_GO: Duration = Duration::from_nanos(i64::MAX.unsigned_abs());

/// Reads a duration as DestinationRules spell it (Go's form): `30s`, `1.5s`, `1h30m`, `100ms`.
pub(crate) fn go(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() || text.is_empty() {
        let length = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        let (number, after) = rest.split_at(length);
        let number: f64 = number.parse().ok().filter(|_| length > 0)?;
        let (unit, after) = unit(after)?;
        let part = Duration::try_from_secs_f64(unit.as_secs_f64() * number).ok()?;
        total = total
            .checked_add(part)
            .filter(|total| *total <= LONGEST_OF_GO)?;
        rest = after;
    }
    Some(total)
}

fn unit(text: &str) -> Option<(Duration, &str)> {
    [
        ("ms", Duration::from_millis(1)),
        ("us", Duration::from_micros(1)),
        ("µs", Duration::from_micros(1)),
        ("ns", Duration::from_nanos(1)),
        ("h", Duration::from_secs(3600)),
        ("m", Duration::from_secs(60)),
        ("s", Duration::from_secs(1)),
    ]
    .into_iter()
    .find_map(|(name, unit)| text.strip_prefix(name).map(|rest| (unit, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_api_durations() {
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(gateway_api("0s"), ms(0));
        assert_eq!(gateway_api("1h30m"), ms(5_400_000));
        assert_eq!(gateway_api("10s500ms"), ms(10_500));
        for bad in [
            "",
            "1",
            "s",
            "1.5s",
            "123456s",
            "1s1s1s1s1s",
            "-1s",
            "1us",
            "1s ",
        ] {
            assert_eq!(gateway_api(bad), None, "{bad}");
        }
    }

    #[test]
    fn go_durations() {
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(go("30s"), ms(30_000));
        assert_eq!(go("1.5s"), ms(1_500));
        assert_eq!(go("1h1m"), ms(3_660_000));
        assert_eq!(go("500us"), Some(Duration::from_micros(500)));
        assert_eq!(go("2562047h"), Some(Duration::from_secs(3_600 * 2_562_047)));
        for bad in [
            "",
            "1",
            "s",
            "-1s",
            "1..5s",
            "1d",
            "2562048h",
            "1281024h1281024h",
            "5000000000000000h",
            "99999999999999999999h",
        ] {
            assert_eq!(go(bad), None, "{bad}");
        }
    }
}
