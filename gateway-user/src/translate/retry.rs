//! `retry` of an HTTPRoute rule (GEP-1731).

use super::duration;
use super::objects::RetrySpec;
use crate::snapshot::Retry;

/// Tries beyond the first where `attempts` is not given: Envoy's `num_retries`.
const ATTEMPTS: u32 = 1;

/// Compiles `retry`, or says in one sentence why it cannot be carried out.
pub(super) fn compile(spec: &RetrySpec) -> Result<Retry, String> {
    if let Some(field) = spec.unread.keys().next() {
        return Err(format!("field retry.{field} is not supported"));
    }
    if let Some(code) = spec.codes.iter().find(|code| !(400..600).contains(*code)) {
        return Err(format!("retry.codes has {code}, which is not 400 to 599"));
    }
    let backoff = match &spec.backoff {
        None => None,
        Some(text) => Some(
            duration::gateway_api(text)
                .ok_or_else(|| format!("retry.backoff {text:?} is not a duration such as 100ms"))?,
        ),
    };
    let mut codes = spec.codes.clone();
    codes.sort_unstable();
    codes.dedup();
    Ok(Retry {
        codes,
        attempts: spec.attempts.unwrap_or(ATTEMPTS),
        // No wait at all would let the tries of one request follow each other as fast as they fail.
        backoff: backoff.filter(|backoff| !backoff.is_zero()),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> Result<Retry, String> {
        compile(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn codes_are_sorted_and_what_is_missing_has_a_default() {
        let retry = read(json!({"codes": [503, 500, 503], "attempts": 3, "backoff": "1s100ms"}));
        assert_eq!(
            retry.unwrap(),
            Retry {
                codes: vec![500, 503],
                attempts: 3,
                backoff: Some(Duration::from_millis(1100)),
            }
        );
        let least = Retry {
            codes: Vec::new(),
            attempts: 1,
            backoff: None,
        };
        assert_eq!(read(json!({})).unwrap(), least);
        assert_eq!(read(json!({"backoff": "0s"})).unwrap(), least);
        assert_eq!(read(json!({"attempts": 0})).unwrap().attempts, 0);
    }

    #[test]
    fn what_cannot_be_tried_again_is_named() {
        for (spec, want) in [
            (
                json!({"codes": [500, 399]}),
                "retry.codes has 399, which is not 400 to 599",
            ),
            (
                json!({"codes": [600]}),
                "retry.codes has 600, which is not 400 to 599",
            ),
            (
                json!({"backoff": "1.5s"}),
                "retry.backoff \"1.5s\" is not a duration such as 100ms",
            ),
            (json!({"budget": 1}), "field retry.budget is not supported"),
        ] {
            assert_eq!(read(spec).unwrap_err(), want);
        }
    }
}
