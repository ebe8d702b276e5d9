//! Many routes over many namespaces.

use std::{
    net::SocketAddrV4,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    applied::Applied,
    http::watch,
    stage::{
        self, HELLO, NAMESPACE, PATIENCE, SPACES, Stage, gateway_path, gateways_in, route,
        routes_in, space,
    },
    usage::{Memory, idle, shares},
};

/// Namespaces of the many routes.
const NAMESPACES: usize = 50;
/// After which the writes of what was just done have ended.
pub(super) const SETTLE: Duration = Duration::from_secs(15);
/// For how long idle daemons are watched.
pub(super) const IDLE: Duration = Duration::from_secs(20);
/// Changes, and the time between two.
const CHANGES: usize = 20;
const PACE: Duration = Duration::from_secs(1);
/// Longest wait until one is seen.
const SEEN: Duration = Duration::from_secs(5);
/// The Gateway of the many routes.
const SCALE: &str = "scale";
const PORT: u16 = 8080;
/// Most namespaces that one grant may name.
const MOST: usize = 16;

/// Routes of many namespaces: what do the daemons need with them, idle and while one changes each second?
pub(super) fn scale(stage: &Stage<'_>) -> Result<String> {
    let memory = Memory::of(stage)?;
    let before = idle(stage, IDLE)?;
    let applied = Applied::of(stage)?;
    let done = fill(stage).and_then(|counted| {
        let applied = applied.since(stage)?;
        stage.pause(SETTLE)?;
        let after = idle(stage, IDLE)?;
        let agents = shares(stage, "agent", || stage.pause(IDLE))?;
        let changing = shares(stage, "run", || change(stage))?;
        let (full, series) = (Memory::of(stage)?, series(stage)?);
        Ok(format!(
            "{} routes in {NAMESPACES} namespaces, attachedRoutes right {} ms after the last, live after their reading: {applied}; \
             `forebay run` idle {before} before and {after} with them, {changing} with a change a second, {memory} before and {full}; \
             `forebay agent` idle {agents}; {series} series",
            stage.scale,
            counted.as_millis()
        ))
    });
    let emptied = empty(stage);
    let said = done?;
    emptied?;
    Ok(said)
}

/// Adds them; how long the number of routes took to be right.
fn fill(stage: &Stage<'_>) -> Result<Duration> {
    let names: Vec<String> = (0..NAMESPACES).map(namespace).collect();
    for name in &names {
        stage.api.create(SPACES, &space(name))?;
    }
    for some in names.chunks(MOST) {
        stage.api.create(&grants(), &grant(some))?;
    }
    stage.api.create(&gateways_in(NAMESPACE), &gateway())?;
    for number in 0..stage.scale {
        stage.running.interrupt.check()?;
        let path = routes_in(&namespace(number % NAMESPACES));
        stage.api.create(&path, &of(number, "v1"))?;
    }
    let last = Instant::now();
    let what = format!("{} attached routes", stage.scale);
    stage.until(&what, PATIENCE, || {
        let gateway = stage.api.get(&gateway_path(SCALE))?;
        let right = gateway["status"]["listeners"][0]["attachedRoutes"] == stage.scale;
        Ok(right.then_some(()))
    })?;
    Ok(last.elapsed())
}

/// One route's backend changes once a second, and every change is seen.
fn change(stage: &Stage<'_>) -> Result<()> {
    let vip = address(stage)?;
    for number in 0..CHANGES {
        let began = Instant::now();
        let (which, backend) = (number * 37 % stage.scale.max(1), ["v2", "v1"][number % 2]);
        let path = format!(
            "{}/{}",
            routes_in(&namespace(which % NAMESPACES)),
            name(which)
        );
        stage
            .api
            .change(&path, &json!({"spec": of(which, backend)["spec"]}))?;
        let expected = format!("{HELLO} {backend}");
        watch(vip, &host(which), &expected, SEEN)
            .with_context(|| format!("{} was not seen to change within 5 s", host(which)))?;
        stage.pause(PACE.saturating_sub(began.elapsed()))?;
    }
    Ok(())
}

fn address(stage: &Stage<'_>) -> Result<SocketAddrV4> {
    let gateway = stage.api.get(&gateway_path(SCALE))?;
    let text = gateway["status"]["addresses"][0]["value"].as_str();
    let address = text.context("the Gateway has no address")?.parse()?;
    Ok(SocketAddrV4::new(address, PORT))
}

fn empty(stage: &Stage<'_>) -> Result<()> {
    let grants = format!("{}?labelSelector=scenario%3D{SCALE}", grants());
    let mut paths = vec![gateway_path(SCALE), grants];
    for name in (0..NAMESPACES).map(namespace) {
        paths.extend([routes_in(&name), format!("{SPACES}/{name}")]);
    }
    let results: Vec<_> = paths.iter().map(|path| stage.api.delete(path)).collect();
    results.into_iter().collect::<Result<Vec<_>>>().map(drop)
}

fn grants() -> String {
    format!("/apis/gateway.networking.k8s.io/v1beta1/namespaces/{NAMESPACE}/referencegrants")
}

/// Lets routes of these namespaces send to the backends.
fn grant(namespaces: &[String]) -> Value {
    let from = |name: &String| json!({"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": name});
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1beta1",
        "kind": "ReferenceGrant",
        "metadata": {"name": namespaces.first(), "labels": {"scenario": SCALE}},
        "spec": {
            "from": namespaces.iter().map(from).collect::<Vec<_>>(),
            "to": [{"group": "", "kind": "Service"}],
        },
    })
}

fn gateway() -> Value {
    let all = json!({"namespaces": {"from": "All"}});
    let mut gateway = stage::gateway(SCALE);
    gateway["spec"]["listeners"][0]["port"] = json!(PORT);
    gateway["spec"]["listeners"][0]["allowedRoutes"] = all;
    gateway
}

/// The most that a node's metrics have.
fn series(stage: &Stage<'_>) -> Result<usize> {
    let of = |node| {
        let text = stage
            .metrics(node)
            .with_context(|| format!("{node} tells no metrics"))?;
        Ok(text.lines().filter(|line| !line.starts_with('#')).count())
    };
    let all: Result<Vec<usize>> = stage.nodes().into_iter().map(of).collect();
    Ok(all?.into_iter().max().unwrap_or_default())
}

fn namespace(number: usize) -> String {
    format!("scale-{number}")
}

fn name(number: usize) -> String {
    format!("route-{number}")
}

fn host(number: usize) -> String {
    format!("r{number}.scale.test")
}

/// One of the many.
fn of(number: usize, backend: &str) -> Value {
    let mut object = route(&name(number), &host(number), backend);
    object["metadata"]["namespace"] = json!(namespace(number % NAMESPACES));
    object["spec"]["parentRefs"] = json!([{"name": SCALE, "namespace": NAMESPACE}]);
    object["spec"]["rules"][0]["backendRefs"][0]["namespace"] = json!(NAMESPACE);
    object
}
