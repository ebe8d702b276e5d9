//! Forebay in a cluster, installed by what its users install: definitions, manifests, an image.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{control, running::Running, wait::until};
use crate::paths;

/// The class that the manifests bring.
pub(crate) const CLASS: &str = "forebay";
pub(super) const NAMESPACE: &str = "forebay-system";
/// Addresses of the clusters' own network that no machine has.
pub(super) const RANGE: &str = "10.231.0.128-10.231.0.254";
/// One of them, and one that nobody has.
pub(crate) const USABLE: &str = "10.231.0.250";
pub(crate) const UNUSABLE: &str = "192.0.2.1";
/// Longest wait for pods, or for the class.
const PATIENCE: Duration = Duration::from_secs(180);

/// The image. It and the manifests must have been made.
pub(crate) fn image() -> Result<PathBuf> {
    let image = paths::target().join("dist/forebay.tar");
    let manifests = paths::root().join("deploy/forebay.yaml");
    for (path, command) in [(&image, "dist"), (&manifests, "manifests")] {
        ensure!(
            path.is_file(),
            "there is no {}: run `cargo xtask {command}` first",
            path.display()
        );
    }
    Ok(image)
}

/// Installs it with a pool of addresses, and waits until it has accepted its class.
pub(crate) fn install(running: &Running<'_>, image: &Path) -> Result<()> {
    let deploy = paths::root().join("deploy");
    running.steps.run("image", |_| {
        running.load(&[image])?;
        Ok("on every node".to_owned())
    })?;
    running.steps.run("forebay", |step| {
        for path in [deploy.join("crds"), deploy.join("forebay.yaml")] {
            let path = path.display().to_string();
            running.kubectl(&["apply", "--server-side", "-f", &path])?;
        }
        step.say("definitions");
        running.kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd",
            "--all",
            "--timeout=60s",
        ])?;
        running.apply(&json!({
            "apiVersion": "forebay.dev/v1alpha1",
            "kind": "AddressPool",
            "metadata": {"name": "conformance"},
            "spec": {"ranges": [RANGE]},
        }))?;
        step.say("pods");
        until(running.interrupt, "Forebay's pods", PATIENCE, || {
            running.alive()?;
            let found = running.objects("daemonsets")?;
            Ok(found.iter().any(is_rolled_out).then_some(()))
        })?;
        step.say("GatewayClass");
        until(running.interrupt, "the GatewayClass", PATIENCE, || {
            let found = running.objects("gatewayclasses")?;
            Ok(found.iter().any(is_accepted).then_some(()))
        })?;
        Ok("pods ready, class accepted".to_owned())
    })
}

/// Whether this is Forebay's DaemonSet, as its specification has it, on all nodes.
pub(super) fn is_rolled_out(set: &Value) -> bool {
    let (metadata, status) = (&set["metadata"], &set["status"]);
    let wanted = status["desiredNumberScheduled"].as_u64().unwrap_or(0);
    metadata["name"] == CLASS
        && metadata["namespace"] == NAMESPACE
        && status["observedGeneration"] == metadata["generation"]
        && wanted > 0
        && status["numberReady"] == wanted
        && status["updatedNumberScheduled"] == wanted
}

/// Whether this is Forebay's class, accepted and with the features that tests are chosen by.
fn is_accepted(class: &Value) -> bool {
    let conditions = class["status"]["conditions"].as_array();
    let features = class["status"]["supportedFeatures"].as_array();
    let accepted =
        |condition: &Value| condition["type"] == "Accepted" && condition["status"] == "True";
    class["metadata"]["name"] == CLASS
        && conditions.is_some_and(|all| all.iter().any(accepted))
        && features.is_some_and(|all| !all.is_empty())
}

/// Keeps what the pods have said, and what they are.
pub(crate) fn keep_logs(running: &Running<'_>, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let of = ["-n", NAMESPACE];
    let described = running.kubectl(&[&["describe", "pods"], &of[..]].concat())?;
    control::write(&folder.join("forebay-pods.txt"), described)?;
    let names = running.kubectl(&[&["get", "pods", "-o", "name"], &of[..]].concat())?;
    for name in names.lines() {
        let words = ["logs", name, "--all-containers", "--prefix", "--tail=-1"];
        // One that never started has none.
        let text = running
            .kubectl(&[&words, &of[..]].concat())
            .unwrap_or_else(|error| format!("{error:#}\n"));
        let name = name.trim_start_matches("pod/");
        control::write(&folder.join(format!("{name}.log")), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roll_out_ends_when_all_pods_are_new_and_ready() {
        let set = |generation: u64, ready: u64, updated: u64| {
            json!({"metadata": {"name": "forebay", "namespace": "forebay-system", "generation": 2},
                "status": {"observedGeneration": generation, "desiredNumberScheduled": 3,
                    "numberReady": ready, "updatedNumberScheduled": updated}})
        };
        assert!(is_rolled_out(&set(2, 3, 3)));
        for set in [set(1, 3, 3), set(2, 2, 3), set(2, 3, 2), json!({})] {
            assert!(!is_rolled_out(&set), "{set}");
        }
    }

    #[test]
    fn a_class_without_features_is_waited_for() {
        let class = |features: Value| {
            json!({"metadata": {"name": "forebay"}, "status": {"supportedFeatures": features,
                "conditions": [{"type": "Accepted", "status": "True"}]}})
        };
        assert!(is_accepted(&class(json!([{"name": "Gateway"}]))));
        assert!(!is_accepted(&class(json!([]))));
        assert!(!is_accepted(&class(Value::Null)));
    }
}
