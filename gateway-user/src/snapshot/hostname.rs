//! Hostnames of listeners and routes: exact names and `*.` wildcards, how they match, intersect and rank.
//!
//! Gateway API: a wildcard stands for one or more left-most labels; names compare without regard to case.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// A hostname in lower case without a trailing dot: `example.com` or `*.example.com`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hostname(Arc<str>);

impl Hostname {
    /// Takes a hostname as an object states it; `None` if it is neither a DNS name nor `*.` and one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let name = lower.strip_prefix("*.").unwrap_or(&lower);
        let labels_fine = name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        });
        let is_address = name.parse::<std::net::IpAddr>().is_ok();
        (labels_fine && lower.len() <= 253 && !is_address).then(|| Self(lower.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it begins with `*.`.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with("*.")
    }

    /// Whether `host` (lower case, no port) is one of the names that this one stands for.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self.0.strip_prefix('*') {
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => *host == *self.0,
        }
    }

    /// The names that both stand for: the more specific of the two, if they have any in common.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let covers = |wide: &Self, narrow: &Self| match wide.0.strip_prefix('*') {
            Some(suffix) => {
                narrow.0.trim_start_matches('*').len() >= suffix.len() && narrow.0.ends_with(suffix)
            }
            None => wide == narrow,
        };
        if covers(self, other) {
            Some(other.clone())
        } else if covers(other, self) {
            Some(self.clone())
        } else {
            None
        }
    }
}

impl Ord for Hostname {
    /// More specific first: exact before wildcard, then longer before shorter, then by text.
    fn cmp(&self, other: &Self) -> Ordering {
        self.is_wildcard()
            .cmp(&other.is_wildcard())
            .then(other.0.len().cmp(&self.0.len()))
            .then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Hostname {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Hostname {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Hostname {
        Hostname::parse(text).expect(text)
    }

    #[test]
    fn wildcard_needs_at_least_one_label() {
        let wild = host("*.a.com");
        assert!(wild.matches("x.a.com") && wild.matches("x.y.a.com"));
        assert!(!wild.matches("a.com") && !wild.matches(".a.com") && !wild.matches("xa.com"));
    }

    #[test]
    fn intersection_is_the_more_specific_name() {
        assert_eq!(
            host("*.a.com").intersect(&host("x.a.com")),
            Some(host("x.a.com"))
        );
        assert_eq!(
            host("*.a.com").intersect(&host("*.b.a.com")),
            Some(host("*.b.a.com"))
        );
        assert_eq!(host("*.a.com").intersect(&host("a.com")), None);
        assert_eq!(host("a.com").intersect(&host("b.com")), None);
    }

    #[test]
    fn exact_and_longer_come_first() {
        let mut names = vec![
            host("*.com"),
            host("*.a.com"),
            host("a.com"),
            host("b.a.com"),
        ];
        names.sort();
        assert_eq!(
            names,
            vec![
                host("b.a.com"),
                host("a.com"),
                host("*.a.com"),
                host("*.com")
            ]
        );
    }

    #[test]
    fn refuses_what_is_no_hostname() {
        for bad in [
            "", "*", "*.", "a..b", "-a.com", "a_b.com", "10.0.0.1", "a.*.com",
        ] {
            assert_eq!(Hostname::parse(bad), None, "{bad}");
        }
        assert_eq!(host("A.Com").as_str(), "a.com");
    }
}
