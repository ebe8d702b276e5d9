//! Histories: what happens to the machines, their processes, the links and the list, made from a seed.

use gateway_common::hash::mix;

use crate::snapshot::ReplicaState;

/// Machines that a history may have.
pub(super) const MACHINES: u8 = 8;

/// A number that depends on a seed and on what it is for, not on how many were drawn before: leaving out an event
/// changes nothing else.
pub(super) fn draw(seed: u64, what: u64, a: u64, b: u64) -> u64 {
    mix(seed ^ mix(what ^ mix(a.wrapping_add(1) ^ mix(b.wrapping_add(0x9e37)))))
}

/// How far the list may be ahead of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skew {
    /// Nobody sees a new list before everybody has the one before.
    OneStep,
    /// Any.
    Any,
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The list names a machine in this state from now on, or no longer.
    List(u8, Option<ReplicaState>),
    /// A machine starts, empty.
    Boot(u8),
    /// A machine is gone.
    Die(u8),
    /// The process is killed: its sockets are gone, the tables stay.
    Kill(u8),
    /// The process starts again.
    Start(u8),
    /// The process hangs.
    Stop(u8),
    /// It goes on.
    Continue(u8),
    /// The node decides by itself to drain.
    Drain(u8),
    /// Nothing goes between two machines.
    Cut(u8, u8),
    /// Probes of the one do not reach the other.
    Deaf(u8, u8),
    /// Both ends of the last two.
    Mend(u8, u8),
}

/// A history.
#[derive(Clone, Debug)]
pub(super) struct Script {
    /// What else is random in it.
    pub(super) seed: u64,
    /// Machines that are ready when it begins: the first ones.
    pub(super) ready: u8,
    /// How far lists may be apart.
    pub(super) skew: Skew,
    /// Machines that are not on the link of the others, by bit.
    pub(super) routed: u8,
    /// `--drain-timeout` in milliseconds.
    pub(super) drain_timeout: u64,
    /// When the last event happens, in milliseconds.
    pub(super) length: u64,
    /// What happens when, in milliseconds, in order.
    pub(super) events: Vec<(u64, Event)>,
}

impl Script {
    /// The history of a seed.
    pub(super) fn of(seed: u64, skew: Skew) -> Self {
        let mut count = 0;
        let mut next = |below: u64| {
            count += 1;
            draw(seed, 1, count, 0) % below
        };
        let ready = 2 + next(5) as u8;
        let length = 6_000 + next(14_000);
        let routed = match next(3) {
            0 => 0,
            1 => 0xff,
            _ => next(256) as u8,
        };
        let mut script = Self {
            seed,
            ready,
            skew,
            routed,
            drain_timeout: 12_000 + next(8_000),
            length,
            events: Vec::new(),
        };
        for _ in 0..1 + next(7) {
            let at = 4_000 + next(length - 4_000);
            let (who, other) = (next(MACHINES.into()) as u8, next(MACHINES.into()) as u8);
            let pause = 100 * (1 + next(40));
            let kind = next(12);
            let detail = next(4);
            script.tale(kind, detail, at, pause, who, other);
        }
        script.events.sort_by_key(|(at, _)| *at);
        script
    }

    /// Events that belong together.
    fn tale(&mut self, kind: u64, detail: u64, at: u64, pause: u64, who: u8, other: u8) {
        let mut add = |at: u64, event: Event| self.events.push((at, event));
        let list = |state| Event::List(who, Some(state));
        match kind {
            // Joins, or is ready again.
            0..=2 => {
                add(at, Event::Boot(who));
                add(at, list(ReplicaState::Joining));
                add(at + pause, list(ReplicaState::Ready));
            }
            3 | 4 => {
                if detail > 1 {
                    add(at, Event::Drain(who));
                }
                add(at + pause / 2 * (detail & 1), list(ReplicaState::Draining));
                // The end of the drain takes it off the list.
            }
            // Loses its readiness for a while.
            5 => {
                add(at, list(ReplicaState::Joining));
                add(at + pause, list(ReplicaState::Ready));
            }
            6 => {
                add(at, Event::Die(who));
                if detail > 0 {
                    add(at + pause, list(ReplicaState::Joining));
                }
                if detail == 2 {
                    add(at + 2 * pause, Event::List(who, None));
                }
                if detail == 3 {
                    add(at + 2 * pause, Event::Boot(who));
                    add(at + 3 * pause, list(ReplicaState::Ready));
                }
            }
            7 => {
                add(at, Event::Kill(who));
                if detail > 1 {
                    add(at + pause / 2, list(ReplicaState::Joining));
                }
                add(at + pause, Event::Start(who));
                add(at + 2 * pause, list(ReplicaState::Ready));
            }
            8 => {
                add(at, Event::Stop(who));
                add(at + pause, Event::Continue(who));
            }
            9 => {
                add(at, Event::Cut(who, other));
                add(at + pause, Event::Mend(who, other));
            }
            10 => {
                add(at, Event::Deaf(who, other));
                add(at + pause, Event::Mend(who, other));
            }
            // Cut off from everybody.
            _ => {
                for peer in 0..MACHINES {
                    add(at, Event::Cut(who, peer));
                    add(at + pause, Event::Mend(who, peer));
                }
            }
        }
    }
}
