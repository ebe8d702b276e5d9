//! Hostnames that routes of one kind have on a listener: which of them have a name in common with another.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::snapshot::{Hostname, ObjectKey};

/// A set of hostnames, each with the first route that has it.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// Any host.
    any: Option<ObjectKey>,
    /// By labels from the right, each with a dot behind it: `com.example.a.`, and `com.example.*` for a wildcard. So
    /// all names below one stand together.
    named: BTreeMap<String, ObjectKey>,
}

impl Hosts {
    pub(super) fn insert(&mut self, hostname: Option<&Hostname>, route: &ObjectKey) {
        match hostname {
            None => drop(self.any.get_or_insert_with(|| route.clone())),
            Some(hostname) => {
                let (below, wildcard) = reversed(hostname);
                let key = if wildcard { format!("{below}*") } else { below };
                self.named.entry(key).or_insert_with(|| route.clone());
            }
        }
    }

    /// A route of the set that has a name in common with this hostname.
    pub(super) fn sharing(&self, hostname: Option<&Hostname>) -> Option<&ObjectKey> {
        if self.any.is_some() {
            return self.any.as_ref();
        }
        let Some(hostname) = hostname else {
            return self.named.values().next();
        };
        let (own, wildcard) = reversed(hostname);
        let ends = own.match_indices('.').map(|(at, _)| at + 1);
        let mut wider = ends
            .filter(|end| *end < own.len())
            .filter_map(|end| self.named.get(&format!("{}*", &own[..end])));
        wider.next().or_else(|| {
            if !wildcard {
                return self.named.get(&own);
            }
            // Everything below: the name itself is none of the wildcard's.
            let from = Bound::Excluded(own.as_str());
            let mut below = self.named.range::<str, _>((from, Bound::Unbounded));
            let (key, route) = below.next()?;
            key.starts_with(&own).then_some(route)
        })
    }
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
    }
}
