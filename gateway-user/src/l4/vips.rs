//! The VIPs of a snapshot: which addresses and ports exist, in which socket group, and which are on their way out.
//!
//! A VIP that leaves the snapshot stays listed as draining until its sockets are gone or the deadline passes, so
//! that open connections keep their way. Groups and numbers are stable while their Gateway or VIP is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use gateway_common::abi::{GROUPS, VIP_NUMBERS, VipEntry, VipKey, vip_flag};

use super::sources::{SourceLists, SourceTable};
use super::{Time, abi_address};
use crate::snapshot::{BindKey, L4Policy, ObjectKey, ReturnPath, Snapshot, Transport, UdpHash};

/// At most this many entries fit one half of the VIP table (half full, so that every key finds a near slot).
pub const MAX_VIPS: usize = VIP_NUMBERS as usize;

/// One entry of the table before it has a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vip {
    /// Bits of [`vip_flag`].
    pub flags: u32,
    /// Socket group.
    pub group: u16,
    /// Number for counters.
    pub number: u16,
    /// Number of its list of sources, 0 without one.
    pub sources: u16,
}

#[derive(Clone, Debug)]
struct Port {
    gateway: ObjectKey,
    group: u16,
    policy: Arc<L4Policy>,
    /// Set while the VIP is draining.
    until: Option<Time>,
}

/// All VIPs, live and draining.
#[derive(Clone, Debug)]
pub struct Vips {
    drain_timeout: Duration,
    groups: BTreeMap<ObjectKey, u16>,
    ports: BTreeMap<BindKey, Port>,
    numbers: BTreeMap<VipKey, u16>,
    addresses: BTreeSet<IpAddr>,
    routed: BTreeSet<IpAddr>,
    lists: SourceLists,
    left_out: Vec<String>,
}

impl Vips {
    /// No VIP yet.
    #[must_use]
    pub fn new(drain_timeout: Duration) -> Self {
        Self {
            drain_timeout,
            groups: BTreeMap::new(),
            ports: BTreeMap::new(),
            numbers: BTreeMap::new(),
            addresses: BTreeSet::new(),
            routed: BTreeSet::new(),
            lists: SourceLists::default(),
            left_out: Vec::new(),
        }
    }

    /// Socket group of every Gateway of the snapshot. May be asked before [`Self::update`] so that listening
    /// sockets are in place when the VIPs appear.
    pub fn groups(&mut self, snapshot: &Snapshot) -> BTreeMap<ObjectKey, u16> {
        let wanted: BTreeSet<&ObjectKey> = snapshot.binds.values().map(|b| &b.gateway).collect();
        let draining: BTreeSet<&ObjectKey> = self.ports.values().map(|p| &p.gateway).collect();
        self.groups
            .retain(|gateway, _| wanted.contains(gateway) || draining.contains(gateway));
        for gateway in &wanted {
            if !self.groups.contains_key(*gateway) {
                let group = free_group(&self.groups).unwrap_or_else(|| hashed_group(gateway));
                self.groups.insert((*gateway).clone(), group);
            }
        }
        self.groups
            .iter()
            .filter(|(gateway, _)| wanted.contains(gateway))
            .map(|(gateway, group)| (gateway.clone(), *group))
            .collect()
    }

    /// Takes the binds and addresses of a snapshot.
    pub fn update(&mut self, snapshot: &Snapshot, now: Time) {
        let groups = self.groups(snapshot);
        self.left_out.clear();
        for (key, port) in &mut self.ports {
            if !snapshot.binds.contains_key(key) && port.until.is_none() {
                port.until = Some(now + self.drain_timeout);
            }
        }
        for (key, bind) in &snapshot.binds {
            let port = Port {
                gateway: bind.gateway.clone(),
                group: groups[&bind.gateway],
                policy: Arc::clone(&bind.policy),
                until: None,
            };
            self.ports.insert(*key, port);
        }
        self.addresses = snapshot
            .addresses
            .keys()
            .chain(snapshot.binds.keys().map(|key| &key.address))
            .copied()
            .collect();
        // A VIP that drains is reached as before, until its last connection is gone.
        self.routed
            .retain(|address| !self.addresses.contains(address));
        self.routed.extend(&snapshot.routed);
        self.routed = self.routed();
        self.lists
            .update(self.ports.values().map(|port| &port.policy.sources));
        self.renumber();
    }

    /// The proxy holds no socket any more on a VIP: if the VIP was draining, it goes.
    pub fn sockets_gone(&mut self, key: BindKey) {
        if self.ports.get(&key).is_some_and(|p| p.until.is_some()) {
            self.ports.remove(&key);
            self.renumber();
        }
    }

