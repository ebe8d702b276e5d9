//! The program as a user meets it: every kind of bad input is one sentence that names the thing and what to do, with the exit
//! code that belongs to it, and what works keeps working. What needs root is in the scenarios.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tables of a test are read whole, and it shares its parts"
)]

#[path = "program/certs.rs"]
mod certs;
#[path = "program/completion.rs"]
mod completion;
#[path = "program/mistakes.rs"]
mod mistakes;
#[path = "program/objects.rs"]
mod objects;
#[path = "program/serving.rs"]
mod serving;
#[path = "program/support.rs"]
mod support;
