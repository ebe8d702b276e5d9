//! Where each VIP lies in a half of the VIP table.

use std::collections::BTreeMap;

use gateway_common::abi::{VIP_PROBES, VIP_SLOTS, VipEntry, VipKey};
use gateway_common::hash::vip_slot;

use super::VipHalf;
use crate::l4::vips::Vip;

/// Places every entry within [`VIP_PROBES`] slots of where its key hashes to, under the first seed for which
/// that works. With at most half of the slots in use one of the first few seeds does; entries that no seed
/// places are left out, last keys first.
#[must_use]
pub fn vip_half(entries: &BTreeMap<VipKey, Vip>) -> VipHalf {
    const SEEDS: u32 = 256;
    let mut entries: Vec<VipEntry> = entries
        .iter()
        .map(|(key, vip)| VipEntry {
            key: *key,
            flags: vip.flags,
            group: vip.group,
            number: vip.number,
            sources: vip.sources,
            reserved: 0,
        })
        .collect();
    loop {
        let placed = (0..SEEDS).find_map(|seed| {
            Some(VipHalf {
                seed,
                slots: place(&entries, seed)?,
            })
        });
        if let Some(half) = placed {
            return half;
        }
        entries.pop();
    }
}

/// Robin Hood placement: whoever is further from home keeps the slot, which keeps the longest way short.
fn place(entries: &[VipEntry], seed: u32) -> Option<Vec<(u32, VipEntry)>> {
    let mut slots: Vec<Option<(u32, VipEntry)>> = vec![None; VIP_SLOTS as usize];
    for entry in entries {
        let mut carried = (vip_slot(&entry.key, seed), *entry);
        let mut slot = carried.0;
        loop {
            let distance = |home: u32| slot.wrapping_sub(home) & (VIP_SLOTS - 1);
            if distance(carried.0) >= VIP_PROBES {
                return None;
            }
            match &mut slots[slot as usize] {
                Some(other) => {
                    if distance(other.0) < distance(carried.0) {
                        std::mem::swap(other, &mut carried);
                    }
                }
                empty => {
                    *empty = Some(carried);
                    break;
                }
            }
            slot = (slot + 1) & (VIP_SLOTS - 1);
        }
    }
    let placed = (0..VIP_SLOTS).zip(slots);
    Some(
        placed
            .filter_map(|(slot, entry)| Some((slot, entry?.1)))
            .collect(),
    )
}