    /// The VIPs that are on their way out.
    pub fn draining(&self) -> impl Iterator<Item = BindKey> {
        self.ports
            .iter()
            .filter(|(_, port)| port.until.is_some())
            .map(|(key, _)| *key)
    }

    /// Addresses that need a local route: live and draining ones.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let mut all = self.addresses.clone();
        all.extend(self.ports.keys().map(|key| key.address));
        all
    }

    /// Those of [`Self::addresses`] that no node announces.
    #[must_use]
    pub fn routed(&self) -> BTreeSet<IpAddr> {
        self.addresses()
            .intersection(&self.routed)
            .copied()
            .collect()
    }

    /// What is not in the table, one sentence part each.
    #[must_use]
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// The entries: one for each port, one for each address. `announced` and `shared` say it of addresses.
    #[must_use]
    pub fn entries(
        &self,
        announced: &BTreeSet<IpAddr>,
        shared: &BTreeSet<IpAddr>,
    ) -> BTreeMap<VipKey, Vip> {
        let mut entries = BTreeMap::new();
        let mut add = |key: VipKey, flags: u32, group: u16, sources: u16| {
            if let Some(number) = self.numbers.get(&key) {
                let vip = Vip {
                    flags: flags | vip_flag::USED,
                    group,
                    number: *number,
                    sources,
                };
                entries.insert(key, vip);
            }
        };
        let shared_flag = |address: &IpAddr| {
            if shared.contains(address) {
                vip_flag::SHARED
            } else {
                0
            }
        };
        for address in &self.addresses() {
            let announce = announced.contains(address) && !shared.contains(address);
            let flag = if announce { vip_flag::ANNOUNCE } else { 0 };
            // Fragments have no port: the address says for them what the first port that takes them says.
            let fragments = self.ports.iter().find(|(key, port)| {
                key.address == *address && policy_flags(**key, port) & vip_flag::BY_ADDRESSES != 0
            });
            let (policy, sources) = fragments.map_or((0, 0), |(key, port)| {
                let taken = vip_flag::BY_ADDRESSES | vip_flag::ALLOW_LIST;
                let sources = self.lists.number(&port.policy.sources);
                (policy_flags(*key, port) & taken, sources)
            });
            let flags = flag | policy | shared_flag(address);
            add(address_key(*address), flags, 0, sources);
        }
        for (key, port) in &self.ports {
            let draining = if port.until.is_some() {
                vip_flag::DRAINING
            } else {
                0
            };
            add(
                port_key(*key),
                draining | shared_flag(&key.address) | policy_flags(*key, port),
                port.group,
                self.lists.number(&port.policy.sources),
            );
        }
        entries
    }

    /// The prefixes of all lists of sources.
    #[must_use]
    pub fn sources(&self) -> &SourceTable {
        self.lists.table()
    }

    /// Takes over the numbers that pinned tables know VIPs by, so that counters go on.
    pub fn adopt_numbers(&mut self, entries: &BTreeMap<VipKey, VipEntry>) {
        let mut taken: BTreeSet<u16> = self.numbers.values().copied().collect();
        for (key, entry) in entries {
            if usize::from(entry.number) < MAX_VIPS && taken.insert(entry.number) {
                self.numbers.entry(*key).or_insert(entry.number);
            }
        }
    }

    /// Takes over the numbers of lists that pinned tables use.
    pub fn adopt_sources(&mut self, table: &SourceTable) {
        self.lists.adopt(table);
    }

    /// When [`Self::handle_timeout`] will change something.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.ports.values().filter_map(|p| p.until).min()
    }

    /// Lets go of draining VIPs whose deadline has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.ports
            .retain(|_, port| port.until.is_none_or(|until| until > now));
        self.renumber();
    }

    fn renumber(&mut self) {
        let keys: BTreeSet<VipKey> = self
            .addresses()
            .into_iter()
            .map(address_key)
            .chain(self.ports.keys().map(|key| port_key(*key)))
            .collect();
        // Numbers that are given up right now come last: packets may be counted under them for a moment still.
        let before: BTreeSet<u16> = self.numbers.values().copied().collect();
        self.numbers.retain(|key, _| keys.contains(key));
        let used: BTreeSet<u16> = self.numbers.values().copied().collect();
        let fresh = (0..MAX_VIPS as u16).filter(|n| !before.contains(n));
        let mut free = fresh.chain(before.difference(&used).copied());
        for key in keys {
            if self.numbers.contains_key(&key) {
                continue;
            }
            match free.next() {
                Some(number) => {
                    self.numbers.insert(key, number);
                }
                None => self.left_out.push(format!(
                    "VIP {}:{} is beyond the {MAX_VIPS} entries of the VIP table",
                    super::address_of(key.address),
                    u16::from_be_bytes(key.port)
                )),
            }
        }
    }
}

