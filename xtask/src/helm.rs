//! Helm: from the cache, else built from the Go modules that `tests/cluster/helm` pins.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{
    cmd, go, paths,
    progress::{Step, Steps},
    setup,
};

/// Version of Helm, as `go.mod` has it.
const HELM: &str = "4.3.1";
const PACKAGE: &str = "helm.sh/helm/v4/cmd/helm";
/// Packages that are compiled for it, roughly.
const PACKAGES: usize = 1100;

/// The program, which is there.
#[derive(Debug)]
pub(crate) struct Helm(PathBuf);

impl Helm {
    /// Finds it or builds it.
    pub(crate) fn provide(steps: &Steps) -> Result<Self> {
        let key = go::key(HELM, &module())?;
        let helm = Self(paths::cache()?.join(format!("helm-{HELM}-{key}")));
        steps.run("helm", |step| helm.build_if_missing(step))?;
        Ok(helm)
    }

    /// Runs it and returns what it prints. It looks at no configuration of whoever calls.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        cmd::output(self.command().args(words))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.0);
        command
            .current_dir(paths::root())
            .env_clear()
            .env("HOME", "/nonexistent");
        command
    }

    fn build_if_missing(&self, step: &Step) -> Result<String> {
        if self.0.is_file() {
            return Ok(format!("{HELM}, cached"));
        }
        let _lock = setup::lock()?;
        if self.0.is_file() {
            return Ok(format!("{HELM}, cached"));
        }
        go::check("Helm")?;
        let work = paths::cache()?.join("helm-build");
        go::clear(&work)?;
        let built = self.build(step, &work);
        let cleared = go::clear(&work);
        built.and(cleared)?;
        Ok(format!("{HELM}, built"))
    }

    fn build(&self, step: &Step, work: &std::path::Path) -> Result<()> {
        let temporary = work.join("temporary");
        fs::create_dir_all(&temporary)
            .with_context(|| format!("cannot create {}", temporary.display()))?;
        let out = work.join("helm");
        let mut build = go::command(
            &module(),
            work,
            &["build", "-v", "-trimpath", "-ldflags", "-s -w", "-o"],
        );
        build.arg(&out).arg(PACKAGE);
        let mut lines = 0;
        cmd::watched(&mut build, |_| {
            lines += 1;
            step.say(&format!("go build: {lines} of {PACKAGES} packages"));
        })?;
        fs::rename(&out, &self.0).with_context(|| format!("cannot create {}", self.0.display()))
    }
}

fn module() -> PathBuf {
    paths::root().join("tests/cluster/helm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_mod_has_the_version_that_is_named_here() {
        let text = fs::read_to_string(module().join("go.mod")).unwrap();
        assert!(text.contains(&format!("helm.sh/helm/v4 v{HELM} ")));
        assert!(text.contains(PACKAGE));
    }
}
