//! Which fault comes when, from a seed alone.

use std::time::Duration;

use clap::ValueEnum;

pub use super::fault::Fault;

impl Fault {
    /// Its name in commands.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flap => "flap",
            Self::Reload => "reload",
            Self::Queues => "queues",
            Self::Restart => "restart",
            Self::Away => "away",
            Self::Memory => "memory",
            Self::Churn => "churn",
            Self::Drain => "drain",
            Self::Flood => "flood",
            Self::Clock => "clock",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Upgrade => "upgrade",
            Self::Endpoint => "endpoint",
            Self::Wreck => "wreck",
            Self::Stall => "stall",
        }
    }

    /// The fault of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let named = |fault: &Self| fault.name() == name && *fault != Self::Stall;
        Self::value_variants().iter().copied().find(named)
    }

    /// Whether requests may fail while it lasts: there is no way to the node, no process of it, or no time. During all others
    /// none may.
    #[must_use]
    pub const fn excuses(self) -> bool {
        matches!(
            self,
            Self::Flap | Self::Reload | Self::Kill | Self::Pause | Self::Endpoint | Self::Stall
        )
    }

    /// Whether it needs a machine of its own: a card that can be taken away, memory and a calendar that are nobody else's.
    #[must_use]
    pub const fn needs_machine(self) -> bool {
        matches!(self, Self::Reload | Self::Memory | Self::Clock)
    }
}

/// One fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Act {
    /// What.
    pub fault: Fault,
    /// How long it lasts.
    pub hold: Duration,
    /// How long all is well afterwards, beyond the time in which all must be served again.
    pub pause: Duration,
    /// For what else a fault needs a number.
    pub number: u64,
}

/// The faults of a run, without end. The same seed and choice give the same ones.
#[derive(Clone, Debug)]
pub struct Nemesis {
    state: u64,
    choice: Vec<Fault>,
    /// Those that come before any comes again.
    left: Vec<Fault>,
}

impl Nemesis {
    /// From a seed and the faults to choose from, at least one.
    #[must_use]
    pub fn new(seed: u64, choice: &[Fault]) -> Self {
        Self {
            state: seed,
            choice: choice.to_vec(),
            left: Vec::new(),
        }
    }

    /// A number below `bound`: of a counter that is mixed by two odd multiplications.
    fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        for factor in [0xd6e8_feb8_6659_fd93, 0xc2b2_ae3d_27d4_eb4f] {
            mixed = (mixed ^ (mixed >> 32)).wrapping_mul(factor);
        }
        (mixed >> 33) % bound.max(1)
    }
}

impl Iterator for Nemesis {
    type Item = Act;

    fn next(&mut self) -> Option<Act> {
        if self.left.is_empty() {
            self.left.clone_from(&self.choice);
        }
        let at = self.below(self.left.len() as u64);
        let fault = self.left.swap_remove(usize::try_from(at).ok()?);
        Some(Act {
            fault,
            hold: Duration::from_millis(200 + self.below(3_800)),
            pause: Duration::from_millis(500 + self.below(1_500)),
            number: self.below(1 << 30),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_and_another_one_others() {
        let first = |seed| -> Vec<Act> { Nemesis::new(seed, &Fault::ALL).take(40).collect() };
        assert_eq!(first(7), first(7));
        assert_ne!(first(7), first(8));
    }

    #[test]
    fn every_fault_comes_before_any_comes_again() {
        let mut seen: Vec<Fault> = Nemesis::new(3, &Fault::ALL)
            .take(Fault::ALL.len())
            .map(|act| act.fault)
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, Fault::ALL);
    }

    #[test]
    fn names_lead_back_to_their_faults() {
        let all = Fault::ALL.into_iter().chain(Fault::WHOLE);
        for fault in all.chain([Fault::Wreck]) {
            assert_eq!(Fault::named(fault.name()), Some(fault));
        }
        assert_eq!(Fault::named("x"), None);
        assert_eq!(Fault::named("stall"), None);
        assert!(!Fault::ALL.contains(&Fault::Wreck) && !Fault::Wreck.excuses());
    }
}