/// Key of the entry of an address itself.
#[must_use]
pub fn address_key(address: IpAddr) -> VipKey {
    VipKey {
        address: abi_address(address),
        ..VipKey::default()
    }
}

/// Key of the entry of one port.
#[must_use]
pub fn port_key(key: BindKey) -> VipKey {
    VipKey {
        address: abi_address(key.address),
        port: key.port.to_be_bytes(),
        protocol: key.transport.number(),
        pad: 0,
    }
}

/// What the policy of a VIP says in bits of [`vip_flag`].
fn policy_flags(key: BindKey, port: &Port) -> u32 {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let policy = &port.policy;
    let by_addresses = policy.udp_hash == UdpHash::Addresses && key.transport == Transport::Udp;
    flag(
        policy.return_path == ReturnPath::LocalOnly,
        vip_flag::LOCAL_ONLY,
    ) | flag(by_addresses, vip_flag::BY_ADDRESSES)
        | flag(policy.sources.allow.is_some(), vip_flag::ALLOW_LIST)
}

fn free_group(groups: &BTreeMap<ObjectKey, u16>) -> Option<u16> {
    let used: BTreeSet<u16> = groups.values().copied().collect();
    (0..GROUPS as u16).find(|group| !used.contains(group))
}

/// FNV-1a over the Gateway's name: any fixed function that spreads names will do.
fn hashed_group(gateway: &ObjectKey) -> u16 {
    let bytes = gateway
        .namespace
        .bytes()
        .chain([0])
        .chain(gateway.name.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    ((hash >> 32) % u64::from(GROUPS)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Bind, Protocol, Sources, Transport};

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    fn bind(address: &str, port: u16) -> BindKey {
        BindKey {
            address: address.parse().unwrap(),
            port,
            transport: Transport::Tcp,
        }
    }

    fn snapshot(binds: &[(BindKey, &str)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (key, gateway) in binds {
            let gateway = ObjectKey::new("ns", *gateway);
            snapshot.addresses.insert(key.address, gateway.clone());
            let bind = Bind {
                key: *key,
                gateway,
                protocol: Protocol::Http,
                builtin_ready: false,
                policy: Arc::default(),
                listeners: Vec::new(),
            };
            snapshot.binds.insert(*key, Arc::new(bind));
        }
        snapshot
    }

    fn flags(vips: &Vips, key: VipKey) -> Option<u32> {
        vips.entries(&BTreeSet::new(), &BTreeSet::new())
            .get(&key)
            .map(|v| v.flags)
    }

    #[test]
    fn each_port_and_each_address_has_an_entry() {
        let mut vips = Vips::new(TIMEOUT);
        let (web, other) = (bind("10.9.0.1", 80), bind("10.9.0.1", 8080));
        vips.update(
            &snapshot(&[(web, "g"), (other, "g"), (bind("10.9.0.2", 80), "h")]),
            at(0),
        );
        let address = [web.address].into();
        let entries = vips.entries(&address, &BTreeSet::new());
        assert_eq!(entries.len(), 5);
        assert_eq!(
            entries[&address_key(web.address)].flags,
            vip_flag::USED | vip_flag::ANNOUNCE
        );
        assert_eq!(entries[&port_key(web)].flags, vip_flag::USED);
        assert_eq!(entries[&port_key(web)].group, 0);
        assert_eq!(entries[&port_key(bind("10.9.0.2", 80))].group, 1);
        let numbers: BTreeSet<u16> = entries.values().map(|v| v.number).collect();
        assert_eq!(numbers.len(), 5);
        let shared = vips.entries(&address, &address);
        assert_eq!(
            shared[&address_key(web.address)].flags,
            vip_flag::USED | vip_flag::SHARED
        );
        assert_eq!(
            shared[&port_key(web)].flags,
            vip_flag::USED | vip_flag::SHARED
        );
    }

    #[test]
    fn tcp_and_udp_of_one_port_are_two_vips() {
        let mut vips = Vips::new(TIMEOUT);
        let tcp = bind("10.9.0.1", 53);
        let udp = BindKey {
            transport: Transport::Udp,
            ..tcp
        };
        vips.update(&snapshot(&[(tcp, "g"), (udp, "g")]), at(0));
        let entries = vips.entries(&BTreeSet::new(), &BTreeSet::new());
        let protocols: Vec<u8> = entries.keys().map(|key| key.protocol).collect();
        assert_eq!(protocols, [0, 6, 17]);
        vips.update(&snapshot(&[(tcp, "g")]), at(10));
        assert_eq!(flags(&vips, port_key(tcp)), Some(vip_flag::USED));
        assert_eq!(
            flags(&vips, port_key(udp)),
            Some(vip_flag::USED | vip_flag::DRAINING)
        );
    }

    #[test]
    fn a_vip_that_disappears_drains_until_its_sockets_end_or_the_deadline() {
        let mut vips = Vips::new(TIMEOUT);
        let (web, other) = (bind("10.9.0.1", 80), bind("10.9.0.2", 80));
        vips.update(&snapshot(&[(web, "g"), (other, "g")]), at(0));
        vips.update(&snapshot(&[]), at(10));
        assert_eq!(
            flags(&vips, port_key(web)),
            Some(vip_flag::USED | vip_flag::DRAINING)
        );
        assert_eq!(flags(&vips, address_key(web.address)), Some(vip_flag::USED));
        vips.sockets_gone(other);
        assert_eq!(flags(&vips, port_key(other)), None);
        assert_eq!(flags(&vips, address_key(other.address)), None);
        vips.update(&snapshot(&[]), at(30));
        assert_eq!(
            vips.poll_timeout(),
            Some(at(70)),
            "the deadline does not move"
        );
        vips.handle_timeout(at(70));
        assert!(vips.addresses().is_empty());
        assert_eq!(vips.poll_timeout(), None);
    }

    #[test]
    fn a_vip_that_comes_back_is_whole_again() {
        let mut vips = Vips::new(TIMEOUT);
        let web = bind("10.9.0.1", 80);
        vips.update(&snapshot(&[(web, "g")]), at(0));
        vips.update(&snapshot(&[]), at(10));
        vips.update(&snapshot(&[(web, "g")]), at(20));
        vips.sockets_gone(web);
        assert_eq!(flags(&vips, port_key(web)), Some(vip_flag::USED));
    }

    #[test]
    fn groups_are_stable_and_hashed_beyond_64() {
        let mut vips = Vips::new(TIMEOUT);
        let many: Vec<(BindKey, String)> = (0..70_u16)
            .map(|i| (bind("10.9.0.1", 1000 + i), format!("g{i:02}")))
            .collect();
        let refs: Vec<(BindKey, &str)> = many.iter().map(|(k, n)| (*k, n.as_str())).collect();
        let groups = vips.groups(&snapshot(&refs));
        let first: BTreeSet<u16> = groups.values().take(64).copied().collect();
        assert_eq!(first.len(), 64);
        assert!(groups.values().all(|g| u32::from(*g) < GROUPS));
        let fewer = vips.groups(&snapshot(&refs[1..]));
        assert_eq!(
            fewer[&ObjectKey::new("ns", "g69")],
            groups[&ObjectKey::new("ns", "g69")]
        );
        assert_eq!(fewer[&ObjectKey::new("ns", "g01")], 1);
    }

    #[test]
    fn policies_and_both_families_show_in_the_entries() {
        let mut vips = Vips::new(TIMEOUT);
        let (web, dns) = (
            bind("2001:db8::1", 80),
            BindKey::new("10.9.0.1:53".parse().unwrap(), Transport::Udp),
        );
        let mut snapshot = snapshot(&[(web, "g"), (dns, "g")]);
        let mut set = |key: BindKey, policy: L4Policy| {
            let bind = Arc::make_mut(snapshot.binds.get_mut(&key).unwrap());
            bind.policy = Arc::new(policy);
        };
        set(
            web,
            L4Policy {
                return_path: ReturnPath::LocalOnly,
                sources: Sources {
                    allow: Some(vec!["2001:db8:1::/48".parse().unwrap()]),
                    deny: Vec::new(),
                },
                udp_hash: UdpHash::Addresses,
                client: crate::snapshot::ClientAddress::default(),
            },
        );
        set(
            dns,
            L4Policy {
                udp_hash: UdpHash::Addresses,
                ..L4Policy::default()
            },
        );
        vips.update(&snapshot, at(0));
        let entries = vips.entries(&BTreeSet::new(), &BTreeSet::new());
        let web = entries[&port_key(web)];
        let only = vip_flag::USED | vip_flag::LOCAL_ONLY | vip_flag::ALLOW_LIST;
        assert_eq!(
            (web.flags, web.sources),
            (only, 1),
            "TCP has no hash of its own"
        );
        let by_addresses = vip_flag::USED | vip_flag::BY_ADDRESSES;
        assert_eq!(entries[&port_key(dns)].flags, by_addresses);
        assert_eq!(entries[&address_key(dns.address)].flags, by_addresses);
        assert_eq!(vips.sources().len(), 1);
    }
}
