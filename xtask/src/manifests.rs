//! `cargo xtask manifests`: `deploy/forebay.yaml`, which is the chart rendered with its own values, and what tests look at of
//! other values.
//!
//! Each file ends in a seal over the chart and its own text, so that a look at the files alone tells whether they belong
//! together: only whoever changes the chart needs Helm.

use std::fs;

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
/// What is rendered: the file, its first lines, and values.
const FILES: [(&str, &str, &[&str]); 2] = [
    ("deploy/forebay.yaml", HEAD, &[]),
    (
        "gateway-user/tests/manifests/namespaces.yaml",
        "# The chart for two namespaces, as tests look at it. Made by `cargo xtask manifests`.\n",
        &["--set", "namespaces={a,b}"],
    ),
];
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

/// Values that the chart must refuse.
const REFUSED: [&str; 15] = [
    "unknown=1",
    "image.unknown=1",
    "image.digest=sha256:12",
    "datapath=off",
    "metricsPort=0",
    "admin=0.0.0.0:15000",
    "workers=0",
    "drainTimeoutSeconds=-1",
    "addressPools.a.ranges={}",
    "agent.kubernetes=false",
    "agent.vips={a b}",
    "agent.extraArgs={x}",
    "proxy.seccompProfile.type=Localhost",
    "updateStrategy.maxUnavailable=0",
    "tolerations[0].unknown=1",
];
/// Values that bring out the parts of the chart that its own ones leave out.
const ALL: &str = "image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000,\
    imagePullSecrets={a},namespaces={a,b},addressPools.a.ranges={192.0.2.96/27},interfaces={a,b},workers=1,\
    agent.vips={192.0.2.1},agent.reservedPorts={1,2},agent.joinXdp=true,agent.extraArgs={--a},proxy.extraArgs={--a},proxy.authorities=a,\
    seLinuxOptions.type=spc_t,nodeSelector.a=b,podLabels.a=b,podAnnotations.a=b,podMonitor.create=true,podMonitor.labels.a=b,\
    affinity.nodeAffinity.a=b";

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
    steps.run("values", |_| values(&helm))?;
    for (file, head, values) in FILES {
        steps.run(file, |_| {
            let path = paths::root().join(file);
            let wanted = render(&helm, head, values)?;
            let same = fs::read_to_string(&path).is_ok_and(|found| found == wanted);
            if args.check && !same {
                bail!("{file} is not what the chart renders: run `cargo xtask manifests`");
            }
            if same {
                return Ok("unchanged".to_owned());
            }
            fs::write(&path, &wanted).with_context(|| format!("cannot write {file}"))?;
            Ok("written".to_owned())
        })?;
    }
    Ok(())
}

/// Whether the files were made from the chart as it is now.
pub(crate) fn sealed() -> Result<()> {
    for (file, ..) in FILES {
        let text = fs::read_to_string(paths::root().join(file));
        let text = text.with_context(|| format!("cannot read {file}"))?;
        let good = match text.rsplit_once(SEAL) {
            Some((body, seal)) => seal.trim_end() == self::seal(body)?,
            None => false,
        };
        ensure!(
            good,
            "the chart or {file} was changed without the other: run `cargo xtask manifests`"
        );
    }
    Ok(())
}

/// Tries what the chart takes and what it does not.
fn values(helm: &Helm) -> Result<String> {
    let mut objects = 0;
    for object in template(helm, NAMESPACE, &["--set", ALL])?.split("\n---\n") {
        serde_saphyr::from_str::<serde_json::Value>(object)
            .with_context(|| format!("the chart renders what is no YAML:\n{object}"))?;
        objects += 1;
    }
    for value in REFUSED {
        let Err(error) = template(helm, NAMESPACE, &["--set", value]) else {
            bail!("the chart takes {value}");
        };
        let error = format!("{error:#}");
        ensure!(error.contains("specifications of the schema"), "{error}");
    }
    ensure!(
        template(helm, "default", &[]).is_err(),
        "the chart lets itself be installed in another namespace"
    );
    Ok(format!(
        "{objects} objects with all of them, {} are refused",
        REFUSED.len()
    ))
}

fn template(helm: &Helm, namespace: &str, more: &[&str]) -> Result<String> {
    let words = ["template", "forebay", CHART, "--namespace", namespace];
    helm.run(&[&words[..], more].concat())
}

fn render(helm: &Helm, head: &str, values: &[&str]) -> Result<String> {
    let rendered = template(helm, NAMESPACE, values)?;
    let lines = rendered.lines().filter(|line| !line.trim().is_empty());
    let lines: Vec<&str> = lines.map(str::trim_end).collect();
    let body = format!("{head}{SPACE}{}\n", lines.join("\n"));
    let seal = seal(&body)?;
    Ok(format!("{body}{SEAL}{seal}\n"))
}

fn seal(body: &str) -> Result<String> {
    go::key(body, &[paths::root().join(CHART)])
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
        for file in ["deploy/forebay.yaml", "deploy/detach.yaml"] {
            let text = fs::read_to_string(paths::root().join(file)).unwrap();
            assert!(text.contains(&image));
        }
    }
}
