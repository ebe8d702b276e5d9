//! The file system of a machine: an archive in cpio's format `newc` (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! It holds the first process, the tests, the programs that tests call, with the libraries that these need, and modules.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{cmd, paths, source};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;
const LINK: u32 = 0o120_777;

/// Programs of this machine that the tests call there.
const PROGRAMS: [&str; 8] = [
    "sh", "ip", "tc", "ethtool", "nsenter", "setpriv", "prlimit", "cat",
];
/// The same, where they are installed: a test that misses one says so.
const OPTIONAL: [&str; 3] = ["nft", "xdp-loader", "sed"];

/// An archive that grows.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// A folder and those above it, unless they are there.
    fn folder(&mut self, name: &str) {
        if name.is_empty() || self.names.contains(name) {
            return;
        }
        if let Some((above, _)) = name.rsplit_once('/') {
            self.folder(above);
        }
        self.entry(name, FOLDER, (0, 0), &[]);
    }

    /// A program or any other file at an absolute path.
    pub(super) fn file(&mut self, path: &str, bytes: &[u8]) {
        self.below(path, PROGRAM, bytes);
    }

    /// A symbolic link.
    fn link(&mut self, path: &str, target: &str) {
        self.below(path, LINK, target.as_bytes());
    }

    fn below(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        let name = path.trim_start_matches('/');
        if let Some((above, _)) = name.rsplit_once('/') {
            self.folder(above);
        }
        if !self.names.contains(name) {
            self.entry(name, mode, (0, 0), bytes);
        }
    }

    /// What the first process reads from and writes to.
    pub(super) fn console(&mut self) {
        self.folder("dev");
        self.entry("dev/console", DEVICE, (5, 1), &[]);
    }

    /// A program of this machine with the libraries that it loads, at the same places.
    fn program(&mut self, path: &Path) -> Result<()> {
        self.copy(path)?;
        // A static one has none, which is told by failing.
        let listed = cmd::output(Command::new("ldd").arg(path)).unwrap_or_default();
        for library in libraries(&listed) {
            self.copy(Path::new(library))?;
        }
        Ok(())
    }

    fn copy(&mut self, path: &Path) -> Result<()> {
        let name = path.to_str().context("a path that is no text")?;
        let bytes = fs::read(path).with_context(|| format!("cannot read {name}"))?;
        self.file(name, &bytes);
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), bytes: &[u8]) {
        self.names.insert(name.to_owned());
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let length = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let fields = [
            number, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, length, 0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    /// All programs that tests call.
    pub(super) fn programs(&mut self) -> Result<()> {
        self.folder("root");
        for name in PROGRAMS.into_iter().chain(OPTIONAL) {
            let Some(path) = find(name) else {
                if PROGRAMS.contains(&name) {
                    bail!(
                        "the tests call {name}, which this machine has not: run `cargo xtask vm setup`"
                    );
                }
                continue;
            };
            self.program(&path)?;
            let short = format!("/bin/{name}");
            let place = path.to_string_lossy();
            if *place != *short {
                self.link(&short, &place);
            }
        }
        Ok(())
    }

    /// The quick start's, where the tests look for them: in the checkout that they were built from.
    pub(super) fn manifests(&mut self) -> Result<()> {
        for path in source::files(&paths::root().join("examples/quickstart"))? {
            self.copy(&path)?;
        }
        Ok(())
    }

    /// Programs of xdp-tools for the kernel, where its loader looks for them.
    pub(super) fn xdp_tools(&mut self) -> Result<()> {
        let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let objects = folders.filter_map(|folder| fs::read_dir(folder.path().join("bpf")).ok());
        for object in objects.flatten().flatten() {
            self.copy(&object.path())?;
        }
        Ok(())
    }

    /// Another version of the same, unpacked from its packages, in `/newer` with all libraries that it loads, and called by a script.
    pub(super) fn newer_xdp_tools(&mut self, unpacked: &Path) -> Result<()> {
        let libraries = fs::read_dir(unpacked.join("usr/lib"))
            .with_context(|| format!("nothing in {}", unpacked.display()))?
            .flatten()
            .find(|folder| folder.path().join("bpf").is_dir())
            .context("the packages of xdp-tools hold no programs for the kernel")?;
        let place = format!("/newer/lib/{}", libraries.file_name().to_string_lossy());
        let mut loader = None;
        let program = fs::read(unpacked.join("usr/sbin/xdp-loader")).context("no xdp-loader")?;
        self.file("/newer/xdp-loader", &program);
        for (folder, place) in [
            (libraries.path(), place.clone()),
            (libraries.path().join("bpf"), format!("{place}/bpf")),
        ] {
            for file in fs::read_dir(folder)?.flatten() {
                // A link among them is followed: each name is what it stands for.
                let Ok(bytes) = fs::read(file.path()) else {
                    continue;
                };
                let name = format!("{place}/{}", file.file_name().to_string_lossy());
                if name.contains("/ld-linux") {
                    loader = Some(name.clone());
                }
                self.file(&name, &bytes);
            }
        }
        let loader = loader.context("the packages of xdp-tools hold no dynamic loader")?;
        let script = format!(
            "#!/bin/sh\nLIBXDP_OBJECT_PATH={place}/bpf exec {loader} --library-path {place} /newer/xdp-loader \"$@\"\n"
        );
        self.file("/bin/xdp-loader-newer", script.as_bytes());
        Ok(())
    }

    /// A program with its libraries at a place of its own.
    pub(super) fn program_as(&mut self, place: &str, path: &Path, bytes: &[u8]) -> Result<()> {
        self.file(place, bytes);
        let listed = cmd::output(Command::new("ldd").arg(path)).unwrap_or_default();
        for library in libraries(&listed) {
            self.copy(Path::new(library))?;
        }
        Ok(())
    }
}

/// Paths in what `ldd` prints.
fn libraries(listed: &str) -> impl Iterator<Item = &str> {
    listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.file("/a/b/c", b"hello");
        archive.file("/a/b/c", b"again");
        archive.console();
        let bytes = archive.finish();
        let mut rest = &bytes[..];
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let field = |i: usize| {
                let at = 6 + 8 * i;
                let text = std::str::from_utf8(&rest[at..at + 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            assert_eq!(&rest[..6], b"070701");
            let (mode, size, length) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&rest[110..110 + length - 1]).unwrap();
            let data = (110 + length).next_multiple_of(4);
            entries.push((name.to_owned(), mode, rest[data..data + size].to_vec()));
            rest = &rest[(data + size).next_multiple_of(4)..];
        }
        let names: Vec<&str> = entries.iter().map(|entry| &*entry.0).collect();
        assert_eq!(
            names,
            ["a", "a/b", "a/b/c", "dev", "dev/console", "TRAILER!!!"]
        );
        assert_eq!(entries[2].1, 0o100_755);
        assert_eq!(entries[2].2, b"hello");
        assert_eq!(entries[4].1, 0o020_600);
    }

    #[test]
    fn libraries_are_the_paths_that_ldd_prints() {
        let listed = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)";
        assert_eq!(
            libraries(listed).collect::<Vec<_>>(),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }
}
