//! Lists of source prefixes: which number each has and what the kernel's trie says for it.
//!
//! The trie finds the longest prefix, but a denied prefix counts whatever a longer one allows: what lies in a denied prefix is
//! not written as allowed. Lists that say the same share a number. Numbers are not used again before all others were, so
//! that no VIP ever meets a half-written list: new lists are written before the VIPs that name them, old ones go after.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use gateway_common::abi::{MAX_SOURCES, SOURCE_ALLOWED, SOURCE_DENIED, SourceKey};

use super::{abi_address, address_of};
use crate::snapshot::{Prefix, Sources};

/// Bits that count and key of each prefix, with [`SOURCE_ALLOWED`], [`SOURCE_DENIED`] or 0 for "nothing".
pub type SourceTable = BTreeMap<(u32, SourceKey), u32>;

/// The beginning of all IPv4 addresses in their mapped form.
const MAPPED: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);

/// Bits of an address before an IPv4 address in its mapped form.
const MAPPED_BITS: u32 = 96;

/// An entry of the trie as whoever configures it writes it.
pub(crate) fn prefix(bits: u32, key: &SourceKey) -> String {
    let address = address_of(key.address);
    let before = SourceKey::LIST_BITS + if address.is_ipv4() { MAPPED_BITS } else { 0 };
    format!("{address}/{}", bits.saturating_sub(before))
}

/// All lists in use.
#[derive(Clone, Debug, Default)]
pub struct SourceLists {
    numbers: BTreeMap<Sources, u16>,
    last: u16,
    taken: BTreeSet<u16>,
    table: SourceTable,
    left_out: usize,
}

impl SourceLists {
    /// Remembers the numbers that pinned tables use, so that no new list gets one of them.
    pub fn adopt(&mut self, table: &SourceTable) {
        let lists = table.keys().map(|(_, key)| u32::from_be_bytes(key.list));
        self.taken = lists.filter_map(|list| u16::try_from(list).ok()).collect();
        self.last = self.taken.iter().next_back().copied().unwrap_or(0);
    }

    /// Keeps exactly these lists.
    pub fn update<'a>(&mut self, wanted: impl Iterator<Item = &'a Sources>) {
        let wanted: BTreeSet<&Sources> = wanted.filter(|list| !list.admits_all()).collect();
        if wanted.len() == self.numbers.len() && wanted.iter().all(|l| self.numbers.contains_key(l))
        {
            return;
        }
        let old = std::mem::take(&mut self.numbers);
        for list in wanted {
            let number = old.get(list).copied().unwrap_or_else(|| self.next(&old));
            self.numbers.insert(list.clone(), number);
        }
        self.taken = self.numbers.values().copied().collect();
        self.table.clear();
        self.left_out = 0;
        for (list, number) in &self.numbers {
            let entries = entries(*number, list);
            if self.table.len() + entries.len() > MAX_SOURCES as usize {
                self.left_out += 1;
            } else {
                self.table.extend(entries);
            }
        }
    }

    fn next(&mut self, old: &BTreeMap<Sources, u16>) -> u16 {
        loop {
            self.last = self.last.checked_add(1).unwrap_or(1);
            let mut numbers = old.values().chain(self.numbers.values());
            let free = numbers.all(|number| *number != self.last);
            if free && !self.taken.contains(&self.last) {
                return self.last;
            }
        }
    }

    /// Number of a list; 0 for the one that admits everybody.
    #[must_use]
    pub fn number(&self, list: &Sources) -> u16 {
        self.numbers.get(list).copied().unwrap_or(0)
    }

    /// What the trie should say.
    #[must_use]
    pub fn table(&self) -> &SourceTable {
        &self.table
    }

    /// Lists for which the trie has no room: they admit nobody if they allow, and deny nobody.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.left_out
    }
}

fn entries(number: u16, list: &Sources) -> SourceTable {
    let mut table = SourceTable::new();
    let denied = |prefix: &Prefix| {
        let covers = |by: &&Prefix| by.length() <= prefix.length() && by.contains(prefix.address());
        list.deny.iter().any(|by| covers(&by))
    };
    let allowed = list.allow.iter().flatten().filter(|prefix| !denied(prefix));
    for prefix in allowed {
        table.insert(key(number, prefix), SOURCE_ALLOWED);
    }
    for prefix in &list.deny {
        table.insert(key(number, prefix), SOURCE_DENIED);
    }
    // An IPv6 prefix that is short enough covers the mapped form of IPv4, of which it says nothing.
    let covers_mapped = |prefix: &Prefix| {
        let (IpAddr::V6(address), length) = (prefix.address(), u32::from(prefix.length())) else {
            return false;
        };
        let differs = u128::from(address) ^ u128::from(MAPPED);
        length < MAPPED_BITS && differs.checked_shr(128 - length).unwrap_or(0) == 0
    };
    if list
        .allow
        .iter()
        .flatten()
        .chain(&list.deny)
        .any(covers_mapped)
    {
        let all_v4 = SourceKey::new(number, MAPPED.octets());
        table
            .entry((SourceKey::LIST_BITS + MAPPED_BITS, all_v4))
            .or_insert(0);
    }
    table
}

