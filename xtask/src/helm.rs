//! Helm: from the cache, else built from the Go modules that `tests/cluster/helm` pins.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    cluster::{Interrupt, go},
    cmd, paths,
    progress::Steps,
};

/// Version of Helm, as `go.mod` has it.
const HELM: &str = "4.3.1";
const PACKAGE: &str = "helm.sh/helm/v4/cmd/helm";
/// Packages that are compiled for it, roughly.
const PACKAGES: usize = 1300;
/// Space that a build takes at most.
const GIB: u64 = 3;

/// The program, which is there.
#[derive(Debug)]
pub(crate) struct Helm(PathBuf);

impl Helm {
    /// Finds it or builds it.
    pub(crate) fn provide(steps: &Steps, interrupt: &Interrupt) -> Result<Self> {
        let modules = modules();
        let key = go::key(HELM, std::slice::from_ref(&modules))?;
        let place = paths::cache()?.join(format!("helm-{HELM}-{key}"));
        let wanted = go::Wanted {
            place: &place,
            what: "building Helm",
            gib: GIB,
            toolchain: "local",
        };
        steps.run("helm", |step| {
            let built = go::provide(interrupt, &wanted, |go, out| {
                let mut build = go.command(&modules, &["build", "-v", "-trimpath"]);
                build.args(["-ldflags=-s -w", "-o"]).arg(out.join("helm"));
                build.arg(PACKAGE);
                go.run(build, |lines| {
                    step.say(&format!("go build: {lines} of {PACKAGES} packages"));
                })
            })?;
            let how = if built { "built" } else { "cached" };
            Ok(format!("{HELM}, {how}"))
        })?;
        Ok(Self(place.join("helm")))
    }

    /// Runs it and returns what it prints. It looks at no configuration of whoever calls.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.0);
        command
            .current_dir(paths::root())
            .env_clear()
            .env("HOME", "/nonexistent");
        cmd::output(command.args(words))
    }
}

fn modules() -> PathBuf {
    paths::root().join("tests/cluster/helm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_mod_has_the_version_that_is_named_here() {
        let text = std::fs::read_to_string(modules().join("go.mod")).unwrap();
        assert!(text.contains(&format!("helm.sh/helm/v4 v{HELM} ")));
        assert!(text.contains(PACKAGE));
    }
}
