//! Pods that are replaced while requests come: a roll-out, a deletion, a node that is drained, an upgrade and its way back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::super::{forebay, node};
use super::changes::Figures;
use super::stage::{NAMESPACE, PATIENCE, Pod, Stage, all_new};

/// Load before the first change and after the last.
const BESIDE: Duration = Duration::from_secs(1);
/// The image by another tag.
const OTHER: &str = "docker.io/forebay/forebay:scenarios";
const SET: &str = "daemonset/forebay";

/// All pods are replaced, one node after the other.
pub(super) fn rollout(stage: &Stage<'_>) -> Result<String> {
    let before = stage.pods()?;
    let load = stage.load();
    stage.pause(BESIDE)?;
    system(stage, &["rollout", "restart", SET])?;
    stage.rolled_out()?;
    stage.pause(BESIDE)?;
    let tally = load.stop();
    all_new(&before, &stage.pods()?)?;
    tally.none_failed()?;
    Ok(format!("{tally}; {} pods replaced", before.len()))
}

/// One pod of Forebay is deleted.
pub(super) fn deletion(stage: &Stage<'_>) -> Result<String> {
    let before = stage.pods()?;
    let gone = before.first().context("no pod")?;
    let load = stage.load();
    stage.pause(BESIDE)?;
    system(stage, &["delete", "pod", &gone.name, "--wait=false"])?;
    stage.until("the pod's end", PATIENCE, || {
        Ok((!stage.pods()?.contains(gone)).then_some(()))
    })?;
    stage.rolled_out()?;
    stage.pause(BESIDE)?;
    let tally = load.stop();
    tally.none_failed()?;
    Ok(format!("{tally}; the pod of {}", gone.node))
}

/// A node that runs backends is drained; Forebay stays there, as all pods of DaemonSets do.
pub(super) fn drain(stage: &Stage<'_>) -> Result<String> {
    let on = backends(stage)?;
    let (node, number) = on.first().context("no backend runs")?;
    let load = stage.load();
    stage.pause(BESIDE)?;
    let words = [
        "drain",
        node.as_str(),
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=60s",
    ];
    let drained = stage.running.kubectl(&words);
    let left = backends(stage).map(|all| all.iter().any(|(other, _)| other == node));
    let uncordoned = stage.running.kubectl(&["uncordon", node]);
    drained?;
    ensure!(!left?, "there are still backends on {node}");
    stage.pause(BESIDE)?;
    let tally = load.stop();
    uncordoned?;
    tally.none_failed()?;
    Ok(format!(
        "{tally}; {number} backends of {node} went elsewhere"
    ))
}

/// The same image by another tag, and back.
pub(super) fn upgrade(stage: &Stage<'_>) -> Result<String> {
    let before = stage.pods()?;
    let old = before.first().context("no pod")?.image.clone();
    for node in stage.nodes() {
        node::tag(stage.running.name, node, &old, OTHER)?;
    }
    let load = stage.load();
    stage.pause(BESIDE)?;
    let (agent, run) = (format!("agent={OTHER}"), format!("forebay={OTHER}"));
    system(stage, &["set", "image", SET, &agent, &run])?;
    let upgraded = stage.rolled_out().and_then(|()| stage.pods());
    let up = load.take();
    system(stage, &["rollout", "undo", SET])?;
    stage.rolled_out()?;
    stage.pause(BESIDE)?;
    let down = load.stop();
    let (upgraded, after) = (upgraded?, stage.pods()?);
    all_new(&before, &upgraded)?;
    all_new(&upgraded, &after)?;
    let images = |pods: &[Pod], image: &str| pods.iter().all(|pod| pod.image == image);
    ensure!(images(&upgraded, OTHER), "not all pods have the new image");
    ensure!(
        images(&after, &old),
        "not all pods have the old image again"
    );
    up.none_failed().context("upgrade")?;
    down.none_failed().context("rollback")?;
    Ok(format!("upgrade {up}; rollback {down}"))
}

/// Each pod is deleted in turn: how long does the next one take until its node is ready?
pub(super) fn start(stage: &Stage<'_>) -> Result<String> {
    let (mut processes, mut pods) = (Vec::new(), Vec::new());
    for node in stage.nodes() {
        let of_node = |all: Vec<Pod>| all.into_iter().find(|pod| pod.node == node.to_string());
        let old = of_node(stage.pods()?).with_context(|| format!("no pod on {node}"))?;
        let process = stage.process(node, "run");
        system(stage, &["delete", "pod", &old.name, "--wait=false"])?;
        stage.until("the next pod", PATIENCE, || {
            Ok(of_node(stage.pods()?).filter(|pod| pod.uid != old.uid))
        })?;
        let created = Instant::now();
        let started = stage.until("its process", PATIENCE, || {
            let pid = stage.process(node, "run");
            Ok(pid.filter(|_| pid != process).map(|_| Instant::now()))
        })?;
        stage.until("a ready node", PATIENCE, || {
            Ok(stage.is_ready(node).then_some(()))
        })?;
        processes.push(started.elapsed());
        stage.rolled_out()?;
        pods.push(created.elapsed());
    }
    Ok(format!(
        "the node is ready {} after the start of `forebay run`, its pod {} after it was made",
        Figures::of(processes),
        Figures::of(pods)
    ))
}

fn system(stage: &Stage<'_>, words: &[&str]) -> Result<()> {
    let of = ["-n", forebay::NAMESPACE];
    stage.running.kubectl(&[&of[..], words].concat()).map(drop)
}

/// Nodes by the number of backends that run there, the most first.
fn backends(stage: &Stage<'_>) -> Result<Vec<(String, usize)>> {
    let found = stage
        .api
        .get(&format!("/api/v1/namespaces/{NAMESPACE}/pods"))?;
    let pods = found["items"].as_array().context("no list of pods")?;
    let mut nodes = std::collections::BTreeMap::<String, usize>::new();
    for pod in pods {
        if let Some(node) = pod["spec"]["nodeName"].as_str() {
            *nodes.entry(node.to_owned()).or_default() += 1;
        }
    }
    let mut nodes: Vec<(String, usize)> = nodes.into_iter().collect();
    nodes.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
    Ok(nodes)
}
