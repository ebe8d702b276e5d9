//! Where things are: the checkout, its target directory and the user's cache.

use std::{env, path::PathBuf};

use anyhow::{Context, Result};

/// Root of the checkout that this program is run from.
pub(crate) fn root() -> PathBuf {
    // Told by `cargo run`. What was compiled in is another checkout's root where a target directory was copied:
    // cargo takes the program in it for fresh.
    let told = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let manifest = told
        .filter(|directory| directory.ends_with("xtask"))
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    manifest.parent().unwrap_or(&manifest).to_path_buf()
}

/// Cargo's target directory for host builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// `FOREBAY_CACHE` or `~/.cache/forebay`: pinned tools, shared by all checkouts.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("FOREBAY_CACHE") {
        return Ok(PathBuf::from(dir));
    }
    let home = env::var_os("HOME").context("HOME is not set: set it, or FOREBAY_CACHE")?;
    Ok(PathBuf::from(home).join(".cache/forebay"))
}

/// The kernel object that the daemon embeds.
pub(crate) fn object() -> PathBuf {
    target().join("ebpf/forebay.o")
}
