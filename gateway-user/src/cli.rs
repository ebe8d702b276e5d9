//! The subcommands.

pub mod check;
pub mod client;
pub mod table;
