//! The programs of Kubernetes: from the cache, else built from the Go modules that `tests/cluster/kubernetes` pins.
//!
//! Only the stripped programs are kept. Go's caches, 5 GB, lie beside them while they are built and go with the build.

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

use super::wait::{Interrupt, until};
use crate::{cmd, paths, progress::Step, setup, source};

/// Version of Kubernetes, as `go.mod` has it.
pub(super) const KUBERNETES: &str = "1.37.2";
/// Version of the Gateway API definitions.
pub(super) const GATEWAY_API: &str = "1.7.0";
/// Go's sum of that module: its zip is taken without a `go.sum`, which would ask for a newer Go.
const GATEWAY_API_SUM: &str = "h1:duVnm7nO6oXfMMUWfcDoBph47CYR/ME3NGxccOVglaY=";
/// Oldest Go that builds all this: minor version of 1.
const GO_MINOR: u32 = 26;
/// Space that a build takes at most.
const BUILD_GIB: u64 = 7;

/// Packages that are compiled for them, roughly.
const PACKAGES: usize = 2900;
/// Longest build, on a machine that has other things to do.
const BUILD: Duration = Duration::from_secs(3 * 3600);
/// Lines of a failed build that its error shows.
const TAIL: usize = 40;

/// What is built: the package, and the program's name where it is not the package's.
const PROGRAMS: [&str; 9] = [
    "./crds",
    "./pause",
    "go.etcd.io/etcd/server/v3",
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kube-controller-manager",
    "k8s.io/kubernetes/cmd/kube-proxy",
    "k8s.io/kubernetes/cmd/kube-scheduler",
    "k8s.io/kubernetes/cmd/kubectl",
    "k8s.io/kubernetes/cmd/kubelet",
];

/// A folder with everything that is built, once.
#[derive(Debug, Clone)]
pub(super) struct Binaries(PathBuf);

impl Binaries {
    /// The folder that belongs to what is pinned now; nothing may be in it yet.
    pub(super) fn place() -> Result<Self> {
        let key = key(&modules())?;
        let name = format!("kubernetes-{KUBERNETES}-{key}");
        Ok(Self(paths::cache()?.join(name)))
    }

    pub(super) fn path(&self, program: &str) -> PathBuf {
        self.0.join("bin").join(program)
    }

    /// The folder of one channel's definitions.
    pub(super) fn definitions(&self, channel: &str) -> PathBuf {
        self.0.join("crds").join(channel)
    }

    /// The folder is put there as a whole, so that it is either complete or missing.
    fn is_complete(&self) -> bool {
        self.0.is_dir()
    }
}

/// Finds the programs, or builds them.
pub(super) fn provide(step: &Step, interrupt: &Interrupt) -> Result<String> {
    let place = Binaries::place()?;
    if place.is_complete() {
        return Ok(format!("{KUBERNETES}, cached"));
    }
    let _lock = setup::lock()?;
    if place.is_complete() {
        return Ok(format!("{KUBERNETES}, cached"));
    }
    check_go()?;
    let cache = paths::cache()?;
    super::checks::space(&cache, BUILD_GIB, "building Kubernetes")?;
    // Nobody else builds now: whatever is left is of a build that was killed.
    let work = cache.join("kubernetes-build");
    clear(&work)?;
    let built = build(step, interrupt, &work, &place);
    // Also what a failed build leaves is several gigabytes.
    let cleared = clear(&work);
    built.and(cleared)?;
    Ok(format!("{KUBERNETES}, built"))
}

fn build(step: &Step, interrupt: &Interrupt, work: &Path, place: &Binaries) -> Result<()> {
    let out = work.join("out");
    let bin = out.join("bin");
    let temporary = work.join("temporary");
    for folder in [&bin, &temporary] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    step.say("go mod download");
    watched(interrupt, work, go(work, &["mod", "download"]), |_| {})?;
    let mut build = go(work, &["build", "-v", "-trimpath", "-ldflags"]);
    build.arg(stamp()).arg("-o").arg(&bin).args(PROGRAMS);
    watched(interrupt, work, build, |lines| {
        step.say(&format!("go build: {lines} of {PACKAGES} packages"));
    })?;
    // Go names a program by its package.
    fs::rename(bin.join("server"), bin.join("etcd")).context("etcd was not built")?;
    step.say("Gateway API's definitions");
    let zip = gateway_api(work)?;
    let mut unpack = Command::new(bin.join("crds"));
    cmd::output(unpack.arg(&zip).arg(out.join("crds")))?;
    fs::rename(&out, &place.0).with_context(|| format!("cannot create {}", place.0.display()))
}

