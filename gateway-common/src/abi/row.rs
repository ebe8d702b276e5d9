//! One entry of the steering table.

use bytemuck::{Pod, Zeroable};

use super::NodeIndex;

/// The four highest-ranked nodes of a hash bucket, in one u64 that is written by one aligned store.
///
/// Bits 0–14 hold the owner, bit 15 says "in transition"; the next three 16-bit fields hold the other nodes in
/// the order of their ranks, highest first. The top bit of each of these says that the node outranks the
/// owner (it is draining or joining, else it would be the owner). Index 0 ends the list.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Row(pub u64);

/// Nodes in a row.
pub const ROW_NODES: usize = 4;

const FLAG: u16 = 1 << 15;

impl Row {
    /// A row from the owner (0 if no node is ready) and the others by rank; `outranks` holds for those above the owner.
    #[must_use]
    pub const fn new(owner: NodeIndex, in_transition: bool, next: [(NodeIndex, bool); 3]) -> Self {
        let mut bits = (owner & !FLAG) as u64;
        if in_transition {
            bits |= FLAG as u64;
        }
        let mut i = 0;
        while i < 3 {
            let (node, outranks) = next[i];
            let field = (node & !FLAG) | if outranks && node != 0 { FLAG } else { 0 };
            bits |= (field as u64) << (16 * (i + 1));
            i += 1;
        }
        Self(bits)
    }

    /// The node whose proxy gets new flows of this row; 0 if none is ready.
    #[must_use]
    pub const fn owner(self) -> NodeIndex {
        (self.0 as u16) & !FLAG
    }

    /// Whether a node other than the owner may hold sockets of this row.
    #[must_use]
    pub const fn in_transition(self) -> bool {
        self.0 & (FLAG as u64) != 0
    }

    /// Whether any of the other nodes outranks the owner.
    #[must_use]
    pub const fn is_outranked(self) -> bool {
        let flag = FLAG as u64;
        self.0 & (flag << 16 | flag << 32 | flag << 48) != 0
    }

    /// The `i`th of the other nodes (0 to 2); 0 if there are fewer.
    #[must_use]
    pub const fn next(self, i: usize) -> NodeIndex {
        ((self.0 >> (16 * (i + 1))) as u16) & !FLAG
    }

    /// Whether the `i`th of the other nodes outranks the owner.
    #[must_use]
    pub const fn outranks_owner(self, i: usize) -> bool {
        ((self.0 >> (16 * (i + 1))) as u16) & FLAG != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_sit_where_the_kernel_reads_them() {
        let row = Row::new(3, true, [(1, true), (2, false), (0, true)]);
        assert_eq!(row.0, 0x0000_0002_8001_8003);
        assert_eq!((row.owner(), row.in_transition()), (3, true));
        assert_eq!((row.next(0), row.outranks_owner(0)), (1, true));
        assert_eq!((row.next(1), row.outranks_owner(1)), (2, false));
        assert_eq!((row.next(2), row.outranks_owner(2)), (0, false));
        assert!(row.is_outranked());
        assert!(!Row::new(3, true, [(1, false), (2, false), (4, false)]).is_outranked());
    }
}
