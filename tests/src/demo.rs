//! The acts of the demo. Each is a function that does something to a running [`crate::rig::Rig`], asserts what
//! must come of it and returns a short table; the scenarios run the same functions.

pub mod curls;
pub mod death;
pub mod drain;
pub mod ejection;
pub mod limits;
pub mod spread;
pub mod table;

pub use table::Table;

/// Fails an act unless a condition holds.
macro_rules! must {
    ($holds:expr, $($sentence:tt)*) => {
        if !$holds {
            anyhow::bail!($($sentence)*);
        }
    };
}
pub(crate) use must;
