//! What the tables of the benchmark say: a few VIPs or 2,000 of them, four nodes, one row for all flows.
//!
//! Written through shared memory, as the daemon writes them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use gateway_common::abi::{
    ABI_VERSION, Config, MAX_NODES, NodeEntry, ROWS, Row, VIP_SLOTS, VipEntry, VipKey,
    config::flag, map, node_flag, peers, vip_flag,
};
use gateway_user::datapath::mmap::MappedArray;
use gateway_user::l4::tables::{VipHalf, vip_half};
use gateway_user::l4::vips::Vip;

use super::frames::{DNS, FLOODED, OWN_MAC, SILENT, TUNNEL, VIP, VIP6, WEB};
use super::kernel::Kernel;

/// This node.
pub(super) const SELF: u16 = 1;
/// The node that most packets are forwarded to, on-link.
pub(super) const OTHER: u16 = 2;
/// A node with an IPv6 address, behind a router.
pub(super) const OVER_V6: u16 = 3;
/// A node in a VLAN.
pub(super) const IN_VLAN: u16 = 4;
/// Its VLAN.
pub(super) const VLAN: u16 = 100;

/// VIPs in the large table: as many addresses, each with one port.
pub(super) const MANY: u32 = 2_000;

/// Groups of the VIPs' listeners.
pub(super) const WEB_GROUP: u16 = 0;
pub(super) const FLOODED_GROUP: u16 = 1;
const SILENT_GROUP: u16 = 2;

/// IPv4 addresses of the nodes.
pub(super) const fn address(node: u16) -> [u8; 4] {
    [203, 0, 113, node as u8]
}

/// The tables, mapped.
pub(super) struct Tables {
    pub(super) rows: MappedArray,
    vips: MappedArray,
    nodes: MappedArray,
    config: MappedArray,
    few: VipHalf,
    many: VipHalf,
    /// What is in the configuration and which VIPs are in the table.
    written: Option<Setting>,
}

/// What differs from case to case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Setting {
    /// Always the UDP form.
    pub(super) encapsulate: bool,
    /// This node's own tunnel address is an IPv6 one.
    pub(super) over_v6: bool,
    /// SYNs are over the budget.
    pub(super) flooded: bool,
    /// 2,000 VIPs instead of a few.
    pub(super) many: bool,
}

