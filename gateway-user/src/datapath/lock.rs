//! One daemon for one directory of pins: two would write the same tables and undo each other's routes.
//!
//! The lock is on the directory itself, so that it is the same one however the path is written and in whichever container the
//! file system is mounted, and the kernel releases it when the process ends in any way.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::{Error, pins};

/// How long to wait for a daemon that is about to end, as when one takes over from another.
pub const PATIENCE: Duration = Duration::from_secs(10);

const AGAIN: Duration = Duration::from_millis(50);

/// Held as long as this or a clone of it lives.
#[derive(Clone, Debug)]
pub struct Lock {
    _directory: Arc<File>,
}

impl Lock {
    /// Takes the lock of `--bpffs`, which is made if need be; waits for a daemon that is about to end.
    ///
    /// # Errors
    /// As [`Self::take`], and as [`pins::prepare`].
    pub fn of_pins(bpffs: &Path) -> Result<Self, Error> {
        pins::prepare(bpffs)?;
        Self::take(bpffs, PATIENCE)
    }

    /// Takes the lock of a directory that exists; waits at most `patience`.
    ///
    /// # Errors
    /// Somebody else has it; or the directory cannot be opened.
    pub fn take(bpffs: &Path, patience: Duration) -> Result<Self, Error> {
        let unusable = |error: io::Error| Error::Bpffs {
            path: bpffs.to_owned(),
            reason: format!("it cannot be locked ({error}); name another directory with --bpffs"),
        };
        let directory = File::open(bpffs).map_err(unusable)?;
        let started = Instant::now();
        let mut said = false;
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    return Ok(Self {
                        _directory: Arc::new(directory),
                    });
                }
                Err(errno) if errno != rustix::io::Errno::WOULDBLOCK => {
                    return Err(unusable(errno.into()));
                }
                Err(_) if started.elapsed() >= patience => {
                    return Err(Error::InUse {
                        bpffs: bpffs.to_owned(),
                        holder: holder(&directory),
                    });
                }
                Err(_) => {}
            }
            if !said {
                said = true;
                tracing::info!(
                    "waiting up to {patience:?} for the forebay{} that uses the pins in {} to end",
                    holder(&directory),
                    bpffs.display()
                );
            }
            std::thread::sleep(AGAIN);
        }
    }
}

/// Who has the lock, in the words of a sentence; empty if the kernel does not say (it is in another container, say).
fn holder(directory: &File) -> String {
    let number = directory.metadata().map(|meta| meta.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let process = number.ok().and_then(|inode| {
        let mut flocks = locks.lines().filter(|line| line.contains(" FLOCK "));
        flocks.find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = words.iter().position(|word| *word == "WRITE")?;
            let (pid, file) = (words.get(at + 1)?, words.get(at + 2)?);
            let of = file.rsplit(':').next()?.parse::<u64>().ok()?;
            (of == inode && pid.parse::<i32>().is_ok_and(|pid| pid > 0)).then(|| pid.to_string())
        })
    });
    process.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_next_one_waits() {
        let directory = tempfile::tempdir().unwrap();
        let first = Lock::take(directory.path(), Duration::ZERO).unwrap();
        let refused = Lock::take(directory.path(), Duration::ZERO).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!(
                "another forebay (process {}) uses the pins in {}: stop it, or give this one another directory with --bpffs",
                std::process::id(),
                directory.path().display()
            )
        );
        let path = directory.path().to_owned();
        let next = std::thread::spawn(move || Lock::take(&path, PATIENCE).map(drop));
        drop(first);
        next.join().unwrap().unwrap();
    }
}
