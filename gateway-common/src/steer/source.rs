//! Who may send to a VIP that has a list of sources.

use super::Tables;
use super::flow::is_mapped;
use crate::abi::{Counter, SOURCE_ALLOWED, SOURCE_DENIED, SourceKey, vip_flag};
use crate::hash::of_words;
use crate::verdict::Verdict;

/// What a list of sources says of an address.
#[inline(always)]
pub(super) fn source_says<T: Tables>(tables: &T, list: u16, address: [u64; 2]) -> u32 {
    tables.source(&SourceKey::new(list, of_words(address)))
}

/// Refuses a source that the VIP's list, of this number, refuses: its address, and whether the packet is one of IPv6. There an
/// IPv4-mapped address is nobody's, and must not pass for the IPv4 address that the list may name.
#[inline(always)]
pub(super) fn source_may_send<T: Tables>(
    tables: &T,
    list: u16,
    vip_flags: u32,
    ([first, second], v6): ([u64; 2], bool),
) -> Result<(), Verdict> {
    if list == 0 {
        return Ok(());
    }
    if v6 && is_mapped([first, second]) {
        return Err(Verdict::drop(Counter::SourceDenied));
    }
    let denied = match tables.call_source(list, first, second) as u32 {
        SOURCE_DENIED => true,
        SOURCE_ALLOWED => false,
        _ => vip_flags & vip_flag::ALLOW_LIST != 0,
    };
    if denied {
        return Err(Verdict::drop(Counter::SourceDenied));
    }
    Ok(())
}
