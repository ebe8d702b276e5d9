//! A soak: faults drawn from a seed, a history of what clients saw, and what must hold of both.
//!
//! The rules touch no machine, so that they can be tested by themselves.

pub mod course;
mod fault;
pub mod flood;
pub mod gauge;
pub mod history;
pub mod nemesis;
pub mod told;
