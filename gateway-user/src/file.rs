//! The file provider: every manifest below one directory, followed as it changes; and what file mode keeps on disk.
//!
//! `read`, `watch`, `keys` and `state` touch the file system; `document`, `identity`, `schema`, `merge` and `debounce` are pure. A broken
//! file or object never disturbs what works.

pub mod debounce;
pub mod document;
mod identity;
pub mod keys;
pub mod merge;
mod problem;
pub mod read;
pub mod schema;
pub mod state;
pub mod watch;
