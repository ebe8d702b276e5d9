//! Certificates of listeners as text.

use serde_json::Value;

use super::{items, join, text};
use crate::cli::table::Table;

/// Names of one certificate that are shown.
const NAMES: usize = 4;

/// `forebay certs`.
#[must_use]
pub fn certs(answer: &Value) -> String {
    let mut table = Table::new(
        "",
        &[
            "GATEWAY", "LISTENER", "SECRET", "NAMES", "DAYS", "STATE", "SHA-256",
        ],
    );
    for one in items(&answer["certificates"]) {
        let [gateway, listener, secret, days, sha256] =
            ["gateway", "listener", "secret", "days_left", "sha256"].map(|cell| text(&one[cell]));
        table.row([
            gateway,
            listener,
            secret,
            names(&one["names"]),
            days,
            state(one),
            sha256,
        ]);
    }
    let shown = table.to_string();
    if shown.is_empty() {
        return "no listener has a certificate\n".into();
    }
    shown
}

/// The part of `forebay status`: those that are not well.
pub(super) fn warnings(certificates: &Value) -> String {
    let mut table = Table::new(
        "Certificates",
        &["GATEWAY", "LISTENER", "SECRET", "DAYS", "STATE"],
    );
    for one in items(certificates) {
        let [gateway, listener, secret, days] =
            ["gateway", "listener", "secret", "days_left"].map(|cell| text(&one[cell]));
        table.row([gateway, listener, secret, days, state(one)]);
    }
    table.to_string()
}

fn names(names: &Value) -> String {
    let names = items(names);
    let shown = join(names.iter().take(NAMES).map(text));
    match names.len().saturating_sub(NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn state(one: &Value) -> String {
    text(&one["state"]).replace('_', " ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_is_a_dash_and_many_names_are_cut() {
        assert_eq!(
            certs(&json!({"certificates": []})),
            "no listener has a certificate\n"
        );
        let answer = json!({"well": false, "certificates": [
            {"gateway": "a/g", "listener": "https", "secret": "a/s", "names": ["a", "b", "c", "d", "e"],
                "days_left": 6, "sha256": "00ff", "state": "expires_soon"},
            {"gateway": "a/g", "listener": "https", "secret": "a/t", "names": [],
                "days_left": null, "sha256": null, "state": "broken"}]});
        assert_eq!(
            certs(&answer),
            "  GATEWAY  LISTENER  SECRET  NAMES               DAYS  STATE         SHA-256\n  \
             a/g      https     a/s     a,b,c,d and 1 more  6     expires soon  00ff\n  \
             a/g      https     a/t     -                   -     broken        -\n\n"
        );
        assert_eq!(
            warnings(&answer["certificates"]),
            "Certificates\n  GATEWAY  LISTENER  SECRET  DAYS  STATE\n  \
             a/g      https     a/s     6     expires soon\n  \
             a/g      https     a/t     -     broken\n\n"
        );
        assert_eq!(warnings(&json!([])), "");
    }
}
