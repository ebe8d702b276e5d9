//! The compiler of the kernel programs: found, never configured.
//!
//! In this order: the pinned stable toolchain of rustup, a nightly of rustup, Debian's `rustc-web`. Each needs
//! the sources of the standard library and the same LLVM as `bpf-linker`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::cmd;

/// The pinned toolchain, as rustup names it (also in `rust-toolchain.toml`).
pub(crate) const PINNED: &str = "1.95.0";

/// Major version of the LLVM that the compiler and `bpf-linker` share.
pub(crate) const LLVM_MAJOR: &str = "22";

/// A compiler that can build for BPF.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// `rustc` itself, not rustup's proxy.
    pub(crate) rustc: PathBuf,
    /// The `cargo` beside it.
    pub(crate) cargo: PathBuf,
    /// Its sysroot, which holds the sources of `core`.
    pub(crate) sysroot: PathBuf,
    /// `rustc -vV`.
    pub(crate) version: String,
}

impl Toolchain {
    /// Whether unstable flags need `RUSTC_BOOTSTRAP`.
    pub(crate) fn is_nightly(&self) -> bool {
        field(&self.version, "release").is_some_and(|release| release.contains("nightly"))
    }

    /// `1.95.0 (LLVM 22.1.2)`.
    pub(crate) fn describe(&self) -> String {
        let of = |name| field(&self.version, name).unwrap_or("?");
        format!("{} (LLVM {})", of("release"), of("LLVM version"))
    }

    fn at(rustc: PathBuf, cargo: PathBuf) -> Result<Self> {
        let version = cmd::output(clean(&mut Command::new(&rustc)).arg("-vV"))?;
        let sysroot = cmd::output(clean(&mut Command::new(&rustc)).args(["--print", "sysroot"]))?;
        let sysroot = PathBuf::from(sysroot);
        Ok(Self {
            rustc,
            cargo,
            sysroot,
            version,
        })
    }

    fn is_usable(&self) -> bool {
        let core = self
            .sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs");
        let llvm = field(&self.version, "LLVM version").and_then(|v| v.split('.').next());
        core.is_file() && llvm == Some(LLVM_MAJOR)
    }
}

/// The first usable compiler, if any.
pub(crate) fn find() -> Option<Toolchain> {
    let debian = || Toolchain::at("/usr/bin/rustc".into(), "/usr/bin/cargo".into()).ok();
    let mut names = vec![PINNED.to_owned()];
    names.extend(
        rustup_toolchains()
            .into_iter()
            .filter(|name| name.starts_with("nightly")),
    );
    names
        .iter()
        .filter_map(|name| of_rustup(name))
        .chain(debian())
        .find(Toolchain::is_usable)
}

/// The usable compiler, or an error that says how to get one.
pub(crate) fn require() -> Result<Toolchain> {
    find()
        .context("no Rust compiler with the sources of `core` and LLVM 22: run `cargo xtask setup`")
}

/// Removes from a child's environment what the cargo that runs us has put there for itself.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let ours = matches!(
            &*text,
            "CARGO_HOME" | "CARGO_NET_OFFLINE" | "CARGO_HTTP_PROXY"
        ) || text.starts_with("CARGO_REGISTR")
            || text.starts_with("CARGO_SOURCE_");
        let set_for_us = text.starts_with("CARGO")
            || matches!(
                &*text,
                "RUSTUP_TOOLCHAIN" | "RUSTFLAGS" | "RUSTC" | "RUSTC_WRAPPER"
            )
            || matches!(
                &*text,
                "RUSTC_WORKSPACE_WRAPPER" | "RUSTDOC" | "RUSTDOCFLAGS" | "RUSTC_BOOTSTRAP"
            );
        if set_for_us && !ours {
            command.env_remove(&name);
        }
    }
    command
}

/// Where cargo keeps downloaded sources.
pub(crate) fn cargo_home() -> PathBuf {
    env::var_os("CARGO_HOME").map_or_else(
        || Path::new(&env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    )
}

fn rustup_toolchains() -> Vec<String> {
    let home = env::var_os("RUSTUP_HOME").map_or_else(
        || Path::new(&env::var_os("HOME").unwrap_or_default()).join(".rustup"),
        PathBuf::from,
    );
    let entries = fs::read_dir(home.join("toolchains"))
        .into_iter()
        .flatten()
        .flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn of_rustup(name: &str) -> Option<Toolchain> {
    let which = |program| {
        let said = cmd::output(clean(Command::new("rustup").args([
            "which",
            "--toolchain",
            name,
            program,
        ])));
        said.ok().map(PathBuf::from)
    };
    Toolchain::at(which("rustc")?, which("cargo")?).ok()
}

fn field<'a>(version: &'a str, name: &str) -> Option<&'a str> {
    version
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_version_are_read_by_name() {
        let version = "rustc 1.95.0 (abc 2026-01-01)\nrelease: 1.95.0\nLLVM version: 22.1.2";
        assert_eq!(field(version, "release"), Some("1.95.0"));
        assert_eq!(field(version, "LLVM version"), Some("22.1.2"));
        assert_eq!(field(version, "host"), None);
    }

    #[test]
    fn the_pinned_toolchain_is_the_one_of_the_toolchain_file() {
        let file = fs::read_to_string(crate::paths::root().join("rust-toolchain.toml")).unwrap();
        assert!(file.contains(&format!("channel = \"{PINNED}\"")), "{file}");
    }
}