/// Runs `command`, calls `each` with the number of lines that it has said so far; an interrupt ends it.
fn watched(
    interrupt: &Interrupt,
    work: &Path,
    mut command: Command,
    each: impl Fn(usize),
) -> Result<()> {
    let said = work.join("said");
    let file = File::create(&said).with_context(|| format!("cannot create {}", said.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .context("cannot run setpriv")?;
    let text = || fs::read_to_string(&said).unwrap_or_default();
    let status = until(interrupt, "the build", BUILD, || {
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

/// `go` with caches of its own, ended with this process however that ends.
fn go(work: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "go"])
        .args(words)
        .current_dir(modules())
        .env("GOCACHE", work.join("cache"))
        .env("GOMODCACHE", work.join("modules"))
        .env("GOTMPDIR", work.join("temporary"))
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        // Modules that can be removed again, and never another go.sum.
        .env("GOFLAGS", "-modcacherw -mod=readonly")
        .env("CGO_ENABLED", "0");
    command
}

/// What `kubectl version` reads; without it, it cannot.
fn stamp() -> String {
    let of = |name: &str, value: &str| format!("-X k8s.io/component-base/version.{name}={value}");
    let mut numbers = KUBERNETES.split('.');
    [
        "-s -w".to_owned(),
        of("gitVersion", &format!("v{KUBERNETES}")),
        of("gitMajor", numbers.next().unwrap_or_default()),
        of("gitMinor", numbers.next().unwrap_or_default()),
        of("gitCommit", "forebay"),
        of("gitTreeState", "clean"),
    ]
    .join(" ")
}

/// The zip of Gateway API's module. Go fetches it, says where it is and then refuses to use it, since it is of a newer
/// Go; only its definitions are wanted.
fn gateway_api(work: &Path) -> Result<PathBuf> {
    let module = format!("sigs.k8s.io/gateway-api@v{GATEWAY_API}");
    let mut download = go(work, &["mod", "download", "-json", &module]);
    let said = download
        // Not in a module, whose requirements would change.
        .current_dir(work)
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
        sum == GATEWAY_API_SUM,
        "{module} has the sum {sum} instead of {GATEWAY_API_SUM}"
    );
    Ok(zip.into())
}

fn check_go() -> Result<()> {
    let wanted = format!("Go 1.{GO_MINOR} or newer is needed to build Kubernetes");
    let version = cmd::output(Command::new("go").args(["env", "GOVERSION"]))
        .with_context(|| format!("{wanted}: see https://go.dev/doc/install"))?;
    if minor(&version).is_none_or(|minor| minor < GO_MINOR) {
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

fn modules() -> PathBuf {
    paths::root().join("tests/cluster/kubernetes")
}

/// Follows from all files that the build reads.
fn key(folder: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(GATEWAY_API);
    for path in source::files(folder)? {
        let name = path.strip_prefix(folder).unwrap_or(&path);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        hash.update(name.as_os_str().as_encoded_bytes());
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
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
    fn the_stamp_says_the_version_three_times() {
        let stamp = stamp();
        for part in ["gitVersion=v1.37.2 ", "gitMajor=1 ", "gitMinor=37 "] {
            assert!(stamp.contains(&format!("version.{part}")), "{stamp}");
        }
    }

    #[test]
    fn go_mod_has_the_version_that_is_named_here() {
        let text = fs::read_to_string(modules().join("go.mod")).unwrap();
        assert!(text.contains(&format!("k8s.io/kubernetes v{KUBERNETES} ")));
        for program in PROGRAMS {
            assert!(program.starts_with("./") || text.contains(program));
        }
    }

    #[test]
    fn the_key_follows_from_every_file() {
        let folder = std::env::temp_dir().join(format!("forebay-key-{}", std::process::id()));
        fs::create_dir_all(folder.join("a")).unwrap();
        fs::write(folder.join("a/go.sum"), "1").unwrap();
        let first = key(&folder).unwrap();
        assert_eq!(first, key(&folder).unwrap());
        fs::write(folder.join("a/go.sum"), "2").unwrap();
        assert_ne!(first, key(&folder).unwrap());
        fs::remove_dir_all(&folder).unwrap();
    }
}