impl Tables {
    /// Maps the tables.
    pub(super) fn new(kernel: &Kernel) -> Result<Self> {
        let mapped = |name: &'static str, entries: u32, size: usize| {
            MappedArray::new(name, kernel.fd(name)?, entries, size)
                .with_context(|| format!("cannot map the table {name}"))
        };
        Ok(Self {
            rows: mapped(map::ROWS, ROWS, size_of::<u64>())?,
            vips: mapped(map::VIPS, 2 * VIP_SLOTS, size_of::<VipEntry>())?,
            nodes: mapped(map::NODES, 2 * MAX_NODES, size_of::<NodeEntry>())?,
            config: mapped(map::CONFIG, 1, size_of::<Config>())?,
            few: vip_half(&vips(0)),
            many: vip_half(&vips(MANY)),
            written: None,
        })
    }

    /// Makes every row of the table this one.
    pub(super) fn steer_all(&self, row: Row) {
        let words = self.rows.words();
        if words[0].load(Ordering::Acquire) == row.0
            && words
                .last()
                .is_some_and(|w| w.load(Ordering::Acquire) == row.0)
        {
            return;
        }
        for word in words {
            word.store(row.0, Ordering::Release);
        }
    }

    /// Writes the nodes; all are behind `ifindex`.
    pub(super) fn set_nodes(&self, ifindex: u32) -> Result<()> {
        let mut half = vec![NodeEntry::default(); MAX_NODES as usize];
        let usable = node_flag::LISTED | node_flag::READY | node_flag::RESOLVED;
        for (index, flags) in [
            (SELF, node_flag::SELF),
            (OTHER, node_flag::ON_LINK),
            (OVER_V6, 0),
            (IN_VLAN, node_flag::ON_LINK),
        ] {
            let address = VipKey::v4(address(index), [0; 2], 0).address;
            half[usize::from(index)] = NodeEntry {
                address: if index == OVER_V6 { v6(index) } else { address },
                mac: [2, 0, 0, 0, 1, index as u8],
                source_mac: OWN_MAC,
                ifindex,
                flags: usable | flags,
                mtu: 1_500,
                vlan: if index == IN_VLAN { VLAN } else { 0 },
                ..NodeEntry::default()
            };
        }
        peers::index(&mut half)
            .ok()
            .context("the node table has no room for its index")?;
        let words = size_of::<NodeEntry>() / 4;
        for (slot, entry) in half.iter().enumerate() {
            self.nodes.write(slot * words, entry);
        }
        Ok(())
    }

    /// Writes VIPs and configuration. The heartbeat is not watched, second-chance hops are not limited.
    pub(super) fn set(&mut self, setting: Setting) {
        if self.written == Some(setting) {
            return;
        }
        let half = if setting.many { &self.many } else { &self.few };
        if self.written.is_none_or(|old| old.many != setting.many) {
            let words = size_of::<VipEntry>() / 4;
            for word in self.vips.half_words() {
                word.store(0, Ordering::Relaxed);
            }
            for (slot, entry) in &half.slots {
                self.vips.write(*slot as usize * words, entry);
            }
        }
        let config = Config {
            abi_version: ABI_VERSION,
            self_index: u32::from(SELF),
            flags: if setting.encapsulate {
                flag::ENCAP_ALWAYS
            } else {
                0
            },
            tunnel_port: TUNNEL.to_be_bytes(),
            probe_port: (TUNNEL + 1).to_be_bytes(),
            vip_seed: [half.seed; 2],
            hash_key: [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908],
            tunnel_source: if setting.over_v6 {
                v6(SELF)
            } else {
                VipKey::v4(address(SELF), [0; 2], 0).address
            },
            // One SYN in a window that does not end.
            syn_limit: u32::from(setting.flooded),
            window_jiffies: u32::MAX,
            ..Config::default()
        };
        self.config.write(0, &config);
        self.written = Some(setting);
    }
}

/// 2001:db8:0:0::node.
fn v6(node: u16) -> [u8; 16] {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
    address[15] = node as u8;
    address
}

/// The VIPs of the cases, and others until there are `count` of them.
pub(super) fn vips(count: u32) -> BTreeMap<VipKey, Vip> {
    let key = |address: [u8; 16], port: u16, protocol: u8| VipKey {
        address,
        port: port.to_be_bytes(),
        protocol,
        pad: 0,
    };
    let v4 = |address| VipKey::v4(address, [0; 2], 0).address;
    let mut vips = vec![
        (key(v4(VIP), WEB, 6), WEB_GROUP),
        (key(v4(VIP), FLOODED, 6), FLOODED_GROUP),
        (key(v4(VIP), SILENT, 6), SILENT_GROUP),
        (key(v4(VIP), DNS, 17), WEB_GROUP),
        (key(VIP6, WEB, 6), WEB_GROUP),
    ];
    let others = (0..count.saturating_sub(vips.len() as u32)).map(|i| {
        let address = (0x0a09_0000 + i).to_be_bytes();
        (key(v4(address), 443, 6), 3)
    });
    vips.extend(others);
    let addresses: Vec<_> = vips.iter().map(|(key, _)| (key.of_address(), 0)).collect();
    let entries = vips.into_iter().chain(addresses).enumerate();
    entries
        .map(|(number, (key, group))| {
            let vip = Vip {
                flags: vip_flag::USED,
                group,
                number: number as u16,
                sources: 0,
            };
            (key, vip)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_thousand_vips_are_placed_with_their_addresses() {
        let entries = vips(MANY);
        let ports = entries.keys().filter(|key| key.protocol != 0).count();
        assert_eq!(ports, MANY as usize);
        let half = vip_half(&entries);
        assert_eq!(half.slots.len(), entries.len());
        assert_eq!(vips(0).len(), 5 + 2);
    }
}
