//! Makes the Secret of the keys that all nodes share, and replaces those of probes and session tickets in time.
//!
//! Invariants: the key of the flow hash is never replaced, nor is one that somebody else has put there and that cannot be
//! used. A new key is first put in the place of the previous one, where every node accepts it, and only changes places with
//! the one in use when every node has had time to read it: no node ever gets a probe or a ticket of a key it does not know.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use kube::core::ApiResource;
use kube::core::params::GetParams;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::access::{Access, Failure, Target, What, backoff, by_us, path};
use super::lease::Leadership;
use crate::file::keys::{self, HASH_SEED, ROTATED, random};

/// Age at which a key is replaced: twice the life of a session ticket.
const AGE: SignedDuration = SignedDuration::from_hours(24);
/// How long every node has to read a new key before it is used.
const SETTLE: SignedDuration = SignedDuration::from_mins(10);
/// Annotation: when the keys in use were put to use.
const USED_SINCE: &str = "forebay.dev/keys-used-since";
/// Annotation: when the next ones were put in the place of the previous ones. Not there: they are the previous ones.
const NEXT_SINCE: &str = "forebay.dev/keys-next-since";
/// Between two looks.
const PERIOD: Duration = Duration::from_secs(60);
/// After a failure.
const AGAIN: Duration = Duration::from_millis(500);

/// Looks after the Secret while this node leads.
pub(super) struct SharedKeys {
    access: Access,
    resource: ApiResource,
    said: Option<String>,
    failures: u32,
}

impl SharedKeys {
    pub(super) fn new(access: Access) -> Self {
        Self {
            access,
            resource: ApiResource::erase::<k8s_openapi::api::core::v1::Secret>(&()),
            said: None,
            failures: 0,
        }
    }

    /// Works until it is dropped.
    pub(super) async fn run(mut self, mut leadership: Leadership) {
        loop {
            leadership.becomes(true).await;
            let result = self.look().await;
            let wait = match result {
                Ok(()) => {
                    self.failures = 0;
                    self.said = None;
                    PERIOD
                }
                Err(failure) => {
                    self.say(&failure);
                    self.failures = self.failures.saturating_add(1);
                    backoff(AGAIN, PERIOD, self.failures - 1)
                }
            };
            tokio::time::sleep_until(Instant::now() + wait).await;
        }
    }

    fn say(&mut self, failure: &Failure) {
        let text = failure.to_string();
        // Of a missing rule it is said which.
        if *failure != Failure::Forbidden && self.said.as_ref() != Some(&text) {
            tracing::error!("Secret {}/{}: {text}", keys::NAMESPACE, keys::NAME);
            self.said = Some(text);
        }
    }

