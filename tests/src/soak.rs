//! A soak: faults drawn from a seed, a history of what clients saw, and what must hold of both.
//!
//! Nothing here touches a machine, so that the rules can be tested by themselves.

mod fault;
pub mod gauge;
pub mod history;
pub mod nemesis;
