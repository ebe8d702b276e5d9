//! What a soak does: the commands of `cargo xtask` have the same list for their command lines.

use clap::ValueEnum;

/// What can be done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// The uplink's link goes down and up.
    Flap,
    /// The card loses its driver and gets it again.
    Reload,
    /// The card's rings and the queues of a veth change.
    Queues,
    /// The daemon is replaced by another one.
    Restart,
    /// There is no daemon for a time.
    Away,
    /// The machine's memory is filled.
    Memory,
    /// The configuration changes many times.
    Churn,
    /// The node drains and is ready again.
    Drain,
    /// SYNs from addresses that are nobody's, and packets that are cut off.
    Flood,
    /// The machine's calendar jumps forth and back by up to two hours.
    Clock,
    /// The process is killed, and another one starts some time after.
    Kill,
    /// The process is stopped for a time, sockets and all.
    Pause,
    /// The process ends in order, its endpoint goes, and another one comes.
    Upgrade,
    /// An endpoint answers 500 for a time.
    Endpoint,
    /// The link is down, or every endpoint fails, and the checker is told nothing: it must notice, and the run must fail. Only by
    /// name.
    Wreck,
    /// Nobody had time: seen, never done.
    #[value(skip)]
    Stall,
}

impl Fault {
    /// All that the kernel's part of a node has to live with.
    pub const ALL: [Self; 10] = [
        Self::Flap,
        Self::Reload,
        Self::Queues,
        Self::Restart,
        Self::Away,
        Self::Memory,
        Self::Churn,
        Self::Drain,
        Self::Flood,
        Self::Clock,
    ];
    /// All that whole nodes have to live with; a drain of theirs has no way back and is a part of an upgrade.
    pub const WHOLE: [Self; 7] = [
        Self::Kill,
        Self::Pause,
        Self::Upgrade,
        Self::Churn,
        Self::Flood,
        Self::Flap,
        Self::Endpoint,
    ];
    /// What they have to live with besides where they have a machine of their own, and one of them a card.
    pub const IN_MACHINE: [Self; 4] = [Self::Reload, Self::Queues, Self::Memory, Self::Clock];
}
