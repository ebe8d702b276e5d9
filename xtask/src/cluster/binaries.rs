//! The programs of Kubernetes: from the cache, else built from the Go modules that `tests/cluster/kubernetes` pins.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{
    go::{self, Go},
    wait::Interrupt,
};
use crate::{cmd, paths, progress::Step};

/// Version of Kubernetes, as `go.mod` has it.
pub(crate) const KUBERNETES: &str = "1.37.2";
/// Version of the Gateway API definitions.
pub(super) const GATEWAY_API: &str = "1.7.0";
/// Go's sum of that module: its zip is taken without a `go.sum`, which would ask for a newer Go.
const GATEWAY_API_SUM: &str = "h1:duVnm7nO6oXfMMUWfcDoBph47CYR/ME3NGxccOVglaY=";
/// Space that a build takes at most.
const BUILD_GIB: u64 = 7;

/// Packages that are compiled for them, roughly.
const PACKAGES: usize = 2900;

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
        let key = go::key(GATEWAY_API, &[modules()])?;
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
}

/// Finds the programs, or builds them.
pub(super) fn provide(step: &Step, interrupt: &Interrupt) -> Result<String> {
    let place = Binaries::place()?;
    let wanted = go::Wanted {
        place: &place.0,
        what: "building Kubernetes",
        gib: BUILD_GIB,
        toolchain: "local",
    };
    let built = go::provide(interrupt, &wanted, |go, out| build(step, go, out))?;
    let how = if built { "built" } else { "cached" };
    Ok(format!("{KUBERNETES}, {how}"))
}

fn build(step: &Step, go: &Go<'_>, out: &Path) -> Result<()> {
    let modules = modules();
    let bin = out.join("bin");
    fs::create_dir(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    step.say("go mod download");
    go.run(go.command(&modules, &["mod", "download"]), |_| {})?;
    let mut build = go.command(&modules, &["build", "-v", "-trimpath", "-ldflags"]);
    build.arg(stamp()).arg("-o").arg(&bin).args(PROGRAMS);
    go.run(build, |lines| {
        step.say(&format!("go build: {lines} of {PACKAGES} packages"));
    })?;
    // Go names a program by its package.
    fs::rename(bin.join("server"), bin.join("etcd")).context("etcd was not built")?;
    step.say("Gateway API's definitions");
    let zip = go.zip(
        &format!("sigs.k8s.io/gateway-api@v{GATEWAY_API}"),
        GATEWAY_API_SUM,
    )?;
    let mut unpack = Command::new(bin.join("crds"));
    cmd::output(unpack.arg(&zip).arg(out.join("crds"))).map(drop)
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

fn modules() -> PathBuf {
    paths::root().join("tests/cluster/kubernetes")
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
