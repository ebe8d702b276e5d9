//! What becomes of a packet, and why.

use crate::abi::counter::node_of;
use crate::abi::{Counter, NodeIndex, reason_of};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// On to the local stack.
    Pass,
    /// Away.
    Drop,
    /// Out of the interface on which it came in.
    Transmit,
    /// Out of another interface.
    Redirect {
        /// Index of that interface.
        ifindex: u32,
    },
}

/// An action and its one reason.
///
/// One word, its top bit set: functions of the kernel's target can hand back no more, and no part of it is ever undefined.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Verdict(u64);

const PASS: u64 = 0;
const DROP: u64 = 1;
const TRANSMIT: u64 = 2;
const REDIRECT: u64 = 3;

impl Verdict {
    #[inline(always)]
    const fn new(action: u64, cell: u32, ifindex: u32) -> Self {
        Self(1 << 63 | action << 48 | (cell as u64) << 32 | ifindex as u64)
    }

    /// Pass, counted in a cell whose reason is that of the pass.
    #[inline(always)]
    #[must_use]
    pub const fn pass_in(cell: u32) -> Self {
        Self::new(PASS, cell, 0)
    }

    /// Pass, because of `counter`.
    #[inline(always)]
    #[must_use]
    pub const fn pass(counter: Counter) -> Self {
        Self::new(PASS, counter.slot(), 0)
    }

    /// Drop, because of `counter`.
    #[inline(always)]
    #[must_use]
    pub const fn drop(counter: Counter) -> Self {
        Self::new(DROP, counter.slot(), 0)
    }

    /// Out of the interface on which it came in, because of `counter`.
    #[inline(always)]
    #[must_use]
    pub const fn transmit(counter: Counter) -> Self {
        Self::new(TRANSMIT, counter.slot(), 0)
    }

    /// Out of `ifindex`, for a packet that came in on `ingress`, because of `counter`.
    #[inline(always)]
    #[must_use]
    pub const fn out_of(ifindex: u32, ingress: u32, counter: Counter) -> Self {
        Self::out_in(ifindex, ingress, counter.slot())
    }

    /// [`Self::out_of`], counted in a cell.
    #[inline(always)]
    #[must_use]
    pub const fn out_in(ifindex: u32, ingress: u32, cell: u32) -> Self {
        if ifindex == ingress {
            Self::new(TRANSMIT, cell, 0)
        } else {
            Self::new(REDIRECT, cell, ifindex)
        }
    }

    /// What becomes of the packet.
    #[inline(always)]
    #[must_use]
    pub const fn action(self) -> Action {
        match self.0 >> 48 & 3 {
            PASS => Action::Pass,
            DROP => Action::Drop,
            TRANSMIT => Action::Transmit,
            _ => Action::Redirect {
                ifindex: self.0 as u32,
            },
        }
    }

    /// Cell to count in, by whoever carries the action out.
    #[inline(always)]
    #[must_use]
    pub const fn cell(self) -> u32 {
        (self.0 >> 32) as u32 & 0xffff
    }

    /// The node that it goes to, if it goes to one.
    #[must_use]
    pub const fn node(self) -> Option<NodeIndex> {
        node_of(self.cell())
    }

    /// Why.
    #[must_use]
    pub fn counter(self) -> Counter {
        reason_of(self.cell()).unwrap_or(Counter::NotOurs)
    }

    /// The word; never 0.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.0
    }

    /// The verdict in a word whose top bit is set.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Option<Self> {
        if word >> 63 == 0 {
            return None;
        }
        Some(Self(word))
    }
}

impl core::fmt::Debug for Verdict {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?} ({})", self.action(), self.counter().name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{Path, VipCell};

    #[test]
    fn a_verdict_says_what_it_was_made_of() {
        for counter in Counter::ALL {
            let far = Action::Redirect { ifindex: u32::MAX };
            for (verdict, action) in [
                (Verdict::pass(*counter), Action::Pass),
                (Verdict::drop(*counter), Action::Drop),
                (Verdict::transmit(*counter), Action::Transmit),
                (Verdict::out_of(3, 3, *counter), Action::Transmit),
                (Verdict::out_of(u32::MAX, 3, *counter), far),
            ] {
                assert_eq!((verdict.action(), verdict.counter()), (action, *counter));
                assert_eq!(Verdict::unpack(verdict.pack()), Some(verdict));
            }
        }
        assert_eq!(Verdict::unpack(0), None);
        let cell = VipCell::LocalOnly.cell(4_095);
        let (pass, out) = (
            Verdict::pass_in(cell),
            Verdict::out_in(7, 3, Path::Heir.cell(1_023)),
        );
        assert_eq!((pass.cell(), pass.counter()), (cell, Counter::LocalOnly));
        assert_eq!(out.counter(), Counter::SynHeir);
        assert_eq!(out.action(), Action::Redirect { ifindex: 7 });
    }
}
