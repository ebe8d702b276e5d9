//! Hostnames that routes of one kind have on a listener: which of them have a name in common with another.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::snapshot::{Hostname, ObjectKey};

/// A set of hostnames, each with the routes that have it in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// Any host.
    any: Vec<ObjectKey>,
    /// By labels from the right, each with a dot behind it: `com.example.a.`, and `com.example.*` for a wildcard. So
    /// all names below one stand together.
    named: BTreeMap<String, Vec<ObjectKey>>,
}

impl Hosts {
    pub(super) fn insert(&mut self, hostname: Option<&Hostname>, route: &ObjectKey) {
        match hostname {
            None => self.any.push(route.clone()),
            Some(hostname) => {
                let of_name = self.named.entry(key(hostname)).or_default();
                of_name.push(route.clone());
            }
        }
    }

    /// Takes a route from a hostname that it was put in for.
    pub(super) fn remove(&mut self, hostname: Option<&Hostname>, route: &ObjectKey) {
        let Some(hostname) = hostname else {
            return self.any.retain(|other| other != route);
        };
        let key = key(hostname);
        if let Some(of_name) = self.named.get_mut(&key) {
            of_name.retain(|other| other != route);
            if of_name.is_empty() {
                self.named.remove(&key);
            }
        }
    }

    /// A route of the set that has a name in common with this hostname.
    pub(super) fn sharing(&self, hostname: Option<&Hostname>) -> Option<&ObjectKey> {
        if let Some(route) = self.any.first() {
            return Some(route);
        }
        let Some(hostname) = hostname else {
            return self.named.values().next()?.first();
        };
        let (own, wildcard) = reversed(hostname);
        let ends = own.match_indices('.').map(|(at, _)| at + 1);
        let mut wider = ends
            .filter(|end| *end < own.len())
            .filter_map(|end| self.named.get(&format!("{}*", &own[..end])));
        let found = wider.next().or_else(|| {
            if !wildcard {
                return self.named.get(&own);
            }
            // Everything below: the name itself is none of the wildcard's.
            let from = Bound::Excluded(own.as_str());
            let mut below = self.named.range::<str, _>((from, Bound::Unbounded));
            let (key, route) = below.next()?;
            key.starts_with(&own).then_some(route)
        });
        found?.first()
    }
}

fn key(hostname: &Hostname) -> String {
    let (below, wildcard) = reversed(hostname);
    if wildcard { format!("{below}*") } else { below }
}

/// The labels from the right, without the asterisk of a wildcard.
fn reversed(hostname: &Hostname) -> (String, bool) {
    let text = hostname.as_str();
    let name = text.strip_prefix("*.").unwrap_or(text);
    let labels = name.rsplit('.').flat_map(|label| [label, "."]);
    (labels.collect(), hostname.is_wildcard())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_the_intersection_of_each_two() {
        let texts = [
            "",
            "com",
            "a.com",
            "b.a.com",
            "c.b.a.com",
            "a-b.com",
            "aa.com",
            "a.org",
            "*.com",
            "*.a.com",
            "*.b.a.com",
            "*.aa.com",
            "*.org",
            "*.x.org",
        ];
        let all = texts.map(Hostname::parse);
        let key = ObjectKey::new("n", "r");
        for first in &all {
            for second in &all {
                let mut hosts = Hosts::default();
                hosts.insert(first.as_ref(), &key);
                for asked in &all {
                    let common = |own: &Option<Hostname>| match (own, asked) {
                        (Some(own), Some(asked)) => own.intersect(asked).is_some(),
                        _ => true,
                    };
                    assert_eq!(
                        hosts.sharing(asked.as_ref()).is_some(),
                        common(first),
                        "{first:?} {asked:?}"
                    );
                }
                hosts.insert(second.as_ref(), &key);
                for asked in &all {
                    let common = [first, second].into_iter().any(|own| match (own, asked) {
                        (Some(own), Some(asked)) => own.intersect(asked).is_some(),
                        _ => true,
                    });
                    let got = hosts.sharing(asked.as_ref()).is_some();
                    assert_eq!(got, common, "{first:?} {second:?} {asked:?}");
                }
            }
        }
    }

    #[test]
    fn the_first_route_of_a_hostname_is_told() {
        let (first, second) = (ObjectKey::new("n", "1"), ObjectKey::new("n", "2"));
        let mut hosts = Hosts::default();
        hosts.insert(None, &first);
        hosts.insert(None, &second);
        assert_eq!(hosts.sharing(None), Some(&first));
        hosts.remove(None, &first);
        assert_eq!(hosts.sharing(None), Some(&second));
        hosts.remove(None, &second);
        let name = Hostname::parse("a.com").expect("valid");
        hosts.insert(Some(&name), &first);
        hosts.remove(Some(&name), &first);
        assert_eq!(hosts.sharing(None), None);
    }
}
