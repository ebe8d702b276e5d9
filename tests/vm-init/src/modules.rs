//! Kernel modules that the host has laid down, in the order in which they need each other.

use std::fs::{self, File};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::system::finit_module;

/// Where they lie; their names begin with their place in the order.
const FOLDER: &str = "/modules";

/// Loads all of them.
pub(crate) fn load() -> Result<()> {
    let entries = fs::read_dir(FOLDER).with_context(|| format!("cannot read {FOLDER}"))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.display();
        let file = File::open(&path).with_context(|| format!("cannot open {name}"))?;
        match finit_module(&file, c"", 0) {
            // Another one has brought it along, or it is part of the kernel after all.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot load {name}")),
        }
    }
    Ok(())
}
