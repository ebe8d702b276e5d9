//! What a soak does: `cargo xtask vm soak` has the same list for its command line.

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
    /// The link is down and the checker is told nothing: it must notice, and the run must fail. Only by name.
    Wreck,
    /// Nobody had time: seen, never done.
    #[value(skip)]
    Stall,
}
