//! Tags of UDP sessions: which flows this node holds, in a table that XDP reads for UDP rows in transition.
//!
//! The proxy writes them, XDP only reads. A set of four tags belongs to 16 bits of the flow hash beside those that
//! choose the row; the tag is the upper half of the hash, so that two flows of one row are mistaken for each other
//! once in 2^46 pairs. That costs the wrong node one packet, never a foreign connection.

/// Sets of tags in the table.
pub const TAG_SETS: u32 = 65_536;

/// Tags in a set.
pub const TAG_WAYS: usize = 4;

/// One set; 0 = free.
pub type TagSet = [u32; TAG_WAYS];

/// The set of a flow hash: bits 16 to 31. Bits 0 to 15 choose the row.
#[inline(always)]
#[must_use]
pub const fn set_of(hash: u64) -> u32 {
    (hash >> 16) as u32 & (TAG_SETS - 1)
}

/// The tag of a flow hash: bits 32 to 63, with 1 in place of 0, which marks a free way.
#[inline(always)]
#[must_use]
pub const fn tag_of(hash: u64) -> u32 {
    match (hash >> 32) as u32 {
        0 => 1,
        tag => tag,
    }
}

/// Whether the set of a flow hash says that this node holds the flow.
#[inline(always)]
#[must_use]
pub const fn holds(entry: TagSet, hash: u64) -> bool {
    let tag = tag_of(hash);
    entry[0] == tag || entry[1] == tag || entry[2] == tag || entry[3] == tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{flow_v4, row_of};

    #[test]
    fn golden_vector() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let ports = [0xc0, 0x01, 0x00, 0x35];
        let hash = flow_v4(key, [192, 0, 2, 1], [203, 0, 113, 10], ports, 17);
        assert_eq!(
            (hash, row_of(hash), set_of(hash), tag_of(hash)),
            (7_696_457_517_388_240_120, 38_136, 41_167, 1_791_971_157)
        );
    }

    #[test]
    fn row_set_and_tag_are_parts_of_the_hash_that_do_not_overlap() {
        let hash = 0x1234_5678_9abc_def0;
        assert_eq!(
            (row_of(hash), set_of(hash), tag_of(hash)),
            (0xdef0, 0x9abc, 0x1234_5678)
        );
        assert_eq!(tag_of(0x0000_0000_9abc_def0), 1);
    }

    #[test]
    fn a_tag_counts_in_any_way_and_zero_never_does() {
        let hash = 7 << 32;
        for way in 0..TAG_WAYS {
            let mut set = [0, 1, 2, 3];
            assert!(!holds(set, hash));
            set[way] = 7;
            assert!(holds(set, hash), "way {way}");
        }
        assert!(
            !holds([0; 4], 5),
            "a hash without upper half is no free way"
        );
        assert!(holds([0, 0, 1, 0], 5));
    }
}
