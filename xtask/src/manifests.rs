//! `cargo xtask manifests`: `deploy/forebay.yaml`, which is the chart rendered with its own values.
//!
//! The file ends in a seal over the chart and its own text, so that a look at the files alone tells whether the two belong
//! together: only whoever changes the chart needs Helm.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cluster::{Interrupt, go},
    helm::Helm,
    paths,
    progress::Steps,
};

/// Where the program looks for what the nodes share, and so the only place to install to.
const NAMESPACE: &str = "forebay-system";
const CHART: &str = "deploy/helm/forebay";
const HEAD: &str = "\
# Forebay: the chart deploy/helm/forebay with its own values. Made by `cargo xtask manifests`; to be applied after the
# definitions, see docs/install.md.
";
/// Beside the chart, since a chart does not make the namespace that it is installed to.
const SPACE: &str = "---
apiVersion: v1
kind: Namespace
metadata:
  name: forebay-system
  labels:
    # The pods use the nodes' network and BPF file system; nobody but administrators makes pods here.
    pod-security.kubernetes.io/enforce: privileged
    pod-security.kubernetes.io/audit: privileged
    pod-security.kubernetes.io/warn: privileged
";
const SEAL: &str = "# seal: ";

/// What to do with the manifests.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; exit code 1 if the file differs.
    #[arg(long)]
    check: bool,
}

/// `cargo xtask manifests`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let steps = Steps::new();
    let interrupt = Interrupt::listen()?;
    let helm = Helm::provide(&steps, &interrupt)?;
    steps.run("chart", |_| {
        let words = ["lint", "--strict", "--quiet", "--namespace", NAMESPACE];
        helm.run(&[&words[..], &[CHART]].concat())?;
        Ok("no complaint".to_owned())
    })?;
    let path = path();
    steps.run("manifests", |_| {
        let wanted = render(&helm)?;
        let same = fs::read_to_string(&path).is_ok_and(|found| found == wanted);
        if args.check && !same {
            bail!(
                "{} is not what the chart renders: run `cargo xtask manifests`",
                path.display()
            );
        }
        if same {
            return Ok("unchanged".to_owned());
        }
        fs::write(&path, &wanted).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path.display().to_string())
    })
}

/// Whether the file is one that was made from the chart as it is now.
pub(crate) fn sealed() -> Result<()> {
    let path = path();
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = text.rsplit_once(SEAL);
    let good = match found {
        Some((body, seal)) => seal.trim_end() == self::seal(body)?,
        None => false,
    };
    ensure!(
        good,
        "the chart or {} was changed without the other: run `cargo xtask manifests`",
        path.display()
    );
    Ok(())
}

fn render(helm: &Helm) -> Result<String> {
    let rendered = helm.run(&["template", "forebay", CHART, "--namespace", NAMESPACE])?;
    let lines = rendered.lines().filter(|line| !line.trim().is_empty());
    let lines: Vec<&str> = lines.map(str::trim_end).collect();
    let body = format!("{HEAD}{SPACE}{}\n", lines.join("\n"));
    let seal = seal(&body)?;
    Ok(format!("{body}{SEAL}{seal}\n"))
}

fn seal(body: &str) -> Result<String> {
    go::key(body, &[paths::root().join(CHART)])
}

fn path() -> PathBuf {
    paths::root().join("deploy/forebay.yaml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_are_those_of_the_chart() {
        sealed().unwrap();
    }

    #[test]
    fn the_chart_is_of_this_version() {
        let chart = paths::root().join(CHART).join("Chart.yaml");
        let chart = fs::read_to_string(chart).unwrap();
        let version = env!("CARGO_PKG_VERSION");
        for line in [
            format!("version: {version}"),
            format!("appVersion: {version}"),
        ] {
            assert!(chart.lines().any(|found| found == line), "{line}");
        }
        let image = format!("image: docker.io/forebay/forebay:{version}\n");
        for file in [path(), path().with_file_name("detach.yaml")] {
            let text = fs::read_to_string(file).unwrap();
            assert!(text.contains(&image));
        }
    }
}
