//! Kernel packages in the cache, each kernel with a lock that names its version and the hash of each file; and in the same way the
//! newer xdp-tools that tests on newer kernels call, and a newer QEMU than is installed.
//!
//! A kernel that is there is used as it is: another version comes only by `cargo xtask vm setup`. What was changed since it
//! was fetched is refused, never used.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{
    apt::{self, Package, Suite},
    kernels::Listed,
};
use crate::{cmd, paths, progress::Step};

/// Name of the lock of a kernel.
const LOCK: &str = "lock.json";

/// What is known of a kernel in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lock {
    /// Version of its packages.
    pub(super) version: String,
    /// Its files.
    files: Vec<Locked>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Locked {
    name: String,
    sha256: String,
}

/// A kernel in the cache.
#[derive(Debug)]
pub(super) struct Cached {
    folder: PathBuf,
    pub(super) lock: Lock,
}

/// The kernel from the cache; nothing if it was never fetched.
///
/// A file that is not what the lock says is an error that names the way out.
pub(super) fn cached(kernel: &Listed) -> Result<Option<Cached>> {
    in_folder(folder(&kernel.id)?, &format!(" --kernel {}", kernel.id))
}

/// Suite of the Debian archive whose libxdp makes dispatchers that programs which change packets can be part of on newer kernels (1.5.5).
const TOOLS_SUITE: &str = "forky";
/// The tool there, with all libraries that it loads: those of this machine may be too old for it.
const TOOLS: [&str; 7] = [
    "xdp-tools",
    "libxdp1",
    "libbpf1",
    "libc6",
    "libelf1t64",
    "libzstd1",
    "zlib1g",
];

/// The newer xdp-tools: from the cache, else from the archive; nothing if nothing may be fetched. The caller holds the lock.
pub(super) fn tools(step: &Step, offline: bool) -> Result<Option<Cached>> {
    let folder = paths::cache()?.join("vm/tools");
    match in_folder(folder.clone(), "")? {
        None if !offline => {
            let packages = |suite: &Suite| TOOLS.iter().map(|name| suite.package(name)).collect();
            fetch_into(step, &folder, TOOLS_SUITE, "", packages).map(Some)
        }
        found => Ok(found),
    }
}

/// A newer QEMU for this release of the system: its program and firmware. The libraries that it loads are those of the installed one.
const QEMU: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

/// The newer QEMU in the cache; nothing if it was never fetched.
pub(super) fn cached_qemu() -> Result<Option<Cached>> {
    in_folder(qemu_folder()?, "")
}

/// Fetches a newer QEMU; what is in the cache is left as it is if `cached`. The caller holds the lock.
pub(super) fn qemu(step: &Step, cached: bool) -> Result<Cached> {
    if cached && let Some(found) = cached_qemu()? {
        return Ok(found);
    }
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let suite = backports(&system)
        .context("only Debian's backports are looked at, and this is no release of Debian")?;
    let packages = |suite: &Suite| QEMU.iter().map(|name| suite.package(name)).collect();
    fetch_into(step, &qemu_folder()?, &suite, "", packages)
}

fn qemu_folder() -> Result<PathBuf> {
    Ok(paths::cache()?.join("vm/qemu"))
}

/// The suite of newer programs for the release that this text of os-release(5) names.
fn backports(system: &str) -> Option<String> {
    let value = |name: &str| {
        let mut pairs = system.lines().filter_map(|line| line.split_once('='));
        let (_, value) = pairs.find(|(is, _)| *is == name)?;
        Some(value.trim_matches('"'))
    };
    (value("ID")? == "debian").then_some(())?;
    Some(format!("{}-backports", value("VERSION_CODENAME")?))
}

fn in_folder(folder: PathBuf, which: &str) -> Result<Option<Cached>> {
    let path = folder.join(LOCK);
    if !path.exists() {
        return Ok(None);
    }
    let again = || {
        format!(
            "remove {} and run `cargo xtask vm setup{which}`",
            folder.display()
        )
    };
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lock: Lock = serde_json::from_slice(&text)
        .with_context(|| format!("{} is damaged: {}", path.display(), again()))?;
    for file in &lock.files {
        let is = sha256(&folder.join(&file.name)).ok();
        if is.as_deref() != Some(&*file.sha256) {
            bail!(
                "{} in the cache is not what was fetched: {}",
                file.name,
                again()
            );
        }
    }
    Ok(Some(Cached { folder, lock }))
}

/// Fetches the newest version of the kernel that the archive has, unless it is the one in the cache. The caller holds the lock.
pub(super) fn fetch(step: &Step, kernel: &Listed) -> Result<Cached> {
    let which = format!(" --kernel {}", kernel.id);
    let packages = |suite: &Suite| suite.resolve(&kernel.package);
    fetch_into(step, &folder(&kernel.id)?, &kernel.suite, &which, packages)
}

