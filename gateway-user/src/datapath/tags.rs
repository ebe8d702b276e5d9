//! Tags of the proxy's UDP sessions, which XDP reads for rows in transition; the layout is `gateway_common::abi::tag`.
//!
//! Several sessions may have one tag (in truth or by the hash), so tags are counted. A full set takes no further tag and
//! loses none: a session without a tag works, but a node that takes over its row meanwhile does not find it here.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gateway_common::abi::tag::{TAG_SETS, TAG_WAYS, set_of, tag_of};
use gateway_common::hash::{self, Key};

use super::mmap::{MappedArray, SharedTables};
use crate::snapshot::{Transport, UdpHash};

/// Locks over the sets; each covers every 64th.
const STRIPES: u32 = 64;

/// The writer of all tags of this node.
#[derive(Debug)]
pub struct SessionTags {
    table: Arc<MappedArray>,
    key: Key,
    stripes: Box<[Mutex<Box<[Set]>>]>,
}

/// What the ways of one set hold; a count of 0 is a free way.
type Set = [Way; TAG_WAYS];

#[derive(Clone, Copy, Debug, Default)]
struct Way {
    tag: u32,
    count: u32,
}

impl SessionTags {
    /// Takes the table over; sessions of an earlier process are gone, so it begins empty. `key` is the cluster's
    /// hash seed.
    #[must_use]
    pub fn new(tables: &SharedTables, key: Key) -> Self {
        Self::over(Arc::clone(&tables.tags), key)
    }

    /// The same over a table of the right size.
    #[must_use]
    pub fn over(table: Arc<MappedArray>, key: Key) -> Self {
        for word in table.words() {
            word.store(0, Ordering::Relaxed);
        }
        let sets = (TAG_SETS / STRIPES) as usize;
        let stripe = || Mutex::new(vec![Set::default(); sets].into());
        Self {
            table,
            key,
            stripes: (0..STRIPES).map(|_| stripe()).collect(),
        }
    }

    /// Says that this node holds the session; lasts as long as the value. `None`: the set is full.
    #[must_use]
    pub fn add(self: &Arc<Self>, client: SocketAddr, vip: SocketAddr, by: UdpHash) -> Option<Tag> {
        let hash = flow(self.key, client, vip, by)?;
        let (set, tag) = (set_of(hash), tag_of(hash));
        let mut sets = self.stripe(set);
        let ways = &mut sets[(set / STRIPES) as usize];
        let at = ways
            .iter()
            .position(|way| way.count > 0 && way.tag == tag)
            .or_else(|| ways.iter().position(|way| way.count == 0))?;
        ways[at].tag = tag;
        ways[at].count += 1;
        if ways[at].count == 1 {
            self.word(set, at).store(tag, Ordering::Release);
        }
        Some(Tag {
            tags: Arc::clone(self),
            set,
            tag,
        })
    }

    fn remove(&self, set: u32, tag: u32) {
        let mut sets = self.stripe(set);
        let ways = &mut sets[(set / STRIPES) as usize];
        let held = |way: &Way| way.count > 0 && way.tag == tag;
        if let Some(at) = ways.iter().position(held) {
            ways[at].count -= 1;
            if ways[at].count == 0 {
                self.word(set, at).store(0, Ordering::Release);
            }
        }
    }

