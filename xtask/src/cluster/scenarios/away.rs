//! The API server does not answer.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::super::layout::Node;
use super::{
    http::watch,
    stage::{Frozen, HELLO, HOST, PATIENCE, Stage, route_path},
};

const SERVER: &str = "kube-apiserver";
/// A change after the API server's return is live within this time.
const LIVE: Duration = Duration::from_secs(2);
/// Longest wait until a container runs again; kubelet waits ten seconds before a second restart.
const RESTART: Duration = Duration::from_secs(60);
/// Longest wait until a node has read everything anew.
const ANEW: Duration = Duration::from_secs(60);
/// Load on nodes that have restarted.
const SERVED: Duration = Duration::from_secs(3);
const FROM_CACHE: &str = "forebay_config_from_cache";
const REQUESTS: &str = "forebay_requests_total";

/// It is frozen under load; what changes afterwards is live at once.
pub(super) fn api_away(stage: &Stage<'_>) -> Result<String> {
    let load = stage.load();
    let frozen = Frozen::freeze(stage.running.name, SERVER)?;
    stage.pause(stage.away)?;
    drop(frozen);
    let back = Instant::now();
    let changed = stage.until("a change", PATIENCE, || Ok(turn(stage, "v2").ok()));
    let accepted = Instant::now();
    changed?;
    let seen = watch(stage.vip(), HOST, &format!("{HELLO} v2"), LIVE);
    let turned = turn(stage, "v1");
    let tally = load.stop();
    turned?;
    tally.none_failed()?;
    let after = (accepted - back).as_millis();
    let late = || format!("a change accepted {after} ms after its return was not live within 2 s");
    let seen = seen.with_context(late)?;
    Ok(format!(
        "{tally}; away for {} s, a change accepted {after} ms after its return was seen {} ms later, \
         the last answer by the old one was after {} ms",
        stage.away.as_secs(),
        seen.first.as_millis(),
        seen.last_old.as_millis()
    ))
}

/// A node's processes end while it is away; their containers start again from what the node has saved.
pub(super) fn restart(stage: &Stage<'_>) -> Result<String> {
    let node = *stage.nodes().first().context("no node")?;
    let load = stage.load();
    let frozen = Frozen::freeze(stage.running.name, SERVER)?;
    let mut times = Vec::new();
    for what in ["run", "agent"] {
        let began = Instant::now();
        kill(stage, node, what)?;
        let again = began.elapsed();
        let ready = || stage.is_ready(node) && stage.metric(node, FROM_CACHE) == Some(1.0);
        stage.until("a node that serves what it has saved", RESTART, || {
            Ok(ready().then_some(()))
        })?;
        times.push(format!(
            "`forebay {what}` ended: it ran again after {} ms, the node was ready after {} ms",
            again.as_millis(),
            began.elapsed().as_millis()
        ));
    }
    let meanwhile = load.take();
    let before = stage.metric(node, REQUESTS).unwrap_or(0.0);
    stage.pause(SERVED)?;
    let served = stage.metric(node, REQUESTS).unwrap_or(0.0) - before;
    drop(frozen);
    stage.until("a node that follows the API server", ANEW, || {
        Ok((stage.metric(node, FROM_CACHE) == Some(0.0)).then_some(()))
    })?;
    let after = load.stop();
    ensure!(served > 0.0, "{node} has answered no request");
    after.none_failed()?;
    Ok(format!(
        "{}; {served} requests answered there in {} s; while its processes ended: {meanwhile}; \
         afterwards: {after}",
        times.join("; "),
        SERVED.as_secs(),
    ))
}

/// Ends a process and waits until another runs in its place.
fn kill(stage: &Stage<'_>, node: Node, what: &str) -> Result<()> {
    let old = stage
        .process(node, what)
        .with_context(|| format!("no `forebay {what}` on {node}"))?;
    let pid = Pid::from_raw(old).context("no process")?;
    kill_process(pid, Signal::KILL).with_context(|| format!("cannot end `forebay {what}`"))?;
    let another = format!("another `forebay {what}` on {node}");
    stage.until(&another, RESTART, || {
        Ok(stage.process(node, what).filter(|new| *new != old))
    })?;
    Ok(())
}

/// Leads the load to a backend.
fn turn(stage: &Stage<'_>, backend: &str) -> Result<()> {
    let rules = json!([{"backendRefs": [{"name": backend, "port": 80}]}]);
    stage
        .api
        .change(&route_path("load"), &json!({"spec": {"rules": rules}}))
        .map(drop)
}
