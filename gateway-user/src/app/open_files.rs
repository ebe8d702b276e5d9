//! Room for open files.

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files for which there is room from the start.
const OPEN_FILES: i32 = 16_384;

/// Sockets are what a proxy is made of: takes all that the system grants.
pub(super) fn make_room() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        tracing::warn!(%error, "the limit on open files stays at {:?}", limit.current);
    }
    // As large a table of them as most loads need, before threads share it: when it grows later, whoever opens a file waits
    // for all processors (`synchronize_rcu`), a worker in the middle of an accept.
    let last = limit
        .maximum
        .map_or(i32::MAX, |n| i32::try_from(n).unwrap_or(i32::MAX))
        - 1;
    drop(fcntl_dupfd_cloexec(std::io::stderr(), last.min(OPEN_FILES)));
}