fn key(number: u16, prefix: &Prefix) -> (u32, SourceKey) {
    let before = match prefix.address() {
        IpAddr::V4(_) => MAPPED_BITS,
        IpAddr::V6(_) => 0,
    };
    let bits = SourceKey::LIST_BITS + before + u32::from(prefix.length());
    (bits, SourceKey::new(number, abi_address(prefix.address())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn list(allow: Option<&[&str]>, deny: &[&str]) -> Sources {
        Sources {
            allow: allow.map(prefixes),
            deny: prefixes(deny),
        }
    }

    #[test]
    fn an_entry_is_told_as_it_is_configured() {
        for (bits, address, told) in [
            (160, "11.0.5.198", "11.0.5.198/32"),
            (136, "10.0.0.0", "10.0.0.0/8"),
            (64, "2001:db8::", "2001:db8::/32"),
        ] {
            let key = SourceKey::new(1, abi_address(address.parse().unwrap()));
            assert_eq!(prefix(bits, &key), told);
        }
    }

    /// What the trie would say of an address: the value of the longest prefix.
    fn says(table: &SourceTable, number: u16, address: &str) -> u32 {
        let address = abi_address(address.parse().unwrap());
        let whole = SourceKey::new(number, address);
        let bits = |key: &SourceKey| {
            let bytes: Vec<u8> = [&key.list[..], &key.address].concat();
            bytes
        };
        let matches = |length: u32, key: &SourceKey| {
            let (a, b) = (bits(key), bits(&whole));
            (0..length as usize).all(|i| a[i / 8] >> (7 - i % 8) & 1 == b[i / 8] >> (7 - i % 8) & 1)
        };
        let found = table
            .iter()
            .filter(|((length, key), _)| matches(*length, key));
        found
            .max_by_key(|((length, _), _)| *length)
            .map_or(0, |(_, value)| *value)
    }

    #[test]
    fn the_trie_says_what_the_list_says() {
        let list = list(
            Some(&["10.0.0.0/8", "2001:db8::/32", "::/0"]),
            &["10.1.0.0/16", "2001:db8:1::/48"],
        );
        let mut lists = SourceLists::default();
        lists.update([&list].into_iter());
        let number = lists.number(&list);
        assert_eq!(number, 1);
        for address in [
            "10.0.0.1",
            "10.1.0.1",
            "11.0.0.1",
            "192.0.2.1",
            "2001:db8::1",
            "2001:db8:1::1",
            "fe80::1",
        ] {
            let admits = list.admits(address.parse().unwrap());
            assert_eq!(
                says(lists.table(), number, address) == SOURCE_ALLOWED,
                admits,
                "{address}"
            );
        }
    }

    #[test]
    fn a_longer_allowed_prefix_inside_a_denied_one_stays_denied() {
        let list = list(Some(&["10.1.2.0/24"]), &["10.1.0.0/16"]);
        let mut lists = SourceLists::default();
        lists.update([&list].into_iter());
        assert_eq!(says(lists.table(), 1, "10.1.2.3"), SOURCE_DENIED);
    }

    #[test]
    fn equal_lists_share_a_number_and_numbers_are_not_used_again() {
        let (a, b) = (list(None, &["10.0.0.0/8"]), list(None, &["11.0.0.0/8"]));
        let mut lists = SourceLists::default();
        lists.update([&a, &a.clone(), &Sources::default()].into_iter());
        assert_eq!(
            (lists.number(&a), lists.number(&Sources::default())),
            (1, 0)
        );
        lists.update([&b].into_iter());
        assert_eq!((lists.number(&a), lists.number(&b)), (0, 2));
        let mut restarted = SourceLists::default();
        restarted.adopt(lists.table());
        restarted.update([&a].into_iter());
        assert_eq!(restarted.number(&a), 3, "list 2 may still be in use");
    }
}
