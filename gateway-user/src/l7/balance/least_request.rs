//! Of two different endpoints picked at random, the one with fewer active requests (Envoy with equal weights).

use super::random;

/// Picks among `count` (at least 2) endpoints; on a tie the first of the two picks wins.
pub(super) fn pick(count: usize, random: u64, active: impl Fn(usize) -> u32) -> usize {
    let first = random::pick(count, random);
    // A second, different position from bits that the first did not use up.
    let second = (first + 1 + random::pick(count - 1, random.rotate_left(32))) % count;
    if active(second) < active(first) {
        second
    } else {
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_the_less_busy_wins_whatever_is_drawn() {
        for random in (0..64).map(|shift| 0x9e37_79b9_7f4a_7c15_u64.rotate_left(shift)) {
            assert_eq!(pick(2, random, |i| [3, 2][i]), 1);
            assert_eq!(pick(2, random, |i| [0, 2][i]), 0);
        }
    }

    #[test]
    fn the_busiest_of_three_is_never_picked() {
        for i in 0..1000_u64 {
            let random = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            assert_ne!(pick(3, random, |i| [1, 9, 1][i]), 1);
        }
    }
}
