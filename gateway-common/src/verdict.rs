//! What becomes of a packet, and why.

use crate::abi::Counter;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of the packet.
    pub action: Action,
    /// Why; counted by whoever carries the action out.
    pub counter: Counter,
}

impl Verdict {
    /// Pass, because of `counter`.
    #[inline(always)]
    #[must_use]
    pub const fn pass(counter: Counter) -> Self {
        Self {
            action: Action::Pass,
            counter,
        }
    }

    /// Drop, because of `counter`.
    #[inline(always)]
    #[must_use]
    pub const fn drop(counter: Counter) -> Self {
        Self {
            action: Action::Drop,
            counter,
        }
    }
}