    fn stripe(&self, set: u32) -> MutexGuard<'_, Box<[Set]>> {
        self.stripes[(set % STRIPES) as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn word(&self, set: u32, way: usize) -> &AtomicU32 {
        &self.table.half_words()[set as usize * TAG_WAYS + way]
    }
}

/// One session's share in a tag.
#[derive(Debug)]
pub struct Tag {
    tags: Arc<SessionTags>,
    set: u32,
    tag: u32,
}

impl Drop for Tag {
    fn drop(&mut self) {
        self.tags.remove(self.set, self.tag);
    }
}

/// The flow hash of a client's datagrams to a VIP; `None` if the two are of different families.
fn flow(key: Key, client: SocketAddr, vip: SocketAddr, by: UdpHash) -> Option<u64> {
    let protocol = Transport::Udp.number();
    let ports = match by {
        UdpHash::FiveTuple => {
            let ([a, b], [c, d]) = (client.port().to_be_bytes(), vip.port().to_be_bytes());
            [a, b, c, d]
        }
        UdpHash::Addresses => [0; 4],
    };
    match (client.ip().to_canonical(), vip.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Some(hash::flow_v4(
            key,
            from.octets(),
            to.octets(),
            ports,
            protocol,
        )),
        (IpAddr::V6(from), IpAddr::V6(to)) => Some(hash::flow_v6(
            key,
            from.octets(),
            to.octets(),
            ports,
            protocol,
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use gateway_common::abi::TagSet;
    use gateway_common::abi::tag::holds;

    use super::*;

    const KEY: Key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    fn tags() -> Arc<SessionTags> {
        let file = tempfile::tempfile().unwrap();
        let size = size_of::<TagSet>();
        file.set_len(u64::from(TAG_SETS) * size as u64).unwrap();
        let table = MappedArray::new("TAGS", &file, TAG_SETS, size).unwrap();
        table.words()[9].store(99, Ordering::Relaxed);
        Arc::new(SessionTags::over(Arc::new(table), KEY))
    }

    fn entry(tags: &SessionTags, set: u32) -> TagSet {
        std::array::from_fn(|way| tags.word(set, way).load(Ordering::Acquire))
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_kernel_finds_a_session_while_it_lasts() {
        let tags = tags();
        for (client, vip) in [
            ("192.0.2.1:49153", "203.0.113.10:53"),
            ("[2001:db8::1]:49153", "[2001:db8::35]:53"),
        ] {
            let (client, vip) = (address(client), address(vip));
            let hash = flow(KEY, client, vip, UdpHash::FiveTuple).unwrap();
            let set = set_of(hash);
            assert!(!holds(entry(&tags, set), hash));
            let first = tags.add(client, vip, UdpHash::FiveTuple).unwrap();
            let second = tags.add(client, vip, UdpHash::FiveTuple).unwrap();
            drop(first);
            assert!(holds(entry(&tags, set), hash), "one of two is left");
            drop(second);
            assert_eq!(entry(&tags, set), [0; 4]);
        }
    }

    #[test]
    fn the_hash_is_that_of_the_packets() {
        let (client, vip) = (address("192.0.2.1:49153"), address("203.0.113.10:53"));
        let five = flow(KEY, client, vip, UdpHash::FiveTuple);
        // The golden vector of `abi::tag`.
        assert_eq!(five, Some(7_696_457_517_388_240_120));
        let other = address("192.0.2.1:7");
        let addresses = flow(KEY, client, vip, UdpHash::Addresses);
        assert_eq!(addresses, flow(KEY, other, vip, UdpHash::Addresses));
        assert_ne!(addresses, five);
        assert_eq!(
            flow(KEY, client, address("[::1]:53"), UdpHash::FiveTuple),
            None
        );
    }

    #[test]
    fn a_full_set_takes_no_more_and_loses_nothing() {
        let tags = tags();
        let vip = address("203.0.113.10:53");
        // Clients whose flows fall into one set, with tags that differ.
        let wanted =
            |client: &SocketAddr| set_of(flow(KEY, *client, vip, UdpHash::FiveTuple).unwrap()) == 7;
        let clients: Vec<SocketAddr> = (0..u32::MAX)
            .map(|n| SocketAddr::from((((n >> 16) + 1).to_be_bytes(), n as u16)))
            .filter(wanted)
            .take(5)
            .collect();
        let mut held: Vec<Tag> = clients[..4]
            .iter()
            .map(|client| tags.add(*client, vip, UdpHash::FiveTuple).unwrap())
            .collect();
        let full = entry(&tags, 7);
        assert!(full.iter().all(|tag| *tag != 0));
        assert!(tags.add(clients[4], vip, UdpHash::FiveTuple).is_none());
        assert_eq!(entry(&tags, 7), full);
        drop(held.remove(1));
        assert!(tags.add(clients[4], vip, UdpHash::FiveTuple).is_some());
        let kept = [full[0], 0, full[2], full[3]];
        assert_eq!(entry(&tags, 7), kept);
    }
}
