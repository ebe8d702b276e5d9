//! The membership fingerprint: 32 bits by which two nodes see whether they list the same members.

use crate::hash::{Key, SipHasher};

/// Where a listed node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MemberState {
    /// Listed, not yet ready: owns nothing.
    Joining = 1,
    /// May own rows.
    Ready = 2,
    /// Leaving: keeps its sockets, owns nothing.
    Draining = 3,
    /// Called ready, owns nothing until all know of that.
    Waiting = 4,
}

/// A listed node as all nodes see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its state.
    pub state: MemberState,
    /// Its capacity, 1 to 255.
    pub weight: u8,
}

/// Low 32 bits of SipHash-1-3 over the members in the order of their names; sorts `members`.
///
/// Each member is written as its name, a zero byte, its state and its weight (names hold no zero byte).
#[must_use]
pub fn fingerprint(key: Key, members: &mut [Member<'_>]) -> u32 {
    members.sort_unstable();
    let mut hasher = SipHasher::new(key);
    for member in members {
        hasher.write(member.name.as_bytes());
        hasher.write(&[0, member.state as u8, member.weight]);
    }
    hasher.finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = [1, 2];

    fn member(name: &str, state: MemberState, weight: u8) -> Member<'_> {
        Member {
            name,
            state,
            weight,
        }
    }

    #[test]
    fn golden_vector_in_any_order() {
        let (a, b) = (
            member("a", MemberState::Ready, 1),
            member("b", MemberState::Draining, 255),
        );
        assert_eq!(fingerprint(KEY, &mut [a, b]), 1_543_159_056);
        assert_eq!(fingerprint(KEY, &mut [b, a]), 1_543_159_056);
    }

    #[test]
    fn every_part_counts() {
        let base = fingerprint(KEY, &mut [member("a", MemberState::Ready, 1)]);
        assert_ne!(
            base,
            fingerprint(KEY, &mut [member("b", MemberState::Ready, 1)])
        );
        assert_ne!(
            base,
            fingerprint(KEY, &mut [member("a", MemberState::Joining, 1)])
        );
        assert_ne!(
            base,
            fingerprint(KEY, &mut [member("a", MemberState::Ready, 2)])
        );
        assert_ne!(
            base,
            fingerprint([1, 3], &mut [member("a", MemberState::Ready, 1)])
        );
        assert_ne!(base, fingerprint(KEY, &mut []));
    }
}
