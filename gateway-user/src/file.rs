//! The file provider: every manifest below one directory, followed as it changes.
//!
//! `read` and `watch` touch the file system; `document`, `merge` and `debounce` are pure. A broken file or
//! object never disturbs what works.

pub mod debounce;
pub mod document;
pub mod merge;
pub mod read;
pub mod watch;
