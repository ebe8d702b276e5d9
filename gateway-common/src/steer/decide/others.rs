//! The nodes of a row beside its owner.

use super::OTHERS;
use crate::abi::{NodeIndex, Row, node_flag};
use crate::steer::Tables;
use crate::steer::tables::node;

/// The first of a row's other nodes from place `from` on; 0 if there is none. Not this node unless `or_me`; if `ready`,
/// one that is ready and not suspected.
#[inline(always)]
pub(in crate::steer) fn first_from<T: Tables>(
    tables: &T,
    row: Row,
    from: u64,
    or_me: bool,
    ready: bool,
) -> NodeIndex {
    let Some(config) = tables.config() else {
        return 0;
    };
    let me = config.self_index() as NodeIndex;
    let is_ready = |index| {
        !tables.suspect(index)
            && node(tables, config, index)
                .is_some_and(|entry| entry.flags() & node_flag::READY != 0)
    };
    for i in 0..OTHERS {
        let index = row.next(i);
        if i as u64 >= from && index != 0 && (or_me || index != me) && (!ready || is_ready(index)) {
            return index;
        }
    }
    0
}
