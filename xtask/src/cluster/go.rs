//! Programs that Go builds: into the cache, where what belongs together is either complete or missing.
//!
//! Only what is asked for is kept. Go's caches, several gigabytes, lie beside it while it is built and go with the build.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    checks,
    wait::{Interrupt, until},
};
use crate::{cmd, paths, setup, source};

/// Oldest Go that builds all this: minor version of 1.
const MINOR: u32 = 26;
/// Longest build, on a machine that has other things to do.
const BUILD: Duration = Duration::from_secs(3 * 3600);
/// Lines of a failed build that its error shows.
const TAIL: usize = 40;

/// A build: where it is, and whose end it follows.
pub(crate) struct Go<'a> {
    interrupt: &'a Interrupt,
    work: PathBuf,
    toolchain: &'static str,
}

/// What a build is for, and what it takes.
pub(crate) struct Wanted<'a> {
    /// The folder in the cache that holds it in the end.
    pub(crate) place: &'a Path,
    /// In a sentence: "building Kubernetes".
    pub(crate) what: &'static str,
    pub(crate) gib: u64,
    /// Go's word for the toolchain: `local`, or a version that is fetched as a module.
    pub(crate) toolchain: &'static str,
}

/// Finds what is wanted, or builds it: `build` fills the folder that it is given. Returns whether it was built.
pub(crate) fn provide(
    interrupt: &Interrupt,
    wanted: &Wanted<'_>,
    build: impl FnOnce(&Go<'_>, &Path) -> Result<()>,
) -> Result<bool> {
    if wanted.place.is_dir() {
        return Ok(false);
    }
    let _lock = setup::lock()?;
    if wanted.place.is_dir() {
        return Ok(false);
    }
    check(wanted.what)?;
    let cache = paths::cache()?;
    checks::space(&cache, wanted.gib, wanted.what)?;
    // Nobody else builds now: whatever is left is of a build that was killed.
    let work = cache.join("go-build");
    clear(&work)?;
    let go = Go {
        interrupt,
        work: work.clone(),
        toolchain: wanted.toolchain,
    };
    let built = go.fill(wanted.place, build);
    // Also what a failed build leaves is several gigabytes.
    let cleared = clear(&work);
    built.and(cleared)?;
    Ok(true)
}

impl Go<'_> {
    fn fill(&self, place: &Path, build: impl FnOnce(&Self, &Path) -> Result<()>) -> Result<()> {
        let out = self.work.join("out");
        for folder in [&out, &self.work.join("temporary")] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        build(self, &out)?;
        // As a whole, so that it is either complete or missing.
        fs::rename(&out, place).with_context(|| format!("cannot create {}", place.display()))
    }

    /// A folder that is removed after the build.
    pub(crate) fn work(&self) -> &Path {
        &self.work
    }

    /// `go` in `folder` with caches of its own, ended with this process however that ends.
    pub(crate) fn command(&self, folder: &Path, words: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "go"])
            .args(words)
            .current_dir(folder)
            .env("GOCACHE", self.work.join("cache"))
            .env("GOMODCACHE", self.work.join("modules"))
            .env("GOTMPDIR", self.work.join("temporary"))
            .env("GOTOOLCHAIN", self.toolchain)
            .env("GOWORK", "off")
            // Modules that can be removed again, and never another go.sum.
            .env("GOFLAGS", "-modcacherw -mod=readonly")
            .env("CGO_ENABLED", "0");
        command
    }

    /// Runs `command`, calls `each` with the number of lines that it has said so far; an interrupt ends it.
    pub(crate) fn run(&self, mut command: Command, each: impl Fn(usize)) -> Result<()> {
        let said = self.work.join("said");
        let file =
            File::create(&said).with_context(|| format!("cannot create {}", said.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("cannot run setpriv")?;
        let text = || fs::read_to_string(&said).unwrap_or_default();
        let status = until(self.interrupt, "the build", BUILD, || {
            each(text().lines().count());
            child.try_wait().context("cannot wait for go")
        });
        if status.is_err() {
            // Go waits for its compilers then, and removes what they write.
            kill_process(Pid::from_child(&child), Signal::INT).ok();
            child.wait().context("cannot wait for go")?;
        }
        let status = status?;
        let text = text();
        let lines: Vec<&str> = text.lines().collect();
        let end = &lines[lines.len().saturating_sub(TAIL)..];
        ensure!(status.success(), "go failed ({status})\n{}", end.join("\n"));
        Ok(())
    }

    /// The zip of a module, `NAME@VERSION`. Go fetches it and says where it is, also when it then refuses to use it because
    /// it is of a newer Go.
    pub(crate) fn zip(&self, module: &str, wanted_sum: &str) -> Result<PathBuf> {
        // Not in a module, whose requirements would change.
        let mut download = self.command(&self.work, &["mod", "download", "-json", module]);
        let said = download
            .env("GOFLAGS", "-modcacherw")
            .stdin(Stdio::null())
            .output()
            .context("cannot run go")?;
        let about = || {
            format!(
                "cannot fetch {module}: {}",
                String::from_utf8_lossy(&said.stderr)
            )
        };
        let answer: Value = serde_json::from_slice(&said.stdout).with_context(about)?;
        let zip = answer["Zip"].as_str().with_context(about)?;
        let sum = answer["Sum"].as_str().unwrap_or_default();
        ensure!(
            sum == wanted_sum,
            "{module} has the sum {sum} instead of {wanted_sum}"
        );
        Ok(zip.into())
    }
}

fn check(what: &str) -> Result<()> {
    let wanted = format!("{what} takes Go 1.{MINOR} or newer");
    let version = cmd::output(Command::new("go").args(["env", "GOVERSION"]))
        .with_context(|| format!("{wanted}: see https://go.dev/doc/install"))?;
    if minor(&version).is_none_or(|minor| minor < MINOR) {
        bail!("{wanted}, this is {version}");
    }
    Ok(())
}

/// The minor version in `go1.26.8`.
fn minor(version: &str) -> Option<u32> {
    let digits = version.strip_prefix("go1.")?;
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// Follows from all files in `folders`, which the build reads, and from `more`.
pub(crate) fn key(more: &str, folders: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(more);
    for folder in folders {
        for path in source::files(folder)? {
            let name = path.strip_prefix(folder).unwrap_or(&path);
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            hash.update(name.as_os_str().as_encoded_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(&bytes);
        }
    }
    let digest = hash.finalize();
    Ok(digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn clear(work: &Path) -> Result<()> {
    if work.exists() {
        fs::remove_dir_all(work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_understood() {
        assert_eq!(minor("go1.26.8"), Some(26));
        assert_eq!(minor("go1.27rc1"), Some(27));
        assert_eq!(minor("devel"), None);
    }

    #[test]
    fn the_key_follows_from_every_file() {
        let folder = std::env::temp_dir().join(format!("forebay-key-{}", std::process::id()));
        fs::create_dir_all(folder.join("a")).unwrap();
        fs::write(folder.join("a/go.sum"), "1").unwrap();
        let key = || key("1.0", std::slice::from_ref(&folder)).unwrap();
        let first = key();
        assert_eq!(first, key());
        fs::write(folder.join("a/go.sum"), "2").unwrap();
        assert_ne!(first, key());
        fs::remove_dir_all(&folder).unwrap();
    }
}
