//! Any endpoint, uniformly.

/// Maps `random` to a position below `count` (at least 1) without the bias of a remainder.
pub(super) fn pick(count: usize, random: u64) -> usize {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the product's upper half is below `count`"
    )]
    {
        ((u128::from(random) * count as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_the_whole_range() {
        assert_eq!(pick(3, 0), 0);
        assert_eq!(pick(3, u64::MAX / 2), 1);
        assert_eq!(pick(3, u64::MAX), 2);
    }
}