    async fn look(&self) -> Result<(), Failure> {
        let objects = path(&self.resource, keys::NAMESPACE);
        let get = objects.get(keys::NAME, &GetParams::default());
        let found: Result<Value, Failure> = self.access.call(self.target("get"), get).await;
        let (verb, request) = match found {
            Ok(mut secret) => match step(&mut secret, Timestamp::now())? {
                None => return Ok(()),
                Some(what) => {
                    tracing::info!("Secret {}/{}: {what}", keys::NAMESPACE, keys::NAME);
                    let bytes = bytes(&secret)?;
                    ("update", objects.replace(keys::NAME, &by_us(), bytes))
                }
            },
            Err(Failure::Gone) => {
                let mut secret = json!({
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "type": "Opaque",
                    "metadata": {"name": keys::NAME, "namespace": keys::NAMESPACE},
                });
                step(&mut secret, Timestamp::now())?;
                tracing::info!("Secret {}/{} is made", keys::NAMESPACE, keys::NAME);
                ("create", objects.create(&by_us(), bytes(&secret)?))
            }
            Err(failure) => return Err(failure),
        };
        match self.access.call::<Value>(self.target(verb), request).await {
            // Another one was faster; what it wrote is looked at next time.
            Ok(_) | Err(Failure::Conflict(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    fn target(&self, verb: &'static str) -> Target<'_> {
        Target {
            what: What::Secret,
            resource: &self.resource,
            part: "",
            namespace: keys::NAMESPACE,
            verb,
        }
    }
}

/// Brings the Secret to what it should be now; says what has changed, nothing if it is as it should be.
fn step(secret: &mut Value, now: Timestamp) -> Result<Option<&'static str>, Failure> {
    let data = map(&mut secret["data"])?;
    let wanted = std::iter::once(HASH_SEED).chain(ROTATED.map(|(current, _)| current));
    let mut missing = false;
    for name in wanted {
        match data.get(name) {
            Some(value) if !is_key(value) => {
                return Err(Failure::Invalid(format!(
                    "{name} is not 16 bytes in base64; give 16 random bytes, or remove it to have it made"
                )));
            }
            Some(_) => {}
            None => {
                data.insert(name.to_owned(), fresh()?);
                missing = true;
            }
        }
    }
    let dates = &mut secret["metadata"]["annotations"];
    let date = |dates: &Value, name: &str| {
        let text = dates[name].as_str()?;
        // One of the future is that of a wrong clock: it would stop everything until then.
        text.parse::<Timestamp>().ok().filter(|date| *date <= now)
    };
    let (used, next) = (date(dates, USED_SINCE), date(dates, NEXT_SINCE));
    let dates = map(dates)?;
    let Some(used) = used else {
        dates.insert(USED_SINCE.to_owned(), json!(now.to_string()));
        dates.remove(NEXT_SINCE);
        return Ok(Some("its keys count as new from now on"));
    };
    if let Some(next) = next {
        if now.duration_since(next) < SETTLE {
            return Ok(missing.then_some("keys that were missing are added"));
        }
        dates.remove(NEXT_SINCE);
        dates.insert(USED_SINCE.to_owned(), json!(now.to_string()));
        let data = map(&mut secret["data"])?;
        for (current, previous) in ROTATED {
            // Somebody may have taken the next one away again.
            let Some(next) = data.remove(previous).filter(is_key) else {
                continue;
            };
            if let Some(old) = data.insert(current.to_owned(), next) {
                data.insert(previous.to_owned(), old);
            }
        }
        return Ok(Some(
            "the next keys of probes and session tickets are in use",
        ));
    }
    if now.duration_since(used) >= AGE {
        dates.insert(NEXT_SINCE.to_owned(), json!(now.to_string()));
        let data = map(&mut secret["data"])?;
        for (_, previous) in ROTATED {
            data.insert(previous.to_owned(), fresh()?);
        }
        return Ok(Some("the next keys of probes and session tickets are told"));
    }
    Ok(missing.then_some("keys that were missing are added"))
}

/// An object that may be missing.
fn map(value: &mut Value) -> Result<&mut Map<String, Value>, Failure> {
    if value.is_null() {
        *value = json!(BTreeMap::<String, String>::new());
    }
    let wrong = || Failure::Invalid("it is not as Kubernetes has Secrets".to_owned());
    value.as_object_mut().ok_or_else(wrong)
}

fn is_key(value: &Value) -> bool {
    let decoded = value.as_str().and_then(|text| STANDARD.decode(text).ok());
    decoded.is_some_and(|bytes| bytes.len() == keys::LENGTH)
}

fn fresh() -> Result<Value, Failure> {
    let key = random().map_err(|error| {
        Failure::Unavailable(format!("the system gives no random bytes: {error}"))
    })?;
    Ok(json!(STANDARD.encode(key)))
}

fn bytes(secret: &Value) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(secret).map_err(|error| Failure::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn made() -> Value {
        let mut secret = json!({"metadata": {}});
        step(&mut secret, at("2026-01-01T00:00:00Z")).unwrap();
        secret
    }

    #[test]
    fn a_new_secret_has_all_that_is_needed_and_stays() {
        let mut secret = made();
        let before = secret.clone();
        assert_eq!(secret["data"].as_object().unwrap().len(), 3);
        assert!(secret["data"].as_object().unwrap().values().all(is_key));
        assert_eq!(step(&mut secret, at("2026-01-01T23:59:59Z")), Ok(None));
        assert_eq!(secret, before);
    }

    #[test]
    fn a_new_key_is_accepted_by_all_before_it_is_used_and_the_old_one_after() {
        let mut secret = made();
        let first = secret["data"].clone();
        let told = step(&mut secret, at("2026-01-02T00:00:00Z"));
        assert!(told.unwrap().is_some());
        let second = secret["data"].clone();
        for (current, previous) in ROTATED {
            assert_eq!(second[current], first[current]);
            assert!(is_key(&second[previous]) && second[previous] != first[current]);
        }
        assert_eq!(step(&mut secret, at("2026-01-02T00:09:59Z")), Ok(None));
        assert!(
            step(&mut secret, at("2026-01-02T00:10:00Z"))
                .unwrap()
                .is_some()
        );
        for (current, previous) in ROTATED {
            assert_eq!(secret["data"][current], second[previous]);
            assert_eq!(secret["data"][previous], first[current]);
        }
        assert_eq!(secret["data"][HASH_SEED], first[HASH_SEED]);
        // The next round counts from here.
        assert_eq!(step(&mut secret, at("2026-01-02T23:59:59Z")), Ok(None));
        assert!(
            step(&mut secret, at("2026-01-03T00:10:00Z"))
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn what_somebody_made_by_hand_is_completed_and_never_replaced() {
        let seed = STANDARD.encode([7; 16]);
        let mut secret = json!({"metadata": {}, "data": {HASH_SEED: seed}});
        assert!(
            step(&mut secret, at("2026-01-01T00:00:00Z"))
                .unwrap()
                .is_some()
        );
        assert_eq!(secret["data"][HASH_SEED], *seed);
        assert!(
            ROTATED
                .iter()
                .all(|(current, _)| is_key(&secret["data"][current]))
        );
        let mut bad = json!({"metadata": {}, "data": {HASH_SEED: "AAEC"}});
        let before = bad.clone();
        let refused = step(&mut bad, at("2026-01-01T00:00:00Z")).unwrap_err();
        assert!(refused.to_string().starts_with("hash-seed is not 16 bytes"));
        assert_eq!(bad, before);
    }

    #[test]
    fn a_date_of_a_wrong_clock_does_not_stop_it() {
        let mut secret = made();
        secret["metadata"]["annotations"][USED_SINCE] = json!("2099-01-01T00:00:00Z");
        assert!(
            step(&mut secret, at("2026-01-02T00:00:00Z"))
                .unwrap()
                .is_some()
        );
        let used = &secret["metadata"]["annotations"][USED_SINCE];
        assert_eq!(used, "2026-01-02T00:00:00Z");
    }
}
