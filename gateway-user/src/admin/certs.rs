//! Certificates of listeners at a moment: which are there, how long they are valid, which Secrets are bad.
//!
//! Whatever is served at the moment of asking counts, so time comes in from outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::snapshot::tls::hex;
use crate::snapshot::{Certificate, ObjectKey, Snapshot};

const DAY: i64 = 86_400;

/// A certificate that expires within so many seconds is told: seven days.
const SOON: i64 = 7 * DAY;

/// How a certificate is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Valid for more than seven days.
    Valid,
    /// Its time has not begun.
    NotYetValid,
    /// Valid for seven days or less.
    ExpiresSoon,
    /// Its time is over.
    Expired,
    /// The Secret is there but holds none that can be used.
    Broken,
}

/// One certificate of one listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The Gateway.
    pub gateway: ObjectKey,
    /// Name of the listener.
    pub listener: Arc<str>,
    /// Secret that it comes from.
    pub secret: ObjectKey,
    /// DNS names that it is for.
    pub names: Vec<Arc<str>>,
    /// First second in which it is valid (Unix time); none if it is broken, as below.
    pub not_before: Option<i64>,
    /// Last second in which it is valid (Unix time).
    pub not_after: Option<i64>,
    /// Whole days until then; negative after it.
    pub days_left: Option<i64>,
    /// SHA-256 of the certificate in hexadecimal digits.
    pub sha256: Option<String>,
    /// How it is doing.
    pub state: State,
}

/// Certificates of all listeners at the time `now` (Unix time), in the order of Gateway, listener and Secret.
#[must_use]
pub fn list(snapshot: &Snapshot, now: i64) -> Vec<Listed> {
    let mut listed = BTreeMap::new();
    let listeners = snapshot.binds.values().flat_map(|bind| &bind.listeners);
    for listener in listeners {
        let Some(tls) = &listener.tls else { continue };
        let mut add = |secret: &ObjectKey, of: Option<&Certificate>| {
            let key = (&listener.gateway, &listener.name, secret.clone());
            // A Gateway's addresses have the same listeners.
            listed.entry(key).or_insert_with(|| Listed {
                gateway: listener.gateway.clone(),
                listener: Arc::clone(&listener.name),
                secret: secret.clone(),
                names: of.map_or_else(Vec::new, |c| c.names.clone()),
                not_before: of.map(|c| c.not_before),
                not_after: of.map(|c| c.not_after),
                days_left: of.map(|c| c.not_after.saturating_sub(now).div_euclid(DAY)),
                sha256: of.map(|c| hex(&c.fingerprint())),
                state: of.map_or(State::Broken, |c| state(c.not_before, c.not_after, now)),
            });
        };
        for certificate in &tls.certificates {
            add(&certificate.secret, Some(certificate));
        }
        for secret in &tls.broken {
            add(secret, None);
        }
    }
    listed.into_values().collect()
}

fn state(not_before: i64, not_after: i64, now: i64) -> State {
    if now > not_after {
        State::Expired
    } else if now < not_before {
        State::NotYetValid
    } else if not_after.saturating_sub(now) <= SOON {
        State::ExpiresSoon
    } else {
        State::Valid
    }
}

/// The time of this machine (Unix time).
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::allocate::{Allocations, allocate};
    use crate::translate::{Context, Inputs, Object, translate};

    /// One Gateway on two addresses: a listener with a certificate and a bad Secret, and one in clear text.
    pub(in crate::admin) fn snapshot() -> Snapshot {
        let fixture = |name: &str| {
            let path = format!("{}/tests/certificates/{name}", env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(path).expect(name)
        };
        let mut inputs = Inputs::default();
        for object in [
            serde_json::json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
                "metadata": {"name": "c"}, "spec": {"controllerName": "forebay.dev/gateway-controller"}}),
            serde_json::json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "g"},
                "spec": {"gatewayClassName": "c", "addresses": [{"value": "192.0.2.1"}, {"value": "192.0.2.2"}],
                    "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"},
                        {"name": "https", "port": 443, "protocol": "HTTPS",
                            "tls": {"certificateRefs": [{"name": "p"}, {"name": "bad"}]}}]}}),
            serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "p"}, "stringData":
                {"tls.crt": fixture("p256.crt"), "tls.key": fixture("p256.sec1.key")}}),
            serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bad"}}),
        ] {
            inputs.insert(Object::parse(&object).expect("fine").expect("known"));
        }
        let allocations = allocate(&inputs, false, &Allocations::default());
        let context = Context {
            on_cluster: false,
            allocations: &allocations,
            zone: None,
        };
        translate(&inputs, &context).snapshot
    }

    #[test]
    fn each_certificate_is_listed_once_for_each_listener() {
        let snapshot = snapshot();
        let found = list(&snapshot, 0);
        let [bad, good] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((&*good.listener, good.state), ("https", State::NotYetValid));
        assert_eq!(good.secret.to_string(), "default/p");
        assert_eq!(
            (bad.state, bad.days_left, &bad.sha256),
            (State::Broken, None, &None)
        );
        let end = good.not_after.expect("it has an end");
        for (now, days, state) in [
            (end + 1, -1, State::Expired),
            (end, 0, State::ExpiresSoon),
            (end - DAY, 1, State::ExpiresSoon),
            (end - 7 * DAY, 7, State::ExpiresSoon),
            (end - 7 * DAY - 1, 7, State::Valid),
            (end - 8 * DAY, 8, State::Valid),
        ] {
            let found = &list(&snapshot, now)[1];
            assert_eq!((found.days_left, found.state), (Some(days), state), "{now}");
        }
    }
}
