//! When certificates expire.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::{as_rows, gauge};
use crate::admin::certs::Listed;

/// Certificates that have a series of their own; of the others the one that expires first is told under `other`.
const SERIES: usize = 256;

/// Gateway, listener, Secret and the second at which the certificate expires.
type Expiry = ([String; 3], u64);

/// The series of all certificates.
pub(super) fn certificates(e: &mut DescriptorEncoder<'_>, listed: &[Listed]) -> fmt::Result {
    let rows = expiries(listed, SERIES);
    let rows: Vec<_> = rows
        .iter()
        .map(|([gateway, listener, secret], at)| {
            let labels = [
                ("gateway", gateway.as_str()),
                ("listener", listener.as_str()),
                ("secret", secret.as_str()),
            ];
            (labels, *at)
        })
        .collect();
    let help = "Unix time at which a listener's certificate expires.";
    gauge(
        e,
        "forebay_certificate_expiry_seconds",
        help,
        &as_rows(&rows),
    )
}

/// The first `most` certificates, and of those beyond the first to expire. A date before 1970 is 0.
fn expiries(listed: &[Listed], most: usize) -> Vec<Expiry> {
    let all = listed.iter().filter_map(|one| {
        let labels = [
            one.gateway.to_string(),
            one.listener.to_string(),
            one.secret.to_string(),
        ];
        Some((labels, u64::try_from(one.not_after?).unwrap_or(0)))
    });
    let mut rows: Vec<Expiry> = all.collect();
    let beyond = rows.split_off(most.min(rows.len()));
    let first = beyond.into_iter().map(|(_, at)| at).min();
    rows.extend(first.map(|at| (["other"; 3].map(str::to_owned), at)));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::certs::{self, State};

    #[test]
    fn those_beyond_the_bound_tell_the_first_to_expire() {
        let found = certs::list(&certs::tests::snapshot(), 0);
        let good = found.iter().find(|one| one.state != State::Broken);
        let good = good.expect("one is good");
        let at = |name: &str, not_after| Listed {
            secret: crate::snapshot::ObjectKey::new("default", name),
            not_after,
            ..good.clone()
        };
        let listed = [
            at("a", Some(30)),
            at("broken", None),
            at("b", Some(20)),
            at("c", Some(-5)),
            at("d", Some(10)),
        ];
        let named = |most| -> Vec<String> {
            let rows = expiries(&listed, most).into_iter();
            rows.map(|(labels, at)| format!("{} {at}", labels.join(" ")))
                .collect()
        };
        assert_eq!(
            named(4),
            [
                "default/g https default/a 30",
                "default/g https default/b 20",
                "default/g https default/c 0",
                "default/g https default/d 10"
            ]
        );
        assert_eq!(
            named(1),
            ["default/g https default/a 30", "other other other 0"]
        );
    }
}