fn fetch_into(
    step: &Step,
    folder: &Path,
    suite: &str,
    which: &str,
    packages: impl Fn(&Suite) -> Result<Vec<Package>>,
) -> Result<Cached> {
    apt::require()?;
    step.say(&format!("the index of {suite}"));
    let index = paths::cache()?.join("vm/apt").join(suite);
    let suite = Suite::update(suite, &index)?;
    let packages = packages(&suite)?;
    if let Ok(Some(cached)) = in_folder(folder.to_owned(), which)
        && cached.holds(&packages)
    {
        return Ok(cached);
    }
    let fresh = folder.with_extension("new");
    drop(fs::remove_dir_all(&fresh));
    fs::create_dir_all(&fresh).with_context(|| format!("cannot create {}", fresh.display()))?;
    for package in &packages {
        step.say(&package.name);
        suite.download(package, &fresh)?;
    }
    let lock = lock_of(&fresh, &packages)?;
    fs::write(
        fresh.join(LOCK),
        format!("{}\n", serde_json::to_string_pretty(&lock)?),
    )
    .with_context(|| format!("cannot write to {}", fresh.display()))?;
    drop(fs::remove_dir_all(folder));
    fs::rename(&fresh, folder).with_context(|| format!("cannot write {}", folder.display()))?;
    Ok(Cached {
        folder: folder.to_owned(),
        lock,
    })
}

/// The lock over what apt has laid down, which must be what the signed index names.
fn lock_of(folder: &Path, packages: &[Package]) -> Result<Lock> {
    let mut files = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "deb") {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push(Locked {
                name: name.into_owned(),
                sha256: sha256(&path)?,
            });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    for package in packages {
        if !files.iter().any(|file| file.sha256 == package.sha256) {
            bail!(
                "the file of {} is not the one that the archive's index names: try again",
                package.name
            );
        }
    }
    let version = packages.first().context("a kernel of no packages")?;
    Ok(Lock {
        version: version.version.clone(),
        files,
    })
}

impl Cached {
    fn holds(&self, packages: &[Package]) -> bool {
        let is_here = |package: &Package| {
            let mut files = self.lock.files.iter();
            files.any(|file| file.sha256 == package.sha256)
        };
        packages.iter().all(is_here)
    }

    /// Unpacks all of its packages into `directory`.
    pub(super) fn unpack(&self, directory: &Path) -> Result<()> {
        for file in &self.lock.files {
            let mut dpkg = Command::new("dpkg-deb");
            dpkg.arg("-x")
                .arg(self.folder.join(&file.name))
                .arg(directory);
            cmd::output(&mut dpkg)?;
        }
        Ok(())
    }
}

fn folder(id: &str) -> Result<PathBuf> {
    Ok(paths::cache()?.join("vm/kernels").join(id))
}

/// By the machine's own program: this one is built without optimisation and takes twenty times as long.
fn sha256(path: &Path) -> Result<String> {
    let said = cmd::output(Command::new("sha256sum").arg("--").arg(path))?;
    let hash = said.split_whitespace().next();
    hash.map(str::to_owned).context("sha256sum says nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("forebay-vm-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("linux.deb"), "a kernel").unwrap();
        let lock = Lock {
            version: "6.1-1".to_owned(),
            files: vec![Locked {
                name: "linux.deb".to_owned(),
                sha256: sha256(&folder.join("linux.deb")).unwrap(),
            }],
        };
        fs::write(folder.join(LOCK), serde_json::to_vec(&lock).unwrap()).unwrap();
        folder
    }

    #[test]
    fn a_file_that_was_changed_is_refused_with_the_way_out() {
        let folder = stored("changed");
        let found = in_folder(folder.clone(), " --kernel 6.1").unwrap().unwrap();
        assert_eq!(found.lock.version, "6.1-1");
        fs::write(folder.join("linux.deb"), "b kernel").unwrap();
        let error = in_folder(folder.clone(), " --kernel 6.1")
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            format!(
                "linux.deb in the cache is not what was fetched: remove {} and run `cargo xtask vm setup --kernel 6.1`",
                folder.display()
            )
        );
        fs::write(folder.join(LOCK), "{").unwrap();
        let error = in_folder(folder.clone(), " --kernel 6.1")
            .unwrap_err()
            .to_string();
        assert!(error.contains("lock.json is damaged: remove"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
        assert!(in_folder(folder, " --kernel 6.1").unwrap().is_none());
    }

    #[test]
    fn newer_programs_are_those_of_this_release_of_debian() {
        let debian =
            "PRETTY_NAME=\"Debian\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(backports(debian).as_deref(), Some("bookworm-backports"));
        let other = "VERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\n";
        assert_eq!(backports(other), None);
        assert_eq!(backports("ID=debian\n"), None);
    }

    #[test]
    fn a_download_must_be_what_the_index_names() {
        let folder = stored("download");
        let package = |sha256: &str| Package::with_hash("linux", "6.1-1", sha256);
        let good = sha256(&folder.join("linux.deb")).unwrap();
        assert_eq!(
            lock_of(&folder, &[package(&good)]).unwrap().version,
            "6.1-1"
        );
        let error = lock_of(&folder, &[package("abc")]).unwrap_err();
        assert!(error.to_string().starts_with("the file of linux is not"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
